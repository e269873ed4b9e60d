"""
Making plans, and what people do with them: confirm, discard, install. Each is one transaction.

The machine makes the plan and carries it out; here it is ordered. A plan is carried out as a whole or not at all,
so whatever was decided about one of its packages since stops it.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import attrs
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from redflag_core import codec
from redflag_core.command_queue import LIVE, MAX_LIVE, START_WITHIN_SECONDS
from redflag_core.commands import CommandType, PlanParams, UpgradeParams, dump_params, subjects_of
from redflag_core.enrolment import AgentStatus
from redflag_core.errors import IllegalMoveError, MalformedError
from redflag_core.patching import Move, PackageTarget, PlanState, Transaction
from redflag_core.patching.plan import MAX_TARGETS
from redflag_core.scanning import PackageState
from redflag_server.agents.locks import lock_agents
from redflag_server.agents.tables import Agent
from redflag_server.approvals.service import LiveApproval
from redflag_server.commands.queue import NewCommand, cancel, order
from redflag_server.commands.tables import Command, CommandSubject
from redflag_server.db.scope import Scope
from redflag_server.packages.moves import PackageMoves, Told, packages_of_plan
from redflag_server.packages.sightings import sighting_of
from redflag_server.packages.tables import Package
from redflag_server.plans.approving import approval_of_plan, needed_approval
from redflag_server.plans.changes import DISCARDED, REPLACED, Step, drop, open_plans, step, tell
from redflag_server.plans.follow import requested_of, upgrade_params
from redflag_server.plans.listing import plan_item
from redflag_server.plans.schema import MAX_AT_ONCE, PlanItem, PlansMade, SkippedPackage
from redflag_server.plans.tables import Plan
from redflag_server.problems import ConflictError, InvalidRequestError, NotFoundError
from redflag_server.runtime import Runtime

MAX_NAMED: Final = 100
"""Most changes that an event names: the rest is counted, and the plan itself has all of them."""

_NO_HASH: Final = "0" * 64
_MADE: Final = Told(kind="plan.made", words="was asked for")
_CONFIRMED: Final = Told(kind="plan.confirmed", words="was confirmed")
_INSTALLING: Final = Told(kind="plan.installing", words="is to be installed")


@attrs.frozen
class _Group:
    """Approved packages of one machine and one scanner, and what to bring them to."""

    packages: Sequence[Package]
    targets: Sequence[PackageTarget]

    @property
    def first(self) -> Package:
        """One of them: machine, scanner and manager are the same for all."""
        return self.packages[0]


# --- making plans ---


async def make_plans(runtime: Runtime, visible: Scope, package_ids: Iterable[UUID], reason: str) -> PlansMade:
    """
    Have machines plan the update of packages: one plan for each machine and package manager.

    Args:
        runtime: The server.
        visible: Who asks.
        package_ids: The packages; each must be approved.
        reason: Why, one line.

    Returns:
        The plans, and which packages were left out because their machine still works on them.

    Raises:
        InvalidRequestError: None or too many packages.
        NotFoundError: One of them does not exist, or is not for the caller to see.
        ConflictError: One of them is not approved or cannot be named, there are too many for one plan, or their
            machines still work on all of them.
    """
    wanted, now = set(package_ids), runtime.clock.now()
    if not 1 <= len(wanted) <= MAX_AT_ONCE:
        raise InvalidRequestError(f"name 1 to {MAX_AT_ONCE} packages at once")
    async with runtime.database.write() as session:
        await lock_agents(session, visible.select(Package, Package.agent_id).where(Package.id.in_(wanted)))
        query = visible.select(Package).where(Package.id.in_(wanted)).order_by(Package.name, Package.arch)
        packages = (await session.scalars(query.with_for_update())).all()
        if len(packages) < len(wanted):
            raise NotFoundError(
                "there is no such package" if len(wanted) == 1 else "not all of these packages exist"
            )
        for package in packages:
            _target(package)
        able, skipped = await _able(session, packages)
        if not able:
            raise ConflictError(skipped[0].detail)
        groups = [_Group(group, [_target(package) for package in group]) for group in _grouped(able)]
        for group in groups:
            if not _fits(group.targets, group.first.manager):
                raise ConflictError(
                    f"{len(group.targets)} packages of one machine are too many for one plan, which takes "
                    f"{MAX_TARGETS} at most: name fewer, and plan the rest when these are installed"
                )
        return PlansMade(await _make(session, visible, groups, reason, now), skipped=skipped)


async def plan_machine(runtime: Runtime, visible: Scope, agent_id: UUID, reason: str) -> PlansMade:
    """
    Have a machine plan the update of all its approved packages, security updates first when they are too many.

    Args:
        runtime: The server.
        visible: Who asks.
        agent_id: The machine.
        reason: Why, one line.

    Returns:
        The plans, and what was left out.

    Raises:
        NotFoundError: No such machine, or not for the caller to see.
        ConflictError: Nothing on it is approved, or nothing of that can be planned.
    """
    now = runtime.clock.now()
    async with runtime.database.write() as session:
        hostname = await session.scalar(visible.select(Agent, Agent.hostname).where(Agent.id == agent_id))
        if hostname is None:
            raise NotFoundError("there is no such machine")
        await lock_agents(session, [agent_id])
        query = visible.select(Package).where(Package.agent_id == agent_id, Package.state == PackageState.APPROVED)
        in_order = query.order_by(Package.security.desc(), Package.name, Package.arch)
        packages = (await session.scalars(in_order.with_for_update())).all()
        able, skipped = await _able(session, packages)
        groups = [_fitting(group) for group in _grouped(able)]
        if not groups:
            hint = skipped[0].detail if skipped else "approve packages first"
            raise ConflictError(f"nothing on {hostname} is approved that can be planned: {hint}")
        left = len(able) - sum(len(group.packages) for group in groups)
        return PlansMade(await _make(session, visible, groups, reason, now), left, skipped)


def _grouped(packages: Sequence[Package]) -> list[list[Package]]:
    groups: dict[tuple[UUID, str, str], list[Package]] = {}
    for package in packages:
        groups.setdefault((package.agent_id, package.scanner, package.manager), []).append(package)
    return list(groups.values())


def _target(package: Package) -> PackageTarget:
    """What to bring a package to; raises `ConflictError` for one that cannot be planned now."""
    if package.state != PackageState.APPROVED:
        words = package.state.replace("_", " ")
        raise ConflictError(f"{package.name} is {words}: only approved packages can be planned")
    try:
        return PackageTarget(
            name=package.name,
            arch=package.arch,
            installed=package.installed or "",
            available=package.available or "",
        )
    except ValueError:
        raise ConflictError(
            f"{package.name} cannot be planned: its name or its versions are none that may be part of a command"
        ) from None


async def _able(session: AsyncSession, packages: Sequence[Package]) -> tuple[list[Package], list[SkippedPackage]]:
    """One package that cannot be planned does not stop the others."""
    at_work, closed = await _at_work(session, packages), await _closed(session, packages)
    able, skipped = [], []
    for package in packages:
        try:
            subject = (package.agent_id, _subject(package.manager, _target(package)))
            busy = closed.get(package.agent_id) or at_work.get(subject)
        except ConflictError as error:
            busy = error.message
        if busy is None:
            able.append(package)
        else:
            skipped.append(SkippedPackage(package_id=package.id, name=package.name, detail=busy))
    return able, skipped


async def _at_work(session: AsyncSession, packages: Sequence[Package]) -> dict[tuple[UUID, str], str]:
    """
    What machines still do, by what it is about, for people.

    A plan that was given up frees its packages at once; its machine may have been told already, and answers later.
    """
    query = (
        select(CommandSubject.agent_id, CommandSubject.subject, Command.type, Command.id)
        .join(Command, Command.id == CommandSubject.command_id)
        .where(CommandSubject.agent_id.in_({package.agent_id for package in packages}))
    )
    return {
        (row.agent_id, row.subject): f"{row.type} {row.id} of it has not ended: wait for it, or release it"
        for row in await session.execute(query)
    }


async def _closed(session: AsyncSession, packages: Sequence[Package]) -> dict[UUID, str]:
    """Machines of which nothing can be ordered now, and why, for people."""
    live = func.count(Command.id).filter(Command.state.in_(LIVE))
    query = (
        select(Agent.id, Agent.hostname, Agent.status, live.label("live"))
        .outerjoin(Command, Command.agent_id == Agent.id)
        .where(Agent.id.in_({package.agent_id for package in packages}))
        .group_by(Agent.id, Agent.hostname, Agent.status)
    )
    closed = {}
    for row in await session.execute(query):
        if row.status == AgentStatus.REVOKED:
            closed[row.id] = f"{row.hostname} is revoked"
        elif row.live >= MAX_LIVE:
            closed[row.id] = f"{row.hostname} has {MAX_LIVE} commands that did not end: cancel some"
    return closed


def _subject(manager: str, target: PackageTarget) -> str:
    (subject,) = subjects_of(CommandType.PACKAGES_PLAN, PlanParams(manager, (target,)))
    return subject


def _fitting(packages: Sequence[Package]) -> _Group:
    """As many of the first as one command can name."""
    targets = [_target(package) for package in packages[:MAX_TARGETS]]
    while len(targets) > 1 and not _fits(targets, packages[0].manager):
        targets = targets[: len(targets) * 9 // 10]
    return _Group(packages[: len(targets)], targets)


def _fits(targets: Sequence[PackageTarget], manager: str) -> bool:
    """Whether one command can name them: the one that installs them is the longer one."""
    if len(targets) > MAX_TARGETS:
        return False
    try:
        dump_params(UpgradeParams(manager, tuple(targets), _NO_HASH))
    except MalformedError:
        return False
    return True


async def _make(
    session: AsyncSession, visible: Scope, groups: Sequence[_Group], reason: str, now: datetime
) -> list[PlanItem]:
    actor = visible.caller.actor
    await _drop_older(session, actor, groups, reason, now)
    hostnames = select(Agent.id, Agent.hostname).where(Agent.id.in_({group.first.agent_id for group in groups}))
    names = {row.id: row.hostname for row in await session.execute(hostnames)}
    return [
        plan_item(await _make_one(session, actor, group, reason, now), names[group.first.agent_id])
        for group in groups
    ]


async def _drop_older(
    session: AsyncSession, actor: str, groups: Sequence[_Group], reason: str, now: datetime
) -> None:
    """A package is in one plan: the older one, which was not carried out, could not be any more."""
    older = {package.plan_id for group in groups for package in group.packages if package.plan_id is not None}
    for plan in await open_plans(session, older):
        await drop(session, plan, actor, now, code=REPLACED, why=f"a package of it is planned anew: {reason}")


async def _make_one(session: AsyncSession, actor: str, group: _Group, reason: str, now: datetime) -> Plan:
    plan = Plan(
        id=uuid7(),
        organization_id=group.first.organization_id,
        agent_id=group.first.agent_id,
        manager=group.first.manager,
        scanner=group.first.scanner,
        state=PlanState.PLANNING,
        state_at=now,
        targets=[codec.unstructure(target) for target in group.targets],
        outcomes=[],
        beyond_routine=[],
        packages=len(group.targets),
        created_at=now,
        created_by=actor[:128],
    )
    session.add(plan)
    await session.flush()
    how = Step(told=_MADE, actor=actor, now=now, why=reason)
    await tell(session, plan, how)
    params = PlanParams(plan.manager, tuple(group.targets))
    await _order(session, plan, CommandType.PACKAGES_PLAN, params, how)
    moves = PackageMoves(session, actor, now)
    for package in group.packages:
        moves.move(package, Move.PLAN, sighting_of(package), why=reason, plan=str(plan.id))
        package.plan_id = plan.id
    await moves.store()
    return plan


# --- what people do with a plan ---


async def confirm_plan(runtime: Runtime, visible: Scope, plan_id: UUID, reason: str) -> None:
    """
    Agree to what a plan brings along.

    What is beyond routine can be agreed to here; to be installed, it needs an operator's signed approval as well.

    Args:
        runtime: The server.
        visible: Who agrees.
        plan_id: The plan.
        reason: Why, one line.

    Raises:
        NotFoundError: No such plan, or not for the caller to see.
        ConflictError: It does not wait for confirmation, or a package of it changed since.
    """
    now, actor = runtime.clock.now(), visible.caller.actor
    async with runtime.database.write() as session:
        plan = await _plan(session, visible, plan_id)
        if plan.state == PlanState.READY and plan.confirmed_at is not None:
            return
        _check(plan, PlanState.NEEDS_CONFIRMATION, "confirmed")
        packages = await _complete(session, plan, PackageState.NEEDS_CONFIRMATION)
        plan.confirmed_at, plan.confirmed_by = now, actor[:128]
        how = Step(told=_CONFIRMED, actor=actor, now=now, why=reason)
        await step(session, plan, PlanState.READY, how, **_extra(plan))
        moves = PackageMoves(session, actor, now)
        for package in packages:
            moves.move(package, Move.CONFIRM, sighting_of(package), why=reason, plan=str(plan.id))
        await moves.store()


async def discard_plan(runtime: Runtime, visible: Scope, plan_id: UUID, reason: str) -> None:
    """
    Give a plan up that is not being installed. Its packages stay approved.

    Args:
        runtime: The server.
        visible: Who does it.
        plan_id: The plan.
        reason: Why, one line.

    Raises:
        NotFoundError: No such plan, or not for the caller to see.
        ConflictError: It is being installed, or ended.
    """
    now, actor = runtime.clock.now(), visible.caller.actor
    async with runtime.database.write() as session:
        plan = await _plan(session, visible, plan_id)
        if plan.state == PlanState.DROPPED:
            return
        if plan.state == PlanState.INSTALLING:
            raise ConflictError("this plan is being installed: cancel its command, if it was not started yet")
        try:
            await drop(session, plan, actor, now, code=DISCARDED, why=reason)
        except IllegalMoveError as error:
            raise ConflictError(error.message) from None
        live = select(Command).where(Command.plan_id == plan.id, Command.state.in_(LIVE)).with_for_update()
        for command in (await session.scalars(live)).all():
            await cancel(session, actor, command, reason, now)


async def install_plan(runtime: Runtime, visible: Scope, plan_id: UUID, reason: str) -> None:
    """
    Order the installation of exactly what was planned.

    Args:
        runtime: The server.
        visible: Who orders it.
        plan_id: The plan.
        reason: Why, one line.

    Raises:
        NotFoundError: No such plan, or not for the caller to see.
        ConflictError: It is not ready, it is beyond routine and nobody approved it, a package of it was decided
            about since, or something else is being done to one of them.
    """
    now, actor = runtime.clock.now(), visible.caller.actor
    async with runtime.database.write() as session:
        plan = await _plan(session, visible, plan_id)
        if plan.state == PlanState.INSTALLING:
            return
        _check(plan, PlanState.READY, "installed")
        packages = await _complete(session, plan, PackageState.APPROVED)
        approval = await _needed_approval(session, plan, now)
        how = Step(told=_INSTALLING, actor=actor, now=now, why=reason)
        await _order(session, plan, CommandType.PACKAGES_UPGRADE, upgrade_params(plan), how, approval=approval)
        facts = {} if approval is None else {"approval": str(approval.row.signed_id)}
        await step(session, plan, PlanState.INSTALLING, how, **facts)
        moves = PackageMoves(session, actor, now)
        for package in packages:
            moves.move(package, Move.INSTALL, sighting_of(package), why=reason, plan=str(plan.id))
        await moves.store()


async def _plan(session: AsyncSession, visible: Scope, plan_id: UUID) -> Plan:
    await lock_agents(session, visible.select(Plan, Plan.agent_id).where(Plan.id == plan_id))
    found: Plan | None = (
        await session.scalars(visible.select(Plan).where(Plan.id == plan_id).with_for_update())
    ).one_or_none()
    if found is None:
        raise NotFoundError("there is no such plan")
    return found


def _check(plan: Plan, state: PlanState, done: str) -> None:
    if plan.state != state:
        words = plan.state.replace("_", " ")
        raise ConflictError(f"this plan is {words}: only one that is {state.replace('_', ' ')} can be {done}")


async def _complete(session: AsyncSession, plan: Plan, state: PackageState) -> Sequence[Package]:
    """The packages of a plan, all of them as the plan left them; raises `ConflictError` when one is not."""
    packages = {
        (package.name, package.arch): package
        for package in await packages_of_plan(session, plan.id)
        if package.state == state
    }
    requested = [(target.name, target.arch) for target in requested_of(plan)]
    missing = [name for name, arch in requested if (name, arch) not in packages]
    if missing:
        raise ConflictError(
            f"{missing[0]} is not what it was when this was planned: discard the plan and make a new one"
        )
    return [packages[key] for key in requested]


async def _needed_approval(session: AsyncSession, plan: Plan, now: datetime) -> LiveApproval | None:
    """The approval of a plan beyond routine; `ConflictError` instead of ordering what its machine must refuse."""
    if not plan.beyond_routine:
        return None
    found = await approval_of_plan(session, plan, now)
    if found is None:
        raise ConflictError(needed_approval(plan))
    return found


async def _order(
    session: AsyncSession,
    plan: Plan,
    kind: CommandType,
    params: PlanParams | UpgradeParams,
    how: Step,
    *,
    approval: LiveApproval | None = None,
) -> None:
    """Order what a step of a plan needs; the command has the actor and the reason of the step."""
    new = NewCommand(agent_id=plan.agent_id, type=kind, params=params, reason=how.why or "", plan_id=plan.id)
    if approval is not None:
        latest = min(approval.row.valid_until, how.now + timedelta(seconds=START_WITHIN_SECONDS))
        new = attrs.evolve(new, start_by=latest, approval=(approval.row.id, approval.index))
    command, made = await order(session, how.actor, new, how.now)
    if not made:
        raise ConflictError(f"{kind} {command.id} of the same packages has not ended: wait for it, or release it")


def _extra(plan: Plan) -> dict[str, object]:
    """What was agreed to, for the event."""
    extra = codec.structure(Transaction, plan.transaction).extra
    named = [f"{change.kind} {change.name} {change.after or change.before}" for change in extra[:MAX_NAMED]]
    return {"extra": named, "extra_count": len(extra), "beyond_routine": list(plan.beyond_routine)}
