"""What the owner of a machine allows: windows on the machine's wall clock, starts per day, managers."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core import codec
from redflag_core.errors import CommandRefusedError, LimitError, MalformedError
from redflag_core.patching import Limits, LocalWindow, check_limits
from redflag_core.patching.limits import DAY, DAYS, STARTS_PER_DAY, WINDOW_RETRY

NOW = datetime(2026, 6, 3, 12, 0, tzinfo=UTC)  # a Wednesday
MOMENT = int(NOW.timestamp())
BERLIN = "Europe/Berlin"


def check(limits: Limits, *, manager: str = "apt", started: tuple[int, ...] = (), now: datetime = NOW) -> None:
    """Check a change with apt now."""
    check_limits(limits, manager=manager, started=started, now=now)


def refusal(limits: Limits, **fields) -> LimitError:
    """Why a change is refused."""
    with pytest.raises(LimitError) as caught:
        check(limits, **fields)
    return caught.value


def at(text: str, zone: str = "UTC") -> datetime:
    """A moment on the wall clock of a zone."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


# --- built in ---------------------------------------------------------------------------------------------------


def test_an_owner_who_says_nothing_allows_routine_work():
    """Without a file any manager may be used at any time."""
    check(Limits())
    check(Limits(), manager="dnf", now=NOW + timedelta(hours=14))


def test_a_machine_that_must_not_change_refuses_for_good():
    """There is no time after which it would pass, and the sentence names the setting."""
    error = refusal(Limits(changes=False))

    assert ("local_limit", None) == (error.code, error.retry_after)
    assert isinstance(error, CommandRefusedError)
    assert "changes = false" in error.message


def test_only_the_managers_that_are_named_may_be_used():
    """None means all, and an empty list means none."""
    only_dnf = Limits(managers=("dnf",))

    check(only_dnf, manager="dnf")

    assert "apt" in refusal(only_dnf).message
    assert refusal(Limits(managers=())).retry_after is None


# --- starts -----------------------------------------------------------------------------------------------------


def test_the_last_start_of_the_day_is_allowed_and_the_next_is_not():
    """The built-in number of starts holds without any file."""
    spread = tuple(MOMENT - 60 * i for i in range(STARTS_PER_DAY))

    check(Limits(), started=spread[1:])

    assert str(STARTS_PER_DAY) in refusal(Limits(), started=spread).message


def test_the_wait_is_until_enough_starts_are_a_day_old():
    """The server may come again when one start more has left the day, not earlier and not much later."""
    started = (MOMENT - 100, MOMENT - DAY + 30, MOMENT - 5_000)
    limits = Limits(starts_per_day=3)

    wait = refusal(limits, started=started).retry_after

    assert 30 == wait
    assert refusal(limits, started=started, now=NOW + timedelta(seconds=wait - 1)).retry_after == 1
    check(limits, started=started, now=NOW + timedelta(seconds=wait))


def test_more_starts_than_allowed_wait_for_the_right_one():
    """After the owner lowered the number, several starts have to become old."""
    started = tuple(MOMENT - hours * 3600 for hours in (1, 2, 3, 4, 5))

    wait = refusal(Limits(starts_per_day=2), started=started).retry_after

    assert DAY - 2 * 3600 == wait
    check(Limits(starts_per_day=2), started=started, now=NOW + timedelta(seconds=wait))


def test_a_start_of_yesterday_does_not_count():
    """Exactly a day old is no longer of the last day."""
    check(Limits(starts_per_day=1), started=(MOMENT - DAY, MOMENT - 2 * DAY))

    assert 1 == refusal(Limits(starts_per_day=1), started=(MOMENT - DAY + 1,)).retry_after


def test_no_starts_at_all_can_be_allowed():
    """Zero is a limit like another: it never passes, and says to come again in a day."""
    assert DAY == refusal(Limits(starts_per_day=0)).retry_after


