"""
What an update would change: the exact transaction, its hash, and what in it goes beyond a routine update.

The machine simulates a transaction, people see it, and the machine carries out exactly that one or nothing: both
ends compare `plan_hash`. What an update may bring along without anybody's signature is decided here, from the
transaction itself and never from the name of the command.
"""

import hashlib
import re
from enum import StrEnum
from typing import Any, Final

import attrs
from attrs import validators

from redflag_core._fields import count, each_once, line
from redflag_core.encoding import dump_json
from redflag_core.errors import CommandRefusedError, MalformedError, NeedsApprovalError, PlanDriftedError
from redflag_core.scanning import MAX_NAME, MAX_TEXT, PackageKey
from redflag_core.scanning.model import MAX_ARCH

MAX_TARGETS: Final = 200
"""Most packages of one plan: their command must fit into an envelope of 64 KiB, and nobody reads more."""

MAX_CHANGES: Final = 2_000
"""Most changes of one transaction: an upgrade from one release of Debian to the next has about 1,500."""

_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9+._~:-]{0,253}[A-Za-z0-9+._~])?")
_FILES: Final = (".deb", ".ddeb", ".udeb", ".rpm", ".msi", ".exe")


def check_name(name: str) -> str:
    """
    A package name that may become part of a command line.

    A name that passes is still only used when the machine's own inventory has it, exactly so.

    Args:
        name: Untrusted.

    Raises:
        MalformedError: It begins or ends with ``-`` (apt takes ``bash-`` for "remove bash", also after ``--``),
            holds a character that a package manager gives a meaning (``= / * ?`` and the like), or is a path, a
            URL or a package file.
    """
    if not _NAME.fullmatch(name) or name.lower().endswith(_FILES):
        raise MalformedError("that is no name of a package: take one from the last scan, exactly as it is there")
    return name


def _is_name(_instance: Any, _attribute: Any, value: str) -> None:
    try:
        check_name(value)
    except MalformedError as error:
        raise ValueError(error.message) from None


class ChangeKind(StrEnum):
    """What happens to one package."""

    UPGRADE = "upgrade"
    INSTALL = "install"
    REMOVE = "remove"
    DOWNGRADE = "downgrade"


class ApprovalReason(StrEnum):
    """Why a transaction is beyond routine."""

    REMOVAL = "removal"
    DOWNGRADE = "downgrade"
    HELD = "held"
    UNAUTHENTICATED = "unauthenticated"
    NOT_INSTALLED = "not_installed"


NEVER_APPROVED: Final = frozenset({ApprovalReason.UNAUTHENTICATED, ApprovalReason.HELD})
"""What no operator can vouch for: whoever sits on the line could have made an unsigned package, and a hold is the
word of the machine's owner."""


@attrs.frozen(kw_only=True, order=True)
class PackageTarget:
    """
    One package to be brought to one version.

    Attributes:
        name: As the machine's scanner reported it.
        arch: Likewise.
        installed: The version that is installed when the order is given.
        available: The version to install.
    """

    name: str = attrs.field(validator=_is_name)
    arch: str = attrs.field(validator=[validators.matches_re(r"[A-Za-z0-9][A-Za-z0-9_-]*"), line(MAX_ARCH)])
    installed: str = attrs.field(validator=line(MAX_NAME))
    available: str = attrs.field(validator=line(MAX_NAME))

    @property
    def key(self) -> PackageKey:
        """What identifies it within its machine and manager."""
        return PackageKey(self.name, self.arch)


@attrs.frozen(kw_only=True, order=True)
class Change:
    """
    What a transaction does to one package.

    Attributes:
        name: As the manager spells it.
        arch: Architecture.
        before: Version that is installed, None when it is not.
        after: Version that will be, None when it is removed.
        downgrade: Whether *after* is older than *before*, in the order of the manager.
        held: Whether the machine's owner holds the package.
        authenticated: Whether *after* comes from a repository whose signature was checked; true for a removal.
        origin: Repository of *after*, for people. Not part of the hash.
    """

    name: str = attrs.field(validator=line(MAX_NAME))
    arch: str = attrs.field(validator=line(MAX_ARCH))
    before: str | None = attrs.field(default=None, validator=validators.optional(line(MAX_NAME)))
    after: str | None = attrs.field(default=None, validator=validators.optional(line(MAX_NAME)))
    downgrade: bool = False
    held: bool = False
    authenticated: bool = True
    origin: str | None = attrs.field(
        default=None, validator=validators.optional(line(MAX_TEXT)), eq=False, order=False
    )

    def __attrs_post_init__(self) -> None:
        """A change changes something."""
        if self.before == self.after:
            raise ValueError("before and after are the same: that is no change")

    @property
    def key(self) -> PackageKey:
        """What identifies it within its machine and manager."""
        return PackageKey(self.name, self.arch)

    @property
    def kind(self) -> ChangeKind:
        """What happens."""
        if self.before is None:
            return ChangeKind.INSTALL
        if self.after is None:
            return ChangeKind.REMOVE
        return ChangeKind.DOWNGRADE if self.downgrade else ChangeKind.UPGRADE


