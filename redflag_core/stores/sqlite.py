"""
Nonces and rate limits in SQLite, with the standard library: for one machine, any number of processes.

A store opens one connection for each process, when that process first uses it, and lets one caller at a time have
it. So it may be made before a fork: SQLite must not use one connection on both sides, and the child opens its own.
It may be called from any thread.

The journal is a write-ahead log, where one can be had. Nonces are stored with ``synchronous=FULL``: a claim
survives the process, and the power. Rate limits are stored with ``NORMAL``, which does not wait for the disk: they
survive the process, and after a power failure some clients may have their burst again.

The classes without an event loop block while they wait for the disk, or for another process. The others hand each
call to one thread of their own and do not block the loop. Claims that wait there while the disk is busy are stored
together: it is waited for once, and nobody is answered before.
"""

import asyncio
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, Final, ParamSpec, TypeVar

import attrs

from redflag_core.errors import ConfigurationError, StoreError
from redflag_core.freshness import check_claim, unix
from redflag_core.rate_limit import CLOCK_STEP, Decision, RateLimitPolicy, check_key, step
from redflag_core.stores._tables import (
    DELETE_BATCH,
    NONCES,
    RATE_LIMITS,
    filled,
    horizon_of_forgetting,
    horizon_of_purging,
    quoted,
)

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT: Final = 10.0
"""Seconds to wait for another process that writes. A claim takes milliseconds; a purge lets go between batches."""

MAX_WAITING: Final = 10_000
"""Calls that wait for the thread of a store. A disk that stopped must not fill the memory."""

CLAIM_BATCH: Final = 256
"""Claims that are stored together: enough to be quick, and few enough that none waits long for the others."""

_NONCE_DDL: Final = """\
CREATE TABLE IF NOT EXISTS {nonces} (
    created INTEGER NOT NULL,
    key_id TEXT NOT NULL,
    nonce TEXT NOT NULL,
    PRIMARY KEY (created, key_id, nonce)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS {horizon} (
    single INTEGER PRIMARY KEY CHECK (single = 1),
    horizon INTEGER NOT NULL
);
INSERT INTO {horizon} (single, horizon) VALUES (1, 0) ON CONFLICT DO NOTHING;
"""
_CLAIM: Final = """\
INSERT INTO {nonces} (key_id, nonce, created)
SELECT :key_id, :nonce, :created WHERE :created > (SELECT horizon FROM {horizon})
ON CONFLICT DO NOTHING"""
_MOVE: Final = """\
UPDATE {horizon} SET horizon = CASE WHEN horizon > :far THEN :back ELSE max(horizon, :onwards) END"""
_FORGET: Final = """\
DELETE FROM {nonces} WHERE (created, key_id, nonce) IN (
    SELECT created, key_id, nonce FROM {nonces} WHERE created <= (SELECT horizon FROM {horizon}) LIMIT :batch
)"""

_LIMIT_DDL: Final = """\
CREATE TABLE IF NOT EXISTS {limits} (
    key TEXT NOT NULL PRIMARY KEY,
    arrival REAL NOT NULL
) WITHOUT ROWID;
"""
_READ: Final = "SELECT arrival FROM {limits} WHERE key = :key"
_WRITE: Final = """\
INSERT INTO {limits} (key, arrival) VALUES (:key, :arrival)
ON CONFLICT (key) DO UPDATE SET arrival = excluded.arrival"""
_PURGE: Final = """\
DELETE FROM {limits} WHERE key IN (SELECT key FROM {limits} WHERE arrival <= :before LIMIT :batch)"""


@attrs.define
class _Held:
    """What one process has."""

    lock: threading.Lock = attrs.field(factory=threading.Lock)
    connection: sqlite3.Connection | None = None


