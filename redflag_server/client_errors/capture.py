"""
Errors of the server itself: whatever is logged as an error is kept in memory, and then stored.

Logging is where all of them pass: requests that failed, jobs, background tasks, and what asyncio tells of tasks
that nobody awaited. Whoever logs an error waits for nothing: it is only counted here. A task searches it for
secrets and stores it; while the database is down, it stays in memory.

Of two servers in one process, both count an error that comes from no request.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
from sqlalchemy.exc import DBAPIError

from redflag_core.error_reports import (
    MAX_STACK,
    ErrorKind,
    error_report,
    kinds_of,
    merged,
    stack_of,
    type_of,
)
from redflag_core.errors import RedFlagError
from redflag_core.freshness import unix
from redflag_core.messages import ClientError
from redflag_core.ports import Clock
from redflag_server.client_errors.storing import MAX_KINDS, SERVER, count_errors
from redflag_server.db.engine import Database
from redflag_server.events.recorder import record

LOGGERS: Final = ("redflag_server", "asyncio")
"""Whose errors are kept."""

OWN: Final = "redflag_server.client_errors"
"""Whose errors are not: an error while storing an error would be stored, and so on."""

MAX_NEW: Final = 200
"""Different errors between two times of storing: some 4 MiB at most. Those beyond are counted as dropped."""

MAX_TEXT: Final = 8000
"""Characters of a message that are kept until it is searched for secrets: four times what is stored."""

PAUSE: Final = 2.0
"""Seconds between two times of storing: a flood is a few rows every now and then."""

RETRY: Final = 15.0
"""Seconds until the next try, when the database does not answer."""

LAST_SECONDS: Final = 2.0
"""How long storing may take when the server ends: the database may be down."""

logger = logging.getLogger(__name__)


@attrs.frozen
class _Raw:
    """An error as it was logged. Whatever equals it is counted, not kept."""

    subsystem: str
    type: str
    message: str
    stack: str | None


@attrs.define
class _Seen:
    first: int
    last: int
    context: dict[str, Any]
    count: int = 1


class ServerErrors(logging.Handler):
    """
    Errors of this server that are not stored yet.

    May be told errors by any thread; stores them in the event loop of its database.

    Args:
        database: Where they are stored.
        clock: Wall time.

    Attributes:
        dropped: How many there was no room for, since the start.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        super().__init__(logging.ERROR)
        self.dropped = 0
        self._database = database
        self._clock = clock
        self._new: dict[_Raw, _Seen] = {}
        self._kept: dict[str, ErrorKind] = {}
        self._storing = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()

    @asynccontextmanager
    async def capturing(self) -> AsyncIterator[None]:
        """Take in what is logged, and store it, until the block ends; then once more."""
        self._loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for name in LOGGERS:
            logging.getLogger(name).addHandler(self)
        storing = asyncio.create_task(self._keep_storing(stop))
        try:
            yield
        finally:
            for name in LOGGERS:
                logging.getLogger(name).removeHandler(self)
            self._loop = None
            stop.set()
            await storing

    def emit(self, record: logging.LogRecord) -> None:
        """Count an error; called with the lock of the handler held. What goes wrong is for the console only."""
        if record.name.startswith(OWN) or getattr(record, "server_errors", self) is not self:
            return
        try:
            self._count(_raw(record), int(unix(self._clock.now())), getattr(record, "error_context", {}))
        except Exception:
            self.handleError(record)

    async def store(self) -> bool:
        """
        Store what there is; whether that worked. What was not stored stays, as far as there is room.

        Raises nothing but a cancellation.
        """
        async with self._storing:
            try:
                await self._gather()
                await self._write()
            except Exception:  # it may be the database that the errors are about
                logger.exception("could not store errors of the server")
                return False
            return True

    def _count(self, raw: _Raw, now: int, context: dict[str, Any]) -> None:
        seen = self._new.get(raw)
        if seen is not None:
            seen.count, seen.last = seen.count + 1, now
        elif len(self._new) < MAX_NEW:
            self._new[raw] = _Seen(now, now, context)
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._news.set)
        else:
            self.dropped += 1

    async def _gather(self) -> None:
        """Make kinds of what is new: in a thread, for the search for secrets takes a while."""
        with self.lock:  # type: ignore[union-attr]  # made by the base class
            new, self._new = self._new, {}
        for kind in await asyncio.to_thread(lambda: kinds_of(_report(raw, seen) for raw, seen in new.items())):
            known = self._kept.get(kind.fingerprint)
            if known is None and len(self._kept) >= MAX_KINDS:
                self.dropped += kind.count
            else:
                self._kept[kind.fingerprint] = kind if known is None else merged(known, kind)

    async def _write(self) -> None:
        kinds = sorted(self._kept.values(), key=lambda kind: kind.fingerprint)
        dropped, now = self.dropped, self._clock.now()
        if not kinds and not dropped:
            return
        async with self._database.write() as session:
            forgotten = await count_errors(session, SERVER, kinds, now)
            if dropped or forgotten:
                await record(
                    session,
                    at=now,
                    kind="server.errors_dropped",
                    actor="server",
                    message=f"Errors of the server are missing: {dropped} dropped, {forgotten} kinds forgotten.",
                    data={"dropped": dropped, "forgotten": forgotten},
                )
        self._kept.clear()
        self.dropped -= dropped

    async def _keep_storing(self, stop: asyncio.Event) -> None:
        waiting = asyncio.ensure_future(stop.wait())
        while not stop.is_set():
            await _first_of(waiting, self._news.wait())
            self._news.clear()
            stored = stop.is_set() or await self.store()
            if not stored:
                self._news.set()
            await _first_of(waiting, asyncio.sleep(PAUSE if stored else RETRY))
        try:
            async with asyncio.timeout(LAST_SECONDS):
                await self.store()
        except TimeoutError:
            logger.warning("the server ends without having stored its last errors")


