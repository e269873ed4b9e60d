"""
Commands: what a server may order, and how an executor judges an order.

A command is an envelope (DSSE) whose payload names one executor on one machine. It is signed at delivery, so its
window is fresh however long the machine was away; its id, type and parameters are fixed when it is made. The
checks here are in the executor's order: size and encoding, signature, only then the contents, recipient, time,
order, type and parameters. Whether it was carried out before is in the executor's journal; what it would change is
decided by `redflag_core.patching`, and what is signed in answer is in `redflag_core.statements`.
"""

import hashlib
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, TypeAlias

import attrs
from attrs import validators

from redflag_core import codec
from redflag_core._fields import BINDING, HASH, MOMENT, UUID, VERSION, count, each_once, is_base64
from redflag_core.encoding import b64decode, b64encode, b64url_decode, b64url_encode
from redflag_core.envelope import MAX_ENVELOPE_BYTES, pae, sign_envelope, verify_envelope
from redflag_core.errors import (
    ClockError,
    LateCommandError,
    MachineMismatchError,
    MalformedError,
    ReplayError,
    RollbackError,
    StaleError,
    UnknownCommandError,
    WrongRecipientError,
)
from redflag_core.freshness import unix
from redflag_core.keys import SigningKey, VerifyKey
from redflag_core.patching.plan import MAX_TARGETS, PackageTarget
from redflag_core.ports import Entropy

COMMAND_TYPE: Final = "application/vnd.redflag.command.v1+json"

COMMAND_SECONDS: Final = 300
"""Longest validity of one signature of a command."""

COMMAND_LEEWAY: Final = 60
"""Seconds by which the executor's clock may be off, either direction."""

CLOCK_TOLERANCE: Final = 300
"""Seconds by which the system clock may be behind the executor's high-water mark; beyond, it cannot judge time."""

NONCE_BYTES: Final = 16

MAX_PARAMS: Final = 30 * 1024
"""Bytes of parameters: in base64 twice, with an approval beside them, they fit into an envelope."""

MAX_APPROVAL: Final = 16 * 1024
HEARTBEAT_SECONDS: Final = 3600
"""Longest time for which one order makes an agent check in fast."""


# --- what can be ordered ----------------------------------------------------------------------------------------


class CommandType(StrEnum):
    """Everything that can ever be ordered in version 1. No type carries code, a script or a path."""

    SCAN_RUN = "scan.run"
    PACKAGES_PLAN = "packages.plan"
    PACKAGES_UPGRADE = "packages.upgrade"
    PACKAGES_REVERT = "packages.revert"
    IMAGES_UPDATE = "images.update"
    SYSTEM_REBOOT = "system.reboot"
    COMMAND_CANCEL = "command.cancel"
    AGENT_HEARTBEAT = "agent.heartbeat"
    PACKAGES_INSTALL_NEW = "packages.install_new"
    PACKAGES_REMOVE = "packages.remove"
    PACKAGES_DOWNGRADE = "packages.downgrade"
    IMAGES_REPLACE = "images.replace"
    SYSTEM_REBOOT_BEYOND_LIMITS = "system.reboot_beyond_limits"
    AGENT_MOVE = "agent.move"
    AGENT_REMOVE = "agent.remove"


CONSEQUENTIAL: Final = frozenset(
    {
        CommandType.PACKAGES_INSTALL_NEW,
        CommandType.PACKAGES_REMOVE,
        CommandType.PACKAGES_DOWNGRADE,
        CommandType.IMAGES_REPLACE,
        CommandType.SYSTEM_REBOOT_BEYOND_LIMITS,
        CommandType.AGENT_MOVE,
        CommandType.AGENT_REMOVE,
    }
)
"""Types that an operator's key must have approved, whatever the command key says."""

CHANGING: Final = frozenset({CommandType.PACKAGES_UPGRADE})
"""Types of this release that change the machine: one at a time, within the owner's limits."""

BYPASSING: Final = frozenset({CommandType.COMMAND_CANCEL, CommandType.AGENT_HEARTBEAT})
"""Types that do not wait for other commands."""

_APPROVAL: Final[Any] = validators.and_(validators.max_len(MAX_APPROVAL), is_base64)
_PARAMS: Final[Any] = validators.and_(validators.max_len(len(b64encode(bytes(MAX_PARAMS)))), is_base64)
_MANAGER: Final[Any] = validators.matches_re(r"[a-z][a-z0-9_]{0,31}")
_TARGETS: Final[Any] = [
    validators.min_len(1),
    validators.max_len(MAX_TARGETS),
    each_once("a package", lambda target: target.key),
]


