"""Jobs: done at least once, in order where that was asked for, whoever dies in between; schedules: once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import attrs
import pytest
from click.testing import CliRunner
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from uuid_utils.compat import uuid7

from redflag_core.errors import PolicyError
from redflag_core.resilience import RetryPolicy
from redflag_core.system import SystemClock
from redflag_core.testing import FrozenClock
from redflag_server.cli import main
from redflag_server.events.sequencer import SEQUENCER, Sequencer
from redflag_server.events.tables import Event, HistoryEntry, UnplacedEvent
from redflag_server.jobs.background import tick
from redflag_server.jobs.kinds import Handler, Kind, Rest
from redflag_server.jobs.leases import hold
from redflag_server.jobs.list import JOBS
from redflag_server.jobs.queue import (
    LEASE,
    MAX_PAYLOAD,
    ClaimedJob,
    LeaseLostError,
    check_held,
    claim,
    complete,
    enqueue,
    try_later,
)
from redflag_server.jobs.service import Job, prepare, run_due
from redflag_server.jobs.tables import JobState, QueuedJob, Schedule
from redflag_server.jobs.work import AT_ONCE, Worker
from redflag_server.organizations.tables import INSTALLATION
from tests.helpers.backups import back_up, restore_from
from tests.helpers.operators import API, add_dead_job, api_key, first_place
from tests.helpers.server import Server, running

on_both = pytest.mark.postgresql
SOON = 10.0
"""Seconds within which what happens at once has happened on a loaded machine."""


async def put(server: Server, *, kind: str = "note", key: str | None = None, **payload: Any) -> UUID:
    """A job that is committed."""
    async with server.runtime.database.write() as session:
        return await enqueue(session, kind=kind, payload=payload, now=server.clock.now(), key=key)


async def take(server: Server, limit: int = 10, holder: UUID | None = None) -> list[ClaimedJob]:
    """Take out what is due."""
    now = server.clock.now()
    async with server.runtime.database.write() as session:
        return await claim(session, kinds={"note"}, holder=holder or uuid7(), limit=limit, now=now)


async def done(server: Server, job: ClaimedJob) -> None:
    """Say that a job is done."""
    async with server.runtime.database.write() as session:
        await complete(session, job, server.clock.now())


async def job_row(server: Server, job_id: UUID) -> Any:
    """A job as it is now."""
    return await server.row(QueuedJob, QueuedJob.id == job_id)


def worker(server: Server, handle: Handler, **changes: Any) -> Worker:
    """A worker that knows one kind."""
    return Worker(server.runtime, {"note": Kind(handle, **changes)})


@attrs.define
class Notes:
    """A handler that writes down what it was given."""

    seen: list[Mapping[str, Any]] = attrs.field(factory=list)

    async def __call__(self, _runtime: Any, job: ClaimedJob) -> None:
        self.seen.append(job.payload)


@asynccontextmanager
async def working(work: Callable[[asyncio.Event], Awaitable[None]]) -> AsyncIterator[asyncio.Event]:
    """Let something work until the end of the block."""
    stop = asyncio.Event()
    task = asyncio.ensure_future(work(stop))
    try:
        yield stop
    finally:
        stop.set()
        await asyncio.wait_for(task, SOON)


# --- put in, taken out ---


async def test_a_job_is_there_exactly_if_the_change_is(server: Server):
    """Putting in is part of the caller's transaction: rolled back with it."""

    async def change(*, fails: bool) -> None:
        async with server.runtime.database.write() as session:
            await enqueue(session, kind="note", payload={}, now=server.clock.now())
            if fails:
                raise PolicyError("no")

    with pytest.raises(PolicyError):
        await change(fails=True)
    assert [] == await server.rows(QueuedJob)
    await change(fails=False)
    assert 1 == len(await server.rows(QueuedJob))


@on_both
async def test_a_job_is_done_once(server: Server):
    """Its handler gets the payload; then it is done, and not handed out again."""
    job_id, notes = await put(server, text="ä"), Notes()
    working_one = worker(server, notes)

    attempts = [await working_one.work_once(), await working_one.work_once()]

    row = await job_row(server, job_id)
    assert ([1, 0], [{"text": "ä"}]) == (attempts, notes.seen)
    assert ("done", None, server.clock.now()) == (row.state, row.lease_until, row.ended_at)


