"""
Public fakes and port contracts: what our own tests use, and what an embedder's tests may use.

The fakes are for tests only: nothing here is durable, and `SeededEntropy` is predictable by design.
"""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Final

from redflag_core.ports import NonceStore, RateLimitStore
from redflag_core.rate_limit import Decision, RateLimitPolicy, step

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""Where a `FrozenClock` starts unless told otherwise."""


class FrozenClock:
    """
    A clock that moves when told to. `redflag_core.ports.Clock`.

    Args:
        now: Wall time it starts at, aware UTC.
    """

    def __init__(self, now: datetime = START) -> None:
        self._now = now
        self._monotonic = 1000.0

    def now(self) -> datetime:
        """The frozen wall time."""
        return self._now

    def monotonic(self) -> float:
        """The frozen monotonic time, seconds."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let *seconds* (0 or more) pass on both clocks."""
        if seconds < 0:
            raise ValueError("time passes forwards; use jump() for a wall clock that was set back")
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back by *seconds*; monotonic time does not notice."""
        self._now += timedelta(seconds=seconds)


class SeededEntropy:
    """
    Repeatable bytes. `redflag_core.ports.Entropy`. Never for production: anybody can compute them.

    Args:
        seed: Two with the same seed give the same bytes.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._count = 0

    def token(self, size: int) -> bytes:
        """The next *size* bytes."""
        self._count += 1
        return hashlib.shake_256(b"%d.%d" % (self._seed, self._count)).digest(size)


class MemoryNonceStore:
    """Nonces in a set. `redflag_core.ports.NonceStore` for one event loop."""

    def __init__(self) -> None:
        self._claimed: set[tuple[str, str, int]] = set()
        self._horizon = 0

    async def claim(self, key_id: str, nonce: str, created: int) -> bool:
        """See `redflag_core.ports.NonceStore.claim`."""
        entry = (key_id, nonce, created)
        if created <= self._horizon or entry in self._claimed:
            return False
        self._claimed.add(entry)
        return True

    async def forget(self, horizon: int) -> None:
        """Forget nonces created at or before *horizon*, which are refused from then on."""
        self._horizon = max(self._horizon, horizon)
        self._claimed = {entry for entry in self._claimed if entry[2] > horizon}


class NonceStoreContract:
    """
    What every `NonceStore` must do. Subclass it in a test module and give it a ``store`` fixture.

    The store must also offer ``async forget(horizon)``, which purges.
    """

    async def test_a_nonce_is_claimed_once(self, store: NonceStore) -> None:
        """The first claim wins, the second does not."""
        assert await store.claim("a" * 32, "n" * 22, 1000) is True
        assert await store.claim("a" * 32, "n" * 22, 1000) is False

    async def test_nonces_of_different_keys_do_not_collide(self, store: NonceStore) -> None:
        """Another key may use the same nonce text."""
        assert await store.claim("a" * 32, "n" * 22, 1000) is True
        assert await store.claim("b" * 32, "n" * 22, 1000) is True

    async def test_another_time_is_another_message(self, store: NonceStore) -> None:
        """The creation time is signed: the same text with another one is no replay."""
        assert await store.claim("a" * 32, "n" * 22, 1000) is True
        assert await store.claim("a" * 32, "n" * 22, 1001) is True

    async def test_fifty_claims_at_once_have_one_winner(self, store: NonceStore) -> None:
        """Of many concurrent claims of one nonce exactly one succeeds."""
        from asyncio import gather  # noqa: PLC0415  (tests only)

        claims = await gather(*(store.claim("a" * 32, "n" * 22, 1000) for _ in range(50)))

        assert sorted(claims) == [False] * 49 + [True]

    async def test_nothing_at_or_below_the_horizon_can_be_claimed(self, store: NonceStore) -> None:
        """After a purge an old message cannot come back as new."""
        assert await store.claim("a" * 32, "old", 1000) is True
        await store.forget(1000)  # type: ignore[attr-defined]
        assert await store.claim("a" * 32, "old", 1000) is False
        assert await store.claim("a" * 32, "never seen", 999) is False
        assert await store.claim("a" * 32, "new", 1001) is True


class MemoryRateLimitStore:
    """
    Arrival times in a dict. `redflag_core.ports.RateLimitStore` for one event loop.

    Args:
        max_keys: Keys kept at most; beyond it the one nearest to its full burst is forgotten.
    """

    def __init__(self, max_keys: int = 10_000) -> None:
        self._max_keys = max_keys
        self._tats: dict[str, float] = {}

    async def take(self, key: str, policy: RateLimitPolicy, now: datetime) -> Decision:
        """See `redflag_core.ports.RateLimitStore.take`."""
        self._tats[key], decision = step(self._tats.get(key), now.timestamp(), policy)
        if len(self._tats) > self._max_keys:
            del self._tats[min(self._tats, key=self._tats.__getitem__)]
        return decision


class RateLimitStoreContract:
    """What every `RateLimitStore` must do. Subclass it in a test module and give it a ``store`` fixture."""

    POLICY: Final = RateLimitPolicy(count=60, period_seconds=60, burst=20)

    async def test_the_burst_passes_and_the_next_request_waits(self, store: RateLimitStore) -> None:
        """A new key may use its whole burst at once, and not one request more."""
        decisions = [await store.take("key", self.POLICY, START) for _ in range(21)]

        assert [decision.allowed for decision in decisions] == [True] * 20 + [False]
        assert [decision.remaining for decision in decisions] == [*range(19, -1, -1), 0]
        assert abs(decisions[-1].retry_after - 1.0) < 0.001

    async def test_fifty_requests_at_once_pass_as_far_as_the_burst(self, store: RateLimitStore) -> None:
        """Concurrent requests are charged one by one: none slips through."""
        from asyncio import gather  # noqa: PLC0415  (tests only)

        decisions = await gather(*(store.take("key", self.POLICY, START) for _ in range(50)))

        assert sum(decision.allowed for decision in decisions) == 20

    async def test_keys_do_not_share_a_limit(self, store: RateLimitStore) -> None:
        """An exhausted key takes nothing from another."""
        for _ in range(21):
            await store.take("greedy", self.POLICY, START)

        assert (await store.take("modest", self.POLICY, START)).remaining == 19

    async def test_a_refused_request_is_not_charged(self, store: RateLimitStore) -> None:
        """However often a client hammers, it may return after the time that the first refusal named."""
        decisions = [await store.take("key", self.POLICY, START) for _ in range(40)]

        later = START + timedelta(seconds=decisions[20].retry_after)

        assert (await store.take("key", self.POLICY, later)).allowed

    async def test_a_pause_gives_the_burst_back(self, store: RateLimitStore) -> None:
        """After `reset_after` the whole burst is there again."""
        decisions = [await store.take("key", self.POLICY, START) for _ in range(20)]

        later = START + timedelta(seconds=decisions[-1].reset_after)

        assert (await store.take("key", self.POLICY, later)).remaining == 19
