"""
The text form of a maintenance window: what people write, read into a `Window`.

``RULE START-END ZONE`` and, after semicolons, what else is said of it. `Window.__str__` prints the same language
in its one canonical form, so that what was read is shown as it was understood.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from redflag_core.errors import PolicyError
from redflag_core.patching.recurrence import MONTHS, Every, Nth, Recurrence, Weekday
from redflag_core.patching.windows import UNITS, Blackout, Span, Window
from redflag_core.patching.zones import zone_of

T = TypeVar("T")

MAX_WINDOW_TEXT: Final = 4_096
"""Longest text read: `MAX_BLACKOUTS` ranges take 2,400 characters."""

WINDOW_FORM: Final = (
    'write it as "daily 02:30-04:00 Europe/Berlin", "Monday, Thursday 22:00-04:00", "last Saturday 22:00-04:00", '
    '"day 31 or last 01:00-03:00" or "Patch Tuesday + 3 22:00-04:00", with, after semicolons: "last start 03:00", '
    '"in March, September", "reboot 04:00-05:00", "from 2026-01-01", "until 2026-12-31", '
    '"except 2026-12-24..2026-12-26, 2027-01-01", "if missed 12 hours", "notice 30 minutes", '
    '"postpone 2 times 30 minutes"'
)

_HEAD: Final = re.compile(r"(?P<rule>.+?) (?P<start>[0-9:]{5}) ?- ?(?P<end>[0-9:]{5})(?: (?P<zone>[^ ]+))?")
_MONTHLY: Final = re.compile(rf"({'|'.join(Nth)}) ([a-z]+)")
_DAY: Final = re.compile(r"day ([0-9]{1,2})( or last)?")
_PATCH: Final = re.compile(r"patch tuesday(?: ?\+ ?([0-9]{1,2}))?")
_SPAN: Final = re.compile(r"([0-9:]{5}) ?- ?([0-9:]{5})")
_DURATION: Final = re.compile(r"([0-9]{1,5}) ?(day|hour|minute)s?")
_POSTPONE: Final = re.compile(r"([0-9]{1,2}) times? (.+)")
_SHORTEST_NAME: Final = 3


def parse_window(text: str, *, timezone: str | None = None) -> Window:
    """
    Read a window such as ``last Saturday 22:00-04:00 Europe/Berlin; last start 03:00``.

    Args:
        text: What somebody wrote. Blanks, case and the order of what follows the first semicolon do not matter.
        timezone: Zone of the site, for a text that names none; None when it must.

    Raises:
        PolicyError: Anything else; the message says what is wrong, and shows the accepted form.
    """
    try:
        return _window(text, timezone)
    except ValueError as error:
        raise PolicyError(f"{error.args[0]}: {WINDOW_FORM}") from None


def _window(text: str, timezone: str | None) -> Window:
    if len(text) > MAX_WINDOW_TEXT:
        raise ValueError(f"a maintenance window has at most {MAX_WINDOW_TEXT} characters")
    head, *clauses = (" ".join(part.split()) for part in text.split(";"))
    match = _match(_HEAD, head, "a maintenance window")
    zone = match["zone"] or timezone
    if zone is None:
        raise ValueError("the time zone is missing")
    zone_of(zone)
    said = _clauses(clauses)
    recurrence = _recurrence(match["rule"].lower(), said.pop("months", ()))
    return _made(Window, recurrence=recurrence, span=_span(match["start"], match["end"]), timezone=zone, **said)


def _clauses(clauses: list[str]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for clause in filter(None, clauses):
        words = clause.lower()
        name = next((name for name in _CLAUSES if words.startswith(f"{name} ")), None)
        if name is None:
            raise ValueError(f"{clause[:40]!r} is nothing that is said of a maintenance window")
        new = _CLAUSES[name](words.removeprefix(f"{name} "))
        if new.keys() & said.keys():
            raise ValueError(f"{name!r} is said twice")
        said |= new
    return said


def _recurrence(rule: str, months: tuple[int, ...]) -> Recurrence:
    if rule == "daily":
        return _made(Recurrence, every=Every.DAY, months=months)
    if match := _PATCH.fullmatch(rule):
        return _made(Recurrence, every=Every.PATCH_TUESDAY, plus_days=int(match[1] or 0), months=months)
    if match := _DAY.fullmatch(rule):
        last = match[2] is not None
        return _made(Recurrence, every=Every.DAY_OF_MONTH, day=int(match[1]), or_last_day=last, months=months)
    if match := _MONTHLY.fullmatch(rule):
        day, kind = _weekday(match[2]), Every.WEEKDAY_OF_MONTH
        return _made(Recurrence, every=kind, nth=Nth(match[1]), weekdays=(day,), months=months)
    days = tuple(sorted({_weekday(name) for name in _items(rule)}, key=lambda day: day.number))
    return _made(Recurrence, every=Every.WEEK, weekdays=days, months=months)


def _weekday(name: str) -> Weekday:
    return Weekday(_named(name, tuple(Weekday), "a day of the week"))


def _months(text: str) -> dict[str, Any]:
    numbers: set[int] = set()
    for item in _items(text):
        first, *more = (_month(name) for name in item.split(" to ", 1))
        last = more[0] if more else first
        # November to February goes over the end of a year.
        numbers |= {(first - 1 + step) % 12 + 1 for step in range((last - first) % 12 + 1)}
    return {"months": tuple(sorted(numbers))}


def _month(name: str) -> int:
    names = tuple(month.lower() for month in MONTHS)
    return names.index(_named(name, names, "a month")) + 1


def _named(text: str, names: tuple[str, ...], what: str) -> str:
    """The name that *text* is, or the first letters of."""
    found = [name for name in names if name.startswith(text) and len(text) >= _SHORTEST_NAME]
    if len(found) != 1:
        raise ValueError(f"{text[:40]!r} is not {what}")
    return found[0]


def _blackouts(text: str) -> dict[str, Any]:
    ranges = (item.split("..", 1) for item in _items(text))
    blackouts = {_made(Blackout, first=dates[0].strip(), last=dates[-1].strip()) for dates in ranges}
    return {"blackouts": tuple(sorted(blackouts, key=lambda each: (each.first, each.last)))}


def _reboot(text: str) -> dict[str, Any]:
    match = _match(_SPAN, text, "a time like 04:00-05:00")
    return {"reboot": _span(match[1], match[2])}


def _postpone(text: str) -> dict[str, Any]:
    match = _match(_POSTPONE, text, "how often and how long it can be postponed")
    return {"postpone_times": int(match[1]), "postpone": _minutes(match[2])}


def _span(start: str, end: str) -> Span:
    return _made(Span, start=start, end=end)


def _minutes(text: str) -> int:
    match = _match(_DURATION, text, "a time like 30 minutes or 2 hours")
    return int(match[1]) * UNITS[match[2]]


_CLAUSES: Final[Mapping[str, Callable[[str], dict[str, Any]]]] = {
    "in": _months,
    "last start": lambda text: {"last_start": text},
    "reboot": _reboot,
    "from": lambda text: {"valid_from": text},
    "until": lambda text: {"valid_until": text},
    "except": _blackouts,
    "if missed": lambda text: {"run_if_missed": _minutes(text)},
    "notice": lambda text: {"notice": _minutes(text)},
    "postpone": _postpone,
}
"""What can be said after a semicolon, by its first words."""


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",")]


def _match(pattern: re.Pattern[str], text: str, what: str) -> re.Match[str]:
    match = pattern.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is not {what}")
    return match


def _made(cls: Callable[..., T], **fields: Any) -> T:
    """A value; what its validators of attrs say, without the parts that only a programmer needs."""
    try:
        return cls(**fields)
    except ValueError as error:
        raise ValueError(_plain(str(error.args[0]))) from None


_VALIDATOR: Final = re.compile(r"(?:Length of )?'([a-z_]+)' must .*", re.DOTALL)


def _plain(text: str) -> str:
    quoted = _VALIDATOR.fullmatch(text)
    return f"the {quoted[1].replace('_', ' ')} is out of bounds" if quoted else text
