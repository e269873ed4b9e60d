"""
What an operator sees before signing, and what an operator remembers of machines: pure, for `operator_cli`.

Every line is made from what is going to be signed, or says that it is only claimed. Texts of the file can hold
anything: whatever could move the cursor, hide a line or turn its direction is written as its number.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import attrs
from attrs import validators

from redflag_core import codec
from redflag_core._fields import BINDING, HASH, UUID, VERSION, each_once
from redflag_core.approval_files import ApprovalItem, ApprovalRequest, check_transaction
from redflag_core.patching.plan import Change, ChangeKind, Transaction

MAX_KNOWN: Final = 20_000
"""Machines that are remembered of an installation; the one seen longest ago is forgotten first."""

MAX_INSTALLATIONS: Final = 100
MAX_KNOWN_BYTES: Final = 8 * 1024 * 1024

_GRAVITY: Final = ("REMOVE", "DOWNGRADE", "install", "upgrade")
"""Words for what happens to a package, gravest first. Those in capitals are why it must be approved."""

_COUNTED: Final = ("removals", "downgrades", "new packages", "upgrades")


# --- what an operator remembers ---


@attrs.frozen
class KnownMachine:
    """A machine for which the operator signed before."""

    agent_id: str = attrs.field(validator=UUID)
    machine_binding: str = attrs.field(validator=BINDING)


@attrs.frozen
class KnownInstallation:
    """A server whose root the operator compared, and the machines of it for which the operator signed."""

    server: str = attrs.field(validator=UUID)
    root_fp: str = attrs.field(validator=HASH)
    machines: tuple[KnownMachine, ...] = attrs.field(
        default=(),
        validator=[validators.max_len(MAX_KNOWN), each_once("a machine", lambda machine: machine.agent_id)],
    )

    def standing(self, item: ApprovalItem) -> str:
        """Whether the operator signed for the machine of *item* before, in a word; empty when that is so."""
        bindings = {machine.agent_id: machine.machine_binding for machine in self.machines}
        if item.agent_id not in bindings:
            return "NEW: you never signed for this machine"
        if bindings[item.agent_id] != item.machine_binding:
            return "OTHER HARDWARE than when you last signed for it"
        return ""

    def with_machines(self, request: ApprovalRequest) -> "KnownInstallation":
        """It, with the machines of a request as the latest."""
        latest = {item.agent_id: KnownMachine(item.agent_id, item.machine_binding) for item in request.items}
        kept = [machine for machine in self.machines if machine.agent_id not in latest]
        return attrs.evolve(self, machines=(*kept, *latest.values())[-MAX_KNOWN:])


@attrs.frozen
class Known:
    """What an operator remembers: the content of the file of ``--known``."""

    v: int = attrs.field(default=1, validator=VERSION)
    installations: tuple[KnownInstallation, ...] = attrs.field(
        default=(),
        validator=[
            validators.max_len(MAX_INSTALLATIONS),
            each_once("an installation", lambda installation: installation.server),
        ],
    )

    def of(self, server: str) -> KnownInstallation | None:
        """What is known of a server."""
        return next((each for each in self.installations if each.server == server), None)

    def remember(self, installation: KnownInstallation) -> "Known":
        """It, with this installation as the latest."""
        others = [each for each in self.installations if each.server != installation.server]
        return attrs.evolve(self, installations=(*others, installation)[-MAX_INSTALLATIONS:])


def parse_known(data: bytes) -> Known:
    """Read what an operator remembers; raises `MalformedError`."""
    return codec.parse(Known, data, max_bytes=MAX_KNOWN_BYTES)


# --- what an operator sees ---


def printable(text: str, *, ascii_only: bool = False) -> str:
    """
    A text for a terminal: what could do anything there but stand in its place is written as its number.

    Args:
        text: Untrusted.
        ascii_only: Whether letters that merely look like others are written as numbers too: names and versions of
            packages have none.
    """
    return "".join(
        character if character.isprintable() and (character.isascii() or not ascii_only) else _number(character)
        for character in text
    )


def review(request: ApprovalRequest, known: KnownInstallation | None) -> list[str]:
    """
    All that would be approved, line by line.

    Args:
        request: Untrusted.
        known: What the operator remembers of the server.

    Raises:
        MalformedError: The file shows other changes than those that would be signed.
    """
    transactions = [check_transaction(item) for item in request.items]
    lines = list(_head(request))
    for number, (item, transaction) in enumerate(zip(request.items, transactions, strict=True), start=1):
        standing = "NEW: you never signed for this machine" if known is None else known.standing(item)
        lines += _machine(f"{number} of {len(request.items)}", item, transaction, standing)
    changes = [change for transaction in transactions for change in transaction.changes]
    machines = len({item.agent_id for item in request.items})
    lines += ["", f"Total: {machines} machines, {_total(changes)}"]
    return lines


def _head(request: ApprovalRequest) -> Iterator[str]:
    yield f"Server             {request.server}"
    yield f"Root fingerprint   {request.root_fp}"
    yield f"Organization       {printable(request.organization)}"
    yield f"                   called {printable(request.organization_name)!s} by the server"


def _machine(number: str, item: ApprovalItem, transaction: Transaction, standing: str) -> Iterator[str]:
    yield ""
    yield f"{number}: {printable(item.hostname)}, as the server calls it"
    if standing:
        yield f"  ***      {standing}"
    yield f"  agent    {item.agent_id}"
    yield f"  machine  {item.machine_binding}"
    yield f"  order    {item.type} with {transaction.manager}"
    yield f"  plan     {transaction.plan_hash}"
    for change in sorted(transaction.changes, key=lambda change: (_gravity(change), change)):
        yield f"  {_GRAVITY[_gravity(change)]:<10} {_change(change)}"
    yield f"  {_total(transaction.changes)}"


def _gravity(change: Change) -> int:
    return (ChangeKind.REMOVE, ChangeKind.DOWNGRADE, ChangeKind.INSTALL, ChangeKind.UPGRADE).index(change.kind)


def _change(change: Change) -> str:
    name, arch = (printable(text, ascii_only=True) for text in (change.name, change.arch))
    versions = [printable(each, ascii_only=True) for each in (change.before, change.after) if each is not None]
    return f"{name} ({arch}) {' -> '.join(versions)}"


def _total(changes: Sequence[Change]) -> str:
    numbers: Counter[Any] = Counter(_gravity(change) for change in changes)
    parts = [f"{numbers[rank]} {_COUNTED[rank]}" for rank in range(len(_GRAVITY)) if numbers[rank]]
    return f"{len(changes)} changes: {', '.join(parts)}" if parts else "0 changes"


def _number(character: str) -> str:
    return f"\\u{{{ord(character):x}}}"