async def test_a_job_waits_for_its_time(server: Server):
    """It is not taken out before."""
    async with server.runtime.database.write() as session:
        at = server.clock.now() + timedelta(seconds=60)
        await enqueue(session, kind="note", payload={}, now=server.clock.now(), run_at=at)

    early = await take(server)
    server.clock.advance(60)

    assert (0, 1) == (len(early), len(await take(server)))


async def test_a_job_of_another_release_is_left_alone(server: Server):
    """A kind that this process does not know stays for one that does."""
    await put(server, kind="from_the_future")

    assert [] == await take(server)


async def test_a_payload_has_a_bound(server: Server):
    """What is larger is refused where it is put in."""
    with pytest.raises(ValueError, match="more than"):
        await put(server, text="x" * MAX_PAYLOAD)


# --- one at a time, in order ---


@on_both
async def test_jobs_of_a_key_come_one_at_a_time_in_order(server: Server):
    """The second is handed out when the first has ended; other keys do not wait."""
    first, second, other = await put(server, key="a"), await put(server, key="a"), await put(server, key="b")

    taken = await take(server)
    nothing = await take(server)
    await done(server, taken[0])

    assert [first, other] == [job.id for job in taken]
    assert ([], [second]) == (nothing, [job.id for job in await take(server)])


@on_both
async def test_a_job_that_is_tried_again_keeps_its_place(server: Server):
    """While the first of a key waits for its next attempt, the second waits too."""
    first, _second = await put(server, key="a"), await put(server, key="a")
    (job,) = await take(server)
    async with server.runtime.database.write() as session:
        await try_later(session, job, server.clock.now() + timedelta(seconds=30), "no luck")

    meanwhile = await take(server)
    server.clock.advance(30)

    assert ([], [first]) == (meanwhile, [job.id for job in await take(server)])


@on_both
async def test_claimers_at_the_same_time_keep_the_order_of_each_key(server: Server):
    """Eight claimers, five keys: no job twice, no two of a key at a time, each key in the order of putting in."""
    wanted = {f"key-{number}": [await put(server, key=f"key-{number}") for _ in range(8)] for number in range(5)}
    begun: dict[str | None, list[UUID]] = {key: [] for key in wanted}
    under_way: set[str | None] = set()

    async def claimer(limit: int) -> None:
        while sum(map(len, begun.values())) < 40 or under_way:
            try:
                jobs = await take(server, limit)
            except IntegrityError:
                continue
            for job in jobs:
                assert job.key not in under_way
                under_way.add(job.key)
                begun[job.key].append(job.id)
            for job in jobs:
                await asyncio.sleep(0)
                under_way.discard(job.key)
                await done(server, job)

    await asyncio.wait_for(asyncio.gather(*(claimer(1 + number % 3) for number in range(8))), 60)

    assert wanted == begun


@pytest.mark.postgresql
async def test_the_second_of_a_key_is_not_taken_while_the_first_is_locked(server: Server, database):
    """SKIP LOCKED passes over the locked first; that does not make the second the first."""
    if database.template is None:
        pytest.skip("SQLite has one writer")
    first, _second, other = await put(server, key="a"), await put(server, key="a"), await put(server, key="b")
    now = server.clock.now()

    async with server.runtime.database.write() as session:
        (mine,) = await claim(session, kinds={"note"}, holder=uuid7(), limit=1, now=now)
        theirs = await take(server)

    assert (first, [other]) == (mine.id, [job.id for job in theirs])


