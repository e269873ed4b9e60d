"""Maintenance windows: what a text means, when a window is open, what is due, and what may start."""

import json
from calendar import monthrange
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core import codec
from redflag_core.encoding import dump_json
from redflag_core.errors import MalformedError, PolicyError
from redflag_core.patching.occurrences import (
    CLOCK_STEP,
    SHORTEST,
    Due,
    Occurrence,
    Postponed,
    Run,
    current,
    current_reboot,
    due,
    following,
    occurrences,
)
from redflag_core.patching.recurrence import (
    FIRST_DAY,
    LAST_DAY,
    MAX_PLUS_DAYS,
    MONTHS,
    Every,
    Nth,
    Recurrence,
    Weekday,
)
from redflag_core.patching.starts import (
    MAX_REASON,
    Freeze,
    FreezeScope,
    InstallNow,
    StartCode,
    WindowRecord,
    may_postpone,
    may_start,
)
from redflag_core.patching.window_text import MAX_WINDOW_TEXT, WINDOW_FORM, parse_window
from redflag_core.patching.windows import (
    MAX_BLACKOUTS,
    MAX_MISSED,
    MAX_NOTICE,
    MAX_POSTPONE,
    MAX_POSTPONED,
    MAX_WINDOW_BYTES,
    Blackout,
    Span,
    Window,
    dump_window,
    load_window,
)
from redflag_core.patching.zones import aware, first_instant, wall, zone_of
from tests.vectors.make import HERE

BERLIN = "Europe/Berlin"
SECOND, MINUTE, HOUR, DAY = (timedelta(seconds=number) for number in (1, 60, 3_600, 86_400))
DIFFICULT = (
    *(BERLIN, "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "Pacific/Kwajalein", "Africa/Casablanca"),
    *("Asia/Gaza", "America/Scoresbysund", "Antarctica/Troll", "America/Havana", "America/St_Johns", "UTC"),
)


def utc(text: str) -> datetime:
    """A moment in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def at(text: str, zone: str = BERLIN) -> datetime:
    """A moment on the wall clock of a zone, the first time that it is shown."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


def window(text: str = "daily 02:30-04:00", zone: str = BERLIN) -> Window:
    """A window in a zone."""
    return parse_window(text, timezone=zone)


def one(text: str, day: str, zone: str = BERLIN) -> Occurrence:
    """The occurrence of a window that belongs to a date."""
    noon = at(f"{day} 12:00", zone)
    (found,) = (
        each for each in occurrences(window(text, zone), noon - 3 * DAY, noon + 3 * DAY) if str(each.date) == day
    )
    return found


def clocks(occurrence: Occurrence, zone: str = BERLIN) -> tuple[str, str]:
    """Start and end as the site sees them."""
    start, end = (wall(each, ZoneInfo(zone)) for each in (occurrence.start, occurrence.end))
    return f"{start:%d %H:%M}", f"{end:%d %H:%M}"


def begins(text: str, first: str, last: str) -> list[str]:
    """Dates of a window that starts at noon UTC, between two dates."""
    found = occurrences(window(text, "UTC"), utc(f"{first} 00:00"), utc(f"{last} 23:59"))
    return [str(each.date) for each in found]


@st.composite
def rules(draw):
    """Any rule that is accepted."""
    every = draw(st.sampled_from(Every))
    months = tuple(sorted(draw(st.sets(st.integers(1, 12)))))
    days = tuple(sorted(draw(st.sets(st.sampled_from(Weekday), min_size=1)), key=lambda day: day.number))
    number = draw(st.integers(1, 31))
    fields = {
        Every.DAY: {},
        Every.WEEK: {"weekdays": days},
        Every.WEEKDAY_OF_MONTH: {"weekdays": days[:1], "nth": draw(st.sampled_from(Nth))},
        Every.DAY_OF_MONTH: {"day": number, "or_last_day": number > 28 and draw(st.booleans())},
        Every.PATCH_TUESDAY: {"plus_days": draw(st.integers(0, MAX_PLUS_DAYS))},
    }[every]
    if every is Every.DAY_OF_MONTH and number > 29 and not fields["or_last_day"]:
        months = ()
    return Recurrence(every=every, months=months, **fields)


CLOCKS = st.builds(lambda hour, minute: f"{hour:02}:{minute:02}", st.integers(0, 23), st.integers(0, 59))
SPANS = st.builds(Span, start=CLOCKS, end=CLOCKS)
DATES = st.dates(date(2020, 1, 1), date(2035, 12, 31))
READINGS = st.datetimes(*(datetime.fromisoformat(text) for text in ("1901-01-01", "2100-01-01")))
BLACKOUTS = st.builds(
    lambda first, days: Blackout(first=str(first), last=str(first + days * DAY)), DATES, st.integers(0, 40)
)


@st.composite
def windows(draw):
    """Any window that is accepted."""
    span = draw(SPANS)
    length = (_minute(span.end) - _minute(span.start) - 1) % 1440 + 1
    last = (_minute(span.start) + draw(st.integers(1, length - 1))) % 1440 if length > 1 else None
    valid = sorted(map(str, draw(st.lists(DATES, min_size=2, max_size=2))))
    blackouts = draw(st.lists(BLACKOUTS, max_size=4, unique=True))
    times = draw(st.integers(0, MAX_POSTPONED))
    return Window(
        recurrence=draw(rules()),
        span=span,
        timezone=draw(st.sampled_from(DIFFICULT)),
        last_start=draw(st.sampled_from([None, None if last is None else f"{last // 60:02}:{last % 60:02}"])),
        reboot=draw(st.none() | SPANS),
        valid_from=draw(st.sampled_from([None, valid[0]])),
        valid_until=draw(st.sampled_from([None, valid[1]])),
        blackouts=tuple(sorted(blackouts, key=lambda each: (each.first, each.last))),
        run_if_missed=draw(st.integers(0, MAX_MISSED)),
        notice=draw(st.integers(0, MAX_NOTICE)),
        postpone_times=times,
        postpone=draw(st.integers(1, MAX_POSTPONE)) if times else 0,
    )


def _minute(clock: str) -> int:
    return int(clock[:2]) * 60 + int(clock[3:])


# --- rules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, dates",
    [
        ("daily", ["2026-02-27", "2026-02-28", "2026-03-01"]),
        ("Sunday", ["2026-03-01"]),
        ("Friday, Sunday", ["2026-02-27", "2026-03-01"]),
        ("last Friday", ["2026-02-27"]),
        ("fourth Saturday", ["2026-02-28"]),
        ("first Sunday", ["2026-03-01"]),
        ("day 28", ["2026-02-28"]),
        ("day 31 or last", ["2026-02-28"]),
        ("day 31", []),
        ("day 1", ["2026-03-01"]),
        ("Patch Tuesday + 17", ["2026-02-27"]),
        ("Patch Tuesday + 19", ["2026-03-01"]),
    ],
)
def test_each_rule_has_its_dates(text, dates):
    """Around the end of a February, by hand."""
    assert dates == begins(f"{text} 12:00-13:00", "2026-02-27", "2026-03-01")


def test_patch_tuesday_is_the_second_tuesday():
    """As Microsoft's calendar has it for 2026."""
    tuesdays = [
        "01-13",
        "02-10",
        "03-10",
        "04-14",
        "05-12",
        "06-09",
        "07-14",
        "08-11",
        "09-08",
        "10-13",
        "11-10",
        "12-08",
    ]

    assert [f"2026-{day}" for day in tuesdays] == begins("Patch Tuesday 12:00-13:00", "2026-01-01", "2026-12-31")


