"""
Nonces and rate limits in PostgreSQL through psycopg, with or without an event loop.

A store takes a function that gives a connection for a ``with`` block: ``pool.connection`` of a pool, or
``partial(psycopg.connect, address)``, which connects anew for each call. It uses one statement for each call and
commits it. It belongs to one process: make it, and the pool, after a fork. It may be called from any thread, as
far as the function may.

A claim that was answered True is committed. Whether it also survives the power is up to ``synchronous_commit``, as
the database, the role or the connection has it: leave it ``on``, and take a synchronous standby where a promotion
must not forget claims. Rate limits need neither: give their store connections with ``synchronous_commit=off``, and
it no longer waits for the disk.
"""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from datetime import datetime
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import errors, pq

from redflag_core.errors import ConfigurationError, StoreError
from redflag_core.freshness import check_claim
from redflag_core.rate_limit import Decision, RateLimitPolicy, check_key
from redflag_core.stores._postgresql import (
    CREATE_LOCK,
    MISSING_TABLES,
    READ_COMMITTED,
    UNREACHABLE,
    AsyncNonces,
    AsyncRateLimits,
    NonceStatements,
    RateLimitStatements,
    moment_of,
    refuse_other_process,
    take_parameters,
    taken,
)
from redflag_core.stores._tables import (
    DELETE_BATCH,
    NONCES,
    RATE_LIMITS,
    horizon_of_forgetting,
    horizon_of_purging,
)

Connections: TypeAlias = Callable[[], AbstractContextManager[psycopg.Connection[Any]]]
"""Gives a connection that is in no transaction."""

AsyncConnections: TypeAlias = Callable[[], AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]]
"""The same for an event loop."""

_CONFLICTS: Final = (errors.SerializationFailure, errors.DeadlockDetected)
"""What a stricter isolation level than READ COMMITTED may answer. Nothing was done then."""


class PsycopgNonceStore:
    """
    Nonces in a table. `redflag_core.ports.SyncNonceStore`.

    Safe to share between the threads of one process, if *connections* is. After a fork it is refused. It blocks:
    an event loop takes `AsyncPsycopgNonceStore`.

    Args:
        connections: Gives a connection for a ``with`` block.
        table: Name of the table; another one with ``_horizon`` behind it is beside it.
        schema: Its schema; None for the first one that the connection looks in.

    Raises:
        ConfigurationError: *table* or *schema* is no name.
    """

    def __init__(self, connections: Connections, *, table: str = NONCES, schema: str | None = None) -> None:
        self._statements = NonceStatements.of(table, schema)
        self._database = _Database(connections)

    @property
    def ddl(self) -> str:
        """The statements that `create` runs, for your own migrations."""
        return self._statements.ddl

    def create(self) -> None:
        """Make the tables. Does nothing when they are there."""
        self._database.create(self.ddl)

    def claim(self, key_id: str, nonce: str, created: int) -> bool:
        """See `redflag_core.stores.sqlite.SqliteNonceStore.claim`."""
        check_claim(key_id, nonce, created)
        return self._database.row(self._statements.claim, key_id, nonce, created) is not None

    def forget(self, horizon: int) -> int:
        """See `redflag_core.stores.sqlite.SqliteNonceStore.forget`."""
        return self._forget_by(horizon_of_forgetting(horizon))

    def purge(self, now: datetime) -> int:
        """See `redflag_core.stores.sqlite.SqliteNonceStore.purge`."""
        return self._forget_by(horizon_of_purging(now))

    def _forget_by(self, move: tuple[int, int, int]) -> int:
        [horizon] = self._database.row(self._statements.move, *move)
        return self._database.delete(self._statements.forget, horizon)


class PsycopgRateLimitStore:
    """
    Rate limits in a table. `redflag_core.ports.SyncRateLimitStore`.

    Safe to share between the threads of one process, if *connections* is. After a fork it is refused. It blocks:
    an event loop takes `AsyncPsycopgRateLimitStore`.

    Args:
        connections: Gives a connection for a ``with`` block.
        table: Name of the table.
        schema: Its schema; None for the first one that the connection looks in.
        database_time: Whether the database's clock counts, and not the *now* of a call: for several machines whose
            clocks may differ by more than a few seconds.

    Raises:
        ConfigurationError: *table* or *schema* is no name.
    """

    def __init__(
        self,
        connections: Connections,
        *,
        table: str = RATE_LIMITS,
        schema: str | None = None,
        database_time: bool = False,
    ) -> None:
        self._statements = RateLimitStatements.of(table, schema)
        self._database = _Database(connections)
        self._database_time = database_time

    @property
    def ddl(self) -> str:
        """The statement that `create` runs, for your own migrations."""
        return self._statements.ddl

    def create(self) -> None:
        """Make the table. Does nothing when it is there."""
        self._database.create(self.ddl)

    def take(self, key: str, policy: RateLimitPolicy, now: datetime) -> Decision:
        """See `redflag_core.stores.sqlite.SqliteRateLimitStore.take`."""
        check_key(key)
        parameters = take_parameters(key, policy, moment_of(now, database_time=self._database_time))
        return taken(self._database.row(self._statements.take, *parameters), policy)

    def purge(self, now: datetime) -> int:
        """See `redflag_core.stores.sqlite.SqliteRateLimitStore.purge`."""
        return self._database.delete(self._statements.purge, moment_of(now, database_time=self._database_time))


