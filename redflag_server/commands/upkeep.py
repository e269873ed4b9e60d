"""
What time does to commands: leases that run out, orders that come too late, and alarms.

Commands and statements themselves are history. They are archived by people, and never deleted.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.command_queue import (
    LIVE,
    LONGEST_WAIT,
    CommandEvent,
    CommandState,
    is_overdue,
    may_end_unanswered,
)
from redflag_server.agents.locks import lock_agents
from redflag_server.commands.changes import Change, change, tell
from redflag_server.commands.leasing import SERVER, expire
from redflag_server.commands.tables import Command
from redflag_server.runtime import Runtime

AT_ONCE: Final = 200
"""Commands in one transaction: writers take turns, and check-ins wait for theirs."""

Look = Callable[[AsyncSession, Command, datetime], Awaitable[None]]


async def lapse_leases(runtime: Runtime) -> None:
    """Commands that nobody answered for are waiting again; so are those that a clock that was ahead gave away."""
    now = runtime.clock.now()
    over = or_(Command.leased_until <= now, Command.leased_until > now + LONGEST_WAIT)
    await _each(runtime, (Command.state == CommandState.LEASED, over), _lapse)


async def expire_commands(runtime: Runtime) -> None:
    """Commands that no machine was given in time end."""
    late = (Command.state == CommandState.PENDING, Command.start_by < runtime.clock.now())
    await _each(runtime, (*late, Command.delivered_at.is_(None)), _expire)


async def raise_alarms(runtime: Runtime) -> None:
    """Commands that take too long are marked, once in each state."""
    await _each(runtime, (Command.state.in_(LIVE), Command.overdue_at.is_(None)), _raise_alarm)


async def _each(runtime: Runtime, conditions: tuple[Any, ...], look: Look) -> None:
    """Look at each command that fits, some at a time, in the order of their ids."""
    last: UUID | None = None
    while True:
        query = select(Command.id, Command.agent_id).where(*conditions).order_by(Command.id).limit(AT_ONCE)
        async with runtime.database.write() as session:
            found = (await session.execute(query if last is None else query.where(Command.id > last))).all()
            await lock_agents(session, {row.agent_id for row in found})
            still = select(Command).where(*conditions, Command.id.in_([row.id for row in found]))
            for command in (await session.scalars(still.order_by(Command.id).with_for_update())).all():
                await look(session, command, runtime.clock.now())
        if len(found) < AT_ONCE:
            return
        last = found[-1].id


async def _lapse(session: AsyncSession, command: Command, now: datetime) -> None:
    command.leased_until = None
    why = Change(actor=SERVER, now=now, code="lease_lapsed", why="the machine did not answer")
    await change(session, command, CommandEvent.RETURN, why)


async def _expire(session: AsyncSession, command: Command, now: datetime) -> None:
    if may_end_unanswered(CommandState(command.state), delivered=command.delivered_at is not None):
        await expire(session, command, now)


async def _raise_alarm(session: AsyncSession, command: Command, now: datetime) -> None:
    state, times = CommandState(command.state), {"created_at": command.created_at, "state_at": command.state_at}
    if is_overdue(command.type, state, **times, now=now):
        command.overdue_at = now
        why = Change(actor=SERVER, now=now, code="overdue")
        words = f"is {state} for longer than it should be on"
        await tell(session, command, kind="command.overdue", words=words, reason=why)
