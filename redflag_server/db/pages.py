"""Lists in pages, by the id of the last row (keyset): no page skips or repeats what was there all along."""

from collections.abc import Sequence
from typing import Any, Final, Generic, TypeVar
from uuid import UUID

import attrs
from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.encoding import b64url_decode, b64url_encode
from redflag_core.errors import MalformedError
from redflag_server.problems import InvalidRequestError

T = TypeVar("T")

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000
"""Most items on a page: about a megabyte of packages."""


@attrs.frozen
class Page(Generic[T]):
    """
    One page of a list.

    Attributes:
        items: What is on it.
        next: Cursor of the next page, None on the last one.
    """

    items: list[T]
    next: str | None


@attrs.frozen
class PageOf:
    """
    Which page is wanted.

    Attributes:
        cursor: `Page.next` of the page before, untrusted; None for the first.
        limit: Most items, 1 to `MAX_LIMIT`.
        newest_first: Whether ids go down.
    """

    cursor: str | None = None
    limit: int = DEFAULT_LIMIT
    newest_first: bool = False


async def fetch_page(
    session: AsyncSession, query: "Select[Any]", table: Any, wanted: PageOf
) -> tuple[Sequence[Any], str | None]:
    """
    One page of the rows that *query* selects.

    Args:
        session: An open transaction.
        query: A SELECT whose first column is the whole row of *table*.
        table: The table whose id gives the order.
        wanted: Which page.

    Returns:
        Its rows, and the cursor of the next page.

    Raises:
        InvalidRequestError: The cursor is none that this server gave out.
    """
    if wanted.cursor is not None:
        last = parse_cursor(wanted.cursor)
        query = query.where(table.id < last if wanted.newest_first else table.id > last)
    order = table.id.desc() if wanted.newest_first else table.id
    rows = (await session.execute(query.order_by(order).limit(wanted.limit + 1))).all()
    if len(rows) <= wanted.limit:
        return rows, None
    return rows[: wanted.limit], make_cursor(rows[wanted.limit - 1][0].id)


def make_cursor(last: UUID) -> str:
    """The cursor of what comes after *last*."""
    return b64url_encode(last.bytes)


def parse_cursor(text: str) -> UUID:
    """The id that a cursor stands for; raises `InvalidRequestError`."""
    try:
        return UUID(bytes=b64url_decode(text))
    except (MalformedError, ValueError):
        raise InvalidRequestError("cursor is not one of this list: take it from `next`") from None
