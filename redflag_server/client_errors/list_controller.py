"""API of errors, for people and scripts."""

from typing import Annotated, Final
from uuid import UUID

from litestar import get
from litestar.params import QueryParameter

from redflag_server.client_errors.listing import list_errors
from redflag_server.client_errors.schema import ERROR_EXAMPLE, ErrorItem
from redflag_server.db.pages import DEFAULT_LIMIT, Page, PageOf
from redflag_server.db.scope import Scope
from redflag_server.injection import Injected
from redflag_server.openapi import answers
from redflag_server.operators import Cursor, Limit, OperatorController
from redflag_server.runtime import Runtime

NEXT: Final = "AZNvPotafE2eLwobLD1OZQ"


class ClientErrorController(OperatorController):
    """What went wrong on machines."""

    path = "/client-errors"
    tags = ("Errors",)

    @get(
        operation_id="ListClientErrors",
        summary="List errors of machines",
        description="Newest kinds first; equal errors of a machine are counted in one.",
        opt={"permission": "errors:read"},
        responses=answers(Page[ErrorItem], Page([ERROR_EXAMPLE], NEXT)),
    )
    async def list_client_errors(
        self,
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        agent_id: Annotated[UUID | None, QueryParameter(description="Id of the machine.")] = None,
        subsystem: Annotated[str | None, QueryParameter(max_length=128, description="Part of the agent.")] = None,
        cursor: Cursor = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Page[ErrorItem]:
        """List errors."""
        page = PageOf(cursor, limit, newest_first=True)
        async with runtime.database.read() as session:
            return await list_errors(session, visible, agent_id, subsystem, page)
