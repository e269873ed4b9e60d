"""
Follow events: whoever does keeps a position for each organization, and gets each event at least once, in order.

A consumer reads what comes after its position, does something with it, and moves its position. If it dies in
between, it gets the same events again. One process at a time should do that for a consumer and an organization:
let it be a job, with both in its key.
"""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import attrs
from sqlalchemy import func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_server.events.tables import Consumer, Event, History, HistoryEntry

MOST: Final = 100
"""Events handed to a consumer at once."""


@attrs.frozen
class PlacedEvent:
    """
    An event in its place.

    Attributes:
        position: In the history of its organization.
        event: The event; None if it was purged.
    """

    position: int
    event: Event | None


async def organizations_behind(session: AsyncSession, name: str) -> Sequence[UUID]:
    """The organizations in which there is something new for a consumer."""
    query = select(History.organization_id).outerjoin(
        Consumer, (Consumer.organization_id == History.organization_id) & (Consumer.name == name)
    )
    behind = query.where(History.size > func.coalesce(Consumer.position, 0)).order_by(History.organization_id)
    return (await session.scalars(behind)).all()


async def read_on(
    session: AsyncSession, name: str, organization_id: UUID, *, limit: int = MOST
) -> Sequence[PlacedEvent]:
    """
    What comes next for a consumer.

    Args:
        session: An open transaction.
        name: The consumer. One that is not known yet begins with the first event.
        organization_id: In whose history.
        limit: Most events.

    Returns:
        Without a gap, in order.
    """
    place = (Consumer.name == name, Consumer.organization_id == organization_id)
    position = await session.scalar(select(Consumer.position).where(*place))
    query = select(HistoryEntry.position, Event).outerjoin(Event, Event.id == HistoryEntry.event_id)
    after = query.where(HistoryEntry.organization_id == organization_id, HistoryEntry.position > (position or 0))
    rows = await session.execute(after.order_by(HistoryEntry.position).limit(limit))
    return [PlacedEvent(*row) for row in rows]


async def move_on(session: AsyncSession, name: str, organization_id: UUID, position: int) -> None:
    """
    Move a consumer forward, never back.

    Args:
        session: The open write transaction: best the one of what was done with the events.
        name: The consumer.
        organization_id: In whose history.
        position: Of the last event that is done with.
    """
    insert = (postgresql if session.get_bind().dialect.name == "postgresql" else sqlite).insert
    known = insert(Consumer).values(name=name, organization_id=organization_id, position=0)
    await session.execute(known.on_conflict_do_nothing())
    place = (Consumer.name == name, Consumer.organization_id == organization_id)
    await session.execute(update(Consumer).where(*place, Consumer.position < position).values(position=position))
