"""API of commands, for people and scripts."""

from typing import Annotated, Final
from uuid import UUID

from litestar import get, post
from litestar.params import Body, FromPath, QueryParameter

from redflag_core.command_queue import CommandState
from redflag_core.commands import CommandType
from redflag_server.bodies import Strict
from redflag_server.commands import queue
from redflag_server.commands.listing import CommandFilter, get_command, list_commands
from redflag_server.commands.schema import (
    COMMAND_DETAIL_EXAMPLE,
    COMMAND_EXAMPLE,
    NEW_ORDER_EXAMPLE,
    ORDERED_EXAMPLE,
    CommandDetail,
    CommandItem,
    NewOrder,
    Ordered,
)
from redflag_server.commands.service import Act, act, order_command
from redflag_server.db.pages import DEFAULT_LIMIT, Page, PageOf
from redflag_server.db.scope import Scope
from redflag_server.fields import Reason
from redflag_server.injection import Injected, Parsed
from redflag_server.openapi import answers, example
from redflag_server.operators import Cursor, Limit, OperatorController
from redflag_server.runtime import Runtime

NEXT: Final = "AZNvPotafE2eLwobLD1OaA"
WHY: Final = Reason("ordered for the wrong machine")

ReasonBody = Annotated[Parsed[Reason], Body(examples=[example(WHY)])]


class CommandController(OperatorController):
    """Orders to machines."""

    path = "/commands"
    tags = ("Commands",)

    @get(
        operation_id="ListCommands",
        summary="List commands",
        description="Newest first. Archived ones are left out unless they are asked for.",
        opt={"permission": "commands:read"},
        responses=answers(Page[CommandItem], Page([COMMAND_EXAMPLE], NEXT)),
    )
    async def list_commands(
        self,
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        agent_id: Annotated[UUID | None, QueryParameter(description="Id of the machine.")] = None,
        states: Annotated[
            list[CommandState] | None, QueryParameter(name="state", description="Any of these; repeatable.")
        ] = None,
        kind: Annotated[
            CommandType | None, QueryParameter(name="type", description="What is ordered, `scan.run`.")
        ] = None,
        plan_id: Annotated[UUID | None, QueryParameter(description="Id of the plan.")] = None,
        live: Annotated[
            bool | None, QueryParameter(description="Only those that have not ended, or only those that have.")
        ] = None,
        overdue: Annotated[
            bool | None, QueryParameter(description="Only those that take too long, or only the others.")
        ] = None,
        archived: Annotated[bool, QueryParameter(description="Also those that were archived.")] = False,
        cursor: Cursor = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Page[CommandItem]:
        """List commands, newest first."""
        wanted = CommandFilter(
            agent_id=agent_id,
            states=states or (),
            kind=kind,
            plan_id=plan_id,
            live=live,
            overdue=overdue,
            archived=archived,
        )
        async with runtime.database.read() as session:
            return await list_commands(session, visible, wanted, PageOf(cursor, limit, newest_first=True))

    @get(
        "/{command_id:uuid}",
        operation_id="GetCommand",
        summary="Get a command",
        description="With what the machine's executor signed about it, to be verified by anybody.",
        opt={"permission": "commands:read"},
        responses=answers(CommandDetail, COMMAND_DETAIL_EXAMPLE, 404),
    )
    async def get_command(
        self, command_id: FromPath[UUID], visible: Injected[Scope], runtime: Injected[Runtime]
    ) -> CommandDetail:
        """Get a command, its result and its proofs."""
        async with runtime.database.read() as session:
            return await get_command(session, visible, command_id)

    @post(
        operation_id="OrderCommand",
        summary="Order a scan or fast check-ins",
        description="Updates are ordered through plans. The same order again makes no second command.",
        dto=Strict[NewOrder],
        return_dto=None,
        status_code=200,
        opt={"permission": "commands:write"},
        responses=answers(Ordered, ORDERED_EXAMPLE, 404, 409),
    )
    async def order_command(
        self,
        data: Annotated[Parsed[NewOrder], Body(examples=[example(NEW_ORDER_EXAMPLE)])],
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> Ordered:
        """Order something that changes nothing on the machine."""
        return await order_command(runtime, visible, data)

    @post(
        "/{command_id:uuid}/cancel",
        operation_id="CancelCommand",
        summary="Cancel a command",
        description="One that was handed out may have been started: then the machine is asked not to start it.",
        dto=Strict[Reason],
        return_dto=None,
        status_code=200,
        opt={"permission": "commands:write"},
        responses=answers(CommandDetail, COMMAND_DETAIL_EXAMPLE, 404, 409),
    )
    async def cancel_command(
        self,
        command_id: FromPath[UUID],
        data: ReasonBody,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> CommandDetail:
        """Take an order back, as far as that is possible."""
        return await _acted(runtime, visible, command_id, queue.cancel, data)

    @post(
        "/{command_id:uuid}/release",
        operation_id="ReleaseCommand",
        summary="Give up a command",
        description="For one that was handed out and that nobody answers for. A late result still counts.",
        dto=Strict[Reason],
        return_dto=None,
        status_code=200,
        opt={"permission": "commands:write"},
        responses=answers(CommandDetail, COMMAND_DETAIL_EXAMPLE, 404, 409),
    )
    async def release_command(
        self,
        command_id: FromPath[UUID],
        data: ReasonBody,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> CommandDetail:
        """Stop waiting for a machine's answer."""
        return await _acted(runtime, visible, command_id, queue.release, data)

    @post(
        "/{command_id:uuid}/retry",
        operation_id="RetryCommand",
        summary="Try a command again",
        description="Makes a new command, linked to this one. Updates are planned anew instead.",
        dto=Strict[Reason],
        return_dto=None,
        status_code=200,
        opt={"permission": "commands:write"},
        responses=answers(CommandDetail, COMMAND_DETAIL_EXAMPLE, 404, 409),
    )
    async def retry_command(
        self,
        command_id: FromPath[UUID],
        data: ReasonBody,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> CommandDetail:
        """Order the same again; the answer is the new command."""
        return await _acted(runtime, visible, command_id, queue.retry, data)

    @post(
        "/{command_id:uuid}/archive",
        operation_id="ArchiveCommand",
        summary="Archive a command",
        description="It is left out of lists. Nothing is deleted.",
        dto=Strict[Reason],
        return_dto=None,
        status_code=200,
        opt={"permission": "commands:write"},
        responses=answers(CommandDetail, COMMAND_DETAIL_EXAMPLE, 404, 409),
    )
    async def archive_command(
        self,
        command_id: FromPath[UUID],
        data: ReasonBody,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> CommandDetail:
        """Take a command that ended out of the lists."""
        return await _acted(runtime, visible, command_id, queue.archive, data)


async def _acted(runtime: Runtime, visible: Scope, command_id: UUID, how: Act, data: Reason) -> CommandDetail:
    shown = await act(runtime, visible, command_id, how, data.reason)
    async with runtime.database.read() as session:
        return await get_command(session, visible, shown)