@given(st.lists(st.integers(-3 * DAY, 0), max_size=30), st.integers(1, 25))
def test_whoever_waits_as_told_is_not_told_to_wait_again(ages, most):
    """For any history: after the wait the change passes, and one second before it does not."""
    started, limits = tuple(MOMENT + age for age in ages), Limits(starts_per_day=most)
    try:
        check(limits, started=started)
    except LimitError as error:
        wait = error.retry_after
        assert 0 < wait <= DAY
        check(limits, started=started, now=NOW + timedelta(seconds=wait))
        refusal(limits, started=started, now=NOW + timedelta(seconds=wait - 1))
    else:
        assert sum(start > MOMENT - DAY for start in started) < most


# --- windows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "moment, is_open",
    [
        ("2026-06-03 01:59:59", False),
        ("2026-06-03 02:00:00", True),
        ("2026-06-03 04:59:59.999", True),
        ("2026-06-03 05:00:00", False),
    ],
)
def test_a_window_is_open_from_its_start_until_before_its_end(moment, is_open):
    """The end is not within."""
    assert is_open == LocalWindow(start="02:00", end="05:00").is_open(at(moment))


@pytest.mark.parametrize(
    "moment, is_open",
    [
        ("2026-06-05 21:59", False),  # Friday
        ("2026-06-05 22:00", True),
        ("2026-06-05 23:59", True),
        ("2026-06-06 00:00", True),  # Saturday, still Friday's night
        ("2026-06-06 03:59", True),
        ("2026-06-06 04:00", False),
        ("2026-06-06 22:00", False),
        ("2026-06-05 03:00", False),  # Thursday's night is not named
    ],
)
def test_a_window_over_midnight_belongs_to_the_day_it_begins(moment, is_open):
    """Friday night ends on Saturday morning."""
    window = LocalWindow(days=("fri",), start="22:00", end="04:00")

    assert is_open == window.is_open(at(moment))


@pytest.mark.parametrize("day", range(7))
def test_every_day_has_its_name(day):
    """The names are those of the calendar, Monday first."""
    moment = at("2026-06-01 12:00") + timedelta(days=day)

    assert [name == DAYS[day] for name in DAYS] == [
        LocalWindow(days=(name,), start="10:00", end="14:00").is_open(moment) for name in DAYS
    ]


def test_equal_start_and_end_are_a_whole_day():
    """From its start until the same time of the next day."""
    window = LocalWindow(days=("wed",), start="12:00", end="12:00")

    times = ("2026-06-03 11:59", "2026-06-03 12:00", "2026-06-04 11:59", "2026-06-04 12:00")
    assert [False, True, True, False] == [window.is_open(at(moment)) for moment in times]


def test_a_window_is_on_the_wall_clock_of_its_zone():
    """In summer and in winter it opens at the same local time, whatever zone the moment comes in."""
    window = LocalWindow(start="02:00", end="04:00", timezone=BERLIN)

    opens = ("2026-06-03 00:00", "2026-12-03 01:00")  # 02:00 in Berlin, in UTC
    assert [True, True] == [window.is_open(at(moment)) for moment in opens]
    assert [False, False] == [window.is_open(at(moment) - timedelta(seconds=1)) for moment in opens]


def test_the_day_is_that_of_the_zone():
    """When it is Wednesday in Auckland it is still Tuesday in UTC."""
    window = LocalWindow(days=("wed",), start="01:00", end="03:00", timezone="Pacific/Auckland")

    assert window.is_open(at("2026-06-02 14:00"))


def test_a_window_in_the_hour_that_is_skipped_is_open_where_its_rest_is():
    """In spring 02:00 to 03:00 does not exist: a window into it opens, one that lies in it does not that day."""
    jump = at("2026-03-29 01:00")  # 03:00 in Berlin, a second after 01:59:59

    longer = LocalWindow(start="02:30", end="03:30", timezone=BERLIN)
    within = LocalWindow(start="02:00", end="03:00", timezone=BERLIN)
    assert (True, False) == (longer.is_open(jump), within.is_open(jump))
    assert not within.is_open(jump - timedelta(seconds=1))


