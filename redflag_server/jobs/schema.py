"""What the API says about jobs."""

from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import attrs

from redflag_server.jobs.tables import JobState


@attrs.frozen
class JobItem:
    """
    Work that was put off.

    Attributes:
        id: Its id.
        organization_id: Whose it is; all zero for the server's own.
        kind: What is to be done.
        key: Jobs with the same one are done one at a time, in order; or null.
        state: ``live``, ``done``, or ``dead``: it failed at each attempt, and is not tried again by itself.
        run_at: When it is due, or was.
        attempts: How often it was begun since it was put in, or since its last part was done.
        leased_until: Until when a process has it, or null.
        last_error: Why the last attempt failed, or null.
        created_at: When it was put in.
        ended_at: When it was done or given up, or null.
    """

    id: UUID
    organization_id: UUID
    kind: str
    key: str | None
    state: JobState
    run_at: datetime
    attempts: int
    leased_until: datetime | None
    last_error: str | None
    created_at: datetime
    ended_at: datetime | None


_AT: Final = datetime(2026, 1, 2, 9, 30, tzinfo=UTC)

JOB_EXAMPLE: Final = JobItem(
    id=UUID("01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e6a"),
    organization_id=UUID(int=0),
    kind="forget-old",
    key="forget-old",
    state=JobState.DEAD,
    run_at=_AT,
    attempts=10,
    leased_until=None,
    last_error="OperationalError in execute, line 585; see the log of the server",
    created_at=_AT,
    ended_at=_AT,
)
