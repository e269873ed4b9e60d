"""
One database, two kinds of transaction: `Database.read` and `Database.write`.

With SQLite writers take turns in this process. With PostgreSQL they run side by side, here and in other processes,
as READ COMMITTED: what must not change between reading and writing is locked. The lock of a machine's record is
that of all that belongs to it; see `agents.locks`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, Final
from uuid import UUID

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import ORMExecuteState, Session

from redflag_server.db import postgresql, sqlite

_WAKE = "redflag_wake"
_READS: Final[Mapping[str, Mapping[str, Any]]] = {
    # One consistent state for all statements, as SQLite gives it.
    "postgresql": {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True},
    "sqlite": {},
}
_WRITES: Final[Mapping[str, Mapping[str, Any]]] = {"postgresql": {}, "sqlite": {sqlite.WRITER: True}}


class Database:
    """
    The engine and its two kinds of transaction. Belongs to one event loop.

    Args:
        url: ``sqlite+aiosqlite:///...`` or ``postgresql://...``.
        foreign_keys: Whether SQLite enforces them, and statements of PostgreSQL have a time limit. Only a change
            of the schema goes without: SQLite makes tables anew for it, and dropping the old one would delete
            everything that points to it.
        engine: A host's engine for the same database, not used yet; None makes one. It gets the listeners of
            `sqlite.prepare` or `postgresql.prepare`, transactions are the same, and it is the host's to close.
    """

    def __init__(self, url: str, *, foreign_keys: bool = True, engine: AsyncEngine | None = None) -> None:
        self.url = url
        self.is_postgresql = postgresql.is_postgresql(url)
        self._is_of_host = engine is not None
        self.engine: AsyncEngine = engine or (
            postgresql.make_engine(url, bounded=foreign_keys)
            if self.is_postgresql
            else sqlite.make_engine(url, foreign_keys=foreign_keys)
        )
        if engine is not None:
            (postgresql if self.is_postgresql else sqlite).prepare(engine)
        self._sessions = async_sessionmaker(self.engine, sync_session_class=_Session, expire_on_commit=False)
        self._turn: AbstractAsyncContextManager[Any] = nullcontext() if self.is_postgresql else asyncio.Lock()
        self.on_wake: Callable[[UUID], None] = lambda _agent_id: None
        """Called for each agent of `wake_after_commit`, once what it is woken for can be seen."""
        self.before_close: list[Callable[[], Awaitable[None]]] = []
        """Give back connections that are none of the engine's."""

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session in a transaction that reads one consistent state and is rolled back at the end."""
        async with self._sessions() as session:
            await session.connection(execution_options=_READS[self.engine.dialect.name])
            yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A session in a transaction that is durably committed when the block ends, or rolled back whole."""
        async with self._turn, self._sessions() as session:
            await session.connection(execution_options=_WRITES[self.engine.dialect.name])
            yield session
            await session.commit()
        for agent_id in session.info.pop(_WAKE, ()):
            self.on_wake(agent_id)

    def turn(self) -> AbstractAsyncContextManager[Any]:
        """The turn of one writer of SQLite, for who writes without a session. With PostgreSQL nobody waits."""
        return self._turn

    async def close(self) -> None:
        """Give every connection back, unless the engine is a host's."""
        while self.before_close:
            await self.before_close.pop()()
        if not self._is_of_host:
            await self.engine.dispose()


def wake_after_commit(session: AsyncSession, agent_id: UUID) -> None:
    """
    Let the check-in that an agent holds open look again, as soon as this transaction is committed.

    Args:
        session: The open write transaction. If it is rolled back, nobody is woken.
        agent_id: The agent.
    """
    session.info.setdefault(_WAKE, set()).add(agent_id)


class _Session(Session):
    """What reads a row that had to be waited for again: it may be another than the session has read before."""


@event.listens_for(_Session, "do_orm_execute")
def _read_what_is_locked(state: ORMExecuteState) -> None:
    if state.is_select and getattr(state.statement, "_for_update_arg", None) is not None:
        state.update_execution_options(populate_existing=True)
