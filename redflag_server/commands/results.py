"""
What executors say about commands: verified, recorded once exactly as signed, and followed, in one transaction.

A statement is proof, so it is kept whatever it says; what follows from it is the core's table. What cannot be true
here (of a command that this server does not know, an acceptance of another order than it signed) changes nothing
and is an alarm. A result about an order that it did not sign is an alarm too, and is followed: what the machine
says that it did is true. An executor can sign as much as it likes, so alarms are bounded, and so is what is kept:
in number and in bytes. The statement by which a command ends is always kept.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from redflag_core import codec
from redflag_core.command_queue import (
    ENDED,
    EVENTS,
    OUTCOME_EVENTS,
    UNACCEPTED,
    CommandEvent,
    CommandState,
    Standing,
    judge_acceptance,
    refusal_event,
    retry_delay,
)
from redflag_core.commands import Order
from redflag_core.encoding import b64decode
from redflag_core.errors import WrongRecipientError
from redflag_core.messages import Accepted, StatementPost
from redflag_core.resilience import random_fraction
from redflag_core.statements import (
    CommandAccepted,
    CommandRefused,
    CommandResult,
    Statement,
    open_statement,
    statement_digest,
)
from redflag_server.checkin.authentication import VerifiedAgent
from redflag_server.checkin.claims import recheck
from redflag_server.commands.changes import RESTORED, Change, change, end
from redflag_server.commands.leasing import agents_with_commands
from redflag_server.commands.tables import Command, CommandDelivery, CommandStatement
from redflag_server.db.engine import wake_after_commit
from redflag_server.events.recorder import record
from redflag_server.runtime import Runtime
from redflag_server.trust.tables import ServerState

MAX_STATEMENTS: Final = 400
"""Statements kept about one command: one that is refused for now every hour of its week has about 180."""

MAX_RESULTS: Final = 6
"""Results kept about one command: the true one, and a handful that contradict it, for whoever looks into that."""

MAX_COMMAND_BYTES: Final = 4 * 1024 * 1024
"""Kept about one command, beside what ends it: 400 refusals need a sixth, the rest is for large results."""

MAX_STRAY: Final = 200
"""Statements kept of one agent about commands that are not known here: a day's worth after a restore."""

MAX_STRAY_BYTES: Final = 4 * 1024 * 1024
"""The same in bytes: 200 have 20 KiB each, which is what most results need."""

_KINDS: Final[Mapping[type[Statement], str]] = {
    CommandAccepted: "accepted",
    CommandRefused: "refused",
    CommandResult: "result",
}
_OWN_COLUMNS: Final = frozenset(
    {
        "v",
        "server",
        "agent_id",
        "cmd_id",
        "digest",
        "body",
        "outcome",
        "code",
        "detail",
        "started_at",
        "finished_at",
    }
)
"""Parts of a result that are columns of the command."""


async def accept_statement(runtime: Runtime, sender: VerifiedAgent, body: StatementPost) -> Accepted:
    """
    Record one statement of an agent's executor, and follow it.

    Args:
        runtime: The server.
        sender: The verified agent.
        body: What it sent.

    Returns:
        That it is stored; also for one that was stored before.

    Raises:
        VerificationError: The agent's executor did not sign it, or it is about another agent.
    """
    wire, agent_id = b64decode(body.statement), sender.entry.agent_id
    statement = open_statement(wire, sender.executor_key, server=runtime.server, agent_id=str(agent_id))
    async with runtime.database.write() as session:
        agent = await recheck(session, sender.entry)
        arrival = _Arrival(runtime, session, agent, statement, runtime.clock.now())
        await arrival.find()
        arrival.known = not await arrival.is_first(wire)
        # A command that a restore handed out again is accepted by the same statement as before.
        if not arrival.known or isinstance(statement, CommandAccepted):
            await arrival.follow()
    return Accepted()


