"""
How a command changes: by the table of the core, with an event, and with what depends on it, in one transaction.

Nothing else sets the state of a command. A command that ended holds no subject any more, and its plan is told.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.command_queue import CommandEvent, CommandState, after, keeps_alarm, may_end_unanswered
from redflag_core.commands import CancelParams, CommandType, subjects_of
from redflag_core.statements import CommandResult
from redflag_server.agents.tables import Agent
from redflag_server.commands.tables import Command, CommandSubject
from redflag_server.events.recorder import record
from redflag_server.plans.follow import command_ended


@attrs.frozen(kw_only=True)
class _Told:
    """How an event is called, and what it says between the type of the command and the name of the machine."""

    kind: str
    words: str


_TOLD: Final[Mapping[CommandEvent, _Told]] = {
    CommandEvent.LEASE: _Told(kind="command.leased", words="was handed to"),
    CommandEvent.RETURN: _Told(kind="command.returned", words="waits again for"),
    CommandEvent.ACCEPT: _Told(kind="command.accepted", words="was accepted by"),
    CommandEvent.START: _Told(kind="command.started", words="was started on"),
    CommandEvent.COMPLETE: _Told(kind="command.completed", words="was carried out by"),
    CommandEvent.FAIL: _Told(kind="command.failed", words="failed on"),
    CommandEvent.INTERRUPT: _Told(kind="command.interrupted", words="was interrupted on"),
    CommandEvent.CANCEL: _Told(kind="command.cancelled", words="was cancelled for"),
    CommandEvent.EXPIRE: _Told(kind="command.expired", words="was not started in time on"),
    CommandEvent.DOUBT: _Told(kind="command.doubted", words="is asked about again on"),
}
RELEASED: Final = "released"
"""Code of a command that ended by the word of an operator."""

REVOKED: Final = "agent_revoked"
"""Code of a command, or of a plan, whose machine was revoked: nobody will answer."""

RESTORED: Final = "restored"
"""Code of a live command that no machine had accepted in the backup from which the server was restored."""

_RELEASED: Final = _Told(kind="command.released", words="was given up for")


@attrs.frozen(kw_only=True)
class Change:
    """
    Why something happens to a command.

    Attributes:
        actor: Who did it, for the event.
        now: Database time, aware UTC.
        code: Code of the reason, if there is one.
        why: One sentence for people, if there is more to say.
    """

    actor: str
    now: datetime
    code: str | None = None
    why: str | None = None


async def change(
    session: AsyncSession, command: Command, event: CommandEvent, reason: Change, **facts: Any
) -> None:
    """
    Move a command on.

    Args:
        session: The open write transaction.
        command: The command, locked.
        event: What happens.
        reason: Why.
        facts: Further facts for the event.

    Raises:
        IllegalMoveError: The table of the core has no such change.
    """
    before = CommandState(command.state)
    command.state, command.state_at = after(before, event), reason.now
    if not keeps_alarm(before, CommandState(command.state)):
        command.overdue_at = None
    command.archived_at = None  # a late result is news, whoever had put the command away
    told = _RELEASED if reason.code in (RELEASED, REVOKED) else _TOLD[event]
    await tell(session, command, kind=told.kind, words=told.words, reason=reason, before=before, **facts)


async def end(
    session: AsyncSession,
    command: Command,
    event: CommandEvent,
    reason: Change,
    *,
    result: CommandResult | None = None,
) -> None:
    """
    End a command: its subjects are free, its plan is told, and a cancellation that nobody has got is moot.

    Args:
        session: The open write transaction.
        command: The command, locked.
        event: How it ends.
        reason: Why; code and sentence stay with the command.
        result: What the executor signed, if it ended by that.

    Raises:
        IllegalMoveError: The table of the core has no such change.
    """
    command.code, command.detail = reason.code, reason.why
    command.finished_at = reason.now if result is None else command.finished_at
    command.leased_until = command.not_before = None
    await change(session, command, event, reason)
    await session.execute(delete(CommandSubject).where(CommandSubject.command_id == command.id))
    await _end_moot_cancel(session, command, reason.now)
    if command.plan_id is not None:
        await command_ended(session, command, result, reason.now)


async def tell(
    session: AsyncSession, command: Command, *, kind: str, words: str, reason: Change, **facts: Any
) -> None:
    """
    Record what happened to a command that did not change its state.

    Args:
        session: The open write transaction.
        command: The command.
        kind: Kind of the event.
        words: What it says between the type of the command and the name of the machine.
        reason: Why.
        facts: Further facts.
    """
    hostname = await session.scalar(select(Agent.hostname).where(Agent.id == command.agent_id))
    sentence = f"{command.type} {words} {hostname}"
    await record(
        session,
        at=reason.now,
        kind=kind,
        actor=reason.actor,
        message=f"{sentence}: {reason.why}" if reason.why else f"{sentence}.",
        organization_id=command.organization_id,
        agent_id=command.agent_id,
        code=reason.code,
        data={"command": str(command.id), "type": command.type, "plan": _text(command.plan_id), **facts},
    )


async def _end_moot_cancel(session: AsyncSession, command: Command, now: datetime) -> None:
    """What ended cannot be cancelled any more: a machine that was not told to yet need not be."""
    subjects = subjects_of(CommandType.COMMAND_CANCEL, CancelParams(str(command.id)))
    query = (
        select(Command)
        .join(CommandSubject, CommandSubject.command_id == Command.id)
        .where(CommandSubject.agent_id == command.agent_id, CommandSubject.subject.in_(subjects))
    )
    for cancel in (await session.scalars(query)).all():
        if may_end_unanswered(CommandState(cancel.state), delivered=cancel.delivered_at is not None):
            moot = Change(actor="server", now=now, code="too_late", why="the command that it was about ended")
            await end(session, cancel, CommandEvent.CANCEL, moot)


def _text(value: UUID | None) -> str | None:
    return None if value is None else str(value)
