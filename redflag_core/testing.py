"""
Public fakes and port contracts: what our own tests use, and what an embedder's tests may use.

The fakes are for tests only: nothing here is durable, and `SeededEntropy` is predictable by design.
"""

import hashlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import attrs

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
    RedFlagError,
)
from redflag_core.ports import NonceStore, RateLimitStore
from redflag_core.rate_limit import Decision, RateLimitPolicy, step
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
