"""
Restore a backup: verify all of it, prepare the new server beside the old one, and put it in place with one rename.

Until that rename, the data directory is only added to, and what was added is removed when anything fails.
"""

import errno
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Final

import attrs
from sqlalchemy.exc import DatabaseError

from redflag_core.errors import ConfigurationError, KeyFileError
from redflag_core.keyfiles import sync_directory
from redflag_core.ports import Clock, Entropy
from redflag_server.backup.anew import Outcome, begin_anew
from redflag_server.backup.archive import DATABASE, KEYS, BackupError, Manifest, read_archive
from redflag_server.backup.contents import Facts, check_database, check_schema, check_trust
from redflag_server.backup.placement import (
    NEW,
    PARTS,
    decide,
    finish_restore,
    holds_server,
    sole_use,
    uses_postgresql,
)
from redflag_server.db import migrate
from redflag_server.db.engine import Database
from redflag_server.settings import Settings
from redflag_server.start import LOCK, hold_directory
from redflag_server.trust.keystore import KeyStore, open_keystore

STAGING: Final = ".restoring-"
"""Start of the name of a directory in the data directory that exists while a restore is prepared."""

SPARE: Final = 16 * 1024 * 1024
"""Bytes of free space beyond the backup's own: the database is migrated and changed before it is put in place."""


@attrs.frozen
class Restored:
    """
    A restore that was done.

    Attributes:
        manifest: The backup.
        outcome: What was changed, and what came back.
        replaced: Where the server is that was there before, or None.
    """

    manifest: Manifest
    outcome: Outcome
    replaced: Path | None


async def restore(
    file: BinaryIO, data: Path, *, replace: bool, clock: Clock, entropy: Entropy, actor: str
) -> Restored:
    """
    Make the server in a backup the one of a data directory.

    Args:
        file: The backup, untrusted; it is read twice, so it must be seekable.
        data: The data directory. It need not exist.
        replace: Whether a server that is there may be put aside.
        clock: Wall time.
        entropy: Randomness for secrets that are not in the backup.
        actor: Who restores, for the events.

    Raises:
        BackupError: The file cannot be restored; nothing was changed.
        ConfigurationError: The directory cannot be used, or is in use; nothing was changed.
    """
    manifest = read_archive(file)
    check_schema(manifest)
    _check_target(data, replace=replace)
    with _sentences(data), _removed_unless_restored(data), hold_directory(data), sole_use(data):
        finish_restore(data)
        _check_target(data, replace=replace)
        _remove_leftovers(data)
        _check_space(data, manifest)
        staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=data))
        try:
            file.seek(0)
            # The time of the restore: from here on, nobody serves this directory.
            outcome = await _prepare(file, staging / NEW, manifest, now=clock.now(), entropy=entropy, actor=actor)
            return Restored(manifest, outcome, decide(staging, data))
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


async def _prepare(
    file: BinaryIO, folder: Path, manifest: Manifest, *, now: datetime, entropy: Entropy, actor: str
) -> Outcome:
    """Make the complete new server in *folder*, and bring it to the disk."""
    _unpack(file, folder, manifest)
    database = Database(Settings(data=folder).database_url)
    try:
        await migrate.upgrade(database)
        keys = _open_keys(folder, entropy)
        async with database.write() as session:
            await check_trust(session, keys, manifest)
            outcome = await begin_anew(session, manifest, now=now, actor=actor)
    finally:
        await database.close()
    _fold(folder / DATABASE)
    sync_directory(folder / KEYS)
    sync_directory(folder)
    return outcome


def _unpack(file: BinaryIO, folder: Path, manifest: Manifest) -> None:
    folder.mkdir(mode=0o700)
    if read_archive(file, folder) != manifest:
        raise BackupError("the backup changed while it was read: try again")
    if check_database(folder / DATABASE) != Facts(manifest.server, manifest.root_fp, manifest.revision):
        raise BackupError("the backup is damaged: its manifest is of another database")


def _open_keys(folder: Path, entropy: Entropy) -> KeyStore:
    try:
        return open_keystore(folder, entropy, first_start=False)
    except KeyFileError as error:
        raise BackupError(f"a key in the backup cannot be used: {error.message}") from None


def _fold(database: Path) -> None:
    """Everything into the one file: a log beside it would have to be put in place with it."""
    with closing(sqlite3.connect(database)) as connection:
        (mode,) = connection.execute("PRAGMA journal_mode=DELETE").fetchone()
    if mode != "delete":
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    for part in PARTS[DATABASE]:
        if part != DATABASE:  # SQLite says nothing when it cannot remove one
            database.with_name(part).unlink(missing_ok=True)
    with database.open("rb") as file:
        os.fsync(file.fileno())


def _check_target(data: Path, *, replace: bool) -> None:
    if not os.path.lexists(data):
        return
    if data.stat().st_uid != os.geteuid():
        raise ConfigurationError(f"{data} belongs to another user: run as that user")
    if uses_postgresql(data):
        raise ConfigurationError(
            f"the server in {data} has its database in PostgreSQL, into which no backup can be restored yet: name "
            "another --data"
        )
    if holds_server(data) and not replace:
        raise ConfigurationError(
            f"there is a server in {data}: name another --data, or say --replace to put that one aside"
        )


def _remove_leftovers(data: Path) -> None:
    """What restores that were killed had prepared: nobody else prepares one now."""
    for leftover in data.glob(f"{STAGING}*"):
        shutil.rmtree(leftover)


def _check_space(data: Path, manifest: Manifest) -> None:
    needed, free = manifest.size + SPARE, shutil.disk_usage(data).free
    if free < needed:
        raise ConfigurationError(
            f"the disk of {data} is too full: the restore needs {needed >> 20} MiB, and {free >> 20} MiB are free"
        )


@contextmanager
def _removed_unless_restored(data: Path) -> Iterator[None]:
    """A directory that was not there before is not there after a refusal."""
    existed = os.path.lexists(data)
    try:
        yield
    except BaseException:
        if not existed:
            with suppress(OSError):
                (data / LOCK).unlink(missing_ok=True)
                data.rmdir()
        raise


@contextmanager
def _sentences(data: Path) -> Iterator[None]:
    """Say why there was no restore."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"cannot restore into {data}: {error.strerror}") from None
    except (DatabaseError, sqlite3.Error) as error:
        words = str(getattr(error, "orig", error)).lower()
        if "full" in words or "disk i/o" in words:
            raise ConfigurationError(f"cannot restore into {data}: the disk is full or failing") from None
        raise BackupError("the database in the backup cannot be brought to this release") from None
