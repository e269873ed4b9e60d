"""First start and every start: data directory, keys, schema, the server's own rows. Fails with one sentence."""

import errno
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final

from sqlalchemy import select
from sqlalchemy.exc import DatabaseError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from uuid_utils.compat import uuid7

from redflag_core.errors import ConfigurationError
from redflag_core.keyfiles import write_private
from redflag_core.ports import Clock, Entropy
from redflag_server.accounts.passwords import Passwords
from redflag_server.backup.placement import POSTGRESQL, finish_restore, holds_database, uses_postgresql
from redflag_server.db import migrate
from redflag_server.db.engine import Database
from redflag_server.db.locks import Lock, take
from redflag_server.db.postgresql import reason_of
from redflag_server.events.recorder import RefusalRecorder, record
from redflag_server.limits import AddressLimits
from redflag_server.organizations.tables import INSTALLATION, Organization, Site
from redflag_server.runtime import Runtime
from redflag_server.settings import Settings
from redflag_server.trust.keystore import KeyStore, open_keystore
from redflag_server.trust.service import current_bundle, found, read_bundle
from redflag_server.trust.tables import ServerState

DEFAULT_ORGANIZATION: Final = "Default"
DEFAULT_SITE: Final = "Main"
LOCK: Final = ".lock"
PROBE_BYTES: Final = 1024 * 1024
"""Free space that a start asks for: below it, the first report would not fit."""


async def open_runtime(
    settings: Settings, clock: Clock, entropy: Entropy, *, engine: AsyncEngine | None = None
) -> Runtime:
    """
    Open everything a server needs, making at first start what is not there yet.

    Args:
        settings: Checked settings.
        clock: Wall and monotonic time.
        entropy: Randomness.
        engine: A host's engine for the database; see `Database`.

    Raises:
        ConfigurationError: The data directory, a key or the database must not or cannot be used. The message says
            what to do.
    """
    prepare_directory(settings.data)
    _check_place(settings)
    _check_engine(settings, engine)
    try:
        finish_restore(settings.data)
        database, keys, state = await (_open_postgresql if settings.postgresql else _open_sqlite)(
            settings, clock, entropy, engine
        )
    except DatabaseError as error:
        sentence = postgresql_sentence(error) if settings.postgresql else _sentence(settings.data, error)
        raise ConfigurationError(sentence) from error
    except (sqlite3.Error, OSError) as error:
        raise ConfigurationError(_sentence(settings.data, error)) from error
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


def hold_place(settings: Settings) -> AbstractContextManager[None]:
    """Keep a second server off, where there must be one only: SQLite. See `hold_directory`."""
    return nullcontext() if settings.postgresql else hold_directory(settings.data)


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


async def _open_sqlite(
    settings: Settings, clock: Clock, entropy: Entropy, engine: AsyncEngine | None
) -> tuple[Database, KeyStore, ServerState]:
    first_start = not settings.database.exists()
    keys = open_keystore(settings.data, entropy, first_start=first_start)
    if first_start:
        write_private(settings.database, b"", replace=False)  # SQLite gives its other files this one's mode
    async with _closed_on_failure(Database(settings.database_url, engine=engine)) as database:
        await migrate.upgrade(database)
        async with database.write() as session:
            state = await _state(session) or await _found(session, keys, clock, entropy)
        return database, keys, state


async def _open_postgresql(
    settings: Settings, clock: Clock, entropy: Entropy, engine: AsyncEngine | None
) -> tuple[Database, KeyStore, ServerState]:
    """Of replicas that start together, one founds the server; the others need its keys."""
    async with _closed_on_failure(Database(settings.database_url, engine=engine)) as database:
        await migrate.check(database)
        _mark(settings)
        async with database.write() as session:
            await take(session, Lock.FOUNDING)
            state = await _state(session)
            keys = open_keystore(settings.data, entropy, first_start=state is None)
            if state is None:
                state = await _found(session, keys, clock, entropy)
            else:
                await _check_keys(session, settings, keys)
        return database, keys, state


@asynccontextmanager
async def _closed_on_failure(database: Database) -> AsyncIterator[Database]:
    try:
        yield database
    except BaseException:
        await database.close()
        raise


async def _state(session: AsyncSession) -> ServerState | None:
    found: ServerState | None = (await session.scalars(select(ServerState))).one_or_none()
    return found


async def _found(session: AsyncSession, keys: KeyStore, clock: Clock, entropy: Entropy) -> ServerState:
    """Write the server's own rows into an empty database."""
    now = clock.now()
    session.add(Organization(id=INSTALLATION, name="Installation", kind="installation", created_at=now))
    organization = Organization(id=uuid7(), name=DEFAULT_ORGANIZATION, created_at=now)
    session.add(organization)
    await session.flush()
    session.add(Site(organization_id=organization.id, name=DEFAULT_SITE, created_at=now))
    state = await found(session, keys, clock, entropy)
    await record(session, at=now, kind="server.founded", actor="server", message="The server was set up.")
    return state


async def _check_keys(session: AsyncSession, settings: Settings, keys: KeyStore) -> None:
    """A replica with keys of its own would sign what no machine believes."""
    bundle = read_bundle(await current_bundle(session))
    if keys.command.verify_key.key_id not in {key.open().key_id for key in bundle.keys}:
        raise ConfigurationError(
            f"the keys in {settings.data / 'keys'} are not those of the server in this database: copy the "
            "directory `keys` of a replica that runs"
        )


def _check_engine(settings: Settings, engine: AsyncEngine | None) -> None:
    """A host's engine must lead to the database of the settings: the command line goes by those."""
    if engine is None:
        return
    driver = "postgresql+asyncpg" if settings.postgresql else "sqlite+aiosqlite"
    if engine.url.drivername != driver:
        raise ConfigurationError(f"the engine is {engine.url.drivername}: these settings need {driver}")
    if settings.postgresql is None and Path(engine.url.database or "").absolute() != settings.database.absolute():
        raise ConfigurationError(f"the engine must be one of {settings.database}: there the command line looks")


def _check_place(settings: Settings) -> None:
    """A data directory belongs to one database: to forget the address must not found a second server."""
    if settings.postgresql is None and uses_postgresql(settings.data):
        raise ConfigurationError(
            f"the server in {settings.data} has its database in PostgreSQL: say where with --database or "
            "REDFLAG_DATABASE"
        )
    if settings.postgresql is not None and holds_database(settings.data):
        raise ConfigurationError(
            f"the server in {settings.data} has its database there, in SQLite, and cannot be moved to PostgreSQL "
            "yet: choose another --data for a new server"
        )


def _mark(settings: Settings) -> None:
    if not uses_postgresql(settings.data):
        write_private(settings.data / POSTGRESQL, b"The database of this server is in PostgreSQL.\n", replace=True)


def postgresql_sentence(error: DatabaseError) -> str:
    """Why PostgreSQL cannot be used; never with its address, in which a password may be."""
    return f"the PostgreSQL database cannot be used: {reason_of(error)}"


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
