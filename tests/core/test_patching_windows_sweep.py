"""
Exactly one run for each occurrence, in every time zone, on every day of twelve years.

The oracle does not know how a wall clock reading becomes an instant. It only asks what clocks show at an instant,
by reading a zone's offset hour by hour, and looks for the reading among what they showed.
"""

from calendar import Calendar
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest

from redflag_core.patching.occurrences import SHORTEST, Run, due, following, occurrences
from redflag_core.patching.window_text import parse_window

HOUR, MINUTE, SECOND, DAY = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1), timedelta(days=1)
ZONES = sorted(available_timezones() - {"localtime"})
"""All of the database. ``localtime`` is in the folder of some systems, and is the machine's own zone."""

RULES = ("daily 02:30-04:00", "last Saturday 22:00-04:00", "Patch Tuesday + 3 22:00-04:00")
NASTY = (
    ("Europe/Berlin", 2024, 2027),
    ("America/New_York", 2026, 2028),
    ("America/St_Johns", 2010, 2012),  # set back at one minute past midnight: a day begins twice
    ("America/Scoresbysund", 2023, 2026),  # changed its zone and its changes at once
    ("America/Havana", 2026, 2027),  # midnight is skipped
    ("Australia/Lord_Howe", 2026, 2027),  # half an hour
    ("Antarctica/Troll", 2026, 2027),  # two hours
    ("Africa/Casablanca", 2026, 2028),  # around Ramadan
    ("Asia/Gaza", 2026, 2029),
    ("Africa/Cairo", 2026, 2027),
    ("Pacific/Apia", 2011, 2013),  # no 30 December 2011
    ("Pacific/Kwajalein", 1993, 1995),  # no 21 August 1993
    ("Pacific/Chatham", 2026, 2027),
    ("UTC", 2026, 2027),
)


# --- the oracle -------------------------------------------------------------------------------------------------


def shown(instant: datetime, zone: ZoneInfo) -> datetime:
    """What clocks show."""
    return instant.astimezone(zone).replace(tzinfo=None)


@cache
def segments(name: str, first: int, last: int) -> list[tuple[datetime, datetime, timedelta]]:
    """Stretches of these years with one offset: begin, end, and how far clocks are ahead of UTC."""
    zone, begin = ZoneInfo(name), datetime(first, 1, 1, tzinfo=UTC) - 5 * DAY
    hours = [begin + number * HOUR for number in range(((last - first) * 366 + 10) * 24)]
    ahead = [hour.astimezone(zone).utcoffset() for hour in hours]
    changes = [
        next(at for at in (hour + number * SECOND for number in range(3_601)) if ahead_at(at, zone) == after)
        for hour, (before, after) in zip(hours, pairwise(ahead), strict=False)
        if before != after
    ]
    return [(start, end, ahead_at(start, zone)) for start, end in pairwise([begin, *changes, hours[-1]])]


def ahead_at(instant: datetime, zone: ZoneInfo) -> timedelta:
    """How far clocks are ahead of UTC."""
    return instant.astimezone(zone).utcoffset()


def first_time(reading: datetime, stretches) -> datetime:
    """When clocks first show it; where they never do, the first instant at which they show something later."""
    for begin, end, offset in stretches:
        begins, ends = ((each + offset).replace(tzinfo=None) for each in (begin, end))
        if reading < ends:
            return (reading - offset).replace(tzinfo=UTC) if begins <= reading else begin
    raise AssertionError(reading)


def dates_of(rule: str, first: int, last: int) -> list[date]:
    """The dates of a rule in these years, counted on a wall calendar."""
    calendar, found = Calendar(), []
    for year, month in ((year, month) for year in range(first, last) for month in range(1, 13)):
        days = [day for day in calendar.itermonthdates(year, month) if day.month == month]
        if rule.startswith("daily"):
            found += days
        elif rule.startswith("last"):
            found.append([day for day in days if day.strftime("%w") == "6"][-1])
        else:
            found.append([day for day in days if day.strftime("%w") == "2"][1] + 3 * DAY)
    return found


def expected(rule: str, name: str, first: int, last: int) -> list[tuple[date, datetime, datetime]]:
    """Date, start and end of every occurrence, by the words of the documentation."""
    clocks = [time.fromisoformat(text) for text in rule.rsplit(" ", 1)[1].split("-")]
    stretches = segments(name, first, last)
    found = []
    for day in dates_of(rule, first, last):
        opens, closes = (datetime.combine(day, clock) for clock in clocks)
        closes = closes if closes > opens else closes + DAY
        start, end = first_time(opens, stretches), first_time(closes, stretches)
        found.append((day, start, end if end - start >= SHORTEST else start + (closes - opens)))
    return found


# --- what is compared -------------------------------------------------------------------------------------------


