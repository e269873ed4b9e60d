"""Rate limits: a store in memory, and what every store must do."""

import hashlib
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from redflag_core.errors import MalformedError, TooLargeError
from redflag_core.ports import RateLimitStore
from redflag_core.rate_limit import CLOCK_STEP, MAX_KEY_BYTES, Decision, RateLimitPolicy, check_key, step
from redflag_core.testing._failures import error_of
from redflag_core.testing._nonces import NonceStoreContract
from redflag_core.testing._system import START


class MemoryRateLimitStore:
    """
    Arrival times in a dict. `redflag_core.ports.RateLimitStore` for one event loop at a time.

    Threads must not share it. After a fork each side counts by itself.

    Args:
        max_keys: Keys kept at most; beyond it the one nearest to its full burst is forgotten.
    """

    def __init__(self, max_keys: int = 10_000) -> None:
        self._max_keys = max_keys
        self._tats: dict[str, float] = {}

    async def take(self, key: str, policy: RateLimitPolicy, now: datetime) -> Decision:
        """See `redflag_core.ports.RateLimitStore.take`."""
        check_key(key)
        self._tats[key], decision = step(self._tats.get(key), now.timestamp(), policy)
        if len(self._tats) > self._max_keys:
            del self._tats[min(self._tats, key=self._tats.__getitem__)]
        return decision

    async def purge(self, now: datetime) -> int:
        """Forget keys that have their full burst again at *now*, and tell how many."""
        full = [key for key, tat in self._tats.items() if tat <= now.timestamp() - CLOCK_STEP]
        for key in full:
            del self._tats[key]
        return len(full)


class RateLimitStoreContract:
    """
    What every `RateLimitStore` must do. Subclass it in a test module and give it a ``store`` fixture.

    The store must also have ``async purge(now)``, which forgets keys that have their full burst again.
    """

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

    async def test_a_new_key_is_never_refused(self, store: RateLimitStore) -> None:
        """Whatever the policy: who was never seen gets an answer."""
        for number, policy in enumerate((RateLimitPolicy(1, 86_400, 1), RateLimitPolicy(1000, 1, 1), self.POLICY)):
            assert (await store.take(f"{number}", policy, START)).allowed

    async def test_every_decision_is_that_of_the_step(self, store: RateLimitStore) -> None:
        """The same arithmetic everywhere: over pauses, rushes, clocks that go back and policies that change."""
        policies = (
            self.POLICY,
            RateLimitPolicy(7, 3, 5),
            RateLimitPolicy(1, 600, 1),
            RateLimitPolicy(1000, 1, 900),
        )
        tat: float | None = None
        moment = START
        for number in range(200):
            seed = hashlib.sha256(b"%d" % number).digest()
            policy = policies[seed[0] % 4 if seed[1] < 20 else number // 50]
            pause = (0.0, 0.013, 0.9, 3.0, 40.0, 700.0)[seed[2] % 6] * (-1 if seed[3] < 15 else 1)
            moment += timedelta(seconds=pause)
            tat, expected = step(tat, moment.timestamp(), policy)

            assert await store.take("key", policy, moment) == expected, number

    async def test_a_clock_that_was_set_back_does_not_lock_a_key(self, store: RateLimitStore) -> None:
        """One request passes at once, the next after one interval."""
        for _ in range(20):
            await store.take("key", self.POLICY, START)

        earlier = START - timedelta(hours=1)
        decisions = [await store.take("key", self.POLICY, earlier) for _ in range(2)]
        later = earlier + timedelta(seconds=1)

        assert [decision.allowed for decision in decisions] == [True, False]
        assert (await store.take("key", self.POLICY, later)).allowed

    async def test_a_small_difference_of_clocks_grants_nothing(self, store: RateLimitStore) -> None:
        """A replica that is seconds behind does not give a fresh burst."""
        for _ in range(20):
            await store.take("key", self.POLICY, START)

        assert not (await store.take("key", self.POLICY, START - timedelta(seconds=5))).allowed

    async def test_hostile_keys_are_keys(self, store: RateLimitStore) -> None:
        """What looks like a command is counted like anything else; case, blanks and accents tell keys apart."""
        strict = RateLimitPolicy(1, 60, 1)
        keys = (*NonceStoreContract.HOSTILE, "a", "A", "a ", "\u00e9", "e\u0301")
        first = [(await store.take(key, strict, START)).allowed for key in keys]
        second = [(await store.take(key, strict, START)).allowed for key in keys]

        assert (first, second) == ([True] * len(keys), [False] * len(keys))

    async def test_a_key_that_no_database_keeps_is_refused_by_every_store(self, store: RateLimitStore) -> None:
        """Clearly, and never as something shortened that others share."""
        longest = "x" * MAX_KEY_BYTES
        for key in ("a\x00b", "\ud800"):
            assert type(await error_of(store.take(key, self.POLICY, START))) is MalformedError
        assert type(await error_of(store.take(longest + "x", self.POLICY, START))) is TooLargeError
        assert (await store.take(longest, self.POLICY, START)).remaining == 19
        assert (await store.take(longest, self.POLICY, START)).remaining == 18

    async def test_a_purge_forgets_who_has_the_full_burst_again(self, store: RateLimitStore) -> None:
        """And nobody else: who has to wait, waits on."""
        for _ in range(20):
            await store.take("greedy", RateLimitPolicy(1, 3600, 20), START)
        for number in range(5):
            await store.take(f"{number}", self.POLICY, START)

        full = START + timedelta(seconds=1 + CLOCK_STEP)
        assert await store.purge(full - timedelta(seconds=0.01)) == 0  # type: ignore[attr-defined]
        assert await store.purge(full) == 5  # type: ignore[attr-defined]
        assert await store.purge(full) == 0  # type: ignore[attr-defined]
        assert not (await store.take("greedy", RateLimitPolicy(1, 3600, 20), full)).allowed
        assert (await store.take("0", self.POLICY, full)).remaining == 19

    async def test_nobody_slips_through_during_a_purge(self, store: RateLimitStore) -> None:
        """Forgetting a key and charging it at once counts every request."""
        from asyncio import gather  # noqa: PLC0415  (tests only)

        await store.take("key", self.POLICY, START)
        full = START + timedelta(seconds=2 + CLOCK_STEP)
        takes = [store.take("key", self.POLICY, full) for _ in range(50)]
        purges = [store.purge(full) for _ in range(5)]  # type: ignore[attr-defined]

        answers = await gather(*takes[:5], *purges, *takes[5:])

        allowed = [answer for answer in answers if isinstance(answer, Decision) and answer.allowed]
        assert len(allowed) == 20


class SharedRateLimitStoreContract(RateLimitStoreContract):
    """
    What a `RateLimitStore` must do besides when several processes share it.

    Give it a fixture ``open_store`` too: a function that opens one more store on the data of ``store``.
    """

    async def test_fifty_requests_over_five_connections_pass_as_far_as_the_burst(
        self, store: RateLimitStore, open_store: Callable[[], RateLimitStore]
    ) -> None:
        """Another replica is no other limit."""
        from asyncio import gather  # noqa: PLC0415  (tests only)

        stores = [store, *(open_store() for _ in range(4))]
        decisions = await gather(*(each.take("key", self.POLICY, START) for each in stores * 10))

        assert sum(decision.allowed for decision in decisions) == 20

    async def test_a_count_is_there_for_the_next_process(
        self, store: RateLimitStore, open_store: Callable[[], RateLimitStore]
    ) -> None:
        """It is not in the memory of the store."""
        await store.take("key", self.POLICY, START)

        assert (await open_store().take("key", self.POLICY, START)).remaining == 18
