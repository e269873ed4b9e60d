"""Validators of fields in bodies and the texts that people write there."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import attrs
from litestar import Request

from redflag_server.problems import InvalidRequestError

MAX_REASON: Final = 500
MAX_LABEL: Final = 200
_RFC_3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


async def refuse_nul(request: Request[Any, Any, Any]) -> None:
    """
    Hook before each handler: no address holds a NUL character, which PostgreSQL stores and compares nowhere.

    Bodies are read by the core, which refuses it itself.

    Raises:
        InvalidRequestError: It does.
    """
    if "\x00" in request.scope["path"] or b"%00" in request.scope["query_string"]:
        raise InvalidRequestError("the address holds a NUL character (%00): leave it out")


def line(limit: int) -> Any:
    """Validate one line of 1 to *limit* characters."""
    return attrs.validators.and_(attrs.validators.max_len(limit), _is_line)


def between(least: int, most: int) -> Any:
    """Validate a number."""
    return attrs.validators.and_(attrs.validators.ge(least), attrs.validators.le(most))


def _is_line(_instance: object, attribute: "attrs.Attribute[Any]", value: str) -> None:
    if not value.strip() or _CONTROL.search(value):
        raise ValueError(f"{attribute.name} must be one line of text")


def uuid_of(name: str, text: str | None) -> UUID | None:
    """
    An id of a body.

    Raises:
        InvalidRequestError: Not a UUID. The message names the field.
    """
    try:
        return None if text is None else UUID(text)
    except ValueError:
        raise InvalidRequestError(f"{name} is not a UUID") from None


def ids_of(name: str, texts: Iterable[str]) -> list[UUID]:
    """
    Ids of a body.

    Raises:
        InvalidRequestError: One is not a UUID. The message names the field.
    """
    try:
        return [UUID(text) for text in texts]
    except ValueError:
        raise InvalidRequestError(f"{name} holds something that is not a UUID") from None


def moment_of(name: str, text: str | None) -> datetime | None:
    """
    A time of a body, in UTC.

    Raises:
        InvalidRequestError: It is no RFC 3339 time with an offset. The message names the field.
    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text).astimezone(UTC) if _RFC_3339.fullmatch(text) else None
    except (ValueError, OverflowError):
        moment = None
    if moment is None:
        raise InvalidRequestError(f"{name} is no time like 2026-02-01T00:00:00Z")
    return moment


@attrs.frozen
class Reason:
    """
    Body of a request that changes something.

    Attributes:
        reason: Why, for the event: one line.
    """

    reason: str = attrs.field(validator=line(MAX_REASON))
