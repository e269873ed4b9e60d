"""Errors of agents (later of the server and browsers too), equal ones counted in one row."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from redflag_server.db.base import SHORT, Tenant


class ClientError(Tenant):
    """One kind of error of one agent."""

    __tablename__ = "client_errors"
    __table_args__ = (
        UniqueConstraint("agent_id", "digest"),
        Index("ix_client_errors_organization_id_last_seen_at", "organization_id", "last_seen_at"),
    )

    agent_id: Mapped[UUID] = mapped_column(ForeignKey("agents.id", ondelete="CASCADE"))
    digest: Mapped[str] = mapped_column(String(64))
    subsystem: Mapped[str] = mapped_column(SHORT)
    type: Mapped[str] = mapped_column(SHORT)
    message: Mapped[str] = mapped_column(Text)
    stack: Mapped[str | None] = mapped_column(Text)
    context: Mapped[dict[str, Any]]
    count: Mapped[int] = mapped_column(BigInteger)
    first_seen_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]


class ErrorBatch(Tenant):
    """A batch that was accepted. ``id`` is the agent's: sent again, counted once."""

    __tablename__ = "error_batches"

    agent_id: Mapped[UUID] = mapped_column(ForeignKey("agents.id", ondelete="CASCADE"), index=True)
    received_at: Mapped[datetime]
