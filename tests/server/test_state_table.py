"""The database knows the table of moves and refuses the rest by itself; a change of the schema keeps every row."""

import importlib.util
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import pytest
from alembic import command
from sqlalchemy import Connection, inspect, update
from sqlalchemy.exc import IntegrityError
from uuid_utils.compat import uuid7

from redflag_core import command_queue
from redflag_core.command_queue import CommandState
from redflag_core.patching import ALLOWED, PlanState, plan_states
from redflag_core.scanning import PackageState
from redflag_server.commands.tables import Command
from redflag_server.db import migrate
from redflag_server.db.engine import Database
from redflag_server.packages.tables import Package
from redflag_server.plans.tables import Plan
from tests.helpers.operators import add_machine, first_place, package_row
from tests.helpers.server import Server

NOW = datetime(2026, 1, 2, 9, 30, tzinfo=UTC)

TABLES: dict[str, tuple[Any, Iterable[Any], Any]] = {
    "packages": (Package, PackageState, ALLOWED),
    "commands": (Command, CommandState, command_queue.ALLOWED),
    "plans": (Plan, PlanState, plan_states.ALLOWED),
}


def migration(revision: str) -> ModuleType:
    """A migration as a module."""
    (path,) = (migrate.MIGRATIONS / "versions").glob(f"{revision}_*.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", TABLES)
def test_the_database_and_the_core_have_the_same_table(name: str):
    """The moves that the migration writes into the trigger are those of the core, all of them and no others."""
    _, states, allowed = TABLES[name]
    written = migration("0002").MOVES[name]

    pairs = [(before, after) for before, targets in written.items() for after in targets.split()]

    assert sorted((str(before), str(after)) for before, after in allowed) == sorted(pairs)
    assert set(written) <= {str(state) for state in states}


@pytest.mark.parametrize("name", TABLES)
async def test_the_database_refuses_what_no_rule_makes(server: Server, name: str):
    """Each pair of states, by a plain UPDATE: the legal ones pass, all others leave the row as it was."""
    table, states, allowed = TABLES[name]
    pairs = [(before, after) for before, after in product(states, states) if before is not after]
    refused = set()
    rows = await _rows_in(server, table, [before for before, _ in pairs])

    async with server.runtime.database.write() as session:
        for row, (before, after) in zip(rows, pairs, strict=True):
            try:
                async with session.begin_nested():
                    await session.execute(update(table).where(table.id == row).values(state=after))
            except IntegrityError as error:
                refused.add((before, after, f"illegal move of {name}.state" in str(error.orig)))

    assert {(before, after, True) for before, after in set(pairs) - set(allowed)} == refused
    stored = {row.id: row.state for row in await server.rows(table)}
    assert [after if (before, after) in allowed else before for before, after in pairs] == [
        stored[row] for row in rows
    ]


async def _rows_in(server: Server, table: Any, states: list[Any]) -> list[UUID]:
    """A row of *table* in each of these states."""
    place = await first_place(server.runtime)
    agent = await add_machine(server.runtime, place)
    tenant = {"organization_id": place.organization_id, "agent_id": agent}
    made: list[Any] = []
    for number, state in enumerate(states):
        if table is Package:
            made.append(package_row(server.runtime, place, agent, f"p{number}", observed="current", state=state))
        elif table is Plan:
            made.append(_plan(state, tenant))
        else:
            made.append(_command(state, tenant))
        made[-1].id = uuid7()
    async with server.runtime.database.write() as session:
        session.add_all(made)
    return [row.id for row in made]


def _plan(state: Any, tenant: dict[str, UUID]) -> Plan:
    values = {"manager": "apt", "scanner": "apt", "targets": [], "created_by": "user:alice"}
    return Plan(**tenant, **values, state=state, state_at=NOW, created_at=NOW)


def _command(state: Any, tenant: dict[str, UUID]) -> Command:
    values = {"type": "scan.run", "params": b"{}", "digest": "0" * 64, "created_by": "user:alice"}
    return Command(**tenant, **values, state=state, state_at=NOW, created_at=NOW, start_by=NOW)


# --- a database of the release before ---


@asynccontextmanager
async def old_database(path: Path) -> AsyncIterator[Database]:
    """An empty file, opened as for a change of the schema."""
    database = Database(f"sqlite+aiosqlite:///{path}", foreign_keys=False)
    yield database
    await database.close()


async def move_to(database: Database, revision: str, *, back: bool = False) -> None:
    """Run migrations up or down to *revision*, as a start does: in one transaction, checked before its end."""

    def run(connection: Connection) -> None:
        config = migrate.alembic_config()
        config.attributes["connection"] = connection
        (command.downgrade if back else command.upgrade)(config, revision)
        migrate._refuse_dangling(connection)

    async with database.write() as session:
        await (await session.connection()).run_sync(run)


async def look(database: Database, what: Any) -> Any:
    """What *what* reads from a connection."""
    async with database.read() as session:
        return await (await session.connection()).run_sync(what)