def test_days_after_patch_tuesday_can_be_in_the_next_month():
    """The month of the rule is that of the Tuesday."""
    text = "Patch Tuesday + 27 12:00-13:00; in July"

    assert ["2026-08-10", "2027-08-09"] == begins(text, "2026-01-01", "2027-12-31")


def test_a_day_that_a_month_does_not_have_is_skipped_or_the_last():
    """Whichever was said."""
    skipped, last = (
        begins(f"{text} 12:00-13:00", "2027-01-01", "2027-04-30") for text in ("day 30", "day 30 or last")
    )

    assert ["2027-01-30", "2027-03-30", "2027-04-30"] == skipped
    assert ["2027-01-30", "2027-02-28", "2027-03-30", "2027-04-30"] == last


def test_a_rule_can_be_for_some_months():
    """And for a range that goes over the end of a year."""
    text = "first Monday 12:00-13:00; in November to January, June"

    assert ["2026-01-05", "2026-06-01", "2026-11-02", "2026-12-07"] == begins(text, "2026-01-01", "2026-12-31")


def matches(rule: Recurrence, day: date) -> bool:
    """Whether a rule means a date, in other words than those of the module."""
    origin = day
    if rule.every is Every.PATCH_TUESDAY:
        origin = day - rule.plus_days * DAY
    if rule.months and origin.month not in rule.months:
        return False
    length, name = monthrange(origin.year, origin.month)[1], list(Weekday)[origin.weekday()]
    if rule.every is Every.PATCH_TUESDAY:
        return name is Weekday.TUESDAY and origin.day in range(8, 15)
    if rule.every is Every.DAY_OF_MONTH:
        return day.day == rule.day or (rule.or_last_day and day.day == length < rule.day)
    if rule.nth is Nth.LAST:
        return name in rule.weekdays and day.day > length - 7
    if rule.nth is not None:
        return name in rule.weekdays and (day.day - 1) // 7 == list(Nth).index(rule.nth)
    return not rule.weekdays or name in rule.weekdays


@given(rules(), DATES, st.integers(0, 500))
def test_a_rule_is_followed_on_every_date(rule, first, days):
    """Any rule, any time: exactly the dates that it means, in order."""
    span = [first + number * DAY for number in range(days + 1)]

    assert [day for day in span if matches(rule, day)] == list(rule.dates(first, span[-1]))


