"""
Plain check-ins on PostgreSQL: two statements for each batch, on one connection that does nothing else.

The first claims the nonces and reads; it is a transaction by itself, so that a nonce is used whatever comes after.
The second stores, for records that are still those that were read. A record that changed in between, on another
replica perhaps, is left alone, and its requests are handled with locks. Nothing is locked between the two.

Nonces are inserted, and records locked, in sorted order: crossing batches of two replicas do not wait in a circle.
"""

import json
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
import attrs
from sqlalchemy.exc import OperationalError

from redflag_core.command_queue import UNACCEPTED
from redflag_server.checkin.picture import Judge, Known, Mark, Member, NonceUse, Picture, Trust
from redflag_server.db.engine import Database
from redflag_server.db.postgresql import NOT_NOW

CLAIM_AND_READ: Final = """\
WITH state AS MATERIALIZED (
    SELECT nonce_horizon, epoch FROM server_state FOR SHARE
), claimed AS (
    INSERT INTO nonces (created, key_id, nonce)
    SELECT DISTINCT used.created, used.key_id, used.nonce
    FROM unnest($1::bigint[], $2::text[], $3::text[]) AS used (created, key_id, nonce), state
    WHERE used.created > state.nonce_horizon
    ORDER BY 1, 2, 3
    ON CONFLICT DO NOTHING
    RETURNING created, key_id, nonce
), free AS (
    SELECT key_id, array_agg(created) AS moments, array_agg(nonce::text) AS nonces FROM claimed GROUP BY key_id
), bundle AS (
    SELECT version, digest FROM trust_documents WHERE kind = 'bundle' ORDER BY version DESC LIMIT 1
)
SELECT state.nonce_horizon, state.epoch AS bundle_epoch, bundle.version AS bundle_version, bundle.digest,
    free.moments, free.nonces,
    agents.id, agents.xmin::text AS version, agents.key_id, agents.status, agents.token_version,
    agents.evidence_digest, agents.boot_id, agents.previous_boot_id,
    agents.mismatch_since IS NOT NULL AS mismatched, agents.epoch, agents.gen, agents.seq, agents.order_at,
    agents.rate_arrival,
    EXISTS (
        SELECT FROM commands
        WHERE agent_id = agents.id AND state = ANY ($5::text[])
    ) AS ordered,
    (
        SELECT json_agg(json_build_array(
            name, status, inventory_hash, content, extract(epoch FROM taken_at)
        )) FROM scanners WHERE agent_id = agents.id
    )::text AS scans
FROM state CROSS JOIN bundle
LEFT JOIN agents ON agents.id = ANY ($4::uuid[])
LEFT JOIN free ON free.key_id = agents.key_id"""

STORE: Final = """\
WITH mark AS (
    SELECT * FROM unnest(
        $1::uuid[], $2::text[], $3::float8[], $4::timestamptz[], $5::text[], $6::bigint[], $7::timestamptz[]
    ) AS mark (id, version, rate_arrival, seen_at, address, order_at, next_at)
), unchanged AS MATERIALIZED (
    SELECT agents.id FROM agents JOIN mark USING (id)
    WHERE agents.xmin::text = mark.version
    ORDER BY agents.id FOR NO KEY UPDATE OF agents
)
UPDATE agents SET
    rate_arrival = mark.rate_arrival,
    last_seen_at = coalesce(mark.seen_at, last_seen_at),
    last_match_at = coalesce(mark.seen_at, last_match_at),
    last_address = coalesce(mark.address, last_address),
    order_at = coalesce(mark.order_at, agents.order_at),
    next_check_in_at = coalesce(mark.next_at, next_check_in_at)
FROM mark JOIN unchanged USING (id)
WHERE agents.id = mark.id
RETURNING agents.id"""


@attrs.define(eq=False)
class PostgresqlGate:
    """
    Asks PostgreSQL about batches, one after the other. Belongs to one event loop.

    Args:
        database: The database, reached with asyncpg.
    """

    _database: Database
    _connection: Any = attrs.field(default=None, init=False)

    async def run(
        self, uses: AbstractSet[NonceUse], agents: AbstractSet[UUID], judge: Judge, now: datetime
    ) -> AbstractSet[UUID]:
        """See `picture.Gate.run`."""
        claims = [(use.created, use.key_id, use.nonce) for use in sorted(uses)]
        picture = _picture(
            await self._fetch(CLAIM_AND_READ, *zip(*claims, strict=True), list(agents), list(UNACCEPTED))
        )
        marks = judge(picture)
        stored = {row["id"] for row in await self._fetch(STORE, *_columns(marks, now))} if marks else set()
        return {mark.id for mark in marks} - stored

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _fetch(self, statement: str, *arguments: Any) -> list[Any]:
        """Run one statement; a second time when it lost against another transaction, and left nothing behind."""
        try:
            try:
                rows: list[Any] = await (await self._open()).fetch(statement, *arguments)
            except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
                rows = await (await self._open()).fetch(statement, *arguments)
        except (OSError, TimeoutError, asyncpg.InterfaceError) as error:
            raise OperationalError("check-in", None, error, hide_parameters=True) from error
        except asyncpg.PostgresError as error:
            if (error.sqlstate or "").startswith(NOT_NOW):
                raise OperationalError("check-in", None, error, hide_parameters=True) from error
            raise
        return rows

    async def _open(self) -> Any:
        if self._connection is None or self._connection.is_closed():
            pooled = await self._database.engine.raw_connection()
            self._connection = pooled.driver_connection
            pooled.detach()  # a batch never waits for a place in the pool
            self._database.before_close.append(self.close)
        return self._connection


def _picture(rows: Sequence[Any]) -> Picture:
    first = rows[0]
    return Picture(
        first["nonce_horizon"],
        {use for row in rows for use in _free(row)},
        {row["id"]: _member(row) for row in rows if row["id"] is not None},
        Trust(first["bundle_epoch"], first["bundle_version"], first["digest"]),
    )


def _free(row: Any) -> Iterable[NonceUse]:
    for created, nonce in zip(row["moments"] or (), row["nonces"] or (), strict=True):
        yield NonceUse(created, row["key_id"], nonce)


def _member(row: Any) -> Member:
    scans = json.loads(row["scans"] or "[]")
    known = {name: Known(status, held, content, _moment(at)) for name, status, held, content, at in scans}
    return Member(scans=known, **{name: row[name] for name in _COLUMNS})


_COLUMNS: Final = tuple(field.name for field in attrs.fields(Member) if field.name != "scans")


def _columns(marks: Iterable[Mark], now: datetime) -> list[tuple[Any, ...]]:
    rows = []
    for mark in marks:
        left = (None,) * 4 if mark.seen is None else (now, *attrs.astuple(mark.seen))
        rows.append((mark.id, mark.version, mark.rate_arrival, *left))
    return list(zip(*rows, strict=True))


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)
