"""
What an executor states about a command: accepted, refused, or how it ended. Each is signed with its own key.

The payload type says which it is, and the signature is checked over that type: a refusal can never be taken for a
result. Statements are recorded once; the same statement again is the same fact.
"""

import hashlib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, TypeAlias

import attrs
from attrs import validators

from redflag_core import codec
from redflag_core._fields import HASH, MOMENT, UUID, VERSION, count, each_once, line
from redflag_core.envelope import parse_envelope, sign_envelope, verify_envelope
from redflag_core.errors import MalformedError, WrongRecipientError
from redflag_core.keys import SigningKey, VerifyKey
from redflag_core.patching.plan import MAX_TARGETS, Transaction
from redflag_core.scanning import MAX_NAME, MAX_TEXT, PackageKey
from redflag_core.scanning.model import MAX_ARCH

ACCEPTED_TYPE: Final = "application/vnd.redflag.accepted.v1+json"
REFUSED_TYPE: Final = "application/vnd.redflag.refused.v1+json"
RESULT_TYPE: Final = "application/vnd.redflag.result.v1+json"

MAX_STATEMENT_BYTES: Final = 1024 * 1024
"""Bytes of a signed statement: a plan of 2,000 changes has about 400 KiB."""

MAX_OUTPUT: Final = 32 * 1024
"""Characters of a package manager's output in a result: its end, which says what went wrong."""

MAX_CODE: Final = 64
_EXIT_STATUS: Final[Any] = validators.and_(validators.ge(-1024), validators.le(1024))


@attrs.frozen(kw_only=True)
class CommandAccepted:
    """
    The executor has the command in its journal and will carry it out once. Payload of `ACCEPTED_TYPE`.

    Attributes:
        v: 1.
        server: Server id.
        agent_id: Whose executor this is.
        cmd_id: The command.
        digest: `command_digest` of it.
        body: `VerifiedCommand.hash` of what was accepted.
        epoch: Order of what was accepted.
        gen: Likewise.
        seq: Likewise.
        iat: Executor time, unix seconds.
    """

    v: int = attrs.field(default=1, validator=VERSION)
    server: str = attrs.field(validator=UUID)
    agent_id: str = attrs.field(validator=UUID)
    cmd_id: str = attrs.field(validator=UUID)
    digest: str = attrs.field(validator=HASH)
    body: str = attrs.field(validator=HASH)
    epoch: int = attrs.field(validator=count())
    gen: int = attrs.field(validator=count())
    seq: int = attrs.field(validator=count())
    iat: int = attrs.field(validator=MOMENT)


@attrs.frozen(kw_only=True)
class CommandRefused:
    """
    The executor did not accept an envelope. Payload of `REFUSED_TYPE`.

    Attributes:
        v: 1.
        server: Server id.
        agent_id: Whose executor this is.
        cmd_id: The command; None when no key that is believed signed one.
        digest: `command_digest` of it, None likewise.
        body: SHA-256 of the payload that was signed; of the whole envelope when *cmd_id* is None.
        code: Code of the error.
        detail: Why, for people.
        never: Whether this command will never be started: its id is in the journal.
        retry_after: Seconds after which it may pass; None where that is not known.
        iat: Executor time, unix seconds.
    """

    v: int = attrs.field(default=1, validator=VERSION)
    server: str = attrs.field(validator=UUID)
    agent_id: str = attrs.field(validator=UUID)
    cmd_id: str | None = attrs.field(default=None, validator=validators.optional(UUID))
    digest: str | None = attrs.field(default=None, validator=validators.optional(HASH))
    body: str = attrs.field(validator=HASH)
    code: str = attrs.field(validator=line(MAX_CODE))
    detail: str = attrs.field(validator=line(MAX_TEXT))
    never: bool = False
    retry_after: int | None = attrs.field(default=None, validator=validators.optional(count(10**9)))
    iat: int = attrs.field(validator=MOMENT)

    def __attrs_post_init__(self) -> None:
        """What is not known cannot be in the journal."""
        if (self.cmd_id is None) != (self.digest is None):
            raise ValueError("cmd_id and digest go together")
        if self.never and self.cmd_id is None:
            raise ValueError("never needs a cmd_id")


