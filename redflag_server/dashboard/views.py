"""What the pages show, read with the statements of the caller."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

import attrs
from sqlalchemy import case, func
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.enrolment import AgentStatus
from redflag_core.lifecycle import Presence, presence
from redflag_core.patching import PlanState
from redflag_core.scanning import PENDING_STATES, PackageState
from redflag_server.agents.listing import NOT_COUNTED, AgentFilter, get_agent, lacks_security, list_agents
from redflag_server.agents.schema import AgentDetail, AgentItem
from redflag_server.agents.tables import Agent
from redflag_server.dashboard.command_views import SeenCommand, count_overdue, see_live_commands
from redflag_server.dashboard.package_views import PackageGroup, see_groups
from redflag_server.dashboard.plan_views import count_plans, see_open_plans
from redflag_server.dashboard.system_view import SystemView, see_system
from redflag_server.db.pages import PageOf
from redflag_server.db.scope import Scope
from redflag_server.events.listing import EventFilter, list_events
from redflag_server.events.schema import EventItem
from redflag_server.packages.tables import Package
from redflag_server.plans.schema import PlanItem

MACHINES: Final = 100
"""Machines on one page."""

EVENTS: Final = 20


class FleetPart(StrEnum):
    """Machines that a page can be narrowed down to."""

    WAITING = "waiting"
    REVOKED = "revoked"


_STANDING: Final = tuple(status for status in AgentStatus if status is not AgentStatus.REVOKED)

STATUSES_OF: Final[Mapping[FleetPart | None, Sequence[AgentStatus]]] = {
    None: _STANDING,
    FleetPart.WAITING: tuple(status for status in _STANDING if status is not AgentStatus.ACTIVE),
    FleetPart.REVOKED: (AgentStatus.REVOKED,),
}
"""Which machines belong to a part; without one, to the fleet. Revoked machines are history."""


@attrs.frozen
class Fleet:
    """
    The fleet.

    Attributes:
        machines: One page of them.
        next: Cursor of the next page, or None.
        presence: Number of machines by presence.
        waiting: Machines about which somebody must decide.
        revoked: Number of revoked machines.
        states: Number of packages in each open state, over the whole fleet.
        security: How many of them lack a security update.
        plans: Number of open plans in each state.
        overdue: Commands that take longer than they should.
    """

    machines: Sequence[AgentItem]
    next: str | None
    presence: Mapping[str, int]
    waiting: int
    revoked: int
    states: Mapping[str, int]
    security: int
    plans: Mapping[str, int]
    overdue: int

    @property
    def to_confirm(self) -> int:
        """Plans that somebody must confirm."""
        return self.plans.get(PlanState.NEEDS_CONFIRMATION, 0)

    @property
    def to_install(self) -> int:
        """Plans that are ready to be installed."""
        return self.plans.get(PlanState.READY, 0)

    @property
    def failed(self) -> int:
        """Updates that failed."""
        return self.states.get(PackageState.FAILED, 0)

    @property
    def total(self) -> int:
        """Machines of the fleet."""
        return sum(self.presence.values())

    @property
    def waiting_packages(self) -> int:
        """Packages that a plain upgrade would leave as they are."""
        return sum(self.states.get(state, 0) for state in PENDING_STATES if state is not PackageState.AVAILABLE)


@attrs.frozen
class Machine:
    """
    One machine.

    Attributes:
        detail: What is known of it.
        groups: Its open packages by state.
        current: Number of packages that are up to date.
        shows_current: Whether these are among the groups.
        events: What happened to it last.
        system: Its system and storage.
        plans: Its open plans.
        commands: Its commands that have not ended.
        plannable: Number of approved updates that are not in a plan.
    """

    detail: AgentDetail
    groups: Sequence[PackageGroup]
    current: int
    shows_current: bool
    events: Sequence[EventItem]
    system: SystemView
    plans: Sequence[PlanItem]
    commands: Sequence[SeenCommand]
    plannable: int

    @property
    def plan_ids(self) -> frozenset[UUID]:
        """Its open plans: their commands are shown with them."""
        return frozenset(plan.id for plan in self.plans)

    @property
    def is_moving(self) -> bool:
        """Whether the machine is at something that people watch."""
        return any(command.is_moving for command in self.commands)


async def see_fleet(
    session: AsyncSession, visible: Scope, wanted: AgentFilter, cursor: str | None, now: datetime
) -> Fleet:
    """The fleet, and one page of its machines."""
    page = await list_agents(session, visible, wanted, PageOf(cursor, MACHINES), now)
    columns = (Agent.status, Agent.last_seen_at, Agent.next_check_in_at)
    rows = (await session.execute(visible.select(Agent, *columns))).all()
    standing = [row for row in rows if row.status != AgentStatus.REVOKED]
    here = Counter(presence(last_seen=seen, next_due=due, now=now) for _, seen, due in standing)
    states, security = await _open_packages(session, visible)
    return Fleet(
        machines=page.items,
        next=page.next,
        presence={kind: here[kind] for kind in Presence},
        waiting=sum(row.status != AgentStatus.ACTIVE for row in standing),
        revoked=len(rows) - len(standing),
        states=states,
        security=security,
        plans=await count_plans(session, visible),
        overdue=await count_overdue(session, visible),
    )


async def see_machine(
    session: AsyncSession, visible: Scope, agent_id: UUID, *, show_current: bool, now: datetime
) -> Machine:
    """One machine; raises `NotFoundError`."""
    detail = await get_agent(session, visible, agent_id, now)
    groups, numbers = await see_groups(session, visible, agent_id, show_current=show_current)
    events = await list_events(
        session, visible, EventFilter(agent_id=agent_id), PageOf(limit=EVENTS, newest_first=True)
    )
    return Machine(
        detail=detail,
        groups=groups,
        current=numbers.get(PackageState.CURRENT, 0),
        shows_current=show_current,
        events=events.items,
        system=see_system(detail, now),
        plans=await see_open_plans(session, visible, agent_id),
        commands=await see_live_commands(session, visible, agent_id),
        plannable=await _plannable(session, visible, agent_id),
    )


async def _plannable(session: AsyncSession, visible: Scope, agent_id: UUID) -> int:
    query = visible.select(Package, func.count()).where(
        Package.agent_id == agent_id, Package.state == PackageState.APPROVED, Package.plan_id.is_(None)
    )
    return int((await session.execute(query)).scalar_one())


async def _open_packages(session: AsyncSession, visible: Scope) -> tuple[dict[str, int], int]:
    lacking = case((lacks_security(), 1), else_=0)
    query = (
        visible.select(Package, Package.state, func.count(), func.sum(lacking))
        .join(Agent, Agent.id == Package.agent_id)
        .where(Package.state.not_in(NOT_COUNTED), Agent.status != AgentStatus.REVOKED)
        .group_by(Package.state)
    )
    rows = (await session.execute(query)).all()
    return {state: number for state, number, _ in rows}, sum(security for _, _, security in rows)
