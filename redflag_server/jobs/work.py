"""
Do what is in the queue of jobs, a few at a time.

An attempt that fails is made again later. One that was the last makes a dead letter, with an event: somebody must
look. A job whose process dies again and again ends in the same way.
"""

import asyncio
import logging
import traceback
from collections.abc import Mapping
from datetime import timedelta
from typing import Final
from uuid import UUID

import attrs
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from uuid_utils.compat import uuid7

from redflag_core.errors import RedFlagError
from redflag_core.resilience import random_fraction
from redflag_server.db.duplicates import is_duplicate
from redflag_server.events.recorder import record
from redflag_server.jobs.bells import Bell, heard, wait_any
from redflag_server.jobs.kinds import Kind, Rest
from redflag_server.jobs.queue import (
    RUN_SECONDS,
    ClaimedJob,
    LeaseLostError,
    bury,
    claim,
    claimable,
    complete,
    go_on,
    try_later,
)
from redflag_server.jobs.tables import JobState, QueuedJob
from redflag_server.runtime import Runtime

logger = logging.getLogger(__name__)

AT_ONCE: Final = 4
"""Jobs that one process does at a time: they wait for the network mostly, and requests come first."""

LOOK_SECONDS: Final = 5
"""How often a process looks for what other processes put in, and for leases that lapsed."""

DRAIN_SECONDS: Final = 8
"""How long jobs that are under way may take when the server is told to stop; requests have ten."""


@attrs.define
class Worker:
    """
    Does jobs in this process.

    Args:
        runtime: The server.
        kinds: What it can do, by name.
        drain_seconds: How long what is under way may take when it is told to stop.
    """

    runtime: Runtime
    kinds: Mapping[str, Kind]
    drain_seconds: float = DRAIN_SECONDS
    holder: UUID = attrs.field(factory=uuid7, init=False)
    _under_way: set["asyncio.Task[None]"] = attrs.field(factory=set, init=False)

    async def work(self, stop: asyncio.Event) -> None:
        """Do what is due until *stop* is set; then finish what is under way, within ``drain_seconds``."""
        with heard(self.runtime.database, Bell.JOBS) as rung:
            while not stop.is_set():
                rung.clear()
                wait = await self._look(rung)
                await wait_any(wait, rung, stop)
        await self._drain()

    async def work_once(self) -> int:
        """
        Do what is due now, and wait for it: at most `AT_ONCE` jobs.

        Returns:
            How many attempts were made.
        """
        claimed = await self._claim(AT_ONCE)
        await asyncio.gather(*(self._attempt(job) for job in claimed))
        return len(claimed)

    async def _look(self, rung: asyncio.Event) -> float:
        """Begin what is due; seconds until there may be more."""
        try:
            for job in await self._claim(AT_ONCE - len(self._under_way)):
                self._begin(job, rung)
            return await self._until_next()
        except Exception:  # the next look may succeed: the database may be back
            logger.exception("could not look for jobs")
            return LOOK_SECONDS

    def _begin(self, job: ClaimedJob, rung: asyncio.Event) -> None:
        task = asyncio.create_task(self._attempt(job))
        self._under_way.add(task)

        def ended(_task: "asyncio.Task[None]") -> None:
            self._under_way.discard(task)
            rung.set()

        task.add_done_callback(ended)

    async def _drain(self) -> None:
        if self._under_way:
            _, late = await asyncio.wait(self._under_way, timeout=self.drain_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _claim(self, limit: int) -> list[ClaimedJob]:
        if limit < 1 or not await self._is_due():
            return []
        now = self.runtime.clock.now()
        try:
            async with self.runtime.database.write() as session:
                return await claim(session, kinds=self.kinds, holder=self.holder, limit=limit, now=now)
        except IntegrityError as error:
            if not is_duplicate(error):
                raise
            return []  # somebody else took one of the same key at this moment

    async def _is_due(self) -> bool:
        """Whether there is anything: a look must not keep others from writing."""
        due = select(QueuedJob.id).where(claimable(self.runtime.clock.now()), QueuedJob.kind.in_(self.kinds))
        async with self.runtime.database.read() as session:
            return await session.scalar(due.limit(1)) is not None

    async def _until_next(self) -> float:
        live = (QueuedJob.state == JobState.LIVE, QueuedJob.lease_until.is_(None))
        now = self.runtime.clock.now()
        async with self.runtime.database.read() as session:
            # One that is due and was not taken waits for another one of its key: a bell rings when that has ended.
            due = await session.scalar(select(func.min(QueuedJob.run_at)).where(*live, QueuedJob.run_at > now))
        return LOOK_SECONDS if due is None else min(LOOK_SECONDS, max(0.0, (due - now).total_seconds()))

    async def _attempt(self, job: ClaimedJob) -> None:
        """Make an attempt, and write down what became of it."""
        kind = self.kinds[job.kind]
        try:
            if job.attempts > kind.retries.attempts:
                await self._give_up(job, "the process ended at each attempt, or was held up")
            else:
                await self._try(job, kind)
        except LeaseLostError:
            logger.warning("job %s (%s) took too long: somebody else has it by now", job.id, job.kind)
        except Exception:  # the lease lapses, and it is tried again
            logger.exception("could not write down what became of job %s (%s)", job.id, job.kind)

    async def _try(self, job: ClaimedJob, kind: Kind) -> None:
        try:
            async with asyncio.timeout(RUN_SECONDS):
                rest = await kind.handle(self.runtime, job)
        except LeaseLostError:
            raise
        except Exception as error:  # one failing job must not stop the others
            logger.exception("job %s (%s) failed at attempt %d", job.id, job.kind, job.attempts)
            await self._failed(job, kind, describe(error))
        else:
            await self._done(job, rest)

    async def _done(self, job: ClaimedJob, rest: Rest | None) -> None:
        now = self.runtime.clock.now()
        async with self.runtime.database.write() as session:
            if rest is None:
                await complete(session, job, now)
            else:
                await go_on(session, job, rest.payload, now)

    async def _failed(self, job: ClaimedJob, kind: Kind, error: str) -> None:
        if job.attempts >= kind.retries.attempts:
            await self._give_up(job, error)
            return
        wait = kind.retries.delay(job.attempts, random_fraction(self.runtime.entropy))
        async with self.runtime.database.write() as session:
            await try_later(session, job, self.runtime.clock.now() + timedelta(seconds=wait), error)

    async def _give_up(self, job: ClaimedJob, error: str) -> None:
        now = self.runtime.clock.now()
        async with self.runtime.database.write() as session:
            await bury(session, job, error, now)
            await record(
                session,
                at=now,
                kind="job.dead",
                actor="server",
                message=f"A job ({job.kind}) failed at each of its attempts, and is not tried again: {error}",
                organization_id=job.organization_id,
                data={"job_id": str(job.id), "kind": job.kind, "error": error},
            )


def describe(error: Exception) -> str:
    """
    What an operator is told of a failure: without the text of errors that are not ours, in which secrets may be.

    Args:
        error: What a handler raised.
    """
    if isinstance(error, RedFlagError):
        return f"{error.code}: {error.message}"[:1000]
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {frames[-1].name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}; see the log of the server"
