"""Commands of a server under test: ordered, acted upon and looked at, each in a transaction of its own."""

from typing import Any
from uuid import UUID

from sqlalchemy import select

from redflag_core.commands import CommandType, HeartbeatParams, Params, PlanParams, ScanParams
from redflag_core.patching import PackageTarget
from redflag_server.commands import queue
from redflag_server.commands.queue import NewCommand
from redflag_server.commands.tables import Command, CommandSubject
from redflag_server.events.tables import Event
from tests.helpers.server import Server

ACTOR = "user:alice"
HEARTBEAT = (CommandType.AGENT_HEARTBEAT, HeartbeatParams(60))
SCAN = (CommandType.SCAN_RUN, ScanParams())


def plan(*names: str) -> tuple[CommandType, Params]:
    """An order to plan the update of some packages."""
    targets = [PackageTarget(name=name, arch="amd64", installed="1.0", available="2.0") for name in names]
    return CommandType.PACKAGES_PLAN, PlanParams("apt", tuple(targets))


def new_command(agent_id: Any, what: tuple[CommandType, Params] = SCAN, **changes: Any) -> NewCommand:
    """What is to be ordered."""
    kind, params = what
    values = {"agent_id": UUID(str(agent_id)), "type": kind, "params": params, "reason": "a test", **changes}
    return NewCommand(**values)


async def order(server: Server, agent_id: Any, what: tuple[CommandType, Params] = SCAN, **changes: Any) -> UUID:
    """Order something new."""
    async with server.runtime.database.write() as session:
        now = server.clock.now()
        command, made = await queue.order(session, ACTOR, new_command(agent_id, what, **changes), now)
    assert made
    return command.id


async def act(server: Server, how: Any, command_id: Any, reason: str = "a test") -> Any:
    """Cancel, release, retry or archive."""
    async with server.runtime.database.write() as session:
        command = await session.get_one(Command, UUID(str(command_id)))
        return await how(session, ACTOR, command, reason, server.clock.now())


async def command_of(server: Server, command_id: Any) -> Command:
    """A command as it is now."""
    command: Command = await server.row(Command, Command.id == UUID(str(command_id)))
    return command


async def state_of(server: Server, command_id: Any) -> str:
    """Its state."""
    return (await command_of(server, command_id)).state


async def held_subjects(server: Server) -> set[str]:
    """What live commands are about."""
    return {row.subject for row in await server.rows(CommandSubject)}


async def history(server: Server, command_id: Any = None) -> list[str]:
    """Kinds of the events of a command, or of all, the oldest first."""
    query = select(Event).where(Event.kind.startswith("command.")).order_by(Event.id)
    async with server.runtime.database.read() as session:
        events = (await session.scalars(query)).all()
    about = [event for event in events if command_id is None or event.data.get("command") == str(command_id)]
    return [event.kind.removeprefix("command.") for event in about]
