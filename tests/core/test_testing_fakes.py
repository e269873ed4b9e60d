"""The public fakes do what the ports say; the real clock and entropy beside them."""

from datetime import UTC, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core.ports import Clock, Entropy
from redflag_core.system import SystemClock, SystemEntropy
from redflag_core.testing import START, FrozenClock, MemoryNonceStore, NonceStoreContract, SeededEntropy


class TestMemoryNonceStore(NonceStoreContract):
    """The contract that every store must keep."""

    @pytest.fixture
    def store(self):
        return MemoryNonceStore()

    async def test_the_horizon_never_goes_back(self, store):
        """A late, lower purge does not open what an earlier one closed."""
        await store.forget(2000)
        await store.forget(1000)

        assert not await store.claim("a" * 32, "n" * 22, 1500)


class ForgetfulStore(MemoryNonceStore):
    """A store that lets go of its nonces and forgets that it did."""

    async def forget(self, horizon):
        self._claimed = {entry for entry in self._claimed if entry[2] > horizon}


async def test_the_contract_finds_a_store_that_forgets_its_horizon():
    """A contract that nothing can break would prove nothing."""
    with pytest.raises(AssertionError):
        await NonceStoreContract().test_nothing_at_or_below_the_horizon_can_be_claimed(ForgetfulStore())


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