def about(errors: "ServerErrors", subsystem: str, **context: Any) -> dict[str, Any]:
    """
    What to log with an error, as ``extra``.

    Args:
        errors: Of which server it is an error.
        subsystem: Where it happened, instead of the logger's name.
        context: Further facts, without secrets.
    """
    return {"server_errors": errors, "error_subsystem": subsystem, "error_context": context}


def _raw(record: logging.LogRecord) -> _Raw:
    error = record.exc_info[1] if record.exc_info else None
    said = record.getMessage()
    subsystem = getattr(record, "error_subsystem", record.name.removeprefix("redflag_server."))
    if error is None:
        return _Raw(subsystem, "Error", said[:MAX_TEXT], f"{record.pathname}:{record.lineno} in {record.funcName}")
    text = _text_of(error)
    return _Raw(
        subsystem,
        type_of(error),
        (f"{said}: {text}" if text else said)[:MAX_TEXT],
        (stack_of(error) or "")[-4 * MAX_STACK :] or None,
    )


def _text_of(error: BaseException) -> str:
    """What an error says; of one of the database only its first line, which has no values of rows in it."""
    if isinstance(error, RedFlagError):
        return error.message
    text = str(error.orig if isinstance(error, DBAPIError) else error)
    return text.partition("\n")[0] if isinstance(error, DBAPIError) else text


def _report(raw: _Raw, seen: _Seen) -> ClientError:
    report = error_report(
        raw.subsystem, raw.type, raw.message, at=seen.last, stack=raw.stack, context=seen.context
    )
    return attrs.evolve(report, count=min(seen.count, 10**9), first_seen=seen.first)


async def _first_of(one: "asyncio.Future[Any]", other: Any) -> None:
    task = asyncio.ensure_future(other)
    try:
        await asyncio.wait({one, task}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        task.cancel()
