"""
Where the servers under test keep their data: SQLite, or a fresh PostgreSQL database for each data directory.

A PostgreSQL database is a copy of one that was migrated once, by the role that owns its tables. The server
connects with another one that owns nothing, as it should outside of tests.
"""

import asyncio
import shutil
from pathlib import Path

import attrs

from redflag_server.db import migrate
from redflag_server.db.engine import Database
from tests.beds.postgres import Databases, name_of


@attrs.define
class Template:
    """
    A migrated database to make copies of.

    Attributes:
        databases: The server on which it is.
        owner: The role that owns the tables.
        application: The role that serves.
        name: Its name.
    """

    databases: Databases
    owner: str
    application: str
    name: str

    @classmethod
    def make(cls, databases: Databases) -> "Template":
        """Make the roles and the database."""
        owner, application = databases.new_role("owner"), databases.new_role("application")
        name = name_of(databases.new_database(owner=owner))
        asyncio.run(_migrate(databases.address(name, owner), application))
        return cls(databases, owner, application, name)

    def copy(self) -> str:
        """The address of a new copy, for the role that serves."""
        address = self.databases.new_database(template=self.name, owner=self.owner)
        return self.databases.address(name_of(address), self.application)

    def owned(self, address: str) -> str:
        """The same database for the role that owns its tables."""
        return self.databases.address(name_of(address), self.owner)


async def _migrate(url: str, application: str) -> None:
    database = Database(url)
    await migrate.upgrade(database)
    await migrate.grant(database, application)
    await database.close()


@attrs.define
class Place:
    """
    The databases of one test.

    Args:
        template: What PostgreSQL databases are copied from; None for SQLite.
    """

    template: Template | None = None
    _addresses: dict[Path, str] = attrs.field(factory=dict, init=False)

    def address(self, data: Path) -> str | None:
        """Where the server in *data* has its database; the same each time. None for SQLite."""
        if self.template is None:
            return None
        if data not in self._addresses:
            self._addresses[data] = self.template.copy()
        return self._addresses[data]

    def share(self, data: Path, other: Path) -> None:
        """Let *other* be the data directory of a replica of the server in *data*."""
        shutil.copytree(data / "keys", other / "keys")
        other.chmod(0o700)
        self._addresses[other] = self._addresses[data]

    def environment(self, data: Path) -> dict[str, str]:
        """Variables for a command line that works on the server in *data*."""
        address = self.address(data)
        return {} if address is None else {"REDFLAG_DATABASE": address}

    def drop(self) -> None:
        """Drop them."""
        for address in set(self._addresses.values()):
            assert self.template is not None
            self.template.databases.drop_database(address)


@attrs.define
class Current:
    """The place that `helpers.server.running` uses; the fixture `database` sets it for each test."""

    place: Place = attrs.field(factory=Place)


CURRENT = Current()
