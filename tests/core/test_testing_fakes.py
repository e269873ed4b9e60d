"""The public fakes do what the ports say; the real clock and entropy beside them."""

import asyncio
import inspect
import threading
from datetime import UTC, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core.ports import Clock, Entropy
from redflag_core.rate_limit import Decision, RateLimitPolicy, step
from redflag_core.system import SystemClock, SystemEntropy
from redflag_core.testing import (
    START,
    FrozenClock,
    MemoryNonceStore,
    MemoryRateLimitStore,
    NonceStoreContract,
    RateLimitStoreContract,
    SeededEntropy,
    SharedNonceStoreContract,
    SharedRateLimitStoreContract,
    SharedSyncNonceStoreContract,
    SharedSyncRateLimitStoreContract,
    SyncNonceStoreContract,
    SyncRateLimitStoreContract,
)


class TestMemoryNonceStore(NonceStoreContract):
    """The contract that every store must keep."""

    @pytest.fixture
    def store(self):
        return MemoryNonceStore()

    async def test_a_purge_moves_the_horizon(self, store):
        """As the core says, and what is below it is deleted."""
        created = int(START.timestamp())
        assert await store.claim("k", "n", created)

        assert await store.purge(START) == 0
        assert await store.purge(START + timedelta(days=1)) == 1
        assert not await store.claim("k", "m", created)


class Blocking:
    """The fake without coroutines, behind a lock."""

    def __init__(self, store):
        self._store, self._lock = store, threading.Lock()

    def __getattr__(self, name):
        def answer(*arguments):
            with self._lock:
                try:
                    getattr(self._store, name)(*arguments).send(None)
                except StopIteration as end:
                    return end.value
                raise AssertionError("it waited")

        return answer


class TestBlockingNonceStore(SharedSyncNonceStoreContract):
    """The blocking form of the contract."""

    @pytest.fixture
    def store(self):
        return Blocking(MemoryNonceStore())

    @pytest.fixture
    def open_store(self, store):
        return lambda: store


class TestBlockingRateLimitStore(SharedSyncRateLimitStoreContract):
    """The blocking form of the contract."""

    @pytest.fixture
    def store(self):
        return Blocking(MemoryRateLimitStore())

    @pytest.fixture
    def open_store(self, store):
        return lambda: store


@pytest.mark.parametrize(
    "blocking,contract",
    [
        (SyncNonceStoreContract, NonceStoreContract),
        (SharedSyncNonceStoreContract, SharedNonceStoreContract),
        (SyncRateLimitStoreContract, RateLimitStoreContract),
        (SharedSyncRateLimitStoreContract, SharedRateLimitStoreContract),
    ],
)
def test_blocking_stores_are_tested_as_the_others(blocking, contract):
    """Each test of the contract is there, with its promise, and pytest needs no plug-in for it."""
    tests = {name for name in dir(contract) if name.startswith("test_")}

    assert tests == {name for name in dir(blocking) if name.startswith("test_")}
    for name in tests:
        assert getattr(contract, name).__doc__ == getattr(blocking, name).__doc__
        assert not inspect.iscoroutinefunction(getattr(blocking, name))


# The contracts find what is wrong


class Forgetful(MemoryNonceStore):
    """Lets go of its nonces and forgets that it did."""

    async def forget(self, horizon):
        before = len(self._claimed)
        self._claimed = {entry for entry in self._claimed if entry[2] > horizon}
        return before - len(self._claimed)


class Hesitant(MemoryNonceStore):
    """Looks, waits, and then writes."""

    async def claim(self, key_id, nonce, created):
        free = (key_id, nonce, created) not in self._claimed and created > self._horizon
        await asyncio.sleep(0)
        self._claimed.add((key_id, nonce, created))
        return free


class Careless(MemoryNonceStore):
    """Takes the texts for something else than texts."""

    async def claim(self, key_id, nonce, created):
        return await super().claim("", (key_id + nonce).replace("\x00", "").lower().strip()[:100], abs(created))


class Obedient(MemoryNonceStore):
    """Does what a text says, whoever sent it."""

    async def claim(self, key_id, nonce, created):
        if "DELETE" in nonce:
            self._claimed.clear()
        return await super().claim("", nonce, created)


class WideOpen(MemoryNonceStore):
    """Believes every purge, and deletes too much."""

    async def forget(self, horizon):
        self._horizon = horizon
        self._claimed.clear()
        return 0


@pytest.mark.parametrize(
    "store,test",
    [
        (Forgetful, "test_nothing_at_or_below_the_horizon_can_be_claimed"),
        (Forgetful, "test_the_horizon_never_goes_back"),
        (Forgetful, "test_what_is_above_the_horizon_is_not_forgotten"),
        (Hesitant, "test_fifty_claims_at_once_have_one_winner"),
        (Hesitant, "test_of_many_nonces_sent_three_times_at_once_each_has_one_winner"),
        (Obedient, "test_nonces_of_different_keys_do_not_collide"),
        (Careless, "test_texts_are_compared_as_they_are"),
        (Obedient, "test_hostile_texts_are_texts"),
        (Careless, "test_what_no_database_keeps_is_refused_by_every_store"),
        (Careless, "test_times_have_bounds"),
        (WideOpen, "test_the_horizon_never_goes_back"),
        (WideOpen, "test_what_is_above_the_horizon_is_not_forgotten"),
    ],
)
async def test_the_contract_finds_a_nonce_store_that_is_wrong(store, test):
    """A contract that nothing can break would prove nothing."""
    with pytest.raises(AssertionError):
        await getattr(NonceStoreContract(), test)(store())


