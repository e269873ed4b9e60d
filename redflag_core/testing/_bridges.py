"""Bridges: a ticket desk in memory, events for it, and what every bridge must do."""

import hashlib
from collections.abc import Callable
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
)
from redflag_core.scanning import Severity
from redflag_core.testing._failures import error_of
from redflag_core.testing._system import START


@attrs.define
class MemoryRecord:
    """A record in the desk of a `MemoryBridge`, for the threads, event loops and forks that this is for."""

    external_id: str
    external_key: str
    title: str
    notes: list[str] = attrs.field(factory=list)
    status: RecordStatus = RecordStatus.OPEN


class MemoryBridge:
    """
    A ticket desk in a dict. `redflag_core.bridge.Bridge`; it can do everything but tell about changes.

    For one thread and one event loop at a time. After a fork each side has a desk of its own.

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
            caught = await error_of(bridge.create(make_event()))
            assert type(caught) is error
            assert caught.message

    async def test_a_test_of_the_connection_finds_wrong_credentials(
        self, bridge: Bridge, arrange: Callable[[str], None]
    ) -> None:
        """Before the first event, not at it."""
        arrange("credentials")

        assert type(await error_of(bridge.check())) is BridgeCredentialsError

    async def test_after_trouble_the_same_event_passes(
        self, bridge: Bridge, arrange: Callable[[str], None]
    ) -> None:
        """A busy system gets it later, once."""
        arrange("busy")
        caught = await error_of(bridge.create(make_event()))
        link = await bridge.create(make_event())

        assert isinstance(caught, BridgeUnavailableError)
        assert caught.retry_after is None or caught.retry_after >= 0
        assert await _status(bridge, link) in (RecordStatus.OPEN, None)

    async def test_a_deleted_record_is_gone(self, bridge: Bridge, arrange: Callable[[str], None]) -> None:
        """Not rejected: the engine then makes a new one."""
        link = await bridge.create(make_event())
        arrange("deleted")

        if _can(bridge, Capability.READ):
            assert type(await error_of(bridge.read(link))) is BridgeGoneError
        if _can(bridge, Capability.UPDATE):
            assert type(await error_of(bridge.update(link, make_event(phase=Phase.UPDATE)))) is BridgeGoneError
        if _can(bridge, Capability.FIND):
            assert await bridge.find(link.external_key) is None

    async def test_secrets_do_not_show(
        self, bridge: Bridge, arrange: Callable[[str], None], secrets: tuple[str, ...]
    ) -> None:
        """Neither in what a log shows of the bridge, nor in the sentence that a person gets."""
        shown = [repr(bridge), str(bridge), repr(bridge.manifest)]
        for word in _TROUBLES:
            arrange(word)
            caught = await error_of(bridge.create(make_event()))
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
