"""Known answers of maintenance windows around changes of the clocks. Part of `tests.vectors.make`."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from redflag_core import codec
from redflag_core.patching.occurrences import Occurrence, occurrences
from redflag_core.patching.window_text import parse_window

CHANGES: Final = (
    ("Europe/Berlin", "2026-03-29"),
    ("Europe/Berlin", "2026-10-25"),
    ("America/New_York", "2026-03-08"),
    ("America/New_York", "2026-11-01"),
    ("Australia/Lord_Howe", "2025-10-05"),
    ("Australia/Lord_Howe", "2026-04-05"),
    ("Antarctica/Troll", "2025-03-30"),
    ("Antarctica/Troll", "2025-10-26"),
    ("America/Havana", "2025-03-09"),
    ("America/St_Johns", "2010-11-07"),
    ("Africa/Casablanca", "2025-02-23"),
    ("Asia/Gaza", "2023-04-29"),
    ("America/Scoresbysund", "2024-03-31"),
    ("Pacific/Apia", "2011-12-30"),
    ("Pacific/Kwajalein", "1993-08-21"),
)
"""Zones, and dates on which their clocks were set. Most are past: zone data about them changes no more."""

DAILY: Final = (
    "daily 02:30-04:00",
    "daily 02:15-02:45",
    "daily 01:00-02:30; last start 02:10",
    "daily 00:00-00:00",
    "daily 22:00-04:00; reboot 02:30-05:00",
    "daily 00:30-03:00",
)
MONTHLY: Final = (
    "Monday, Thursday 22:00-04:00",
    "second Sunday 02:30-04:00",
    "last Saturday 22:00-04:00; last start 03:00; except 2026-04-25, 2026-06-28..2026-07-31",
    "day 31 22:00-04:00",
    "day 31 or last 22:00-04:00",
    "Patch Tuesday 22:00-04:00",
    "Patch Tuesday + 3 22:00-04:00; from 2026-03-01; until 2026-06-30",
    "Patch Tuesday + 20 02:30-04:00; in February, March, October",
)
FULL: Final = (
    "Patch Tuesday + 3 22:00-04:00 America/New_York; in March, September; last start 03:00; reboot 04:00-05:00; "
    "from 2026-01-01; until 2027-12-31; except 2026-12-24..2026-12-26, 2027-01-01; if missed 12 hours; "
    "notice 30 minutes; postpone 2 times 45 minutes"
)


def windows() -> Any:
    """Forms of some windows, daily ones on the days around each change, and each rule over a year in Berlin."""
    around = []
    for zone, day in CHANGES:
        noon = datetime.fromisoformat(f"{day}T12:00:00+00:00")
        around += [_times(text, zone, noon - timedelta(hours=42), noon + timedelta(hours=42)) for text in DAILY]
    year = [datetime(number, 1, 1, tzinfo=UTC) for number in (2026, 2027)]
    rules = [_times(text, "Europe/Berlin", *year) for text in MONTHLY]
    return {"forms": [_form(text) for text in (*DAILY, *MONTHLY, FULL)], "occurrences": around + rules}


def _form(text: str) -> Any:
    window = parse_window(text, timezone="Europe/Berlin")
    return {"text": text, "canonical": str(window), "stored": codec.unstructure(window)}


def _times(text: str, zone: str, first: datetime, last: datetime) -> Any:
    window = parse_window(text, timezone=zone)
    found = [_occurrence(each) for each in occurrences(window, first, last)]
    return {"text": str(window), "first": _moment(first), "last": _moment(last), "occurrences": found}


def _occurrence(occurrence: Occurrence) -> Any:
    moments = ("start", "starts_until", "end", "reboot_start", "reboot_end")
    return {"key": occurrence.key} | {name: _moment(getattr(occurrence, name)) for name in moments}


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"