@attrs.frozen
class ScanParams:
    """
    Parameters of ``scan.run``.

    Attributes:
        scanner: Name of the scanner to run, None for all.
    """

    scanner: str | None = attrs.field(default=None, validator=validators.optional(_MANAGER))


@attrs.frozen
class PlanParams:
    """
    Parameters of ``packages.plan``.

    Attributes:
        manager: Package manager.
        packages: What to bring to which version.
    """

    manager: str = attrs.field(validator=_MANAGER)
    packages: tuple[PackageTarget, ...] = attrs.field(validator=_TARGETS)


@attrs.frozen
class UpgradeParams:
    """
    Parameters of ``packages.upgrade``.

    Attributes:
        manager: Package manager.
        packages: What to bring to which version: what the plan was made for.
        plan_hash: `Transaction.plan_hash` of the plan that people saw. Another one now is refused.
    """

    manager: str = attrs.field(validator=_MANAGER)
    packages: tuple[PackageTarget, ...] = attrs.field(validator=_TARGETS)
    plan_hash: str = attrs.field(validator=HASH)


@attrs.frozen
class CancelParams:
    """
    Parameters of ``command.cancel``.

    Attributes:
        cmd_id: The command that must not be started any more. One that was started is not ended.
    """

    cmd_id: str = attrs.field(validator=UUID)


@attrs.frozen
class HeartbeatParams:
    """
    Parameters of ``agent.heartbeat``.

    Attributes:
        seconds: For how long the agent checks in fast.
    """

    seconds: int = attrs.field(validator=[validators.ge(10), validators.le(HEARTBEAT_SECONDS)])


Params: TypeAlias = ScanParams | PlanParams | UpgradeParams | CancelParams | HeartbeatParams

PARAMS: Final[Mapping[CommandType, type[Params]]] = {
    CommandType.SCAN_RUN: ScanParams,
    CommandType.PACKAGES_PLAN: PlanParams,
    CommandType.PACKAGES_UPGRADE: UpgradeParams,
    CommandType.COMMAND_CANCEL: CancelParams,
    CommandType.AGENT_HEARTBEAT: HeartbeatParams,
}
"""The types that this release carries out: the executor's allow-list."""


def subjects_of(kind: CommandType, params: Params) -> frozenset[str]:
    """
    What a command is about. At most one live command of an agent is about each subject.

    Args:
        kind: Its type.
        params: Its parameters.
    """
    if isinstance(params, PlanParams | UpgradeParams):
        return frozenset(f"{params.manager}:{target.name}:{target.arch}" for target in params.packages)
    if isinstance(params, CancelParams):
        return frozenset({f"cancel:{params.cmd_id}"})
    if isinstance(params, ScanParams):
        return frozenset({f"scan:{params.scanner or '*'}"})
    return frozenset({kind.value})


# --- the command itself ------------------------------------------------------------------------------------------


@attrs.frozen(order=True)
class Order:
    """
    Where a command stands in the order of all commands to one agent; compared from left to right.

    Attributes:
        epoch: Of the trust bundle; raised after a theft of keys.
        gen: Raised when the server is restored from a backup.
        seq: Taken when the command is leased.
    """

    epoch: int = 0
    gen: int = 0
    seq: int = 0


@attrs.frozen
class ApprovalProof:
    """
    An operator's approval of exactly this command, see `redflag_core.approvals`.

    Attributes:
        envelope: Signed approval in base64.
        index: Which of its leaves this command is.
        proof: Merkle proof (RFC 9162), hashes in base64.
    """

    envelope: str = attrs.field(validator=_APPROVAL)
    index: int = attrs.field(validator=count())
    proof: tuple[str, ...] = attrs.field(validator=validators.deep_iterable(is_base64, validators.max_len(64)))


