"""API of timelines: everything that happened to one machine, or to one package on it."""

from typing import Final
from uuid import UUID

from litestar import get
from litestar.params import FromPath

from redflag_server.agents.tables import Agent
from redflag_server.db.pages import DEFAULT_LIMIT, Page, PageOf
from redflag_server.db.scope import Scope
from redflag_server.events.listing import EventFilter, list_events
from redflag_server.events.schema import EVENT_EXAMPLE, EventItem
from redflag_server.injection import Injected
from redflag_server.openapi import answers
from redflag_server.operators import Cursor, Limit, OperatorController
from redflag_server.packages.tables import Package
from redflag_server.problems import NotFoundError
from redflag_server.runtime import Runtime

NEXT: Final = "AZNvPotafE2eLwobLD1OZA"


class TimelineController(OperatorController):
    """What happened, to one thing."""

    tags = ("Events",)

    @get(
        "/agents/{agent_id:uuid}/timeline",
        operation_id="GetAgentTimeline",
        summary="Get the timeline of a machine",
        description="Newest first: what happened to it, to its packages, plans and commands.",
        opt={"permission": "events:read"},
        responses=answers(Page[EventItem], Page([EVENT_EXAMPLE], NEXT), 404),
    )
    async def agent_timeline(
        self,
        agent_id: FromPath[UUID],
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        cursor: Cursor = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Page[EventItem]:
        """Everything that happened to a machine, newest first."""
        page = PageOf(cursor, limit, newest_first=True)
        async with runtime.database.read() as session:
            if await session.scalar(visible.select(Agent, Agent.id).where(Agent.id == agent_id)) is None:
                raise NotFoundError("there is no such machine")
            return await list_events(session, visible, EventFilter(agent_id=agent_id), page)

    @get(
        "/packages/{package_id:uuid}/timeline",
        operation_id="GetPackageTimeline",
        summary="Get the timeline of a package",
        description="Newest first: what was decided about it, and what became of it.",
        opt={"permission": "events:read"},
        responses=answers(Page[EventItem], Page([EVENT_EXAMPLE], NEXT), 404),
    )
    async def package_timeline(
        self,
        package_id: FromPath[UUID],
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        cursor: Cursor = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Page[EventItem]:
        """Everything that happened to a package, newest first."""
        page = PageOf(cursor, limit, newest_first=True)
        async with runtime.database.read() as session:
            if await session.scalar(visible.select(Package, Package.id).where(Package.id == package_id)) is None:
                raise NotFoundError("there is no such package")
            return await list_events(session, visible, EventFilter(package_id=package_id), page)
