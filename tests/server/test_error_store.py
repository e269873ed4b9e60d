"""Errors of machines and of the server: without secrets, counted once, found again, resolved, forgotten."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import attrs
import pytest
from alembic import command
from litestar import get
from sqlalchemy import create_engine, event, text

from redflag_core.error_reports import error_report, fingerprint, kinds_of
from redflag_core.messages import MAX_ERRORS, Errors
from redflag_core.messages import ClientError as WireError
from redflag_core.redaction import REMOVED
from redflag_server.client_errors.capture import MAX_NEW
from redflag_server.client_errors.storing import MAX_KINDS, SERVER, Owner, count_errors
from redflag_server.client_errors.tables import ClientError, ErrorBatch, ErrorSource
from redflag_server.db import migrate
from redflag_server.events.tables import Event
from redflag_server.jobs.retention import forget_old
from redflag_server.organizations.tables import INSTALLATION
from tests.helpers.fleet import new_id
from tests.helpers.operators import API, add_error, add_machine, api_key, first_place, new_place
from tests.helpers.server import Server, running

SECRET = "Zq7hunter2x"
ERROR = WireError("transport", "TimeoutError", "no answer after 5 s", 2, 1_767_000_000, 1_767_000_100)
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]

logger = logging.getLogger("redflag_server.somewhere")


def batch(*errors: WireError, dropped: int = 0) -> Errors:
    """A batch with an id of its own."""
    return Errors(1, new_id(), errors, dropped)


def now_of(server: Server) -> int:
    """The server's time in unix seconds."""
    return int(server.clock.now().timestamp())


async def stored(server: Server) -> list[ClientError]:
    """The errors of the server, after whatever is in memory was stored."""
    assert await server.runtime.errors.store()
    return list(await server.rows(ClientError, ClientError.source == ErrorSource.SERVER))


