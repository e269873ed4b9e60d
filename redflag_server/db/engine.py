"""
One database, two kinds of transaction: `Database.read` and `Database.write`.

SQLite is opened in WAL mode with ``synchronous=FULL``: a commit that was acknowledged survives a power cut.
Its writers take turns in this process, and begin with ``BEGIN IMMEDIATE``, so that none fails in the middle
because another process (the command line) writes too.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

from advanced_alchemy.config import AsyncSessionConfig, EngineConfig, SQLAlchemyAsyncConfig
from sqlalchemy import Connection, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

BUSY_TIMEOUT_MS: Final = 10_000
"""How long SQLite waits for another process' write lock, once it is a writer's turn in this one, before a 503."""

_WRITER = "redflag_writer"
_WAKE = "redflag_wake"


class Database:
    """
    The engine and its two kinds of transaction. Belongs to one event loop.

    Args:
        url: SQLAlchemy URL, ``sqlite+aiosqlite:///...``.
        foreign_keys: Whether SQLite enforces them. Only a change of the schema goes without: it makes tables anew,
            and dropping the old one would delete everything that points to it.
    """

    def __init__(self, url: str, *, foreign_keys: bool = True) -> None:
        self.url = url
        self.config = SQLAlchemyAsyncConfig(
            connection_string=url,
            engine_config=EngineConfig(pool_pre_ping=False),
            session_config=AsyncSessionConfig(expire_on_commit=False),
        )
        self.engine: AsyncEngine = self.config.get_engine()
        self._sessions = self.config.create_session_maker()
        self._turn = asyncio.Lock()
        self.on_wake: Callable[[UUID], None] = lambda _agent_id: None
        """Called for each agent of `wake_after_commit`, once what it is woken for can be seen."""
        _set_up_sqlite(self.engine, foreign_keys=foreign_keys)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session in a transaction that reads one consistent state and is rolled back at the end."""
        async with self._sessions() as session:
            yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A session in a transaction that is durably committed when the block ends, or rolled back whole."""
        async with self._turn, self._sessions() as session:
            await session.connection(execution_options={_WRITER: True})
            yield session
            await session.commit()
        for agent_id in session.info.pop(_WAKE, ()):
            self.on_wake(agent_id)

    async def close(self) -> None:
        """Give every connection back."""
        await self.engine.dispose()


def wake_after_commit(session: AsyncSession, agent_id: UUID) -> None:
    """
    Let the check-in that an agent holds open look again, as soon as this transaction is committed.

    Args:
        session: The open write transaction. If it is rolled back, nobody is woken.
        agent_id: The agent.
    """
    session.info.setdefault(_WAKE, set()).add(agent_id)


def _set_up_sqlite(engine: AsyncEngine, *, foreign_keys: bool) -> None:
    pragmas = (
        "journal_mode=WAL",
        "synchronous=FULL",
        f"foreign_keys={'ON' if foreign_keys else 'OFF'}",
        f"busy_timeout={BUSY_TIMEOUT_MS}",
    )

    def on_connect(connection: DBAPIConnection, _record: Any) -> None:
        # The driver must not begin transactions by itself: _on_begin does, and says which kind.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    event.listen(engine.sync_engine, "connect", on_connect)
    event.listen(engine.sync_engine, "begin", _on_begin)


def _on_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITER, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
