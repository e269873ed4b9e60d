"""
Plain check-ins on SQLite: one transaction for each batch, on the one thread that writes them.

The statements are as small as they look: from one thread to the next costs more than all of them.
"""

import asyncio
import json
import sqlite3
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import attrs
from sqlalchemy.exc import OperationalError

from redflag_core.command_queue import UNACCEPTED
from redflag_server.checkin.picture import Judge, Known, Mark, Member, NonceUse, Picture, Trust
from redflag_server.db.engine import Database
from redflag_server.db.sqlite import connect

MEMBERS: Final = """\
SELECT key_id, status, token_version, evidence_digest, boot_id, previous_boot_id,
    mismatch_since IS NOT NULL AS mismatched, epoch, gen, seq, order_at, rate_arrival,
    EXISTS (
        SELECT 1 FROM commands WHERE agent_id = agents.id AND state IN (SELECT value FROM json_each(?))
    ) AS ordered
FROM agents WHERE id = ?"""
UNACCEPTED_STATES: Final = json.dumps(sorted(UNACCEPTED))

SCANS: Final = "SELECT name, status, inventory_hash, content, taken_at FROM scanners WHERE agent_id = ?"

CLAIM: Final = "INSERT INTO nonces (created, key_id, nonce) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"

STATE: Final = "SELECT nonce_horizon, epoch FROM server_state"
BUNDLE: Final = """\
SELECT version, digest FROM trust_documents WHERE kind = 'bundle' ORDER BY version DESC LIMIT 1"""

CHARGE: Final = "UPDATE agents SET rate_arrival = ? WHERE id = ?"
SEE: Final = """\
UPDATE agents SET rate_arrival = ?, last_seen_at = ?, last_match_at = ?, last_address = ?, order_at = ?,
    next_check_in_at = ?
WHERE id = ?"""


@attrs.define(eq=False)
class SqliteGate:
    """
    Asks SQLite about batches. Belongs to one event loop.

    Args:
        database: The database; its other writers wait meanwhile, as this one waits for them.
    """

    _database: Database
    _connection: sqlite3.Connection | None = attrs.field(default=None, init=False)
    _thread: ThreadPoolExecutor = attrs.field(
        factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="check-in"), init=False
    )

    async def run(
        self, uses: AbstractSet[NonceUse], agents: AbstractSet[UUID], judge: Judge, now: datetime
    ) -> AbstractSet[UUID]:
        """See `picture.Gate.run`. All of it is one transaction, so that everything can be stored."""
        async with self._database.turn():
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._thread, self._run, uses, agents, judge, now)
        return frozenset()

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, connection.close)
        self._thread.shutdown()

    def _run(self, uses: AbstractSet[NonceUse], agents: AbstractSet[UUID], judge: Judge, now: datetime) -> None:
        try:
            connection = self._open()
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                _store(connection, judge(_read(connection, uses, agents)), now)
        except sqlite3.OperationalError as error:
            raise OperationalError("check-in", None, error) from error

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = connect(self._database.url)
            self._database.before_close.append(self.close)
        return self._connection


def _read(connection: sqlite3.Connection, uses: AbstractSet[NonceUse], agents: AbstractSet[UUID]) -> Picture:
    horizon, epoch = connection.execute(STATE).fetchone()
    version, digest = connection.execute(BUNDLE).fetchone()
    free = {use for use in uses if use.created > horizon and _claim(connection, use)}
    members = (_member(connection, agent) for agent in agents)
    known = {member.id: member for member in members if member is not None}
    return Picture(horizon, free, known, Trust(epoch, version, digest))


def _claim(connection: sqlite3.Connection, use: NonceUse) -> bool:
    return connection.execute(CLAIM, use).rowcount == 1


def _member(connection: sqlite3.Connection, agent_id: UUID) -> Member | None:
    cursor = connection.execute(MEMBERS, (UNACCEPTED_STATES, agent_id.bytes))
    cursor.row_factory = sqlite3.Row
    row = cursor.fetchone()
    return None if row is None else Member(id=agent_id, scans=_scans(connection, agent_id), **dict(row))


def _scans(connection: sqlite3.Connection, agent_id: UUID) -> Mapping[str, Known]:
    rows = connection.execute(SCANS, (agent_id.bytes,))
    return {name: Known(status, held, content, _moment(at)) for name, status, held, content, at in rows}


def _store(connection: sqlite3.Connection, marks: Iterable[Mark], now: datetime) -> None:
    for mark in marks:
        if mark.seen is None:
            connection.execute(CHARGE, (mark.rate_arrival, mark.id.bytes))
            continue
        seen = mark.seen
        moments = (_text(now), _text(now), seen.last_address, seen.order_at, _text(seen.next_check_in_at))
        connection.execute(SEE, (mark.rate_arrival, *moments, mark.id.bytes))


def _text(moment: datetime) -> str:
    """A moment as SQLAlchemy stores it in SQLite."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
