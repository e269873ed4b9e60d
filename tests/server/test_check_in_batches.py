"""Check-ins are judged in batches, by several servers on PostgreSQL, as if they came one after the other."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from redflag_core.enrolment import AgentStatus
from redflag_core.messages import ScannerState
from redflag_core.rate_limit import RateLimitPolicy
from redflag_core.scanning import ScanStatus
from redflag_server.agents.tables import Agent
from redflag_server.checkin.batching import Batcher
from redflag_server.checkin.key_cache import AgentKeys, KeyCache
from redflag_server.checkin.tables import Nonce
from redflag_server.packages.tables import Scanner
from redflag_server.problems import UnavailableError
from tests.helpers.fleet import full_report, package
from tests.helpers.orders import order, plan
from tests.helpers.server import running

pytestmark = pytest.mark.postgresql


@pytest.fixture
async def servers(database, tmp_path):
    """Servers on one database: two on PostgreSQL; with SQLite there is one."""
    count = 1 if database.template is None else 2
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(running(tmp_path / "data")) for _ in range(count)]


@pytest.fixture
def server(servers):
    """The first of them."""
    return servers[0]


async def fleet_of(server, count):
    """Registered machines."""
    return [await server.agent() for _ in range(count)]


def signed(machine, **changes):
    """A signed check-in, not sent."""
    return machine.sign("/agent/check-in", machine.check_in_body(**changes))


async def send(servers, requests):
    """Send requests at once, to one server after the other; their status codes in order."""
    answers = await asyncio.gather(
        *(request.send(servers[place % len(servers)].client) for place, request in enumerate(requests))
    )
    return [answer.status_code for answer in answers]


# --- as if one after the other ---


async def test_each_of_many_nonces_is_accepted_once_however_often_it_is_sent(servers):
    """Three copies of each request at once, within a batch and across servers: one of them passes."""
    machines = await fleet_of(servers[0], 4)
    requests = [signed(machine) for machine in machines for _ in range(15)]

    codes = await send(servers, requests + requests + requests)

    accepted = Counter(place % len(requests) for place, code in enumerate(codes) if code == 200)
    assert dict.fromkeys(range(len(requests)), 1) == accepted
    assert {200, 401} == set(codes)


async def test_crossing_batches_do_not_block_each_other(servers):
    """The same machines in another order on each server: everybody is answered."""
    machines = await fleet_of(servers[0], 12)
    there, back = ([signed(machine) for machine in order] for order in (machines, machines[::-1]))
    requests = [request for pair in zip(there, back, strict=True) for request in pair]

    assert {200} == set(await send(servers, requests))


async def test_a_rate_limit_holds_over_all_servers(servers):
    """A machine that asks everywhere at once is given as many answers as its limit has."""
    limit = RateLimitPolicy(count=1, period_seconds=60, burst=5)
    for server in servers:
        object.__setattr__(server.runtime.settings, "agent_limit", limit)
    (machine,) = await fleet_of(servers[0], 1)
    before = await send(servers, [signed(machine) for _ in range(20)])

    assert {200: 4, 429: 16} == Counter(before)  # asking for its token was the first


async def test_a_revoked_agent_is_cut_off_at_once(servers):
    """Its key is remembered by every server, and says nothing about what it may do."""
    (machine,) = await fleet_of(servers[0], 1)
    assert {200} == set(await send(servers, [signed(machine) for _ in servers]))

    async with servers[0].runtime.database.write() as session:
        await session.execute(update(Agent).values(status=AgentStatus.REVOKED))

    assert {403} == set(await send(servers, [signed(machine) for _ in servers]))


async def test_a_withdrawn_token_is_refused_at_once(servers):
    """Though it was verified before, and is signed by this server."""
    (machine,) = await fleet_of(servers[0], 1)
    assert {200} == set(await send(servers, [signed(machine) for _ in servers]))

    async with servers[0].runtime.database.write() as session:
        await session.execute(update(Agent).values(token_version=Agent.token_version + 1))

    assert {401} == set(await send(servers, [signed(machine) for _ in servers]))


async def test_a_token_that_was_verified_before_expires(server):
    """Its times are compared each time."""
    (machine,) = await fleet_of(server, 1)
    assert [200] == await send([server], [signed(machine)])

    server.clock.advance(25 * 3600)

    assert [401] == await send([server], [signed(machine)])


async def test_a_batch_of_all_kinds_is_answered_one_by_one(server):
    """Plain, replayed, moved, revoked and with a command: each has the answer it would have alone."""
    plain, replayed, renamed, revoked, ordered = await fleet_of(server, 5)
    await order(server, ordered.agent_id, plan("bash"))
    async with server.runtime.database.write() as session:
        of_revoked = update(Agent).where(Agent.id == UUID(revoked.agent_id))
        await session.execute(of_revoked.values(status=AgentStatus.REVOKED))
    again = signed(replayed)
    requests = [signed(plain), again, again, signed(renamed, hostname="other"), signed(revoked), signed(ordered)]

    answers = await asyncio.gather(*(request.send(server.client) for request in requests))

    assert [200, 200, 401, 200, 403, 200] == [answer.status_code for answer in answers]
    assert [0, 0, None, 0, None, 1] == [
        len(answer.json()["commands"]) if answer.status_code == 200 else None for answer in answers
    ]
    assert "other" == (await server.row(Agent, Agent.id == UUID(renamed.agent_id))).hostname


async def test_what_an_earlier_request_changed_a_later_one_of_the_batch_sees(server):
    """A machine that was started anew between two requests that arrive together is not taken for two machines."""
    (machine,) = await fleet_of(server, 1)
    await machine.check_in(server.client)
    first, second = signed(machine), signed(machine, boot_id="another-boot")

    assert [200, 200] == await send([server], [first, second])
    assert "another-boot" == (await server.row(Agent)).boot_id


async def test_a_plain_check_in_leaves_what_any_other_leaves(server):
    """When it was seen and from where, until when it is expected, and how far its executor had come."""
    plain, told = await fleet_of(server, 2)
    server.clock.advance(300)

    await plain.check_in(server.client)
    await told.check_in(server.client, hostname="machine-under-test")  # says something, though nothing new

    columns = ("last_seen_at", "last_match_at", "last_address", "order_at", "epoch", "gen", "seq", "status")
    one, other = [
        {name: getattr(await server.row(Agent, Agent.id == UUID(machine.agent_id)), name) for name in columns}
        for machine in (plain, told)
    ]
    assert one == other
    assert server.clock.now() == one["last_seen_at"]
    row = await server.row(Agent, Agent.id == UUID(plain.agent_id))
    assert timedelta(seconds=60) <= row.next_check_in_at - server.clock.now() <= timedelta(seconds=75)


async def test_both_ways_give_the_same_answer(server):
    """The short way and the one with locks know the same of scanners, bundle and status."""
    (machine,) = await fleet_of(server, 1)
    report = full_report([package("bash")])
    assert 200 == (await machine.report(server.client, report)).status_code
    scans = [
        ScannerState("apt", ScanStatus.OK, report.hash, report.taken_at),
        ScannerState("docker", ScanStatus.OK, "1" * 64, report.taken_at),
    ]

    short = (await machine.check_in(server.client, scans)).json()
    long = (await machine.check_in(server.client, scans, hostname="machine-under-test")).json()

    assert ["docker"] == short["reports_wanted"]
    assert {"apt": report.hash} == short["report_bases"]
    assert {**long, "next_check_in_seconds": None} == {**short, "next_check_in_seconds": None}


async def test_a_scanner_that_saw_the_same_again_is_noted(server):
    """The inventory is not sent again; that it was looked at is on record."""
    (machine,) = await fleet_of(server, 1)
    report = full_report([package("bash")])
    await machine.report(server.client, report)

    later = report.taken_at + 60
    await machine.check_in(server.client, [ScannerState("apt", ScanStatus.OK, report.hash, later)])

    assert later == (await server.row(Scanner)).succeeded_at.timestamp()


async def test_a_refused_request_uses_up_its_nonce(server):
    """It is refused again, whatever changes meanwhile."""
    (machine,) = await fleet_of(server, 1)
    async with server.runtime.database.write() as session:
        await session.execute(update(Agent).values(status=AgentStatus.QUARANTINED))
    request = signed(machine)
    first = await send([server], [request])
    async with server.runtime.database.write() as session:
        await session.execute(update(Agent).values(status=AgentStatus.ACTIVE))

    assert [403] == first
    assert [401] == await send([server], [request])
    assert 1 == len(await server.rows(Nonce, Nonce.nonce == request_nonce(request)))


def request_nonce(request):
    """The nonce that a request was signed with."""
    return request.headers["signature-input"].partition('nonce="')[2].partition('"')[0]


# --- gathering ---


async def test_who_comes_alone_waits_for_nobody():
    """There is no timer: a batch of one."""
    batches = []

    async def handle(batch):
        batches.append(list(batch))
        return batch

    batcher = Batcher()
    assert [1, 2] == [await batcher.submit(1, handle), await batcher.submit(2, handle)]
    assert [[1], [2]] == batches


async def test_who_comes_while_a_batch_is_handled_is_in_the_next_one_in_order():
    """One batch at a time, never larger than it may be."""
    batches, begun, goes_on = [], asyncio.Event(), asyncio.Event()

    async def handle(batch):
        batches.append(list(batch))
        begun.set()
        await goes_on.wait()
        return batch

    batcher = Batcher(max_batch=3)
    first = asyncio.create_task(batcher.submit(0, handle))
    await begun.wait()
    others = [asyncio.create_task(batcher.submit(number, handle)) for number in range(1, 6)]
    await asyncio.sleep(0)
    goes_on.set()

    assert [0, 1, 2, 3, 4, 5] == await asyncio.gather(first, *others)
    assert [[0], [1, 2, 3], [4, 5]] == batches


async def test_a_full_queue_says_so_at_once():
    """503 with the time after which to come back; nothing is claimed."""
    goes_on = asyncio.Event()

    async def handle(batch):
        await goes_on.wait()
        return batch

    batcher = Batcher(max_batch=1, max_queue=2)
    waiting = [asyncio.create_task(batcher.submit(number, handle)) for number in range(2)]
    await asyncio.sleep(0)
    waiting.append(asyncio.create_task(batcher.submit(2, handle)))
    await asyncio.sleep(0)

    with pytest.raises(UnavailableError):
        await batcher.submit(3, handle)
    goes_on.set()
    assert [0, 1, 2] == await asyncio.gather(*waiting)


async def test_whoever_goes_away_does_not_end_the_batch():
    """The others are answered."""
    goes_on = asyncio.Event()

    async def handle(batch):
        await goes_on.wait()
        return batch

    batcher = Batcher()
    tasks = [asyncio.create_task(batcher.submit(number, handle)) for number in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    goes_on.set()

    assert [0, 2] == [await tasks[0], await tasks[2]]
    assert tasks[1].cancelled()


async def test_an_error_of_a_batch_is_everybodys_and_the_next_one_goes_on():
    """The database was away for a moment."""
    fails = [True]

    async def handle(batch):
        if fails.pop() if fails else False:
            raise OperationalError("check-in", None, OSError())
        return batch

    batcher = Batcher()
    results = await asyncio.gather(*(batcher.submit(n, handle) for n in range(2)), return_exceptions=True)

    assert [OperationalError] * 2 == [type(result) for result in results]
    assert 3 == await batcher.submit(3, handle)


def test_the_keys_that_were_used_last_are_remembered():
    """And no more of them than there is room for."""
    cache = KeyCache(limit=2)
    keys = {name: AgentKeys(UUID(int=number), UUID(int=0), b"", b"") for number, name in enumerate("abc")}
    cache.put("a", keys["a"])
    cache.put("b", keys["b"])
    cache.get("a")
    cache.put("c", keys["c"])

    assert [keys["a"], None, keys["c"]] == [cache.get(name) for name in "abc"]
