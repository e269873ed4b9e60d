"""
What travels between server, agent and executor: frozen values, one codec, bounds on every field.

Envelope payloads have a payload type of their own (`redflag_core.envelope`); bodies of signed requests are plain
JSON. Version 1 of each; unknown fields are refused within a version. Read with `redflag_core.codec.parse`.
"""

from enum import StrEnum
from typing import Any, Final

import attrs
from attrs import validators

from redflag_core import _fields
from redflag_core._fields import (
    HASH,
    MOMENT,
    UUID,
    VERSION,
    count,
    each_once,
    is_key,
    line,
    small,
)
from redflag_core.encoding import JsonValue, b64decode, b64encode
from redflag_core.keys import KEY_TYPE, SigningKey, VerifyKey
from redflag_core.machine import MachineEvidence
from redflag_core.scanning import MAX_ERROR, MAX_PACKAGES, MAX_TEXT, MAX_WARNINGS, Package, PackageKey, ScanStatus
from redflag_core.scanning.model import MAX_FACTS, MAX_FACTS_BYTES

PROTOCOL_VERSION: Final = _fields.PROTOCOL_VERSION
PROTOCOL_VERSIONS: Final = _fields.PROTOCOL_VERSIONS
"""What this release speaks: its own version and, once there is one, the previous."""

MAX_MOMENT: Final = _fields.MAX_MOMENT
"""The last second of the year 9999, unix: what every calendar and database can hold."""

BUNDLE_TYPE: Final = "application/vnd.redflag.bundle.v1+json"
ROOT_TYPE: Final = "application/vnd.redflag.root.v1+json"
EVIDENCE_TYPE: Final = "application/vnd.redflag.evidence.v1+json"
EXECUTOR_PROOF_TYPE: Final = "application/vnd.redflag.executor-proof.v1+json"
EXECUTOR_STATE_TYPE: Final = "application/vnd.redflag.executor-state.v1+json"

MAX_SMALL_BODY: Final = 64 * 1024
"""Bytes. Register, token and check-in bodies are below 8 KiB; envelopes in them below 64 KiB."""

MAX_REPORT_BODY: Final = 16 * 1024 * 1024
"""Bytes. A full inventory of `MAX_PACKAGES` packages."""

MAX_BUNDLE_BYTES: Final = 256 * 1024
"""Bytes of a bundle's envelope: 900 keys of one organization each."""

MAX_ENVELOPE_TEXT: Final = 16 * 1024
"""Characters of an envelope in base64 inside a body. The executor's statements have about 1 KiB."""

MAX_WAIT_SECONDS: Final = 50
"""Longest long-poll: below the 60 s after which proxies give up."""

MAX_STATEMENT_TEXT: Final = 1_400_000
"""Characters of a statement of the executor in base64: 1 MiB."""

MAX_STATEMENT_BODY: Final = MAX_STATEMENT_TEXT + 1024
"""Bytes of a body that carries one."""

MAX_PROGRESS_LINES: Final = 20
MAX_PROGRESS_LINE: Final = 300
"""Characters: what fits on a page; the whole output comes with the result."""

MAX_ERRORS: Final = 100
MAX_SCANNERS: Final = 32
MAX_CONTEXT_BYTES: Final = 16 * 1024


_SCANNER: Final[Any] = validators.matches_re(r"[a-z][a-z0-9_]{0,31}")
_SECRET: Final[Any] = validators.matches_re(r"[A-Za-z0-9_-]{43}")
_SCANNERS_ONCE: Final[Any] = each_once("a scanner", lambda state: state.scanner)
_ENVELOPE: Final[Any] = line(MAX_ENVELOPE_TEXT)


# --- trust -----------------------------------------------------------------------------------------------------


class Role(StrEnum):
    """What a key of the trust bundle may sign."""

    COMMAND = "command"
    CHECKPOINT = "checkpoint"
    OPERATOR = "operator"


@attrs.frozen
class PublicKey:
    """
    A public key on the wire.

    Attributes:
        key: 32 raw bytes in base64.
        key_type: ``ed25519``.
    """

    key: str = attrs.field(validator=is_key)
    key_type: str = attrs.field(default=KEY_TYPE, validator=validators.in_((KEY_TYPE,)))

    @classmethod
    def of(cls, key: VerifyKey | SigningKey) -> "PublicKey":
        """The wire form of a key."""
        public = key.verify_key if isinstance(key, SigningKey) else key
        return cls(b64encode(public.public_key))

    def open(self) -> VerifyKey:
        """The key as a value."""
        return VerifyKey(b64decode(self.key))


