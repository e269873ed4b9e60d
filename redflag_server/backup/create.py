"""
Make a backup, also while the server runs.

The database is copied by ``VACUUM INTO``: one read transaction, so one state, and neither does it wait for writers
nor they for it. SQLite's backup API would start over whenever another process writes, and would copy pages that
still hold what was deleted. The copy is checked before it is kept: a backup that cannot be restored is none.
"""

import hashlib
import io
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Final

import attrs
from sqlalchemy.exc import DatabaseError

from redflag_core import __version__
from redflag_core.errors import ConfigurationError
from redflag_core.freshness import unix
from redflag_core.keyfiles import read_key, read_private, read_secret, sync_directory
from redflag_core.ports import Clock
from redflag_server.backup.archive import (
    DATABASE,
    KEYS,
    MEMBERS,
    NEEDED,
    BackupError,
    Content,
    Manifest,
    archive,
    describe,
)
from redflag_server.backup.contents import check_database
from redflag_server.backup.placement import finish_restore, uses_postgresql
from redflag_server.db import migrate
from redflag_server.db.engine import Database
from redflag_server.db.sqlite import BUSY_TIMEOUT_MS
from redflag_server.events.recorder import record
from redflag_server.settings import Settings

SCRATCH: Final = ".redflag-backup-"
"""Start of the name of a directory that exists while a backup is made."""


@attrs.frozen
class Backup:
    """
    A backup that was made.

    Attributes:
        manifest: What it says of itself.
        size: Bytes of the archive.
        sha256: Digest of the archive, 64 hex digits.
    """

    manifest: Manifest
    size: int
    sha256: str


def back_up_to_file(data: Path, target: Path, *, overwrite: bool, now: datetime) -> Backup:
    """
    Make a backup in a file, 0600, which is there whole or not at all.

    Args:
        data: The server's data directory.
        target: The file.
        overwrite: Whether it may take the place of another file.
        now: Current time, aware UTC.

    Raises:
        ConfigurationError: It cannot be made there, or not of this server. The message says what to do.
    """
    _refuse_postgresql(data)
    _check_target(data, target, overwrite=overwrite)
    with _scratch(target.parent) as scratch, _sentences(data, target):
        made = scratch / "archive"
        with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            backup = _write(data, scratch, out, now)
            out.flush()
            os.fsync(out.fileno())
        _publish(made, target, overwrite=overwrite)
    return backup


def back_up_to_stream(data: Path, out: BinaryIO, *, now: datetime) -> Backup:
    """
    Write a backup to a stream, such as the standard input of a program that encrypts it.

    Raises:
        ConfigurationError: It cannot be made. What was written until then is no backup, and is refused as one.
    """
    _refuse_postgresql(data)
    with _scratch(Path(tempfile.gettempdir())) as scratch, _sentences(data, scratch):
        backup = _write(data, scratch, out, now)
        out.flush()
    return backup


async def note_backup(data: Path, backup: Backup, to: str, *, clock: Clock, actor: str) -> bool:
    """
    Write down that a backup was made, for those who look for the last one.

    Returns:
        Whether that was possible: a database of another release's schema, or one that is locked, is left alone.
    """
    database = Database(Settings(data=data).database_url)
    try:
        if await migrate.pending(database):
            return False
        async with database.write() as session:
            await record(
                session,
                at=clock.now(),
                kind="server.backed_up",
                actor=actor,
                message=f"A backup was made: {to}.",
                data={"to": to, "size": backup.size, "sha256": backup.sha256},
            )
    except DatabaseError:
        return False
    finally:
        await database.close()
    return True


def _refuse_postgresql(data: Path) -> None:
    if uses_postgresql(data):
        raise ConfigurationError(
            "this command cannot back up a server on PostgreSQL yet: dump the database with pg_dump, and copy "
            f"{data / KEYS}"
        )


def _write(data: Path, scratch: Path, out: BinaryIO, now: datetime) -> Backup:
    finish_restore(data)
    copy = scratch / DATABASE
    _copy_database(data / DATABASE, copy)
    facts = check_database(copy)
    digest, size = hashlib.sha256(), 0
    with copy.open("rb") as database:
        contents = [*_keys(data), describe(DATABASE, database)]
        manifest = Manifest(
            **attrs.asdict(facts),
            created_at=int(unix(now)),
            release=__version__,
            members=tuple(content.member for content in contents),
        )
        for piece in archive(manifest, contents):
            out.write(piece)
            digest.update(piece)
            size += len(piece)
    return Backup(manifest, size, digest.hexdigest())


def _copy_database(database: Path, copy: Path) -> None:
    # Not read-only: the first to open a database after a crash must be able to recover its log.
    source = sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT_MS / 1000)
    with closing(source):
        source.execute("VACUUM INTO ?", (str(copy),))


def _keys(data: Path) -> Iterator[Content]:
    """The key files, each of which opens."""
    for name in MEMBERS:
        path = data / name
        if name == DATABASE or (name not in NEEDED and not os.path.lexists(path)):
            continue
        (read_key if path.suffix == ".key" else read_secret)(path)
        yield describe(name, io.BytesIO(read_private(path)))


def _check_target(data: Path, target: Path, *, overwrite: bool) -> None:
    if target.resolve().is_relative_to(data.resolve()):
        raise ConfigurationError(
            f"{target} is in the data directory and would be lost with it: name another place"
        )
    if not target.parent.is_dir():
        raise ConfigurationError(f"there is no directory {target.parent}: make it first")
    if os.path.lexists(target) and not overwrite:
        raise ConfigurationError(f"{target} exists already: name another file, or say --overwrite")


def _publish(made: Path, target: Path, *, overwrite: bool) -> None:
    """Give the complete file its name."""
    if overwrite:
        made.replace(target)
    else:
        try:
            os.link(made, target)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links (FAT, SMB): looking and renaming are two steps there
            if os.path.lexists(target):
                raise FileExistsError from None
            made.rename(target)
    sync_directory(target.parent)


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A private directory for what is not finished."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=parent))
    except OSError as error:
        raise ConfigurationError(f"cannot write in {parent}: {error.strerror}") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _sentences(data: Path, target: Path) -> Iterator[None]:
    """Say why there is no backup."""
    try:
        yield
    except FileExistsError:
        raise ConfigurationError(f"{target} exists already: name another file, or say --overwrite") from None
    except OSError as error:
        raise ConfigurationError(f"cannot write {target}: {error.strerror}") from None
    except BackupError as error:
        raise ConfigurationError(
            f"{data} cannot be backed up: {error.message}; restore an earlier backup"
        ) from None
    except sqlite3.Error as error:
        raise ConfigurationError(_database_sentence(data, target, error)) from None


def _database_sentence(data: Path, target: Path, error: sqlite3.Error) -> str:
    # Not every driver has codes for these: SQLite's own words are fixed English.
    words = str(error).lower()
    if "full" in words or "disk i/o" in words:
        return f"cannot write {target}: the disk is full or failing"
    if "locked" in words or "busy" in words:
        return f"the database in {data} is in use by another program: try again when it has ended"
    if "unable to open" in words or "readonly" in words:
        return f"the database in {data} cannot be opened: run as the user that the server runs as"
    return f"{data} cannot be backed up: the database is damaged; restore an earlier backup"
