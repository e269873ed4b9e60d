"""PostgreSQL as the server's database: roles, migrations, starts, and what a fleet sees when it is not there."""

import asyncio
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, insert, inspect, select, text
from uuid_utils.compat import uuid7

from redflag_core.encoding import MAX_INTEGER
from redflag_core.errors import ConfigurationError
from redflag_core.messages import ClientError, Errors
from redflag_core.scanning import Package as Scanned
from redflag_core.scanning import PackageState
from redflag_core.scanning.model import MAX_ARCH, MAX_NAME
from redflag_core.system import SystemEntropy
from redflag_core.testing import FrozenClock
from redflag_server.agents.tables import Agent
from redflag_server.backup.create import back_up_to_file
from redflag_server.backup.restore import _check_target
from redflag_server.db import migrate
from redflag_server.db.engine import Database
from redflag_server.migrating import migrate_postgresql
from redflag_server.packages.tables import Package, ScanReport
from redflag_server.settings import Settings
from redflag_server.start import open_runtime
from tests.beds.postgres import Server as Postgres
from tests.beds.postgres import name_of, needs_postgres, running_server
from tests.helpers.databases import CURRENT, Place, Template
from tests.helpers.fleet import full_report, new_id, package
from tests.helpers.operators import api_key
from tests.helpers.server import Server, running

pytestmark = needs_postgres
POSTGRESQL_ONLY = pytest.mark.postgresql(only=True)


async def start(data: Path, url: str | None) -> None:
    """A start, and the end of it."""
    settings = Settings(data=data, postgresql=url)
    runtime = await open_runtime(settings, FrozenClock(), SystemEntropy())
    await runtime.database.close()


# --- roles and migrations ---


@pytest.fixture
def empty(template: Template) -> Iterator[str]:
    """An empty database of the role that will own its tables; the address for that role."""
    address = template.databases.new_database(owner=template.owner)
    yield template.owned(address)
    template.databases.drop_database(address)


def as_application(template: Template, address: str) -> str:
    """The same database, for the role that serves."""
    return template.databases.address(name_of(address), template.application)


@pytest.mark.sqlite
async def test_the_role_that_serves_owns_nothing(template: Template, empty: str):
    """It can read and change rows, and no table, no rule and no revision."""
    await migrate_postgresql(empty, template.application)
    serving = Database(as_application(template, empty))

    async with serving.read() as session:
        owned = "SELECT count(*) FROM pg_class WHERE relowner = current_user::regrole"
        assert 0 == await session.scalar(text(owned))
    for statement in (
        "DROP TABLE agents",
        "TRUNCATE events",
        "CREATE TABLE mine (id int)",
        "ALTER TABLE commands DISABLE TRIGGER ALL",
        "UPDATE alembic_version SET version_num = '0001'",
    ):
        with pytest.raises(Exception, match=r"permission denied|must be owner"):
            async with serving.write() as session:
                await session.execute(text(statement))
    await serving.close()


@pytest.mark.sqlite
async def test_servers_that_migrate_together_take_turns(template: Template, empty: str):
    """Real processes, started at once on an empty database: all succeed, and the schema is there once."""
    redflag = Path(sys.executable).with_name("redflag")
    line = [str(redflag), "server", "migrate", "--database", empty, "--grant-to", template.application]

    async def run() -> tuple[int | None, bytes]:
        process = await asyncio.create_subprocess_exec(*line, stderr=asyncio.subprocess.PIPE)
        _, said = await process.communicate()
        return process.returncode, said

    ended = await asyncio.gather(*(run() for _ in range(4)))

    assert [0] * 4 == [code for code, _ in ended], ended
    database = Database(empty)
    assert [] == await migrate.differences(database)
    assert not await migrate.pending(database)
    await database.close()


@pytest.mark.sqlite
async def test_a_migration_that_fails_leaves_nothing(template: Template, empty: str):
    """A table is in the way of the second revision: the first one is not there either."""
    template.databases.execute("CREATE TABLE plans (id int)", name_of(empty))

    with pytest.raises(ConfigurationError, match=r"was not migrated: .*plans"):
        await migrate_postgresql(empty, None)

    database = Database(empty)
    async with database.read() as session:
        tables = await (await session.connection()).run_sync(lambda sync: inspect(sync).get_table_names())
    await database.close()
    assert ["plans"] == tables


