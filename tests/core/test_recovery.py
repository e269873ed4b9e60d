"""What a server jumps over after a restore."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core.enrolment import RefreshChain, RefreshVerdict, judge_refresh
from redflag_core.freshness import TOLERANCE, check_window
from redflag_core.recovery import ServerCounters, after_restore

NOW = datetime(2026, 1, 2, 9, 30, tzinfo=UTC)
MOMENT = int(NOW.timestamp())


def test_the_generation_becomes_the_time_and_the_horizon_five_minutes_ahead():
    """As the protocol says: max(gen + 1, unix seconds), and now + 300."""
    assert ServerCounters(MOMENT, MOMENT + 300) == after_restore(ServerCounters(0, MOMENT - 10_000), now=NOW)


def test_two_restores_of_one_backup_are_two_generations():
    """A second later is another generation, though the backup is the same."""
    backup = ServerCounters(7, 0)

    first, second = (after_restore(backup, now=NOW + timedelta(seconds=seconds)) for seconds in (0, 1))

    assert first.gen < second.gen


def test_a_clock_that_was_set_back_lowers_nothing():
    """A backup with higher counters than the time says keeps them, and the generation still grows."""
    ahead = ServerCounters(MOMENT + 86_400, MOMENT + 90_000)

    assert ServerCounters(MOMENT + 86_401, MOMENT + 90_000) == after_restore(ahead, now=NOW)


@given(
    gen=st.integers(0, 2**40),
    horizon=st.integers(0, 2**40),
    seconds=st.integers(-(2**30), 2**31),
)
def test_counters_only_ever_grow(gen: int, horizon: int, seconds: int):
    """Whatever backup and clock say: a new generation, and a horizon that is not lower and not in the past."""
    now = NOW + timedelta(seconds=seconds)

    after = after_restore(ServerCounters(gen, horizon), now=now)

    assert after.gen > gen
    assert after.nonce_horizon >= max(horizon, now.timestamp())


@given(microseconds=st.integers(0, 999_999), ahead=st.integers(0, TOLERANCE))
def test_nothing_that_was_accepted_until_now_is_above_the_horizon(microseconds: int, ahead: int):
    """The newest `created` that passes the window at the moment of the restore is not above the horizon."""
    now = NOW + timedelta(microseconds=microseconds)
    check_window(MOMENT + ahead, MOMENT + ahead + 300, now=now)

    assert MOMENT + ahead <= after_restore(ServerCounters(0, 0), now=now).nonce_horizon


@pytest.mark.parametrize("restores", [1, 2, 5])
def test_each_restore_allows_one_adoption(restores: int):
    """The same backup again adopts again; within one generation the second unknown secret is a fork."""
    backup = RefreshChain(b"old", b"older", 3, MOMENT + 10_000)
    counters = ServerCounters(0, 0)
    for number in range(restores):
        now = NOW + timedelta(hours=number)
        gen = after_restore(counters, now=now).gen
        verdict, chain = judge_refresh(
            backup, current=b"c", successor=b"d", proven_generation=9 + number, gen=gen, now=now
        )
        again, _ = judge_refresh(chain, current=b"x", successor=b"y", proven_generation=99, gen=gen, now=now)
        assert (RefreshVerdict.ADOPT, RefreshVerdict.FORK) == (verdict, again)


def test_a_time_without_a_zone_is_a_mistake_of_the_caller():
    """Naive times are never guessed at."""
    with pytest.raises(ValueError, match="aware"):
        after_restore(ServerCounters(0, 0), now=NOW.replace(tzinfo=None))
