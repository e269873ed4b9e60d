"""
PostgreSQL: how it is reached, within which bounds, and which of its errors mean "not now".

The driver reads the address as libpq does: the password may also be in ``PGPASSWORD`` or a password file. The
address is in no message and no log of ours.
"""

import asyncio
from typing import Any, Final, NoReturn

import asyncpg
from advanced_alchemy.utils.serialization import decode_json, encode_json
from sqlalchemy import event
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import InvalidatePoolError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

SCHEMES: Final = ("postgresql://", "postgres://")

POOL_SIZE: Final = 10
"""Connections of one process: a transaction takes some milliseconds, so that ten keep several cores busy, and
eight processes fit into the 100 that PostgreSQL allows by default."""

POOL_WAIT_SECONDS: Final = 20
"""How long a request waits for one of them before a 503: a burst is worked off while its senders still wait."""

CONNECT_SECONDS: Final = 5
COMMAND_SECONDS: Final = 45
"""Longer than any of the timeouts below: for a database that went away without saying so."""

TIMEOUTS: Final = {
    # A lock is held for the milliseconds of a transaction; longer means that something hangs.
    "lock_timeout": "10s",
    # The longest statement is that of a full report, or the purge of a day.
    "statement_timeout": "30s",
    # A process that was stopped in the middle must not hold its locks.
    "idle_in_transaction_session_timeout": "60s",
}
SESSION: Final = {
    "application_name": "redflag-server",
    "default_transaction_isolation": "read committed",
    "TimeZone": "UTC",
    # Compiling takes longer than any of our statements.
    "jit": "off",
}

NOT_NOW: Final = ("08", "25006", "40", "53", "55P03", "57")
"""SQLSTATE, or how it begins: connection, read-only, deadlock, resources, lock timeout, shut down or cancelled."""


def is_postgresql(url: str) -> bool:
    """Whether an address is one of PostgreSQL."""
    return url.startswith(SCHEMES)


def make_engine(url: str, *, bounded: bool = True) -> AsyncEngine:
    """
    An engine of one event loop.

    Args:
        url: ``postgresql://...``, with a password perhaps.
        bounded: Whether statements have a time limit. Only a change of the schema has none.
    """
    settings = SESSION | (TIMEOUTS if bounded else {})

    async def connect() -> Any:
        try:
            return await asyncpg.connect(
                url,
                timeout=CONNECT_SECONDS,
                command_timeout=COMMAND_SECONDS if bounded else None,
                server_settings=settings,
            )
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            _refuse(error)

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=POOL_WAIT_SECONDS,
        pool_use_lifo=True,
        hide_parameters=True,
        json_serializer=encode_json,
        json_deserializer=decode_json,
    )
    prepare(engine)
    return engine


def prepare(engine: AsyncEngine) -> None:
    """Let an engine, ours or a host's, say "not now" as the rest of the server understands it."""
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    event.listen(engine.sync_engine, "handle_error", _as_unavailable)


def reason_of(error: BaseException) -> str:
    """Why PostgreSQL cannot be used, in its own first line and without what it was asked."""
    cause = getattr(error, "orig", None) or error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, TimeoutError):
        return "it does not answer"
    return (str(cause).splitlines() or [type(cause).__name__])[0]


def _refuse(error: BaseException) -> NoReturn:
    raise OperationalError("connect", None, error, hide_parameters=True) from error


def _refuse_closed(connection: Any, _record: Any, _proxy: Any) -> None:
    """A database that was started anew has closed all connections: the driver knows, without asking it."""
    if connection.driver_connection.is_closed():
        raise InvalidatePoolError("the database closed the connection")


def _as_unavailable(context: ExceptionContext) -> None:
    """Let errors that mean "not now" be `OperationalError`, as they are with SQLite."""
    error = context.original_exception
    if isinstance(error, OperationalError):
        return
    state = getattr(error, "sqlstate", None) or ""
    lost = isinstance(error, OSError | TimeoutError | asyncio.TimeoutError) or context.is_disconnect
    if lost or state.startswith(NOT_NOW):
        raise OperationalError(context.statement, None, error, hide_parameters=True) from error
