"""
Public fakes and port contracts: what our own tests use, and what an embedder's tests may use.

The fakes are for tests only: nothing here is durable, and `SeededEntropy` is predictable by design.
"""

import hashlib
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import attrs

from redflag_core._fields import MAX_MOMENT
from redflag_core.bridge import (
    Bridge,
    Capability,
    Event,
    Field,
    FieldKind,
    Health,
    Link,
    Manifest,
    Phase,
    Record,
    RecordStatus,
    Subject,
    shorten,
)
from redflag_core.errors import (
    BridgeCredentialsError,
    BridgeError,
    BridgeGoneError,
    BridgeRejectedError,
    BridgeUnavailableError,
    MalformedError,
    RedFlagError,
    TooLargeError,
)
from redflag_core.freshness import MAX_CLAIM_BYTES, check_claim, next_horizon
from redflag_core.ports import NonceStore, RateLimitStore
from redflag_core.rate_limit import CLOCK_STEP, MAX_KEY_BYTES, Decision, RateLimitPolicy, check_key, step
from redflag_core.scanning import Severity

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
        check_claim(key_id, nonce, created)
        entry = (key_id, nonce, created)
        if created <= self._horizon or entry in self._claimed:
            return False
        self._claimed.add(entry)
        return True

    async def forget(self, horizon: int) -> int:
        """Forget nonces created at or before *horizon*, which are refused from then on, and tell how many."""
        self._horizon = max(self._horizon, horizon)
        return self._delete()

    async def purge(self, now: datetime) -> int:
        """Forget what no message can use any more at *now*, and tell how many it was."""
        self._horizon = next_horizon(self._horizon, now)
        return self._delete()

    def _delete(self) -> int:
        before = len(self._claimed)
        self._claimed = {entry for entry in self._claimed if entry[2] > self._horizon}
        return before - len(self._claimed)