def test_rules_have_a_first_and_a_last_day():
    """Whoever asks for more gets no more, and no error."""
    daily = Recurrence(every=Every.DAY)

    assert [FIRST_DAY] == list(daily.dates(date.min, FIRST_DAY))
    assert [LAST_DAY] == list(daily.dates(LAST_DAY, date.max))
    assert [] == list(daily.dates(date(2026, 1, 2), date(2026, 1, 1)))


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"every": Every.DAY, "day": 1}, "needs nothing else"),
        ({"every": Every.DAY, "weekdays": (Weekday.MONDAY,)}, "every day needs"),
        ({"every": Every.WEEK}, "every week needs weekdays"),
        ({"every": Every.WEEKDAY_OF_MONTH, "nth": Nth.LAST}, "needs nth, weekdays"),
        (
            {"every": Every.WEEKDAY_OF_MONTH, "nth": Nth.LAST, "weekdays": (Weekday.MONDAY, Weekday.SUNDAY)},
            "one weekday",
        ),
        ({"every": Every.WEEK, "weekdays": (Weekday.SUNDAY, Weekday.MONDAY)}, "weekdays are not in order"),
        ({"every": Every.WEEK, "weekdays": (Weekday.MONDAY, Weekday.MONDAY)}, "weekdays are not in order"),
        ({"every": Every.DAY_OF_MONTH}, "needs day"),
        ({"every": Every.DAY_OF_MONTH, "day": 0}, "day"),
        ({"every": Every.DAY_OF_MONTH, "day": 32}, "day"),
        ({"every": Every.DAY_OF_MONTH, "day": 28, "or_last_day": True}, "only day 29"),
        ({"every": Every.DAY, "or_last_day": True}, "only day 29"),
        ({"every": Every.DAY_OF_MONTH, "day": 30, "months": (2,)}, "none of these months has a day 30"),
        ({"every": Every.PATCH_TUESDAY}, "every patch tuesday needs plus_days"),
        ({"every": Every.PATCH_TUESDAY, "plus_days": -1}, "plus_days"),
        ({"every": Every.PATCH_TUESDAY, "plus_days": 28}, "plus_days"),
        ({"every": Every.DAY, "months": (0,)}, "months"),
        ({"every": Every.DAY, "months": (13,)}, "months"),
        ({"every": Every.DAY, "months": (2, 1)}, "months are not in order"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(fields, words):
    """What is missing, what is too much, and what never comes."""
    with pytest.raises(ValueError, match=words):
        Recurrence(**fields)


def test_a_day_that_only_leap_years_have_is_a_day():
    """29 February comes every four years."""
    assert ["2028-02-29", "2032-02-29"] == begins("day 29 12:00-13:00; in February", "2026-01-01", "2033-01-01")


# --- text and stored form ---------------------------------------------------------------------------------------


FULL = (
    "last Saturday 22:00-04:00 Europe/Berlin; in March, September; last start 03:00; reboot 04:00-05:00; "
    "from 2026-01-01; until 2027-12-31; except 2026-12-24..2026-12-26, 2027-01-01; if missed 12 hours; "
    "notice 30 minutes; postpone 2 times 45 minutes"
)


def test_everything_that_can_be_said_of_a_window():
    """Each word of the text is a field."""
    expected = Window(
        recurrence=Recurrence(
            every=Every.WEEKDAY_OF_MONTH, nth=Nth.LAST, weekdays=(Weekday.SATURDAY,), months=(3, 9)
        ),
        span=Span(start="22:00", end="04:00"),
        timezone=BERLIN,
        last_start="03:00",
        reboot=Span(start="04:00", end="05:00"),
        valid_from="2026-01-01",
        valid_until="2027-12-31",
        blackouts=(
            Blackout(first="2026-12-24", last="2026-12-26"),
            Blackout(first="2027-01-01", last="2027-01-01"),
        ),
        run_if_missed=720,
        notice=30,
        postpone_times=2,
        postpone=45,
    )

    assert expected == parse_window(FULL)
    assert FULL == str(expected)


@pytest.mark.parametrize(
    "text, canonical",
    [
        ("  DAILY   02:30 - 04:00   Europe/Berlin ;", "daily 02:30-04:00 Europe/Berlin"),
        ("thu, MON 22:00-04:00", "Monday, Thursday 22:00-04:00 Europe/Berlin"),
        ("monday,monday 22:00-04:00", "Monday 22:00-04:00 Europe/Berlin"),
        ("Last sat 22:00-04:00", "last Saturday 22:00-04:00 Europe/Berlin"),
        ("patch tuesday+3 22:00-04:00", "Patch Tuesday + 3 22:00-04:00 Europe/Berlin"),
        ("Patch Tuesday + 0 22:00-04:00", "Patch Tuesday 22:00-04:00 Europe/Berlin"),
        ("Day 07 22:00-04:00", "day 7 22:00-04:00 Europe/Berlin"),
        ("day 31 OR LAST 22:00-04:00", "day 31 or last 22:00-04:00 Europe/Berlin"),
        ("daily 22:00-04:00 UTC", "daily 22:00-04:00 UTC"),
        ("daily 22:00-04:00; if missed 90 minutes", "daily 22:00-04:00 Europe/Berlin; if missed 90 minutes"),
        ("daily 22:00-04:00; if missed 48 hours", "daily 22:00-04:00 Europe/Berlin; if missed 2 days"),
        ("daily 22:00-04:00; if missed 0 hours", "daily 22:00-04:00 Europe/Berlin"),
        ("daily 22:00-04:00; notice 1hour", "daily 22:00-04:00 Europe/Berlin; notice 1 hour"),
        (
            "daily 22:00-04:00; notice 1 day; postpone 1 time 60 minutes; in sep to nov; from 2026-01-01",
            (
                "daily 22:00-04:00 Europe/Berlin; in September, October, November; from 2026-01-01; notice 1 day; "
                "postpone 1 times 1 hour"
            ),
        ),
        (
            "daily 22:00-04:00; except 2027-01-01, 2026-12-24 .. 2026-12-26,2027-01-01",
            "daily 22:00-04:00 Europe/Berlin; except 2026-12-24..2026-12-26, 2027-01-01",
        ),
    ],
)
def test_a_window_has_one_canonical_text(text, canonical):
    """However it was typed, it is shown in one way."""
    assert canonical == str(window(text))


def test_a_zone_that_is_named_stands_above_that_of_the_site():
    """The zone of the site is for a text that names none."""
    assert ["UTC", BERLIN] == [window(f"daily 02:30-04:00{zone}").timezone for zone in (" UTC", "")]


@given(windows())
def test_a_window_survives_its_text_and_its_stored_form(any_window):
    """What is printed and what is stored is the same window."""
    assert any_window == parse_window(str(any_window))
    assert any_window == load_window(dump_window(any_window))


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "'' is not a maintenance window"),
        ("daily", "'daily' is not a maintenance window"),
        ("02:30-04:00 UTC", "not a maintenance window"),
        ("daily 2:30-04:00 UTC", "not a maintenance window"),
        ("daily 02:30 04:00 UTC", "not a maintenance window"),
        ("daily 02:30-04:00 UTC UTC", "not a maintenance window"),
        ("daily 02:60-04:00 UTC", "the start is out of bounds"),
        ("daily 02:30-24:00 UTC", "the end is out of bounds"),
        ("daily 02:30-04:00", "the time zone is missing"),
        ("hourly 02:30-04:00 UTC", "'hourly' is not a day of the week"),
        ("mo 02:30-04:00 UTC", "'mo' is not a day of the week"),
        ("Monday, 02:30-04:00 UTC", "'' is not a day of the week"),
        ("fifth Monday 02:30-04:00 UTC", "'fifth monday' is not a day of the week"),
        ("first Monday, Tuesday 02:30-04:00 UTC", "'first monday' is not a day of the week"),
        ("day 32 02:30-04:00 UTC", "the day is out of bounds"),
        ("day 28 or last 02:30-04:00 UTC", "only day 29, 30 or 31 can be missing"),
        ("day 31 02:30-04:00 UTC; in February, June", "none of these months has a day 31"),
        ("Patch Tuesday + 28 02:30-04:00 UTC", "the plus days is out of bounds"),
        ("Patch Tuesday - 1 02:30-04:00 UTC", "is not a day of the week"),
        ("daily 02:30-04:00 UTC; sometimes", "'sometimes' is nothing that is said"),
        ("daily 02:30-04:00 UTC; last start", "'last start' is nothing that is said"),
        ("daily 02:30-04:00 UTC; last start 04:00", "last start 04:00 is not within 02:30-04:00"),
        ("daily 02:30-04:00 UTC; last start 02:30", "last start 02:30 is not within"),
        ("daily 02:30-04:00 UTC; last start 3", "the last start is out of bounds"),
        ("daily 02:30-04:00 UTC; notice 1 hour; notice 2 hours", "'notice' is said twice"),
        ("daily 02:30-04:00 UTC; in ma", "'ma' is not a month"),
        ("daily 02:30-04:00 UTC; in March to", "'march to' is not a month"),
        ("daily 02:30-04:00 UTC; reboot 04:00", "'04:00' is not a time like 04:00-05:00"),
        ("daily 02:30-04:00 UTC; reboot 04:00-25:00", "the end is out of bounds"),
        ("daily 02:30-04:00 UTC; from 2026-02-29", "valid_from is no date like 2026-12-24"),
        ("daily 02:30-04:00 UTC; from 20260228", "valid_from is no date"),
        ("daily 02:30-04:00 UTC; from 2026-02-02; until 2026-02-01", "it ends before it begins"),
        ("daily 02:30-04:00 UTC; except 24 December", "first is no date like 2026-12-24"),
        ("daily 02:30-04:00 UTC; except 2026-12-26..2026-12-24", "2026-12-26..2026-12-24 ends before it begins"),
        ("daily 02:30-04:00 UTC; except 2026-01-01..2027-01-02", "is longer than a year: let the window end"),
        ("daily 02:30-04:00 UTC; if missed soon", "'soon' is not a time like 30 minutes or 2 hours"),
        ("daily 02:30-04:00 UTC; if missed 32 days", "the run if missed is out of bounds"),
        ("daily 02:30-04:00 UTC; notice 8 days", "the notice is out of bounds"),
        ("daily 02:30-04:00 UTC; postpone 2 times", "'2 times' is not how often"),
        ("daily 02:30-04:00 UTC; postpone 11 times 1 hour", "the postpone times is out of bounds"),
        ("daily 02:30-04:00 UTC; postpone 2 times 25 hours", "the postpone is out of bounds"),
        ("daily 02:30-04:00 UTC; postpone 2 times 0 hours", "say both how often"),
        ("daily 02:30-04:00 UTC; postpone 0 times 1 hour", "say both how often"),
        ("daily 02:30-04:00 UTC" + " " * MAX_WINDOW_TEXT, "at most 4096 characters"),
    ],
)
def test_another_text_is_refused_with_what_is_wrong_and_the_accepted_form(text, words):
    """Nothing is guessed."""
    with pytest.raises(PolicyError) as caught:
        parse_window(text)

    assert words in caught.value.message
    assert WINDOW_FORM in caught.value.message


@st.composite
def damaged(draw):
    """The text of a window with one place changed."""
    text = str(draw(windows()))
    place = draw(st.integers(0, len(text)))
    return text[:place] + draw(st.text(max_size=3)) + text[place + draw(st.integers(0, 3)) :]


@given(st.text() | st.text("dailyPtchTuesonrx0123456789:-.; ,+/", max_size=60) | damaged())
def test_any_text_is_a_window_or_a_policy_error(text):
    """No input does anything else."""
    with suppress(PolicyError):
        assert isinstance(parse_window(text, timezone="UTC"), Window)


def test_the_examples_of_the_accepted_form_are_accepted():
    """Whoever copies from the message gets no second one."""
    examples = WINDOW_FORM.replace("write it as ", "").split('"')[1::2]
    heads = [text for text in examples if ":" in text and text[0] in "dMlP" and "start" not in text]
    clauses = [text for text in examples if text not in heads]

    assert (5, 9) == (len(heads), len([*clauses]))
    for head in heads:
        assert window(head)
    assert window("; ".join([heads[2], *clauses]))


def test_the_stored_form_says_its_version():
    """Another version is refused rather than half understood."""
    stored = codec.unstructure(window())

    assert 1 == stored["v"]
    with pytest.raises(MalformedError, match="v"):
        load_window(dump_json(stored | {"v": 2}))


