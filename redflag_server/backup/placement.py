"""
Put a restored server where the old one was, so that a crash leaves the old one or the complete new one.

The rule of the file: one rename decides. A directory is prepared inside the data directory, under a name that
nobody looks at. Renaming it to `READY` is the moment of the restore. What is left to do, `finish_restore` does: at
once, or when somebody opens the data directory next. Nothing is deleted: what was there ends in ``replaced-<n>``.

The data directory itself is not exchanged: it may be a mount point or belong to a directory that we cannot write,
and it holds more than the server (the local agent of ``redflag up``), which must stay where it is.
"""

import fcntl
import itertools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from redflag_core.errors import ConfigurationError
from redflag_core.keyfiles import sync_directory
from redflag_server.backup.archive import DATABASE, KEYS

logger = logging.getLogger(__name__)

READY: Final = ".restored"
"""A restore that is decided and not finished yet."""

NEW: Final = "new"
"""Inside: what goes to the data directory. What comes from there is put beside it."""

PARTS: Final = {
    KEYS: (KEYS,),
    # The database last: without it, nobody takes the directory for a server.
    DATABASE: (f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}-journal", DATABASE),
}
"""What is put in place, and which files of the old server must not stay beside it."""

POSTGRESQL: Final = "postgresql"
"""A file that says that the database is not here: without it, a start would found a second server here."""

SHARED_BYTES: Final = (510, 0x4000_0002)
"""Length and start of the bytes that everybody locks who has a SQLite database open (its "shared" lock)."""


def holds_server(data: Path) -> bool:
    """Whether there is a server in a directory, or what is left of one."""
    return any(os.path.lexists(data / name) for name in (READY, *itertools.chain(*PARTS.values())))


def holds_database(data: Path) -> bool:
    """Whether the database of a server is in this directory."""
    return any(os.path.lexists(data / name) for name in (READY, DATABASE))


def is_founded(data: Path) -> bool:
    """Whether a server in this directory could be opened."""
    return holds_database(data) or uses_postgresql(data)


def uses_postgresql(data: Path) -> bool:
    """Whether the server of this directory has its database in PostgreSQL."""
    return os.path.lexists(data / POSTGRESQL)


@contextmanager
def shared_use(data: Path) -> Iterator[None]:
    """
    Keep restores off a data directory while a command works on it.

    Raises:
        ConfigurationError: A restore is under way.
    """
    with _locked(data, fcntl.LOCK_SH, f"a restore into {data} is under way: try again when it has ended"):
        yield


@contextmanager
def sole_use(data: Path) -> Iterator[None]:
    """
    Keep commands off a data directory while it is restored: SQLite finds its files by their names.

    Raises:
        ConfigurationError: A command, or another program that has the database open, works on it.
    """
    with _locked(data, fcntl.LOCK_EX, f"another redflag command works on {data}: try again when it has ended"):
        _refuse_open_database(data / DATABASE)
        yield


def decide(staging: Path, data: Path) -> Path | None:
    """
    Make what is in *staging* the server of *data*.

    Args:
        staging: A directory in *data* with the new files in `NEW`, all of them on the disk.
        data: The data directory, for sole use.

    Returns:
        Where the server is that was there before, None if there was none.

    Raises:
        OSError: It was not decided.
        ConfigurationError: It is decided, and the rest could not be done yet.
    """
    sync_directory(staging)
    staging.rename(data / READY)
    try:
        sync_directory(data)
        return finish_restore(data)
    except OSError as error:
        raise ConfigurationError(
            f"the restore into {data} is decided, but not complete ({error.strerror}): the next start completes it"
        ) from None


def finish_restore(data: Path) -> Path | None:
    """
    Do what is left of a restore that was decided. Can be called at any time, by several at once, and again.

    Returns:
        Where the server is that was there before, None if there was none or nothing was left to do.
    """
    ready = data / READY
    try:
        handle = os.open(ready, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if not ready.exists():  # somebody else finished it meanwhile
            return None
        _place(ready / NEW, data)
        return _set_aside(ready, data)
    finally:
        os.close(handle)


def _place(new: Path, data: Path) -> None:
    """Each new part takes its place once; until then, what is there is the old one's and is moved away."""
    for name, parts in PARTS.items():
        if not os.path.lexists(new / name):
            continue
        for part in parts:
            if os.path.lexists(data / part):
                (data / part).rename(new.parent / part)
        sync_directory(new.parent)
        (new / name).rename(data / name)
        sync_directory(data)


def _set_aside(ready: Path, data: Path) -> Path | None:
    """Give what was replaced a name that stays."""
    with suppress(OSError):  # gone already, or with something in it that was not to be placed: kept too
        (ready / NEW).rmdir()
    aside = None
    if any(ready.iterdir()):
        names = (data / f"replaced-{number}" for number in itertools.count(1))
        aside = ready.rename(next(name for name in names if not os.path.lexists(name)))
    else:
        ready.rmdir()
    sync_directory(data)
    logger.info("the restore into %s is complete", data)
    return aside


def _refuse_open_database(database: Path) -> None:
    if not database.is_file():
        return
    with database.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, *SHARED_BYTES)
        except OSError:
            raise ConfigurationError(f"another program has {database} open: end it first") from None


@contextmanager
def _locked(data: Path, kind: int, refusal: str) -> Iterator[None]:
    """Hold a lock of the directory itself: no file is needed, and it ends with the process."""
    handle = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ConfigurationError(refusal) from None
    try:
        yield
    finally:
        os.close(handle)