@attrs.define
class _Arrival:
    """One verified statement on its way into the database. ``known``: exactly this one came before."""

    runtime: Runtime
    session: AsyncSession
    agent: Any
    statement: Statement
    now: datetime
    command: Command | None = None
    known: bool = False

    async def find(self) -> None:
        """Find the command; raises `WrongRecipientError` when it is another agent's."""
        if self.statement.cmd_id is None:
            return
        query = select(Command).where(Command.id == UUID(self.statement.cmd_id)).with_for_update()
        self.command = (await self.session.scalars(query)).one_or_none()
        if self.command is not None and self.command.agent_id != self.agent.id:
            self.command = None
            raise WrongRecipientError("the statement is about a command of another agent")

    async def is_first(self, wire: bytes) -> bool:
        """Keep the envelope; whether it was not known. Beyond the bounds it is followed, but not kept."""
        digest = statement_digest(wire)
        known = select(CommandStatement.id).where(
            CommandStatement.agent_id == self.agent.id, CommandStatement.digest == digest
        )
        if (await self.session.scalars(known)).first() is not None:
            return False
        if not (self._ends() or await self._fits(len(wire))):
            await self._alarm(
                "dropped",
                kind="command.statements_dropped",
                message=f"{self.agent.hostname} signs more than is kept. It was followed, and not recorded.",
            )
            return True
        dialect = postgresql if self.session.get_bind().dialect.name == "postgresql" else sqlite
        statement = dialect.insert(CommandStatement).values(
            id=uuid7(),
            organization_id=self.agent.organization_id,
            agent_id=self.agent.id,
            command_id=None if self.statement.cmd_id is None else UUID(self.statement.cmd_id),
            kind=_KINDS[type(self.statement)],
            digest=digest,
            envelope=wire,
            received_at=self.now,
        )
        result = await self.session.execute(statement.on_conflict_do_nothing())
        return bool(result.rowcount)  # type: ignore[attr-defined]

    def _ends(self) -> bool:
        """Whether the command ends by it."""
        if self.command is None or self.statement.digest != self.command.digest:
            return False
        rule = EVENTS[_event_of(self.statement)]
        return rule.to in ENDED and CommandState(self.command.state) in rule.origins

    async def _fits(self, size: int) -> bool:
        """Whether there is room for one more, of *size* bytes, about the command, or about none that is known."""
        if self.command is None:
            known = select(Command.id).where(Command.id == CommandStatement.command_id).exists()
            count, kept, _ = await self._kept(CommandStatement.agent_id == self.agent.id, ~known)
            return count < MAX_STRAY and kept + size <= MAX_STRAY_BYTES
        count, kept, results = await self._kept(CommandStatement.command_id == self.command.id)
        if isinstance(self.statement, CommandResult) and results >= MAX_RESULTS:
            return False
        return count < MAX_STATEMENTS and kept + size <= MAX_COMMAND_BYTES

    async def _kept(self, *conditions: Any) -> tuple[int, int, int]:
        """How many statements, how many bytes, and how many results."""
        total = func.coalesce(func.sum(func.length(CommandStatement.envelope)), 0)
        results = func.count().filter(CommandStatement.kind == _KINDS[CommandResult])
        query = select(func.count(), total, results).where(*conditions)
        count, size, ends = (await self.session.execute(query)).one()
        return count, int(size), ends

    async def follow(self) -> None:
        """Do what it says."""
        statement, command = self.statement, self.command
        if isinstance(statement, CommandRefused) and statement.cmd_id is None:
            await self._alarm(
                "unverifiable",
                kind="command.unverifiable",
                message=f"{self.agent.hostname} was given a command that nobody it believes has signed.",
                code=statement.code,
            )
        elif command is None:
            await self._alarm(
                "unknown",
                kind="command.unknown",
                message=f"{self.agent.hostname} speaks of a command that this server does not know.",
            )
        elif statement.digest != command.digest:
            await self._alarm(
                "mismatched",
                kind="command.mismatched",
                message=f"{self.agent.hostname} has another order under the id of {command.type}.",
            )
        else:
            await self._apply(command, statement)
            if await agents_with_commands(self.session, [self.agent.id]):
                wake_after_commit(self.session, self.agent.id)

    async def _apply(self, command: Command, statement: Statement) -> None:
        if isinstance(statement, CommandAccepted):
            await self._accepted(command, statement)
        elif isinstance(statement, CommandRefused):
            await self._refused(command, statement)
        else:
            await self._ended(command, statement)

    async def _accepted(self, command: Command, statement: CommandAccepted) -> None:
        order = Order(statement.epoch, statement.gen, statement.seq)
        issued = await self._issued(command, statement.body, order)
        gen = (await self.session.scalars(select(ServerState.gen))).one()
        if judge_acceptance(order, issued=issued, gen=gen) is Standing.FOREIGN:
            await self._tell_foreign(command)
            return
        command.accepted_at = command.accepted_at or _moment(statement.iat)
        if CommandState(command.state) in UNACCEPTED:
            command.leased_until = command.not_before = None
            await change(self.session, command, CommandEvent.ACCEPT, self._why(), order=attrs.astuple(order))

    async def _refused(self, command: Command, statement: CommandRefused) -> None:
        event = _event_of(statement)
        state, why = CommandState(command.state), self._why(statement.code, statement.detail)
        if event is not CommandEvent.RETURN:
            if state in EVENTS[event].origins:
                await end(self.session, command, event, why)
        elif state in UNACCEPTED:
            command.refusals += 1
            fraction = random_fraction(self.runtime.entropy)
            delay = retry_delay(command.refusals, asked=statement.retry_after, fraction=fraction)
            command.not_before, command.leased_until = self.now + timedelta(seconds=delay), None
            if state is CommandState.LEASED:
                await change(self.session, command, event, why, again_in=delay, refusals=command.refusals)

    async def _ended(self, command: Command, statement: CommandResult) -> None:
        state, event = CommandState(command.state), _event_of(statement)
        # Handed out after the backup: the delivery is not on record, and nobody else's.
        if command.code != RESTORED and not await self._issued(command, statement.body):
            await self._tell_foreign(command)
        if state not in EVENTS[event].origins:
            if command.result is not None or state is not EVENTS[event].to:
                await self._alarm(
                    "contradicted",
                    kind="command.contradicted",
                    message=f"{self.agent.hostname} signed another end of {command.type}, which is {state}.",
                )
            return
        command.started_at = _moment(statement.started_at) or command.started_at
        command.finished_at = _moment(statement.finished_at)
        told = codec.unstructure(statement)
        command.result = {name: value for name, value in told.items() if name not in _OWN_COLUMNS}
        why = self._why(statement.code, statement.detail)
        await end(self.session, command, event, why, result=statement)

    async def _issued(self, command: Command, body: str, order: Order | None = None) -> bool:
        """Whether this server signed exactly that, for that command and, if given, under that order."""
        query = select(CommandDelivery.id).where(
            CommandDelivery.command_id == command.id, CommandDelivery.body == body
        )
        if order is not None:
            query = query.where(
                CommandDelivery.epoch == order.epoch,
                CommandDelivery.gen == order.gen,
                CommandDelivery.seq == order.seq,
            )
        return (await self.session.scalars(query)).first() is not None

    async def _tell_foreign(self, command: Command) -> None:
        await self._alarm(
            "foreign",
            kind="command.foreign",
            message=f"{self.agent.hostname} took {command.type} from a delivery that this server does not know.",
        )

    async def _alarm(self, name: str, *, kind: str, message: str, code: str | None = None) -> None:
        """An event for people to look into; beyond a rate it is counted instead."""
        suppressed = None if self.known else self.runtime.refusals.admit((name, f"agent:{self.agent.id}"))
        if suppressed is None:
            return
        data = {"command": self.statement.cmd_id, "statement": _KINDS[type(self.statement)]}
        await record(
            self.session,
            at=self.now,
            kind=kind,
            actor=f"agent:{self.agent.id}",
            message=message,
            organization_id=self.agent.organization_id,
            agent_id=self.agent.id,
            code=code,
            data={**data, "suppressed_before": suppressed} if suppressed else data,
        )

    def _why(self, code: str | None = None, detail: str | None = None) -> Change:
        return Change(actor=f"agent:{self.agent.id}", now=self.now, code=code, why=detail)


def _event_of(statement: Statement) -> CommandEvent:
    """What a statement means for its command, if the command is where that can happen."""
    if isinstance(statement, CommandAccepted):
        return CommandEvent.ACCEPT
    if isinstance(statement, CommandRefused):
        return refusal_event(statement.code, never=statement.never)
    return OUTCOME_EVENTS[statement.outcome]


def _moment(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, tz=UTC)
