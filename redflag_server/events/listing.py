"""Events as operators see them."""

from uuid import UUID

import attrs
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_server.db.pages import Page, PageOf, fetch_page
from redflag_server.db.scope import Scope
from redflag_server.events.schema import EventItem
from redflag_server.events.tables import Event


@attrs.frozen
class EventFilter:
    """
    Which events.

    Attributes:
        kind: Of this kind; None for all.
        agent_id: About this machine; None for all.
        package_id: About this package; None for all.
        code: With this error code; None for all.
    """

    kind: str | None = None
    agent_id: UUID | None = None
    package_id: UUID | None = None
    code: str | None = None


async def list_events(session: AsyncSession, visible: Scope, wanted: EventFilter, page: PageOf) -> Page[EventItem]:
    """One page of the events that the caller may see."""
    query = visible.select(Event)
    if wanted.kind is not None:
        query = query.where(Event.kind == wanted.kind)
    if wanted.agent_id is not None:
        query = query.where(Event.agent_id == wanted.agent_id)
    if wanted.package_id is not None:
        query = query.where(Event.package_id == wanted.package_id)
    if wanted.code is not None:
        query = query.where(Event.code == wanted.code)
    rows, cursor = await fetch_page(session, query, Event, page)
    return Page([_item(row[0]) for row in rows], cursor)


def _item(event: Event) -> EventItem:
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
    )
