"""Where a plan stands: made on a machine, looked at by people, carried out once."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from redflag_core.errors import IllegalMoveError


class PlanState(StrEnum):
    """Where a plan stands."""

    PLANNING = "planning"
    NEEDS_CONFIRMATION = "needs_confirmation"
    READY = "ready"
    INSTALLING = "installing"
    DONE = "done"
    FAILED = "failed"
    DROPPED = "dropped"
    """It holds no more: drifted, discarded by somebody, or its command ended without being started."""


_S: Final = PlanState
_NEXT: Final[Mapping[PlanState, frozenset[PlanState]]] = {
    _S.PLANNING: frozenset({_S.NEEDS_CONFIRMATION, _S.READY, _S.FAILED, _S.DROPPED}),
    _S.NEEDS_CONFIRMATION: frozenset({_S.READY, _S.DROPPED}),
    _S.READY: frozenset({_S.INSTALLING, _S.DROPPED}),
    _S.INSTALLING: frozenset({_S.DONE, _S.FAILED, _S.DROPPED}),
    _S.DONE: frozenset(),
    _S.FAILED: frozenset({_S.DONE}),
    _S.DROPPED: frozenset({_S.DONE, _S.FAILED}),
}
"""The table. A late result still counts: a plan that was given up may turn out to have been carried out."""

OPEN: Final = frozenset({_S.PLANNING, _S.NEEDS_CONFIRMATION, _S.READY, _S.INSTALLING})
"""States of a plan that its packages wait for."""

ALLOWED: Final = frozenset((before, after) for before, targets in _NEXT.items() for after in targets)


def advance(state: PlanState, to: PlanState) -> PlanState:
    """
    Move a plan on.

    Raises:
        IllegalMoveError: The table has no such move.
    """
    if (state, to) not in ALLOWED:
        words = state.value.replace("_", " ")
        raise IllegalMoveError(f"a plan that is {words} cannot become {to.value.replace('_', ' ')}")
    return to
