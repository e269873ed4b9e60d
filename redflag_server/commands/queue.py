"""
The queue: ordering, cancelling, releasing, trying again, archiving. Each in the caller's write transaction.

What may be done in which state is the core's table. At most one live command of an agent is about each subject:
the database has one row for each live subject, and refuses a second.
"""

from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from uuid import UUID

import attrs
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from redflag_core.command_queue import (
    LIVE,
    MAX_LIVE,
    ORDERED_BY_PEOPLE,
    START_WITHIN_SECONDS,
    CommandEvent,
    CommandState,
    may_end_unanswered,
    may_release,
    may_retry,
)
from redflag_core.commands import (
    BYPASSING,
    CancelParams,
    CommandType,
    Params,
    command_digest,
    dump_params,
    parse_params,
    subjects_of,
)
from redflag_core.enrolment import AgentStatus
from redflag_core.patching.plan_states import OPEN
from redflag_server.agents.locks import lock_agents
from redflag_server.agents.tables import Agent
from redflag_server.commands.changes import RELEASED, REVOKED, Change, end, tell
from redflag_server.commands.tables import Command, CommandSubject
from redflag_server.db.duplicates import is_duplicate
from redflag_server.db.engine import wake_after_commit
from redflag_server.plans.changes import drop
from redflag_server.plans.tables import Plan
from redflag_server.problems import ConflictError, NotFoundError


@attrs.frozen(kw_only=True)
class NewCommand:
    """
    What is to be ordered.

    Attributes:
        agent_id: The machine.
        type: What it is to do.
        params: With what.
        reason: Why, for people: one line.
        start_by: Until when it may be started; None for the longest that makes sense.
        retry_of: The command that it is tried again for.
        plan_id: The plan that it belongs to.
        approval: The approval that goes with it, and which of its leaves this is; None for what needs none.
    """

    agent_id: UUID
    type: CommandType
    params: Params
    reason: str
    start_by: datetime | None = None
    retry_of: UUID | None = None
    plan_id: UUID | None = None
    approval: tuple[UUID, int] | None = None


async def order(session: AsyncSession, actor: str, new: NewCommand, now: datetime) -> tuple[Command, bool]:
    """
    Order something.

    Args:
        session: The open write transaction.
        actor: Who orders it, for the event.
        new: What.
        now: Database time, aware UTC.

    Returns:
        The command, and whether it was made now. A live one of the same type about exactly the same is given back
        instead of a second.

    Raises:
        NotFoundError: There is no such machine.
        ConflictError: Something else is being done to what it is about; the machine is revoked; or too much waits.
        MalformedError: The parameters are too large for one command.
    """
    params, subjects = dump_params(new.params), subjects_of(new.type, new.params)
    await lock_agents(session, [new.agent_id])
    machine = await _machine(session, new.agent_id)
    known = await _live_about(session, new, subjects)
    if known is not None:
        return known, False
    if await _live(session, new.agent_id) >= MAX_LIVE:
        raise ConflictError(f"{machine.hostname} has {MAX_LIVE} commands that did not end: cancel some")
    command = _row(new, params, machine.organization_id, actor, now)
    try:
        async with session.begin_nested():
            await _store(session, command, subjects)
    except IntegrityError as error:
        if not is_duplicate(error):
            raise
        known = await _live_about(session, new, subjects)  # another transaction was a moment earlier
        if known is None:
            raise
        return known, False
    retry = None if new.retry_of is None else str(new.retry_of)
    reason = Change(actor=actor, now=now, why=new.reason)
    await tell(session, command, kind="command.ordered", words="was ordered for", reason=reason, retry_of=retry)
    wake_after_commit(session, new.agent_id)
    return command, True


async def cancel(session: AsyncSession, actor: str, command: Command, reason: str, now: datetime) -> None:
    """
    Cancel a command. One that was handed out may have been started: then its machine is asked not to.

    Args:
        session: The open write transaction.
        actor: Who cancels it.
        command: The command, locked.
        reason: Why.
        now: Database time, aware UTC.

    Raises:
        ConflictError: It ended, or it is of a type that is done as soon as it is accepted.
    """
    state, why = CommandState(command.state), Change(actor=actor, now=now, code="cancelled", why=reason)
    if state is CommandState.CANCELLED:
        return
    if state not in LIVE:
        raise ConflictError(f"this command is {state}: what ended cannot be cancelled")
    if may_end_unanswered(state, delivered=command.delivered_at is not None):
        await end(session, command, CommandEvent.CANCEL, why)
        return
    if command.type in BYPASSING:
        raise ConflictError(f"{command.type} was handed out and is done as soon as it arrives: too late to cancel")
    asked = NewCommand(
        agent_id=command.agent_id,
        type=CommandType.COMMAND_CANCEL,
        params=CancelParams(str(command.id)),
        reason=reason,
    )
    _, made = await order(session, actor, asked, now)
    if made:
        command.cancel_requested_at = now
        why = attrs.evolve(why, code=None)
        words = "is to be cancelled, if it was not started, on"
        await tell(session, command, kind="command.cancel_requested", words=words, reason=why)


async def release(session: AsyncSession, actor: str, command: Command, reason: str, now: datetime) -> None:
    """
    End, by the word of an operator, a command that was handed out and that nobody answers for.

    The machine may have carried it out, or may still do so: a late result counts.

    Args:
        session: The open write transaction.
        actor: Whose word it is.
        command: The command, locked.
        reason: Why.
        now: Database time, aware UTC.

    Raises:
        ConflictError: It ended, or was never handed out.
    """
    state = CommandState(command.state)
    if (state, command.code) == (CommandState.CANCELLED, RELEASED):
        return
    if not may_release(state, delivered=command.delivered_at is not None):
        hint = "cancel it" if state in LIVE else f"it is {state}"
        raise ConflictError(f"only a command that was handed out and has not ended can be released: {hint}")
    await end(session, command, CommandEvent.CANCEL, Change(actor=actor, now=now, code=RELEASED, why=reason))


