"""
The states of a package: one table of moves, and nothing moves outside it.

Three things change a state: what people decide, what becomes of a plan or an installation, and what a scan sees.
The first two are `MOVES`; a scan is `redflag_core.scanning.fold`. `ALLOWED` is every pair that any of them makes,
read from the functions themselves, and databases refuse the rest.

While something runs, scans do not count. `move` makes up for them when it ends: a package that vanished meanwhile
is closed, and a newer version that appeared meanwhile is shown.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import product
from typing import Final

import attrs
from attrs import validators

from redflag_core.errors import IllegalMoveError
from redflag_core.scanning import PENDING_STATES, SCANNED_STATES, PackageState, fold
from redflag_core.scanning.states import RUNNING


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
    """The plan holds no more (discarded, cancelled, expired, drifted): the approval stays."""
    CONFIRM = "confirm"
    INSTALL = "install"
    INSTALL_DONE = "install_done"
    INSTALL_NEEDS_REBOOT = "install_needs_reboot"
    INSTALL_FAILED = "install_failed"
    INSTALL_DROPPED = "install_dropped"
    """Nothing was changed (cancelled, expired, drifted): the approval stays."""
    REBOOTED = "rebooted"
    ROLLED_BACK = "rolled_back"


class Decision(StrEnum):
    """What people decide about a package."""

    APPROVE = "approve"
    REJECT = "reject"
    """Excluded without an end."""
    EXCLUDE = "exclude"
    DEFER = "defer"
    REOPEN = "reopen"


DECISIONS: Final[Mapping[Decision, Move]] = {
    Decision.APPROVE: Move.APPROVE,
    Decision.REJECT: Move.EXCLUDE,
    Decision.EXCLUDE: Move.EXCLUDE,
    Decision.DEFER: Move.DEFER,
    Decision.REOPEN: Move.REOPEN,
}
"""The move that each decision is."""

LONGEST_DECISION: Final = timedelta(days=5 * 366)
"""Longest time for which something is put off or excluded with an end: beyond, say that there is none."""


def why_not_until(decision: Decision, until: datetime | None, now: datetime) -> str | None:
    """
    Why a decision cannot end at a time, for people; None when it can.

    Args:
        decision: What is decided.
        until: When it is to end, aware; None for without an end.
        now: Current time, aware.
    """
    if decision is Decision.DEFER and until is None:
        return "until is missing: say until when it is deferred"
    if until is None:
        return None
    if decision not in (Decision.DEFER, Decision.EXCLUDE):
        return f"until has no meaning for {decision}: leave it out"
    if not now < until <= now + LONGEST_DECISION:
        return "until is not within the next five years: say a time to come"
    return None


@attrs.frozen(kw_only=True)
class Sighting:
    """
    What scans say of a package now.

    Attributes:
        observed: What the last successful scan saw it as, one of `SCANNED_STATES`.
        present: Whether that scan listed it.
        scan_ok: Whether the last scan succeeded.
        damaged: See `redflag_core.scanning.states.is_damaged`.
        newer: Whether it saw another version than the one that was installed by what ends now.
    """

    observed: PackageState = attrs.field(validator=validators.in_(SCANNED_STATES))
    present: bool = True
    scan_ok: bool = True
    damaged: bool = False
    newer: bool = False

    @property
    def state(self) -> PackageState:
        """What the package is as long as nobody says anything about it."""
        if not self.present:
            return PackageState.NOT_APPLICABLE
        return self.observed if self.scan_ok else PackageState.UNKNOWN


@attrs.frozen
class Rule:
    """
    Where a move leads.

    Attributes:
        origins: States in which it can happen.
        to: State after it; None for what the scanner sees.
    """

    origins: frozenset[PackageState]
    to: PackageState | None


_S: Final = PackageState

UNDECIDED: Final = SCANNED_STATES | {_S.UNKNOWN, _S.NOT_APPLICABLE}
"""States that say only what scans see: nobody's decision and no plan holds in them."""

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
_UP_TO_DATE: Final = frozenset({_S.CURRENT, _S.INSTALLED})
"""What will come for it can be excluded beforehand."""

_LATE: Final = frozenset({_S.INSTALLING, _S.APPROVED, _S.FAILED})
"""An installation that was given up may turn out to have been carried out: what the machine says is true."""

_APPROVABLE: Final = frozenset({_S.AVAILABLE, _S.KEPT_BACK})

