"""
The sequencer gives each event its position in the history of its organization, without gaps, and chains it.

Events are committed without a position, side by side. One process at a time places them afterwards, behind the
oldest transaction that is still running: what that one wrote must not come after what others wrote later. An event
that has no position yet is in a table of its own, `UnplacedEvent`. So none is skipped, however late its commit.

Whoever places holds a lease: it takes or renews it in the same transaction, and gives it back when all is placed.
While there is nothing to do, looking costs one read.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import ColumnElement, delete, extract, func, insert, or_, select, true
from sqlalchemy.dialects.postgresql import BIGINT, TEXT
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from redflag_core.audit import SALT_SIZE, AuditState, append_entry
from redflag_server.events.payloads import payload_of
from redflag_server.events.tables import Event, History, HistoryEntry, UnplacedEvent
from redflag_server.jobs.bells import Bell, heard, wait_any
from redflag_server.jobs.leases import LeaseTerms, give_back, hold
from redflag_server.runtime import Runtime

logger = logging.getLogger(__name__)

SEQUENCER: Final = LeaseTerms("sequencer", timedelta(seconds=15))

AT_ONCE: Final = 500
"""Events placed in one transaction: a few milliseconds, in which nobody else can write to SQLite."""

GATHER_SECONDS: Final = 0.2
"""How long events are waited for after the first one: each transaction waits for the disk."""

WAIT_SECONDS: Final = 120
"""How long an event waits for older transactions at most: longer than any of ours runs. One of somebody else, in a
database beside this one, may run for hours and must not stop everything. No event is skipped by it."""

LOOK_SECONDS: Final = {"postgresql": 0.8, "sqlite": 5.0}
"""How often a process looks for events of others: of other replicas, or of the command line."""


@attrs.define
class Sequencer:
    """
    Places events, in this process.

    Args:
        runtime: The server.
    """

    runtime: Runtime
    holder: UUID = attrs.field(factory=uuid7, init=False)

    async def work(self, stop: asyncio.Event) -> None:
        """Place events as they come, until *stop* is set."""
        look = LOOK_SECONDS[self.runtime.database.engine.dialect.name]
        with heard(self.runtime.database, Bell.EVENTS) as rung:
            while not stop.is_set():
                rung.clear()
                try:
                    while await self.place() and not stop.is_set():
                        pass
                except Exception:  # the next look may succeed: the database may be back
                    logger.exception("could not place events")
                await wait_any(look, rung, stop)
                if rung.is_set():
                    await wait_any(GATHER_SECONDS, stop)

    async def place(self) -> int:
        """
        Place some of the events that have no position, at most `AT_ONCE`.

        Returns:
            How many; 0 also while another process does it.
        """
        async with self.runtime.database.read() as session:
            if await session.scalar(_ready(session).limit(1)) is None:
                return 0
        async with self.runtime.database.write() as session:
            now = self.runtime.clock.now()
            if await hold(session, SEQUENCER, self.holder, now) is None:
                return 0
            arrived = (await session.scalars(_ready(session).limit(AT_ONCE))).all()
            await self._place(session, arrived)
            if len(arrived) < AT_ONCE:
                await give_back(session, SEQUENCER, now)
            return len(arrived)

    async def _place(self, session: AsyncSession, arrived: Sequence[UUID]) -> None:
        events = await _events(session, arrived)
        histories = await _histories(session, {event.organization_id for event in events})
        states = {organization: _state(history) for organization, history in histories.items()}
        rows = []
        for event in events:
            salt = self.runtime.entropy.token(SALT_SIZE)
            entry, state = append_entry(states[event.organization_id], payload_of(event), salt=salt)
            states[event.organization_id] = state
            rows.append(
                {
                    "organization_id": event.organization_id,
                    "position": entry.position,
                    "event_id": event.id,
                    "digest": bytes.fromhex(entry.digest),
                    "hash": bytes.fromhex(entry.hash),
                    "salt": salt,
                }
            )
        if rows:
            await session.execute(insert(HistoryEntry), rows)
        for organization, history in histories.items():
            state = states[organization]
            history.size, history.nodes, history.last = state.size, list(state.nodes), state.last
        await session.execute(delete(UnplacedEvent).where(UnplacedEvent.event_id.in_(arrived)))


def _ready(session: AsyncSession) -> Any:
    """The events that can be placed now, in order."""
    settled = _settled() if session.get_bind().dialect.name == "postgresql" else true()
    order = (UnplacedEvent.arrived, UnplacedEvent.event_id)
    return select(UnplacedEvent.event_id).where(settled).order_by(*order)


def _settled() -> "ColumnElement[bool]":
    """
    Whether every transaction that began to write before an event's has ended.

    A number that is not given out yet is of another PostgreSQL, out of which this database was copied.
    """
    snapshot = func.pg_current_snapshot()
    oldest, next_one = (
        bound(snapshot).cast(TEXT).cast(BIGINT) for bound in (func.pg_snapshot_xmin, func.pg_snapshot_xmax)
    )
    long_ago = (extract("epoch", func.clock_timestamp()) - WAIT_SECONDS) * 1_000_000
    return or_(
        UnplacedEvent.xid.is_(None),
        UnplacedEvent.xid < oldest,
        UnplacedEvent.xid >= next_one,
        UnplacedEvent.arrived < long_ago,
    )


async def _events(session: AsyncSession, arrived: Sequence[UUID]) -> list[Event]:
    found = (await session.scalars(select(Event).where(Event.id.in_(arrived)))).all()
    by_id = {event.id: event for event in found}
    return [by_id[event_id] for event_id in arrived if event_id in by_id]


async def _histories(session: AsyncSession, organizations: Iterable[UUID]) -> Mapping[UUID, History]:
    wanted = sorted(organizations)
    known = (await session.scalars(select(History).where(History.organization_id.in_(wanted)))).all()
    histories = {history.organization_id: history for history in known}
    for organization in wanted:
        if organization not in histories:
            empty = AuditState(organization=str(organization))
            histories[organization] = History(
                organization_id=organization, size=0, nodes=list(empty.nodes), last=empty.last
            )
            session.add(histories[organization])
    return histories


def _state(history: History) -> AuditState:
    return AuditState(
        organization=str(history.organization_id),
        size=history.size,
        nodes=tuple(history.nodes),
        last=history.last,
    )
