"""Whether this process may be sent requests: looked up at most once a second, however many probes ask."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import attrs
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from redflag_server.db import migrate
from redflag_server.db.engine import Database
from redflag_server.runtime import Runtime
from redflag_server.settings import Settings

CACHED_SECONDS: Final = 1.0
CHECK_SECONDS: Final = 5.0
"""How long all checks together may take: a database that is slower than that is not reachable."""

CLOCK_SECONDS: Final = 5.0
"""Furthest that our clock may be off the database's: signatures of agents are judged by ours."""

MIN_ROOM: Final = 1024 * 1024
"""Bytes: below it, the next report would not fit."""

READ_ONLY: Final = "SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool"
KEY_FILES: Final = ("command.key", "checkpoint.key", "agent-tokens.secret", "forms.secret")


@attrs.define(eq=False)
class Readiness:
    """What the last look found. Belongs to one event loop."""

    _runtime: Runtime
    _failed: tuple[str, ...] = ()
    _until: float = float("-inf")
    _looking: asyncio.Lock = attrs.field(factory=asyncio.Lock)

    async def failed(self) -> tuple[str, ...]:
        """Names of the checks that fail, in order; empty when the server is ready."""
        async with self._looking:
            monotonic = self._runtime.clock.monotonic
            if monotonic() >= self._until:
                self._failed = await failed_checks(self._runtime)
                self._until = monotonic() + CACHED_SECONDS
            return self._failed


async def failed_checks(runtime: Runtime) -> tuple[str, ...]:
    """
    Look now.

    Returns:
        Names of the checks that fail: ``database`` cannot be reached, ``migrations`` are missing, it is not
        ``writable``, the ``clock`` is off the database's, ``keys`` cannot be read.
    """
    failed = list(await _database_checks(runtime))
    if not await asyncio.to_thread(_keys_are_readable, runtime.settings):
        failed.append("keys")
    return tuple(failed)


async def _database_checks(runtime: Runtime) -> tuple[str, ...]:
    checks: Mapping[str, Callable[[Runtime], Awaitable[bool]]] = {
        "migrations": _has_our_schema,
        "writable": _is_writable,
        "clock": _clock_is_right,
    }
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return tuple([name for name, check in checks.items() if not await check(runtime)])
    except (SQLAlchemyError, OSError, TimeoutError):
        return ("database",)


async def _has_our_schema(runtime: Runtime) -> bool:
    return not await migrate.pending(runtime.database)


async def _is_writable(runtime: Runtime) -> bool:
    """PostgreSQL says so itself; with SQLite it is a file that may be written, on a disk that has room."""
    if runtime.database.is_postgresql:
        return not await _one(runtime.database, READ_ONLY)
    return await asyncio.to_thread(_file_is_writable, runtime.settings)


async def _clock_is_right(runtime: Runtime) -> bool:
    """With SQLite the database's time is our clock."""
    if not runtime.database.is_postgresql:
        return True
    theirs: datetime = await _one(runtime.database, "SELECT clock_timestamp()")
    return abs((theirs.astimezone(UTC) - runtime.clock.now()).total_seconds()) <= CLOCK_SECONDS


async def _one(database: Database, query: str) -> Any:
    async with database.read() as session:
        return (await session.execute(text(query))).scalar_one()


def _file_is_writable(settings: Settings) -> bool:
    return os.access(settings.database, os.W_OK) and os.access(settings.data, os.W_OK) and _has_room(settings)


def _has_room(settings: Settings) -> bool:
    disk = os.statvfs(settings.data)
    return disk.f_bavail * disk.f_frsize >= MIN_ROOM


def _keys_are_readable(settings: Settings) -> bool:
    return all(os.access(settings.data / "keys" / name, os.R_OK) for name in KEY_FILES)
