"""Validators of fields in bodies and the texts that people write there."""

import re
from typing import Any, Final
from uuid import UUID

import attrs

from redflag_server.problems import InvalidRequestError

MAX_REASON: Final = 500
MAX_LABEL: Final = 200
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


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


@attrs.frozen
class Reason:
    """
    Body of a request that changes something.

    Attributes:
        reason: Why, for the event: one line.
    """

    reason: str = attrs.field(validator=line(MAX_REASON))
