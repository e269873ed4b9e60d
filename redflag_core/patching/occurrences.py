"""
When a maintenance window is open: its occurrences, and which of them is to be run now.

Two rules hold for the whole file. *Every date of a rule is exactly one occurrence*, whatever the clocks do on it,
and an occurrence is known by its rule and that date: so "one run for each" can be decided from what was stored.
And *what a gap leaves of an occurrence is never too short to be used*: see `SHORTEST`.

All instants are aware UTC. Ends are not included.
"""

import datetime as dt
from collections.abc import Iterator
from datetime import datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import attrs

from redflag_core.patching.recurrence import LAST_DAY
from redflag_core.patching.windows import Span, Window, is_blacked_out, later_reading, reading_on
from redflag_core.patching.zones import aware, first_instant, wall, zone_of

SHORTEST: Final = timedelta(minutes=15)
"""
What a gap leaves of an occurrence at least. Where less would be left, or nothing, it is as long as on any other
day, counted from its start: a machine that asks every few minutes must find it.
"""

CLOCK_STEP: Final = timedelta(days=1)
"""
A last run later than now by more was recorded by a clock that was wrong, and does not count: otherwise nothing
would run until that time has come.
"""

_DAY: Final = timedelta(days=1)
_LONGEST: Final = 3 * _DAY
"""From the date of an occurrence to its end: a day of window, and a day that a zone left out (Apia, 2011)."""


@attrs.frozen(kw_only=True)
class Run:
    """
    The last run that was started in a window: what is stored.

    Attributes:
        rule: `Occurrence.rule` of what it ran for.
        date: Likewise `Occurrence.date`.
        at: When it was started, aware UTC.
    """

    rule: str
    date: dt.date
    at: datetime


@attrs.frozen(kw_only=True)
class Occurrence:
    """
    One time that a window comes round.

    Attributes:
        rule: `Window.rule`.
        date: Local date that it belongs to, by the rule. With *rule*, it is what identifies it.
        start: From when work may start.
        starts_until: From then on nothing starts: after *start* and not after *end*.
        end: When it closes.
        notice_at: When to tell people.
        reboot_start: From when machines may be started anew.
        reboot_end: Until when.
    """

    rule: str
    date: dt.date
    start: datetime
    starts_until: datetime
    end: datetime
    notice_at: datetime
    reboot_start: datetime
    reboot_end: datetime

    @property
    def key(self) -> str:
        """Its identity as one text: unchanged when zone data or clocks change."""
        return f"{self.date} {self.rule}"

    def run(self, at: datetime) -> Run:
        """What to store when its run is started at *at*, aware."""
        return Run(rule=self.rule, date=self.date, at=aware(at))


@attrs.frozen(kw_only=True)
class Postponed:
    """
    That people at a machine put a run off: what is stored.

    Attributes:
        key: `Occurrence.key` of what it is about.
        times: How often they did.
        until: Until when, aware UTC.
    """

    key: str
    times: int
    until: datetime


@attrs.frozen
class Due:
    """
    A run that is to be started now.

    Attributes:
        occurrence: What it runs for. Store `Occurrence.run` before starting anything.
        missed: Whether the window is over, and this makes up for it.
    """

    occurrence: Occurrence
    missed: bool


def occurrences(window: Window, first: datetime, last: datetime) -> Iterator[Occurrence]:
    """
    Every occurrence that starts within a time, in order of their dates.

    Args:
        window: The window.
        first: Beginning of that time, aware, included.
        last: End of it, aware, not included.
    """
    zone, first, last = zone_of(window.timezone), aware(first), aware(last)
    found = _on_dates(window, zone, wall(first, zone).date() - 2 * _DAY, wall(last, zone).date() + _DAY)
    return (each for each in found if first <= each.start < last)


def current(window: Window, at: datetime) -> Occurrence | None:
    """
    The occurrence that is open at a time, aware; None when the window is closed.

    Where two are open at once (see `due`), the earlier one.
    """
    at = aware(at)
    return next((each for each in _started(window, at, timedelta()) if at < each.end), None)


def current_reboot(window: Window, at: datetime) -> Occurrence | None:
    """The occurrence within whose reboot window a time lies, aware; None outside all of them."""
    at = aware(at)
    return next((each for each in _started(window, at, _DAY) if each.reboot_start <= at < each.reboot_end), None)


def following(window: Window, after: datetime) -> Occurrence | None:
    """The first occurrence that starts after a time, aware; None when there is none before the year 2200."""
    zone, after = zone_of(window.timezone), aware(after)
    found = _on_dates(window, zone, wall(after, zone).date() - 2 * _DAY, LAST_DAY)
    return next((each for each in found if each.start > after), None)


