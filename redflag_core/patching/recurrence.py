"""
On which dates something comes round: a closed set of rules, each with one text and one stored form.

Dates are those of the calendar, without a time zone: what they mean on a clock is decided in
`redflag_core.patching.windows`.
"""

from calendar import monthrange
from collections.abc import Callable, Iterator, Mapping
from datetime import date, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final

import attrs
from attrs import validators

FIRST_DAY: Final = date(1900, 1, 1)
LAST_DAY: Final = date(2199, 12, 31)
"""The calendar in which rules are followed. No rule that occurs at all pauses for more than forty years."""

MAX_PLUS_DAYS: Final = 27
"""Most days after Patch Tuesday: the next one is at least 28 days later, so months never change places."""

_ONE_DAY: Final = timedelta(days=1)
_LEAP_YEAR: Final = 2000
_NEVER_MISSING: Final = 28
"""Days that every month has."""


class Weekday(StrEnum):
    """Days of the week, Monday first."""

    MONDAY = "monday"
    TUESDAY = "tuesday"
    WEDNESDAY = "wednesday"
    THURSDAY = "thursday"
    FRIDAY = "friday"
    SATURDAY = "saturday"
    SUNDAY = "sunday"

    @property
    def number(self) -> int:
        """0 for Monday, as `datetime.date.weekday` has it."""
        return list(Weekday).index(self)


class Nth(StrEnum):
    """Which one of the same weekdays of a month. A fifth is not in every month: say ``last``."""

    FIRST = "first"
    SECOND = "second"
    THIRD = "third"
    FOURTH = "fourth"
    LAST = "last"


class Every(StrEnum):
    """The kinds of rules."""

    DAY = "day"
    WEEK = "week"
    WEEKDAY_OF_MONTH = "weekday_of_month"
    DAY_OF_MONTH = "day_of_month"
    PATCH_TUESDAY = "patch_tuesday"
    """The second Tuesday of a month, when Microsoft and others publish their updates."""


MONTHS: Final = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)

_NEEDS: Final[Mapping[Every, frozenset[str]]] = {
    Every.DAY: frozenset(),
    Every.WEEK: frozenset({"weekdays"}),
    Every.WEEKDAY_OF_MONTH: frozenset({"weekdays", "nth"}),
    Every.DAY_OF_MONTH: frozenset({"day"}),
    Every.PATCH_TUESDAY: frozenset({"plus_days"}),
}
"""What each kind must say, and nothing else."""

_PARTS: Final = ("weekdays", "nth", "day", "plus_days")


def ascending(order: Callable[[Any], Any]) -> Any:
    """Validate that the items of a tuple are in order, each once: what means the same is written the same."""

    def check(_instance: Any, attribute: "attrs.Attribute[Any]", value: tuple[Any, ...]) -> None:
        places = [order(item) for item in value]
        if any(first >= second for first, second in pairwise(places)):
            raise ValueError(f"{attribute.name} are not in order, each once")

    return check


