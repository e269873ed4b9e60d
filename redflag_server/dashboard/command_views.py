"""Commands on pages: in words, with what can be done with each now, which the core says."""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer

from redflag_core.command_queue import (
    LIVE,
    ORDERED_BY_PEOPLE,
    CommandState,
    may_end_unanswered,
    may_release,
    may_retry,
)
from redflag_core.commands import BYPASSING, Params, PlanParams, ScanParams, UpgradeParams, parse_params
from redflag_core.encoding import b64encode
from redflag_core.errors import UnknownCommandError
from redflag_server.agents.tables import Agent
from redflag_server.commands.tables import Command, CommandStatement, CommandSubject
from redflag_server.dashboard.words import COMMAND_TYPES
from redflag_server.db.pages import PageOf, fetch_page
from redflag_server.db.scope import Scope
from redflag_server.problems import NotFoundError

SHOWN: Final = 20
"""Live commands on a machine's page: one at a time is carried out, and few wait."""

LISTED: Final = 50
"""Commands of each kind on a page of commands."""

STATEMENTS: Final = 50
"""Statements on a command's page: a refusal for each delivery of a day, and the end."""


@attrs.frozen
class SeenCommand:
    """
    One command.

    Attributes:
        row: What is known of it.
        hostname: Its machine.
        params: Its parameters; None for those of a type that this release does not know.
    """

    row: Command
    hostname: str
    params: Params | None

    @property
    def title(self) -> str:
        """What it does, in a few words."""
        words = COMMAND_TYPES.get(self.row.type, self.row.type).capitalize()
        if isinstance(self.params, PlanParams | UpgradeParams):
            number = len(self.params.packages)
            return f"{words}: {number} package{'' if number == 1 else 's'}"
        if isinstance(self.params, ScanParams):
            return f"{words}: {self.params.scanner or 'everything'}"
        return words

    @property
    def is_live(self) -> bool:
        """Whether it has not ended."""
        return self.row.state in LIVE

    @property
    def is_moving(self) -> bool:
        """Whether the machine has it and is at it."""
        return self.row.state in LIVE - {CommandState.PENDING}

    @property
    def offers(self) -> Sequence[str]:
        """What can be done with it now, of `words.COMMAND_ACTIONS`."""
        state, delivered = CommandState(self.row.state), self.row.delivered_at is not None
        unseen = may_end_unanswered(state, delivered=delivered)
        by_people = self.row.type in ORDERED_BY_PEOPLE and self.row.plan_id is None
        may_ask = self.is_live and not unseen and self.row.type not in BYPASSING
        wanted = {
            "cancel": unseen,
            "ask": may_ask and self.row.cancel_requested_at is None,
            "retry": may_retry(state) and by_people,
            "release": may_release(state, delivered=delivered),
            "archive": not self.is_live and self.row.archived_at is None,
        }
        return [name for name, offered in wanted.items() if offered]


@attrs.frozen
class WantedCommands:
    """
    Which commands.

    Attributes:
        agent_id: Of this machine; None for all.
        state: In this state; None for all.
        overdue: Only those that take longer than they should.
    """

    agent_id: UUID | None = None
    state: CommandState | None = None
    overdue: bool = False

    @property
    def is_narrow(self) -> bool:
        """Whether it leaves something out."""
        return bool(self.agent_id or self.state or self.overdue)

    @property
    def query(self) -> Sequence[tuple[str, str]]:
        """The same as a query of the page."""
        overdue = "true" if self.overdue else ""
        return [("agent_id", str(self.agent_id or "")), ("state", self.state or ""), ("overdue", overdue)]


@attrs.frozen
class CommandList:
    """
    One page of commands.

    Attributes:
        live: Those that have not ended, oldest first, at most `LISTED`: on the first page, or if only these show.
        ended: Those that have, newest first.
        next: Cursor of the next page, or None.
        more_live: Whether there are more that have not ended than the first page shows.
    """

    live: Sequence[SeenCommand]
    ended: Sequence[SeenCommand]
    next: str | None
    more_live: bool = False

    @property
    def is_moving(self) -> bool:
        """Whether a machine is at one of them."""
        return any(command.is_moving for command in self.live)


@attrs.frozen
class CommandPage:
    """
    One command on a page of its own.

    Attributes:
        command: The command.
        executor: Public key of the machine's executor, in base64: what its statements are verified with.
        executor_id: Id of that key.
        statements: What the executor signed about it, oldest first.
        retries: Commands that repeat it.
    """

    command: SeenCommand
    executor: str
    executor_id: str
    statements: Sequence[CommandStatement]
    retries: Sequence[Command]


