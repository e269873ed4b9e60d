"""
Fixtures of the server's tests.

Every test that is a coroutine runs on SQLite, and on PostgreSQL too: with ``make test-full``, or always if it is
in `SAMPLE` or has the mark ``postgresql``. One that is about the file of SQLite, or finds its database itself, has
the mark ``sqlite``.
"""

import inspect
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from tests.beds.postgres import Databases, needs_postgres, postgres_server
from tests.helpers.databases import CURRENT, Place, Template
from tests.helpers.server import Server, running

__all__ = ["postgres_server"]

SAMPLE: Final = frozenset(
    {
        "test_leases",  # whose turn it is, order numbers, and what a check-in writes
        "test_operator_api",  # lists in pages, filters, and every document that is shown
        "test_patch_histories",  # all moves of packages, plans and commands
        "test_refresh",  # chains and forks
        "test_reports",  # bulk statements, JSON, and the rows that make a hash
        "test_scope",  # every route and every page
        "test_state_table",  # the triggers
    }
)
"""Modules that `make test` runs on PostgreSQL too: where the two differ most. The rest would take minutes."""


def pytest_configure(config: pytest.Config) -> None:
    """Say what marks there are."""
    for mark in (
        "postgresql(only=False): runs on PostgreSQL in `make test` too, or there only",
        "sqlite: is about the file of SQLite, or finds its database itself",
    ):
        config.addinivalue_line("markers", mark)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test on both databases."""
    if "database" in metafunc.fixturenames:
        metafunc.parametrize("database", list(_databases(metafunc)), indirect=True)


def _databases(metafunc: pytest.Metafunc) -> Iterator[object]:
    mark = metafunc.definition.get_closest_marker("postgresql")
    if not (mark and mark.kwargs.get("only")):
        yield "sqlite"
    # What does not wait uses no database.
    if inspect.iscoroutinefunction(metafunc.function) and not metafunc.definition.get_closest_marker("sqlite"):
        sampled = mark or metafunc.module.__name__.rpartition(".")[2] in SAMPLE
        marks = [needs_postgres] if sampled else [needs_postgres, pytest.mark.full]
        yield pytest.param("postgresql", marks=marks)


@pytest.fixture(scope="session")
def template(postgres_server: Databases) -> Iterator[Template]:
    """A migrated PostgreSQL database, made once for each process of the tests."""
    made = Template.make(postgres_server)
    yield made
    postgres_server.drop_database(postgres_server.address(made.name))


@pytest.fixture(autouse=True)
def database(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Where servers of this test have their databases."""
    on_postgresql = request.param == "postgresql"
    place = Place(request.getfixturevalue("template") if on_postgresql else None)
    CURRENT.place = place
    yield place
    CURRENT.place = Place()
    place.drop()


@pytest_asyncio.fixture
async def server(database: Place, tmp_path: Path) -> AsyncIterator[Server]:
    """A running server with an empty fleet."""
    async with running(tmp_path / "data") as running_server:
        yield running_server