@attrs.frozen(kw_only=True)
class Transaction:
    """
    Everything that a package manager would change to bring the requested packages to their versions.

    Attributes:
        manager: Package manager.
        requested: What was asked for, each once.
        changes: What would be changed, each package once. The requested ones are among them.
        download_size: Bytes to fetch, when known.
        disk_size: Bytes that the disk would hold more, negative for less, when known.
    """

    manager: str = attrs.field(validator=validators.matches_re(r"[a-z][a-z0-9_]{0,31}"))
    requested: tuple[PackageKey, ...] = attrs.field(
        validator=[validators.min_len(1), validators.max_len(MAX_TARGETS), each_once("a package", lambda key: key)]
    )
    changes: tuple[Change, ...] = attrs.field(
        validator=[validators.max_len(MAX_CHANGES), each_once("a package", lambda change: change.key)]
    )
    download_size: int | None = attrs.field(default=None, validator=validators.optional(count()))
    disk_size: int | None = None

    @property
    def extra(self) -> tuple[Change, ...]:
        """Changes of packages that nobody asked for, in order of name: people must confirm them."""
        asked = set(self.requested)
        return tuple(sorted(change for change in self.changes if change.key not in asked))

    @property
    def plan_hash(self) -> str:
        """
        SHA-256 over what would be changed and what was asked for, 64 hex digits.

        Equal hashes mean the same changes of the same packages between the same versions, with the same standing
        (held, authenticated, downgrade). Sizes and the wording of origins are left out.
        """
        return hashlib.sha256(dump_json(self._canonical())).hexdigest()

    def _canonical(self) -> dict[str, Any]:
        return {
            "v": 1,
            "manager": self.manager,
            "requested": [[key.name, key.arch] for key in sorted(self.requested)],
            "changes": [
                [each.name, each.arch, each.before, each.after, each.downgrade, each.held, each.authenticated]
                for each in sorted(self.changes, key=lambda change: change.key)
            ],
        }


def beyond_routine(transaction: Transaction) -> frozenset[ApprovalReason]:
    """
    Why a transaction needs an operator's signed approval; empty for a routine one.

    Routine is: installed packages go to newer versions, with the new packages that these strictly need, all from
    authenticated repositories, and nothing that is held. The machine decides this about the transaction that it
    simulated itself.
    """
    reasons = set()
    for change in transaction.changes:
        if change.kind is ChangeKind.REMOVE:
            reasons.add(ApprovalReason.REMOVAL)
        if change.kind is ChangeKind.DOWNGRADE:
            reasons.add(ApprovalReason.DOWNGRADE)
        if change.held:
            reasons.add(ApprovalReason.HELD)
        if not change.authenticated:
            reasons.add(ApprovalReason.UNAUTHENTICATED)
        if change.kind is ChangeKind.INSTALL and change.key in transaction.requested:
            reasons.add(ApprovalReason.NOT_INSTALLED)
    return frozenset(reasons)


def check_apply(transaction: Transaction | None, *, plan_hash: str, approved: bool = False) -> Transaction:
    """
    Refuse to carry out what is not exactly what was planned, or what goes beyond a routine update.

    Args:
        transaction: What would be changed now; None when nothing can be.
        plan_hash: `Transaction.plan_hash` of what was ordered.
        approved: Whether an operator's verified approval covers exactly this order.

    Returns:
        The transaction that may be carried out.

    Raises:
        PlanDriftedError: It is another one.
        NeedsApprovalError: It needs an operator's approval; the message names each reason.
        CommandRefusedError: No approval allows it (`NEVER_APPROVED`).
    """
    if transaction is None or transaction.plan_hash != plan_hash:
        raise PlanDriftedError("what would be changed now is not what was planned: plan it again")
    reasons = beyond_routine(transaction)
    if reasons and not approved:
        raise NeedsApprovalError(f"this change needs an operator's signed approval: {_words(reasons)}")
    if reasons & NEVER_APPROVED:
        never = _words(reasons & NEVER_APPROVED)
        raise CommandRefusedError(f"no approval allows this, only a change on the machine itself: {never}")
    return transaction


def _words(reasons: frozenset[ApprovalReason]) -> str:
    return ", ".join(sorted(reason.value.replace("_", " ") for reason in reasons))
