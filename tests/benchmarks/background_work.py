"""Jobs and positions of events each second, against plain transactions of the same database (same run)."""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from sqlalchemy import insert, select
from uuid_utils.compat import uuid7

from redflag_server.events.recorder import NewEvent, record_all
from redflag_server.events.sequencer import Sequencer
from redflag_server.events.tables import Event
from redflag_server.jobs.queue import claim, complete, enqueue
from redflag_server.organizations.tables import Organization
from tests.beds.postgres import running_server
from tests.helpers.databases import CURRENT, Place, Template
from tests.helpers.server import Server, running

JOBS = 400
EVENTS = 5000
AT_ONCE = 4
"""Transactions at a time, where the database takes several."""


def measure() -> Iterator[str]:
    """Figures of SQLite and of PostgreSQL, both waiting for the disk at each commit."""
    yield from asyncio.run(_measure("SQLite"))
    with running_server() as databases:
        CURRENT.place = Place(Template.make(databases))
        yield from asyncio.run(_measure("PostgreSQL"))
        CURRENT.place = Place()


async def _measure(name: str) -> list[str]:
    with tempfile.TemporaryDirectory() as directory:
        async with running(Path(directory) / "data") as server:
            floor = await _each_second(JOBS, lambda: _plain(server))
            put = await _each_second(JOBS, lambda: _put(server))
            done = await _each_second(JOBS, lambda: _do(server))
            placed, cpu = await _placed(server)
    return [
        f"{name:10}  one row in a transaction of its own    {floor:7.0f} /s",
        f"{name:10}  a job put in, in one of its own        {put:7.0f} /s  ({put / floor:.2f} of that)",
        f"{name:10}  a job taken out and done, in two       {done:7.0f} /s  ({done / floor:.2f})",
        f"{name:10}  an event placed and chained            {placed:7.0f} /s  ({1000 * cpu:.2f} ms of CPU here)",
    ]


async def _each_second(times: int, work: Callable[[], Awaitable[None]]) -> float:
    """How often something is done each second, `AT_ONCE` at a time."""

    async def some() -> None:
        for _ in range(times // AT_ONCE):
            await work()

    began = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    return times / (time.perf_counter() - began)


async def _plain(server: Server) -> None:
    async with server.runtime.database.write() as session:
        row = {"id": uuid7(), "name": str(uuid7()), "created_at": server.clock.now()}
        await session.execute(insert(Organization).values(row))


async def _put(server: Server) -> None:
    async with server.runtime.database.write() as session:
        await enqueue(session, kind="note", payload={"of": "somebody"}, now=server.clock.now())


async def _do(server: Server) -> None:
    now = server.clock.now()
    async with server.runtime.database.write() as session:
        (job,) = await claim(session, kinds={"note"}, holder=uuid7(), limit=1, now=now)
    async with server.runtime.database.write() as session:
        await complete(session, job, now)


async def _placed(server: Server) -> tuple[float, float]:
    """Events of ten organizations, written before, placed in batches: each second, and seconds of CPU for each."""
    async with server.runtime.database.read() as session:
        organizations = (await session.scalars(select(Organization.id).limit(10))).all()
    for start in range(0, EVENTS, 500):
        events = [
            NewEvent(
                kind="package.approved",
                actor="user:alice",
                message="openssl 3.0.15 was approved: tested on the bench",
                organization_id=organizations[number % len(organizations)],
                data={"before": "available", "decision": "approve", "reason": "tested on the bench"},
            )
            for number in range(start, start + 500)
        ]
        async with server.runtime.database.write() as session:
            await record_all(session, server.clock.now(), events)
    async with server.runtime.database.read() as session:
        assert EVENTS <= len((await session.scalars(select(Event.id))).all())
    sequencer, placed, began, used = Sequencer(server.runtime), 0, time.perf_counter(), time.process_time()
    while given := await sequencer.place():
        placed += given
    return placed / (time.perf_counter() - began), (time.process_time() - used) / placed