class Racing(MemoryRateLimitStore):
    """Reads, waits, and then writes."""

    async def take(self, key, policy, now):
        tat = self._tats.get(key)
        await asyncio.sleep(0)
        self._tats[key], decision = step(tat, now.timestamp(), policy)
        return decision


class Generous(MemoryRateLimitStore):
    """Forgets everybody at a purge, and cuts keys."""

    async def take(self, key, policy, now):
        return await super().take(key.replace("\x00", "").lower().strip()[:100], policy, now)

    async def purge(self, now):
        self._tats.clear()
        return 0


class Impatient(MemoryRateLimitStore):
    """Counts in another way."""

    async def take(self, key, policy, now):
        return await super().take(key, RateLimitPolicy(policy.count, policy.period_seconds, 1), now)


class Locked(MemoryRateLimitStore):
    """Believes a time of the future."""

    async def take(self, key, policy, now):
        tat = max(self._tats.get(key, 0.0), now.timestamp()) + policy.interval
        wait = tat - now.timestamp() - policy.burst * policy.interval
        if wait > 0:
            return Decision(False, 0, wait, wait, policy)
        self._tats[key] = tat
        return Decision(True, int(-wait / policy.interval), 0.0, tat - now.timestamp(), policy)


@pytest.mark.parametrize(
    "store,test",
    [
        (Racing, "test_fifty_requests_at_once_pass_as_far_as_the_burst"),
        (Racing, "test_nobody_slips_through_during_a_purge"),
        (Generous, "test_hostile_keys_are_keys"),
        (Generous, "test_a_key_that_no_database_keeps_is_refused_by_every_store"),
        (Generous, "test_a_purge_forgets_who_has_the_full_burst_again"),
        (Impatient, "test_every_decision_is_that_of_the_step"),
        (Impatient, "test_the_burst_passes_and_the_next_request_waits"),
        (Locked, "test_a_clock_that_was_set_back_does_not_lock_a_key"),
    ],
)
async def test_the_contract_finds_a_rate_limit_store_that_is_wrong(store, test):
    """The same for rate limits."""
    with pytest.raises(AssertionError):
        await getattr(RateLimitStoreContract(), test)(store())


def test_a_frozen_clock_moves_only_when_told():
    """Both of its times stand still."""
    clock: Clock = FrozenClock()

    assert (START, clock.monotonic()) == (clock.now(), clock.monotonic())
    assert START == FrozenClock().now()


@given(st.floats(0, 10**8))
def test_time_passes_on_both_clocks(seconds):
    """Advancing moves wall time and monotonic time alike."""
    clock = FrozenClock()
    before = clock.monotonic()

    clock.advance(seconds)

    assert START + timedelta(seconds=seconds) == clock.now()
    assert pytest.approx(seconds) == clock.monotonic() - before


@pytest.mark.parametrize("seconds", [-86_400, 86_400])
def test_a_wall_clock_that_is_set_does_not_move_the_other(seconds):
    """A jump is what an administrator or NTP does."""
    clock = FrozenClock()
    before = clock.monotonic()

    clock.jump(seconds)

    assert START + timedelta(seconds=seconds) == clock.now()
    assert before == clock.monotonic()


def test_time_does_not_pass_backwards():
    """Whoever wants that means a jump."""
    with pytest.raises(ValueError, match="use jump"):
        FrozenClock().advance(-1)


def test_seeded_entropy_repeats_and_does_not_repeat_itself():
    """The same seed gives the same bytes, another other ones, and no call the ones before."""
    one, again, other = SeededEntropy(1), SeededEntropy(1), SeededEntropy(2)
    tokens = [one.token(16) for _ in range(50)]

    assert tokens == [again.token(16) for _ in range(50)]
    assert 51 == len({*tokens, other.token(16)})
    assert [0, 1, 33] == [len(one.token(size)) for size in (0, 1, 33)]


def test_the_system_clock_is_aware_and_never_goes_back():
    """Wall time in UTC, monotonic time that does not fall."""
    clock: Clock = SystemClock()
    readings = [clock.monotonic() for _ in range(100)]

    assert UTC == clock.now().tzinfo
    assert sorted(readings) == readings
    assert START < clock.now()


def test_the_system_entropy_is_fresh():
    """Every call gives other bytes, of the size asked for."""
    entropy: Entropy = SystemEntropy()

    assert 100 == len({entropy.token(16) for _ in range(100)})
    assert [0, 1, 64] == [len(entropy.token(size)) for size in (0, 1, 64)]
