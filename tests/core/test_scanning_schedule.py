"""When a scanner is due."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core import codec
from redflag_core.scanning import ScannerActivity, ScannerPolicy, due, seconds_until_due

HOURLY = ScannerPolicy(interval=3600)
NOW = 10_000.0


@pytest.mark.parametrize(
    "expected, activity",
    [
        (0.0, ScannerActivity()),
        (3600.0, ScannerActivity(finished_at=NOW)),
        (1.0, ScannerActivity(finished_at=NOW - 3599)),
        (0.0, ScannerActivity(finished_at=NOW - 3600)),
        (0.0, ScannerActivity(finished_at=NOW - 9000)),
        (0.0, ScannerActivity(finished_at=NOW, requested=True)),
        (None, ScannerActivity(running=True)),
        (None, ScannerActivity(running=True, requested=True)),
        (30.0, ScannerActivity(open_until=NOW + 30)),
        (30.0, ScannerActivity(open_until=NOW + 30, finished_at=NOW, requested=True)),
        (3600.0, ScannerActivity(open_until=NOW + 30, finished_at=NOW)),
        (0.0, ScannerActivity(open_until=NOW, finished_at=NOW - 3600)),
    ],
)
def test_a_scanner_waits_for_its_interval_and_its_circuit(expected, activity):
    """A request skips the interval, never an open circuit; a running scanner is never due."""
    assert expected == seconds_until_due(HOURLY, activity, NOW)


def test_a_disabled_scanner_is_never_due():
    """Disabled means that not even a request starts it."""
    off = ScannerPolicy(enabled=False)

    assert seconds_until_due(off, ScannerActivity(requested=True), NOW) is None
    assert () == due({"apt": off}, {}, NOW)


def test_due_names_all_that_may_start_now():
    """Scanners that never ran, waited long enough or were asked for are due, by name."""
    policies = dict.fromkeys(("winget", "dnf", "apt", "docker"), HOURLY)
    activities = {
        "apt": ScannerActivity(finished_at=NOW - 3600),
        "docker": ScannerActivity(finished_at=NOW - 1),
        "winget": ScannerActivity(finished_at=NOW - 1, requested=True),
    }

    assert ("apt", "dnf", "winget") == due(policies, activities, NOW)


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.none() | st.floats(0, 1e6))
def test_a_scanner_is_due_exactly_when_its_wait_is_over(finished_at, now, open_until):
    """Sleeping for the stated seconds always ends in a due scanner."""
    activity = ScannerActivity(finished_at=finished_at, open_until=open_until)

    wait = seconds_until_due(HOURLY, activity, now)

    assert wait is not None
    assert wait >= 0.0
    assert seconds_until_due(HOURLY, activity, now + wait) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {"interval": 59.0},
        {"interval": 8 * 86_400.0},
        {"timeout": 0.0},
        {"timeout": 3_601.0},
        {"timeout": float("nan")},
        {"failure_threshold": 0},
        {"failure_threshold": 101},
        {"reset_timeout": 1.0},
        {"reset_timeout": 8 * 86_400.0},
    ],
)
def test_a_policy_out_of_bounds_is_refused(fields):
    """Each number of a policy has a least and a most."""
    with pytest.raises(ValueError, match=r".+"):
        ScannerPolicy(**fields)


def test_a_policy_survives_the_codec():
    """A server can send policies to its agents."""
    policy = ScannerPolicy(enabled=False, interval=120.0, timeout=60.0, failure_threshold=5, reset_timeout=600.0)

    assert policy == codec.parse(ScannerPolicy, codec.dump(policy), max_bytes=1000)
