"""Positions of events: without a gap, in order, none skipped, whoever is late, held up or dead."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete, select, text, update

from redflag_core.audit import AuditEntry, AuditState, verify_history
from redflag_core.system import SystemClock
from redflag_server.events.consumers import move_on, organizations_behind, read_on
from redflag_server.events.payloads import payload_of
from redflag_server.events.recorder import record
from redflag_server.events.sequencer import AT_ONCE, SEQUENCER, Sequencer
from redflag_server.events.tables import Event, History, HistoryEntry, UnplacedEvent
from redflag_server.jobs.leases import hold
from redflag_server.jobs.tables import Lease
from redflag_server.organizations.tables import INSTALLATION
from tests.helpers.operators import API, Place, api_key, first_place, new_place
from tests.helpers.server import Server, running
from tests.server.test_state_table import migration

on_both = pytest.mark.postgresql
SOON = 10.0


async def tell(session: Any, server: Server, message: str, organization_id: UUID = INSTALLATION) -> None:
    """An event in an open transaction."""
    await record(
        session,
        at=server.clock.now(),
        kind="agent.rebooted",
        actor="test",
        message=message,
        organization_id=organization_id,
    )


async def told(server: Server, *messages: str, organization_id: UUID = INSTALLATION) -> None:
    """Events, each in a transaction of its own."""
    for message in messages:
        async with server.runtime.database.write() as session:
            await tell(session, server, message, organization_id)


async def place_all(server: Server, sequencer: Sequencer | None = None) -> int:
    """Place until there is nothing left to place."""
    placed, sequencer = 0, sequencer or Sequencer(server.runtime)
    while given := await sequencer.place():
        placed += given
    return placed


async def history(server: Server, organization_id: UUID = INSTALLATION) -> list[tuple[int, str]]:
    """Positions and messages, in order; those of the first start are left out."""
    query = select(HistoryEntry.position, Event.message).join(Event, Event.id == HistoryEntry.event_id)
    ours = query.where(HistoryEntry.organization_id == organization_id, Event.actor == "test")
    async with server.runtime.database.read() as session:
        rows = await session.execute(ours.order_by(HistoryEntry.position))
        return [(position, message) for position, message in rows]


async def entries(server: Server, organization_id: UUID = INSTALLATION) -> list[AuditEntry]:
    """A history as an export has it."""
    query = select(HistoryEntry, Event).outerjoin(Event, Event.id == HistoryEntry.event_id)
    query = query.where(HistoryEntry.organization_id == organization_id).order_by(HistoryEntry.position)
    made, previous = [], "0" * 64
    async with server.runtime.database.read() as session:
        for entry, event in await session.execute(query):
            made.append(
                AuditEntry(
                    organization=str(organization_id),
                    position=entry.position,
                    previous=previous,
                    digest=entry.digest.hex(),
                    hash=entry.hash.hex(),
                    salt=None if entry.salt is None else entry.salt.hex(),
                    payload=None if event is None else payload_of(event),
                )
            )
            previous = entry.hash.hex()
    return made


async def state(server: Server, organization_id: UUID = INSTALLATION) -> AuditState:
    """A history without its entries, as it is stored."""
    row = await server.row(History, History.organization_id == organization_id)
    return AuditState(organization=str(organization_id), size=row.size, nodes=tuple(row.nodes), last=row.last)


# --- positions ---


@on_both
async def test_each_organization_has_its_own_positions_without_a_gap(server: Server):
    """1, 2, 3 in the order in which things happened, in as many batches as it takes."""
    one, other = await first_place(server.runtime), await new_place(server.runtime, "B")
    for number in range(3):
        await told(server, f"a{number}", organization_id=one.organization_id)
        await told(server, f"b{number}", organization_id=other.organization_id)
    await place_all(server)
    await told(server, "a3", organization_id=one.organization_id)

    assert 1 == await place_all(server)

    assert ["a0", "a1", "a2", "a3"] == [message for _, message in await history(server, one.organization_id)]
    assert [(1, "b0"), (2, "b1"), (3, "b2")] == await history(server, other.organization_id)
    assert [] == await server.rows(UnplacedEvent)


@on_both
async def test_a_history_verifies(server: Server):
    """What is stored is a chain and the head of a tree, as the core has them, and an edit of an event is named."""
    await told(server, *(f"event {number}" for number in range(20)))
    await place_all(server)
    start = AuditState(organization=str(INSTALLATION))

    verified = verify_history(await entries(server), start=start, heads=[(await state(server)).head])

    assert (await state(server), 0) == (verified.state, verified.purged)
    async with server.runtime.database.write() as session:
        await session.execute(update(Event).where(Event.message == "event 7").values(message="event 8"))
    (edited,) = [position for position, message in await history(server) if message == "event 8"][:1]
    with pytest.raises(Exception, match=f"entry {edited} is not what was recorded"):
        verify_history(await entries(server), start=start)


@on_both
async def test_a_history_verifies_after_what_happened_was_purged(server: Server):
    """Hashes and positions stay when an event and its salt go."""
    await told(server, "one", "two", "three")
    await place_all(server)
    head = (await state(server)).head
    async with server.runtime.database.write() as session:
        gone = select(Event.id).where(Event.message == "two")
        await session.execute(update(HistoryEntry).where(HistoryEntry.event_id.in_(gone)).values(salt=None))
        await session.execute(delete(Event).where(Event.message == "two"))

    start = AuditState(organization=str(INSTALLATION))
    assert 1 == verify_history(await entries(server), start=start, heads=[head]).purged


@on_both
async def test_a_payload_is_the_same_at_each_reading(server: Server):
    """Also with numbers, texts and nesting that databases write in forms of their own, and when it is too long."""
    data = {"float": 1e-7, "whole": 2.0, "large": 2**53 - 1, "text": "ä\u2028😀", "deep": [{"b": None, "a": True}]}
    async with server.runtime.database.write() as session:
        for facts in (data, {"long": "x" * 100_000}):
            await record(
                session, at=server.clock.now(), kind="agent.rebooted", actor="test", message="m", data=facts
            )
    await place_all(server)

    start = AuditState(organization=str(INSTALLATION))
    assert 0 == verify_history(await entries(server), start=start, heads=[(await state(server)).head]).purged


@on_both
async def test_many_events_are_placed_in_parts(server: Server):
    """One transaction does not take all: others write in between."""
    async with server.runtime.database.write() as session:
        for number in range(AT_ONCE + 10):
            await tell(session, server, f"{number}")
    sequencer = Sequencer(server.runtime)

    assert AT_ONCE == await sequencer.place()
    await place_all(server, sequencer)

    assert [f"{number}" for number in range(AT_ONCE + 10)] == [message for _, message in await history(server)]


@on_both
async def test_events_of_the_release_before_get_positions_too(server: Server):
    """The migration lets the sequencer place them, in the order of their ids."""
    await told(server, *(f"{number}" for number in range(12)))
    async with server.runtime.database.write() as session:
        await session.execute(delete(UnplacedEvent))
        await session.execute(text(migration("0006").ALL_EVENTS))
    await told(server, "new")

    await place_all(server)

    assert [*(f"{number}" for number in range(12)), "new"] == [message for _, message in await history(server)]


# --- late, held up, dead ---


def only_with_postgresql(database: Any) -> None:
    if database.template is None:
        pytest.skip("SQLite has one writer")


@on_both
async def test_an_event_that_is_committed_late_is_not_skipped(server: Server, database: Any):
    """Its transaction wrote first and ended last: what others wrote meanwhile waits, and comes after it."""
    only_with_postgresql(database)
    await place_all(server)
    async with server.runtime.database.write() as late:
        await tell(late, server, "late")
        await told(server, "quick")
        meanwhile = await place_all(server)

    await place_all(server)

    assert (0, ["late", "quick"]) == (meanwhile, [message for _, message in await history(server)])


@on_both
async def test_a_transaction_that_does_not_end_does_not_stop_everything(server: Server, database: Any):
    """After two minutes what others wrote goes first. The late one comes after it, and is not skipped."""
    only_with_postgresql(database)
    await place_all(server)
    async with server.runtime.database.write() as late:
        await tell(late, server, "late")
        await told(server, "quick")
        async with server.runtime.database.write() as session:
            await session.execute(update(UnplacedEvent).values(arrived=UnplacedEvent.arrived - 121_000_000))
        meanwhile = await place_all(server)

    await place_all(server)

    assert (1, ["quick", "late"]) == (meanwhile, [message for _, message in await history(server)])


@on_both
async def test_what_another_postgresql_wrote_is_placed(server: Server, database: Any):
    """A copy of a database has numbers of transactions that are not given out here yet."""
    only_with_postgresql(database)
    await told(server, "copied")
    async with server.runtime.database.write() as session:
        await session.execute(update(UnplacedEvent).values(xid=2**60))

    await place_all(server)

    assert ["copied"] == [message for _, message in await history(server)]


@on_both
async def test_one_process_places_at_a_time(server: Server):
    """While there is more to do, another one does nothing, unless the lease has lapsed."""
    first, second = Sequencer(server.runtime), Sequencer(server.runtime)
    await place_all(server, first)
    async with server.runtime.database.write() as session:
        for number in range(AT_ONCE + 1):
            await tell(session, server, f"{number}")

    assert (AT_ONCE, 0) == (await first.place(), await second.place())
    server.clock.advance(SEQUENCER.lasts.total_seconds())

    assert 1 == await second.place()
    assert [2] == [row.fence for row in await server.rows(Lease)]


@on_both
async def test_whoever_lost_the_lease_cannot_write(server: Server):
    """Whoever was held up must take the lease in the transaction that writes, and it is somebody else's."""
    paused, other = Sequencer(server.runtime), Sequencer(server.runtime)
    fences = []
    for sequencer in (paused, other):
        server.clock.advance(SEQUENCER.lasts.total_seconds())
        async with server.runtime.database.write() as session:
            fences.append(await hold(session, SEQUENCER, sequencer.holder, server.clock.now()))

    assert 0 == await paused.place()
    assert 0 < await other.place()
    assert [1, 2] == fences