class Outcome(StrEnum):
    """How a command ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"


class PackageOutcome(StrEnum):
    """What became of one package that was asked for."""

    PLANNED = "planned"
    INSTALLED = "installed"
    UNCHANGED = "unchanged"
    FAILED = "failed"
    HELD = "held"
    STALE = "stale"
    """What the order says of it is not so any more: it is not installed, in another version, or cannot be had."""


@attrs.frozen(kw_only=True)
class PackageResult:
    """
    One package that was asked for.

    Attributes:
        name: Its name.
        arch: Its architecture.
        outcome: What became of it.
        installed: Version that is installed now, None when it is not.
        reason: Why, for people.
    """

    name: str = attrs.field(validator=line(MAX_NAME))
    arch: str = attrs.field(validator=line(MAX_ARCH))
    outcome: PackageOutcome
    installed: str | None = attrs.field(default=None, validator=validators.optional(line(MAX_NAME)))
    reason: str | None = attrs.field(default=None, validator=validators.optional(line(MAX_TEXT)))

    @property
    def key(self) -> PackageKey:
        """What identifies it within its machine and manager."""
        return PackageKey(self.name, self.arch)


@attrs.frozen(kw_only=True)
class CommandResult:
    """
    How a command ended. Payload of `RESULT_TYPE`; signed once, the same bytes for ever.

    Attributes:
        v: 1.
        server: Server id.
        agent_id: Whose executor this is.
        cmd_id: The command.
        digest: `command_digest` of it.
        body: `VerifiedCommand.hash` of what was accepted.
        outcome: How it ended. ``interrupted``: it was started, and nobody saw its end; what is true now was looked
            at afterwards.
        code: Code of the error, None when it completed.
        detail: Why, for people; None when it completed.
        started_at: When the work was started, unix seconds; None when it never was.
        finished_at: Executor time, unix seconds.
        exit_status: Of the package manager, negative for a signal; None when it was not run or not seen to end.
        output: The end of what it printed.
        output_bytes: Length of all that it printed.
        transaction: What would be changed (plan) or was ordered to be (upgrade).
        packages: What became of each package that was asked for.
        reboot_required: Whether the machine asks for a reboot; None when that was not looked at.
        reboot_by: Packages that ask for it.
        repaired: Whether a repair (``dpkg --configure -a``) was run after an interruption.
    """

    v: int = attrs.field(default=1, validator=VERSION)
    server: str = attrs.field(validator=UUID)
    agent_id: str = attrs.field(validator=UUID)
    cmd_id: str = attrs.field(validator=UUID)
    digest: str = attrs.field(validator=HASH)
    body: str = attrs.field(validator=HASH)
    outcome: Outcome
    code: str | None = attrs.field(default=None, validator=validators.optional(line(MAX_CODE)))
    detail: str | None = attrs.field(default=None, validator=validators.optional(line(MAX_TEXT)))
    started_at: int | None = attrs.field(default=None, validator=validators.optional(MOMENT))
    finished_at: int = attrs.field(validator=MOMENT)
    exit_status: int | None = attrs.field(default=None, validator=validators.optional(_EXIT_STATUS))
    output: str = attrs.field(default="", validator=validators.max_len(MAX_OUTPUT))
    output_bytes: int = attrs.field(default=0, validator=count())
    transaction: Transaction | None = None
    packages: tuple[PackageResult, ...] = attrs.field(
        default=(), validator=[validators.max_len(MAX_TARGETS), each_once("a package", lambda result: result.key)]
    )
    reboot_required: bool | None = None
    reboot_by: tuple[str, ...] = attrs.field(
        default=(), validator=validators.deep_iterable(line(MAX_NAME), validators.max_len(100))
    )
    repaired: bool = False

    def __attrs_post_init__(self) -> None:
        """Whatever did not complete says why."""
        if (self.outcome is Outcome.COMPLETED) != (self.code is None) or (self.code is None) != (
            self.detail is None
        ):
            raise ValueError("code and detail go with every outcome but completed")


def is_installed(packages: Sequence[PackageResult], *, damaged: Sequence[str]) -> bool:
    """
    Whether an installation did all that it was to do.

    Args:
        packages: What became of each package that was asked for.
        damaged: Names of packages that the package manager has not finished with.
    """
    return not damaged and all(result.outcome is PackageOutcome.INSTALLED for result in packages)


Statement: TypeAlias = CommandAccepted | CommandRefused | CommandResult

_STATEMENTS: Final[Mapping[type[Statement], str]] = {
    CommandAccepted: ACCEPTED_TYPE,
    CommandRefused: REFUSED_TYPE,
    CommandResult: RESULT_TYPE,
}
_STATEMENT_CLASSES: Final[Mapping[str, type[Statement]]] = {kind: cls for cls, kind in _STATEMENTS.items()}


def sign_statement(statement: Statement, key: SigningKey) -> bytes:
    """The envelope of what the executor says."""
    return sign_envelope(_STATEMENTS[type(statement)], codec.dump(statement), key)


def open_statement(wire: bytes, executor: VerifyKey, *, server: str, agent_id: str) -> Statement:
    """
    Verify what an executor signed.

    Args:
        wire: Untrusted bytes.
        executor: Key of the agent's executor.
        server: The server's id.
        agent_id: The agent that sent it.

    Raises:
        VerificationError: Not signed by it, malformed, or of another agent or server.
    """
    kind = _payload_type(wire)
    verified = verify_envelope(wire, kind, {executor.key_id: executor}, max_bytes=MAX_STATEMENT_BYTES)
    statement: Statement = codec.parse(_STATEMENT_CLASSES[kind], verified.payload, max_bytes=MAX_STATEMENT_BYTES)
    if (statement.server, statement.agent_id) != (server, agent_id):
        raise WrongRecipientError("the statement is of another agent or server")
    return statement


def statement_digest(wire: bytes) -> str:
    """
    SHA-256 of what was signed, 64 hex digits: the same statement is recorded once, however it was wrapped.

    Args:
        wire: An envelope that `open_statement` opened.
    """
    return hashlib.sha256(parse_envelope(wire, max_bytes=MAX_STATEMENT_BYTES).payload).hexdigest()


def _payload_type(wire: bytes) -> str:
    """Which of the three types an envelope claims: the signature is then checked over that very type."""
    kind = parse_envelope(wire, max_bytes=MAX_STATEMENT_BYTES).payload_type
    if kind not in _STATEMENT_CLASSES:
        raise MalformedError("an executor states that it accepted, refused or ended a command, nothing else")
    return kind
