"""Freshness: which moments are accepted, to the second, and that a nonce is taken once."""

from datetime import UTC, datetime, timedelta, timezone, tzinfo

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core._fields import MAX_MOMENT
from redflag_core.errors import MalformedError, ReplayError, StaleError, TooLargeError
from redflag_core.freshness import (
    MAX_CLAIM_BYTES,
    RETENTION,
    TOLERANCE,
    check_claim,
    check_window,
    claim_nonce,
    claim_nonce_sync,
    horizon_after_purge,
    next_horizon,
    refuse_replay,
    unix,
)
from redflag_core.testing import START, MemoryNonceStore

NOW = int(START.timestamp())
SECOND = timedelta(seconds=1)


@attrs.frozen
class Message:
    key_id: str = "a" * 32
    nonce: str = "n" * 22
    created: int = NOW


class BlockingStore:
    """Claims in a set."""

    def __init__(self):
        self.claimed = set()

    def claim(self, key_id, nonce, created):
        """Whether it was free."""
        free = (key_id, nonce, created) not in self.claimed
        self.claimed.add((key_id, nonce, created))
        return free


def test_the_window_is_what_the_protocol_says():
    """Five minutes either way, nonces kept for ten."""
    assert (300, 600) == (TOLERANCE, RETENTION)


@pytest.mark.parametrize("offset", [-300, -299, 0, 299, 300])
def test_the_tolerance_is_inclusive(offset):
    """A message of exactly five minutes ago, or ahead, still passes."""
    check_window(NOW + offset, NOW + offset + 300, now=START)


@pytest.mark.parametrize(
    "offset, reason", [(-301, "too old"), (301, "future"), (-(10**9), "too old"), (10**9, "future")]
)
def test_a_second_beyond_the_tolerance_is_stale(offset, reason):
    """The message says in which direction the clock is wrong."""
    with pytest.raises(StaleError, match=reason):
        check_window(NOW + offset, NOW + offset + 300, now=START)


def test_fractions_of_a_second_count():
    """A tenth of a second past the end is past it."""
    tenth = timedelta(milliseconds=100)

    check_window(NOW - 300, NOW, now=START)
    check_window(NOW + 300, NOW + 600, now=START)
    with pytest.raises(StaleError):
        check_window(NOW - 300, NOW, now=START + tenth)
    with pytest.raises(StaleError):
        check_window(NOW + 300, NOW + 600, now=START - tenth)


def test_a_message_does_not_outlive_its_own_end():
    """A short-lived message is refused after its end though its creation is within the tolerance."""
    check_window(NOW - 10, NOW, now=START)
    with pytest.raises(StaleError, match="too old"):
        check_window(NOW - 10, NOW - 1, now=START)


def test_a_message_is_not_accepted_longer_than_the_tolerance():
    """Whatever end its sender gives it."""
    check_window(NOW - TOLERANCE, NOW + 1000, now=START)
    with pytest.raises(StaleError, match="too old"):
        check_window(NOW - TOLERANCE - 1, NOW + 1000, now=START)


@given(st.integers(-1000, 1000), st.integers(0, 1000), st.integers(0, 1000))
def test_a_window_is_the_meeting_of_both_bounds(age, lifetime, tolerance):
    """Accepted exactly when the difference is within the tolerance and the end is not past."""
    accepted = abs(age) <= tolerance and age <= lifetime
    created = NOW - age

    try:
        check_window(created, created + lifetime, now=START, tolerance=tolerance)
    except StaleError:
        assert not accepted
    else:
        assert accepted


class Nowhere(tzinfo):
    """A time zone that does not know its offset: such a datetime is naive too."""

    def utcoffset(self, dt):
        return None


@pytest.mark.parametrize("now", [datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=Nowhere())])  # noqa: DTZ001
def test_a_naive_time_is_a_bug(now):
    """A time without a zone would be read as local time: hours off, silently."""
    for use in (unix, horizon_after_purge, lambda now: check_window(NOW, NOW, now=now)):
        with pytest.raises(ValueError, match="aware"):
            use(now)


