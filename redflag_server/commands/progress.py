"""How far a machine is with a command: for people who watch. Replaced by the next, and lost without harm."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core import codec
from redflag_core.command_queue import EVENTS, LIVE, CommandEvent, CommandState
from redflag_core.errors import WrongRecipientError
from redflag_core.messages import Accepted, Phase, Progress
from redflag_server.checkin.authentication import VerifiedAgent
from redflag_server.checkin.claims import recheck
from redflag_server.commands.changes import Change, change
from redflag_server.commands.tables import Command
from redflag_server.runtime import Runtime


async def accept_progress(runtime: Runtime, sender: VerifiedAgent, body: Progress) -> Accepted:
    """
    Store how far a command is, if that is news.

    A message that was overtaken, or is about a command that ended, was never handed out or is not known, changes
    nothing.

    Args:
        runtime: The server.
        sender: The verified agent.
        body: How far it is.

    Raises:
        WrongRecipientError: The command is another agent's.
    """
    async with runtime.database.write() as session:
        await recheck(session, sender.entry)
        query = select(Command).where(Command.id == UUID(body.cmd_id)).with_for_update()
        command = (await session.scalars(query)).one_or_none()
        if command is not None and command.agent_id != sender.entry.agent_id:
            raise WrongRecipientError("the progress is of a command of another agent")
        if command is not None and _is_news(command, body):
            await _store(session, command, body, runtime.clock.now())
    return Accepted()


def _is_news(command: Command, body: Progress) -> bool:
    if CommandState(command.state) not in LIVE or command.delivered_at is None:
        return False
    return command.progress is None or command.progress["number"] < body.number


async def _store(session: AsyncSession, command: Command, body: Progress, now: datetime) -> None:
    told = codec.unstructure(body)
    command.progress = {
        "at": int(now.timestamp()),
        **{name: told[name] for name in ("number", "phase", "doing", "percent", "lines")},
    }
    state = CommandState(command.state)
    if body.phase is Phase.RUNNING and state in EVENTS[CommandEvent.START].origins:
        command.started_at = now
        why = Change(actor=f"agent:{command.agent_id}", now=now)
        await change(session, command, CommandEvent.START, why)