@attrs.frozen(kw_only=True)
class Command:
    """
    Body of a command, payload of `COMMAND_TYPE`.

    Attributes:
        v: 1.
        cmd_id: UUID, for ever the same.
        agent_id: The agent it is for.
        machine_binding: The machine it is for, 32 hex digits.
        key_fp: Key id of the executor it is for.
        server: The server that orders it.
        epoch: See `Order`.
        gen: See `Order`.
        seq: See `Order`.
        type: What is ordered. Text, so that a type of a newer release is refused as unknown and not as malformed.
        iat: When this signature was made, unix seconds.
        exp: Until when it may be accepted, at most `COMMAND_SECONDS` after *iat*.
        nonce: 16 bytes in base64url, made for this signature.
        start_by: Until when the work may be started, unix seconds.
        params: JSON text of the parameters in base64, fixed when the command was made.
        approval: None for a routine command.
    """

    v: int = attrs.field(validator=VERSION)
    cmd_id: str = attrs.field(validator=UUID)
    agent_id: str = attrs.field(validator=UUID)
    machine_binding: str = attrs.field(validator=BINDING)
    key_fp: str = attrs.field(validator=BINDING)
    server: str = attrs.field(validator=UUID)
    epoch: int = attrs.field(validator=count())
    gen: int = attrs.field(validator=count())
    seq: int = attrs.field(validator=count())
    type: str = attrs.field(validator=validators.matches_re(r"[a-z]+\.[a-z_]{1,40}"))
    iat: int = attrs.field(validator=MOMENT)
    exp: int = attrs.field(validator=MOMENT)
    nonce: str = attrs.field(validator=validators.matches_re(r"[A-Za-z0-9_-]{22}"))
    start_by: int = attrs.field(validator=MOMENT)
    params: str = attrs.field(validator=_PARAMS)
    approval: ApprovalProof | None = None

    def __attrs_post_init__(self) -> None:
        """A signature is valid for a short time, and its nonce has one spelling."""
        if not self.iat <= self.exp <= self.iat + COMMAND_SECONDS:
            raise ValueError(f"exp is 0 to {COMMAND_SECONDS} seconds after iat")
        b64url_decode(self.nonce)

    @property
    def order(self) -> Order:
        """Where it stands."""
        return Order(self.epoch, self.gen, self.seq)

    @property
    def digest(self) -> str:
        """See `command_digest`."""
        return command_digest(self.cmd_id, self.type, b64decode(self.params))


def command_digest(cmd_id: str, kind: str, params: bytes) -> str:
    """
    What a command orders, however often it is signed: SHA-256(PAE(type, params) + cmd_id), 64 hex digits.

    Args:
        cmd_id: Its id.
        kind: Its type.
        params: JSON text of its parameters.
    """
    return hashlib.sha256(pae(kind, params) + cmd_id.encode("ascii")).hexdigest()


def dump_params(params: Params) -> bytes:
    """
    The JSON text of parameters, as fixed in a command.

    Raises:
        MalformedError: They are too large for one command: order less at once.
    """
    text = codec.dump(params)
    if len(text) > MAX_PARAMS:
        raise MalformedError(f"the parameters take more than {MAX_PARAMS} bytes: order less at once")
    return text


def parse_params(kind: str, text: bytes) -> Params:
    """
    Read the parameters of a command.

    Args:
        kind: Its type, of any release.
        text: JSON text.

    Raises:
        UnknownCommandError: This release does not carry out such a type, or these are not its parameters.
    """
    if kind in CONSEQUENTIAL:
        raise UnknownCommandError(f"{kind} is not carried out by this release, with an approval or without")
    cls = PARAMS.get(CommandType(kind)) if kind in set(CommandType) else None
    if cls is None:
        raise UnknownCommandError(f"this agent does not carry out {kind}")
    try:
        params: Params = codec.parse(cls, text, max_bytes=MAX_PARAMS)
    except MalformedError as error:
        raise UnknownCommandError(f"these are no parameters of {kind}: {error.message}") from None
    return params


@attrs.frozen(kw_only=True)
class Recipient:
    """
    One executor: who a command must be for.

    Attributes:
        server: Server id, pinned at registration.
        agent_id: The agent's id.
        machine_binding: Read from the hardware now, not from a copy.
        key_fp: Key id of the executor.
        epoch: Of the trust bundle held.
    """

    server: str
    agent_id: str
    machine_binding: str
    key_fp: str
    epoch: int


@attrs.frozen(kw_only=True)
class Orderable:
    """
    What a command orders, before it is signed.

    Attributes:
        cmd_id: UUID.
        type: Its type.
        params: JSON text of its parameters, see `dump_params`.
        start_by: Until when the work may be started, unix seconds.
        approval: An operator's approval of it, if it needs one.
    """

    cmd_id: str
    type: str
    params: bytes
    start_by: int
    approval: ApprovalProof | None = None