MOVES: Final[Mapping[Move, Rule]] = {
    Move.APPROVE: Rule(DECIDABLE - {_S.NEEDS_CONFIRMATION}, _S.APPROVED),
    Move.EXCLUDE: Rule(DECIDABLE | _WAITING | _UP_TO_DATE, _S.EXCLUDED),
    Move.DEFER: Rule(DECIDABLE | _WAITING, _S.DEFERRED),
    # Waiting for a reboot that nobody saw has no other end: the machine may have been started anew unseen.
    Move.REOPEN: Rule((DECIDABLE | {_S.INSTALLED, _S.REBOOT_PENDING}) - _APPROVABLE, None),
    Move.PLAN: Rule(frozenset({_S.APPROVED}), _S.PLANNING),
    Move.PLAN_CLEAN: Rule(frozenset({_S.PLANNING}), _S.APPROVED),
    Move.PLAN_EXTRA: Rule(frozenset({_S.PLANNING}), _S.NEEDS_CONFIRMATION),
    Move.PLAN_HELD: Rule(frozenset({_S.PLANNING}), _S.HELD),
    Move.PLAN_FAILED: Rule(frozenset({_S.PLANNING}), _S.FAILED),
    Move.PLAN_DROPPED: Rule(frozenset({_S.PLANNING, _S.NEEDS_CONFIRMATION}), _S.APPROVED),
    Move.CONFIRM: Rule(frozenset({_S.NEEDS_CONFIRMATION}), _S.APPROVED),
    Move.INSTALL: Rule(frozenset({_S.APPROVED}), _S.INSTALLING),
    Move.INSTALL_DONE: Rule(_LATE, _S.INSTALLED),
    Move.INSTALL_NEEDS_REBOOT: Rule(_LATE, _S.REBOOT_PENDING),
    Move.INSTALL_FAILED: Rule(_LATE, _S.FAILED),
    Move.INSTALL_DROPPED: Rule(frozenset({_S.INSTALLING}), _S.APPROVED),
    Move.REBOOTED: Rule(frozenset({_S.REBOOT_PENDING}), _S.INSTALLED),
    Move.ROLLED_BACK: Rule(frozenset({_S.INSTALLING, _S.INSTALLED, _S.REBOOT_PENDING, _S.FAILED}), _S.ROLLED_BACK),
}
"""The table."""


def move(state: PackageState, how: Move, seen: Sighting) -> PackageState:
    """
    The state after a move.

    Args:
        state: State before.
        how: What happens.
        seen: What scans say now.

    Raises:
        IllegalMoveError: The table has no such move; the message says what to do. Nothing that is held on the
            machine, phased, or not known since a failed scan can be approved: it would wait for something that
            nobody here decides.
    """
    rule = MOVES[how]
    if state not in rule.origins:
        raise IllegalMoveError(f"a package that is {_words(state)} cannot be {_DONE[how]}: {ADVICE[state]}")
    if how is Move.APPROVE and seen.state not in _APPROVABLE:
        what = f"{_words(seen.state)} on its machine"
        raise IllegalMoveError(f"a package that is {what} cannot be approved: {ADVICE[seen.state]}")
    if rule.to is None:
        return seen.state
    return _made_up_for(rule.to, seen) if state in RUNNING else rule.to


def can(state: PackageState, how: Move, seen: Sighting) -> bool:
    """Whether `move` would succeed: what a page offers."""
    try:
        move(state, how, seen)
    except IllegalMoveError:
        return False
    return True


def _made_up_for(state: PackageState, seen: Sighting) -> PackageState:
    """The state after something that ran, with what scans saw while it ran."""
    if state in RUNNING:
        return state
    if not seen.present:
        return _S.NOT_APPLICABLE
    if state is _S.INSTALLED:
        return seen.observed if seen.newer and seen.observed in PENDING_STATES else state
    if state in (_S.FAILED, _S.HELD):
        # The executor looked after it had run: its word is newer than any scan.
        return state
    return fold(state, seen.observed, scan_ok=True, damaged=seen.damaged)


def _sightings() -> Iterator[Sighting]:
    either = (True, False)
    for observed, present, scan_ok, damaged, newer in product(SCANNED_STATES, either, either, either, either):
        yield Sighting(observed=observed, present=present, scan_ok=scan_ok, damaged=damaged, newer=newer)


def _moved() -> Iterator[tuple[PackageState, PackageState]]:
    sightings = tuple(_sightings())
    for how, rule in MOVES.items():
        for state, seen in product(rule.origins, sightings):
            if how is not Move.APPROVE or seen.state in _APPROVABLE:
                yield state, move(state, how, seen)


def _scanned() -> Iterator[tuple[PackageState, PackageState]]:
    for state, observed, scan_ok, damaged in product(
        PackageState, (*SCANNED_STATES, None), (True, False), (True, False)
    ):
        yield state, fold(state, observed, scan_ok=scan_ok, damaged=damaged)


_WORDS: Final[Mapping[PackageState, str]] = {_S.CURRENT: "up to date", _S.NOT_APPLICABLE: "gone"}


def _words(state: PackageState) -> str:
    return _WORDS.get(state) or state.value.replace("_", " ")


ADVICE: Final[Mapping[PackageState, str]] = {
    _S.CURRENT: "there is nothing newer to install",
    _S.AVAILABLE: "approve it first",
    _S.HELD: "release it on the machine itself, where it is held, then scan again",
    _S.KEPT_BACK: "approve it first",
    _S.PHASED: "wait until its distribution offers it to this machine",
    _S.APPROVED: "plan it and install it, or reopen it",
    _S.DEFERRED: "approve or reopen it first",
    _S.EXCLUDED: "approve or reopen it first",
    _S.PLANNING: "wait for its plan, or discard the plan",
    _S.NEEDS_CONFIRMATION: "confirm its plan, or discard the plan",
    _S.INSTALLING: "wait until the installation ends",
    _S.REBOOT_PENDING: "start the machine anew to finish what was installed",
    _S.INSTALLED: "there is nothing newer to install",
    _S.FAILED: "approve or reopen it first",
    _S.ROLLED_BACK: "approve or reopen it first",
    _S.NOT_APPLICABLE: "it is no longer on the machine",
    _S.UNKNOWN: "its last scan failed; make the scanner work, then scan again",
}
"""What to do with a package in a state that does not allow what somebody wanted."""

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

ALLOWED: Final = frozenset((before, after) for before, after in (*_moved(), *_scanned()) if before is not after)
"""Every change of state that a move or a scan can make."""