async def end_all(session: AsyncSession, actor: str, agent_id: UUID, reason: str, now: datetime) -> None:
    """
    End all that waits for a machine that was revoked: its commands, and its plans that nobody ordered yet.

    Args:
        session: The open write transaction.
        actor: Who revoked it.
        agent_id: The machine.
        reason: Why.
        now: Database time, aware UTC.
    """
    live = select(Command).where(Command.agent_id == agent_id, Command.state.in_(LIVE)).order_by(Command.id)
    for command in (await session.scalars(live.with_for_update())).all():
        if command.state in LIVE:  # the end of one may be that of its cancellation
            why = Change(actor=actor, now=now, code=REVOKED, why=reason)
            await end(session, command, CommandEvent.CANCEL, why)
    waiting = select(Plan).where(Plan.agent_id == agent_id, Plan.state.in_(OPEN)).order_by(Plan.id)
    for plan in (await session.scalars(waiting.with_for_update())).all():
        await drop(session, plan, actor, now, code=REVOKED, why=reason)


async def retry(session: AsyncSession, actor: str, command: Command, reason: str, now: datetime) -> Command:
    """
    Order the same again, linked to the command that did not work.

    Args:
        session: The open write transaction.
        actor: Who orders it.
        command: The command that ended.
        reason: Why.
        now: Database time, aware UTC.

    Returns:
        The new command, or the one that does the same already.

    Raises:
        ConflictError: It has not ended, it worked, or it belongs to a plan: what was planned may not hold now.
    """
    state = CommandState(command.state)
    if not may_retry(state):
        raise ConflictError(f"this command is {state}: only one that ended without success can be tried again")
    kind = CommandType(command.type)
    if command.plan_id is not None or kind not in ORDERED_BY_PEOPLE:
        raise ConflictError(f"{kind} is not tried again by itself: plan its packages anew")
    again = NewCommand(
        agent_id=command.agent_id,
        type=kind,
        params=parse_params(kind, command.params),
        reason=reason,
        retry_of=command.id,
    )
    made, _ = await order(session, actor, again, now)
    return made


async def archive(session: AsyncSession, actor: str, command: Command, reason: str, now: datetime) -> None:
    """
    Take a command that ended out of the lists. Nothing is deleted.

    Args:
        session: The open write transaction.
        actor: Who does it.
        command: The command, locked.
        reason: Why.
        now: Database time, aware UTC.

    Raises:
        ConflictError: It has not ended.
    """
    if command.archived_at is not None:
        return
    if CommandState(command.state) in LIVE:
        raise ConflictError(f"this command is {command.state}: only what ended can be archived")
    command.archived_at = now
    why = Change(actor=actor, now=now, why=reason)
    await tell(session, command, kind="command.archived", words="was archived for", reason=why)


async def _machine(session: AsyncSession, agent_id: UUID) -> Agent:
    machine = await session.get(Agent, agent_id)
    if machine is None:
        raise NotFoundError("there is no such machine")
    if machine.status == AgentStatus.REVOKED:
        raise ConflictError(f"{machine.hostname} is revoked: nothing can be ordered")
    return machine


async def _live_about(session: AsyncSession, new: NewCommand, subjects: AbstractSet[str]) -> Command | None:
    """The live command that is this one already; raises `ConflictError` for one that is in its way."""
    at_stake = select(CommandSubject.command_id).where(
        CommandSubject.agent_id == new.agent_id, CommandSubject.subject.in_(subjects)
    )
    query = select(Command).where(Command.id.in_(at_stake)).order_by(Command.id)
    for command in (await session.scalars(query)).all():
        held = select(CommandSubject.subject).where(CommandSubject.command_id == command.id)
        about = set((await session.scalars(held)).all())
        if command.type == new.type and about == subjects:
            return command
        shared = min(about & subjects)
        raise ConflictError(
            f"{command.type} {command.id} is about {shared} and is {command.state}: wait for it, or cancel it"
        )
    return None


async def _live(session: AsyncSession, agent_id: UUID) -> int:
    query = select(func.count()).where(Command.agent_id == agent_id, Command.state.in_(LIVE))
    return (await session.scalars(query)).one()


def _row(new: NewCommand, params: bytes, organization_id: UUID, actor: str, now: datetime) -> Command:
    command_id = uuid7()
    approval_id, approval_index = new.approval or (None, None)
    return Command(
        id=command_id,
        organization_id=organization_id,
        agent_id=new.agent_id,
        type=new.type,
        params=params,
        digest=command_digest(str(command_id), new.type, params),
        state=CommandState.PENDING,
        state_at=now,
        created_at=now,
        created_by=actor[:128],
        reason=new.reason,
        retry_of=new.retry_of,
        plan_id=new.plan_id,
        approval_id=approval_id,
        approval_index=approval_index,
        start_by=new.start_by or now + timedelta(seconds=START_WITHIN_SECONDS),
    )


async def _store(session: AsyncSession, command: Command, subjects: AbstractSet[str]) -> None:
    session.add(command)
    await session.flush()
    session.add_all(
        CommandSubject(
            organization_id=command.organization_id,
            agent_id=command.agent_id,
            subject=subject,
            command_id=command.id,
        )
        for subject in sorted(subjects)
    )
    await session.flush()