@pytest.mark.parametrize(
    "change",
    [
        {"timezone": "../../etc/passwd"},
        {"more": 1},
        {"span": {"start": "02:30"}},
        {"span": {"start": "2:30", "end": "04:00"}},
        {"notice": "30"},
        {"notice": -1},
        {"recurrence": {"every": "year"}},
        {"recurrence": {"every": "week"}},
        {"blackouts": [{"first": "2026-01-02", "last": "2026-01-01"}]},
        {"blackouts": [{"first": "2026-01-02", "last": "2026-01-02"}] * 2},
    ],
)
def test_a_stored_form_that_means_nothing_is_malformed(change):
    """Every bound holds for what comes from a database too."""
    with pytest.raises(MalformedError):
        load_window(dump_json(codec.unstructure(window()) | change))


@given(
    st.binary()
    | st.recursive(st.none() | st.text() | st.integers(0, 99), st.lists).map(lambda x: dump_json({"v": x}))
)
def test_any_bytes_are_a_window_or_malformed(data):
    """No input does anything else."""
    with suppress(MalformedError):
        assert isinstance(load_window(data), Window)


def test_the_largest_window_fits_into_its_bounds():
    """As many ranges as are allowed can be written, stored and read, and one more cannot."""
    days = [date(2026, 1, 1) + 3 * number * DAY for number in range(MAX_BLACKOUTS + 1)]
    ranges = [f"{day}..{day + DAY}" for day in days]

    most = window(f"daily 02:30-04:00; except {', '.join(ranges[:-1])}")

    assert MAX_BLACKOUTS == len(most.blackouts)
    assert most == parse_window(str(most)) == load_window(dump_window(most))
    assert len(dump_window(most)) <= MAX_WINDOW_BYTES
    with pytest.raises(PolicyError, match="the blackouts is out of bounds"):
        window(f"daily 02:30-04:00; except {', '.join(ranges)}")


@pytest.mark.parametrize("field, most", [("run_if_missed", MAX_MISSED), ("notice", MAX_NOTICE)])
def test_the_longest_times_are_accepted_and_no_longer_ones(field, most):
    """To the minute."""
    assert most == getattr(attrs.evolve(window(), **{field: most}), field)
    for value in (most + 1, -1):
        with pytest.raises(ValueError, match=field):
            attrs.evolve(window(), **{field: value})


# --- time zones -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("", "Mars/Olympus", "Europe", "europe/berlin", "Europe/Berlin/", "/Europe/Berlin", "Europe//Berlin"),
        *("../Europe/Berlin", "Europe/../Europe/Berlin", "./UTC", "UTC.", "tzdata.zi", "+VERSION", "\0", "UTC\n"),
        *("localtime", "posixrules", "posix/Europe/Berlin", "right/Europe/Berlin", "C:/zone", "A" * 5_000),
        *("America/Argentina/Ushuaia/More", "leapseconds", "Ünited/Zone", "..", "A/.."),
    ],
)
def test_what_is_no_zone_of_the_database_is_a_clear_error(name):
    """A name is never a path, and never a zone that depends on the machine."""
    with pytest.raises(PolicyError, match=r"there is no time zone .*Europe/Berlin") as caught:
        zone_of(name)
    with pytest.raises(ValueError, match="there is no time zone"):
        attrs.evolve(window(), timezone=name)

    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    "name", ["UTC", "Etc/GMT+12", "America/Argentina/Ushuaia", "America/Port-au-Prince", "EST5EDT"]
)
def test_zones_of_all_forms_are_found(name):
    """Signs, digits and three parts."""
    assert name == zone_of(name).key


def test_a_naive_time_is_a_mistake_of_the_caller():
    """Python would take it for the time of this machine."""
    naive = datetime(2026, 1, 1)  # noqa: DTZ001
    for call in (
        lambda: current(window(), naive),
        lambda: due(window(), naive, None),
        lambda: following(window(), naive),
    ):
        with pytest.raises(ValueError, match="aware"):
            call()


@pytest.mark.parametrize(
    "name, first, last, after",
    [
        (BERLIN, "2026-03-29 02:00:00", "2026-03-29 03:00:00", "2026-03-29 01:00"),
        ("Australia/Lord_Howe", "2026-10-04 02:00:00", "2026-10-04 02:30:00", "2026-10-03 15:30"),
        ("Pacific/Apia", "2011-12-30 00:00:00", "2011-12-31 00:00:00", "2011-12-30 10:00"),
    ],
)
def test_every_second_of_a_gap_is_the_first_instant_after_it(name, first, last, after):
    """Also its first and its last, and the one at which clocks go on."""
    first, last = (datetime.fromisoformat(text) for text in (first, last))
    seconds = {
        *range(0, int((last - first) / SECOND), 7),
        int((last - first) / SECOND) - 1,
        (last - first) // SECOND,
    }

    assert {utc(after)} == {first_instant(first + second * SECOND, ZoneInfo(name)) for second in seconds}
    assert utc(after) - SECOND == first_instant(first - SECOND, ZoneInfo(name))
    assert utc(after) + SECOND == first_instant(last + SECOND, ZoneInfo(name))


@given(READINGS, st.sampled_from(DIFFICULT))
def test_a_reading_is_the_first_instant_that_shows_it_or_something_later(reading, name):
    """In any zone, in any year: before it, clocks of the last day never showed as much."""
    zone, reading = ZoneInfo(name), reading.replace(microsecond=0)

    instant = first_instant(reading, zone)

    assert UTC is instant.tzinfo
    assert wall(instant, zone) >= reading
    assert wall(instant - SECOND, zone) < reading
    assert all(wall(instant - minutes * MINUTE, zone) < reading for minutes in (1, 10, 31, 61, 119, 179, 1_439))


@given(READINGS, st.integers(0, 200_000), st.sampled_from(DIFFICULT))
def test_a_later_reading_is_never_an_earlier_instant(reading, seconds, name):
    """So no window is negative."""
    zone, reading = ZoneInfo(name), reading.replace(microsecond=0)

    assert first_instant(reading, zone) <= first_instant(reading + seconds * SECOND, zone)


# --- occurrences across changes of the clocks -------------------------------------------------------------------


SPRING, AUTUMN = "2026-03-29", "2026-10-25"


@pytest.mark.parametrize(
    "text, start, end",
    [
        ("daily 22:00-04:00", "2026-03-29 20:00", "2026-03-30 02:00"),
        ("daily 01:00-04:00", "2026-03-29 00:00", "2026-03-29 02:00"),  # an hour less
        ("daily 02:30-04:00", "2026-03-29 01:00", "2026-03-29 02:00"),  # begins in the gap
        ("daily 02:00-04:00", "2026-03-29 01:00", "2026-03-29 02:00"),
        ("daily 01:00-02:30", "2026-03-29 00:00", "2026-03-29 01:00"),  # ends in the gap
        ("daily 01:50-02:00", "2026-03-29 00:50", "2026-03-29 01:00"),
        ("daily 02:15-02:45", "2026-03-29 01:00", "2026-03-29 01:30"),  # lies in the gap
        ("daily 02:00-03:00", "2026-03-29 01:00", "2026-03-29 02:00"),
        ("daily 02:30-03:14", "2026-03-29 01:00", "2026-03-29 01:44"),  # too little is left
        ("daily 02:30-03:15", "2026-03-29 01:00", "2026-03-29 01:15"),  # enough is left
        ("daily 02:58-03:05", "2026-03-29 01:00", "2026-03-29 01:07"),  # a short one keeps its length
        ("daily 02:30-02:30", "2026-03-29 01:00", "2026-03-30 00:30"),
    ],
)
def test_a_day_on_which_an_hour_is_skipped(text, start, end):
    """In Berlin clocks go from 02:00 to 03:00 (01:00 UTC)."""
    found = one(text, SPRING)

    assert (utc(start), utc(end)) == (found.start, found.end)