@attrs.frozen
class TrustedKey:
    """
    One key of the trust bundle.

    Attributes:
        key: 32 raw bytes in base64.
        role: What it may sign.
        not_before: First second of validity, unix.
        not_after: Last second of validity, unix. A retired checkpoint key stays listed, so that old checkpoints
            verify.
        organizations: For operator keys: the organizations they speak for. Empty for the server's own keys.
        key_type: ``ed25519``.
    """

    key: str = attrs.field(validator=is_key)
    role: Role
    not_before: int = attrs.field(validator=MOMENT)
    not_after: int = attrs.field(validator=MOMENT)
    organizations: tuple[str, ...] = attrs.field(
        default=(), validator=validators.deep_iterable(validators.max_len(64), validators.max_len(1000))
    )
    key_type: str = attrs.field(default=KEY_TYPE, validator=validators.in_((KEY_TYPE,)))

    def open(self) -> VerifyKey:
        """The key as a value."""
        return VerifyKey(b64decode(self.key))


@attrs.frozen
class TrustBundle:
    """
    Which keys an executor believes. Payload of `BUNDLE_TYPE`, signed by the root.

    Attributes:
        v: 1.
        server: Server id, a UUID.
        version: Never goes lower.
        iat: Issued at, unix seconds.
        epoch: Raised when a key was stolen; orders of another epoch are refused.
        not_after: Last second of validity; at most 90 days after *iat*.
        keys: The trusted keys.
    """

    v: int = attrs.field(validator=VERSION)
    server: str = attrs.field(validator=UUID)
    version: int = attrs.field(validator=count())
    iat: int = attrs.field(validator=MOMENT)
    epoch: int = attrs.field(validator=count())
    not_after: int = attrs.field(validator=MOMENT)
    keys: tuple[TrustedKey, ...] = attrs.field(validator=validators.max_len(1000))


@attrs.frozen
class RootDocument:
    """
    One root key. Payload of `ROOT_TYPE`, signed by root n and, from the second on, by root n - 1 too.

    Attributes:
        v: 1.
        server: Server id.
        n: 1 for the first.
        iat: Issued at, unix seconds.
        key: The public key.
    """

    v: int = attrs.field(validator=VERSION)
    server: str = attrs.field(validator=UUID)
    n: int = attrs.field(validator=count())
    iat: int = attrs.field(validator=MOMENT)
    key: PublicKey


# --- the executor's statements ---------------------------------------------------------------------------------


@attrs.frozen
class EvidenceStatement:
    """What the executor read from the hardware. Payload of `EVIDENCE_TYPE`."""

    v: int = attrs.field(validator=VERSION)
    evidence: MachineEvidence


@attrs.frozen
class ExecutorProof:
    """
    The executor's word that it and the network process belong together. Payload of `EXECUTOR_PROOF_TYPE`.

    Attributes:
        v: 1.
        agent_key: Public key of the network process.
        executor_key: Public key of the executor, which signs this.
        evidence: SHA-256 of the evidence envelope sent along, 64 hex digits.
        server: Server id.
        root_fp: Fingerprint of the server's first root key.
        token_id: The registration token used.
    """

    v: int = attrs.field(validator=VERSION)
    agent_key: PublicKey
    executor_key: PublicKey
    evidence: str = attrs.field(validator=HASH)
    server: str = attrs.field(validator=UUID)
    root_fp: str = attrs.field(validator=HASH)
    token_id: str = attrs.field(validator=UUID)


@attrs.frozen
class ExecutorState:
    """
    How far the executor has come. Payload of `EXECUTOR_STATE_TYPE`; sent with every check-in and token request.

    Attributes:
        v: 1.
        server: Server id.
        agent_id: Whose executor this is.
        epoch: Epoch of the bundle it holds.
        gen: Generation of the last accepted command.
        seq: Order number of the last accepted command.
        refresh_generation: How often the refresh secret has moved on.
        iat: Executor time, unix seconds.
    """

    v: int = attrs.field(validator=VERSION)
    server: str = attrs.field(validator=UUID)
    agent_id: str = attrs.field(validator=UUID)
    epoch: int = attrs.field(validator=count())
    gen: int = attrs.field(validator=count())
    seq: int = attrs.field(validator=count())
    refresh_generation: int = attrs.field(validator=count(10**9))
    iat: int = attrs.field(validator=MOMENT)