@pytest.mark.sqlite
async def test_a_start_says_what_is_missing(template: Template, empty: str, tmp_path: Path):
    """No schema, an older one or a newer one: one sentence each, and nothing is changed."""
    serving = as_application(template, empty)
    template.databases.execute(f"GRANT CONNECT ON DATABASE {name_of(empty)} TO PUBLIC")
    with pytest.raises(ConfigurationError, match="no schema yet: run `redflag server migrate`"):
        await start(tmp_path / "data", serving)
    with pytest.raises(ConfigurationError, match="permission denied"):
        await migrate_postgresql(serving, None)

    await migrate_postgresql(empty, template.application)
    for revision, words in (("0001", "older release .0001."), ("9999", "newer release .9999.")):
        template.databases.execute(f"UPDATE alembic_version SET version_num = '{revision}'", name_of(empty))
        with pytest.raises(ConfigurationError, match=words):
            await start(tmp_path / "data", serving)


REVISIONS = [script.revision for script in ScriptDirectory.from_config(migrate.alembic_config()).walk_revisions()]
GIVEN = {
    ("agents", "status"): "active",
    ("server_state", "id"): 1,
    ("setup_links", "id"): 1,
    ("trust_documents", "kind"): "root",
    ("users", "role"): "owner",
    ("credentials", "kind"): "session",
    ("organizations", "kind"): "client",
    ("scanners", "status"): "ok",
    ("packages", "state"): "available",
    ("packages", "observed"): "available",
    ("packages", "severity"): "low",
    ("commands", "state"): "pending",
    ("plans", "state"): "planning",
    ("command_statements", "kind"): "result",
    ("registration_tokens", "seats"): 1,
    ("registration_tokens", "used"): 0,
}


@pytest.mark.sqlite
@pytest.mark.parametrize("revision", sorted(REVISIONS)[:4])
async def test_rows_of_each_former_schema_are_kept(empty: str, revision: str):
    """A row in every table of a former release is there after the upgrade; the schema is the one of the code."""
    database = Database(empty, foreign_keys=False)

    def fill(connection: Connection) -> dict[str, int]:
        config = migrate.alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        tables = MetaData()
        tables.reflect(connection)
        made: dict[str, Any] = {}
        for table in tables.sorted_tables:
            if table.name == "alembic_version":
                continue
            values = {column.name: _value(table.name, column, made) for column in table.columns}
            connection.execute(insert(table).values(values))
            made[table.name] = values
        return dict.fromkeys(made, 1)

    async with database.write() as session:
        before = await (await session.connection()).run_sync(fill)
    await migrate.upgrade(database)

    async with database.read() as session:
        after = {name: await session.scalar(text(f'SELECT count(*) FROM "{name}"')) for name in before}
    assert before == after
    assert [] == await migrate.differences(database)
    await database.close()


def _value(table: str, column: Any, made: dict[str, Any]) -> Any:
    for key in column.foreign_keys:
        return made[key.column.table.name][key.column.name]
    if (table, column.name) in GIVEN:
        return GIVEN[table, column.name]
    if column.nullable:
        return None
    kind = str(column.type)
    if "TIMESTAMP" in kind:
        return FrozenClock().now()
    if kind == "UUID":
        return uuid7()
    if kind == "JSONB":
        return {}
    if kind == "BOOLEAN":
        return True
    return b"x" * 32 if kind == "BYTEA" else 1 if "INT" in kind else 1.0 if "DOUBLE" in kind else "x"


# --- places and addresses ---


@POSTGRESQL_ONLY
async def test_a_server_does_not_forget_where_its_database_is(database: Place, tmp_path: Path):
    """A start without the address would found a second server: it is refused, and so is the way back."""
    async with running(tmp_path / "data"):
        pass
    with pytest.raises(ConfigurationError, match="say where with --database or REDFLAG_DATABASE"):
        await start(tmp_path / "data", None)

    await start(tmp_path / "embedded", None)
    with pytest.raises(ConfigurationError, match="cannot be moved to PostgreSQL yet"):
        await start(tmp_path / "embedded", database.address(tmp_path / "data"))


