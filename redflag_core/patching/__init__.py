"""Patching: what an update would change, the states a package goes through, and what a machine's owner allows."""

from redflag_core.patching.limits import Limits, LocalWindow, check_limits
from redflag_core.patching.plan import (
    NEVER_APPROVED,
    ApprovalReason,
    Change,
    ChangeKind,
    PackageTarget,
    Transaction,
    beyond_routine,
    check_apply,
    check_name,
)
from redflag_core.patching.plan_states import PlanState
from redflag_core.patching.states import ALLOWED, DECIDABLE, DECISIONS, MOVES, Decision, Move, Sighting, can, move

__all__ = [
    "ALLOWED",
    "DECIDABLE",
    "DECISIONS",
    "MOVES",
    "NEVER_APPROVED",
    "ApprovalReason",
    "Change",
    "ChangeKind",
    "Decision",
    "Limits",
    "LocalWindow",
    "Move",
    "PackageTarget",
    "PlanState",
    "Sighting",
    "Transaction",
    "beyond_routine",
    "can",
    "check_apply",
    "check_limits",
    "check_name",
    "move",
]