def test_a_window_in_the_hour_that_comes_twice_is_open_twice():
    """In autumn 02:30 is there two times: the machine may be changed in both."""
    window = LocalWindow(start="02:00", end="03:00", timezone=BERLIN)
    first, second = at("2026-10-25 00:30"), at("2026-10-25 01:30")

    assert [True, True, False] == [window.is_open(each) for each in (first, second, at("2026-10-25 02:00"))]


def test_one_open_window_of_several_is_enough():
    """Outside all of them the change waits, and may be tried again soon."""
    windows = (LocalWindow(start="02:00", end="04:00"), LocalWindow(days=("wed",), start="11:00", end="13:00"))

    check(Limits(windows=windows))

    error = refusal(Limits(windows=windows), now=NOW + timedelta(hours=1))
    assert WINDOW_RETRY == error.retry_after
    assert "window" in error.message


def test_what_never_passes_is_told_before_what_may():
    """A refusal for good is not hidden behind a closed window or a full day."""
    closed = (LocalWindow(start="01:00", end="02:00"),)
    full = (MOMENT,) * STARTS_PER_DAY

    assert refusal(Limits(changes=False, windows=closed), started=full).retry_after is None
    assert refusal(Limits(managers=("dnf",), windows=closed), started=full).retry_after is None


# --- values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"start": "2:00"}, "start"),
        ({"start": "24:00"}, "start"),
        ({"end": "12:60"}, "end"),
        ({"end": "12:00:00"}, "end"),
        ({"days": ()}, "days"),
        ({"days": ("someday",)}, "days"),
        ({"days": ("Mon",)}, "days"),
        ({"timezone": "Mars/Olympus"}, "no time zone 'Mars/Olympus'"),
        ({"timezone": ""}, "no time zone"),
        ({"timezone": "../../etc/passwd"}, "no time zone"),
        ({"timezone": "Europe"}, "no time zone"),
        ({"timezone": "localtime"}, "'localtime' that is the same on every machine"),
        ({"timezone": "posixrules"}, "'posixrules' that is the same on every machine"),
        (
            {"timezone": "right/Europe/Berlin"},
            "'right/Europe/Berlin' that is the same on every machine",
        ),
        (
            {"timezone": "posix/Europe/Berlin"},
            "'posix/Europe/Berlin' that is the same on every machine",
        ),
    ],
)
def test_a_window_that_means_nothing_is_refused(fields, words):
    """A typing error never opens or closes a window: it is an error, with its field."""
    with pytest.raises(ValueError, match=words):
        LocalWindow(**{"start": "02:00", "end": "04:00", **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"starts_per_day": -1},
        {"starts_per_day": 10_001},
        {"managers": ("APT",)},
        {"managers": ("apt; id",)},
        {"windows": (LocalWindow(start="01:00", end="02:00"),) * 51},
    ],
)
def test_limits_that_mean_nothing_are_refused(fields):
    """Numbers and names have bounds."""
    with pytest.raises(ValueError, match=next(iter(fields))):
        Limits(**fields)


@pytest.mark.parametrize(
    "document",
    [
        {"change": True},
        {"changes": "no"},
        {"starts_per_day": "20"},
        {"managers": "apt"},
        {"windows": [{"start": "02:00"}]},
        {"windows": [{"start": "02:00", "end": "04:00", "zone": "UTC"}]},
    ],
)
def test_a_file_with_an_unknown_or_wrong_word_is_refused(document):
    """A word that is not understood could have been a limit: it is never passed over."""
    with pytest.raises(MalformedError):
        codec.structure(Limits, document)


def test_a_file_says_what_the_owner_means():
    """The form in which a TOML file arrives."""
    document = {
        "starts_per_day": 2,
        "managers": ["apt"],
        "windows": [{"days": ["sat", "sun"], "start": "22:00", "end": "04:00", "timezone": BERLIN}],
    }

    window = LocalWindow(days=("sat", "sun"), start="22:00", end="04:00", timezone=BERLIN)
    assert Limits(starts_per_day=2, managers=("apt",), windows=(window,)) == codec.structure(Limits, document)
