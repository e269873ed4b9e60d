"""
What is forgotten, and when. The inventory itself is never touched.

Events, commands, what was handed out and what executors signed are history and stay: they prove what was done to
a machine.
"""

from datetime import timedelta
from typing import Any, Final

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_server.agents.locks import lock_agents
from redflag_server.client_errors.tables import ClientError, ErrorBatch
from redflag_server.jobs.kinds import Rest
from redflag_server.jobs.queue import ClaimedJob, enqueue
from redflag_server.jobs.tables import JobState, QueuedJob
from redflag_server.packages.tables import Package, ScanReport
from redflag_server.rate_limits.arrivals import forget_arrivals
from redflag_server.runtime import Runtime

KEEP_REPORTS: Final = timedelta(days=30)
"""Records of accepted reports: an agent sends the same report again for minutes, people look back for days."""

KEEP_GONE_PACKAGES: Final = timedelta(days=90)
"""Packages that are no longer installed: after a quarter, one that comes back is a new one."""

MACHINES_AT_ONCE: Final = 200
"""Machines whose packages are forgotten in one transaction: their check-ins wait for it."""


KEEP_DONE_JOBS: Final = timedelta(days=7)
KEEP_DEAD_JOBS: Final = timedelta(days=90)
"""Jobs that somebody must look at: nobody has for a quarter."""

ROWS_AT_ONCE: Final = 5000
"""Rows of a table that are forgotten in one transaction: well below a second."""

FORGET: Final = "forget-old"


async def ask_to_forget(runtime: Runtime) -> None:
    """Put the job in that deletes what nobody needs any more. A second one waits for the first."""
    now = runtime.clock.now()
    async with runtime.database.write() as session:
        await enqueue(session, kind=FORGET, payload={}, now=now, key=FORGET)


async def forget_in_parts(runtime: Runtime, _job: ClaimedJob) -> Rest | None:
    """Forget one part; the job goes on while there may be more. Forgetting twice changes nothing."""
    return Rest({}) if await forget_old(runtime) else None


async def forget_old(runtime: Runtime) -> bool:
    """Delete a part of what nobody needs any more; whether there may be more."""
    now = runtime.clock.now()
    ended, keep_errors = QueuedJob.ended_at, timedelta(days=runtime.settings.keep_errors_days)
    async with runtime.database.write() as session:
        full = [
            await _forget_rows(session, ScanReport, ScanReport.received_at < now - KEEP_REPORTS),
            await _forget_rows(session, ErrorBatch, ErrorBatch.received_at < now - KEEP_REPORTS),
            await _forget_rows(session, ClientError, ClientError.last_seen_at < now - keep_errors),
            await _forget_rows(session, QueuedJob, QueuedJob.state == JobState.DONE, ended < now - KEEP_DONE_JOBS),
            await _forget_rows(session, QueuedJob, QueuedJob.state == JobState.DEAD, ended < now - KEEP_DEAD_JOBS),
            await forget_arrivals(session, now, ROWS_AT_ONCE),
        ]
    gone = (Package.present.is_(False), Package.state_at < now - KEEP_GONE_PACKAGES)
    return await _forget_packages(runtime, gone) or any(full)


async def _forget_rows(session: AsyncSession, table: Any, *conditions: Any) -> bool:
    """Forget some rows; whether there may be more."""
    some = select(table.id).where(*conditions).limit(ROWS_AT_ONCE).with_for_update(skip_locked=True)
    result = await session.execute(delete(table).where(table.id.in_(some)))
    return bool(result.rowcount == ROWS_AT_ONCE)  # type: ignore[attr-defined]


async def _forget_packages(runtime: Runtime, gone: tuple[Any, ...]) -> bool:
    """Forget those of some machines; whether there may be more."""
    async with runtime.database.write() as session:
        query = select(Package.agent_id).where(*gone).distinct().limit(MACHINES_AT_ONCE)
        agents = (await session.scalars(query)).all()
        await lock_agents(session, agents)
        await session.execute(delete(Package).where(Package.agent_id.in_(agents), *gone))
    return len(agents) == MACHINES_AT_ONCE
