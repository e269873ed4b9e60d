"""Schedules: what is due when. Jobs: work that was put off, done once somebody has time. Leases."""

from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from redflag_server.db.base import NAME, SHORT, Base, Tenant, enum_check


class Schedule(Base):
    """A recurring job. Whoever moves ``next_due`` forward by a conditional UPDATE runs it, once."""

    __tablename__ = "schedules"

    name: Mapped[str] = mapped_column(SHORT, primary_key=True)
    next_due: Mapped[datetime]
    last_run: Mapped[datetime | None]
    last_error: Mapped[str | None]


class JobState(StrEnum):
    """Where a job is."""

    LIVE = "live"
    DONE = "done"
    DEAD = "dead"


_LIVE: Final = "state = 'live'"
_LEASED: Final = f"{_LIVE} AND lease_until IS NOT NULL"


def _where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


class QueuedJob(Tenant):
    """
    Work that was put off.

    A live job is leased while ``lease_until`` is set; a lease that has lapsed is that of a process that died.
    ``fence`` goes up with each lease, so that whoever held an earlier one is found out. Jobs with the same ``key``
    are done one at a time, in the order of ``ordinal``: the index makes a second lease for a key impossible.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(enum_check("state", JobState), name="state"),
        Index("ix_jobs_organization_id_id", "organization_id", "id"),
        Index("ix_jobs_run_at", "run_at", **_where(_LIVE)),
        Index("ix_jobs_key_ordinal", "key", "ordinal", **_where(_LIVE)),
        Index("ix_jobs_one_lease", "key", unique=True, **_where(_LEASED)),
    )

    kind: Mapped[str] = mapped_column(SHORT)
    key: Mapped[str | None] = mapped_column(NAME)
    payload: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(8), default=JobState.LIVE)
    ordinal: Mapped[int] = mapped_column(BigInteger)
    run_at: Mapped[datetime]
    attempts: Mapped[int] = mapped_column(default=0)
    lease_holder: Mapped[UUID | None]
    lease_until: Mapped[datetime | None]
    fence: Mapped[int] = mapped_column(BigInteger, default=0)
    last_error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class Lease(Base):
    """Who does what only one process may do. ``fence`` goes up whenever somebody else takes it."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(SHORT, primary_key=True)
    holder: Mapped[UUID]
    until: Mapped[datetime]
    fence: Mapped[int] = mapped_column(BigInteger)
