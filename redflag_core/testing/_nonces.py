"""Nonces: a store in memory, and what every store must do."""

from collections.abc import Callable
from datetime import datetime
from typing import Final

from redflag_core._fields import MAX_MOMENT
from redflag_core.errors import MalformedError, TooLargeError
from redflag_core.freshness import MAX_CLAIM_BYTES, check_claim, next_horizon
from redflag_core.ports import NonceStore
from redflag_core.testing._failures import error_of


class MemoryNonceStore:
    """
    Nonces in a set. `redflag_core.ports.NonceStore` for one event loop at a time.

    Threads must not share it. After a fork each side has a set of its own: a replay passes on the other one.
    """

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
            assert type(await error_of(store.claim("k", text, 1000))) is MalformedError
            assert type(await error_of(store.claim(text, "n", 1000))) is MalformedError
        assert type(await error_of(store.claim("k", longest + "x", 1000))) is TooLargeError
        assert type(await error_of(store.claim(longest + "x", "n", 1000))) is TooLargeError
        assert await store.claim(longest, longest, 1000) is True
        assert await store.claim(longest, longest, 1000) is False

    async def test_times_have_bounds(self, store: NonceStore) -> None:
        """The last second of the year 9999 can be kept, what is no time is refused."""
        for created in (-1, MAX_MOMENT + 1, 2**63):
            assert type(await error_of(store.claim("k", "n", created))) is MalformedError
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
