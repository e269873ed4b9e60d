"""
Fixtures of the server's tests.

Every test that is a coroutine runs on SQLite, and on PostgreSQL too: with ``make test-full``, or always if it has
the mark ``postgresql``. One that is about the file of SQLite, or finds its database itself, has the mark ``sqlite``.
"""

import inspect
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.beds.postgres import Databases, needs_postgres, postgres_server
from tests.helpers.databases import CURRENT, Place, Template
from tests.helpers.server import Server, running

__all__ = ["postgres_server"]


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
    chosen = metafunc.definition.get_closest_marker("postgresql")
    if not (chosen and chosen.kwargs.get("only")):
        yield "sqlite"
    # What does not wait uses no database.
    if inspect.iscoroutinefunction(metafunc.function) and not metafunc.definition.get_closest_marker("sqlite"):
        yield pytest.param("postgresql", marks=[needs_postgres] if chosen else [needs_postgres, pytest.mark.full])


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
