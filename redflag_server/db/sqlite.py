"""
SQLite: opened in WAL mode with ``synchronous=FULL``, so that a commit that was acknowledged survives a power cut.

A writer begins with ``BEGIN IMMEDIATE``: it does not fail in the middle because another process writes too.
"""

import sqlite3
from typing import Any, Final

from advanced_alchemy.config import EngineConfig, SQLAlchemyAsyncConfig
from sqlalchemy import Connection, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine

BUSY_TIMEOUT_MS: Final = 10_000
"""How long SQLite waits for another process' write lock, once it is a writer's turn in this one, before a 503."""

WRITER: Final = "redflag_writer"
"""Execution option of a connection whose transaction writes."""


def make_engine(url: str, *, foreign_keys: bool = True) -> AsyncEngine:
    """
    An engine of one event loop.

    Args:
        url: ``sqlite+aiosqlite:///...``.
        foreign_keys: Whether they are enforced.
    """
    config = SQLAlchemyAsyncConfig(connection_string=url, engine_config=EngineConfig(pool_pre_ping=False))
    engine: AsyncEngine = config.get_engine()
    prepare(engine, foreign_keys=foreign_keys)
    return engine


def prepare(engine: AsyncEngine, *, foreign_keys: bool = True) -> None:
    """Let every connection of an engine, ours or a host's, be opened as this module says."""

    def on_connect(connection: DBAPIConnection, _record: Any) -> None:
        # The driver must not begin transactions by itself: _on_begin does, and says which kind.
        connection.isolation_level = None
        _set(connection, foreign_keys=foreign_keys)

    event.listen(engine.sync_engine, "connect", on_connect)
    event.listen(engine.sync_engine, "begin", _on_begin)


def _on_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITER, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def connect(url: str) -> sqlite3.Connection:
    """
    A connection for one thread that writes without an engine. It begins its transactions itself.

    Args:
        url: ``sqlite+aiosqlite:///...``.
    """
    connection = sqlite3.connect(make_url(url).database or "", isolation_level=None, check_same_thread=False)
    _set(connection, foreign_keys=True)
    return connection


def _set(connection: DBAPIConnection | sqlite3.Connection, *, foreign_keys: bool) -> None:
    pragmas = (
        "journal_mode=WAL",
        "synchronous=FULL",
        f"foreign_keys={'ON' if foreign_keys else 'OFF'}",
        f"busy_timeout={BUSY_TIMEOUT_MS}",
    )
    cursor = connection.cursor()
    for pragma in pragmas:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
