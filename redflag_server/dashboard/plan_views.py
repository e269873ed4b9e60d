"""Plans on pages: what was asked, exactly what would be changed, why somebody must look, and what became of it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import attrs
from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.commands import CommandType
from redflag_core.encoding import b64encode
from redflag_core.patching import ChangeKind, PlanState
from redflag_core.patching.plan_states import ALLOWED, OPEN
from redflag_server.agents.tables import Agent
from redflag_server.commands.tables import Command, CommandStatement
from redflag_server.dashboard.command_views import SeenCommand, see_statements, seen_command
from redflag_server.dashboard.words import CHANGE_KINDS
from redflag_server.db.pages import PageOf
from redflag_server.db.scope import Scope
from redflag_server.plans.approving import is_never_approved
from redflag_server.plans.listing import PlanFilter, get_plan, list_plans
from redflag_server.plans.schema import PlanDetail, PlanItem, PlannedChange
from redflag_server.plans.tables import Plan

SHOWN: Final = 20
"""Open plans on a machine's page, and commands of one plan."""

LISTED: Final = 50
"""Plans on a page of plans. A state that is rare is looked for through all of them."""


@attrs.frozen
class SeenPlan:
    """
    One plan.

    Attributes:
        detail: What was asked for, what would be changed, and what became of it.
        commands: Its commands, oldest first.
        statements: What the executor signed about each of them, by the command's id.
        executor: Public key of the executor, in base64.
        executor_id: Id of that key.
    """

    detail: PlanDetail
    commands: Sequence[SeenCommand]
    statements: Mapping[UUID, Sequence[CommandStatement]]
    executor: str
    executor_id: str

    @property
    def changes(self) -> Mapping[ChangeKind, Sequence[PlannedChange]]:
        """What would be changed, the gravest kind first, and what nobody asked for first in each."""
        if self.detail.transaction is None:
            return {}
        in_order = sorted(self.detail.transaction.changes, key=lambda change: not change.extra)
        by_kind = {kind: [change for change in in_order if change.kind == kind] for kind in CHANGE_KINDS}
        return {ChangeKind(kind): found for kind, found in by_kind.items() if found}

    @property
    def latest(self) -> SeenCommand | None:
        """The command that it waits for, or that ended last."""
        return self.commands[-1] if self.commands else None

    @property
    def is_moving(self) -> bool:
        """Whether the machine is at it."""
        return self.detail.state in (PlanState.PLANNING, PlanState.INSTALLING)

    @property
    def result(self) -> SeenCommand | None:
        """The installation that ended last."""
        upgrades = [each for each in self.commands if each.row.type == CommandType.PACKAGES_UPGRADE]
        return upgrades[-1] if upgrades and not upgrades[-1].is_live else None

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for people."""
        return self.detail.state in (PlanState.NEEDS_CONFIRMATION, PlanState.READY)

    @property
    def is_hopeless(self) -> bool:
        """Whether its machine would refuse it, whoever approves it."""
        return self.is_waiting and is_never_approved(self.detail.beyond_routine)

    @property
    def needs_approval(self) -> bool:
        """Whether an operator must approve it, and none has."""
        beyond = bool(self.detail.beyond_routine) and self.detail.approval is None
        return self.is_waiting and beyond and not self.is_hopeless

    @property
    def offers(self) -> Sequence[str]:
        """What can be done with it now, of `words.PLAN_ACTIONS`."""
        state = self.detail.state
        wanted = {
            "confirm": state is PlanState.NEEDS_CONFIRMATION and not self.is_hopeless,
            "install": state is PlanState.READY and not self.is_hopeless and not self.needs_approval,
            "discard": (state, PlanState.DROPPED) in ALLOWED and state is not PlanState.INSTALLING,
        }
        return [name for name, offered in wanted.items() if offered]


async def count_plans(session: AsyncSession, visible: Scope) -> Mapping[str, int]:
    """Number of open plans in each state; goes through the index of all plans."""
    query = visible.select(Plan, Plan.state, func.count()).where(Plan.state.in_(OPEN)).group_by(Plan.state)
    return dict((await session.execute(query)).tuples().all())


async def see_open_plans(session: AsyncSession, visible: Scope, agent_id: UUID) -> Sequence[PlanItem]:
    """The first `SHOWN` open plans of a machine, newest first; by index."""
    wanted = PlanFilter(agent_id, sorted(OPEN))
    return (await list_plans(session, visible, wanted, PageOf(limit=SHOWN, newest_first=True))).items


async def see_plan(session: AsyncSession, visible: Scope, plan_id: UUID, now: datetime) -> SeenPlan:
    """
    One plan.

    Raises:
        NotFoundError: No such plan, or not for the caller to see.
    """
    detail = await get_plan(session, visible, plan_id, now)
    key = visible.select(Agent, Agent.executor_key, Agent.executor_key_id).where(Agent.id == detail.agent_id)
    executor, executor_id = (await session.execute(key)).one()
    query = visible.select(Command).where(Command.plan_id == plan_id).order_by(Command.id.desc()).limit(SHOWN)
    commands = list(reversed((await session.scalars(query)).all()))
    return SeenPlan(
        detail=detail,
        commands=[seen_command(command, detail.hostname) for command in commands],
        statements=await see_statements(session, visible, [command.id for command in commands]),
        executor=b64encode(executor),
        executor_id=executor_id,
    )
