"""
Handing commands out: signed at delivery, in the transaction of the check-in that takes them.

The core decides whose turn it is. The order number is taken here and is never given out again; what was signed is
noted, so that an acceptance of anything else is recognized.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import case, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.command_queue import (
    UNACCEPTED,
    CommandEvent,
    CommandState,
    Waiting,
    lease_seconds,
    next_order,
    next_turn,
)
from redflag_core.commands import BYPASSING, Order, Orderable, Recipient, sign_command
from redflag_core.encoding import b64encode
from redflag_core.envelope import parse_envelope
from redflag_core.trust import signs_commands
from redflag_server.agents.tables import Agent
from redflag_server.approvals.service import proof_for
from redflag_server.commands.changes import Change, change, end
from redflag_server.commands.tables import Command, CommandDelivery
from redflag_server.events.recorder import record
from redflag_server.events.tables import Event
from redflag_server.runtime import Runtime
from redflag_server.trust import service as trust
from redflag_server.trust.tables import ServerState

LOOK_AT: Final = 100
"""Commands of one agent that are looked at for one answer."""

SERVER: Final = "server"


@attrs.frozen
class Taken:
    """
    What one agent gets.

    Attributes:
        envelopes: Signed commands in base64, in the order in which they are to be handed to the executor.
        again: When there will be something that is not due now, or None.
    """

    envelopes: tuple[str, ...] = ()
    again: datetime | None = None


async def agents_with_commands(session: AsyncSession, agents: Sequence[UUID]) -> set[UUID]:
    """Which of these agents have commands that no executor accepted."""
    query = select(Command.agent_id).where(Command.agent_id.in_(agents), Command.state.in_(UNACCEPTED)).distinct()
    return set((await session.scalars(query)).all())


async def take_turn(session: AsyncSession, runtime: Runtime, agent_id: UUID, now: datetime) -> Taken:
    """
    Lease what is due for an agent that may be given commands.

    Args:
        session: The open write transaction.
        runtime: The server.
        agent_id: The agent, locked.
        now: Database time, aware UTC.
    """
    turn = next_turn(await _queue(session, agent_id, now), now=now)
    for late in turn.expire:
        await expire(session, await session.get_one(Command, late.id, with_for_update=True), now)
    if not turn.lease:
        return Taken((), turn.again)
    signer = await _Signer.open(session, runtime, agent_id, now)
    if signer is None:
        return Taken()
    commands = [await session.get_one(Command, each.id, with_for_update=True) for each in turn.lease]
    handed_out = [await signer.hand_out(command) for command in commands]
    return Taken(tuple(envelope for envelope in handed_out if envelope is not None))


async def expire(session: AsyncSession, command: Command, now: datetime) -> None:
    """End a command that no machine was given in time."""
    why = Change(actor=SERVER, now=now, code="start_by_passed", why="it was not handed out in time")
    await end(session, command, CommandEvent.EXPIRE, why)


@attrs.define
class _Signer:
    """Signs for one agent. ``machine`` is its record: whom a command must be for."""

    session: AsyncSession
    runtime: Runtime
    machine: Any
    epoch: int
    gen: int
    now: datetime
    last: Order

    @classmethod
    async def open(
        cls, session: AsyncSession, runtime: Runtime, agent_id: UUID, now: datetime
    ) -> "_Signer | None":
        """A signer; None when no executor would believe this server's key."""
        bundle = trust.read_bundle(await trust.current_bundle(session))
        if not signs_commands(bundle, runtime.keys.command.key_id, now=now):
            await _tell_that_commands_wait(session, now)
            return None
        epoch, gen = (await session.execute(select(ServerState.epoch, ServerState.gen))).one()
        machine = (await session.execute(select(Agent.__table__).where(Agent.id == agent_id))).one()
        issued = Order(machine.issued_epoch, machine.issued_gen, machine.issued_seq)
        return cls(session, runtime, machine, epoch, gen, now, issued)

    async def hand_out(self, command: Command) -> str | None:
        """Sign a command and lease it; the envelope in base64, None when there is no number left for it."""
        recorded = Order(self.machine.epoch, self.machine.gen, self.machine.seq)
        order = next_order(self.last, recorded, epoch=self.epoch, gen=self.gen)
        if order is None:
            await _tell_that_numbers_ended(self.session, self.machine, self.now)
            return None
        wire = sign_command(
            Orderable(
                cmd_id=str(command.id),
                type=command.type,
                params=command.params,
                start_by=int(command.start_by.timestamp()),
                approval=await proof_for(self.session, command),
            ),
            self._recipient(),
            order,
            self.runtime.keys.command,
            now=self.now,
            entropy=self.runtime.entropy,
        )
        await self._note(command, order, hashlib.sha256(parse_envelope(wire).payload).hexdigest())
        self.last = order
        return b64encode(wire)

    def _recipient(self) -> Recipient:
        return Recipient(
            server=self.runtime.server,
            agent_id=str(self.machine.id),
            machine_binding=self.machine.machine_binding,
            key_fp=self.machine.executor_key_id,
            epoch=self.epoch,
        )

    async def _note(self, command: Command, order: Order, body: str) -> None:
        command.deliveries += 1
        command.delivered_at = command.delivered_at or self.now
        command.leased_until = self.now + timedelta(seconds=lease_seconds(command.deliveries))
        command.not_before = None
        command.order_epoch, command.order_gen, command.order_seq = order.epoch, order.gen, order.seq
        self.session.add(
            CommandDelivery(
                organization_id=command.organization_id,
                agent_id=command.agent_id,
                command_id=command.id,
                at=self.now,
                epoch=order.epoch,
                gen=order.gen,
                seq=order.seq,
                body=body,
            )
        )
        table = Agent.__table__
        issued = {"issued_epoch": order.epoch, "issued_gen": order.gen, "issued_seq": order.seq}
        await self.session.execute(
            update(table).where(table.c.id == command.agent_id).values(issued)  # type: ignore[arg-type]
        )
        why = Change(actor=SERVER, now=self.now)
        await change(
            self.session, command, CommandEvent.LEASE, why, delivery=command.deliveries, order=attrs.astuple(order)
        )


