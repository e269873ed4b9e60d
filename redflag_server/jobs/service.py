"""
Recurring work: schedules are rows, claimed by a conditional UPDATE.

Whoever moves ``next_due`` forward runs the job; nobody else does, however many processes look. A job that fails is
recorded and runs again at its next time.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Final

import attrs
from sqlalchemy import or_, select, update

from redflag_server.db.locks import Lock, take
from redflag_server.jobs.tables import Schedule
from redflag_server.runtime import Runtime

logger = logging.getLogger(__name__)

TICK_SECONDS: Final = 15
"""How often a process looks for what is due."""


@attrs.frozen
class Job:
    """
    Recurring work.

    Attributes:
        every: Time between runs.
        run: What to do.
    """

    every: timedelta
    run: Callable[[Runtime], Awaitable[None]]


async def prepare(runtime: Runtime, jobs: Mapping[str, Job]) -> None:
    """Make the rows that are missing, due at once."""
    async with runtime.database.write() as session:
        await take(session, Lock.FOUNDING)
        known = set((await session.scalars(select(Schedule.name))).all())
        session.add_all(
            Schedule(name=name, next_due=runtime.clock.now()) for name in sorted(jobs) if name not in known
        )


async def run_due(runtime: Runtime, jobs: Mapping[str, Job]) -> list[str]:
    """
    Run every job that is due now, once.

    Returns:
        The names of the jobs that ran here.
    """
    ran = []
    for name, job in jobs.items():
        if await _claim(runtime, name, job):
            await _finish(runtime, name, await _run(runtime, name, job))
            ran.append(name)
    return ran


async def keep_running(runtime: Runtime, jobs: Mapping[str, Job], stop: asyncio.Event) -> None:
    """Look for due jobs until *stop* is set; a job that is under way is finished."""
    while not stop.is_set():
        try:
            await run_due(runtime, jobs)
        except Exception:  # the next look may succeed: the database may be back
            logger.exception("could not look for due jobs")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), TICK_SECONDS)


async def _claim(runtime: Runtime, name: str, job: Job) -> bool:
    now = runtime.clock.now()
    # A time far ahead was written while the clock was wrong: it must not stop the job. One that is a little more
    # than one interval ahead was written by another replica, whose clock is a little ahead of this one.
    due = or_(Schedule.next_due <= now, Schedule.next_due > now + 2 * job.every)
    async with runtime.database.read() as session:
        found = await session.scalar(select(Schedule.name).where(Schedule.name == name, due))
    if found is None:
        return False
    async with runtime.database.write() as session:
        result = await session.execute(
            update(Schedule).where(Schedule.name == name, due).values(next_due=now + job.every, last_run=now)
        )
        return bool(result.rowcount)  # type: ignore[attr-defined]


async def _run(runtime: Runtime, name: str, job: Job) -> str | None:
    try:
        await job.run(runtime)
    except Exception as error:  # one failing job must not stop the others
        logger.exception("job %s failed", name)
        return f"{type(error).__name__}: {error}"[:1000]
    return None


async def _finish(runtime: Runtime, name: str, error: str | None) -> None:
    async with runtime.database.write() as session:
        await session.execute(update(Schedule).where(Schedule.name == name).values(last_error=error))