@pytest.mark.postgresql
async def test_a_job_that_comes_in_late_does_not_make_two_at_a_time(server: Server, database):
    """
    Of a key, one job is committed late and another is being taken: the database refuses the second lease.

    The late one is first by its number, and whoever takes it does not see the lease of the other yet.
    """
    if database.template is None:
        pytest.skip("SQLite has one writer")
    runtime, now = server.runtime, server.clock.now()
    async with runtime.database.write() as late:
        await enqueue(late, kind="note", payload={}, now=now, key="a")
        quick = await put(server, key="a")
        async with runtime.database.write() as session:
            (mine,) = await claim(session, kinds={"note"}, holder=uuid7(), limit=1, now=now)
            await late.commit()
            second = asyncio.create_task(take(server))
            await _until_blocked(server, second)
        with pytest.raises(IntegrityError):
            await second

    assert quick == mine.id
    assert [] == await take(server)


async def _until_blocked(server: Server, task: "asyncio.Task[Any]") -> None:
    """Wait until a transaction waits for another one, or *task* did not have to."""
    query = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    blocked = 0
    while not blocked and not task.done():
        async with server.runtime.database.read() as session:
            blocked = (await session.scalars(query)).one()


# --- failures ---


def failing(error: Exception) -> Handler:
    async def fail(_runtime: Any, _job: ClaimedJob) -> None:
        raise error

    return fail


async def test_a_failed_attempt_is_made_again_later_and_later(server: Server):
    """Each wait is drawn from a span that doubles; the error is kept without the text of foreign exceptions."""
    job_id, waits = await put(server), []
    failing_one = worker(server, failing(ConnectionError("password=hunter2")))
    for _ in range(4):
        assert 1 == await failing_one.work_once()
        row = await job_row(server, job_id)
        waits.append((row.run_at - server.clock.now()).total_seconds())
        server.clock.advance(waits[-1] + 1)

    assert [True] * 4 == [0 <= wait <= 5 * 2**number for number, wait in enumerate(waits)]
    assert ("live", 4, None) == (row.state, row.attempts, row.lease_until)
    assert "ConnectionError in fail, line " in row.last_error
    assert "hunter2" not in row.last_error


async def test_after_its_last_attempt_a_job_is_a_dead_letter(server: Server):
    """It is not tried again, there is an event, and the next of its key gets its turn."""
    dead, following = await put(server, key="a"), await put(server, key="a")
    failing_one = worker(server, failing(PolicyError("no such policy")), retries=RetryPolicy(attempts=2))
    for _ in range(2):
        await failing_one.work_once()
        server.clock.advance(60)

    row = await job_row(server, dead)
    event = await server.row(Event, Event.kind == "job.dead")
    assert ("dead", 2, "invalid_policy: no such policy") == (row.state, row.attempts, row.last_error)
    assert {"job_id": str(dead), "kind": "note", "error": row.last_error} == event.data
    assert [following] == [job.id for job in await take(server)]


@on_both
async def test_a_job_whose_process_died_is_done_by_another(server: Server):
    """Handed out again when the lease has lapsed, under a higher number; whoever comes back late has no say."""
    job_id = await put(server, key="a")
    (first,) = await take(server)
    assert [] == await take(server)
    server.clock.advance(LEASE.total_seconds())
    (second,) = await take(server)

    with pytest.raises(LeaseLostError):
        await done(server, first)
    async with server.runtime.database.write() as session:
        with pytest.raises(LeaseLostError):
            await check_held(session, first)
        await check_held(session, second)
    await done(server, second)

    assert (job_id, job_id, 1, 2) == (first.id, second.id, first.fence, second.fence)
    assert "done" == (await job_row(server, job_id)).state


async def test_a_replica_whose_clock_is_behind_does_not_take_what_is_leased(server: Server):
    """A lease may end a little later than any that it would give itself."""
    await put(server)
    await take(server)
    server.clock.jump(-5)

    assert [] == await take(server)


async def test_a_lease_that_was_given_while_the_clock_was_wrong_does_not_last(server: Server):
    """One that ends far later than it can is none."""
    await put(server)
    await take(server)
    server.clock.jump(-86_400)

    assert 1 == len(await take(server))


async def test_a_job_that_kills_its_process_ends_as_a_dead_letter(server: Server):
    """It is not taken up for ever: attempts that nobody saw the end of count too."""
    job_id, notes = await put(server), Notes()
    careful = worker(server, notes, retries=RetryPolicy(attempts=2))
    for _ in range(2):
        await take(server)
        server.clock.advance(LEASE.total_seconds())

    await careful.work_once()

    assert ("dead", []) == ((await job_row(server, job_id)).state, notes.seen)


