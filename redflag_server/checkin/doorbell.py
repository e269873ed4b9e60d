"""
Waking check-ins that another replica holds open: a doorbell over PostgreSQL's NOTIFY.

It is rung after the commit, in a transaction of its own: NOTIFY holds a lock of the whole server until its commit
is over. What is said is a hint, which agents to look for, and whoever hears it looks for itself. A signal can be
lost, with its connection for example; so each replica looks every `LOOK_SECONDS` at the agents that wait with it.

It needs a connection to the database itself: a pooler in between hands none of this on.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any, Final
from uuid import UUID

import asyncpg
import attrs
from sqlalchemy.exc import SQLAlchemyError

from redflag_core.command_queue import CommandState
from redflag_core.ports import Clock
from redflag_server.checkin.waiting import Waiting
from redflag_server.db.engine import Database
from redflag_server.runtime import Runtime

logger = logging.getLogger(__name__)

CHANNEL: Final = "redflag_wake"
LOOK_SECONDS: Final = 5
"""How late a command can be when its signal was lost."""

NAMES_AT_ONCE: Final = 200
"""Agents in one signal: PostgreSQL takes 8,000 bytes, an agent has 33."""

RING: Final = "SELECT pg_notify($1, $2)"
DUE: Final = """\
SELECT DISTINCT agent_id FROM commands
WHERE agent_id = ANY ($1::uuid[]) AND state = $2 AND (not_before IS NULL OR not_before <= $3)"""

_LOST: Final = (OSError, TimeoutError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError)


@asynccontextmanager
async def doorbell(runtime: Runtime) -> AsyncIterator["Doorbell | None"]:
    """A doorbell until the end of the block, on a database that other replicas may use too."""
    if not runtime.database.is_postgresql:
        yield None
        return
    bell = Doorbell(runtime.database, runtime.waiting, runtime.clock)
    await bell.look()
    runtime.database.on_wake = bell.wake
    task = asyncio.create_task(bell.keep_looking())
    try:
        yield bell
    finally:
        runtime.database.on_wake = runtime.waiting.wake
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await bell.close()


@attrs.define(eq=False)
class Doorbell:
    """
    One replica's doorbell. Belongs to one event loop.

    Args:
        database: The database.
        waiting: The check-ins that this replica holds open.
        clock: Time, with which commands are due.
    """

    _database: Database
    _waiting: Waiting
    _clock: Clock
    _connection: Any = attrs.field(default=None, init=False)
    _turn: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False)
    _to_ring: dict[UUID, None] = attrs.field(factory=dict, init=False)
    _ringing: "asyncio.Task[None] | None" = attrs.field(default=None, init=False)

    def wake(self, agent_id: UUID) -> None:
        """Let an agent's check-in look again, wherever it is held open. What comes meanwhile rings together."""
        self._waiting.wake(agent_id)
        self._to_ring[agent_id] = None
        if self._ringing is None:
            self._ringing = asyncio.create_task(self._ring())

    async def keep_looking(self) -> None:
        """Look again and again, for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Listen, anew if the connection was lost, and wake whom a signal may have been lost for."""
        agents = self._waiting.agents()
        due = await self._fetch(DUE, agents, CommandState.PENDING, self._clock.now())
        for row in due:
            self._waiting.wake(row["agent_id"])

    async def close(self) -> None:
        """Ring what is to be rung, and give the connection back."""
        if self._ringing is not None:
            await self._ringing
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(*_LOST):
                await connection.close()

    async def _ring(self) -> None:
        try:
            while self._to_ring:
                agents = list(islice(self._to_ring, NAMES_AT_ONCE))
                for agent in agents:
                    del self._to_ring[agent]
                await self._fetch(RING, CHANNEL, " ".join(agent.hex for agent in agents))
        finally:
            self._ringing = None

    async def _fetch(self, statement: str, *arguments: Any) -> list[Any]:
        """The rows; none when the database cannot be asked now, for the next look is soon."""
        try:
            async with self._turn:
                rows: list[Any] = await (await self._open()).fetch(statement, *arguments)
                return rows
        except _LOST as error:
            logger.warning("the doorbell of the database is out of order: %s", type(error).__name__)
            return []

    async def _open(self) -> Any:
        if self._connection is None or self._connection.is_closed():
            pooled = await self._database.engine.raw_connection()
            self._connection = pooled.driver_connection
            pooled.detach()
            await self._connection.add_listener(CHANNEL, self._heard)
        return self._connection

    def _heard(self, connection: Any, pid: int, _channel: str, agents: str) -> None:
        if pid == connection.get_server_pid():  # this replica's own: it did so before it rang
            return
        for agent in agents.split():
            with contextlib.suppress(ValueError):
                self._waiting.wake(UUID(hex=agent))
