"""
Stores in PostgreSQL, but for the driver. Values are always parameters; only names of tables are in the text.

Each verb is one statement, at the isolation level READ COMMITTED:

- A claim locks the row of the horizon in share mode and inserts. Without the lock, a claim that began before a
  purge stored its horizon could end after the purge deleted the nonce, and a replay would pass. The lock was
  measured: it costs nothing that can be seen, and a purge waits for milliseconds under full load.
- A rate limit does the arithmetic of `redflag_core.rate_limit.step` in SQL, on double precision like Python, so
  the results are the same to the last bit. Locking the row and doing the step in Python was measured too: it has
  half of the throughput over many keys and less over one, as the row is locked while two more answers travel.
"""

import os
from datetime import datetime
from typing import Any, Final, Protocol

import attrs

from redflag_core.errors import ConfigurationError
from redflag_core.freshness import check_claim, unix
from redflag_core.rate_limit import CLOCK_STEP, EPSILON, Decision, RateLimitPolicy, check_key, decision_of
from redflag_core.stores._tables import (
    DELETE_BATCH,
    filled,
    horizon_of_forgetting,
    horizon_of_purging,
    quoted,
)

MISSING_TABLES: Final = "the tables of a store are missing: call create(), or run its ddl"
UNREACHABLE: Final = "the database of a store does not answer, or not as it should"

READ_COMMITTED: Final = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"

CREATE_LOCK: Final = "SELECT pg_advisory_xact_lock(8243108414206178151)"
"""Taken before tables are made: two that do it at once fail in spite of IF NOT EXISTS. The number is any."""

_NONCE_DDL = """\
CREATE TABLE IF NOT EXISTS {nonces} (
    created bigint NOT NULL,
    key_id text COLLATE "C" NOT NULL,
    nonce text COLLATE "C" NOT NULL,
    PRIMARY KEY (created, key_id, nonce)
);
CREATE TABLE IF NOT EXISTS {horizon} (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    horizon bigint NOT NULL
);
INSERT INTO {horizon} (horizon) VALUES (0) ON CONFLICT DO NOTHING;
"""

_CLAIM = """\
WITH present AS MATERIALIZED (SELECT horizon FROM {horizon} FOR SHARE)
INSERT INTO {nonces} (key_id, nonce, created)
SELECT $1::text, $2::text, $3::bigint FROM present WHERE $3::bigint > present.horizon
ON CONFLICT DO NOTHING
RETURNING true"""

_MOVE = """\
UPDATE {horizon}
SET horizon = CASE WHEN horizon > $1::bigint THEN $2::bigint ELSE greatest(horizon, $3::bigint) END
RETURNING horizon"""

_FORGET = """\
WITH gone AS (
    DELETE FROM {nonces} WHERE (created, key_id, nonce) IN (
        SELECT created, key_id, nonce FROM {nonces} WHERE created <= $1::bigint LIMIT $2::bigint
    )
    RETURNING true
)
SELECT count(*) FROM gone"""

_LIMIT_DDL = """\
CREATE TABLE IF NOT EXISTS {limits} (
    key text COLLATE "C" PRIMARY KEY,
    arrival double precision NOT NULL,
    allowed boolean NOT NULL
) WITH (fillfactor = 50);
"""

# $1 key, $2 interval, $3 capacity, $4 now or null for the time of the database: all in seconds.
_TAKE = """\
WITH clock AS MATERIALIZED (
    SELECT coalesce($4::float8, extract(epoch FROM statement_timestamp())::float8) AS now
)
INSERT INTO {limits} AS held (key, arrival, allowed)
SELECT $1::text, clock.now + $2::float8, true FROM clock
ON CONFLICT (key) DO UPDATE SET (arrival, allowed) = (
    SELECT CASE WHEN fits THEN base + $2::float8 ELSE base END, fits
    FROM (
        SELECT base, base + $2::float8 - now - $3::float8 <= {epsilon}::float8 AS fits
        FROM (
            SELECT now, CASE
                WHEN greatest(held.arrival, now) > now + $3::float8 + {clock_step}::float8
                THEN now + $3::float8 - $2::float8
                ELSE greatest(held.arrival, now)
            END AS base
            FROM clock
        ) AS started
    ) AS judged
)
RETURNING arrival, allowed, (SELECT now FROM clock)"""

# The second condition is judged again for a row that changed meanwhile.
_PURGE = """\
WITH gone AS (
    DELETE FROM {limits} WHERE key IN (
        SELECT key FROM {limits} WHERE arrival <= coalesce(
            $1::float8, extract(epoch FROM statement_timestamp())::float8
        ) - {clock_step}::float8 LIMIT $2::bigint
    ) AND arrival <= coalesce(
        $1::float8, extract(epoch FROM statement_timestamp())::float8
    ) - {clock_step}::float8
    RETURNING true
)
SELECT count(*) FROM gone"""


@attrs.frozen
class NonceStatements:
    """
    The statements of a nonce store.

    Attributes:
        ddl: Makes the tables. Does nothing when they are there.
        claim: Gives a row when the nonce was free.
        move: Stores the horizon and gives it.
        forget: Deletes one batch below the horizon and gives its size.
    """

    ddl: str
    claim: str
    move: str
    forget: str

    @classmethod
    def of(cls, table: str, schema: str | None) -> "NonceStatements":
        """
        The statements for the table of this name, and the one beside it.

        Raises:
            ConfigurationError: A name is not one.
        """
        names = {
            "{nonces}": quoted(table, schema=schema),
            "{horizon}": quoted(table, schema=schema, suffix="_horizon"),
        }
        return cls(*(filled(text, names) for text in (_NONCE_DDL, _CLAIM, _MOVE, _FORGET)))