async def test_a_job_goes_on_in_parts(server: Server):
    """Each part is an attempt of its own with the payload that the one before left; the key waits for the last."""
    job_id, _next = await put(server, key="a", left=2), await put(server, key="a", left=0)
    seen: list[tuple[int, int]] = []

    async def part(_runtime: Any, job: ClaimedJob) -> Rest | None:
        seen.append((job.payload["left"], job.attempts))
        return Rest({"left": job.payload["left"] - 1}) if job.payload["left"] else None

    parts = worker(server, part)
    while await parts.work_once():
        pass

    assert [(2, 1), (1, 1), (0, 1), (0, 1)] == seen
    assert "done" == (await job_row(server, job_id)).state


# --- a process that works ---


async def test_a_job_begins_when_it_is_put_in(server: Server):
    """Nobody waits for the next look: the commit rings a bell in this process."""
    notes = Notes()
    begun = asyncio.Event()

    async def note(runtime: Any, job: ClaimedJob) -> None:
        await notes(runtime, job)
        begun.set()

    async with working(worker(server, note).work):
        await put(server, number=1)
        await asyncio.wait_for(begun.wait(), 3)
        begun.clear()
        await put(server, number=2)
        await asyncio.wait_for(begun.wait(), 3)

    assert [{"number": 1}, {"number": 2}] == notes.seen


async def test_a_process_does_a_few_jobs_at_a_time(server: Server):
    """More wait until one has ended; all are done."""
    under_way, most, go = 0, 0, asyncio.Event()
    full = asyncio.Event()

    async def slow(_runtime: Any, _job: ClaimedJob) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        if under_way == AT_ONCE:
            full.set()
        await go.wait()
        under_way -= 1

    for _ in range(AT_ONCE + 2):
        await put(server)
    async with working(worker(server, slow).work):
        await asyncio.wait_for(full.wait(), SOON)
        assert AT_ONCE == under_way
        go.set()
        while await server.rows(QueuedJob, QueuedJob.state == JobState.LIVE):
            pass

    assert AT_ONCE == most


async def test_a_stop_waits_for_what_is_under_way(server: Server):
    """A job that ends within the drain time is done; nothing new is begun."""
    began, go = asyncio.Event(), asyncio.Event()

    async def slow(_runtime: Any, _job: ClaimedJob) -> None:
        began.set()
        await go.wait()

    first = await put(server, key="a")
    second = await put(server, key="a")
    async with working(worker(server, slow).work) as stop:
        await asyncio.wait_for(began.wait(), SOON)
        stop.set()
        await asyncio.sleep(0)
        go.set()

    assert ["done", "live"] == [(await job_row(server, job_id)).state for job_id in (first, second)]


async def test_a_stop_does_not_wait_for_ever(server: Server):
    """What does not end in time is cancelled, and its lease lapses."""
    began = asyncio.Event()

    async def endless(_runtime: Any, _job: ClaimedJob) -> None:
        began.set()
        await asyncio.Event().wait()

    job_id = await put(server)
    impatient = Worker(server.runtime, {"note": Kind(endless)}, drain_seconds=0)
    async with working(impatient.work):
        await asyncio.wait_for(began.wait(), SOON)

    row = await job_row(server, job_id)
    assert ("live", 1, server.clock.now() + LEASE) == (row.state, row.attempts, row.lease_until)


# --- recurring work ---


@asynccontextmanager
async def replicas(tmp_path: Path, *clocks: FrozenClock) -> AsyncIterator[list[Server]]:
    """Servers on one database, each with its own connections and clock."""
    data = tmp_path / "shared"
    async with running(data, clock=clocks[0]) as first, running(data, clock=clocks[1]) as second:
        yield [first, second]


