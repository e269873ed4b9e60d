"""What becomes of a plan when its command ends, and of its packages when the machine was started anew."""

from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.statements import CommandResult
from redflag_server.commands.tables import Command


async def command_ended(
    session: AsyncSession, command: Command, result: CommandResult | None, now: datetime
) -> None:
    """
    Follow a command of a plan that ended.

    Args:
        session: The open write transaction, in which it ended.
        command: The command; it has a plan.
        result: What the executor signed; None when it ended without (``command.code`` says why).
        now: Database time, aware UTC.
    """


async def agent_rebooted(session: AsyncSession, agent_id: UUID, now: datetime) -> None:
    """
    Follow a machine that was started anew.

    Args:
        session: The open write transaction, in which that is noted.
        agent_id: The machine.
        now: Database time, aware UTC.
    """
