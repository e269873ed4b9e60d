"""First start and every start: data directory, keys, schema, the server's own rows. Fails with one sentence."""

import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from sqlalchemy import select
from sqlalchemy.exc import DatabaseError
from uuid_utils.compat import uuid7

from redflag_core.errors import ConfigurationError
from redflag_core.keyfiles import write_private
from redflag_core.ports import Clock, Entropy
from redflag_server.accounts.passwords import Passwords
from redflag_server.backup.placement import finish_restore
from redflag_server.db import migrate
from redflag_server.db.engine import Database
from redflag_server.events.recorder import RefusalRecorder, record
from redflag_server.limits import AddressLimits
from redflag_server.organizations.tables import INSTALLATION, Organization, Site
from redflag_server.runtime import Runtime
from redflag_server.settings import Settings
from redflag_server.trust.keystore import KeyStore, open_keystore
from redflag_server.trust.service import found
from redflag_server.trust.tables import ServerState

DEFAULT_ORGANIZATION: Final = "Default"
DEFAULT_SITE: Final = "Main"
LOCK: Final = ".lock"
PROBE_BYTES: Final = 1024 * 1024
"""Free space that a start asks for: below it, the first report would not fit."""


async def open_runtime(settings: Settings, clock: Clock, entropy: Entropy) -> Runtime:
    """
    Open everything a server needs, making at first start what is not there yet.

    Raises:
        ConfigurationError: The data directory, a key or the database must not or cannot be used. The message says
            what to do.
    """
    prepare_directory(settings.data)
    database = None
    try:
        finish_restore(settings.data)
        first_start = not settings.database.exists()
        keys = open_keystore(settings.data, entropy, first_start=first_start)
        if first_start:
            write_private(settings.database, b"", replace=False)  # SQLite gives its other files this one's mode
        database = Database(settings.database_url)
        state = await _open_state(database, keys, clock, entropy)
    except BaseException as error:
        if database is not None:
            await database.close()
        if isinstance(error, DatabaseError | sqlite3.Error | OSError):
            raise ConfigurationError(_sentence(settings.data, error)) from error
        raise
    return Runtime(
        settings=settings,
        clock=clock,
        entropy=entropy,
        database=database,
        keys=keys,
        server=state.server,
        root_fp=state.root_fp,
        refusals=RefusalRecorder(database, clock),
        limits=AddressLimits(clock),
        passwords=Passwords(),
    )


@contextmanager
def hold_directory(data: Path) -> Iterator[None]:
    """
    Keep a second server off the data directory: SQLite belongs to exactly one. The lock ends with the process.

    Raises:
        ConfigurationError: Another server holds it, or the directory cannot be used.
    """
    prepare_directory(data)
    try:
        handle = os.open(data / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigurationError(_sentence(data, error)) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ConfigurationError(f"another RedFlag server uses {data}: stop it first") from None
    finally:
        os.close(handle)


def prepare_directory(data: Path) -> None:
    """
    Make the data directory private and prove that it can be written.

    Only an empty directory is made private: the mode of one that holds something is its owner's business.

    Raises:
        ConfigurationError: It cannot be made or written, others can read it, or the disk is full.
    """
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not any(data.iterdir()):
            data.chmod(0o700)
        elif data.stat().st_mode & 0o077:
            raise ConfigurationError(f"{data} is open to others: chmod 700 it, or choose an empty directory")
        probe = data / ".probe"
        with probe.open("wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
        probe.unlink()
    except OSError as error:
        with suppress(OSError):
            (data / ".probe").unlink(missing_ok=True)
        raise ConfigurationError(_sentence(data, error)) from error


async def _open_state(database: Database, keys: KeyStore, clock: Clock, entropy: Entropy) -> ServerState:
    await migrate.upgrade(database)
    async with database.write() as session:
        state: ServerState | None = (await session.scalars(select(ServerState))).one_or_none()
        if state is None:
            now = clock.now()
            session.add(Organization(id=INSTALLATION, name="Installation", kind="installation", created_at=now))
            organization = Organization(id=uuid7(), name=DEFAULT_ORGANIZATION, created_at=now)
            session.add(organization)
            await session.flush()
            session.add(Site(organization_id=organization.id, name=DEFAULT_SITE, created_at=now))
            state = await found(session, keys, clock, entropy)
            await record(session, at=now, kind="server.founded", actor="server", message="The server was set up.")
        return state


def _sentence(data: Path, error: Exception) -> str:
    """Why the data directory cannot be used, and what to do about it."""
    number = error.errno if isinstance(error, OSError) else None
    # SQLite has no codes for these in every driver: its own words, without the statement, are fixed English.
    words = "" if isinstance(error, OSError) else str(getattr(error, "orig", error)).lower()
    if number == errno.ENOSPC or "is full" in words:
        return f"the disk of {data} is full: free some space and start again"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM) or "readonly" in words or "unable to open" in words:
        return f"the data directory {data} cannot be written: choose another with --data, or fix its permissions"
    if "malformed" in words or "not a database" in words:
        return f"the database in {data} is damaged: restore it from a backup"
    if "locked" in words:
        return f"the database in {data} is in use by another process: stop that one first"
    return f"the data directory {data} cannot be used: {getattr(error, 'strerror', None) or type(error).__name__}"