# --- registration and tokens -----------------------------------------------------------------------------------


@attrs.frozen
class OperatingSystem:
    """What runs on the machine; shown, never trusted."""

    family: str = attrs.field(validator=line(32))
    id: str = attrs.field(validator=line(64))
    name: str = attrs.field(validator=line(200))
    version: str | None = attrs.field(default=None, validator=validators.optional(line(100)))
    kernel: str | None = attrs.field(default=None, validator=validators.optional(line(200)))
    arch: str | None = attrs.field(default=None, validator=validators.optional(line(32)))


@attrs.frozen
class Versions:
    """Version of the agent, and the protocol versions it speaks."""

    agent: str = attrs.field(validator=line(64))
    protocol: tuple[int, ...] = attrs.field(validator=[validators.min_len(1), validators.max_len(8)])


@attrs.frozen
class Register:
    """
    Body of ``POST agents/register``.

    Attributes:
        v: 1.
        registration_token: ``<token id>.<secret>``.
        agent_key: Key of the network process; it signs the request.
        executor_key: Key of the executor.
        executor_proof: Envelope of `EXECUTOR_PROOF_TYPE` in base64.
        evidence: Envelope of `EVIDENCE_TYPE` in base64, signed by the executor.
        refresh_hash: SHA-256 of the first refresh secret, 64 hex digits.
        hostname: Shown, never trusted.
        os: Shown, never trusted.
        versions: What the agent speaks.
    """

    v: int = attrs.field(validator=VERSION)
    registration_token: str = attrs.field(validator=line(128), repr=False)
    agent_key: PublicKey
    executor_key: PublicKey
    executor_proof: str = attrs.field(validator=_ENVELOPE)
    evidence: str = attrs.field(validator=_ENVELOPE)
    refresh_hash: str = attrs.field(validator=HASH)
    hostname: str = attrs.field(validator=line(253))
    os: OperatingSystem
    versions: Versions


@attrs.frozen
class Registered:
    """Answer to `Register`: the record that now exists, or existed already."""

    v: int = attrs.field(validator=VERSION)
    agent_id: str
    server: str
    status: str
    organization: str


@attrs.frozen
class TokenRequest:
    """
    Body of ``POST agent/token``: proves the current refresh secret and commits to the next.

    Attributes:
        v: 1.
        current: The current refresh secret, 32 bytes in base64url.
        next_hash: SHA-256 of the successor, 64 hex digits; the same until answered.
        evidence: Envelope of `EVIDENCE_TYPE` in base64.
        state: Envelope of `EXECUTOR_STATE_TYPE` in base64.
        boot_id: Of the running kernel, or None.
    """

    v: int = attrs.field(validator=VERSION)
    current: str = attrs.field(validator=_SECRET, repr=False)
    next_hash: str = attrs.field(validator=HASH)
    evidence: str = attrs.field(validator=_ENVELOPE)
    state: str = attrs.field(validator=_ENVELOPE)
    boot_id: str | None = attrs.field(default=None, validator=validators.optional(line(64)))


@attrs.frozen
class Token:
    """
    Answer to `TokenRequest`.

    Attributes:
        v: 1.
        access_token: For the authorization header of every other request.
        expires_in: Seconds.
        refresh_generation: The server's count after this request.
    """

    v: int = attrs.field(validator=VERSION)
    access_token: str = attrs.field(repr=False)
    expires_in: int
    refresh_generation: int


# --- check-in --------------------------------------------------------------------------------------------------


@attrs.frozen
class ScannerState:
    """
    What the agent last saw of one scanner, without the inventory.

    Attributes:
        scanner: Its name.
        status: ``ok``, ``failed`` or ``open`` (circuit open).
        hash: Inventory hash of the last successful scan, or None before the first.
        taken_at: Time of the last run, unix seconds.
        content: Digest of all that the last run said (`redflag_core.scanning.content_digest`), warnings and facts
            too; None leaves that to the hash.
    """

    scanner: str = attrs.field(validator=_SCANNER)
    status: ScanStatus
    hash: str | None = attrs.field(validator=validators.optional(HASH))
    taken_at: int = attrs.field(validator=MOMENT)
    content: str | None = attrs.field(default=None, validator=validators.optional(HASH))