def seen_command(row: Command, hostname: str) -> SeenCommand:
    """A command with its parameters."""
    try:
        return SeenCommand(row, hostname, parse_params(row.type, row.params))
    except UnknownCommandError:
        return SeenCommand(row, hostname, None)


async def see_live_commands(session: AsyncSession, visible: Scope, agent_id: UUID) -> Sequence[SeenCommand]:
    """The first `SHOWN` commands of a machine that have not ended, oldest first; by index."""
    query = _commands(visible).where(Command.agent_id == agent_id, Command.state.in_(LIVE)).order_by(Command.id)
    return [seen_command(*row) for row in await session.execute(query.limit(SHOWN))]


async def see_commands(
    session: AsyncSession, visible: Scope, wanted: WantedCommands, cursor: str | None
) -> CommandList:
    """
    One page of commands.

    Those that have not ended are found by what they hold, and so are few. Those that have are read backwards until
    the page is full: a state that is rare is looked for through all of them.
    """
    query = _commands(visible)
    if wanted.agent_id is not None:
        query = query.where(Command.agent_id == wanted.agent_id)
    if wanted.overdue or wanted.state in LIVE:
        found, following = await fetch_page(
            session, _live(visible, query, wanted), Command, PageOf(cursor, LISTED)
        )
        return CommandList([seen_command(*row) for row in found], (), following)
    live: Sequence[Any] = ()
    if cursor is None and wanted.state is None:
        first = _live(visible, query, wanted).order_by(Command.id).limit(LISTED + 1)
        live = (await session.execute(first)).all()
    query = query.where(Command.state.not_in(LIVE), Command.archived_at.is_(None))
    if wanted.state is not None:
        query = query.where(Command.state == wanted.state)
    ended, following = await fetch_page(session, query, Command, PageOf(cursor, LISTED, newest_first=True))
    return CommandList(
        [seen_command(*row) for row in live[:LISTED]],
        [seen_command(*row) for row in ended],
        following,
        more_live=len(live) > LISTED,
    )


async def count_overdue(session: AsyncSession, visible: Scope) -> int:
    """Number of commands that take longer than they should; looks at those only that have not ended."""
    query = _live(visible, visible.select(Command, func.count()), WantedCommands(overdue=True))
    return int((await session.execute(query)).scalar_one())


async def see_command(session: AsyncSession, visible: Scope, command_id: UUID) -> CommandPage:
    """
    One command.

    Raises:
        NotFoundError: No such command, or not for the caller to see.
    """
    query = visible.select(Command, Command, Agent).join(Agent, Agent.id == Command.agent_id)
    row = (await session.execute(query.where(Command.id == command_id))).one_or_none()
    if row is None:
        raise NotFoundError("there is no such command")
    command, agent = row
    retries = visible.select(Command).where(Command.agent_id == agent.id, Command.retry_of == command_id)
    return CommandPage(
        command=seen_command(command, agent.hostname),
        executor=b64encode(agent.executor_key),
        executor_id=agent.executor_key_id,
        statements=(await see_statements(session, visible, [command_id])).get(command_id, []),
        retries=(await session.scalars(retries.order_by(Command.id).limit(SHOWN))).all(),
    )


async def see_statement(
    session: AsyncSession, visible: Scope, command_id: UUID, statement_id: UUID
) -> CommandStatement:
    """
    One statement about a command.

    Raises:
        NotFoundError: No such statement, or not for the caller to see.
    """
    query = visible.select(CommandStatement).where(
        CommandStatement.id == statement_id, CommandStatement.command_id == command_id
    )
    statement: CommandStatement | None = (await session.scalars(query)).one_or_none()
    if statement is None:
        raise NotFoundError("there is no such statement")
    return statement


async def see_statements(
    session: AsyncSession, visible: Scope, command_ids: Sequence[UUID]
) -> Mapping[UUID, Sequence[CommandStatement]]:
    """The last `STATEMENTS` statements about commands, by command, oldest first; by index."""
    query = visible.select(CommandStatement).where(CommandStatement.command_id.in_(command_ids))
    rows = (await session.scalars(query.order_by(CommandStatement.id.desc()).limit(STATEMENTS))).all()
    return {wanted: [row for row in reversed(rows) if row.command_id == wanted] for wanted in command_ids}


def _commands(visible: Scope) -> Any:
    query = visible.select(Command, Command, Agent.hostname).join(Agent, Agent.id == Command.agent_id)
    return query.options(defer(Command.result))


def _live(visible: Scope, query: Any, wanted: WantedCommands) -> Any:
    """Those that have not ended: the ones that hold a subject."""
    query = query.where(Command.id.in_(visible.select(CommandSubject, CommandSubject.command_id)))
    if wanted.state is not None:
        query = query.where(Command.state == wanted.state)
    return query.where(Command.overdue_at.is_not(None)) if wanted.overdue else query
