"""
What the end of a command means for its plan and for each package of it.

The machine's signed word counts; how a command without one ended is the server's. Failures are never smoothed
over: a package goes back to waiting only where it is certain that nothing is wrong with it, or where nobody knows
and the next scan will tell.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from redflag_core.command_queue import CommandState
from redflag_core.patching.plan import ApprovalReason, PackageTarget, Transaction, beyond_routine
from redflag_core.patching.plan_states import PlanState
from redflag_core.patching.states import Move
from redflag_core.scanning import PackageKey
from redflag_core.statements import CommandResult, PackageOutcome, PackageResult

HARMLESS: Final = frozenset({"plan_drifted", "start_by_passed", "cancelled", "not_started"})
"""Codes that say that nothing was started, and that the packages are not to blame. What else fails is shown."""

_GIVEN_UP: Final = frozenset({CommandState.CANCELLED, CommandState.EXPIRED})
_NOTHING: Final = "nothing_to_do"
"""Code of a plan whose packages are all held or stale: each says so itself."""

_SILENT: Final = "the machine did not say what became of it"


@attrs.frozen(kw_only=True)
class Ended:
    """
    How a command ended.

    Attributes:
        state: State of the command.
        code: Code of the failure, None when it completed.
        detail: Why, for people.
        result: What the executor signed; None when it ended without that.
    """

    state: CommandState
    code: str | None = None
    detail: str | None = None
    result: CommandResult | None = None

    @property
    def was_started(self) -> bool:
        """Whether the machine says that the work was started."""
        return self.result is not None and self.result.started_at is not None

    @property
    def is_harmless(self) -> bool:
        """Whether it was given up, or refused for a reason that is not about its packages."""
        return not self.was_started and (self.state in _GIVEN_UP or self.code in HARMLESS)


@attrs.frozen
class Fate:
    """
    What becomes of one package.

    Attributes:
        move: How its state moves.
        reason: Why, for people; None where there is nothing to explain.
    """

    move: Move
    reason: str | None = None


@attrs.frozen(kw_only=True)
class Ending:
    """
    What becomes of a plan.

    Attributes:
        plan: Its state.
        fates: What becomes of each of its packages.
        code: Code of what went wrong, or None.
        detail: The same for people, or None.
    """

    plan: PlanState
    fates: Mapping[PackageKey, Fate]
    code: str | None = None
    detail: str | None = None


# --- a plan was made --------------------------------------------------------------------------------------------


def after_planning(targets: Sequence[PackageTarget], ended: Ended, *, manager: str) -> Ending:
    """
    What the end of ``packages.plan`` means.

    Args:
        targets: What was asked for.
        ended: How the command ended; its result is verified and otherwise untrusted.
        manager: The package manager that was asked.
    """
    result = ended.result
    if ended.is_harmless or ended.state is CommandState.INTERRUPTED:  # a plan that was cut off changed nothing
        return _all(targets, Move.PLAN_DROPPED, PlanState.DROPPED, ended.code, ended.detail)
    if result is None or not (ended.state is CommandState.COMPLETED or ended.code == _NOTHING):
        return _all(targets, Move.PLAN_FAILED, PlanState.FAILED, ended.code, ended.detail or _SILENT)
    if not _answers(result, targets, manager):
        text = "the machine's answer is about other packages than were asked for: look at its agent"
        return _all(targets, Move.PLAN_FAILED, PlanState.FAILED, "malformed", text)
    doubt = None if result.transaction is None else why_confirm(result.transaction)
    outcomes = {outcome.key: outcome for outcome in result.packages}
    fates = {target.key: _planned(outcomes.get(target.key), doubt) for target in targets}
    if result.transaction is None:
        return Ending(plan=PlanState.DROPPED, fates=fates, detail="none of these packages can be installed now")
    return Ending(plan=PlanState.NEEDS_CONFIRMATION if doubt else PlanState.READY, fates=fates)


def why_confirm(transaction: Transaction) -> str | None:
    """Why people must look at a transaction first, for people; None when it is only what they asked for."""
    reasons = []
    if transaction.extra:
        one = len(transaction.extra) == 1
        reasons.append(f"changes {len(transaction.extra)} package{'' if one else 's'} that nobody asked for")
    beyond = beyond_routine(transaction)
    if beyond:
        reasons.append(f"goes beyond a routine update ({reasons_text(beyond)})")
    return f"the plan {' and '.join(reasons)}" if reasons else None


def reasons_text(reasons: frozenset[ApprovalReason]) -> str:
    """Reasons for an approval, for people, in a fixed order."""
    return ", ".join(sorted(reason.value.replace("_", " ") for reason in reasons))


def _answers(result: CommandResult, targets: Sequence[PackageTarget], manager: str) -> bool:
    """Whether a result is about what was asked, and its transaction covers exactly what it says was planned."""
    transaction = result.transaction
    requested = set() if transaction is None else set(transaction.requested)
    planned = {outcome.key for outcome in result.packages if outcome.outcome is PackageOutcome.PLANNED}
    return (
        requested == planned
        and planned <= {target.key for target in targets}
        and (transaction is None or transaction.manager == manager)
    )


def _planned(outcome: PackageResult | None, doubt: str | None) -> Fate:
    if outcome is None:
        return Fate(Move.PLAN_FAILED, _SILENT)
    if outcome.outcome is PackageOutcome.PLANNED:
        return Fate(Move.PLAN_EXTRA, doubt) if doubt else Fate(Move.PLAN_CLEAN)
    if outcome.outcome is PackageOutcome.HELD:
        return Fate(Move.PLAN_HELD, outcome.reason or "held on the machine")
    if outcome.outcome is PackageOutcome.STALE:
        return Fate(Move.PLAN_DROPPED, outcome.reason or "the machine has other versions by now: scan it again")
    return Fate(Move.PLAN_FAILED, outcome.reason or _SILENT)


# --- a plan was carried out -------------------------------------------------------------------------------------


def after_installing(
    targets: Sequence[PackageTarget], ended: Ended, *, transaction: Transaction, restarted: bool
) -> Ending:
    """
    What the end of ``packages.upgrade`` means.

    Args:
        targets: What was to be installed.
        ended: How the command ended; its result is verified and otherwise untrusted.
        transaction: What was planned.
        restarted: Whether the machine was started anew since: what it asked for then is done.
    """
    if ended.is_harmless:
        return _all(targets, Move.INSTALL_DROPPED, PlanState.DROPPED, ended.code, ended.detail)
    if not ended.was_started or ended.result is None:
        return _all(targets, Move.INSTALL_FAILED, PlanState.FAILED, ended.code, ended.detail or _SILENT)
    result = ended.result
    outcomes = {outcome.key: outcome for outcome in result.packages}
    waiting = frozenset() if restarted else _waiting_for_reboot(result, transaction)
    fates = {
        target.key: _installed(outcomes.get(target.key), ended, waits=target.key in waiting) for target in targets
    }
    done = all(fate.move in (Move.INSTALL_DONE, Move.INSTALL_NEEDS_REBOOT) for fate in fates.values())
    state = PlanState.DONE if done else PlanState.FAILED
    return Ending(plan=state, fates=fates, code=ended.code, detail=ended.detail)


def _installed(outcome: PackageResult | None, ended: Ended, *, waits: bool) -> Fate:
    detail = ended.detail or _SILENT
    if outcome is None:
        return Fate(Move.INSTALL_FAILED, detail)
    if outcome.outcome is PackageOutcome.INSTALLED and waits:
        return Fate(Move.INSTALL_NEEDS_REBOOT, "installed; the machine must be started anew to use it")
    if outcome.outcome is PackageOutcome.INSTALLED:
        return Fate(Move.INSTALL_DONE)
    if outcome.outcome is PackageOutcome.UNCHANGED and ended.state is CommandState.INTERRUPTED:
        return Fate(Move.INSTALL_DROPPED, outcome.reason or detail)
    return Fate(Move.INSTALL_FAILED, outcome.reason or detail)


def _waiting_for_reboot(result: CommandResult, transaction: Transaction) -> frozenset[PackageKey]:
    """
    The packages that were asked for and that are not in use before a reboot.

    A kernel is often a new package that a requested one brings along, and not every manager names who asks: then
    all that was requested waits, rather than looking finished.
    """
    if not result.reboot_required:
        return frozenset()
    asking = set(result.reboot_by)
    named = frozenset(key for key in transaction.requested if key.name in asking)
    brought = any(change.name in asking for change in transaction.extra)
    return named or (frozenset(transaction.requested) if brought or not asking else frozenset())


def _all(
    targets: Sequence[PackageTarget], move: Move, plan: PlanState, code: str | None, detail: str | None
) -> Ending:
    fates = {target.key: Fate(move, detail) for target in targets}
    return Ending(plan=plan, fates=fates, code=code, detail=detail)