@attrs.frozen
class CheckIn:
    """
    Body of ``POST agent/check-in``.

    Attributes:
        v: 1.
        state: Envelope of `EXECUTOR_STATE_TYPE` in base64.
        boot_id: Of the running kernel, or None.
        scanners: What each scanner last saw.
        evidence: Envelope of `EVIDENCE_TYPE` in base64 when its digest is not the access token's, else None.
        os: When it changed or after a start, else None.
        versions: When they changed or after a start, else None.
        hostname: When it changed or after a start, else None.
        wait: Seconds the agent would wait for something to do. 0 asks for an answer at once.
    """

    v: int = attrs.field(validator=VERSION)
    state: str = attrs.field(validator=_ENVELOPE)
    boot_id: str | None = attrs.field(default=None, validator=validators.optional(line(64)))
    scanners: tuple[ScannerState, ...] = attrs.field(
        default=(), validator=[validators.max_len(MAX_SCANNERS), _SCANNERS_ONCE]
    )
    evidence: str | None = attrs.field(default=None, validator=validators.optional(_ENVELOPE))
    os: OperatingSystem | None = None
    versions: Versions | None = None
    hostname: str | None = attrs.field(default=None, validator=validators.optional(line(253)))
    wait: int = attrs.field(default=0, validator=[validators.ge(0), validators.le(MAX_WAIT_SECONDS)])


@attrs.frozen
class CheckInAnswer:
    """
    Answer to `CheckIn`.

    Attributes:
        v: 1.
        server_time: Database time, unix seconds.
        status: The agent's status (`redflag_core.enrolment.AgentStatus`).
        next_check_in_seconds: When to come back, jitter included. The agent keeps it within bounds of its own.
        reports_wanted: Scanners whose inventory the server does not hold.
        report_bases: The hash the server holds for each scanner, to send a delta against.
        epoch: Of the current bundle.
        bundle_version: Of the current bundle.
        bundle: SHA-256 of the current bundle's envelope, 64 hex digits.
        commands: Signed commands, envelopes in base64.
        protocol: Versions that the server speaks.
    """

    v: int = attrs.field(validator=VERSION)
    server_time: int
    status: str
    next_check_in_seconds: int
    reports_wanted: tuple[str, ...]
    report_bases: dict[str, str]
    epoch: int
    bundle_version: int
    bundle: str
    commands: tuple[str, ...] = ()
    protocol: tuple[int, ...] = PROTOCOL_VERSIONS


# --- reports and errors ----------------------------------------------------------------------------------------


@attrs.frozen
class Report:
    """
    Body of ``POST agent/reports/{scanner}``.

    A failed scan (``status`` = ``failed``) carries an error and no packages: it says nothing about them.

    Attributes:
        v: 1.
        report_id: UUID made by the agent; the same report sent again is accepted once.
        taken_at: When the scan ended, unix seconds.
        duration_ms: How long it took.
        status: ``ok``, ``failed`` or ``open``.
        manager: Package manager (`apt`, ...).
        error: Why the scan failed; None exactly when it succeeded.
        warnings: What the scan could not do.
        base: None for a full report; else the accepted inventory hash that the changes apply to.
        hash: Inventory hash after this report; None for a failed scan.
        packages: The full inventory, or the packages that are new or changed.
        removed: Packages that are gone (delta only).
        facts: Further facts of the scanner.
    """

    v: int = attrs.field(validator=VERSION)
    report_id: str = attrs.field(validator=UUID)
    taken_at: int = attrs.field(validator=MOMENT)
    duration_ms: int = attrs.field(validator=count())
    status: ScanStatus
    manager: str = attrs.field(validator=_SCANNER)
    error: str | None = attrs.field(default=None, validator=validators.optional(line(MAX_ERROR)))
    warnings: tuple[str, ...] = attrs.field(
        default=(), validator=validators.deep_iterable(line(MAX_TEXT), validators.max_len(MAX_WARNINGS))
    )
    base: str | None = attrs.field(default=None, validator=validators.optional(HASH))
    hash: str | None = attrs.field(default=None, validator=validators.optional(HASH))
    packages: tuple[Package, ...] = attrs.field(default=(), validator=validators.max_len(MAX_PACKAGES))
    removed: tuple[PackageKey, ...] = attrs.field(default=(), validator=validators.max_len(MAX_PACKAGES))
    facts: dict[str, JsonValue] = attrs.field(
        factory=dict, validator=[validators.max_len(MAX_FACTS), small(MAX_FACTS_BYTES)]
    )

    def __attrs_post_init__(self) -> None:
        """A failed scan has an error and no inventory; a successful one its hash; no package is named twice."""
        if (self.status is ScanStatus.OK) != (self.hash is not None):
            raise ValueError("hash goes with status ok, and only with it")
        if (self.status is ScanStatus.OK) != (self.error is None):
            raise ValueError("error goes with every status but ok")
        if self.status is not ScanStatus.OK and (self.packages or self.removed or self.base):
            raise ValueError("a failed scan says nothing about packages")
        if self.base is None and self.removed:
            raise ValueError("a full report removes nothing")
        keys = [*(package.key for package in self.packages), *self.removed]
        if len(set(keys)) != len(keys):
            raise ValueError("a report names a package once")


