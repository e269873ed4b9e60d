"""Errors of agents and of the server (later of browsers too), equal ones counted in one row."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from redflag_server.db.base import SHORT, Tenant, enum_check


class ErrorSource(StrEnum):
    """Who met an error."""

    AGENT = "agent"
    SERVER = "server"


NO_AGENT = text("agent_id IS NULL")
"""What has no agent is told apart by organization and source."""


class ClientError(Tenant):
    """
    One kind of error of one agent, or of one source without an agent. Errors of the server are the installation's.

    ``digest`` is the fingerprint of the core: the same kind has the same one on all machines. Whoever resolved it
    stays on record when it is seen again; ``resolved_at`` alone says whether it is resolved.
    """

    __tablename__ = "client_errors"
    __table_args__ = (
        UniqueConstraint("agent_id", "digest"),
        CheckConstraint(enum_check("source", ErrorSource), name="source"),
        Index("ix_client_errors_organization_id_last_seen_at", "organization_id", "last_seen_at"),
        Index("ix_client_errors_digest", "digest"),
        Index(
            "uq_client_errors_without_agent",
            "organization_id",
            "source",
            "digest",
            unique=True,
            sqlite_where=NO_AGENT,
            postgresql_where=NO_AGENT,
        ),
    )

    source: Mapped[str] = mapped_column(String(16))
    agent_id: Mapped[UUID | None] = mapped_column(ForeignKey("agents.id", ondelete="CASCADE"))
    digest: Mapped[str] = mapped_column(String(64))
    subsystem: Mapped[str] = mapped_column(SHORT)
    type: Mapped[str] = mapped_column(SHORT)
    message: Mapped[str] = mapped_column(Text)
    stack: Mapped[str | None] = mapped_column(Text)
    context: Mapped[dict[str, Any]]
    count: Mapped[int] = mapped_column(BigInteger)
    first_seen_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
    resolved_at: Mapped[datetime | None]
    resolved_by: Mapped[str | None] = mapped_column(SHORT)
    resolution: Mapped[str | None] = mapped_column(Text)


class ErrorBatch(Tenant):
    """A batch that was accepted. ``id`` is the agent's: sent again, counted once."""

    __tablename__ = "error_batches"

    agent_id: Mapped[UUID] = mapped_column(ForeignKey("agents.id", ondelete="CASCADE"), index=True)
    received_at: Mapped[datetime]