def check_every_occurrence(rule: str, name: str, first: int, last: int) -> list:
    """The occurrences of a window are those of the oracle, none missing and none more."""
    window, wanted = parse_window(rule, timezone=name), expected(rule, name, first, last)
    found = list(occurrences(window, wanted[0][1], wanted[-1][1] + SECOND))

    assert wanted == [(each.date, each.start, each.end) for each in found]
    assert [each.start for each in found] == [
        each.start for each in found if each.start < each.starts_until <= each.end
    ]
    return found


def check_every_run(rule: str, name: str, found: list) -> None:
    """A scheduler that looks a second before, at and a second after each start runs each one at its start."""
    window, last_run, runs = parse_window(rule, timezone=name), None, []
    moments = {start + step for start in {each.start for each in found} for step in (-SECOND, timedelta(), SECOND)}
    for moment in sorted(moments):
        while (run := due(window, moment, last_run)) is not None:
            last_run = run.occurrence.run(moment)
            runs.append((last_run.date, moment))

    assert [(each.date, each.start) for each in found] == runs


def check_around_changes(rule: str, name: str, first: int, last: int) -> None:
    """
    Around each change of the clocks, minute by minute.

    A start is the first minute at which clocks show it; where no minute does, the first that shows something
    later. A scheduler that looks every quarter of an hour runs every occurrence there once.
    """
    window, zone = parse_window(rule, timezone=name), ZoneInfo(name)
    clock = time.fromisoformat(rule.rsplit(" ", 1)[1][:5])
    for change, _, _ in segments(name, first, last)[1:]:
        minutes = [change + number * MINUTE for number in range(-30 * 60, 30 * 60)]
        faces = [shown(minute, zone) for minute in minutes]
        nearby = list(occurrences(window, minutes[0] + 4 * HOUR, minutes[-1] - 4 * HOUR))
        for each in nearby:
            reading = datetime.combine(each.date, clock)
            exact = [minute for minute, face in zip(minutes, faces, strict=True) if face == reading]
            later = [minute for minute, face in zip(minutes, faces, strict=True) if face > reading]
            assert each.start == min(exact or later)
        runs = run_every_quarter(window, minutes[0], minutes[-1])
        assert set(nearby) <= {run for run, _ in runs}
        assert len(runs) == len({run.key for run, _ in runs})
        assert all(run.start <= at < run.starts_until for run, at in runs)


def run_every_quarter(window, first: datetime, last: datetime) -> list:
    """What a scheduler runs, and when."""
    last_run, runs, at = None, [], first
    while at < last:
        if (run := due(window, at, last_run)) is not None:
            last_run = run.occurrence.run(at)
            runs.append((run.occurrence, at))
        at += 15 * MINUTE
    return runs


# --- sampled ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name, first, last", NASTY, ids=str)
def test_every_occurrence_of_a_difficult_zone_is_run_once(rule, name, first, last):
    """Gaps and folds of all sizes, at midnight, and zones that left out a whole day."""
    found = check_every_occurrence(rule, name, first, last)

    check_every_run(rule, name, found)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["Europe/Berlin", "Australia/Lord_Howe", "Africa/Casablanca", "America/Havana"])
def test_minute_by_minute_around_changes_of_the_clocks(rule, name):
    """The start is the first minute that shows it, or something later, and there is one run."""
    check_around_changes(rule, name, 2026, 2027)


@pytest.mark.parametrize("name", ["Pacific/Apia", "Pacific/Kwajalein"])
def test_a_date_that_a_zone_left_out_has_its_run(name):
    """It runs when that date would have been over, before the run of the next date."""
    missing = {"Pacific/Apia": date(2011, 12, 30), "Pacific/Kwajalein": date(1993, 8, 21)}[name]
    window = parse_window(RULES[0], timezone=name)
    noon = datetime(missing.year, missing.month, missing.day, 12, tzinfo=UTC)

    found = [each for each in occurrences(window, noon - 3 * DAY, noon + 3 * DAY) if each.date == missing]

    (left_out,) = found
    midnight = datetime.combine(missing + DAY, time.min)
    assert midnight == shown(left_out.start, ZoneInfo(name))
    assert timedelta(hours=1, minutes=30) == left_out.end - left_out.start
    assert missing + DAY == following(window, left_out.start).date


# --- exhaustive -------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("name", ZONES)
def test_every_day_of_every_zone(name):
    """For each zone and each day from 2024 to 2035, each rule: exactly the occurrences, and one run for each."""
    for rule in RULES:
        check_every_run(rule, name, check_every_occurrence(rule, name, 2024, 2036))


@pytest.mark.full
@pytest.mark.parametrize("name", ZONES)
def test_minute_by_minute_around_every_change_of_every_zone(name):
    """The same around each change of the clocks, by looking at every minute."""
    for rule in RULES:
        check_around_changes(rule, name, 2024, 2036)


def test_the_sweep_covers_the_database():
    """A machine without the data of time zones would let everything pass."""
    assert {name for name, _, _ in NASTY} <= set(ZONES)
    assert 400 < len(ZONES)
    assert Run(rule="", date=date(2026, 1, 1), at=datetime(2026, 1, 1, tzinfo=UTC)).at.tzinfo is UTC
