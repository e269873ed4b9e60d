"""
Nonces and rate limits in PostgreSQL through asyncpg.

A store uses the pool that you give it, one statement for each call. It belongs to the process and the event loop
of the pool: make both after a fork. Calls may run at once.

A claim that was answered True is committed. Whether it also survives the power is up to ``synchronous_commit``, as
the database, the role or the pool has it: leave it ``on``, and take a synchronous standby where a promotion must
not forget claims. Rate limits need neither: give their store a pool with ``synchronous_commit=off``, and it no
longer waits for the disk.

Behind a pooler that changes the connection between transactions, make the pool with ``statement_cache_size=0``.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg

from redflag_core.errors import ConfigurationError, StoreError
from redflag_core.stores._postgresql import (
    CREATE_LOCK,
    MISSING_TABLES,
    UNREACHABLE,
    AsyncNonces,
    AsyncRateLimits,
    refuse_other_process,
)
from redflag_core.stores._tables import NONCES, RATE_LIMITS


class AsyncpgNonceStore(AsyncNonces):
    """
    Nonces in a table. `redflag_core.ports.NonceStore`.

    Belongs to the thread, event loop and process of its pool; calls may run at once. After a fork it is refused.

    Args:
        pool: A pool of asyncpg.
        table: Name of the table; another one with ``_horizon`` behind it is beside it.
        schema: Its schema; None for the first one that the connection looks in.

    Raises:
        ConfigurationError: *table* or *schema* is no name, or *pool* is a single connection.
    """

    def __init__(self, pool: "asyncpg.Pool[Any]", *, table: str = NONCES, schema: str | None = None) -> None:
        super().__init__(_Database(pool), table, schema)


class AsyncpgRateLimitStore(AsyncRateLimits):
    """
    Rate limits in a table. `redflag_core.ports.RateLimitStore`.

    Belongs to the thread, event loop and process of its pool; calls may run at once. After a fork it is refused.

    Args:
        pool: A pool of asyncpg.
        table: Name of the table.
        schema: Its schema; None for the first one that the connection looks in.
        database_time: Whether the database's clock counts, and not the *now* of a call: for several machines whose
            clocks may differ by more than a few seconds.

    Raises:
        ConfigurationError: *table* or *schema* is no name, or *pool* is a single connection.
    """

    def __init__(
        self,
        pool: "asyncpg.Pool[Any]",
        *,
        table: str = RATE_LIMITS,
        schema: str | None = None,
        database_time: bool = False,
    ) -> None:
        super().__init__(_Database(pool), table, schema, database_time=database_time)


class _Database:
    """The pool of one process."""

    def __init__(self, pool: "asyncpg.Pool[Any]") -> None:
        if isinstance(pool, asyncpg.Connection):
            raise ConfigurationError("a store needs a pool: a connection may be in a transaction that is undone")
        self._pool = pool
        self._process = os.getpid()

    async def create(self, ddl: str) -> None:
        """Make tables, one caller after the other."""
        refuse_other_process(self._process)
        with _store_errors():
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute(CREATE_LOCK)
                await connection.execute(ddl)

    async def row(self, statement: str, *parameters: Any) -> Any:
        """The one row of a statement that is a transaction by itself, or None."""
        refuse_other_process(self._process)
        with _store_errors():
            try:
                return await self._pool.fetchrow(statement, *parameters)
            except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError):
                # The pool has a stricter isolation level. Nothing was done.
                return await self._row_as_committed(statement, parameters)

    async def _row_as_committed(self, statement: str, parameters: tuple[Any, ...]) -> Any:
        async with self._pool.acquire() as connection, connection.transaction(isolation="read_committed"):
            return await connection.fetchrow(statement, *parameters)


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except asyncpg.UndefinedTableError as error:
        raise StoreError(MISSING_TABLES) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise StoreError(UNREACHABLE) from error
