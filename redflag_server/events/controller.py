"""API of events, for people and scripts."""

from typing import Annotated, Final
from uuid import UUID

from litestar import get
from litestar.params import QueryParameter

from redflag_core.encoding import MAX_INTEGER
from redflag_server.db.pages import DEFAULT_LIMIT, Page, PageOf
from redflag_server.db.scope import Scope
from redflag_server.events.listing import EventFilter, list_events, list_events_after
from redflag_server.events.schema import EVENT_EXAMPLE, EventItem
from redflag_server.injection import Injected
from redflag_server.openapi import answers
from redflag_server.operators import Cursor, Limit, OperatorController
from redflag_server.runtime import Runtime

NEXT: Final = "AZNvPotafE2eLwobLD1OZA"


class EventController(OperatorController):
    """What happened."""

    path = "/events"
    tags = ("Events",)

    @get(
        operation_id="ListEvents",
        summary="List events",
        description="Newest first. With `after_position`, oldest first: what follows that position in the history "
        "of one organization. Whoever follows events asks again with the position of the last one.",
        opt={"permission": "events:read"},
        responses=answers(Page[EventItem], Page([EVENT_EXAMPLE], NEXT)),
    )
    async def list_events(
        self,
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        kind: Annotated[str | None, QueryParameter(max_length=128, description="Kind, `agent.approved`.")] = None,
        agent_id: Annotated[UUID | None, QueryParameter(description="Id of the machine.")] = None,
        package_id: Annotated[UUID | None, QueryParameter(description="Id of the package.")] = None,
        code: Annotated[str | None, QueryParameter(max_length=64, description="Code of a refusal.")] = None,
        organization_id: Annotated[UUID | None, QueryParameter(description="Id of the organization.")] = None,
        after_position: Annotated[
            int | None, QueryParameter(ge=0, le=MAX_INTEGER, description="Only what follows it; 0 for all.")
        ] = None,
        cursor: Cursor = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Page[EventItem]:
        """List events, newest first."""
        wanted = EventFilter(kind, agent_id, package_id, code, organization_id)
        async with runtime.database.read() as session:
            if after_position is not None:
                return await list_events_after(session, visible, wanted, after_position, limit)
            return await list_events(session, visible, wanted, PageOf(cursor, limit, newest_first=True))
