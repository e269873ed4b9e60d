"""
The queue of jobs: put in, take out, and say what became of it. Each function is part of the caller's transaction.

So a job is there exactly if the change that asked for it is. Whoever takes one out holds a lease for it. When the
process dies, the lease lapses and somebody else takes the job: it is done at least once, not exactly once.

Jobs with the same key are done one at a time, in order. A job waits while another one of its key is leased, or is
before it. Both are looked up without a lock, so two processes may see different jobs of a key at its head: when a
transaction that put one in ends late. Then the index `ix_jobs_one_lease` refuses the second lease.
"""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import ColumnElement, and_, exists, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased
from uuid_utils.compat import uuid7

from redflag_core.encoding import dump_json
from redflag_server.jobs.bells import Bell, ring
from redflag_server.jobs.tables import JobState, QueuedJob
from redflag_server.organizations.tables import INSTALLATION

MAX_PAYLOAD: Final = 64 * 1024
"""Bytes of a payload as JSON. It names what there is to do; what it takes to do it is in the database."""

RUN_SECONDS: Final = 60
"""How long one attempt may take. Longer work is done in parts, see `go_on`."""

LEASE: Final = timedelta(seconds=120)
"""Longer than an attempt, by more than the clocks of replicas differ and the end of an attempt takes."""


class LeaseLostError(Exception):
    """Somebody else has the job by now: what was done for it in this transaction must not count."""


@attrs.frozen
class ClaimedJob:
    """
    A job and the lease for it.

    Attributes:
        id: Its id; the same at each attempt.
        kind: What is to be done.
        payload: To what.
        attempts: Number of this attempt, from 1.
        fence: Number of the lease. It goes up with each one: a system that knows the highest it has seen can
            refuse whoever comes with an earlier one.
        organization_id: Whose it is; the installation's when it belongs to no client.
        key: Jobs with the same one are done in order; None for those that do not care.
    """

    id: UUID
    kind: str
    payload: Mapping[str, Any]
    attempts: int
    fence: int
    organization_id: UUID
    key: str | None


async def enqueue(
    session: AsyncSession,
    *,
    kind: str,
    payload: Mapping[str, Any],
    now: datetime,
    key: str | None = None,
    organization_id: UUID = INSTALLATION,
    run_at: datetime | None = None,
) -> UUID:
    """
    Put a job in.

    Args:
        session: The open write transaction. If it is rolled back, there is no job.
        kind: What is to be done: one of `jobs.list.KINDS`.
        payload: To what: JSON, without secrets, at most `MAX_PAYLOAD` bytes.
        now: Database time.
        key: Jobs with the same one are done one at a time, in order. It is shared by all kinds.
        organization_id: Whose it is.
        run_at: When, at the earliest; None for now.

    Returns:
        Its id.

    Raises:
        ValueError: The payload is too large.
    """
    if len(dump_json(payload)) > MAX_PAYLOAD:
        raise ValueError(f"the payload of a job takes more than {MAX_PAYLOAD} bytes")
    job_id = uuid7()
    values = {
        "id": job_id,
        "organization_id": organization_id,
        "kind": kind,
        "key": key,
        "payload": dict(payload),
        "ordinal": _last_in_line(key),
        "run_at": run_at or now,
        "created_at": now,
    }
    await session.execute(insert(QueuedJob).values(values))
    await ring(session, Bell.JOBS)
    return job_id


async def claim(
    session: AsyncSession, *, kinds: Collection[str], holder: UUID, limit: int, now: datetime
) -> list[ClaimedJob]:
    """
    Take out jobs that are due, with a lease for each.

    Args:
        session: An open write transaction of its own: commit it before the work begins.
        kinds: What the caller can do. Jobs of other kinds stay for other releases.
        holder: Who takes them.
        limit: Most jobs.
        now: Database time.

    Raises:
        IntegrityError: A duplicate: somebody else took a job of the same key at this moment. Try again.
    """
    due = select(QueuedJob.id).where(QueuedJob.kind.in_(kinds), claimable(now))
    due = due.order_by(QueuedJob.run_at, QueuedJob.ordinal, QueuedJob.id).limit(limit)
    # In a WITH of its own: a planner that repeats a subquery would lock more rows than it takes.
    taken = due.with_for_update(skip_locked=True).cte("taken")
    lease = {"lease_holder": holder, "lease_until": now + LEASE, "fence": QueuedJob.fence + 1}
    claimed = update(QueuedJob).where(QueuedJob.id.in_(select(taken.c.id)))
    claimed = claimed.values(**lease, attempts=QueuedJob.attempts + 1).returning(
        QueuedJob.id,
        QueuedJob.kind,
        QueuedJob.payload,
        QueuedJob.attempts,
        QueuedJob.fence,
        QueuedJob.organization_id,
        QueuedJob.key,
    )
    rows = await session.execute(claimed.execution_options(synchronize_session=False))
    return sorted((ClaimedJob(*row) for row in rows), key=lambda job: job.id)


