"""
The states of a package: one table of moves, and nothing moves outside it.

What people decide, what a plan or an installation ends with, and what a scan sees (`redflag_core.scanning.fold`)
are all moves. `ALLOWED` is every pair that any of them can make; databases refuse the rest by themselves.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import attrs

from redflag_core.errors import IllegalMoveError
from redflag_core.scanning import SCANNED_STATES, PackageState, fold


class Move(StrEnum):
    """What can happen to a package, apart from being seen by a scan."""

    APPROVE = "approve"
    EXCLUDE = "exclude"
    DEFER = "defer"
    REOPEN = "reopen"
    """A decision is taken back, or its time is over: the package is again what the scanner sees."""
    PLAN = "plan"
    PLAN_CLEAN = "plan_clean"
    PLAN_EXTRA = "plan_extra"
    PLAN_HELD = "plan_held"
    PLAN_FAILED = "plan_failed"
    PLAN_DROPPED = "plan_dropped"
    """The plan ended without a result that holds (cancelled, expired, drifted): the approval stays."""
    CONFIRM = "confirm"
    INSTALL = "install"
    INSTALL_DONE = "install_done"
    INSTALL_NEEDS_REBOOT = "install_needs_reboot"
    INSTALL_FAILED = "install_failed"
    INSTALL_DROPPED = "install_dropped"
    """Nothing was started (cancelled, expired, drifted): the approval stays."""
    REBOOTED = "rebooted"
    ROLLED_BACK = "rolled_back"


@attrs.frozen
class _Rule:
    """From where a move leads where; ``to`` None means: to what the scanner sees."""

    origins: frozenset[PackageState]
    to: PackageState | None


_S: Final = PackageState

DECIDABLE: Final = frozenset(
    {
        _S.AVAILABLE,
        _S.KEPT_BACK,
        _S.APPROVED,
        _S.DEFERRED,
        _S.EXCLUDED,
        _S.NEEDS_CONFIRMATION,
        _S.FAILED,
        _S.ROLLED_BACK,
    }
)
"""States about which people can decide: something newer exists, and nothing is being done."""

_WAITING: Final = frozenset({_S.HELD, _S.PHASED, _S.UNKNOWN})

MOVES: Final[Mapping[Move, _Rule]] = {
    Move.APPROVE: _Rule(DECIDABLE - {_S.APPROVED}, _S.APPROVED),
    Move.EXCLUDE: _Rule((DECIDABLE | _WAITING) - {_S.EXCLUDED}, _S.EXCLUDED),
    Move.DEFER: _Rule((DECIDABLE | _WAITING) - {_S.DEFERRED}, _S.DEFERRED),
    Move.REOPEN: _Rule(
        frozenset(
            {_S.APPROVED, _S.DEFERRED, _S.EXCLUDED, _S.NEEDS_CONFIRMATION, _S.FAILED, _S.ROLLED_BACK, _S.INSTALLED}
        ),
        None,
    ),
    Move.PLAN: _Rule(frozenset({_S.APPROVED}), _S.PLANNING),
    Move.PLAN_CLEAN: _Rule(frozenset({_S.PLANNING}), _S.APPROVED),
    Move.PLAN_EXTRA: _Rule(frozenset({_S.PLANNING}), _S.NEEDS_CONFIRMATION),
    Move.PLAN_HELD: _Rule(frozenset({_S.PLANNING}), _S.HELD),
    Move.PLAN_FAILED: _Rule(frozenset({_S.PLANNING}), _S.FAILED),
    Move.PLAN_DROPPED: _Rule(frozenset({_S.PLANNING}), _S.APPROVED),
    Move.CONFIRM: _Rule(frozenset({_S.NEEDS_CONFIRMATION}), _S.APPROVED),
    Move.INSTALL: _Rule(frozenset({_S.APPROVED}), _S.INSTALLING),
    Move.INSTALL_DONE: _Rule(frozenset({_S.INSTALLING}), _S.INSTALLED),
    Move.INSTALL_NEEDS_REBOOT: _Rule(frozenset({_S.INSTALLING}), _S.REBOOT_PENDING),
    Move.INSTALL_FAILED: _Rule(frozenset({_S.INSTALLING}), _S.FAILED),
    Move.INSTALL_DROPPED: _Rule(frozenset({_S.INSTALLING}), _S.APPROVED),
    Move.REBOOTED: _Rule(frozenset({_S.REBOOT_PENDING}), _S.INSTALLED),
    Move.ROLLED_BACK: _Rule(
        frozenset({_S.INSTALLING, _S.INSTALLED, _S.REBOOT_PENDING, _S.FAILED}), _S.ROLLED_BACK
    ),
}
"""The table."""


def move(state: PackageState, how: Move, *, observed: PackageState) -> PackageState:
    """
    The state after a move.

    Args:
        state: State before.
        how: What happens.
        observed: What the last successful scan saw, one of `SCANNED_STATES`.

    Raises:
        IllegalMoveError: The table has no such move. Nothing that is held on the machine, phased, or not known
            since a failed scan can be approved: it would wait for something that nobody here decides.
    """
    rule = MOVES[how]
    if state not in rule.origins:
        raise IllegalMoveError(f"a package that is {_words(state)} cannot be {_DONE[how]}")
    if how is Move.APPROVE and observed not in (_S.AVAILABLE, _S.KEPT_BACK):
        raise IllegalMoveError(f"a package that is {_words(observed)} on its machine cannot be approved")
    return observed if rule.to is None else rule.to


def can(state: PackageState, how: Move, *, observed: PackageState) -> bool:
    """Whether `move` would succeed: what a page offers."""
    try:
        move(state, how, observed=observed)
    except IllegalMoveError:
        return False
    return True


def _moved() -> frozenset[tuple[PackageState, PackageState]]:
    pairs = set()
    for rule in MOVES.values():
        targets = SCANNED_STATES if rule.to is None else {rule.to}
        pairs |= {(origin, target) for origin in rule.origins for target in targets}
    return frozenset(pairs)


def _scanned() -> frozenset[tuple[PackageState, PackageState]]:
    seen: list[tuple[PackageState | None, bool]] = [(None, True), (None, False)]
    seen += [(observed, True) for observed in SCANNED_STATES]
    return frozenset(
        (state, fold(state, observed, scan_ok=scan_ok)) for state in PackageState for observed, scan_ok in seen
    )


ALLOWED: Final = frozenset((before, after) for before, after in _moved() | _scanned() if before is not after)
"""Every change of state that the table or a scan can make."""


def _words(state: PackageState) -> str:
    return state.value.replace("_", " ")


_DONE: Final[Mapping[Move, str]] = {
    Move.APPROVE: "approved",
    Move.EXCLUDE: "excluded",
    Move.DEFER: "deferred",
    Move.REOPEN: "reopened",
    Move.PLAN: "planned",
    Move.PLAN_CLEAN: "planned",
    Move.PLAN_EXTRA: "planned",
    Move.PLAN_HELD: "planned",
    Move.PLAN_FAILED: "planned",
    Move.PLAN_DROPPED: "taken out of a plan",
    Move.CONFIRM: "confirmed",
    Move.INSTALL: "installed",
    Move.INSTALL_DONE: "finished",
    Move.INSTALL_NEEDS_REBOOT: "finished",
    Move.INSTALL_FAILED: "finished",
    Move.INSTALL_DROPPED: "taken out of an installation",
    Move.REBOOTED: "finished by a reboot",
    Move.ROLLED_BACK: "rolled back",
}
