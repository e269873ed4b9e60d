"""
What the end of a command means for its plan and its packages, in the transaction in which the command ends.

The core decides; here it is stored and told.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core import codec
from redflag_core.command_queue import CommandState
from redflag_core.commands import CommandType, UpgradeParams
from redflag_core.patching import Move, PackageTarget, PlanState, Transaction, beyond_routine, can
from redflag_core.patching.plan_states import ALLOWED, OPEN
from redflag_core.patching.results import Ended, Ending, after_installing, after_planning
from redflag_core.patching.states import UNDECIDED
from redflag_core.scanning import PackageKey, PackageState
from redflag_core.statements import CommandResult, Outcome
from redflag_server.commands.tables import Command, CommandStatement
from redflag_server.events.tables import Event
from redflag_server.packages.moves import PLANNED, PackageMoves, Told, packages_of_plan
from redflag_server.packages.sightings import sighting_of
from redflag_server.packages.tables import Package
from redflag_server.plans.changes import SCANNED, Step, drop, step
from redflag_server.plans.tables import Plan

_PLANNED: Final[Mapping[PlanState, Told]] = {
    PlanState.READY: Told(kind="plan.ready", words="is ready to be installed"),
    PlanState.NEEDS_CONFIRMATION: Told(kind="plan.needs_confirmation", words="needs confirmation"),
    PlanState.FAILED: Told(kind="plan.failed", words="could not be made"),
    PlanState.DROPPED: Told(kind="plan.dropped", words="was dropped"),
}
_INSTALLED: Final[Mapping[PlanState, Told]] = {
    PlanState.DONE: Told(kind="plan.done", words="was installed"),
    PlanState.FAILED: Told(kind="plan.failed", words="could not be installed"),
    PlanState.DROPPED: Told(kind="plan.dropped", words="was not installed"),
}


_LEAVES: Final = frozenset({Move.PLAN_DROPPED, Move.INSTALL_DROPPED})
"""With these a package leaves its plan. Else it points to the plan that it waits for, or that changed it last."""


async def command_ended(
    session: AsyncSession, command: Command, result: CommandResult | None, now: datetime
) -> None:
    """
    Follow a command that belongs to a plan to its end.

    Args:
        session: The open write transaction.
        command: The command; state, code and detail are set.
        result: What the executor signed, verified; None when it ended without that.
        now: Database time, aware UTC.
    """
    plan = await session.get(Plan, command.plan_id, with_for_update=True)
    if plan is None:
        return
    actor = "server" if result is None else f"agent:{command.agent_id}"
    ended = Ended(state=CommandState(command.state), code=command.code, detail=command.detail, result=result)
    if command.type == CommandType.PACKAGES_PLAN and plan.state == PlanState.PLANNING:
        await _planned(session, plan, ended, PackageMoves(session, actor, now))
    elif command.type == CommandType.PACKAGES_UPGRADE and plan.transaction is not None:
        await _installed(session, plan, command, ended, PackageMoves(session, actor, now))


async def agent_rebooted(session: AsyncSession, agent_id: UUID, now: datetime) -> None:
    """
    A machine was started anew: what waited for that is in use.

    Args:
        session: The open write transaction.
        agent_id: The machine.
        now: Database time, aware UTC.
    """
    waiting = select(Package, Plan).outerjoin(Plan, Plan.id == Package.plan_id)
    rows = await session.execute(
        waiting.where(Package.agent_id == agent_id, Package.state == PackageState.REBOOT_PENDING)
    )
    moves = PackageMoves(session, f"agent:{agent_id}", now)
    for package, plan in rows.all():
        version = None if plan is None else _versions(plan).get(PackageKey(package.name, package.arch))
        moves.move(package, Move.REBOOTED, sighting_of(package, version=version))
    await moves.store()


# --- a plan was made ---


async def _planned(session: AsyncSession, plan: Plan, ended: Ended, moves: PackageMoves) -> None:
    ending = after_planning(targets_of(plan), ended, manager=plan.manager)
    plan.planned_at = moves.now
    _keep_outcomes(plan, ended)
    if ending.plan in OPEN and ended.result is not None and ended.result.transaction is not None:
        transaction = ended.result.transaction
        plan.transaction, plan.plan_hash = codec.unstructure(transaction), transaction.plan_hash
        plan.beyond_routine = sorted(beyond_routine(transaction))
        plan.changes, plan.extra = len(transaction.changes), len(transaction.extra)
        plan.download_size = transaction.download_size
    await step(session, plan, ending.plan, _step(_PLANNED[ending.plan], ending, moves))
    await _move(session, plan, ending, moves)
    if ending.plan in OPEN and not await _is_whole(session, plan):
        why = "a scan saw that a package of it is up to date or gone"
        await drop(session, plan, moves.actor, moves.now, code=SCANNED, why=why)


async def _is_whole(session: AsyncSession, plan: Plan) -> bool:
    """Whether all that would be changed still waits: scans did not count while it was planned."""
    waiting = [package for package in await packages_of_plan(session, plan.id) if package.state in PLANNED]
    return len(waiting) == len(requested_of(plan))


# --- a plan was carried out ---


async def _installed(
    session: AsyncSession, plan: Plan, command: Command, ended: Ended, moves: PackageMoves
) -> None:
    transaction = codec.structure(Transaction, plan.transaction)
    restarted = await _restarted_since(session, command, ended.result)
    ending = after_installing(requested_of(plan), ended, transaction=transaction, restarted=restarted)
    if (plan.state, ending.plan) not in ALLOWED:
        return  # it was given up here, and the machine did not do it: nothing new
    _keep_outcomes(plan, ended)
    await step(session, plan, ending.plan, _step(_INSTALLED[ending.plan], ending, moves))
    await _move(session, plan, ending, moves)


async def _restarted_since(session: AsyncSession, command: Command, result: CommandResult | None) -> bool:
    """
    Whether the machine was started anew after a result was signed: it can be delivered after the reboot.

    The two clocks may differ. What the machine says is set against its own acceptance, and the time since then is
    counted from when that was received here. Without it, the next reboot decides.
    """
    if result is None or not result.reboot_required or command.accepted_at is None:
        return False
    if result.outcome is Outcome.INTERRUPTED:  # it may be this start that interrupted it
        return False
    received = select(func.min(CommandStatement.received_at)).where(
        CommandStatement.command_id == command.id, CommandStatement.kind == "accepted"
    )
    received_at = await session.scalar(received)
    if received_at is None:
        return False
    took = datetime.fromtimestamp(result.finished_at, tz=UTC) - command.accepted_at
    query = select(Event.id).where(
        Event.agent_id == command.agent_id, Event.kind == "agent.rebooted", Event.at > received_at + took
    )
    return (await session.scalars(query.limit(1))).first() is not None


# --- both ---


def targets_of(plan: Plan) -> Sequence[PackageTarget]:
    """What was asked for."""
    return [codec.structure(PackageTarget, target) for target in plan.targets]


def requested_of(plan: Plan) -> Sequence[PackageTarget]:
    """What of it can be installed, as the machine says: the rest is held or stale."""
    transaction = codec.structure(Transaction, plan.transaction)
    requested = set(transaction.requested)
    return [target for target in targets_of(plan) if target.key in requested]


def upgrade_params(plan: Plan) -> UpgradeParams:
    """What is ordered to carry a plan out. What an operator approves is the text of exactly these."""
    return UpgradeParams(plan.manager, tuple(requested_of(plan)), plan.plan_hash or "")


def _versions(plan: Plan) -> Mapping[PackageKey, str]:
    return {target.key: target.available for target in targets_of(plan)}


def _keep_outcomes(plan: Plan, ended: Ended) -> None:
    """Results of packages replace what was known of them; those that a plan left out keep why."""
    if ended.result is None:
        return
    known = {(outcome["name"], outcome["arch"]): outcome for outcome in plan.outcomes}
    for outcome in ended.result.packages:
        known[outcome.name, outcome.arch] = codec.unstructure(outcome)
    asked = [(target["name"], target["arch"]) for target in plan.targets]
    plan.outcomes = [known[key] for key in asked if key in known]


def _step(told: Told, ending: Ending, moves: PackageMoves) -> Step:
    return Step(told=told, actor=moves.actor, now=moves.now, code=ending.code, why=ending.detail)


async def _move(session: AsyncSession, plan: Plan, ending: Ending, moves: PackageMoves) -> None:
    versions = _versions(plan)
    for package in await _packages(session, plan, ending):
        key = PackageKey(package.name, package.arch)
        fate, seen = ending.fates[key], sighting_of(package, version=versions.get(key))
        if can(PackageState(package.state), fate.move, seen):
            after = moves.move(package, fate.move, seen, why=fate.reason, code=ending.code, plan=str(plan.id))
            package.plan_id = None if after in UNDECIDED or fate.move in _LEAVES else plan.id
    await moves.store()


async def _packages(session: AsyncSession, plan: Plan, ending: Ending) -> list[Package]:
    """Its packages: those that point to it, and those that did before it was given up and are in no other plan."""
    query = select(Package).where(
        Package.agent_id == plan.agent_id,
        Package.scanner == plan.scanner,
        Package.name.in_({key.name for key in ending.fates}),
    )
    rows = (await session.scalars(query.order_by(Package.name, Package.arch).with_for_update())).all()
    return [
        row for row in rows if PackageKey(row.name, row.arch) in ending.fates and row.plan_id in (plan.id, None)
    ]