@attrs.frozen
class ReportAccepted:
    """
    Answer to `Report`.

    Attributes:
        v: 1.
        accepted: False asks for a full report: the base or the resulting hash is not the server's.
        hash: Inventory hash that the server now holds, or None.
    """

    v: int = attrs.field(validator=VERSION)
    accepted: bool
    hash: str | None


@attrs.frozen
class ClientError:
    """
    One error, or several equal ones, of an agent.

    Attributes:
        subsystem: Where (``scanner.apt``, ``transport``, ...).
        type: Stable name of the error.
        message: For people; no secrets.
        count: How often since *first_seen*.
        first_seen: Unix seconds.
        last_seen: Unix seconds.
        stack: Traceback, or None.
        context: Further facts; no secrets.
    """

    subsystem: str = attrs.field(validator=line(64))
    type: str = attrs.field(validator=line(128))
    message: str = attrs.field(validator=line(2000))
    count: int = attrs.field(validator=[validators.ge(1), validators.le(10**9)])
    first_seen: int = attrs.field(validator=MOMENT)
    last_seen: int = attrs.field(validator=MOMENT)
    stack: str | None = attrs.field(default=None, validator=validators.optional(validators.max_len(16_000)))
    context: dict[str, JsonValue] = attrs.field(
        factory=dict, validator=[validators.max_len(50), small(MAX_CONTEXT_BYTES)]
    )


@attrs.frozen
class Errors:
    """
    Body of ``POST agent/errors``.

    Attributes:
        v: 1.
        batch_id: UUID made by the agent; the same batch sent again counts once.
        errors: What happened.
        dropped: How many older errors the agent had to drop before these.
    """

    v: int = attrs.field(validator=VERSION)
    batch_id: str = attrs.field(validator=UUID)
    errors: tuple[ClientError, ...] = attrs.field(
        validator=[validators.min_len(1), validators.max_len(MAX_ERRORS)]
    )
    dropped: int = attrs.field(default=0, validator=[validators.ge(0), validators.le(10**9)])


@attrs.frozen
class Accepted:
    """Answer where there is nothing to say but that it is durably stored."""

    v: int = attrs.field(default=PROTOCOL_VERSION, validator=VERSION)


# --- commands --------------------------------------------------------------------------------------------------


@attrs.frozen
class StatementPost:
    """
    Body of ``POST agent/results``.

    Attributes:
        v: 1.
        statement: Envelope of what the executor states (`redflag_core.statements`), in base64. The same one sent
            again is recorded once.
    """

    v: int = attrs.field(validator=VERSION)
    statement: str = attrs.field(validator=line(MAX_STATEMENT_TEXT), repr=False)


class Phase(StrEnum):
    """What an accepted command is doing."""

    WAITING = "waiting"
    RUNNING = "running"


@attrs.frozen
class Progress:
    """
    Body of ``POST agent/progress``: for people who watch. Not signed by the executor, and lost without harm.

    Attributes:
        v: 1.
        cmd_id: The command.
        number: Higher with each message about it, so that a late one changes nothing.
        phase: Whether it waits (for what, says *doing*) or runs.
        doing: What it is doing, one line.
        percent: How far it is, when that is known.
        lines: What the package manager printed last.
    """

    v: int = attrs.field(validator=VERSION)
    cmd_id: str = attrs.field(validator=UUID)
    number: int = attrs.field(validator=count())
    phase: Phase
    doing: str = attrs.field(validator=line(MAX_TEXT))
    percent: int | None = attrs.field(default=None, validator=validators.optional(count(100)))
    lines: tuple[str, ...] = attrs.field(
        default=(),
        validator=validators.deep_iterable(line(MAX_PROGRESS_LINE), validators.max_len(MAX_PROGRESS_LINES)),
    )
