"""The pages of commands."""

from collections.abc import Mapping
from typing import Annotated, Any, Final
from uuid import UUID

from litestar import Response, get, post
from litestar.params import FromPath, QueryParameter

from redflag_core.command_queue import CommandState
from redflag_core.errors import RedFlagError
from redflag_server.commands import queue
from redflag_server.commands.service import Act, act
from redflag_server.dashboard.command_views import WantedCommands, see_command, see_commands, see_statement
from redflag_server.dashboard.history_views import see_hostname, see_news
from redflag_server.dashboard.pages import (
    AnyRequest,
    Done,
    Mistake,
    Page,
    PageController,
    one_of,
    own_url,
    read_form,
    whole_or_part,
)
from redflag_server.dashboard.rendering import redirect, render
from redflag_server.db.scope import Scope
from redflag_server.injection import Injected
from redflag_server.operators import MAX_FILTER, Cursor
from redflag_server.problems import NotFoundError
from redflag_server.runtime import Runtime

_ACTIONS: Final[Mapping[str, Act]] = {
    "cancel": queue.cancel,
    "release": queue.release,
    "retry": queue.retry,
    "archive": queue.archive,
}


class CommandPageController(PageController):
    """What machines were told to do."""

    path = "/commands"

    @get(opt={"page": True, "permission": "commands:read"})
    async def commands(
        self,
        request: AnyRequest,
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        agent_id: Annotated[UUID | None, QueryParameter()] = None,
        chosen: Annotated[str | None, QueryParameter(name="state", max_length=MAX_FILTER)] = None,
        overdue: Annotated[bool, QueryParameter()] = False,
        cursor: Cursor = None,
    ) -> Page:
        """All commands, those that have not ended first."""
        wanted = WantedCommands(agent_id, one_of(CommandState, "state", chosen), overdue)
        async with runtime.database.read() as session:
            hostname = None if agent_id is None else await see_hostname(session, visible, agent_id)
            page = await see_commands(session, visible, wanted, cursor)
        context = {
            "page": page,
            "wanted": wanted,
            "hostname": hostname,
            "is_first": cursor is None,
            "url": own_url(request),
        }
        return render(request, whole_or_part(request, "commands"), context)

    @get("/{command_id:uuid}", opt={"page": True, "permission": "commands:read"})
    async def command(
        self,
        request: AnyRequest,
        command_id: FromPath[UUID],
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        done: Done = False,
    ) -> Page:
        """One command."""
        return await _command_page(request, runtime, visible, command_id, done=done)

    @get("/{command_id:uuid}/statements/{statement_id:uuid}", opt={"page": True, "permission": "commands:read"})
    async def statement(
        self,
        command_id: FromPath[UUID],
        statement_id: FromPath[UUID],
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> Response[bytes]:
        """What the executor signed, byte for byte."""
        async with runtime.database.read() as session:
            statement = await see_statement(session, visible, command_id, statement_id)
        name = f"{statement.kind}-{command_id}.json"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(statement.envelope, media_type="application/json", headers=headers)

    @post("/{command_id:uuid}/{action:str}", opt={"page": True, "permission": "commands:write"})
    async def act(
        self,
        request: AnyRequest,
        command_id: FromPath[UUID],
        action: FromPath[str],
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> Page:
        """Cancel, release, retry or archive a command; show it again, or the one that was ordered instead."""
        if action not in _ACTIONS:
            raise NotFoundError("there is no such page")
        form = await read_form(request)
        try:
            shown = await act(runtime, visible, command_id, _ACTIONS[action], form.reason)
        except RedFlagError as error:
            mistake = form.mistake(action, error)
            return await _command_page(request, runtime, visible, command_id, mistake=mistake)
        return redirect(request, f"/commands/{shown}?done=true")


async def _command_page(
    request: AnyRequest,
    runtime: Runtime,
    visible: Scope,
    command_id: UUID,
    *,
    done: bool = False,
    mistake: Mistake | None = None,
) -> Page:
    path = f"{runtime.settings.prefix}/commands/{command_id}"
    async with runtime.database.read() as session:
        page = await see_command(session, visible, command_id)
        row, now = page.command.row, runtime.clock.now()
        news = await see_news(session, visible, row.agent_id, now, since=row.state_at) if done else None
    context: dict[str, Any] = {
        "page": page,
        "offers": page.command.offers if visible.caller.may("commands:write") else (),
        "done": news,
        "mistake": mistake,
        "path": path,
        "url": path if mistake else own_url(request),
    }
    return render(request, whole_or_part(request, "command"), context, status=mistake.status if mistake else 200)