class NonceStoreContract:
    """
    What every `NonceStore` must do. Subclass it in a test module and give it a ``store`` fixture.

    The store must also have ``async forget(horizon)``, which refuses what was created up to then and deletes it.
    """

    HOSTILE: Final = (
        "'; DROP TABLE redflag_nonces; --",
        '"); DELETE FROM redflag_nonces; --',
        "%s $1 ?1 :a {x} \\",
        "\u202e\u00e4\u4e16\U0001f525",
        "\x01\r\n\t",
        "",
    )
    """Texts that mean something to somebody, and to a store nothing."""

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

    async def test_of_many_nonces_sent_three_times_at_once_each_has_one_winner(self, store: NonceStore) -> None:
        """Whatever is answered together, nobody gets the answer of another."""
        from asyncio import gather  # noqa: PLC0415  (tests only)

        numbers = [number for number in range(40) for _ in range(3)]
        claims = await gather(*(store.claim("a" * 32, f"{number}", 1000) for number in numbers))

        winners = [number for number, claimed in zip(numbers, claims, strict=True) if claimed]
        assert sorted(winners) == list(range(40))

    async def test_texts_are_compared_as_they_are(self, store: NonceStore) -> None:
        """Case, blanks and ways to write an accent make another nonce; a text ends where it ends."""
        for nonce in ("ab", "AB", "ab ", " ab", "a", "\u00e9", "e\u0301", "1", "01"):
            assert await store.claim("k", nonce, 1000) is True
            assert await store.claim("k", nonce, 1000) is False
        assert await store.claim("ab", "c", 1000) is True
        assert await store.claim("a", "bc", 1000) is True

    async def test_hostile_texts_are_texts(self, store: NonceStore) -> None:
        """What looks like a command is claimed like anything else, and does nothing."""
        assert await store.claim("k", "before", 1000) is True
        for text in self.HOSTILE:
            assert await store.claim("k", text, 1000) is True
            assert await store.claim(text, "n", 1000) is True
        for text in ("before", *self.HOSTILE):
            assert await store.claim("k", text, 1000) is False

    async def test_what_no_database_keeps_is_refused_by_every_store(self, store: NonceStore) -> None:
        """Clearly, and never as a replay or as something shortened."""
        longest = "\u00e4" * (MAX_CLAIM_BYTES // 2)
        for text in ("a\x00b", "\ud800"):
            assert type(await _caught(store.claim("k", text, 1000))) is MalformedError
            assert type(await _caught(store.claim(text, "n", 1000))) is MalformedError
        assert type(await _caught(store.claim("k", longest + "x", 1000))) is TooLargeError
        assert type(await _caught(store.claim(longest + "x", "n", 1000))) is TooLargeError
        assert await store.claim(longest, longest, 1000) is True
        assert await store.claim(longest, longest, 1000) is False

    async def test_times_have_bounds(self, store: NonceStore) -> None:
        """The last second of the year 9999 can be kept, what is no time is refused."""
        for created in (-1, MAX_MOMENT + 1, 2**63):
            assert type(await _caught(store.claim("k", "n", created))) is MalformedError
        assert await store.claim("k", "n", MAX_MOMENT) is True
        assert await store.claim("k", "n", MAX_MOMENT) is False

    async def test_messages_come_in_any_order(self, store: NonceStore) -> None:
        """A clock that was set back, or a slow network: older messages than the last are claimed all the same."""
        for created in (2000, 1000, 3000, 1):
            assert await store.claim("k", "n", created) is True
        for created in (1, 3000, 1000, 2000):
            assert await store.claim("k", "n", created) is False

    async def test_the_horizon_never_goes_back(self, store: NonceStore) -> None:
        """A late, lower purge does not open what an earlier one closed."""
        await store.forget(2000)  # type: ignore[attr-defined]
        await store.forget(1000)  # type: ignore[attr-defined]
        await store.forget(-1)  # type: ignore[attr-defined]

        assert await store.claim("k", "n", 1500) is False
        assert await store.claim("k", "n", 2000) is False
        assert await store.claim("k", "n", 2001) is True

    async def test_any_number_is_a_horizon(self, store: NonceStore) -> None:
        """One before all time changes nothing, one after it refuses everything."""
        await store.forget(-(2**70))  # type: ignore[attr-defined]
        assert await store.claim("k", "n", 1000) is True
        await store.forget(2**70)  # type: ignore[attr-defined]
        assert await store.claim("k", "n", MAX_MOMENT) is False

    async def test_what_is_above_the_horizon_is_not_forgotten(self, store: NonceStore) -> None:
        """A purge deletes what it refuses from then on, and nothing else."""
        for created in (999, 1000, 1001, 1002):
            assert await store.claim("k", "n", created) is True

        assert await store.forget(1000) == 2  # type: ignore[attr-defined]
        assert await store.forget(1000) == 0  # type: ignore[attr-defined]
        for created in (999, 1000, 1001, 1002):
            assert await store.claim("k", "n", created) is False

    async def test_no_replay_passes_during_a_purge(self, store: NonceStore) -> None:
        """The horizon is stored before anything is deleted."""
        from asyncio import gather  # noqa: PLC0415  (tests only)

        for number in range(20):
            assert await store.claim("k", f"{number}", 1000 + number) is True
        replays = [store.claim("k", f"{number}", 1000 + number) for number in range(20) for _ in range(2)]
        purges = [store.forget(1000 + number) for number in range(0, 20, 4)]  # type: ignore[attr-defined]

        answers = await gather(*replays[:20], *purges, *replays[20:])

        assert [answer for answer in answers if answer is True] == []

    async def test_nothing_at_or_below_the_horizon_can_be_claimed(self, store: NonceStore) -> None:
        """After a purge an old message cannot come back as new."""
        assert await store.claim("a" * 32, "old", 1000) is True
        await store.forget(1000)  # type: ignore[attr-defined]
        assert await store.claim("a" * 32, "old", 1000) is False
        assert await store.claim("a" * 32, "never seen", 999) is False
        assert await store.claim("a" * 32, "new", 1001) is True


class SharedNonceStoreContract(NonceStoreContract):
    """
    What a `NonceStore` must do besides when several processes share it.

    Give it a fixture ``open_store`` too: a function that opens one more store on the data of ``store``.
    """

    async def test_fifty_claims_over_five_connections_have_one_winner(
        self, store: NonceStore, open_store: Callable[[], NonceStore]
    ) -> None:
        """It does not matter through which replica a message comes."""
        from asyncio import gather  # noqa: PLC0415  (tests only)

        stores = [store, *(open_store() for _ in range(4))]
        claims = await gather(*(each.claim("a" * 32, "n" * 22, 1000) for each in stores * 10))

        assert sorted(claims) == [False] * 49 + [True]

    async def test_a_claim_is_there_for_the_next_process(
        self, store: NonceStore, open_store: Callable[[], NonceStore]
    ) -> None:
        """It is not in the memory of the store."""
        assert await store.claim("k", "n", 1000) is True
        assert await open_store().claim("k", "n", 1000) is False

    async def test_the_horizon_holds_for_all(
        self, store: NonceStore, open_store: Callable[[], NonceStore]
    ) -> None:
        """One purges, and none of the others claims what was forgotten."""
        other = open_store()
        assert await other.claim("k", "n", 1000) is True
        await store.forget(1000)  # type: ignore[attr-defined]

        assert await other.claim("k", "n", 1000) is False
        assert await open_store().claim("k", "n", 999) is False

    async def test_no_replay_passes_during_the_purge_of_another(
        self, store: NonceStore, open_store: Callable[[], NonceStore]
    ) -> None:
        """A claim that began before the purge does not end as a success after it."""
        from asyncio import gather  # noqa: PLC0415  (tests only)

        other = open_store()
        for number in range(20):
            assert await store.claim("k", f"{number}", 1000 + number) is True
            purge = store.forget(1000 + number)  # type: ignore[attr-defined]
            answers = await gather(*(other.claim("k", f"{number}", 1000 + number) for _ in range(4)), purge)

            assert [answer for answer in answers if answer is True] == []


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
            assert type(await _caught(store.take(key, self.POLICY, START))) is MalformedError
        assert type(await _caught(store.take(longest + "x", self.POLICY, START))) is TooLargeError
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


class InThreads:
    """
    A store that blocks, seen as one that does not: each call in a thread of its own, so that calls really race.

    Args:
        store: A `redflag_core.ports.SyncNonceStore` or `redflag_core.ports.SyncRateLimitStore`.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._store, name)

        async def call(*arguments: Any) -> Any:
            from asyncio import get_running_loop  # noqa: PLC0415  (tests only)
            from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  (tests only)

            with ThreadPoolExecutor(1) as thread:
                return await get_running_loop().run_in_executor(thread, verb, *arguments)

        return call


def _blocking(contract: type) -> Callable[[type], type]:
    """Give a class the tests of *contract*, for stores that block: no coroutines, so pytest needs no plug-in."""

    def fill(cls: type) -> type:
        for name, test in vars(contract).items():
            if name.startswith("test_"):
                setattr(cls, name, _blocking_test(contract, test))
        return cls

    return fill


def _blocking_test(contract: type, test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    def run(*arguments: Any) -> None:
        import asyncio  # noqa: PLC0415  (tests only)

        asyncio.run(test(contract(), *arguments))

    def alone(_self: object, store: Any) -> None:
        run(InThreads(store))

    def shared(_self: object, store: Any, open_store: Callable[[], Any]) -> None:
        run(InThreads(store), lambda: InThreads(open_store()))

    result = shared if "open_store" in test.__annotations__ else alone
    result.__name__, result.__doc__ = test.__name__, test.__doc__
    return result


@_blocking(NonceStoreContract)
class SyncNonceStoreContract:
    """`NonceStoreContract` for a `redflag_core.ports.SyncNonceStore`: the same tests, each call in a thread."""


@_blocking(SharedNonceStoreContract)
class SharedSyncNonceStoreContract(SyncNonceStoreContract):
    """`SharedNonceStoreContract` for a `redflag_core.ports.SyncNonceStore`."""


@_blocking(RateLimitStoreContract)
class SyncRateLimitStoreContract:
    """`RateLimitStoreContract` for a `redflag_core.ports.SyncRateLimitStore`."""


@_blocking(SharedRateLimitStoreContract)
class SharedSyncRateLimitStoreContract(SyncRateLimitStoreContract):
    """`SharedRateLimitStoreContract` for a `redflag_core.ports.SyncRateLimitStore`."""


@attrs.define
class MemoryRecord:
    """A record in the desk of a `MemoryBridge`."""

    external_id: str
    external_key: str
    title: str
    notes: list[str] = attrs.field(factory=list)
    status: RecordStatus = RecordStatus.OPEN


class MemoryBridge:
    """
    A ticket desk in a dict. `redflag_core.bridge.Bridge`; it can do everything but tell about changes.

    Attributes:
        records: The desk, by external id. A test may close, change or delete what is in it.
        trouble: What the next call raises, once; None for nothing.

    Args:
        secret: What it would sign in with.
    """

    manifest: Final = Manifest(
        name="memory",
        title="In memory",
        capabilities=frozenset(Capability) - {Capability.INBOUND},
        fields=(Field(name="secret", title="Secret", kind=FieldKind.SECRET),),
        longest_title=100,
    )

    def __init__(self, secret: str = "") -> None:
        self._secret = secret
        self.records: dict[str, MemoryRecord] = {}
        self.trouble: BridgeError | None = None

    def __repr__(self) -> str:
        return f"MemoryBridge({len(self.records)} records)"

    async def check(self) -> Health:
        """See `redflag_core.bridge.Bridge.check`."""
        self._answer()
        return Health(account="memory", version="1")

    async def find(self, external_key: str) -> Link | None:
        """See `redflag_core.bridge.Bridge.find`."""
        self._answer()
        found = [record for record in self.records.values() if record.external_key == external_key]
        return self._link(found[0]) if found else None

    async def create(self, event: Event) -> Link:
        """See `redflag_core.bridge.Bridge.create`."""
        present = await self.find(event.external_key)
        if present is not None and self._record(present).status is RecordStatus.OPEN:
            return present
        record = MemoryRecord(str(len(self.records) + 1), event.external_key, shorten(event.title, 100))
        self.records[record.external_id] = record
        return self._link(record)

    async def update(self, link: Link, event: Event) -> Link:
        """See `redflag_core.bridge.Bridge.update`."""
        self._answer()
        record = self._record(link)
        record.notes.append(event.title)
        if event.phase is Phase.RESOLVE:
            record.status = RecordStatus.CLOSED
        return self._link(record)

    async def read(self, link: Link) -> Record:
        """See `redflag_core.bridge.Bridge.read`."""
        self._answer()
        record = self._record(link)
        return Record(external_id=record.external_id, status=record.status)

    def _answer(self) -> None:
        trouble, self.trouble = self.trouble, None
        if trouble is not None:
            raise trouble

    def _record(self, link: Link) -> MemoryRecord:
        if link.external_id not in self.records:
            raise BridgeGoneError(f"there is no record {link.external_id}")
        return self.records[link.external_id]

    def _link(self, record: MemoryRecord) -> Link:
        return Link(external_key=record.external_key, external_id=record.external_id)


def make_event(number: int = 1, phase: Phase = Phase.OPEN, **changes: Any) -> Event:
    """
    An event of a failed package, for tests.

    Args:
        number: Which trouble: events of the same number are of one incident.
        phase: Its phase. The position follows from it.
        changes: Fields that are to be others.
    """
    fields: dict[str, Any] = {
        "id": _uuid(number, phase),
        "position": 10 * number + list(Phase).index(phase),
        "kind": "package.failed",
        "phase": phase,
        "at": int(START.timestamp()),
        "organization": _uuid("organization"),
        "subject": Subject(agent_id=_uuid("agent", number), hostname="web1", manager="apt", package="nginx"),
        "dedup_key": f"package:{number}",
        "incident": _uuid("incident", number),
        "severity": Severity.IMPORTANT,
        "title": f"nginx could not be installed on web{number}",
        "detail": "dpkg: error processing package nginx",
    }
    return Event(**(fields | changes))


def _uuid(*what: object) -> str:
    """An id of the right form that is the same for the same arguments."""
    digits = hashlib.sha256(repr(what).encode()).hexdigest()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:32]))


class BridgeContract:
    """
    What every `redflag_core.bridge.Bridge` must do. Subclass it in a test module and give it three fixtures.

    - ``bridge``: one that is connected to a peer of the test: best one that checks what it gets against the schema
      of the other system.
    - ``arrange``: a function of one word, after which the peer answers the next request so: ``"busy"``,
      ``"credentials"``, ``"rejected"``, or ``"deleted"``, which deletes all records.
    - ``secrets``: the secrets that the bridge was given.

    What a bridge says that it cannot do is not tried.
    """

    HOSTILE: Final = "\"'`;,&<b>%27 OR 1=1 --\\ ${x} {{x}} \u202e\u00e4\u4e16\U0001f525"

    async def test_the_connection_is_proven(self, bridge: Bridge) -> None:
        """A test of the connection says as whom we are known, and changes nothing."""
        health = await bridge.check()

        assert health.account
        if _can(bridge, Capability.FIND):
            assert await bridge.find(make_event().external_key) is None

    async def test_what_was_created_is_found_by_its_key(self, bridge: Bridge) -> None:
        """After a crash between creating and keeping the link, the record is found."""
        link = await bridge.create(make_event(1))
        await bridge.create(make_event(2))

        assert link.external_key == make_event(1).external_key
        if _can(bridge, Capability.FIND):
            found = await bridge.find(link.external_key)
            assert found is not None
            assert found.external_id == link.external_id

    async def test_creating_again_makes_no_second_record(self, bridge: Bridge) -> None:
        """The same incident, delivered twice because an answer was lost, has one record."""
        first = await bridge.create(make_event())
        second = await bridge.create(make_event())

        if _can(bridge, Capability.DEDUPLICATE):
            assert first.external_id == second.external_id

    async def test_each_incident_has_its_own_record(self, bridge: Bridge) -> None:
        """Another trouble, another time of it, and another organization's are told apart."""
        events = (
            make_event(),
            make_event(2),
            make_event(incident=_uuid("again")),
            make_event(organization=_uuid("another")),
        )
        links = [await bridge.create(event) for event in events]

        assert len({link.external_key for link in links}) == len(events)
        assert len({link.external_id for link in links}) == len(events)

    async def test_an_update_keeps_the_record(self, bridge: Bridge) -> None:
        """What is told later is told to the same record, also when it is told twice."""
        link = await bridge.create(make_event())
        if _can(bridge, Capability.UPDATE):
            again = await bridge.update(link, make_event(phase=Phase.UPDATE))
            again = await bridge.update(again, make_event(phase=Phase.UPDATE))

            assert (again.external_key, again.external_id) == (link.external_key, link.external_id)
            assert await _status(bridge, link) in (RecordStatus.OPEN, None)

    async def test_the_end_closes_the_record(self, bridge: Bridge) -> None:
        """The loop closes itself, and closing what is closed is no error."""
        link, other = await bridge.create(make_event(1)), await bridge.create(make_event(2))
        if _can(bridge, Capability.RESOLVE):
            closed = await bridge.update(link, make_event(phase=Phase.RESOLVE))
            await bridge.update(closed, make_event(phase=Phase.RESOLVE))

            assert await _status(bridge, closed) in (RecordStatus.CLOSED, None)
            assert await _status(bridge, other) in (RecordStatus.OPEN, None)

    async def test_a_trouble_that_comes_back_gets_a_record_that_is_open(self, bridge: Bridge) -> None:
        """Nobody reads a closed ticket."""
        link = await bridge.create(make_event())
        if _can(bridge, Capability.RESOLVE):
            await bridge.update(link, make_event(phase=Phase.RESOLVE))
        again = await bridge.create(make_event(incident=_uuid("again")))

        assert again.external_id != link.external_id
        assert await _status(bridge, again) in (RecordStatus.OPEN, None)

    async def test_any_text_arrives(self, bridge: Bridge) -> None:
        """Quotes, markup, templates and every script are text, in a title as in a name; nothing gets too long."""
        longest = (self.HOSTILE * 10)[:200]
        event = make_event(
            title=longest,
            detail=self.HOSTILE * 100 + "\r\n.\r\n",
            dedup_key=longest,
            subject=Subject(hostname=longest, manager=longest, package=longest),
        )
        link = await bridge.create(event)

        if _can(bridge, Capability.FIND):
            found = await bridge.find(event.external_key)
            assert found is not None
            assert found.external_id == link.external_id

    async def test_trouble_has_one_of_four_names(self, bridge: Bridge, arrange: Callable[[str], None]) -> None:
        """What happens next depends on it: wait, correct the event, correct the account."""
        for word, error in _TROUBLES.items():
            arrange(word)
            caught = await _caught(bridge.create(make_event()))
            assert type(caught) is error
            assert caught.message

    async def test_a_test_of_the_connection_finds_wrong_credentials(
        self, bridge: Bridge, arrange: Callable[[str], None]
    ) -> None:
        """Before the first event, not at it."""
        arrange("credentials")

        assert type(await _caught(bridge.check())) is BridgeCredentialsError

    async def test_after_trouble_the_same_event_passes(
        self, bridge: Bridge, arrange: Callable[[str], None]
    ) -> None:
        """A busy system gets it later, once."""
        arrange("busy")
        caught = await _caught(bridge.create(make_event()))
        link = await bridge.create(make_event())

        assert isinstance(caught, BridgeUnavailableError)
        assert caught.retry_after is None or caught.retry_after >= 0
        assert await _status(bridge, link) in (RecordStatus.OPEN, None)

    async def test_a_deleted_record_is_gone(self, bridge: Bridge, arrange: Callable[[str], None]) -> None:
        """Not rejected: the engine then makes a new one."""
        link = await bridge.create(make_event())
        arrange("deleted")

        if _can(bridge, Capability.READ):
            assert type(await _caught(bridge.read(link))) is BridgeGoneError
        if _can(bridge, Capability.UPDATE):
            assert type(await _caught(bridge.update(link, make_event(phase=Phase.UPDATE)))) is BridgeGoneError
        if _can(bridge, Capability.FIND):
            assert await bridge.find(link.external_key) is None

    async def test_secrets_do_not_show(
        self, bridge: Bridge, arrange: Callable[[str], None], secrets: tuple[str, ...]
    ) -> None:
        """Neither in what a log shows of the bridge, nor in the sentence that a person gets."""
        shown = [repr(bridge), str(bridge), repr(bridge.manifest)]
        for word in _TROUBLES:
            arrange(word)
            caught = await _caught(bridge.create(make_event()))
            shown += [repr(caught), str(caught)]

        assert not [secret for secret in secrets for text in shown if secret in text]


_TROUBLES: Final[dict[str, type[BridgeError]]] = {
    "busy": BridgeUnavailableError,
    "credentials": BridgeCredentialsError,
    "rejected": BridgeRejectedError,
}


def _can(bridge: Bridge, capability: Capability) -> bool:
    return capability in bridge.manifest.capabilities


async def _status(bridge: Bridge, link: Link) -> RecordStatus | None:
    """What the record is; None where a bridge cannot read."""
    return (await bridge.read(link)).status if _can(bridge, Capability.READ) else None


async def _caught(call: Awaitable[object]) -> RedFlagError:
    """What *call* raises. That it raises nothing fails the test."""
    try:
        await call
    except RedFlagError as error:
        return error
    raise AssertionError("nothing was raised")
