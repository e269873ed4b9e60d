"""
The SQLite files of the agent: opened safely, written in short durable transactions, failing in sentences.

WAL and synchronous=FULL: what a transaction wrote is on disk when its block ends, and a kill at any moment leaves
the state before or after it.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import attrs

from redflag_core.errors import RedFlagError
from redflag_core.keyfiles import sync_directory

BUSY_SECONDS: Final = 2.0
"""Longest wait for a reader such as ``redflag agent status``, which holds the file for milliseconds."""

WAL_BYTES: Final = 4 * 1024 * 1024
"""Size that the write-ahead log is cut back to: one full report of a large machine."""

_OUTBOX: Final = """
CREATE TABLE reports (
    scanner TEXT NOT NULL, slot TEXT NOT NULL CHECK (slot IN ('pending', 'accepted')),
    report_id TEXT NOT NULL, hash TEXT, body BLOB NOT NULL, refused TEXT,
    PRIMARY KEY (scanner, slot)
) STRICT;
CREATE TABLE runs (
    scanner TEXT PRIMARY KEY, manager TEXT NOT NULL, status TEXT NOT NULL, hash TEXT, taken_at INTEGER NOT NULL,
    duration_ms INTEGER NOT NULL, error TEXT, warnings TEXT NOT NULL, states TEXT NOT NULL,
    content TEXT NOT NULL, accepted_content TEXT
) STRICT;
CREATE TABLE errors (
    id INTEGER PRIMARY KEY AUTOINCREMENT, batch TEXT, subsystem TEXT NOT NULL, type TEXT NOT NULL,
    message TEXT NOT NULL, count INTEGER NOT NULL, first_seen INTEGER NOT NULL, last_seen INTEGER NOT NULL,
    stack TEXT
) STRICT;
CREATE INDEX errors_by_text ON errors (subsystem, type, message) WHERE batch IS NULL;
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
"""

_REFUSED: Final = """
CREATE TABLE refused_statements (digest TEXT PRIMARY KEY, code TEXT NOT NULL, at INTEGER NOT NULL) STRICT;
"""


class OutboxError(RedFlagError):
    """The outbox cannot be read or written. The message says what to do."""

    code = "outbox"


@attrs.frozen
class Schema:
    """
    What is in a file, and how its failures are told.

    Attributes:
        version: Written into the file; one of a newer release is not touched.
        tables: SQL that makes version 1, each statement ending its line.
        error: Raised for everything that goes wrong with the file.
        damaged: What to do when it is damaged.
        later: SQL of each later version: what it adds to the one before.
    """

    version: int
    tables: str
    error: type[RedFlagError]
    damaged: str
    later: tuple[str, ...] = ()


OUTBOX: Final = Schema(
    2,
    _OUTBOX,
    OutboxError,
    "it is damaged; move it away, and the agent scans and reports anew",
    later=(_REFUSED,),
)


class Database:
    """
    The open file. Make one with `open`; close it, or use it as a context manager.

    Args:
        path: The file.
        connection: The open database.
        schema: What is in it.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, schema: Schema) -> None:
        self.path = path
        self._connection = connection
        self._schema = schema

    @classmethod
    def open(cls, path: Path, schema: Schema = OUTBOX) -> "Database":
        """
        Open the file, made 0600 when it is not there.

        Raises:
            RedFlagError: The error of the schema: the disk is full or read-only, or the file is damaged or of a
                newer release.
        """
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise schema.error(f"cannot open {path}: {_reason(error, schema)}") from None
        database = cls(path, connection, schema)
        try:
            database._prepare()
        except BaseException:
            connection.close()
            raise
        return database

    def copy_to(self, path: Path) -> None:
        """
        Copy the file as it is now, readable by its owner only: the whole copy is there, or none.

        Raises:
            RedFlagError: The error of the schema.
        """
        temporary = path.with_name(f".{path.name}.new")
        try:
            temporary.unlink(missing_ok=True)
            os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            with closing(sqlite3.connect(temporary)) as copy:
                self._connection.backup(copy)
            temporary.replace(path)
            sync_directory(path.parent)
        except OSError as error:
            raise self._schema.error(f"cannot write {path}: {_reason(error, self._schema)}") from None
        except sqlite3.Error as error:
            raise self._failure("copy", error) from None

    def close(self) -> None:
        """Close the file. What was written stays."""
        self._connection.close()

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """
        All of the block or nothing of it, durable at its end.

        Raises:
            RedFlagError: The error of the schema: the disk is full, or the file is damaged. Nothing of the block
                is kept.
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._rollback()
                raise
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._rollback()
            raise self._failure("use", error) from None

    def _rollback(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _prepare(self) -> None:
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
            (verdict,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        except sqlite3.Error as error:
            raise self._failure("open", error) from None
        schema = self._schema
        if verdict != "ok":
            raise schema.error(f"cannot open {self.path}: {schema.damaged}")
        if version > schema.version:
            raise schema.error(f"{self.path} was written by a newer release: update this agent")
        if version < schema.version:
            with self.transaction() as db:
                for tables in (schema.tables, *schema.later)[version : schema.version]:
                    for statement in tables.split(";\n"):
                        db.execute(statement)
                db.execute(f"PRAGMA user_version = {schema.version}")

    def _failure(self, verb: str, error: sqlite3.Error) -> RedFlagError:
        return self._schema.error(f"cannot {verb} {self.path}: {_reason(error, self._schema)}")


def _reason(error: OSError | sqlite3.Error, schema: Schema) -> str:
    if isinstance(error, OSError):
        return str(error.strerror)
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE")):
        return "the disk is full; make room, the agent goes on by itself"
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return schema.damaged
    return str(error)