@on_both
async def test_of_two_replicas_one_runs_a_schedule(tmp_path: Path):
    """They look at the same instant, again and again: each time it runs once."""
    ran: list[int] = []

    async def work(_runtime: Any) -> None:
        ran.append(1)

    jobs = {"now": Job(timedelta(minutes=1), work)}
    clock = FrozenClock()
    async with replicas(tmp_path, clock, clock) as servers:
        await prepare(servers[0].runtime, jobs)
        for time in range(1, 11):
            looks = (run_due(server.runtime, jobs) for server in servers * 4)
            assert ["now"] == [name for names in await asyncio.gather(*looks) for name in names]
            assert time == len(ran)
            clock.advance(60)


@on_both
async def test_a_replica_whose_clock_is_behind_does_not_run_a_schedule_again(tmp_path: Path):
    """The next time that another one wrote is a little more than an interval away for it."""
    jobs = {"now": Job(timedelta(minutes=1), lambda _runtime: asyncio.sleep(0))}
    ahead, behind = FrozenClock(), FrozenClock()
    ahead.advance(5)
    async with replicas(tmp_path, ahead, behind) as (first, second):
        await prepare(second.runtime, jobs)

        assert (["now"], []) == (await run_due(first.runtime, jobs), await run_due(second.runtime, jobs))


async def test_what_was_missed_runs_once(server: Server):
    """After a week in which nobody looked, an hourly schedule runs once, not 168 times."""
    jobs = {"hourly": Job(timedelta(hours=1), lambda _runtime: asyncio.sleep(0))}
    await prepare(server.runtime, jobs)
    await run_due(server.runtime, jobs)
    server.clock.advance(7 * 86_400)

    assert [["hourly"], []] == [await run_due(server.runtime, jobs) for _ in range(2)]


# --- without a process ---


@on_both
async def test_a_tick_does_what_is_due_and_ends(server: Server):
    """Recurring work, the jobs that it puts in, and positions for the events; the next one finds nothing."""
    await put(server, kind="from_the_future")

    first, second = await tick(server.runtime), await tick(server.runtime)

    assert (tuple(JOBS), True) == (first.schedules, first.in_time)
    assert (True, True) == (first.attempts >= 1, first.placed >= 1)
    assert ((), 0, 0, True) == (second.schedules, second.attempts, second.placed, second.in_time)
    assert {"done", "live"} == {row.state for row in await server.rows(QueuedJob)}


async def test_a_tick_without_time_begins_nothing(server: Server):
    """The rest is for the next one, and it says so."""
    early = await tick(server.runtime, budget=0)

    assert ((), 0, 0, False) == (early.schedules, early.attempts, early.placed, early.in_time)
    assert {None} == {row.last_run for row in await server.rows(Schedule)}


async def test_done_jobs_are_forgotten_after_a_week(server: Server):
    """The table does not grow for ever; what must be looked at stays."""
    await put(server)
    await worker(server, Notes()).work_once()
    dead = await put(server)
    await worker(server, failing(ValueError()), retries=RetryPolicy(attempts=1)).work_once()
    server.clock.advance(8 * 86_400)

    await tick(server.runtime)

    assert [dead] == [row.id for row in await server.rows(QueuedJob, QueuedJob.kind == "note")]


# --- operators ---


@on_both
async def test_an_operator_lists_jobs_and_tries_a_dead_one_again(server: Server):
    """With all its attempts, as the last of its key, and an event says who wanted it and why."""
    place = await first_place(server.runtime)
    dead, waiting = await add_dead_job(server.runtime, place), await put(server, key="a")
    headers = await api_key(server.runtime, "jobs:read", "jobs:write")

    listed = await server.client.get(f"{API}/jobs?state=dead", headers=headers)
    answer = await server.client.post(f"{API}/jobs/{dead}/retry", headers=headers, json={"reason": "repaired"})
    again = await server.client.post(f"{API}/jobs/{dead}/retry", headers=headers, json={"reason": "repaired"})

    assert [(str(dead), "no luck")] == [(item["id"], item["last_error"]) for item in listed.json()["items"]]
    assert (200, "live", 0) == (answer.status_code, answer.json()["state"], answer.json()["attempts"])
    assert (409, "conflict") == (again.status_code, again.json()["code"])
    event = await server.row(Event, Event.kind == "job.retried")
    assert ("api-key:test", "repaired") == (event.actor, event.data["reason"])
    taken = await take(server)
    assert [waiting] == [job.id for job in taken]
    await done(server, taken[0])
    assert [dead] == [job.id for job in await take(server)]


