"""What people and scripts do with commands: a transaction for each, behind the wall of their organization."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.commands import CommandType, HeartbeatParams, Params, ScanParams
from redflag_server.agents.locks import lock_agents
from redflag_server.agents.tables import Agent
from redflag_server.commands import queue
from redflag_server.commands.listing import command_item
from redflag_server.commands.schema import NewOrder, Ordered
from redflag_server.commands.tables import Command
from redflag_server.db.scope import Scope
from redflag_server.fields import uuid_of
from redflag_server.problems import InvalidRequestError, NotFoundError
from redflag_server.runtime import Runtime

HEARTBEAT_DEFAULT: Final = 300
"""Seconds of fast check-ins when nobody says for how long: while somebody looks at a machine."""

Act = Callable[[AsyncSession, str, Command, str, datetime], Awaitable[Any]]


async def order_command(runtime: Runtime, visible: Scope, new: NewOrder) -> Ordered:
    """
    Order what people may order by itself.

    Raises:
        NotFoundError: No such machine, or not for the caller to see.
        ConflictError: The machine does not take it now.
        InvalidRequestError: A field that the type does not have.
    """
    agent_id, params, now = uuid_of("agent_id", new.agent_id), _params(new), runtime.clock.now()
    async with runtime.database.write() as session:
        await lock_agents(session, [] if agent_id is None else [agent_id])
        machine = (await session.scalars(visible.select(Agent).where(Agent.id == agent_id))).one_or_none()
        if machine is None:
            raise NotFoundError("there is no such machine")
        wanted = queue.NewCommand(
            agent_id=machine.id, type=CommandType(new.type), params=params, reason=new.reason
        )
        command, made = await queue.order(session, visible.caller.actor, wanted, now)
        return Ordered(command_item(command, machine.hostname), made)


async def act(runtime: Runtime, visible: Scope, command_id: UUID, how: Act, reason: str) -> UUID:
    """
    Cancel, release, retry or archive a command.

    Args:
        runtime: The server.
        visible: Who does it.
        command_id: The command.
        how: One of the actions of `commands.queue`.
        reason: Why, for the event.

    Returns:
        The id of the command, or of the one that was ordered instead.

    Raises:
        NotFoundError: No such command, or not for the caller to see.
        ConflictError: Its state does not allow it.
    """
    now = runtime.clock.now()
    async with runtime.database.write() as session:
        await lock_agents(session, visible.select(Command, Command.agent_id).where(Command.id == command_id))
        query = visible.select(Command).where(Command.id == command_id).with_for_update()
        command = (await session.scalars(query)).one_or_none()
        if command is None:
            raise NotFoundError("there is no such command")
        made = await how(session, visible.caller.actor, command, reason, now)
        return made.id if isinstance(made, Command) else command_id


def _params(new: NewOrder) -> Params:
    if new.type == CommandType.SCAN_RUN:
        if new.seconds is not None:
            raise InvalidRequestError("seconds is for agent.heartbeat")
        return _scan(new.scanner)
    if new.scanner is not None:
        raise InvalidRequestError("scanner is for scan.run")
    return HeartbeatParams(HEARTBEAT_DEFAULT if new.seconds is None else new.seconds)


def _scan(scanner: str | None) -> ScanParams:
    try:
        return ScanParams(scanner)
    except ValueError:
        raise InvalidRequestError("scanner is not the name of a scanner: apt, for example") from None