@on_both
async def test_two_replicas_place_each_event_once(tmp_path: Path):
    """Both write events and both try to place them, at once: no gap, none twice."""
    async with running(tmp_path / "data") as first, running(tmp_path / "data", clock=first.clock) as second:
        sequencers = [Sequencer(server.runtime) for server in (first, second)]

        async def write(server: Server, name: str) -> None:
            for number in range(30):
                await told(server, f"{name}{number}")

        async def place(sequencer: Sequencer) -> None:
            for _ in range(40):
                await sequencer.place()

        await asyncio.gather(write(first, "a"), write(second, "b"), *map(place, sequencers))
        await place_all(first)

        messages = [message for _, message in await history(first)]
        assert sorted(f"{name}{number}" for name in "ab" for number in range(30)) == sorted(messages)
        for name in "ab":
            assert [f"{name}{number}" for number in range(30)] == [m for m in messages if m.startswith(name)]
        start = AuditState(organization=str(INSTALLATION))
        heads = [(await state(first)).head]
        assert 0 == verify_history(await entries(first), start=start, heads=heads).purged


@on_both
async def test_events_are_placed_within_a_second(tmp_path: Path):
    """In the process that wrote them: a bell rings at the commit, long before the next look."""
    async with running(tmp_path / "data", clock=SystemClock()) as server:
        await place_all(server)
        stop = asyncio.Event()
        working = asyncio.create_task(Sequencer(server.runtime).work(stop))
        await asyncio.sleep(0)

        async def until_placed() -> None:
            await told(server, "now")
            while await server.rows(UnplacedEvent):
                pass

        try:
            await asyncio.wait_for(until_placed(), 3)
        finally:
            stop.set()
            await asyncio.wait_for(working, SOON)

        assert ["now"] == [message for _, message in await history(server)]


