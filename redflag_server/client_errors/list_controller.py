"""API of errors, for people and scripts."""

from typing import Annotated, Final
from uuid import UUID

from litestar import get, post
from litestar.params import Body, FromPath, QueryParameter

from redflag_server.bodies import Strict
from redflag_server.client_errors.acting import delete_error, resolve_error
from redflag_server.client_errors.listing import ErrorFilter, count_kinds, get_error, list_errors
from redflag_server.client_errors.schema import (
    COUNTS_EXAMPLE,
    DELETED_EXAMPLE,
    ERROR_EXAMPLE,
    RESOLVED_EXAMPLE,
    Deleted,
    ErrorCounts,
    ErrorItem,
)
from redflag_server.client_errors.tables import ErrorSource
from redflag_server.db.pages import DEFAULT_LIMIT, Page, PageOf
from redflag_server.db.scope import Scope
from redflag_server.fields import Reason, moment_of
from redflag_server.injection import Injected, Parsed
from redflag_server.openapi import answers, example
from redflag_server.operators import MAX_FILTER, Cursor, Limit, OperatorController
from redflag_server.runtime import Runtime

NEXT: Final = "AZNvPotafE2eLwobLD1OZQ"
WHY: Final = Reason("the disk was full")

ReasonBody = Annotated[Parsed[Reason], Body(examples=[example(WHY)])]
Source = Annotated[ErrorSource | None, QueryParameter(description="Who met them: `agent` or `server`.")]
AgentId = Annotated[UUID | None, QueryParameter(description="Id of the machine.")]
Subsystem = Annotated[str | None, QueryParameter(max_length=128, description="Part of the agent or server.")]
Kind = Annotated[str | None, QueryParameter(name="type", max_length=128, description="Type, `ScanError`.")]
Since = Annotated[
    str | None, QueryParameter(max_length=40, description="Seen at this time or later, `2026-02-01T00:00:00Z`.")
]
Until = Annotated[str | None, QueryParameter(max_length=40, description="Seen first before this time.")]
Resolved = Annotated[
    bool | None, QueryParameter(description="Only those that are resolved, or only those that are not.")
]


class ClientErrorController(OperatorController):
    """What went wrong on machines, and on the server."""

    path = "/client-errors"
    tags = ("Errors",)

    @get(
        operation_id="ListClientErrors",
        summary="List errors",
        description="Newest kinds first; equal errors are counted in one. The server's own are for those who see "
        "the whole installation.",
        opt={"permission": "errors:read"},
        responses=answers(Page[ErrorItem], Page([ERROR_EXAMPLE], NEXT)),
    )
    async def list_client_errors(
        self,
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        source: Source = None,
        agent_id: AgentId = None,
        subsystem: Subsystem = None,
        kind: Kind = None,
        digest: Annotated[
            str | None, QueryParameter(max_length=64, description="What makes errors the same, on all machines.")
        ] = None,
        text: Annotated[
            str | None, QueryParameter(max_length=MAX_FILTER, description="Part of the message.")
        ] = None,
        since: Since = None,
        until: Until = None,
        resolved: Resolved = None,
        cursor: Cursor = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Page[ErrorItem]:
        """List errors."""
        wanted = ErrorFilter(
            source=source,
            agent_id=agent_id,
            subsystem=subsystem,
            kind=kind,
            digest=digest,
            text=text,
            since=moment_of("since", since),
            until=moment_of("until", until),
            resolved=resolved,
        )
        async with runtime.database.read() as session:
            return await list_errors(session, visible, wanted, PageOf(cursor, limit, newest_first=True))

    @get(
        "/counts",
        operation_id="CountClientErrors",
        summary="Count errors by subsystem and type",
        description="The most frequent first.",
        opt={"permission": "errors:read"},
        responses=answers(ErrorCounts, COUNTS_EXAMPLE),
    )
    async def count_client_errors(
        self,
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        source: Source = None,
        agent_id: AgentId = None,
        subsystem: Subsystem = None,
        kind: Kind = None,
        since: Since = None,
        until: Until = None,
        resolved: Resolved = None,
    ) -> ErrorCounts:
        """Count errors."""
        wanted = ErrorFilter(
            source=source,
            agent_id=agent_id,
            subsystem=subsystem,
            kind=kind,
            since=moment_of("since", since),
            until=moment_of("until", until),
            resolved=resolved,
        )
        async with runtime.database.read() as session:
            return await count_kinds(session, visible, wanted)

    @get(
        "/{error_id:uuid}",
        operation_id="GetClientError",
        summary="Get an error",
        opt={"permission": "errors:read"},
        responses=answers(ErrorItem, ERROR_EXAMPLE, 404),
    )
    async def get_client_error(
        self, error_id: FromPath[UUID], visible: Injected[Scope], runtime: Injected[Runtime]
    ) -> ErrorItem:
        """Get one kind of error, with its last sample."""
        async with runtime.database.read() as session:
            return await get_error(session, visible, error_id)

    @post(
        "/{error_id:uuid}/resolve",
        operation_id="ResolveClientError",
        summary="Take an error for resolved",
        description="Seen again after that, it is open again.",
        dto=Strict[Reason],
        return_dto=None,
        status_code=200,
        opt={"permission": "errors:write"},
        responses=answers(ErrorItem, RESOLVED_EXAMPLE, 404),
    )
    async def resolve_client_error(
        self, error_id: FromPath[UUID], data: ReasonBody, visible: Injected[Scope], runtime: Injected[Runtime]
    ) -> ErrorItem:
        """Take an error for resolved; the reason is the note that is kept with it."""
        return await resolve_error(runtime, visible, error_id, data.reason)

    @post(
        "/{error_id:uuid}/delete",
        operation_id="DeleteClientError",
        summary="Delete an error",
        description="Seen again, it is a new one.",
        dto=Strict[Reason],
        return_dto=None,
        status_code=200,
        opt={"permission": "errors:write"},
        responses=answers(Deleted, DELETED_EXAMPLE, 404),
    )
    async def delete_client_error(
        self, error_id: FromPath[UUID], data: ReasonBody, visible: Injected[Scope], runtime: Injected[Runtime]
    ) -> Deleted:
        """Delete one kind of error."""
        return await delete_error(runtime, visible, error_id, data.reason)