class AsyncPsycopgNonceStore(AsyncNonces):
    """
    `PsycopgNonceStore` for event loops. `redflag_core.ports.NonceStore`.

    Belongs to the thread, event loop and process of its connections; calls may run at once, as far as
    *connections* allows. After a fork it is refused.

    Args:
        connections: Gives a connection for an ``async with`` block.
        table: Name of the table; another one with ``_horizon`` behind it is beside it.
        schema: Its schema; None for the first one that the connection looks in.

    Raises:
        ConfigurationError: *table* or *schema* is no name.
    """

    def __init__(self, connections: AsyncConnections, *, table: str = NONCES, schema: str | None = None) -> None:
        super().__init__(_AsyncDatabase(connections), table, schema)


class AsyncPsycopgRateLimitStore(AsyncRateLimits):
    """
    `PsycopgRateLimitStore` for event loops. `redflag_core.ports.RateLimitStore`.

    Belongs to the thread, event loop and process of its connections; calls may run at once, as far as
    *connections* allows. After a fork it is refused.

    Args:
        connections: Gives a connection for an ``async with`` block.
        table: Name of the table.
        schema: Its schema; None for the first one that the connection looks in.
        database_time: Whether the database's clock counts, and not the *now* of a call.

    Raises:
        ConfigurationError: *table* or *schema* is no name.
    """

    def __init__(
        self,
        connections: AsyncConnections,
        *,
        table: str = RATE_LIMITS,
        schema: str | None = None,
        database_time: bool = False,
    ) -> None:
        super().__init__(_AsyncDatabase(connections), table, schema, database_time=database_time)


class _Database:
    """The connections of one process."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._process = os.getpid()

    def create(self, ddl: str) -> None:
        """Make tables, one caller after the other."""
        with self._connection() as connection, connection.transaction():
            connection.execute(CREATE_LOCK.encode())
            connection.execute(ddl.encode())

    def row(self, statement: str, *parameters: Any) -> Any:
        """The one row of a statement that is a transaction by itself, or None."""
        with self._connection() as connection:
            try:
                row = _fetch(connection, statement, parameters)
                connection.commit()
            except _CONFLICTS:
                connection.rollback()
                with connection.transaction():
                    connection.execute(READ_COMMITTED)
                    row = _fetch(connection, statement, parameters)
            return row

    def delete(self, statement: str, first: Any) -> int:
        """Repeat a statement that deletes one batch, until nothing is left."""
        total, deleted = 0, DELETE_BATCH
        while deleted == DELETE_BATCH:
            [deleted] = self.row(statement, first, DELETE_BATCH)
            total += deleted
        return total

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection[Any]]:
        refuse_other_process(self._process)
        with _store_errors(), self._connections() as connection:
            _refuse_transaction(connection.info)
            yield connection


class _AsyncDatabase:
    """The connections of one process and event loop."""

    def __init__(self, connections: AsyncConnections) -> None:
        self._connections = connections
        self._process = os.getpid()

    async def create(self, ddl: str) -> None:
        """Make tables, one caller after the other."""
        async with self._connection() as connection, connection.transaction():
            await connection.execute(CREATE_LOCK.encode())
            await connection.execute(ddl.encode())

    async def row(self, statement: str, *parameters: Any) -> Any:
        """The one row of a statement that is a transaction by itself, or None."""
        async with self._connection() as connection:
            try:
                row = await _fetch_async(connection, statement, parameters)
                await connection.commit()
            except _CONFLICTS:
                await connection.rollback()
                async with connection.transaction():
                    await connection.execute(READ_COMMITTED)
                    row = await _fetch_async(connection, statement, parameters)
            return row

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        refuse_other_process(self._process)
        with _store_errors():
            async with self._connections() as connection:
                _refuse_transaction(connection.info)
                yield connection


# Raw cursors read $1 as the server does: both drivers send the same text.
def _fetch(connection: psycopg.Connection[Any], statement: str, parameters: tuple[Any, ...]) -> Any:
    with psycopg.RawCursor(connection) as cursor:
        return cursor.execute(statement.encode(), parameters).fetchone()


async def _fetch_async(
    connection: psycopg.AsyncConnection[Any], statement: str, parameters: tuple[Any, ...]
) -> Any:
    async with psycopg.AsyncRawCursor(connection) as cursor:
        await cursor.execute(statement.encode(), parameters)
        return await cursor.fetchone()


def _refuse_transaction(info: psycopg.ConnectionInfo) -> None:
    if info.transaction_status != pq.TransactionStatus.IDLE:
        raise ConfigurationError(
            "a store needs connections that are in no transaction: it would be committed, or undone"
        )


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except errors.UndefinedTable as error:
        raise StoreError(MISSING_TABLES) from error
    except psycopg.Error as error:
        raise StoreError(UNREACHABLE) from error