@attrs.frozen
class RateLimitStatements:
    """
    The statements of a rate limit store.

    Attributes:
        ddl: Makes the table. Does nothing when it is there.
        take: Charges one request and gives what was stored, whether it was allowed, and the time.
        purge: Deletes one batch of keys that are full again and gives its size.
    """

    ddl: str
    take: str
    purge: str

    @classmethod
    def of(cls, table: str, schema: str | None) -> "RateLimitStatements":
        """
        The statements for the table of this name.

        Raises:
            ConfigurationError: A name is not one.
        """
        names = {
            "{limits}": quoted(table, schema=schema),
            "{epsilon}": repr(EPSILON),
            "{clock_step}": repr(CLOCK_STEP),
        }
        return cls(*(filled(text, names) for text in (_LIMIT_DDL, _TAKE, _PURGE)))


class AsyncDatabase(Protocol):
    """What a driver for event loops does for a store."""

    async def create(self, ddl: str) -> None:
        """Make tables, one caller after the other."""
        ...

    async def row(self, statement: str, *parameters: Any) -> Any:
        """The one row of a statement that is a transaction by itself, or None."""
        ...


class AsyncNonces:
    """Nonces in a table, through any driver for event loops."""

    def __init__(self, database: AsyncDatabase, table: str, schema: str | None) -> None:
        self._database = database
        self._statements = NonceStatements.of(table, schema)

    @property
    def ddl(self) -> str:
        """The statements that `create` runs, for your own migrations."""
        return self._statements.ddl

    async def create(self) -> None:
        """Make the tables. Does nothing when they are there."""
        await self._database.create(self.ddl)

    async def claim(self, key_id: str, nonce: str, created: int) -> bool:
        """See `redflag_core.stores.sqlite.SqliteNonceStore.claim`."""
        check_claim(key_id, nonce, created)
        return await self._database.row(self._statements.claim, key_id, nonce, created) is not None

    async def forget(self, horizon: int) -> int:
        """See `redflag_core.stores.sqlite.SqliteNonceStore.forget`."""
        return await self._forget_by(horizon_of_forgetting(horizon))

    async def purge(self, now: datetime) -> int:
        """See `redflag_core.stores.sqlite.SqliteNonceStore.purge`."""
        return await self._forget_by(horizon_of_purging(now))

    async def _forget_by(self, move: tuple[int, int, int]) -> int:
        [horizon] = await self._database.row(self._statements.move, *move)
        return await _delete(self._database, self._statements.forget, horizon)


class AsyncRateLimits:
    """Rate limits in a table, through any driver for event loops."""

    def __init__(self, database: AsyncDatabase, table: str, schema: str | None, *, database_time: bool) -> None:
        self._database = database
        self._statements = RateLimitStatements.of(table, schema)
        self._database_time = database_time

    @property
    def ddl(self) -> str:
        """The statement that `create` runs, for your own migrations."""
        return self._statements.ddl

    async def create(self) -> None:
        """Make the table. Does nothing when it is there."""
        await self._database.create(self.ddl)

    async def take(self, key: str, policy: RateLimitPolicy, now: datetime) -> Decision:
        """See `redflag_core.stores.sqlite.SqliteRateLimitStore.take`."""
        check_key(key)
        parameters = take_parameters(key, policy, moment_of(now, database_time=self._database_time))
        return taken(await self._database.row(self._statements.take, *parameters), policy)

    async def purge(self, now: datetime) -> int:
        """See `redflag_core.stores.sqlite.SqliteRateLimitStore.purge`."""
        moment = moment_of(now, database_time=self._database_time)
        return await _delete(self._database, self._statements.purge, moment)


def take_parameters(key: str, policy: RateLimitPolicy, moment: float | None) -> tuple[Any, ...]:
    """What `RateLimitStatements.take` is sent with."""
    return key, policy.interval, policy.burst * policy.interval, moment


def taken(row: Any, policy: RateLimitPolicy) -> Decision:
    """What the row of `RateLimitStatements.take` means."""
    stored, allowed, moment = row
    return decision_of(stored, moment, policy, allowed=allowed)


def moment_of(now: datetime, *, database_time: bool) -> float | None:
    """Unix seconds; None for the time of the database."""
    return None if database_time else unix(now)


def refuse_other_process(process: int) -> None:
    """
    Check that this is the process that a store was made in.

    Args:
        process: Id of that process.

    Raises:
        ConfigurationError: It is a child: both would talk over the same connection.
    """
    if process != os.getpid():
        raise ConfigurationError("this store was made before a fork: make the connections and the store after it")


async def _delete(database: AsyncDatabase, statement: str, first: Any) -> int:
    """Repeat a statement that deletes one batch, until nothing is left."""
    total, deleted = 0, DELETE_BATCH
    while deleted == DELETE_BATCH:
        [deleted] = await database.row(statement, first, DELETE_BATCH)
        total += deleted
    return total
