"""Until when a release gets fixes: from the table, from the release itself, or not known."""

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core import codec
from redflag_core.errors import MalformedError
from redflag_core.scanning import Lifespan, SupportKind, end_of_life, known_lifespan, stated_lifespan
from redflag_core.scanning.lifespan import AS_OF, NOTICE_DAYS, TABLE_DAYS

TODAY = date(2026, 1, 1)


@pytest.mark.parametrize(
    "os_id, version, expected",
    [
        ("debian", "12", (date(2028, 6, 30), SupportKind.LONG_TERM, 911)),
        ("debian", "12.9", (date(2028, 6, 30), SupportKind.LONG_TERM, 911)),
        ("debian", "10", (date(2024, 6, 30), SupportKind.LONG_TERM, -550)),
        ("ubuntu", "20.04", (date(2025, 5, 29), SupportKind.STANDARD, -217)),
        ("ubuntu", "24.04", (date(2029, 5, 31), SupportKind.STANDARD, 1246)),
        ("rhel", "9.4", (date(2032, 5, 31), SupportKind.STANDARD, 2342)),
        ("rocky", "8.10", (date(2029, 5, 31), SupportKind.STANDARD, 1246)),
        ("centos", "7", (date(2024, 6, 30), SupportKind.STANDARD, -550)),
        ("fedora", "40", (date(2025, 5, 13), SupportKind.STANDARD, -233)),
    ],
)
def test_the_end_is_the_last_day_that_costs_nothing(os_id, version, expected):
    """Long-term support counts where every machine gets it; what a subscription adds does not."""
    end = end_of_life(os_id, version, TODAY)

    assert expected == (end.date, end.kind, end.days_left)


@pytest.mark.parametrize(
    "os_id, version",
    [
        ("debian", None),
        ("debian", "99"),
        ("ubuntu", "22"),
        ("ubuntu", "4.04"),
        ("linuxmint", "22"),
        ("", ""),
        ("rhel", ""),
    ],
)
def test_what_is_not_in_the_table_is_not_known(os_id, version):
    """Testing, a release of the future, another distribution, nonsense: never a guess."""
    assert end_of_life(os_id, version, TODAY) is None


def test_an_old_table_is_not_believed():
    """Whoever runs a release of RedFlag for years is told "not known", not what was planned back then."""
    last = AS_OF + timedelta(days=TABLE_DAYS)

    assert end_of_life("debian", "13", last) is not None
    assert end_of_life("debian", "13", last + timedelta(days=1)) is None


@pytest.mark.parametrize(
    "days, past, alarming",
    [(NOTICE_DAYS + 1, False, False), (NOTICE_DAYS, False, True), (0, False, True), (-1, True, True)],
)
def test_people_are_alarmed_a_quarter_ahead(days, past, alarming):
    """On the last day there are still fixes; after it there are none."""
    end = Lifespan("test", "2026-06-30").on(date(2026, 6, 30) - timedelta(days=days))

    assert (days, past, alarming) == (end.days_left, end.is_past, end.is_alarming)


def test_a_release_may_state_its_own_end():
    """As os-release(5) provides for; what is no date states nothing."""
    assert Lifespan("os-release", "2029-06-30") == stated_lifespan("2029-06-30")
    assert [None] * 5 == [stated_lifespan(text) for text in (None, "", "soon", "2029-02-30", "20290630")]


@given(st.text(max_size=20))
def test_any_statement_is_a_date_or_nothing(text):
    """The file is the machine's: nothing in it raises."""
    stated = stated_lifespan(text)

    assert stated is None or date.fromisoformat(stated.standard)


@given(st.text(max_size=10), st.none() | st.text(max_size=10), st.dates())
def test_any_release_has_an_end_or_none(os_id, version, today):
    """Whatever a machine calls its system."""
    end = end_of_life(os_id, version, today)

    assert end is None or end.days_left == (end.date - today).days


@pytest.mark.parametrize(
    "value",
    [
        {"standard": "2029-6-30", "source": "x"},
        {"standard": "2029-02-30", "source": "x"},
        {"standard": "2029-06-30", "long_term": "never", "source": "x"},
        {"standard": "2029-06-30", "source": ""},
        {"standard": "2029-06-30", "source": "x" * 65},
        {"standard": 20290630, "source": "x"},
    ],
)
def test_dates_from_the_wire_are_dates(value):
    """What an agent sends is opened as a lifespan, or refused."""
    with pytest.raises(MalformedError):
        codec.structure(Lifespan, value)


def test_each_row_is_in_order():
    """Long-term support ends after the standard one, paid support after both."""
    for os_id, version in (("debian", "8"), ("debian", "13"), ("ubuntu", "14.04"), ("ubuntu", "26.04")):
        row = known_lifespan(os_id, version, AS_OF)
        ends = [end for end in (row.standard, row.long_term, row.paid) if end is not None]
        assert sorted(ends) == ends