class _Database:
    """One connection for each process, and one caller at a time."""

    def __init__(self, path: str | os.PathLike[str], *, synchronous: str) -> None:
        self._path = os.fspath(path)
        self._synchronous = synchronous
        # What a parent opened stays here untouched in its child: even closing it there would be wrong.
        self._by_process: dict[int, _Held] = {}
        if not self._path or self._path.startswith(":") or self._path.startswith("file:"):
            raise ConfigurationError("a store needs the path of a file: what is in memory is not kept")

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do *work* with the connection. What it leaves open is rolled back."""
        held = self._by_process.setdefault(os.getpid(), _Held())
        with held.lock, _store_errors():
            if held.connection is None:
                held.connection = self._open()
            try:
                return work(held.connection)
            finally:
                if held.connection.in_transaction:
                    held.connection.rollback()

    def change(self, statement: str, **parameters: Any) -> int:
        """Run one statement, which is a transaction by itself, and tell how many rows it changed."""
        return self.run(lambda connection: connection.execute(statement, parameters).rowcount)

    def delete(self, statement: str, **parameters: Any) -> int:
        """Repeat a statement that deletes one batch, until nothing is left. Others have their turn in between."""
        total = deleted = self.change(statement, batch=DELETE_BATCH, **parameters)
        while deleted == DELETE_BATCH:
            deleted = self.change(statement, batch=DELETE_BATCH, **parameters)
            total += deleted
        return total

    def close(self) -> None:
        """Close the connection of this process."""
        held = self._by_process.setdefault(os.getpid(), _Held())
        with held.lock:
            if held.connection is not None:
                held.connection.close()
            held.connection = None

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=TIMEOUT, isolation_level=None, check_same_thread=False)
        try:
            with suppress(sqlite3.OperationalError):  # another process is at it, or the place cannot have one
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            connection.execute("PRAGMA fullfsync = ON")  # macOS: there an fsync alone does not reach the disk
        except BaseException:
            connection.close()
            raise
        return connection


class SqliteNonceStore:
    """
    Nonces in a file. `redflag_core.ports.SyncNonceStore`.

    Safe to share between threads and over a fork. It blocks: an event loop takes `AsyncSqliteNonceStore`.

    Attributes:
        ddl: The statements that `create` runs, for your own migrations.

    Args:
        path: The database: a file of its own, or one that the program already has. Not on a network drive.
        table: Name of the table; another one with ``_horizon`` behind it is beside it.

    Raises:
        ConfigurationError: *path* is no file, or *table* is no name.
    """

    def __init__(self, path: str | os.PathLike[str], *, table: str = NONCES) -> None:
        names = {"{nonces}": quoted(table), "{horizon}": quoted(table, suffix="_horizon")}
        self.ddl: Final = filled(_NONCE_DDL, names)
        self._claim, self._move, self._forget = (filled(text, names) for text in (_CLAIM, _MOVE, _FORGET))
        self._database = _Database(path, synchronous="FULL")

    def create(self) -> None:
        """Make the tables. Does nothing when they are there."""
        self._database.run(lambda connection: connection.executescript(self.ddl))

    def claim(self, key_id: str, nonce: str, created: int) -> bool:
        """
        See `redflag_core.ports.NonceStore.claim`.

        Raises:
            MalformedError: See `redflag_core.freshness.check_claim`.
            StoreError: Whether it was claimed is not known.
        """
        check_claim(key_id, nonce, created)
        return self._database.change(self._claim, key_id=key_id, nonce=nonce, created=created) == 1

    def claim_all(self, claims: Sequence[tuple[str, str, int]]) -> list[bool]:
        """
        Claim several in one transaction, in their order: two that are the same have one winner.

        Args:
            claims: Key id, nonce and creation time of each, as for `claim`.

        Returns:
            The answer to each. All are stored, or none is and `StoreError` is raised.

        Raises:
            MalformedError: See `redflag_core.freshness.check_claim`. Nothing was claimed.
            StoreError: Whether they were claimed is not known.
        """
        for claim in claims:
            check_claim(*claim)
        return self._database.run(lambda connection: self._claim_all(connection, claims))

    def forget(self, horizon: int) -> int:
        """
        Refuse everything created at or before *horizon* from now on, and then delete it.

        Args:
            horizon: Unix seconds. One before the present horizon changes nothing.

        Returns:
            How many nonces were deleted.

        Raises:
            StoreError: It was not finished. Call it again.
        """
        return self._forget_by(horizon_of_forgetting(horizon))

    def purge(self, now: datetime) -> int:
        """
        Forget what no message can use any more. Call it every few minutes, in any one process.

        Args:
            now: Current time, aware UTC. A horizon that a wrong clock set too far ahead is taken back, see
                `redflag_core.freshness.next_horizon`.

        Returns:
            How many nonces were deleted.

        Raises:
            StoreError: It was not finished. Call it again.
        """
        return self._forget_by(horizon_of_purging(now))

    def close(self) -> None:
        """Close the connection of this process. The next call opens another."""
        self._database.close()

    def _claim_all(self, connection: sqlite3.Connection, claims: Sequence[tuple[str, str, int]]) -> list[bool]:
        connection.execute("BEGIN IMMEDIATE")
        parameters = ({"key_id": key_id, "nonce": nonce, "created": created} for key_id, nonce, created in claims)
        answers = [connection.execute(self._claim, each).rowcount == 1 for each in parameters]
        connection.execute("COMMIT")
        return answers

    def _forget_by(self, move: tuple[int, int, int]) -> int:
        far, back, onwards = move
        self._database.change(self._move, far=far, back=back, onwards=onwards)
        return self._database.delete(self._forget)


class SqliteRateLimitStore:
    """
    Rate limits in a file. `redflag_core.ports.SyncRateLimitStore`.

    Safe to share between threads and over a fork. It blocks: an event loop takes `AsyncSqliteRateLimitStore`.

    Attributes:
        ddl: The statements that `create` runs, for your own migrations.

    Args:
        path: The database: a file of its own, or one that the program already has. Not on a network drive.
        table: Name of the table.

    Raises:
        ConfigurationError: *path* is no file, or *table* is no name.
    """

    def __init__(self, path: str | os.PathLike[str], *, table: str = RATE_LIMITS) -> None:
        names = {"{limits}": quoted(table)}
        self.ddl: Final = filled(_LIMIT_DDL, names)
        self._read, self._write, self._purge = (filled(text, names) for text in (_READ, _WRITE, _PURGE))
        self._database = _Database(path, synchronous="NORMAL")

    def create(self) -> None:
        """Make the table. Does nothing when it is there."""
        self._database.run(lambda connection: connection.executescript(self.ddl))

    def take(self, key: str, policy: RateLimitPolicy, now: datetime) -> Decision:
        """
        See `redflag_core.ports.RateLimitStore.take`.

        Raises:
            MalformedError: See `redflag_core.rate_limit.check_key`.
            StoreError: Whether it was charged is not known.
        """
        check_key(key)
        moment = unix(now)
        return self._database.run(lambda connection: self._take(connection, key, policy, moment))

    def purge(self, now: datetime) -> int:
        """
        Forget keys that have their full burst again. Call it every few minutes, in any one process.

        Args:
            now: Current time, aware UTC.

        Returns:
            How many keys were forgotten.

        Raises:
            StoreError: It was not finished. Call it again.
        """
        return self._database.delete(self._purge, before=unix(now) - CLOCK_STEP)

    def close(self) -> None:
        """Close the connection of this process. The next call opens another."""
        self._database.close()

    def _take(self, connection: sqlite3.Connection, key: str, policy: RateLimitPolicy, now: float) -> Decision:
        connection.execute("BEGIN IMMEDIATE")  # before the read: two that both read first would both pass
        row = connection.execute(self._read, {"key": key}).fetchone()
        arrival, decision = step(row[0] if row else None, now, policy)
        if row is None or arrival != row[0]:
            connection.execute(self._write, {"key": key, "arrival": arrival})
        connection.execute("COMMIT")
        return decision


@attrs.define
class _Thread:
    """The thread of one process, and room for what waits for it."""

    executor: ThreadPoolExecutor = attrs.field(factory=lambda: ThreadPoolExecutor(1, "redflag-store"))
    room: threading.Semaphore = attrs.field(factory=lambda: threading.Semaphore(MAX_WAITING))


class _Threads:
    """One thread for each process, started when it is first used."""

    def __init__(self) -> None:
        self._by_process: dict[int, _Thread] = {}

    def admit(self) -> _Thread:
        """Take room for one call of `run_in`."""
        thread = self._by_process.get(os.getpid()) or self._by_process.setdefault(os.getpid(), _Thread())
        if not thread.room.acquire(blocking=False):
            raise StoreError("too many calls wait for the database of a store: try again later")
        return thread

    async def run_in(self, thread: _Thread, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do *work* there. It is done even when the caller is cancelled, so that what waits has its bound."""
        future = thread.executor.submit(work, *args, **kwargs)
        future.add_done_callback(lambda _future: thread.room.release())
        return await asyncio.shield(asyncio.wrap_future(future))

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Take room and do *work*."""
        return await self.run_in(self.admit(), work, *args, **kwargs)

    def end(self) -> None:
        """End the thread of this process."""
        thread = self._by_process.pop(os.getpid(), None)
        if thread is not None:
            thread.executor.shutdown(wait=False)


class _Claims:
    """Claims that wait for the thread of a process, stored together."""

    def __init__(self, store: SqliteNonceStore) -> None:
        self._store = store
        self._by_process: dict[int, deque[tuple[tuple[str, str, int], Future[bool]]]] = {}

    def add(self, claim: tuple[str, str, int]) -> Future[bool]:
        """Let a claim wait. Its answer is there when `store_until` has done its work."""
        answer: Future[bool] = Future()
        self._waiting().append((claim, answer))
        return answer

    def store_until(self, answer: Future[bool]) -> bool:
        """Store what waits, the oldest first, until *answer* is there, and give it."""
        waiting = self._waiting()
        while not answer.done():
            self._store_batch([waiting.popleft() for _ in range(min(len(waiting), CLAIM_BATCH))])
        return answer.result()

    def _waiting(self) -> deque[tuple[tuple[str, str, int], Future[bool]]]:
        # A child's is its own: what waited in its parent is not claimed twice.
        return self._by_process.setdefault(os.getpid(), deque())

    def _store_batch(self, batch: Sequence[tuple[tuple[str, str, int], Future[bool]]]) -> None:
        try:
            claimed = self._store.claim_all([claim for claim, _ in batch])
        except BaseException as error:
            for _, answer in batch:
                answer.set_exception(error)
        else:
            for (_, answer), won in zip(batch, claimed, strict=True):
                answer.set_result(won)


class AsyncSqliteNonceStore:
    """
    `SqliteNonceStore` for event loops, with the same arguments. `redflag_core.ports.NonceStore`.

    Safe to share between event loops and threads, and over a fork.
    """

    def __init__(self, path: str | os.PathLike[str], *, table: str = NONCES) -> None:
        self._store = SqliteNonceStore(path, table=table)
        self._claims = _Claims(self._store)
        self._threads = _Threads()
        self.ddl: Final = self._store.ddl

    async def create(self) -> None:
        """See `SqliteNonceStore.create`."""
        await self._threads.run(self._store.create)

    async def claim(self, key_id: str, nonce: str, created: int) -> bool:
        """See `SqliteNonceStore.claim`."""
        check_claim(key_id, nonce, created)
        thread = self._threads.admit()
        answer = self._claims.add((key_id, nonce, created))
        return await self._threads.run_in(thread, self._claims.store_until, answer)

    async def forget(self, horizon: int) -> int:
        """See `SqliteNonceStore.forget`."""
        return await self._threads.run(self._store.forget, horizon)

    async def purge(self, now: datetime) -> int:
        """See `SqliteNonceStore.purge`."""
        return await self._threads.run(self._store.purge, now)

    async def close(self) -> None:
        """Close the connection of this process and end its thread. The next call opens another."""
        await self._threads.run(self._store.close)
        self._threads.end()


class AsyncSqliteRateLimitStore:
    """
    `SqliteRateLimitStore` for event loops, with the same arguments. `redflag_core.ports.RateLimitStore`.

    Safe to share between event loops and threads, and over a fork.
    """

    def __init__(self, path: str | os.PathLike[str], *, table: str = RATE_LIMITS) -> None:
        self._store = SqliteRateLimitStore(path, table=table)
        self._threads = _Threads()
        self.ddl: Final = self._store.ddl

    async def create(self) -> None:
        """See `SqliteRateLimitStore.create`."""
        await self._threads.run(self._store.create)

    async def take(self, key: str, policy: RateLimitPolicy, now: datetime) -> Decision:
        """See `SqliteRateLimitStore.take`."""
        return await self._threads.run(self._store.take, key, policy, now)

    async def purge(self, now: datetime) -> int:
        """See `SqliteRateLimitStore.purge`."""
        return await self._threads.run(self._store.purge, now)

    async def close(self) -> None:
        """Close the connection of this process and end its thread. The next call opens another."""
        await self._threads.run(self._store.close)
        self._threads.end()


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if "no such table" in str(error):
            raise StoreError("the tables of a store are missing: call create(), or run its ddl") from error
        raise StoreError("the database of a store cannot be read or written") from error