def sign_command(
    what: Orderable, recipient: Recipient, order: Order, key: SigningKey, *, now: datetime, entropy: Entropy
) -> bytes:
    """
    Sign a command for delivery, with a fresh window and nonce.

    Args:
        what: What is ordered.
        recipient: Whom it is for, from the agent's record.
        order: Taken in the transaction that leases the command.
        key: The command key.
        now: Database time, aware UTC.
        entropy: Draws the nonce.

    Returns:
        The envelope as it goes on the wire.

    Raises:
        MalformedError: It is larger than an envelope may be.
    """
    iat = int(unix(now))
    body = Command(
        v=1,
        cmd_id=what.cmd_id,
        agent_id=recipient.agent_id,
        machine_binding=recipient.machine_binding,
        key_fp=recipient.key_fp,
        server=recipient.server,
        epoch=order.epoch,
        gen=order.gen,
        seq=order.seq,
        type=what.type,
        iat=iat,
        exp=iat + COMMAND_SECONDS,
        nonce=b64url_encode(entropy.token(NONCE_BYTES)),
        start_by=what.start_by,
        params=b64encode(what.params),
        approval=what.approval,
    )
    wire = sign_envelope(COMMAND_TYPE, codec.dump(body), key)
    if len(wire) > MAX_ENVELOPE_BYTES:
        raise MalformedError("the command is too large for one envelope: order less at once")
    return wire


# --- the executor's judgement ------------------------------------------------------------------------------------


@attrs.frozen
class VerifiedCommand:
    """
    A command that a live command key signed. Who it is for and when is not judged yet.

    Attributes:
        body: What it says.
        hash: SHA-256 of the payload that was signed, 64 hex digits.
    """

    body: Command
    hash: str


def open_command(wire: bytes, keys: Mapping[str, VerifyKey]) -> VerifiedCommand:
    """
    Verify the signature of a command, and only then read it.

    Args:
        wire: Untrusted bytes.
        keys: Live command keys by id, of a trust bundle that is not past its end.

    Raises:
        VerificationError: Too large, not strict, not signed by a live key, or not a command.
    """
    verified = verify_envelope(wire, COMMAND_TYPE, keys)
    body = codec.parse(Command, verified.payload, max_bytes=MAX_ENVELOPE_BYTES)
    return VerifiedCommand(body, hashlib.sha256(verified.payload).hexdigest())


def check_recipient(command: Command, recipient: Recipient) -> None:
    """
    Refuse a genuine command that is for somebody else.

    Raises:
        WrongRecipientError: It is for another server, agent or executor key, or of another epoch.
        MachineMismatchError: It is for another machine.
    """
    for name in ("server", "agent_id", "key_fp", "epoch"):
        if getattr(command, name) != getattr(recipient, name):
            raise WrongRecipientError(f"the command is for another {name}")
    if command.machine_binding != recipient.machine_binding:
        raise MachineMismatchError("the command is for another machine")


def executor_time(system: datetime, high_water: int) -> datetime:
    """
    The executor's time: the system's, but never below what is known to have passed.

    Args:
        system: System time, aware UTC.
        high_water: Highest time that was signed by somebody who is believed, unix seconds.

    Raises:
        ClockError: The system clock is so far behind that nothing can be judged by it.
    """
    behind = high_water - unix(system)
    if behind > CLOCK_TOLERANCE:
        raise ClockError(f"this machine's clock is at least {behind:.0f} s behind: set it")
    return max(system, datetime.fromtimestamp(high_water, tz=system.tzinfo))


def check_time(command: Command, *, now: datetime) -> None:
    """
    Refuse a command outside its window, ``iat - 60 <= now <= exp + 60``.

    Args:
        command: Verified.
        now: The executor's time.

    Raises:
        StaleError: Too old or too new: the server signs it anew.
    """
    moment = unix(now)
    if not command.iat - COMMAND_LEEWAY <= moment <= command.exp + COMMAND_LEEWAY:
        raise StaleError("the command was signed too long ago, or this machine's clock is wrong")


def check_order(command: Command, last: Order, *, nonce_seen: bool) -> None:
    """
    Refuse a command that was delivered before, or is older than the last one.

    Args:
        command: Verified.
        last: Order of the last command that passed this check.
        nonce_seen: Whether the journal holds its nonce.

    Raises:
        ReplayError: The same signature again.
        RollbackError: Not above *last*.
    """
    if nonce_seen:
        raise ReplayError("this command was delivered before: each delivery is signed anew")
    if command.order <= last:
        raise RollbackError("a later command was delivered already: the server must sign with a higher number")


def check_start_by(start_by: int, *, now: datetime) -> None:
    """
    Refuse work that is too late to start. Checked when a command arrives, and again just before starting.

    Raises:
        LateCommandError: The time has passed.
    """
    if unix(now) > start_by:
        raise LateCommandError("the time by which this had to be started has passed")
