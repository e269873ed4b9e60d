"""
Errors on their way to the server: without secrets, equal ones are counted, too many are dropped oldest first, and
the gap is told.

A batch keeps its id and content until it is accepted, so sending it again after a lost answer counts once.
"""

import sqlite3
import uuid
from typing import Final

from redflag_agent.database import Database
from redflag_core.error_reports import error_report, stack_of, type_of
from redflag_core.errors import RedFlagError
from redflag_core.freshness import unix
from redflag_core.messages import MAX_ERRORS, ClientError, Errors
from redflag_core.ports import Clock, Entropy

MAX_KEPT: Final = 1000
"""Different errors kept: weeks of an offline agent, as equal ones take one row."""

MAX_COUNT: Final = 10**9


class ErrorLog:
    """
    Errors on their way.

    Args:
        database: Where they are kept.
        clock: Wall time of first and last occurrence.
        entropy: Draws batch ids.
    """

    def __init__(self, database: Database, *, clock: Clock, entropy: Entropy) -> None:
        self._database = database
        self._clock = clock
        self._entropy = entropy

    def record(self, subsystem: str, error: BaseException) -> None:
        """
        Keep an error for the server.

        Only a `RedFlagError` speaks for itself, and loses what looks like a secret. Of anything else the type and
        the place are told, never the text: it was not written for people and may hold a secret.

        Args:
            subsystem: Where it happened, such as ``scanner.apt``.
            error: What happened.
        """
        text = error.message if isinstance(error, RedFlagError) else f"unexpected {type(error).__name__}"
        now = int(unix(self._clock.now()))
        stack = None if isinstance(error, RedFlagError) else stack_of(error)
        self._add(error_report(subsystem, type_of(error), text, at=now, stack=stack))

    def batch(self) -> Errors | None:
        """The batch to send: the one not answered yet, else a new one of the oldest errors, else None."""
        with self._database.transaction() as db:
            row = db.execute("SELECT batch FROM errors WHERE batch IS NOT NULL LIMIT 1").fetchone()
            batch_id = self._new_batch(db) if row is None else str(row[0])
            columns = "subsystem, type, message, count, first_seen, last_seen, stack"
            rows = db.execute(f"SELECT {columns} FROM errors WHERE batch = ? ORDER BY id", (batch_id,))  # noqa: S608
            errors = tuple(ClientError(*row) for row in rows)
            dropped = _count(db, "dropped_in_batch")
        return Errors(1, batch_id, errors, dropped) if errors else None

    def accept(self, batch_id: str) -> None:
        """The server has this batch: forget it."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM errors WHERE batch = ?", (batch_id,))
            _set(db, "dropped_in_batch", 0)

    def drop(self, batch_id: str) -> None:
        """The server will never take this batch: forget it, and count what was in it as dropped."""
        with self._database.transaction() as db:
            query = "SELECT coalesce(sum(count), 0) FROM errors WHERE batch = ?"
            (lost,) = db.execute(query, (batch_id,)).fetchone()
            db.execute("DELETE FROM errors WHERE batch = ?", (batch_id,))
            _count_dropped(db, lost + _count(db, "dropped_in_batch"))
            _set(db, "dropped_in_batch", 0)

    def _add(self, error: ClientError) -> None:
        now, what = error.last_seen, (error.subsystem, error.type, error.message)
        with self._database.transaction() as db:
            counted = db.execute(
                "UPDATE errors SET count = min(count + 1, ?), last_seen = ?, stack = ?"
                " WHERE batch IS NULL AND subsystem = ? AND type = ? AND message = ?",
                (MAX_COUNT, now, error.stack, *what),
            ).rowcount
            if not counted:
                db.execute(
                    "INSERT INTO errors (subsystem, type, message, count, first_seen, last_seen, stack)"
                    " VALUES (?, ?, ?, 1, ?, ?, ?)",
                    (*what, now, now, error.stack),
                )
                _drop_oldest(db)

    def _new_batch(self, db: sqlite3.Connection) -> str:
        batch_id = str(uuid.UUID(bytes=self._entropy.token(16), version=4))
        oldest = "SELECT id FROM errors ORDER BY id LIMIT ?"
        if db.execute(f"UPDATE errors SET batch = ? WHERE id IN ({oldest})", (batch_id, MAX_ERRORS)).rowcount:  # noqa: S608
            _set(db, "dropped_in_batch", _count(db, "dropped"))
            _set(db, "dropped", 0)
        return batch_id


def _drop_oldest(db: sqlite3.Connection) -> None:
    surplus = db.execute(
        "SELECT id, count FROM errors WHERE batch IS NULL ORDER BY id DESC LIMIT -1 OFFSET ?", (MAX_KEPT,)
    ).fetchall()
    for number, count in surplus:
        db.execute("DELETE FROM errors WHERE id = ?", (number,))
        _count_dropped(db, count)


def _count_dropped(db: sqlite3.Connection, count: int) -> None:
    _set(db, "dropped", min(_count(db, "dropped") + count, MAX_COUNT))


def _count(db: sqlite3.Connection, name: str) -> int:
    row = db.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
    return 0 if row is None else int(row[0])


def _set(db: sqlite3.Connection, name: str, value: int) -> None:
    db.execute("INSERT OR REPLACE INTO counters VALUES (?, ?)", (name, value))