@POSTGRESQL_ONLY
async def test_a_replica_needs_the_keys_of_the_server(database: Place, tmp_path: Path):
    """With keys of its own it would sign what no machine believes; without any it is told to get them."""
    async with running(tmp_path / "data") as server:
        await start(tmp_path / "other", None)
        (tmp_path / "other" / "redflag.db").unlink()
        with pytest.raises(ConfigurationError, match="copy the directory `keys`"):
            await start(tmp_path / "other", database.address(tmp_path / "data"))
        with pytest.raises(Exception, match=r"command\.key is missing"):
            await start(tmp_path / "third", database.address(tmp_path / "data"))
        assert ["server.founded"] == await server.event_kinds()


@POSTGRESQL_ONLY
async def test_servers_that_start_together_found_one(database: Place, tmp_path: Path):
    """Of starts at the same moment one makes the server; the others have other keys, and say so."""
    address = database.address(tmp_path / "data")

    ended = await asyncio.gather(
        *(start(tmp_path / str(number), address) for number in range(5)), return_exceptions=True
    )

    assert 1 == ended.count(None)
    assert {"command.key is missing"} == {
        str(each).partition("keys/")[2].partition(":")[0] for each in ended if each is not None
    }


@pytest.mark.sqlite
async def test_a_password_is_in_no_message(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Neither in the sentence, nor in the traceback, nor in a log, nor in the settings that somebody prints."""
    caplog.set_level(logging.DEBUG)
    for url in (
        "postgresql://alice:tell-nobody@127.0.0.1:1/redflag",
        "postgresql://alice:tell-nobody@127.0.0.1:1/redflag?sslmode=nonsense",
    ):
        with pytest.raises(ConfigurationError, match="the PostgreSQL database cannot be used") as caught:
            await start(tmp_path / "data", url)
        assert "tell-nobody" not in "".join(traceback.format_exception(caught.value))
        assert "tell-nobody" not in repr(Settings(data=tmp_path, postgresql=url))
    with pytest.raises(ConfigurationError) as refused:
        Settings(data=tmp_path, postgresql="mysql://alice:tell-nobody@db/redflag")
    assert "tell-nobody" not in refused.value.message
    assert "tell-nobody" not in caplog.text


@POSTGRESQL_ONLY
async def test_backups_are_refused(server: Server, tmp_path: Path):
    """With a sentence that says what to do instead, and nothing is made."""
    data = server.runtime.settings.data

    with pytest.raises(ConfigurationError, match="pg_dump"):
        back_up_to_file(data, tmp_path / "backup", overwrite=False, now=server.clock.now())
    with pytest.raises(ConfigurationError, match="into which no backup can be restored yet"):
        _check_target(data, replace=True)

    assert not (tmp_path / "backup").exists()


@pytest.mark.postgresql
async def test_an_address_with_a_nul_is_refused(server: Server):
    """On both databases alike, with a sentence; also where the path is unknown."""
    headers = await api_key(server.runtime)

    answer = await server.client.get("/api/v1/agents?hostname=a%00b", headers=headers)
    unknown = await server.client.get("/api/v1/nothing%00", headers=headers)

    assert (400, "invalid_request") == (answer.status_code, answer.json()["code"])
    assert 404 == unknown.status_code
    assert 2 == len(await server.refusals())


@pytest.mark.postgresql
async def test_the_longest_texts_and_the_largest_numbers_are_stored(server: Server):
    """What the core lets through fits into the columns: PostgreSQL refuses what is longer, SQLite does not."""
    machine = await server.agent()
    long, wide = "\N{GREEK SMALL LETTER OMEGA}", "\N{GRINNING FACE}"
    largest = Scanned(
        name=wide * MAX_NAME,
        state=PackageState.AVAILABLE,
        arch=long * MAX_ARCH,
        installed=wide * MAX_NAME,
        available=long * MAX_NAME,
        source=wide * MAX_NAME,
        source_version=long * MAX_NAME,
        download_size=MAX_INTEGER,
    )
    error = ClientError(subsystem=wide * 64, type=wide * 128, message=wide, count=10**9, first_seen=1, last_seen=1)

    report = await machine.report(server.client, full_report([largest], duration_ms=MAX_INTEGER))
    errors = [await machine.send_errors(server.client, Errors(1, new_id(), (error,))) for _ in range(3)]
    checked = await machine.check_in(server.client, hostname=long * 253, boot_id=wide * 64)

    assert [200] * 5 == [answer.status_code for answer in (report, *errors, checked)], report.text
    assert MAX_INTEGER == (await server.row(Package)).download_size
    assert long * 253 == (await server.row(Agent)).hostname


@pytest.mark.postgresql
async def test_lists_are_sorted_by_code_points(server: Server):
    """Whatever the database's own order: capital letters before small ones, a dash before both."""
    dialect = server.runtime.database.engine.dialect
    columns = (Package.__table__.c.name, Package.__table__.c.arch, Package.__table__.c.manager)
    expected = "C" if server.runtime.database.is_postgresql else None
    assert {expected} == {getattr(column.type.dialect_impl(dialect), "collation", None) for column in columns}
    if server.runtime.database.is_postgresql:
        query = (
            "SELECT collation_name FROM information_schema.columns WHERE table_name = 'packages' AND column_name"
        )
        async with server.runtime.database.read() as session:
            assert "C" == await session.scalar(text(f"{query} = 'name'"))


# --- a database that is not there ---


@pytest.fixture(scope="module")
def postgres_of_its_own() -> Iterator[Template]:
    """A PostgreSQL that tests may stop; it waits for the disk as it should."""
    few = {"max_connections": "20", "superuser_reserved_connections": "3"}
    with running_server(**few) as postgres:
        yield Template.make(postgres)


@pytest.fixture
def own(postgres_of_its_own: Template) -> Postgres:
    """That one, with the servers of this test on it."""
    CURRENT.place = Place(postgres_of_its_own)
    postgres = postgres_of_its_own.databases
    assert isinstance(postgres, Postgres)
    return postgres


def assert_unavailable(answer: Any) -> None:
    """Not now, and when to come again: nothing of the database's own words."""
    assert (503, "application/problem+json") == (answer.status_code, answer.headers["content-type"])
    assert int(answer.headers["retry-after"]) > 0
    assert ("unavailable", "The database does not answer. Try again.") == (
        answer.json()["code"],
        answer.json()["detail"],
    )


@pytest.mark.sqlite
async def test_a_database_that_stops_and_comes_back(own: Postgres, tmp_path: Path):
    """Everybody is told to come again, nobody is let in; when it is back, the first request succeeds."""
    async with running(tmp_path / "data") as server:
        machine, headers = await server.agent(), await api_key(server.runtime)
        kept = full_report([package("bash")])
        assert 200 == (await machine.report(server.client, kept)).status_code

        await asyncio.to_thread(own.stop, "immediate")
        for answer in (
            await machine.check_in(server.client),
            await machine.report(server.client, full_report([package("curl")])),
            await machine.refresh(server.client),
            await server.machine().register(server.client, await _no_token(server)),
            await server.client.get("/api/v1/agents", headers=headers),
        ):
            assert_unavailable(answer)
        assert [503, 200] == [
            (await server.client.get(f"/api/v1/health/{what}")).status_code for what in ("ready", "live")
        ]

        await asyncio.to_thread(own.start)
        assert 200 == (await machine.check_in(server.client)).status_code
        server.clock.advance(1)  # readiness is looked up once a second; the clock of a test is not the database's
        assert ["clock"] == (await server.client.get("/api/v1/health/ready")).json()["failed"]
        assert [UUID(kept.report_id)] == [row.id for row in await server.rows(ScanReport)]


@pytest.mark.sqlite
async def test_a_database_that_was_started_anew_while_nobody_asked(own: Postgres):
    """Connections that it closed meanwhile are not used: not even the first request fails."""
    database = Database(own.address())
    for _ in range(2):
        async with database.read() as session:
            assert 1 == await session.scalar(select(1))
        await asyncio.to_thread(own.stop, "immediate")
        await asyncio.to_thread(own.start)
    async with database.write() as session:
        assert 1 == await session.scalar(select(1))
    await database.close()


async def _no_token(server: Server) -> Any:
    from redflag_core.enrolment import RegistrationToken, new_secret

    return RegistrationToken(
        v=1,
        id=str(uuid7()),
        secret=new_secret(SystemEntropy()),
        server=server.runtime.server,
        root_fp=server.runtime.root_fp,
        addresses=("http://127.0.0.1:8750",),
    )


@pytest.mark.sqlite
async def test_no_accepted_report_is_lost_in_a_crash(own: Postgres, tmp_path: Path):
    """The database crashes under load: every report that was answered with 200 is there afterwards."""
    async with running(tmp_path / "data") as server:
        token = await server.token(seats=6)
        machines = [await server.machine().enrol(server.client, token) for _ in range(6)]
        accepted: set[str] = set()
        enough = asyncio.Event()

        async def keep_reporting(machine: Any) -> None:
            for number in range(200):
                report = full_report([package("bash"), package(f"p{number}")])
                answer = await machine.report(server.client, report)
                if answer.status_code != 200:
                    assert_unavailable(answer)
                    return
                accepted.add(report.report_id)
                if len(accepted) > 20:
                    enough.set()

        sending = [asyncio.create_task(keep_reporting(machine)) for machine in machines]
        await enough.wait()
        await asyncio.to_thread(own.stop, "immediate")
        await asyncio.gather(*sending)
        await asyncio.to_thread(own.start)

        stored = {str(row.id) for row in await server.rows(ScanReport)}
        assert accepted <= stored
        assert {200} == {(await machine.check_in(server.client)).status_code for machine in machines}


@pytest.mark.sqlite
async def test_a_database_that_is_read_only(own: Postgres, tmp_path: Path):
    """People can look; whatever would be written is refused for now, and no request passes unrecorded."""
    async with running(tmp_path / "data") as server:
        machine, headers = await server.agent(), await api_key(server.runtime)
        await _read_only(own, server, "on")

        assert_unavailable(await machine.check_in(server.client))
        assert_unavailable(await machine.report(server.client, full_report([package("curl")])))
        assert 200 == (await server.client.get("/api/v1/agents", headers=headers)).status_code

        await _read_only(own, server, "off")
        assert 200 == (await machine.check_in(server.client)).status_code
        assert [] == await server.rows(ScanReport)


async def _read_only(own: Postgres, server: Server, value: str) -> None:
    """Set it as an administrator does, and wait until sessions have it."""
    own.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
    own.execute("SELECT pg_reload_conf()")
    async with asyncio.timeout(30):
        while True:
            async with server.runtime.database.read() as session:
                if value == await session.scalar(text("SHOW default_transaction_read_only")):
                    return


@pytest.mark.sqlite
async def test_a_database_without_connections(own: Postgres, tmp_path: Path):
    """Somebody else has taken all: come again. When they are given back, it goes on."""
    async with running(tmp_path / "data") as server:
        machine = await server.agent()
        await server.runtime.database.engine.dispose()
        others = list(_all_connections(own))

        assert_unavailable(await machine.check_in(server.client))

        for other in others:
            other.close()
        assert await _comes_back(machine, server)


def _all_connections(own: Postgres) -> Iterator[Any]:
    import psycopg

    with suppress(psycopg.OperationalError):
        while True:
            yield psycopg.connect(own.address(), autocommit=True)


async def _comes_back(machine: Any, server: Server) -> bool:
    """Whether check-ins are answered again; PostgreSQL takes a moment to see that a client is gone."""
    return any([(await machine.check_in(server.client)).status_code == 200 for _ in range(100)])


@POSTGRESQL_ONLY
async def test_the_session_has_bounds(server: Server):
    """No statement and no lock is waited for without end, and an administrator sees whose the session is."""
    names = ("application_name", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    async with server.runtime.database.write() as session:
        found = [await session.scalar(text(f"SHOW {name}")) for name in names]
        isolation = await session.scalar(text("SHOW transaction_isolation"))
    async with server.runtime.database.read() as session:
        reading = [
            await session.scalar(text(f"SHOW {name}"))
            for name in ("transaction_isolation", "transaction_read_only")
        ]

    assert ["redflag-server", "30s", "10s", "1min"] == found
    assert ("read committed", ["repeatable read", "on"]) == (isolation, reading)