@attrs.frozen(kw_only=True)
class Recurrence:
    """
    A rule for dates.

    Attributes:
        every: Its kind.
        weekdays: For ``week`` the days, in order; for ``weekday_of_month`` the one.
        nth: For ``weekday_of_month``, which of them.
        day: For ``day_of_month``, 1 to 31.
        or_last_day: For a *day* that some months do not have: whether these have it on their last day. Otherwise
            it is skipped there.
        plus_days: For ``patch_tuesday``, days after it. The date may be in the next month.
        months: Months in which it comes round, 1 to 12, in order; empty for all. For ``patch_tuesday`` the month
            is that of the Tuesday.
    """

    every: Every
    weekdays: tuple[Weekday, ...] = attrs.field(default=(), validator=ascending(lambda day: day.number))
    nth: Nth | None = None
    day: int | None = attrs.field(
        default=None, validator=validators.optional([validators.ge(1), validators.le(31)])
    )
    or_last_day: bool = False
    plus_days: int | None = attrs.field(
        default=None, validator=validators.optional([validators.ge(0), validators.le(MAX_PLUS_DAYS)])
    )
    months: tuple[int, ...] = attrs.field(
        default=(),
        validator=[
            validators.deep_iterable(validators.and_(validators.ge(1), validators.le(12))),
            ascending(lambda month: month),
        ],
    )

    def __attrs_post_init__(self) -> None:
        """A rule says what its kind needs, and there is a day on which it comes round."""
        said = {name for name in _PARTS if getattr(self, name) not in ((), None)}
        if said != _NEEDS[self.every]:
            needs = ", ".join(sorted(_NEEDS[self.every])) or "nothing else"
            raise ValueError(f"a rule for every {self.every.replace('_', ' ')} needs {needs}")
        if self.nth is not None and len(self.weekdays) != 1:
            raise ValueError("name one weekday of the month")
        if self.or_last_day and (self.day is None or self.day <= _NEVER_MISSING):
            raise ValueError("only day 29, 30 or 31 can be missing in a month: leave out the last day")
        if not any(self._in_month(_LEAP_YEAR, month) for month in self.months or (1,)):
            raise ValueError(f"none of these months has a day {self.day}")

    def __str__(self) -> str:
        if self.every is Every.PATCH_TUESDAY:
            return f"Patch Tuesday + {self.plus_days}" if self.plus_days else "Patch Tuesday"
        if self.every is Every.DAY_OF_MONTH:
            return f"day {self.day} or last" if self.or_last_day else f"day {self.day}"
        days = ", ".join(day.capitalize() for day in self.weekdays)
        return f"{self.nth} {days}" if self.nth else days or "daily"

    def dates(self, first: date, last: date) -> Iterator[date]:
        """The dates from *first* to *last*, both included, in order."""
        first, last = max(first, FIRST_DAY), min(last, LAST_DAY)
        # Patch Tuesday + N of one month may be in the next.
        for year, month in _months_between(max(first - 31 * _ONE_DAY, FIRST_DAY), last):
            if not self.months or month in self.months:
                yield from (day for day in self._in_month(year, month) if first <= day <= last)

    def _in_month(self, year: int, month: int) -> list[date]:
        return _IN_MONTH[self.every](self, year, month)


def _all_days(_rule: Recurrence, year: int, month: int) -> list[date]:
    return [date(year, month, day) for day in range(1, monthrange(year, month)[1] + 1)]


def _days_of_week(rule: Recurrence, year: int, month: int) -> list[date]:
    numbers = {day.number for day in rule.weekdays}
    return [day for day in _all_days(rule, year, month) if day.weekday() in numbers]


def _weekday_of_month(rule: Recurrence, year: int, month: int) -> list[date]:
    place = -1 if rule.nth is Nth.LAST else list(Nth).index(rule.nth or Nth.LAST)
    return [_days_of_week(rule, year, month)[place]]


def _day_of_month(rule: Recurrence, year: int, month: int) -> list[date]:
    day, length = rule.day or 1, monthrange(year, month)[1]
    return [] if day > length and not rule.or_last_day else [date(year, month, min(day, length))]


def _patch_tuesday(rule: Recurrence, year: int, month: int) -> list[date]:
    # The second Tuesday is the one from the 8th to the 14th.
    eighth = date(year, month, 8)
    tuesday = eighth + (Weekday.TUESDAY.number - eighth.weekday()) % 7 * _ONE_DAY
    return [tuesday + (rule.plus_days or 0) * _ONE_DAY]


_IN_MONTH: Final[Mapping[Every, Callable[[Recurrence, int, int], list[date]]]] = {
    Every.DAY: _all_days,
    Every.WEEK: _days_of_week,
    Every.WEEKDAY_OF_MONTH: _weekday_of_month,
    Every.DAY_OF_MONTH: _day_of_month,
    Every.PATCH_TUESDAY: _patch_tuesday,
}


def _months_between(first: date, last: date) -> Iterator[tuple[int, int]]:
    for number in range(first.year * 12 + first.month - 1, last.year * 12 + last.month):
        yield divmod(number, 12)[0], number % 12 + 1
