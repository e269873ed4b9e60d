"""
Time zones by name, and the one rule by which a wall clock becomes an instant.

*A reading of a wall clock means the first instant at which that clock shows it or a later one.* Where clocks are
set forward and the reading is skipped, that is the first instant after the gap; where they are set back and it
comes twice, that is the first time. The rule keeps the order: a later reading is never an earlier instant.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from redflag_core.errors import PolicyError

_KEY: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+-]{0,31}(?:/[A-Za-z0-9_+-]{1,32}){0,2}")
"""Names of the IANA database: no dots, no absolute path, at most three parts (America/Argentina/Ushuaia)."""

_NOT_ZONES: Final = ("localtime", "posixrules", "posix/", "right/")
"""In the zone folder of a system, not in the database: they are the machine's own zone, or count leap seconds."""

_SECOND: Final = timedelta(seconds=1)
"""Every change of an offset is at a whole second: the file format knows nothing smaller (RFC 9636)."""


def zone_of(name: str) -> ZoneInfo:
    """
    The time zone with a name.

    Args:
        name: Untrusted. Only a name of the IANA database is ever looked up, never a path.

    Raises:
        PolicyError: There is no such time zone.
    """
    if name.startswith(_NOT_ZONES):
        raise PolicyError(
            f"there is no time zone {name[:64]!r} that is the same on every machine: "
            "write one of the IANA database, like Europe/Berlin"
        )
    if not _KEY.fullmatch(name):
        raise _no_zone(name)
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        raise _no_zone(name) from None


def is_zone(_instance: Any, _attribute: Any, value: str) -> None:
    """Validate the name of a time zone."""
    try:
        zone_of(value)
    except PolicyError as error:
        raise ValueError(error.message) from None


def first_instant(reading: datetime, zone: ZoneInfo) -> datetime:
    """
    The first instant at which the clocks of *zone* show *reading* or a later time.

    Args:
        reading: What a wall clock shows, naive, in whole seconds.
        zone: Time zone.

    Returns:
        Aware UTC.
    """
    instant = reading.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if wall(instant, zone) == reading:
        return instant
    # In a gap the offset before it gives an instant after it, and the offset after it gives one before (PEP 495).
    return _end_of_gap(reading.replace(tzinfo=zone, fold=1).astimezone(UTC), instant, reading, zone)


def wall(instant: datetime, zone: ZoneInfo) -> datetime:
    """What the clocks of *zone* show at an aware instant, naive."""
    return instant.astimezone(zone).replace(tzinfo=None)


def aware(moment: datetime) -> datetime:
    """
    *moment* in UTC.

    Raises:
        ValueError: A naive datetime: a bug of the caller, and Python would take it for this machine's local time.
    """
    if moment.utcoffset() is None:
        raise ValueError("a time must be an aware datetime")
    return moment.astimezone(UTC)


def _end_of_gap(before: datetime, after: datetime, reading: datetime, zone: ZoneInfo) -> datetime:
    """The first instant in (*before*, *after*] at which the clocks are past *reading*, by halving."""
    while after - before > _SECOND:
        middle = before + (after - before) // (2 * _SECOND) * _SECOND
        if wall(middle, zone) < reading:
            before = middle
        else:
            after = middle
    return after


def _no_zone(name: str) -> PolicyError:
    return PolicyError(
        f"there is no time zone {name[:64]!r}: write one of the IANA database, like Europe/Berlin; "
        "if it is one, the time zone data of this system are missing or old (package tzdata)"
    )