def claimable(now: datetime) -> "ColumnElement[bool]":
    """
    Whether a job can be taken out.

    Either nobody has a lease for it, it is due, and it is the first of its key, of which none is leased. Or the
    lease for it has lapsed. One that ends far later than any that is given now was given while a clock was wrong.
    """
    other = aliased(QueuedJob)
    earlier = or_(
        other.ordinal < QueuedJob.ordinal, and_(other.ordinal == QueuedJob.ordinal, other.id < QueuedJob.id)
    )
    blocked = exists().where(
        other.key == QueuedJob.key,
        other.state == JobState.LIVE,
        other.id != QueuedJob.id,
        or_(other.lease_until.is_not(None), earlier),
    )
    waits = and_(QueuedJob.lease_until.is_(None), QueuedJob.run_at <= now, or_(QueuedJob.key.is_(None), ~blocked))
    lapsed = or_(QueuedJob.lease_until <= now, QueuedJob.lease_until > now + 2 * LEASE)
    return and_(QueuedJob.state == JobState.LIVE, or_(waits, lapsed))


async def check_held(session: AsyncSession, job: ClaimedJob) -> None:
    """
    Make sure, until the end of the transaction, that nobody else has taken a job since.

    A handler calls it first in a transaction that must not be done twice.

    Raises:
        LeaseLostError: Somebody has.
    """
    held = select(QueuedJob.id).where(*_held(job)).with_for_update()
    if (await session.scalars(held)).one_or_none() is None:
        raise LeaseLostError("somebody else has the job by now")


async def complete(session: AsyncSession, job: ClaimedJob, now: datetime) -> None:
    """Say that a job is done; raises `LeaseLostError`."""
    await _end(session, job, state=JobState.DONE, ended_at=now, last_error=None)


async def go_on(session: AsyncSession, job: ClaimedJob, payload: Mapping[str, Any], now: datetime) -> None:
    """
    Say that a part of a job is done, and what is left. It keeps its place among the jobs of its key.

    Raises:
        LeaseLostError: Somebody else has the job by now.
        ValueError: The payload is too large.
    """
    if len(dump_json(payload)) > MAX_PAYLOAD:
        raise ValueError(f"the payload of a job takes more than {MAX_PAYLOAD} bytes")
    await _end(session, job, payload=dict(payload), attempts=0, run_at=now, last_error=None)


async def try_later(session: AsyncSession, job: ClaimedJob, run_at: datetime, error: str) -> None:
    """Say that an attempt failed, and when there is the next one; raises `LeaseLostError`."""
    await _end(session, job, run_at=run_at, last_error=error)


async def bury(session: AsyncSession, job: ClaimedJob, error: str, now: datetime) -> None:
    """Say that a job will not be tried again, unless somebody asks for it; raises `LeaseLostError`."""
    await _end(session, job, state=JobState.DEAD, ended_at=now, last_error=error)


async def revive(session: AsyncSession, job: QueuedJob, now: datetime) -> None:
    """Put a dead job in again, as the last of its key."""
    changes = {"state": JobState.LIVE, "attempts": 0, "run_at": now, "ended_at": None}
    anew = update(QueuedJob).where(QueuedJob.id == job.id, QueuedJob.state == JobState.DEAD)
    await session.execute(anew.values(**changes, ordinal=_last_in_line(job.key)))
    await ring(session, Bell.JOBS)


async def _end(session: AsyncSession, job: ClaimedJob, **changes: Any) -> None:
    """End the lease, if it is still ours."""
    ended = update(QueuedJob).where(*_held(job)).values(lease_holder=None, lease_until=None, **changes)
    result = await session.execute(ended.execution_options(synchronize_session=False))
    if not result.rowcount:  # type: ignore[attr-defined]
        raise LeaseLostError("somebody else has the job by now")


def _held(job: ClaimedJob) -> tuple[Any, ...]:
    # A lease that has lapsed and that nobody else took is as good as one that has not.
    return QueuedJob.id == job.id, QueuedJob.fence == job.fence, QueuedJob.lease_until.is_not(None)


def _last_in_line(key: str | None) -> Any:
    """The ordinal of the last job of a key. What is put in at the same time has no order."""
    if key is None:
        return 0
    line = select(func.coalesce(func.max(QueuedJob.ordinal), 0) + 1)
    return line.where(QueuedJob.key == key, QueuedJob.state == JobState.LIVE).scalar_subquery()