@pytest.mark.parametrize(
    "text, start, end",
    [
        ("daily 01:00-04:00", "2026-10-24 23:00", "2026-10-25 03:00"),  # an hour more
        ("daily 02:30-04:00", "2026-10-25 00:30", "2026-10-25 03:00"),  # begins at the first 02:30
        ("daily 01:00-02:30", "2026-10-24 23:00", "2026-10-25 00:30"),  # ends at the first 02:30
        ("daily 02:15-02:45", "2026-10-25 00:15", "2026-10-25 00:45"),  # is in the first hour
        ("daily 02:00-03:00", "2026-10-25 00:00", "2026-10-25 02:00"),  # is both hours
        ("daily 03:00-04:00", "2026-10-25 02:00", "2026-10-25 03:00"),
    ],
)
def test_a_day_on_which_an_hour_comes_twice(text, start, end):
    """In Berlin clocks go from 03:00 back to 02:00 (01:00 UTC)."""
    found = one(text, AUTUMN)

    assert (utc(start), utc(end)) == (found.start, found.end)


def test_a_window_is_on_the_wall_clock_of_its_site():
    """In summer and in winter it opens at the same time there."""
    days = ("2026-01-15", "2026-07-15")

    assert [("15 02:30", "15 04:00")] * 2 == [clocks(one("daily 02:30-04:00", day)) for day in days]
    assert [1, 0] == [one("daily 02:30-04:00", day).start.hour for day in days]


@pytest.mark.parametrize("end, ends", [("02:29", "16 02:29"), ("02:30", "16 02:30"), ("02:31", "15 02:31")])
def test_an_end_at_or_before_the_start_is_on_the_next_day(end, ends):
    """Equal times are a whole day."""
    assert ("15 02:30", ends) == clocks(one(f"daily 02:30-{end}", "2026-07-15"))


def test_half_an_hour_can_be_skipped():
    """Lord Howe goes from 02:00 to 02:30."""
    name, day = "Australia/Lord_Howe", "2026-10-04"

    assert ("04 02:30", "04 04:00") == clocks(one("daily 02:10-04:00", day, name), name)
    assert ("04 02:30", "04 02:50") == clocks(one("daily 02:05-02:25", day, name), name)
    assert ("04 02:30", "04 04:00") == clocks(one("daily 02:30-04:00", day, name), name)


@given(windows(), DATES)
def test_no_window_is_ever_empty_and_none_is_lost(any_window, day):
    """Any window in any zone: in order, of a usable length, each with a name of its own."""
    first = datetime.combine(day, time.min, UTC)
    found = list(occurrences(any_window, first, first + 60 * DAY))
    nominal = timedelta(minutes=(_minute(any_window.span.end) - _minute(any_window.span.start) - 1) % 1440 + 1)

    assert len(found) == len({each.key for each in found})
    assert (
        sorted(found, key=lambda each: (each.start, each.date))
        == found
        == sorted(found, key=lambda each: each.date)
    )
    for each in found:
        assert each.start < each.starts_until <= each.end
        assert each.end - each.start >= min(nominal, SHORTEST)
        assert wall(each.end - SECOND, zone_of(any_window.timezone)).date() <= each.date + DAY
        assert each.start <= each.reboot_start < each.reboot_end
        assert timedelta(minutes=any_window.notice) == each.start - each.notice_at
        assert {UTC} == {each.start.tzinfo, each.starts_until.tzinfo, each.end.tzinfo, each.notice_at.tzinfo}
        assert each == current(any_window, each.start)
        assert any(run.key == each.key for run in occurrences(any_window, each.start, each.start + SECOND))
    plain = attrs.evolve(any_window, blackouts=(), valid_from=None, valid_until=None)
    days = [str(each) for each in any_window.recurrence.dates(day + 2 * DAY, day + 58 * DAY)]
    assert set(days) <= {str(each.date) for each in occurrences(plain, first, first + 60 * DAY)}


@given(windows(), DATES, st.integers(0, 86_399))
def test_what_follows_is_the_first_that_starts_later(any_window, day, second):
    """The same answer as from a list."""
    moment = datetime.combine(day, time.min, UTC) + second * SECOND
    later = list(occurrences(any_window, moment + SECOND, moment + 200 * DAY))

    found = following(any_window, moment)

    assert (later[0] if later else None) == (found if found and found.start < moment + 200 * DAY else None)


def test_the_time_that_is_asked_for_includes_its_beginning_and_not_its_end():
    """So times that follow one another share no occurrence."""
    start = at("2026-07-15 02:30")

    assert 1 == len(list(occurrences(window(), start, start + SECOND)))
    assert 0 == len(list(occurrences(window(), start - DAY + SECOND, start)))


def test_a_window_is_open_from_its_start_until_before_its_end():
    """To the second."""
    start, end = at("2026-07-15 02:30"), at("2026-07-15 04:00")

    answers = [current(window(), moment) for moment in (start - SECOND, start, end - SECOND, end)]

    expected = one("daily 02:30-04:00", "2026-07-15")
    assert [None, expected, expected, None] == answers


def test_what_follows_starts_later_than_now():
    """At the start of one, the next one follows."""
    start = at("2026-07-15 02:30")

    assert "2026-07-15" == str(following(window(), start - SECOND).date)
    assert "2026-07-16" == str(following(window(), start).date)


def test_nothing_follows_when_a_window_is_over():
    """Neither after its last date, nor after the calendar."""
    assert following(window("daily 02:30-04:00; until 2026-07-15"), at("2026-07-15 02:30")) is None
    assert following(window(), at("2199-12-31 02:30")) is None


def test_a_window_is_valid_from_its_first_date_to_its_last():
    """Both included."""
    text = "daily 12:00-13:00; from 2026-07-15; until 2026-07-16"

    assert ["2026-07-15", "2026-07-16"] == begins(text, "2026-07-01", "2026-07-31")


def test_nothing_starts_from_the_last_start_on():
    """The window is open for longer."""
    found = one("daily 22:00-04:00; last start 03:00", "2026-07-15")

    assert at("2026-07-16 03:00") == found.starts_until
    assert ("15 22:00", "16 04:00") == clocks(found)


@pytest.mark.parametrize(
    "text, until",
    [
        ("daily 02:10-04:00; last start 02:40", "01:30"),  # in the gap: as long after the start as on any day
        ("daily 02:10-04:00; last start 03:10", "02:00"),  # ten minutes would be left
        ("daily 02:10-04:00; last start 03:15", "01:15"),
        ("daily 02:10-03:20; last start 03:10", "01:20"),  # not after the end
        ("daily 01:00-04:00; last start 02:30", "01:00"),
    ],
)
def test_a_last_start_in_the_gap_leaves_time_to_start(text, until):
    """And is never after the end."""
    assert utc(f"{SPRING} {until}") == one(text, SPRING).starts_until


def test_machines_are_started_anew_within_the_window_or_in_a_time_of_its_own():
    """The first such time at or after the start."""
    day = "2026-07-15"
    times = {"": ("15 22:00", "16 04:00"), "; reboot 04:00-05:00": ("16 04:00", "16 05:00")}
    times |= {"; reboot 22:00-22:00": ("15 22:00", "16 22:00"), "; reboot 21:59-22:30": ("16 21:59", "16 22:30")}
    times |= {"; reboot 23:00-01:00": ("15 23:00", "16 01:00")}

    for clause, expected in times.items():
        found = one(f"daily 22:00-04:00{clause}", day)
        assert expected == clocks(attrs.evolve(found, start=found.reboot_start, end=found.reboot_end))


