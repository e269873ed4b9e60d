"""Errors of machines as operators see them."""

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from redflag_server.client_errors.schema import ErrorItem
from redflag_server.client_errors.tables import ClientError
from redflag_server.db.pages import Page, PageOf, fetch_page
from redflag_server.db.scope import Scope


async def list_errors(
    session: AsyncSession, visible: Scope, agent_id: UUID | None, subsystem: str | None, page: PageOf
) -> Page[ErrorItem]:
    """One page of the errors that the caller may see, of all machines and subsystems when these are None."""
    query = visible.select(ClientError)
    if agent_id is not None:
        query = query.where(ClientError.agent_id == agent_id)
    if subsystem is not None:
        query = query.where(ClientError.subsystem == subsystem)
    rows, cursor = await fetch_page(session, query, ClientError, page)
    return Page([_item(row[0]) for row in rows], cursor)


def _item(error: ClientError) -> ErrorItem:
    return ErrorItem(
        id=error.id,
        agent_id=error.agent_id,
        subsystem=error.subsystem,
        type=error.type,
        message=error.message,
        stack=error.stack,
        context=dict(error.context),
        count=error.count,
        first_seen_at=error.first_seen_at,
        last_seen_at=error.last_seen_at,
    )
