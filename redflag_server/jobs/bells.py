"""
Bells: who waits for work in this process looks at once when a transaction that made some has ended.

A bell can ring for nothing, as after a rollback, and is not heard in other processes. So whoever waits for one
also looks by itself now and then.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_server.db.engine import Database


class Bell(StrEnum):
    """What there is to look for."""

    JOBS = "redflag_jobs"
    EVENTS = "redflag_events"


async def ring(session: AsyncSession, bell: Bell) -> None:
    """
    Ring when the transaction has ended.

    Args:
        session: The open write transaction.
        bell: Which.
    """
    (await session.connection()).info[bell] = True


@contextmanager
def heard(database: Database, bell: Bell) -> Iterator[asyncio.Event]:
    """An event that is set whenever a bell rings, until the end of the block."""
    rung = asyncio.Event()

    def returned(_connection: Any, record: Any) -> None:
        # The connection goes back when its transaction is over.
        if record.info.pop(bell, False):
            rung.set()

    pool = database.engine.sync_engine
    event.listen(pool, "checkin", returned)
    try:
        yield rung
    finally:
        event.remove(pool, "checkin", returned)


async def wait_any(seconds: float, *events: asyncio.Event) -> None:
    """Wait until one of some events is set, at most so long."""
    waiting = [asyncio.ensure_future(one.wait()) for one in events]
    try:
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waiting:
            one.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*waiting, return_exceptions=True)