def test_a_reboot_window_is_open_from_its_start_until_before_its_end():
    """Also when the window itself is over for long."""
    text = "Wednesday 22:00-22:00; reboot 21:00-20:00"
    start, end = at("2026-07-16 21:00"), at("2026-07-17 20:00")

    answers = [current_reboot(window(text), moment) for moment in (start - SECOND, start, end - SECOND, end)]

    assert [None, "2026-07-15", "2026-07-15", None] == [each and str(each.date) for each in answers]


VECTORS = json.loads((HERE / "windows.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", VECTORS["forms"], ids=lambda case: case["text"])
def test_the_forms_of_the_vectors_are_one_window(case):
    """What people write, what is shown and what is stored."""
    found = window(case["text"])

    assert case["canonical"] == str(found)
    assert case["stored"] == codec.unstructure(found)
    assert found == load_window(dump_json(case["stored"]))


@pytest.mark.parametrize("case", VECTORS["occurrences"], ids=lambda case: f"{case['text']} {case['first'][:10]}")
def test_the_occurrences_of_the_vectors_are_those_of_the_window(case):
    """Every moment, in UTC; and clocks show the start then, or go over it."""
    found = parse_window(case["text"])
    first, last = (datetime.fromisoformat(case[name]) for name in ("first", "last"))
    zone, listed = zone_of(found.timezone), list(occurrences(found, first, last))

    assert [each["key"] for each in case["occurrences"]] == [each.key for each in listed]
    for each, said in zip(listed, case["occurrences"], strict=True):
        moments = {name: f"{getattr(each, name):%Y-%m-%dT%H:%M:%SZ}" for name in said if name != "key"}
        assert {name: text for name, text in said.items() if name != "key"} == moments
        reading = datetime.combine(each.date, time.fromisoformat(found.span.start))
        shows, before = (wall(moment, zone) for moment in (each.start, each.start - SECOND))
        assert shows == reading or before < reading < shows


# --- blackouts --------------------------------------------------------------------------------------------------


def test_an_occurrence_of_a_blackout_date_does_not_take_place():
    """Not even its part on the next day; the first and the last date of a range are in it."""
    text = "daily 12:00-13:00; except 2026-07-15..2026-07-16"

    assert ["2026-07-14", "2026-07-17"] == begins(text, "2026-07-14", "2026-07-17")
    night = window("daily 22:00-04:00; except 2026-07-15")
    assert current(night, at("2026-07-16 01:00")) is None


def test_a_range_without_work_can_be_a_year():
    """The longest one, in a leap year."""
    text = "daily 12:00-13:00; except 2028-01-01..2028-12-31"

    assert ["2027-12-31", "2029-01-01"] == begins(text, "2027-12-31", "2029-01-01")


def test_a_window_that_reaches_into_a_blackout_starts_nothing_there():
    """What was started goes on: the window stays open."""
    found = one("daily 22:00-04:00; except 2026-07-16", "2026-07-15")

    assert at("2026-07-16 00:00") == found.starts_until
    assert ("15 22:00", "16 04:00") == clocks(found)


@pytest.mark.parametrize("name, day", [("Pacific/Apia", "2011-12-30"), ("Pacific/Kwajalein", "1993-08-21")])
def test_no_occurrence_reaches_beyond_the_next_date(name, day):
    """Not even around a date that the zone left out, at any hour: so one midnight is all that can cut it short."""
    noon = utc(f"{day} 12:00")
    for hour in range(24):
        for each in occurrences(window(f"daily {hour:02}:30-{hour:02}:30", name), noon - 4 * DAY, noon + 4 * DAY):
            assert wall(each.end - SECOND, ZoneInfo(name)).date() <= each.date + DAY


def test_a_blackout_ends_no_start_before_it():
    """A window that is over by midnight, and one with an earlier last start, are as ever."""
    early = one("daily 22:00-00:00; except 2026-07-16", "2026-07-15")
    last = one("daily 22:00-04:00; last start 23:00; except 2026-07-16", "2026-07-15")

    assert (early.end, at("2026-07-15 23:00")) == (early.starts_until, last.starts_until)


def test_a_missed_run_is_not_made_up_for_on_a_blackout_date():
    """It may be the day after, when there is still time."""
    missed = window("Wednesday 12:00-13:00; except 2026-07-16; if missed 2 days")

    answers = [due(missed, at(f"2026-07-{day}"), None) for day in ("15 23:59", "16 00:00", "16 23:59", "17 00:00")]

    assert [True, False, False, True] == [answer is not None for answer in answers]


def test_an_occurrence_that_would_begin_in_a_blackout_does_not_take_place():
    """A date that a zone left out begins when it is over; when nothing starts then, it has no time at all."""
    apia = window("daily 02:30-04:00; except 2011-12-31", "Pacific/Apia")

    found = occurrences(apia, utc("2011-12-29 00:00"), utc("2012-01-02 00:00"))

    assert ["2011-12-29", "2012-01-01", "2012-01-02"] == [str(each.date) for each in found]


# --- one run for each occurrence --------------------------------------------------------------------------------


def run_of(text: str, day: str, moment: datetime, zone: str = BERLIN) -> Run:
    """The run of a date, as it was stored."""
    return one(text, day, zone).run(moment)


def test_a_run_is_due_from_the_start_until_the_last_start():
    """And not when it was started."""
    text = "daily 22:00-04:00; last start 03:00"
    occurrence = one(text, "2026-07-15")
    before, start, late, over = (
        at(f"2026-07-{each}") for each in ("15 21:59", "15 22:00", "16 02:59", "16 03:00")
    )
    yesterday, today = (run_of(text, day, start) for day in ("2026-07-14", "2026-07-15"))

    assert [None, Due(occurrence, missed=False)] == [
        due(window(text), each, yesterday) for each in (before, start)
    ]
    assert [Due(occurrence, missed=False), None] == [due(window(text), each, yesterday) for each in (late, over)]
    assert [None, None] == [due(window(text), each, today) for each in (start, late)]
    assert occurrence == due(window(text), start, None).occurrence


def test_a_run_is_stored_with_what_identifies_it():
    """In UTC, whatever zone the moment came in."""
    run = run_of("daily 02:30-04:00", "2026-07-15", at("2026-07-15 02:31"))

    assert Run(rule=f"daily 02:30 {BERLIN}", date=date(2026, 7, 15), at=utc("2026-07-15 00:31")) == run
    assert UTC is run.at.tzinfo
    assert "2026-07-15 daily 02:30 Europe/Berlin" == one("daily 02:30-04:00", "2026-07-15").key


def test_the_hour_that_comes_twice_runs_once():
    """At the second 02:30 the run was already."""
    run = run_of("daily 02:30-04:00", AUTUMN, utc("2026-10-25 00:30"))

    assert due(window(), utc("2026-10-25 01:30"), None) is not None
    assert due(window(), utc("2026-10-25 01:30"), run) is None


def test_a_missed_run_may_start_for_as_long_as_was_said():
    """From the end of the window, and not in the time between the last start and the end."""
    text = "Wednesday 22:00-04:00; last start 03:00; if missed 12 hours"
    missed = Due(one(text, "2026-07-15"), missed=True)
    moments = ("16 03:59", "16 04:00", "16 15:59", "16 16:00")

    assert [None, missed, missed, None] == [due(window(text), at(f"2026-07-{each}"), None) for each in moments]


def test_without_a_word_a_missed_run_is_missed():
    """Nothing starts outside windows by itself."""
    assert due(window(), at("2026-07-15 04:00"), None) is None


def test_of_many_missed_runs_one_is_made_up_for():
    """A machine that was off for a month does not run thirty times: the latest counts for the others."""
    text = "daily 02:30-04:00; if missed 31 days"
    last = run_of(text, "2026-07-01", at("2026-07-01 02:30"))

    answer = due(window(text), at("2026-07-15 12:00"), last)

    assert ("2026-07-15", True) == (str(answer.occurrence.date), answer.missed)
    assert due(window(text), at("2026-07-15 12:01"), answer.occurrence.run(at("2026-07-15 12:00"))) is None


def test_a_missed_run_gives_way_to_the_next_window():
    """As soon as that has started, it is what runs; and while it is open without starts, nothing does."""
    text = "daily 02:30-04:00; last start 03:00; if missed 2 days"
    moments = ("16 02:29", "16 02:30", "16 03:00", "16 04:00")

    answers = [due(window(text), at(f"2026-07-{each}"), None) for each in moments]

    assert [("2026-07-15", True), ("2026-07-16", False), None, ("2026-07-16", True)] == [
        each and (str(each.occurrence.date), each.missed) for each in answers
    ]


def test_a_run_that_is_done_is_not_made_up_for():
    """Neither is an older one that was missed before it."""
    text = "daily 02:30-04:00; if missed 2 days"
    run = run_of(text, "2026-07-16", at("2026-07-16 02:30"))

    assert due(window(text), at("2026-07-16 05:00"), run) is None


def test_the_longest_wait_after_a_window_is_kept():
    """A month after a day that was missed."""
    text = "day 1 02:30-02:30; in July; if missed 31 days"

    assert due(window(text), at("2026-08-02 02:29"), None).missed
    assert due(window(text), at("2026-08-02 02:30"), None) is None


def test_a_window_that_was_changed_does_not_run_twice():
    """Another start or zone makes another rule: what had begun when it last ran counts as run."""
    run = run_of("daily 02:30-04:00", "2026-07-15", at("2026-07-15 02:30"))

    assert due(window("daily 02:30-05:00"), at("2026-07-15 04:30"), run) is None
    assert due(window("daily 02:00-05:00"), at("2026-07-15 04:30"), run) is None
    assert due(window("daily 02:30-05:00", "Europe/Paris"), at("2026-07-15 02:31"), run) is None
    assert due(window("daily 02:31-05:00"), at("2026-07-15 04:30"), run) is not None


def test_a_run_of_the_same_rule_counts_by_its_date():
    """A run that was made up for late is not taken for that of the next date."""
    text = "daily 22:00-04:00; if missed 1 day"
    late = run_of(text, "2026-07-15", at("2026-07-16 22:00"))

    assert "2026-07-16" == str(due(window(text), at("2026-07-16 22:01"), late).occurrence.date)


def test_a_clock_that_was_wrong_does_not_stop_all_runs():
    """A run from the far future does not count; one that is a little later than now does."""
    now, text = at("2026-07-15 02:31"), "daily 02:30-04:00"
    run = run_of(text, "2026-07-15", now + CLOCK_STEP)

    assert due(window(text), now, run) is None
    assert due(window(text), now, attrs.evolve(run, at=now + CLOCK_STEP + SECOND)) is not None


def test_two_that_are_open_at_once_are_both_run_in_order():
    """Around a date that a zone left out, whole days lie on one another."""
    apia, moment, dates, run = window("daily 00:00-00:00", "Pacific/Apia"), utc("2011-12-30 10:00"), [], None
    while (answer := due(apia, moment, run)) is not None:
        run = answer.occurrence.run(moment)
        dates.append(str(run.date))

    assert ["2011-12-30", "2011-12-31"] == dates[-2:]
    assert "2011-12-30" == str(current(apia, moment).date)


@given(windows(), DATES, st.lists(st.integers(1, 3_000), max_size=40))
def test_no_occurrence_is_ever_run_twice(any_window, day, minutes):
    """However irregularly a scheduler looks: at most one run for each, never backwards, never outside."""
    moment, run, keys = datetime.combine(day, time.min, UTC), None, []
    for step in minutes:
        moment += step * MINUTE
        answer = due(any_window, moment, run)
        if answer is None:
            continue
        found = answer.occurrence
        missed = timedelta(minutes=any_window.run_if_missed)
        assert (
            found.end <= moment < found.end + missed
            if answer.missed
            else found.start <= moment < found.starts_until
        )
        assert run is None or run.date < found.date
        assert due(any_window, moment, found.run(moment)) != answer
        run = found.run(moment)
        keys.append(found.key)
    assert len(keys) == len(set(keys))


# --- may it start now -------------------------------------------------------------------------------------------


FREEZE = Freeze(scope=FreezeScope.ORGANIZATION, by="user:anna", reason="year-end closing")
NOW_ORDER = InstallNow(by="user:ben", reason="CVE-2026-1234 is being used")
OPEN, CLOSED = at("2026-07-15 03:00"), at("2026-07-15 12:00")


def ask(*texts: str, at: datetime = OPEN, **options):
    """May it start, with these windows and no run yet."""
    return may_start({window(text): WindowRecord() for text in texts}, at=at, **options)


def test_an_open_window_lets_a_run_start():
    """With its occurrence, and the time until which it may."""
    answer = ask("daily 02:30-04:00; last start 03:30")

    assert (True, StartCode.WINDOW, None) == (answer.allowed, answer.code, answer.opens_at)
    assert (window("daily 02:30-04:00; last start 03:30"), "2026-07-15") == (
        answer.window,
        str(answer.occurrence.date),
    )
    assert (
        "the window daily 02:30-04:00 of 2026-07-15 is open: starts are allowed until "
        "Wednesday 15 July 2026 at 03:30 (Europe/Berlin)"
    ) == answer.why


def test_a_missed_window_lets_a_run_start_for_a_while():
    """And says so."""
    answer = ask("daily 02:30-04:00; if missed 12 hours", at=CLOSED)

    assert (True, StartCode.MISSED_WINDOW) == (answer.allowed, answer.code)
    assert "of 2026-07-15 was missed, and a missed run may start within 12 hours" in answer.why


def test_a_closed_window_says_when_it_opens():
    """The earliest of several, in UTC for machines and in the words of the site for people."""
    answer = ask("last Saturday 22:00-04:00", "daily 02:30-04:00", at=CLOSED)

    assert (False, StartCode.CLOSED, at("2026-07-16 02:30")) == (answer.allowed, answer.code, answer.opens_at)
    assert UTC is answer.opens_at.tzinfo
    assert answer.occurrence is None
    assert (
        "no window is open; the next window, daily 02:30-04:00, "
        "opens on Thursday 16 July 2026 at 02:30 (Europe/Berlin)"
    ) == answer.why


def test_after_the_last_start_nothing_starts():
    """Though the window is open."""
    answer = ask("daily 02:30-04:00; last start 03:00")

    assert (False, StartCode.TOO_LATE) == (answer.allowed, answer.code)
    assert "nothing starts since Wednesday 15 July 2026 at 03:00" in answer.why


def test_a_run_that_was_started_is_not_started_again():
    """The next window is the next chance."""
    run = run_of("daily 02:30-04:00", "2026-07-15", OPEN)

    answer = may_start({window(): WindowRecord(last_run=run)}, at=OPEN)

    assert (False, StartCode.RUN_ALREADY, at("2026-07-16 02:30")) == (answer.allowed, answer.code, answer.opens_at)


def test_a_date_without_work_is_named():
    """People who wonder why nothing runs are told."""
    answer = ask("daily 02:30-04:00; except 2026-07-15")

    assert (False, StartCode.BLACKOUT, at("2026-07-16 02:30")) == (answer.allowed, answer.code, answer.opens_at)
    assert answer.why.startswith("nothing starts on 2026-07-15 in the window daily 02:30-04:00;")


def test_a_window_that_is_over_for_good_says_what_to_do():
    """Nobody waits for what does not come."""
    answer = ask("daily 02:30-04:00; until 2026-01-01")

    assert (False, None) == (answer.allowed, answer.opens_at)
    assert "add one, or order to install now" in answer.why


def test_without_a_window_nothing_starts_by_itself():
    """No window is not the same as any time."""
    answer = ask()

    assert (False, StartCode.NO_WINDOW, None) == (answer.allowed, answer.code, answer.opens_at)
    assert "add one" in answer.why


def test_of_open_windows_the_earliest_answers_and_missed_ones_come_last():
    """A window that is open is a better reason than one that was missed."""
    early, late, missed = "daily 02:00-04:00", "daily 02:30-04:00", "daily 01:00-02:00; if missed 12 hours"

    assert window(early) == ask(late, early).window
    assert window(late) == ask(missed, late).window


@pytest.mark.parametrize("moment", [OPEN, CLOSED])
def test_an_order_to_install_now_stands_above_windows(moment):
    """Also where there is none and on dates without work; who and why are in the answer."""
    for texts in ((), ("daily 02:30-04:00; except 2026-07-15",)):
        answer = ask(*texts, at=moment, install_now=NOW_ORDER)

        assert (True, StartCode.INSTALL_NOW, None) == (answer.allowed, answer.code, answer.occurrence)
        assert "user:ben ordered to install now, outside windows: CVE-2026-1234 is being used" == answer.why


def test_a_freeze_stands_above_everything():
    """Also above an order to install now: lift it first."""
    for order in (None, NOW_ORDER):
        answer = ask("daily 02:30-04:00", freezes=[FREEZE], install_now=order)

        assert (False, StartCode.FROZEN, None) == (answer.allowed, answer.code, answer.opens_at)
        assert (
            "user:anna stopped all starts in this organization, until it is lifted: year-end closing"
        ) == answer.why


def test_of_two_freezes_the_global_one_is_named():
    """It is the one that has to go first."""
    everywhere = Freeze(scope=FreezeScope.GLOBAL, by="user:eve", reason="attack")

    assert "user:eve stopped all starts everywhere" in ask(freezes=[FREEZE, everywhere]).why


@pytest.mark.parametrize("reason", ["", "  ", "x" * (MAX_REASON + 1), "two\nlines"])
def test_an_order_to_install_now_has_a_reason(reason):
    """One line, of a length that fits on a page."""
    with pytest.raises(ValueError, match=r"reason|cannot wait"):
        InstallNow(by="user:ben", reason=reason)

    assert InstallNow(by="user:ben", reason="x" * MAX_REASON)


# --- people at the machine --------------------------------------------------------------------------------------


POLITE = "daily 12:00-16:00; last start 15:00; notice 30 minutes; postpone 2 times 1 hour"


def postpone(clock: str, times: int = 0, text: str = POLITE, day: str = "2026-07-15"):
    """Ask to put off the run of 15 July, when that of *day* was put off so often before."""
    occurrence = one(text, "2026-07-15")
    before = Postponed(key=one(text, day).key, times=times, until=at(f"2026-07-15 {clock}")) if times else None
    return may_postpone(window(text), occurrence, at=at(f"2026-07-15 {clock}"), before=before)


def test_people_are_told_before_a_window():
    """As long before as was said."""
    assert at("2026-07-15 11:30") == one(POLITE, "2026-07-15").notice_at


def test_a_run_can_be_put_off_as_often_as_was_said():
    """Then no more."""
    first, second, third = (postpone("12:10", times) for times in (0, 1, 2))
    until, key = at("2026-07-15 13:10"), one(POLITE, "2026-07-15").key

    assert [True, True, False] == [answer.allowed for answer in (first, second, third)]
    assert [Postponed(key=key, times=times, until=until) for times in (1, 2)] == [
        first.postponed,
        second.postponed,
    ]
    starts = "it starts on Wednesday 15 July 2026 at 13:10 (Europe/Berlin), and can be postponed"
    assert [f"{starts} 1 more time", f"{starts} 0 more times"] == [first.why, second.why]
    assert ("it was postponed 2 times, as often as it can be", None) == (third.why, third.postponed)
    assert UTC is first.postponed.until.tzinfo


def test_what_was_put_off_another_day_does_not_count():
    """Each occurrence can be put off anew."""
    assert 1 == postpone("12:10", 2, day="2026-07-14").postponed.times


def test_a_run_that_has_not_begun_is_put_off_from_its_start():
    """Whoever answers the notice early gets the same time."""
    assert at("2026-07-15 13:00") == postpone("11:30").postponed.until


def test_nothing_is_put_off_beyond_the_last_start():
    """Postponing never makes a window longer."""
    assert [True, False] == [postpone(clock).allowed for clock in ("13:59", "14:00")]
    assert "it must start before Wednesday 15 July 2026 at 15:00" in postpone("14:00").why


def test_a_window_that_does_not_say_so_cannot_be_put_off():
    """That is the ordinary case."""
    assert "this window cannot be postponed" == postpone("12:10", text="daily 12:00-16:00").why
    assert "it was postponed once" in postpone("12:10", 1, "daily 12:00-16:00; postpone 1 times 1 hour").why


def test_a_run_that_was_put_off_starts_when_its_time_has_come():
    """Not earlier, and only what was put off waits."""
    put_off = postpone("12:10").postponed
    moments = [at(f"2026-07-15 {clock}") for clock in ("13:09", "13:10")] + [at("2026-07-16 12:00")]

    answers = [due(window(POLITE), moment, None, put_off) for moment in moments]

    assert [None, "2026-07-15", "2026-07-16"] == [each and str(each.occurrence.date) for each in answers]
    old = attrs.evolve(put_off, key=one(POLITE, "2026-07-14").key)
    assert due(window(POLITE), moments[0], None, old) is not None


def test_a_run_that_was_put_off_says_until_when():
    """Unless it was started meanwhile."""
    moment, put_off = at("2026-07-15 13:00"), postpone("12:10").postponed
    run = one(POLITE, "2026-07-15").run(moment)

    waits, ran = (
        may_start({window(POLITE): WindowRecord(last_run=each, postponed=put_off)}, at=moment)
        for each in (None, run)
    )

    assert (False, StartCode.POSTPONED, at("2026-07-15 13:10")) == (waits.allowed, waits.code, waits.opens_at)
    assert "people at the machine put it off until Wednesday 15 July 2026 at 13:10 (Europe/Berlin)" == waits.why
    assert StartCode.RUN_ALREADY is ran.code
    later = may_start({window(POLITE): WindowRecord(postponed=put_off)}, at=at("2026-07-15 17:00"))
    assert StartCode.CLOSED is later.code
    other = attrs.evolve(put_off, key="another")
    assert may_start({window(POLITE): WindowRecord(postponed=other)}, at=moment).allowed
    late = may_start({window(POLITE): WindowRecord(postponed=other)}, at=at("2026-07-15 15:00"))
    assert StartCode.TOO_LATE is late.code


def test_months_and_days_have_english_names_everywhere():
    """Whatever language the machine speaks."""
    assert 12 == len(set(MONTHS))
    assert UTC is aware(OPEN).tzinfo
    assert "at 02:30" in ask("daily 02:30-04:00", at=CLOSED).why