@on_both
async def test_an_operator_removes_a_dead_job(server: Server):
    """It is gone; the event says what it was. A live one cannot be removed."""
    place = await first_place(server.runtime)
    dead, live = await add_dead_job(server.runtime, place), await put(server)
    headers = await api_key(server.runtime, "jobs:write")

    codes = [
        (await server.client.post(f"{API}/jobs/{job}/discard", headers=headers, json={"reason": "x"})).status_code
        for job in (dead, live, dead)
    ]

    assert [200, 409, 404] == codes
    assert [live] == [row.id for row in await server.rows(QueuedJob)]
    assert {"job_id": str(dead), "kind": "note", "error": "no luck", "reason": "x"} == (
        await server.row(Event, Event.kind == "job.discarded")
    ).data


async def redflag(data: Path, *arguments: object) -> str:
    """Run a command of the server's command line on a data directory."""
    words = ["jobs", *map(str, arguments), "--data", str(data)] if arguments else ["tick", "--data", str(data)]
    answer = await asyncio.to_thread(CliRunner().invoke, main, words)
    assert 0 == answer.exit_code, answer.output
    return answer.output


@pytest.mark.sqlite
async def test_the_command_line_does_the_same(tmp_path: Path):
    """List, retry, discard and tick, beside a server or without one."""
    async with running(tmp_path / "data", clock=SystemClock()) as server:
        place = await first_place(server.runtime)
        first, second = await add_dead_job(server.runtime, place), await add_dead_job(server.runtime, place)
        listed = await redflag(tmp_path / "data", "list", "--state", "dead")
        await redflag(tmp_path / "data", "retry", first)
        await redflag(tmp_path / "data", "discard", second)

    ticked = [await redflag(tmp_path / "data") for _ in range(2)]

    assert [str(second), str(first)] == [line.split()[0] for line in listed.splitlines()]
    assert f"{len(JOBS)} schedules, 1 attempts at jobs" in ticked[0]
    assert "0 schedules, 0 attempts at jobs, 0 events placed" in ticked[1]
    async with running(tmp_path / "data", clock=SystemClock()) as server:
        assert "live" == (await server.row(QueuedJob, QueuedJob.kind == "note")).state
        assert [] == await server.rows(UnplacedEvent)
        actors = {
            event.actor for event in await server.rows(Event, Event.kind.in_(["job.retried", "job.discarded"]))
        }
        assert {"cli"} == {actor.partition(":")[0] for actor in actors}


# --- restore ---


@pytest.mark.sqlite
async def test_after_a_restore_jobs_and_positions_go_on_and_leases_do_not(tmp_path: Path):
    """What was begun is begun again at once; what had a position has the same."""
    clock = FrozenClock()
    async with running(tmp_path / "data", clock=clock) as server:
        job_id, _waiting = await put(server, key="a"), await put(server, key="a")
        (job,) = await take(server)
        sequencer = Sequencer(server.runtime)
        while await sequencer.place():
            pass
        async with server.runtime.database.write() as session:
            await hold(session, SEQUENCER, uuid7(), clock.now())
        before = await positions(server)
    file = back_up(tmp_path / "data", tmp_path / "backup.tar", clock)
    await restore_from(file, tmp_path / "data", clock)

    async with running(tmp_path / "data", clock=clock) as server:
        assert before == await positions(server)
        again = await take(server)
        assert [(job_id, job.fence + 1)] == [(each.id, each.fence) for each in again]
        assert 0 < await Sequencer(server.runtime).place()
        assert before == (await positions(server))[: len(before)]


async def positions(server: Server) -> list[tuple[int, UUID, bytes]]:
    """The history of the installation."""
    rows = await server.rows(HistoryEntry, HistoryEntry.organization_id == INSTALLATION)
    return sorted((row.position, row.event_id, row.hash) for row in rows)
