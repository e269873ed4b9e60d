"""Jobs as operators see them, and what they do about those that failed."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import attrs
from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_server.db.pages import Page, PageOf, fetch_page
from redflag_server.db.scope import Scope
from redflag_server.events.recorder import record
from redflag_server.jobs.queue import revive
from redflag_server.jobs.schema import JobItem
from redflag_server.jobs.tables import JobState, QueuedJob
from redflag_server.problems import ConflictError, NotFoundError
from redflag_server.runtime import Runtime


@attrs.frozen
class JobFilter:
    """
    Which jobs.

    Attributes:
        states: In any of these; empty for all.
        kind: Of this kind; None for all.
    """

    states: Sequence[JobState] = ()
    kind: str | None = None


async def list_jobs(session: AsyncSession, visible: Scope, wanted: JobFilter, page: PageOf) -> Page[JobItem]:
    """One page of the jobs that the caller may see."""
    query = visible.select(QueuedJob)
    if wanted.states:
        query = query.where(QueuedJob.state.in_(wanted.states))
    if wanted.kind is not None:
        query = query.where(QueuedJob.kind == wanted.kind)
    rows, cursor = await fetch_page(session, query, QueuedJob, page)
    return Page([_item(row[0]) for row in rows], cursor)


async def retry_job(runtime: Runtime, visible: Scope, job_id: UUID, reason: str) -> JobItem:
    """
    Put a dead job in again, as the last of its key.

    Raises:
        NotFoundError: No such job, or not for the caller to see.
        ConflictError: It is not dead.
    """
    now = runtime.clock.now()
    async with runtime.database.write() as session:
        job = await _dead(session, visible, job_id)
        await revive(session, job, now)
        await record(
            session,
            at=now,
            kind="job.retried",
            actor=visible.caller.actor,
            message=f"A job ({job.kind}) that had failed is tried again: {reason}",
            organization_id=job.organization_id,
            data={"job_id": str(job.id), "kind": job.kind, "reason": reason},
        )
        await session.refresh(job)
        return _item(job)


async def discard_job(runtime: Runtime, visible: Scope, job_id: UUID, reason: str) -> JobItem:
    """
    Remove a dead job: what it was to do is not done.

    Returns:
        What it was.

    Raises:
        NotFoundError: No such job, or not for the caller to see.
        ConflictError: It is not dead.
    """
    now = runtime.clock.now()
    async with runtime.database.write() as session:
        job = await _dead(session, visible, job_id)
        item = _item(job)
        await session.execute(delete(QueuedJob).where(QueuedJob.id == job.id))
        await record(
            session,
            at=now,
            kind="job.discarded",
            actor=visible.caller.actor,
            message=f"A job ({job.kind}) that had failed was removed: {reason}",
            organization_id=job.organization_id,
            data={"job_id": str(job.id), "kind": job.kind, "error": job.last_error, "reason": reason},
        )
        return item


async def _dead(session: AsyncSession, visible: Scope, job_id: UUID) -> QueuedJob:
    query: Any = visible.select(QueuedJob).where(QueuedJob.id == job_id).with_for_update()
    job: QueuedJob | None = (await session.scalars(query)).one_or_none()
    if job is None:
        raise NotFoundError("there is no such job")
    if job.state != JobState.DEAD:
        raise ConflictError(f"the job is {job.state}: only a dead one can be tried again or removed")
    return job


def _item(job: QueuedJob) -> JobItem:
    return JobItem(
        id=job.id,
        organization_id=job.organization_id,
        kind=job.kind,
        key=job.key,
        state=JobState(job.state),
        run_at=job.run_at,
        attempts=job.attempts,
        leased_until=job.lease_until,
        last_error=job.last_error,
        created_at=job.created_at,
        ended_at=job.ended_at,
    )