@given(st.integers(-14, 14))
def test_the_time_zone_does_not_matter(hours):
    """The same moment in another zone is the same moment."""
    zone = timezone(timedelta(hours=hours))

    assert unix(START) == unix(START.astimezone(zone))
    assert NOW == unix(START.astimezone(UTC))


def test_only_what_nobody_would_accept_may_be_forgotten():
    """A nonce is kept for longer than its message passes the window, and the horizon never passes a fresh one."""
    oldest_fresh = NOW - TOLERANCE
    horizon = horizon_after_purge(START)

    assert NOW - RETENTION - 1 == horizon
    assert horizon < oldest_fresh
    with pytest.raises(StaleError):
        check_window(horizon, horizon + 300, now=START)


@given(st.integers(0, 10**6))
def test_the_horizon_only_moves_on(seconds):
    """A later purge never forgets less."""
    assert horizon_after_purge(START) <= horizon_after_purge(START + seconds * SECOND)


@pytest.mark.parametrize(
    "stored, expected",
    [
        (0, NOW - RETENTION - 1),
        (NOW - RETENTION - 2, NOW - RETENTION - 1),
        (NOW - RETENTION - 1, NOW - RETENTION - 1),
        (NOW - RETENTION, NOW - RETENTION),
        (NOW + TOLERANCE, NOW + TOLERANCE),
        (NOW + RETENTION, NOW + RETENTION),
        (NOW + RETENTION + 1, NOW + TOLERANCE),
        (NOW + 365 * 86_400, NOW + TOLERANCE),
    ],
)
def test_a_horizon_goes_back_only_when_a_wrong_clock_had_set_it(stored, expected):
    """What a restore sets ahead stays; a year ahead would refuse everything for a year."""
    assert expected == next_horizon(stored, START)


@given(st.integers(0, 2 * NOW))
def test_no_horizon_opens_what_was_signed_until_now(stored):
    """A horizon that goes back stays above every message that could have been claimed."""
    following = next_horizon(stored, START)

    assert following >= min(stored, NOW + TOLERANCE)
    assert following >= horizon_after_purge(START)


def test_a_claim_has_texts_and_a_time_that_every_store_keeps():
    """The bounds are inclusive and hold for both texts."""
    longest = "x" * MAX_CLAIM_BYTES

    check_claim(longest, longest, MAX_MOMENT)
    check_claim("", "", 0)
    for claim in ((longest + "x", "n", 1), ("k", longest + "x", 1)):
        with pytest.raises(TooLargeError, match="^the nonce" if claim[0] == "k" else "^the key id"):
            check_claim(*claim)
    for claim in (("\x00", "n", 1), ("k", "\ud800", 1), ("k", "n", -1), ("k", "n", MAX_MOMENT + 1)):
        with pytest.raises(MalformedError):
            check_claim(*claim)


async def test_a_message_is_claimed_once():
    """The second claim of the same message is a replay."""
    store = MemoryNonceStore()

    await claim_nonce(Message(), store)
    with pytest.raises(ReplayError, match="fresh nonce"):
        await claim_nonce(Message(), store)


def test_a_store_that_blocks_claims_the_same_once():
    """By key, nonce and creation time."""
    store = BlockingStore()

    claim_nonce_sync(Message(), store)
    with pytest.raises(ReplayError, match="fresh nonce"):
        claim_nonce_sync(Message(), store)
    assert {("a" * 32, "n" * 22, NOW)} == store.claimed


async def test_another_nonce_key_or_time_is_another_message():
    """Nothing but the whole triple is a replay."""
    store = MemoryNonceStore()

    for message in (Message(), Message(nonce="m" * 22), Message(key_id="b" * 32), Message(created=NOW + 1)):
        await claim_nonce(message, store)


async def test_a_message_below_the_horizon_is_a_replay():
    """What the store has forgotten cannot be told from new: it is refused."""
    store = MemoryNonceStore()
    await store.forget(NOW)

    with pytest.raises(ReplayError):
        await claim_nonce(Message(), store)


def test_the_answer_of_a_store_becomes_a_verdict():
    """For a store whose statement does more than claim: True passes, False is a replay."""
    refuse_replay(claimed=True)
    with pytest.raises(ReplayError):
        refuse_replay(claimed=False)