# --- who follows ---


@on_both
async def test_a_consumer_gets_each_event_in_order_and_again_until_it_moves_on(server: Server):
    """A consumer that dies before it moves on gets the same again; positions do not go back."""
    place: Place = await new_place(server.runtime, "B")
    await told(server, "one", "two", "three", organization_id=place.organization_id)
    await place_all(server)

    async def read(limit: int = 2) -> list[Any]:
        async with server.runtime.database.read() as session:
            found = await read_on(session, "webhooks", place.organization_id, limit=limit)
        return [(each.position, each.event and each.event.message) for each in found]

    async def move(position: int) -> None:
        async with server.runtime.database.write() as session:
            await move_on(session, "webhooks", place.organization_id, position)

    assert [(1, "one"), (2, "two")] == await read() == await read()
    await move(2)
    await move(1)
    assert [(3, "three")] == await read()
    async with server.runtime.database.write() as session:
        await session.execute(delete(Event).where(Event.message == "three"))
    assert [(3, None)] == await read()
    await move(3)
    async with server.runtime.database.read() as session:
        assert place.organization_id not in await organizations_behind(session, "webhooks")
        assert place.organization_id in await organizations_behind(session, "others")


@on_both
async def test_followers_of_the_api_ask_for_what_comes_after_a_position(server: Server):
    """Oldest first, of one organization; an event without a position is not among them yet."""
    place = await first_place(server.runtime)
    headers = await api_key(server.runtime, "events:read", organization_id=place.organization_id)
    await told(server, "one", "two", "three", organization_id=place.organization_id)
    await place_all(server)
    await told(server, "four", organization_id=place.organization_id)
    (last, *_) = [
        position for position, message in await history(server, place.organization_id) if message == "one"
    ]

    answer = await server.client.get(f"{API}/events?after_position={last}", headers=headers)
    listed = await server.client.get(f"{API}/events?limit=2", headers=headers)

    assert [(last + 1, "two"), (last + 2, "three")] == [
        (item["position"], item["message"]) for item in answer.json()["items"]
    ]
    assert None is answer.json()["next"]
    assert [(None, "four"), (last + 2, "three")] == [
        (item["position"], item["message"]) for item in listed.json()["items"]
    ]


async def test_a_position_needs_an_organization(server: Server):
    """Each has its own positions: a caller of all of them must say which."""
    headers = await api_key(server.runtime, "events:read")
    place = await first_place(server.runtime)

    refused = await server.client.get(f"{API}/events?after_position=0", headers=headers)
    of_one = f"{API}/events?after_position=0&organization_id={place.organization_id}"

    assert (400, "invalid_request") == (refused.status_code, refused.json()["code"])
    assert 200 == (await server.client.get(of_one, headers=headers)).status_code