async def _queue(session: AsyncSession, agent_id: UUID, now: datetime) -> list[Waiting]:
    """
    The unaccepted commands of an agent, the oldest first.

    Of a long queue a part is enough: what is on its way, what waits for nothing, and the oldest that are due.
    """
    columns = (
        Command.id,
        Command.type,
        Command.state,
        Command.delivered_at,
        Command.start_by,
        Command.not_before,
        Command.leased_until,
    )
    waits_until = case((Command.not_before > now, Command.not_before))
    rank = case(
        (Command.state == CommandState.LEASED, 0),
        (Command.type.in_(BYPASSING), 1),
        (waits_until.is_(None), 2),
        else_=3,
    )
    query = (
        select(*columns)
        .where(Command.agent_id == agent_id, Command.state.in_(UNACCEPTED))
        .order_by(rank, waits_until, Command.id)
        .limit(LOOK_AT)
    )
    rows = (await session.execute(query)).all()
    return [_waiting(row) for row in sorted(rows, key=lambda row: row.id)]


def _waiting(row: Any) -> Waiting:
    return Waiting(
        id=row.id,
        kind=row.type,
        state=CommandState(row.state),
        delivered=row.delivered_at is not None,
        start_by=row.start_by,
        not_before=row.not_before,
        leased_until=row.leased_until,
    )


async def _tell_that_commands_wait(session: AsyncSession, now: datetime) -> None:
    """Say once a day that nothing is handed out, and why."""
    told = select(Event.id).where(Event.kind == "trust.commands_held", Event.at > now - timedelta(days=1))
    if (await session.scalars(told.limit(1))).first() is not None:
        return
    message = (
        "Commands wait: the trust bundle is past its end or does not name this server's command key, so that no "
        "machine would believe them. Issue a new bundle."
    )
    await record(session, at=now, kind="trust.commands_held", actor=SERVER, message=message)


async def _tell_that_numbers_ended(session: AsyncSession, machine: Any, now: datetime) -> None:
    """Say once a day that a machine cannot be given commands in this epoch: somebody counted its numbers up."""
    told = select(Event.id).where(
        Event.kind == "agent.numbers_ended", Event.agent_id == machine.id, Event.at > now - timedelta(days=1)
    )
    if (await session.scalars(told.limit(1))).first() is not None:
        return
    message = (
        f"{machine.hostname} has seen the highest number of this epoch, which only a stolen command key explains: "
        "it gets no commands until a new trust bundle with the next epoch is issued."
    )
    await record(
        session,
        at=now,
        kind="agent.numbers_ended",
        actor=SERVER,
        message=message,
        organization_id=machine.organization_id,
        agent_id=machine.id,
    )
