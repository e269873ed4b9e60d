"""Events as operators see them."""

from typing import Any
from uuid import UUID

import attrs
from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_server.db.pages import Page, PageOf, fetch_page
from redflag_server.db.scope import Scope
from redflag_server.events.schema import EventItem
from redflag_server.events.tables import Event, HistoryEntry
from redflag_server.problems import InvalidRequestError


@attrs.frozen
class EventFilter:
    """
    Which events.

    Attributes:
        kind: Of this kind; None for all.
        agent_id: About this machine; None for all.
        package_id: About this package; None for all.
        code: With this error code; None for all.
        organization_id: Of this organization; None for all.
    """

    kind: str | None = None
    agent_id: UUID | None = None
    package_id: UUID | None = None
    code: str | None = None
    organization_id: UUID | None = None


async def list_events(session: AsyncSession, visible: Scope, wanted: EventFilter, page: PageOf) -> Page[EventItem]:
    """One page of the events that the caller may see."""
    query = visible.select(Event, Event, HistoryEntry.position)
    query = query.outerjoin(HistoryEntry, HistoryEntry.event_id == Event.id)
    rows, cursor = await fetch_page(session, _filtered(query, wanted), Event, page)
    return Page([_item(event, position) for event, position in rows], cursor)


async def list_events_after(
    session: AsyncSession, visible: Scope, wanted: EventFilter, position: int, limit: int
) -> Page[EventItem]:
    """
    The events that follow a position in the history of an organization, oldest first.

    There is no cursor: the position of the last one is where to go on.

    Raises:
        InvalidRequestError: It is not clear in which history.
    """
    seen = visible.caller.organizations
    organization_id = wanted.organization_id or (next(iter(seen)) if seen is not None and len(seen) == 1 else None)
    if organization_id is None:
        raise InvalidRequestError("each organization has its own positions: say which, with organization_id")
    query = visible.select(Event, Event, HistoryEntry.position)
    query = query.join(HistoryEntry, HistoryEntry.event_id == Event.id)
    after = query.where(HistoryEntry.organization_id == organization_id, HistoryEntry.position > position)
    found = await session.execute(_filtered(after, wanted).order_by(HistoryEntry.position).limit(limit))
    return Page([_item(event, place) for event, place in found], None)


def _filtered(query: "Select[Any]", wanted: EventFilter) -> "Select[Any]":
    if wanted.organization_id is not None:
        query = query.where(Event.organization_id == wanted.organization_id)
    if wanted.kind is not None:
        query = query.where(Event.kind == wanted.kind)
    if wanted.agent_id is not None:
        query = query.where(Event.agent_id == wanted.agent_id)
    if wanted.package_id is not None:
        query = query.where(Event.package_id == wanted.package_id)
    if wanted.code is not None:
        query = query.where(Event.code == wanted.code)
    return query


def _item(event: Event, position: int | None) -> EventItem:
    return EventItem(
        id=event.id,
        organization_id=event.organization_id,
        at=event.at,
        kind=event.kind,
        actor=event.actor,
        agent_id=event.agent_id,
        package_id=event.package_id,
        code=event.code,
        message=event.message,
        data=dict(event.data),
        position=position,
    )