def due(window: Window, at: datetime, last_run: Run | None, postponed: Postponed | None = None) -> Due | None:
    """
    The occurrence whose run is to be started now, so that each gets one run and none gets two.

    Open ones come first, the earliest before the others: two are open at once only around a date that the zone
    left out. A missed one is made up for only until the next one starts, and only the latest.

    Args:
        window: The window, as it is now.
        at: Current time, aware.
        last_run: The last run that was started for this window; None for none. When it was for another rule, the
            window was changed since: then an occurrence that had started when it ran counts as run.
        postponed: What people put off last; None for nothing. It only holds back the occurrence it is about.
    """
    zone, at = zone_of(window.timezone), aware(at)
    started = list(_started(window, at, timedelta(minutes=window.run_if_missed)))
    waiting = [each for each in started if not has_run(each, last_run, at)]
    for each in waiting:
        if at < each.starts_until and not is_put_off(each, postponed, at):
            return Due(each, missed=False)
    if not waiting or waiting[-1] is not started[-1] or is_blacked_out(window, wall(at, zone).date()):
        return None
    end = waiting[-1].end
    return Due(waiting[-1], missed=True) if end <= at < end + timedelta(minutes=window.run_if_missed) else None


def is_put_off(occurrence: Occurrence, postponed: Postponed | None, at: datetime) -> bool:
    """Whether people put its run off until later than *at*, aware."""
    return postponed is not None and postponed.key == occurrence.key and at < postponed.until


def has_run(occurrence: Occurrence, last_run: Run | None, at: datetime) -> bool:
    """
    Whether its run was started.

    Args:
        occurrence: The occurrence.
        last_run: The last run that was started for its window; None for none.
        at: Current time, aware.
    """
    if last_run is None or last_run.at > at + CLOCK_STEP:
        return False
    if last_run.rule == occurrence.rule:
        return last_run.date >= occurrence.date
    return last_run.at >= occurrence.start


def _started(window: Window, at: datetime, back: timedelta) -> Iterator[Occurrence]:
    """Occurrences that started at or before *at*: all that were open then or within *back* before it."""
    zone = zone_of(window.timezone)
    today = wall(at, zone).date()
    found = _on_dates(window, zone, today - _LONGEST - back, today)
    return (each for each in found if each.start <= at)


def _on_dates(window: Window, zone: ZoneInfo, first: dt.date, last: dt.date) -> Iterator[Occurrence]:
    if window.valid_from is not None:
        first = max(first, dt.date.fromisoformat(window.valid_from))
    if window.valid_until is not None:
        last = min(last, dt.date.fromisoformat(window.valid_until))
    rule = window.rule
    for day in window.recurrence.dates(first, last):
        if is_blacked_out(window, day):
            continue
        occurrence = _occurrence(window, rule, day, zone)
        # A date that the zone left out begins when it is over: that may be on a date without work.
        if occurrence.start < occurrence.starts_until:
            yield occurrence


def _occurrence(window: Window, rule: str, day: dt.date, zone: ZoneInfo) -> Occurrence:
    begin = reading_on(day, window.span.start)
    start = first_instant(begin, zone)
    end = _reach(start, begin, later_reading(begin, window.span.end), zone)
    starts_until = end
    if window.last_start is not None:
        starts_until = min(end, _reach(start, begin, later_reading(begin, window.last_start), zone))
    if window.blackouts:
        starts_until = min(starts_until, _blackout_after(window, day, zone) or starts_until)
    reboot_start, reboot_end = _reboot(window.reboot, begin, zone) if window.reboot else (start, end)
    return Occurrence(
        rule=rule,
        date=day,
        start=start,
        starts_until=starts_until,
        end=end,
        notice_at=start - timedelta(minutes=window.notice),
        reboot_start=reboot_start,
        reboot_end=reboot_end,
    )


def _reboot(span: Span, begin: datetime, zone: ZoneInfo) -> tuple[datetime, datetime]:
    opens = reading_on(begin.date(), span.start)
    opens = opens if opens >= begin else opens + _DAY
    start = first_instant(opens, zone)
    return start, _reach(start, opens, later_reading(opens, span.end), zone)


def _reach(start: datetime, begin: datetime, reading: datetime, zone: ZoneInfo) -> datetime:
    """When the clock shows *reading*; when a gap leaves too little, as long after *start* as on any other day."""
    instant, length = first_instant(reading, zone), reading - begin
    return instant if instant - start >= min(length, SHORTEST) else start + length


def _blackout_after(window: Window, day: dt.date, zone: ZoneInfo) -> datetime | None:
    """When the date after *day* begins, if nothing starts on it. No occurrence reaches beyond that date."""
    tomorrow = day + _DAY
    return first_instant(datetime.combine(tomorrow, time.min), zone) if is_blacked_out(window, tomorrow) else None
