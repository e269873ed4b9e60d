"""Errors as operators see them."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_server.client_errors.schema import ErrorCount, ErrorCounts, ErrorItem
from redflag_server.client_errors.tables import ClientError, ErrorSource
from redflag_server.db.pages import Page, PageOf, fetch_page
from redflag_server.db.scope import Scope
from redflag_server.problems import NotFoundError

MAX_COUNTED: Final = 100
"""Lines of counts: what is beyond is rare."""


_CONDITIONS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "source": lambda value: ClientError.source == value,
    "agent_id": lambda value: ClientError.agent_id == value,
    "subsystem": lambda value: ClientError.subsystem == value,
    "kind": lambda value: ClientError.type == value,
    "digest": lambda value: ClientError.digest == value,
    "text": lambda value: func.lower(ClientError.message).contains(value.lower(), autoescape=True),
    "since": lambda value: ClientError.last_seen_at >= value,
    "until": lambda value: ClientError.first_seen_at < value,
    "resolved": lambda value: ClientError.resolved_at.is_not(None) if value else ClientError.resolved_at.is_(None),
}


@attrs.frozen(kw_only=True)
class ErrorFilter:
    """
    Which errors are wanted; None is all of them.

    Attributes:
        source: Who met them.
        agent_id: The machine.
        subsystem: Part of the agent or server.
        kind: Type.
        digest: What makes two errors the same.
        text: Part of the message, in any case.
        since: Seen at this time or later.
        until: Seen first before this time.
        resolved: Only those that are resolved, or only the others.
    """

    source: ErrorSource | None = None
    agent_id: UUID | None = None
    subsystem: str | None = None
    kind: str | None = None
    digest: str | None = None
    text: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    resolved: bool | None = None

    def conditions(self) -> list[Any]:
        """What rows must meet."""
        values = attrs.asdict(self, recurse=False)
        return [_CONDITIONS[name](value) for name, value in values.items() if value is not None]


async def list_errors(session: AsyncSession, visible: Scope, wanted: ErrorFilter, page: PageOf) -> Page[ErrorItem]:
    """One page of the errors that the caller may see."""
    query = visible.select(ClientError).where(*wanted.conditions())
    rows, cursor = await fetch_page(session, query, ClientError, page)
    return Page([error_item(row[0]) for row in rows], cursor)


async def get_error(session: AsyncSession, visible: Scope, error_id: UUID) -> ErrorItem:
    """
    One kind of error.

    Raises:
        NotFoundError: No such error, or not for the caller to see.
    """
    query = visible.select(ClientError).where(ClientError.id == error_id)
    error: ClientError | None = (await session.scalars(query)).one_or_none()
    if error is None:
        raise NotFoundError("there is no such error")
    return error_item(error)


async def count_kinds(session: AsyncSession, visible: Scope, wanted: ErrorFilter) -> ErrorCounts:
    """Errors that the caller may see, counted by source, subsystem and type."""
    groups = (ClientError.source, ClientError.subsystem, ClientError.type)
    kinds, count = func.count(), func.sum(ClientError.count)
    sums = (kinds, func.count(ClientError.agent_id.distinct()), count, func.max(ClientError.last_seen_at))
    conditions = wanted.conditions()
    query = visible.select(ClientError, *groups, *sums).where(*conditions).group_by(*groups)
    rows = (await session.execute(query.order_by(count.desc(), *groups).limit(MAX_COUNTED))).all()
    (total,) = (await session.execute(visible.select(ClientError, kinds, count).where(*conditions))).all()
    items = [
        ErrorCount(ErrorSource(source), subsystem, kind, number, machines, int(met), last)
        for source, subsystem, kind, number, machines, met, last in rows
    ]
    return ErrorCounts(items, total[0], int(total[1] or 0))


def error_item(error: ClientError) -> ErrorItem:
    """What the API says of a row."""
    return ErrorItem(
        id=error.id,
        organization_id=error.organization_id,
        source=ErrorSource(error.source),
        agent_id=error.agent_id,
        digest=error.digest,
        subsystem=error.subsystem,
        type=error.type,
        message=error.message,
        stack=error.stack,
        context=dict(error.context),
        count=error.count,
        first_seen_at=error.first_seen_at,
        last_seen_at=error.last_seen_at,
        resolved_at=error.resolved_at,
        resolved_by=error.resolved_by,
        resolution=error.resolution,
    )