def content(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table, as SQLite has it."""
    return {
        name: [
            dict(row._mapping)
            for row in connection.exec_driver_sql(f'SELECT * FROM "{name}" ORDER BY rowid').all()
        ]
        for name in inspect(connection).get_table_names()
        if name != "alembic_version"
    }


def rules(connection: Connection) -> dict[str, dict[str, Any]]:
    """Everything that the schema says of each table, in an order of its own."""
    found = inspect(connection)
    return {
        name: {
            "columns": [(each["name"], str(each["type"]), each["nullable"]) for each in found.get_columns(name)],
            "primary": found.get_pk_constraint(name),
            "checks": sorted((each["name"], each["sqltext"]) for each in found.get_check_constraints(name)),
            "foreign": sorted(map(repr, found.get_foreign_keys(name))),
            "unique": sorted(map(repr, found.get_unique_constraints(name))),
            "indexes": sorted(map(_index, found.get_indexes(name))),
        }
        for name in found.get_table_names()
    }


def _index(index: Any) -> str:
    return repr({**index, "dialect_options": {key: str(value) for key, value in index["dialect_options"].items()}})


def fill(connection: Connection) -> None:
    """Rows of every kind that points to another, as 0001 wrote them."""
    organization, site, token, agent = (uuid7().bytes for _ in range(4))
    owned = {"organization_id": organization}
    for table, values in (
        ("organizations", {"id": organization, "kind": "client"}),
        ("sites", {"id": site, **owned}),
        ("registration_tokens", {"id": token, "site_id": site, "seats": 2, "used": 1, **owned}),
        ("agents", {"id": agent, "site_id": site, "registered_with": token, "status": "active", **owned}),
        ("scanners", {"agent_id": agent, "name": "apt", "status": "ok", **owned}),
        *(
            ("packages", {"agent_id": agent, "state": state, "observed": "held", "severity": "low", **owned})
            for state in ("current", "available", "held", "unknown", "not_applicable")
        ),
        ("events", {"agent_id": agent, "kind": "agent.registered", **owned}),
    ):
        _add(connection, table, values)


def _add(connection: Connection, table: str, values: dict[str, Any]) -> None:
    """One row with something in every column that must have something, and in some that need not."""
    columns = inspect(connection).get_columns(table)
    filled = {each["name"]: _something(each) for each in columns if not each["nullable"]} | values
    names, marks = ", ".join(filled), ", ".join("?" * len(filled))
    connection.exec_driver_sql(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(filled.values()))


def _something(column: Any) -> Any:
    kind = str(column["type"])
    if kind.startswith("NUMERIC") or "BLOB" in kind:
        return uuid7().bytes
    if "DATE" in kind:
        return "2026-01-02 09:30:00.000000"
    if "JSON" in kind:
        return '{"of": "0001"}'
    return str(uuid7()) if "CHAR" in kind or "TEXT" in kind else 1


@pytest.mark.sqlite
async def test_a_database_of_the_release_before_keeps_everything(tmp_path: Path):
    """Rows, checks, keys and indexes of 0001 are all there after the upgrade, and new columns are empty."""
    async with old_database(tmp_path / "redflag.db") as database:
        await move_to(database, "0001")
        async with database.write() as session:
            await (await session.connection()).run_sync(fill)
        rows, schema = await look(database, content), await look(database, rules)

        await move_to(database, "0002")

        after = await look(database, content)
        for name, before in rows.items():
            kept = [{column: row[column] for column in old} for old, row in zip(before, after[name], strict=True)]
            assert before == kept, name
            added = [set(row) - set(old) for old, row in zip(before, after[name], strict=True)]
            assert all(
                row[column] in (None, 0) for row, new in zip(after[name], added, strict=True) for column in new
            )
        assert 5 == len(after["packages"])
        _nothing_lost(schema, await look(database, rules))


def _nothing_lost(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, old in before.items():
        new = after[name]
        assert old["primary"] == new["primary"], name
        changed = {("ck_agents_status", text) for name, text in old["checks"] if name == "ck_agents_status"}
        assert set(old["checks"]) - changed <= set(new["checks"]), name
        assert {check[0] for check in old["checks"]} == {check[0] for check in new["checks"]}, name
        for what in ("columns", "foreign", "unique", "indexes"):
            assert set(old[what]) <= set(new[what]), (name, what)


@pytest.mark.sqlite
async def test_the_way_back_leads_to_the_old_schema(tmp_path: Path):
    """Up and down again: the schema is the one of 0001, and so are the rows."""
    async with old_database(tmp_path / "redflag.db") as database:
        await move_to(database, "0001")
        async with database.write() as session:
            await (await session.connection()).run_sync(fill)
        rows, schema = await look(database, content), await look(database, rules)
        await move_to(database, "head")

        await move_to(database, "0001", back=True)

        assert rows == await look(database, content)
        assert schema == await look(database, rules)
        assert [] == await look(
            database, lambda connection: connection.exec_driver_sql(
                "SELECT name FROM sqlite_master WHERE type = 'trigger'"
            ).all()
        )  # fmt: skip


@pytest.mark.sqlite
async def test_an_upgraded_database_is_guarded_like_a_new_one(tmp_path: Path, server: Server):
    """After the upgrade the triggers are there, foreign keys hold, and the schema is the one of the code."""
    async with old_database(tmp_path / "redflag.db") as database:
        await move_to(database, "0001")
        async with database.write() as session:
            await (await session.connection()).run_sync(fill)
        await migrate.upgrade(database)

        assert [] == await migrate.differences(database)
        assert await look(server.runtime.database, rules) == await look(database, rules)
        with pytest.raises(IntegrityError, match=r"illegal move of packages\.state"):
            await _restate(database, "current", "installed")
        await _restate(database, "available", "approved")


async def _restate(database: Database, before: str, after: str) -> None:
    async with database.write() as session:
        connection = await session.connection()
        await connection.exec_driver_sql("UPDATE packages SET state = ? WHERE state = ?", (after, before))