@contextmanager
def counting(server: Server) -> Iterator[list[str]]:
    """The statements that the database was given meanwhile."""
    seen: list[str] = []
    engine = server.runtime.database.engine.sync_engine

    def look(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        seen.append(statement)

    event.listen(engine, "before_cursor_execute", look)
    yield seen
    event.remove(engine, "before_cursor_execute", look)


@asynccontextmanager
async def away(server: Server) -> AsyncIterator[None]:
    """A database in which errors cannot be stored."""
    async with server.runtime.database.write() as session:
        await session.execute(text("ALTER TABLE client_errors RENAME TO elsewhere"))
    yield
    async with server.runtime.database.write() as session:
        await session.execute(text("ALTER TABLE elsewhere RENAME TO client_errors"))


@get("/api/v1/broken", opt={"public": True})
async def broken() -> None:
    """A request that nobody expected to fail."""
    raise KeyError(f"no such thing; token={SECRET}")


# --- errors of agents ---


@pytest.mark.postgresql
async def test_what_differs_each_time_is_one_error(server: Server):
    """Numbers do not make another error: counted in one row, with the last sample and both times."""
    machine = await server.agent()
    later = attrs.evolve(
        ERROR, message="no answer after 60 s", first_seen=ERROR.last_seen, last_seen=ERROR.last_seen + 9
    )

    answers = [await machine.send_errors(server.client, batch(each)) for each in (ERROR, later, ERROR)]

    row = await server.row(ClientError)
    assert [200] * 3 == [answer.status_code for answer in answers]
    assert (6, "no answer after 5 s", fingerprint(ERROR)) == (row.count, row.message, row.digest)
    seen = (row.first_seen_at.timestamp(), row.last_seen_at.timestamp())
    assert (ERROR.first_seen, ERROR.last_seen + 9) == seen


async def test_the_same_errors_in_one_batch_are_one_row(server: Server):
    """A batch that says a thing twice is no conflict."""
    machine = await server.agent()

    answer = await machine.send_errors(
        server.client, batch(ERROR, attrs.evolve(ERROR, message="no answer after 6 s"))
    )

    assert 200 == answer.status_code, answer.text
    assert 4 == (await server.row(ClientError)).count


async def test_a_secret_that_an_agent_sends_is_not_stored(server: Server):
    """Whatever field it is in: an agent of somebody else's making may not look."""
    machine = await server.agent()
    hidden = f"password={SECRET}"
    error = attrs.evolve(
        ERROR,
        message=f"refused: {hidden}",
        stack=f"a\n{hidden}\nb",
        context={"header": {"Cookie": SECRET}, "exit": 1},
    )

    await machine.send_errors(server.client, batch(error))

    row = await server.row(ClientError)
    assert SECRET not in f"{row.message} {row.stack} {row.context}"
    assert {"header": {"Cookie": REMOVED}, "exit": 1} == row.context


@pytest.mark.postgresql
async def test_the_largest_batch_takes_as_many_statements_as_the_smallest(server: Server):
    """A hundred errors are written at once."""
    machine = await server.agent()
    errors = tuple(attrs.evolve(ERROR, type=f"{one}_{other}") for one in WORDS for other in WORDS)
    assert MAX_ERRORS == len(errors)
    counts = []

    for sent in (errors[:1], errors, errors):
        with counting(server) as statements:
            assert 200 == (await machine.send_errors(server.client, batch(*sent))).status_code
        counts.append(len(statements))

    assert {counts[0]} == set(counts)
    assert [6, *[4] * 99] == sorted((row.count for row in await server.rows(ClientError)), reverse=True)


@pytest.mark.postgresql
async def test_the_same_error_from_many_transactions_at_once_counts_each(server: Server):
    """One atomic statement: none is lost, none fails, and there is one row."""
    place = await first_place(server.runtime)
    agent = await add_machine(server.runtime, place)
    owners = [SERVER, Owner(ErrorSource.AGENT, place.organization_id, agent)]
    kinds = kinds_of(attrs.evolve(ERROR, type=name) for name in WORDS)

    async def count(owner: Owner) -> None:
        async with server.runtime.database.write() as session:
            await count_errors(session, owner, kinds, server.clock.now())

    await asyncio.gather(*(count(owner) for owner in owners * 20))

    rows = await server.rows(ClientError)
    assert 2 * len(WORDS) == len(rows)
    assert {20 * ERROR.count} == {row.count for row in rows}


async def test_the_same_batch_at_once_counts_once(server: Server):
    """An answer that was lost, and a repetition that overtakes it."""
    machine = await server.agent()
    same = batch(ERROR)

    answers = await asyncio.gather(*(machine.send_errors(server.client, same) for _ in range(2)))

    assert {200} == {answer.status_code for answer in answers}
    assert (2, 1) == ((await server.row(ClientError)).count, len(await server.rows(ErrorBatch)))


async def test_a_batch_of_another_agent_is_a_conflict(server: Server):
    """Its id cannot be used to swallow somebody's errors, and nothing of it is stored."""
    first, second = await server.agent(), await server.agent()
    same = batch(ERROR)
    await first.send_errors(server.client, same)

    answer = await second.send_errors(server.client, same)

    assert (409, 1) == (answer.status_code, len(await server.rows(ClientError)))


async def test_a_time_to_come_is_now(server: Server):
    """Else a machine with a wrong clock has rows that are never forgotten."""
    machine = await server.agent()
    late = attrs.evolve(ERROR, first_seen=253_402_300_799, last_seen=253_402_300_799)

    await machine.send_errors(server.client, batch(late))

    row = await server.row(ClientError)
    assert (server.clock.now(), server.clock.now()) == (row.first_seen_at, row.last_seen_at)


# --- errors of the server ---


@pytest.mark.postgresql
async def test_a_request_that_fails_is_an_error_of_the_server(server: Server):
    """With type, place and path, without secrets; the caller learns nothing of it."""
    server.app.register(broken)

    answers = [await server.client.get("/api/v1/broken") for _ in range(3)]

    (row,) = await stored(server)
    assert {500} == {answer.status_code for answer in answers}
    assert ("http", "KeyError", 3, None, INSTALLATION) == (
        row.subsystem,
        row.type,
        row.count,
        row.agent_id,
        row.organization_id,
    )
    assert {"method": "GET", "path": "/api/v1/broken"} == row.context
    assert "in broken" in row.stack
    assert SECRET not in row.message + row.stack + answers[0].text
    assert f"token={REMOVED}" in row.message


async def test_what_is_logged_as_an_error_is_stored_by_itself(server: Server):
    """A background task says what it always says; a warning is none."""
    logger.warning("careful")
    logger.error("the sequencer %s stopped", 7, exc_info=TimeoutError("after 30 s"))

    (row,) = await stored(server)
    assert ("somewhere", "TimeoutError", "the sequencer 7 stopped: after 30 s") == (
        row.subsystem,
        row.type,
        row.message,
    )


async def test_a_task_that_nobody_awaited_is_an_error_of_the_server(server: Server):
    """The event loop tells of it."""
    asyncio.get_running_loop().call_exception_handler(
        {"message": "Task exception was never retrieved", "exception": OSError("gone")}
    )

    (row,) = await stored(server)
    assert ("asyncio", "OSError") == (row.subsystem, row.type)


async def test_an_error_without_an_exception_is_told_apart_by_its_place(server: Server):
    """The same words logged by another function are another error; by the same one they are the same."""

    def elsewhere() -> None:
        logger.error("it cannot be")

    elsewhere()
    logger.error("it cannot be")
    logger.error("it cannot be")

    assert [1, 2] == sorted(row.count for row in await stored(server))


@pytest.mark.sqlite
async def test_errors_are_kept_while_the_database_is_down(server: Server):
    """Nothing is raised, nothing is lost, and the failure to store is not an error to store."""
    logger.error("before")
    async with away(server):
        assert not await server.runtime.errors.store()
        logger.error("meanwhile")
        assert not await server.runtime.errors.store()
        logger.error("before")

    rows = await stored(server)

    assert {("before", 2), ("meanwhile", 1)} == {(row.message, row.count) for row in rows}
    assert {"somewhere"} == {row.subsystem for row in rows}


@pytest.mark.sqlite
async def test_a_database_that_fails_is_an_error_without_its_statement(server: Server):
    """Its words are told; the statement and the values in it are not."""
    key = await api_key(server.runtime, "*")
    async with away(server):
        answer = await server.client.get(f"{API}/client-errors?subsystem={SECRET}", headers=key)

    (row,) = await stored(server)
    assert (503, "OperationalError") == (answer.status_code, row.type)
    assert "no such table" in row.message
    assert "SELECT" not in row.message
    assert SECRET not in f"{row.message} {row.stack} {row.context}"


async def test_a_flood_of_errors_is_bounded_and_counted(server: Server):
    """So many different ones are kept until they are stored; the others are an event with their number."""
    for number in range(MAX_NEW + 30):
        logger.error("a" * (number + 1))
    for _ in range(1000):
        logger.error("a")

    rows = await stored(server)

    (told,) = await server.rows(Event, Event.kind == "server.errors_dropped")
    assert {"dropped": 30 + 1000, "forgotten": 0} == told.data
    assert MAX_NEW == len(rows)
    assert 0 == server.runtime.errors.dropped


async def test_what_cannot_be_formatted_raises_nothing(server: Server, capsys: pytest.CaptureFixture[str]):
    """Whoever logs must not fail by it: it is told on the console."""
    unfit = logging.LogRecord("redflag_server", logging.ERROR, __file__, 1, "%d", ("x",), None)

    server.runtime.errors.handle(unfit)

    assert [] == await stored(server)
    assert "TypeError" in capsys.readouterr().err


async def test_an_error_belongs_to_the_server_whose_request_failed(server: Server, tmp_path: Path):
    """Two in one process do not tell each other's operators."""
    server.app.register(broken)
    async with running(tmp_path / "other") as other:
        await server.client.get("/api/v1/broken")

        assert [] == await stored(other)
    assert 1 == len(await stored(server))


async def test_errors_are_stored_without_anybody_asking(tmp_path: Path):
    """Also those of the last moment: a server that starts again has them."""
    async with running(tmp_path / "data") as server:
        logger.error("the last words")

    async with running(tmp_path / "data") as server:
        assert "the last words" == (await server.row(ClientError)).message


async def test_a_server_that_ended_hears_nothing_any_more(tmp_path: Path):
    """Its handler is gone from the loggers."""
    before = list(logging.getLogger("redflag_server").handlers)
    async with running(tmp_path / "data"):
        assert before != logging.getLogger("redflag_server").handlers

    assert before == logging.getLogger("redflag_server").handlers


async def test_the_server_keeps_a_bounded_number_of_kinds(server: Server):
    """The newest, as for an agent."""
    kinds = kinds_of(
        error_report("a", f"{one}{other}{third}", "x", at=1) for one in WORDS for other in WORDS for third in WORDS
    )

    async with server.runtime.database.write() as session:
        forgotten = await count_errors(session, SERVER, kinds, server.clock.now())

    assert (1000 - MAX_KINDS, MAX_KINDS) == (forgotten, len(await server.rows(ClientError)))


# --- asking ---


@pytest.fixture
async def key(server: Server) -> dict[str, str]:
    """Headers of somebody who may do everything."""
    return await api_key(server.runtime, "*")


async def ids(server: Server, key: dict[str, str], query: str) -> set[str]:
    """Ids of the errors that a query finds."""
    answer = await server.client.get(f"{API}/client-errors?{query}", headers=key)
    assert 200 == answer.status_code, answer.text
    return {item["id"] for item in answer.json()["items"]}


@pytest.mark.postgresql
async def test_errors_are_found_by_everything_that_is_known_of_them(server: Server, key: dict[str, str]):
    """Source, machine, subsystem, type, fingerprint, words, time, and whether it is resolved."""
    place, now = await first_place(server.runtime), server.clock.now()
    agent = await add_machine(server.runtime, place)
    old = now - timedelta(days=3)
    mine = str(
        await add_error(
            server.runtime, place, agent, subsystem="tls", type="CertError", message="100% of it EXPIRED",
            digest="d" * 64, first_seen_at=old, last_seen_at=old, resolved_at=now,
        )
    )  # fmt: skip
    other = str(await add_error(server.runtime, place, agent))
    async with server.runtime.database.write() as session:
        await count_errors(
            session,
            SERVER,
            kinds_of([attrs.evolve(ERROR, first_seen=now_of(server), last_seen=now_of(server))]),
            now,
        )
    third = {str(row.id) for row in await server.rows(ClientError)} - {mine, other}
    day = (now - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")

    queries = ["subsystem=tls", "type=CertError", f"digest={'d' * 64}", "text=100%25 of it exp", "resolved=true"]
    found = {query: await ids(server, key, query) for query in [*queries, f"until={day}"]}
    rest = {query: await ids(server, key, query) for query in (f"since={day}", "resolved=false")}

    assert [{mine}] * len(found) == list(found.values()), found
    assert [{other, *third}] * 2 == list(rest.values())
    assert (third, {mine, other}) == (
        await ids(server, key, "source=server"),
        await ids(server, key, "source=agent"),
    )
    assert {mine, other} == await ids(server, key, f"agent_id={agent}")
    assert set() == await ids(server, key, "text=100_ of")


async def test_pages_of_errors_neither_skip_nor_repeat(server: Server, key: dict[str, str]):
    """Newest kinds first, also while errors are counted."""
    place = await first_place(server.runtime)
    agent = await add_machine(server.runtime, place)
    made = [str(await add_error(server.runtime, place, agent)) for _ in range(5)]

    seen, cursor = [], ""
    while cursor is not None:
        page = (await server.client.get(f"{API}/client-errors?limit=2{cursor}", headers=key)).json()
        seen += [item["id"] for item in page["items"]]
        cursor = None if page["next"] is None else f"&cursor={page['next']}"

    assert made[::-1] == seen


@pytest.mark.postgresql
async def test_errors_are_counted_by_subsystem_and_type(server: Server, key: dict[str, str]):
    """Kinds, machines and occurrences, the most frequent first; the same filters as the list has."""
    place = await first_place(server.runtime)
    agents = [await add_machine(server.runtime, place, f"web-{number}") for number in range(2)]
    for agent in agents:
        await add_error(server.runtime, place, agent, count=10)
    await add_error(server.runtime, place, agents[0])
    async with server.runtime.database.write() as session:
        await count_errors(session, SERVER, kinds_of([ERROR]), server.clock.now())

    counts = (await server.client.get(f"{API}/client-errors/counts", headers=key)).json()
    ours = (await server.client.get(f"{API}/client-errors/counts?source=server", headers=key)).json()

    lines = [
        (each["source"], each["type"], each["kinds"], each["machines"], each["count"]) for each in counts["items"]
    ]
    assert [("agent", "ScanError", 3, 2, 21), ("server", "TimeoutError", 1, 0, 2)] == lines
    assert (4, 23, 1, 2) == (counts["kinds"], counts["count"], ours["kinds"], ours["count"])


async def test_an_error_has_a_page_of_its_own(server: Server, key: dict[str, str]):
    """By id; what is not there is not found."""
    place = await first_place(server.runtime)
    error = await add_error(server.runtime, place, await add_machine(server.runtime, place), context={"exit": 7})

    answer = await server.client.get(f"{API}/client-errors/{error}", headers=key)
    missing = await server.client.get(f"{API}/client-errors/{new_id()}", headers=key)

    assert (200, {"exit": 7}, 404) == (answer.status_code, answer.json()["context"], missing.status_code)


async def test_errors_of_the_server_are_for_those_who_see_everything(server: Server):
    """One organization sees its machines' errors, and counts them only."""
    async with server.runtime.database.write() as session:
        await count_errors(session, SERVER, kinds_of([ERROR]), server.clock.now())
    error = (await server.row(ClientError)).id
    place = await new_place(server.runtime, "B")
    mine = await api_key(server.runtime, "*", organization_id=place.organization_id)

    counts = await server.client.get(f"{API}/client-errors/counts", headers=mine)
    one = await server.client.get(f"{API}/client-errors/{error}", headers=mine)
    acted = await server.client.post(f"{API}/client-errors/{error}/delete", headers=mine, json={"reason": "x"})

    assert set() == await ids(server, mine, "source=server")
    assert (0, 404, 404) == (counts.json()["kinds"], one.status_code, acted.status_code)


# --- resolving ---


async def resolve(server: Server, key: dict[str, str], error: UUID, note: str = "the disk was full") -> Any:
    """Take an error for resolved."""
    return await server.client.post(f"{API}/client-errors/{error}/resolve", headers=key, json={"reason": note})


@pytest.mark.postgresql
async def test_a_resolved_error_opens_again_when_it_is_seen_again(server: Server, key: dict[str, str]):
    """Not by what happened before and is told late; who resolved it stays on record."""
    machine = await server.agent()
    await machine.send_errors(server.client, batch(attrs.evolve(ERROR, last_seen=now_of(server))))
    error = (await server.row(ClientError)).id
    server.clock.advance(60)

    answer = (await resolve(server, key, error)).json()
    await machine.send_errors(server.client, batch(attrs.evolve(ERROR, last_seen=now_of(server) - 30)))
    told_late = await server.row(ClientError)
    server.clock.advance(60)
    await machine.send_errors(server.client, batch(attrs.evolve(ERROR, last_seen=now_of(server))))
    again = await server.row(ClientError)

    assert ("api-key:test", "the disk was full") == (answer["resolved_by"], answer["resolution"])
    assert told_late.resolved_at is not None
    assert (None, "the disk was full", 6) == (again.resolved_at, again.resolution, again.count)


async def test_to_resolve_twice_is_to_resolve_once(server: Server, key: dict[str, str]):
    """One event, and the first note stays."""
    place = await first_place(server.runtime)
    error = await add_error(server.runtime, place, await add_machine(server.runtime, place))

    answers = [await resolve(server, key, error, note) for note in ("first", "second")]

    assert ["first", "first"] == [answer.json()["resolution"] for answer in answers]
    (told,) = await server.rows(Event, Event.kind == "error.resolved")
    assert (str(error), place.organization_id, "first") == (
        told.data["error"],
        told.organization_id,
        told.data["reason"],
    )


async def test_a_deleted_error_is_gone_and_comes_back_as_a_new_one(server: Server, key: dict[str, str]):
    """The deletion is an event; a second one finds nothing."""
    machine = await server.agent()
    await machine.send_errors(server.client, batch(ERROR))
    error = (await server.row(ClientError)).id

    answers = [
        await server.client.post(f"{API}/client-errors/{error}/delete", headers=key, json={"reason": "x"})
        for _ in range(2)
    ]
    await machine.send_errors(server.client, batch(ERROR))

    row = await server.row(ClientError)
    assert ([200, 404], ERROR.count) == ([answer.status_code for answer in answers], row.count)
    assert error != row.id
    assert 1 == len(await server.rows(Event, Event.kind == "error.deleted"))


async def test_who_may_only_read_changes_no_error(server: Server):
    """To resolve and to delete need a permission of their own."""
    place = await first_place(server.runtime)
    error = await add_error(server.runtime, place, await add_machine(server.runtime, place))
    reader = await api_key(server.runtime, "errors:read")

    answers = [
        await server.client.post(f"{API}/client-errors/{error}/{what}", headers=reader, json={"reason": "x"})
        for what in ("resolve", "delete")
    ]

    assert [403, 403] == [answer.status_code for answer in answers]
    assert (await server.row(ClientError)).resolved_at is None


# --- forgetting ---


@pytest.mark.parametrize("days", [7, 90])
async def test_errors_that_were_not_seen_for_long_are_forgotten(tmp_path: Path, days: int):
    """Those of machines and of the server, after as many days as the settings say."""
    async with running(tmp_path / "data", keep_errors_days=days) as server:
        await _forgets_after(server, timedelta(days=days))


async def _forgets_after(server: Server, limit: timedelta) -> None:
    place, now = await first_place(server.runtime), server.clock.now()
    agent = await add_machine(server.runtime, place)
    await add_error(server.runtime, place, agent, last_seen_at=now - limit - timedelta(seconds=1))
    kept = await add_error(server.runtime, place, agent, last_seen_at=now - limit + timedelta(seconds=1))
    async with server.runtime.database.write() as session:
        await count_errors(session, SERVER, kinds_of([attrs.evolve(ERROR, first_seen=1, last_seen=1)]), now)

    await forget_old(server.runtime)

    assert kept == (await server.row(ClientError)).id


# --- what was stored before ---


@pytest.mark.sqlite
async def test_errors_of_the_release_before_are_counted_on(tmp_path: Path):
    """Each kind is one row with the sum of the counts, without secrets, and a new report adds to it."""
    async with running(tmp_path / "data") as server:
        machine = await server.agent()
        await _write_as_before(server, UUID(machine.agent_id))
        await asyncio.to_thread(_migrate_anew, tmp_path / "data" / "redflag.db")

        await machine.send_errors(server.client, batch(ERROR))

        rows = {row.type: row for row in await server.rows(ClientError)}
    first, other = rows["TimeoutError"], rows["ScanError"]
    assert 2 == len(rows)
    assert (10**10 + 5 + ERROR.count, "no answer after 5 s", "agent") == (first.count, first.message, first.source)
    assert first.first_seen_at < other.first_seen_at
    assert (1, f"token={REMOVED}") == (other.count, other.message)
    assert other.resolved_at is None


async def _write_as_before(server: Server, agent: UUID) -> None:
    """Two rows of one kind by the rule of now, told apart by the rule of then, and one with a secret."""
    place, now = await first_place(server.runtime), server.clock.now()
    before = {"subsystem": "transport", "type": "TimeoutError"}
    known = {**before, "count": 5, "first_seen_at": now - timedelta(days=5)}
    await add_error(server.runtime, place, agent, **before, message="no answer after 7 s", count=10**10)
    await add_error(server.runtime, place, agent, **known, message="no answer after 9 s")
    await add_error(server.runtime, place, agent, message=f"token={SECRET}")


def _migrate_anew(path: Path) -> None:
    """Back to the schema before, and forward again."""
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config = migrate.alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "0004")
        command.upgrade(config, "head")
    engine.dispose()
