"""Commands as operators see them."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer

from redflag_core.command_queue import LIVE, CommandState
from redflag_core.commands import MAX_PARAMS
from redflag_core.encoding import b64encode, parse_json
from redflag_server.agents.tables import Agent
from redflag_server.commands.schema import CommandDetail, CommandItem, StatementItem
from redflag_server.commands.tables import Command, CommandStatement
from redflag_server.db.pages import Page, PageOf, fetch_page
from redflag_server.db.scope import Scope
from redflag_server.problems import NotFoundError

MAX_SHOWN: Final = 20
"""Statements of a command that are shown: an answer of megabytes, when each is a plan of thousands of changes."""


@attrs.frozen
class CommandFilter:
    """
    Which commands.

    Attributes:
        agent_id: Of this machine; None for all.
        states: In any of these; empty for all.
        kind: Of this type; None for all.
        plan_id: Of this plan; None for all.
        live: True for those that have not ended, False for those that have, None for both.
        overdue: True for those that take too long, False for the others, None for both.
        archived: Also those that were archived.
    """

    agent_id: UUID | None = None
    states: Sequence[CommandState] = ()
    kind: str | None = None
    plan_id: UUID | None = None
    live: bool | None = None
    overdue: bool | None = None
    archived: bool = False


async def list_commands(
    session: AsyncSession, visible: Scope, wanted: CommandFilter, page: PageOf
) -> Page[CommandItem]:
    """One page of the commands that the caller may see."""
    query = visible.select(Command, Command, Agent.hostname).join(Agent, Agent.id == Command.agent_id)
    query = query.where(*_conditions(wanted)).options(defer(Command.result))
    rows, cursor = await fetch_page(session, query, Command, page)
    return Page([command_item(command, hostname) for command, hostname in rows], cursor)


async def get_command(session: AsyncSession, visible: Scope, command_id: UUID) -> CommandDetail:
    """
    One command, with what the machine's executor signed about it.

    Raises:
        NotFoundError: No such command, or not for the caller to see.
    """
    query = visible.select(Command, Command, Agent.hostname, Agent.executor_key)
    row: Row[Any] | None = (
        await session.execute(query.join(Agent, Agent.id == Command.agent_id).where(Command.id == command_id))
    ).one_or_none()
    if row is None:
        raise NotFoundError("there is no such command")
    command, hostname, executor_key = row
    return CommandDetail(
        command=command_item(command, hostname),
        digest=command.digest,
        result=command.result,
        executor_key=b64encode(executor_key),
        statements=await _statements(session, visible, command_id),
    )


def command_item(command: Command, hostname: str) -> CommandItem:
    """What is shown of a command in a list."""
    params = parse_json(command.params, max_bytes=MAX_PARAMS)
    return CommandItem(
        id=command.id,
        organization_id=command.organization_id,
        agent_id=command.agent_id,
        hostname=hostname,
        type=command.type,
        params=params if isinstance(params, dict) else {},
        state=CommandState(command.state),
        state_at=command.state_at,
        reason=command.reason,
        created_at=command.created_at,
        created_by=command.created_by,
        retry_of=command.retry_of,
        plan_id=command.plan_id,
        start_by=command.start_by,
        not_before=command.not_before,
        delivered_at=command.delivered_at,
        deliveries=command.deliveries,
        refusals=command.refusals,
        accepted_at=command.accepted_at,
        started_at=command.started_at,
        finished_at=command.finished_at,
        code=command.code,
        detail=command.detail,
        progress=command.progress,
        cancel_requested_at=command.cancel_requested_at,
        overdue_at=command.overdue_at,
        archived_at=command.archived_at,
    )


def _conditions(wanted: CommandFilter) -> list[Any]:
    conditions: list[Any] = []
    if wanted.agent_id is not None:
        conditions.append(Command.agent_id == wanted.agent_id)
    if wanted.states:
        conditions.append(Command.state.in_(wanted.states))
    if wanted.kind is not None:
        conditions.append(Command.type == wanted.kind)
    if wanted.plan_id is not None:
        conditions.append(Command.plan_id == wanted.plan_id)
    if wanted.live is not None:
        conditions.append(Command.state.in_(LIVE) if wanted.live else Command.state.not_in(LIVE))
    if wanted.overdue is not None:
        overdue = Command.overdue_at.is_not(None)
        conditions.append(overdue if wanted.overdue else ~overdue)
    if not wanted.archived:
        conditions.append(Command.archived_at.is_(None))
    return conditions


async def _statements(session: AsyncSession, visible: Scope, command_id: UUID) -> list[StatementItem]:
    newest = (
        select(CommandStatement.id)
        .where(CommandStatement.command_id == command_id)
        .order_by(CommandStatement.id.desc())
        .limit(MAX_SHOWN)
    )
    query = visible.select(CommandStatement).where(CommandStatement.id.in_(newest))
    rows = await session.scalars(query.order_by(CommandStatement.id.desc()))
    return [StatementItem(row.kind, row.received_at, b64encode(row.envelope)) for row in rows]
