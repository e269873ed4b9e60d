"""Approvals that operators signed, and what each of them covers."""

from datetime import datetime
from typing import Any
from uuid import UUID

from advanced_alchemy.types import JsonB
from sqlalchemy import ForeignKey, Index, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from redflag_server.db.base import SHORT, Tenant


class Approval(Tenant):
    """
    One signed approval, exactly as it came. ``signed_id`` is the id in it; the same one is stored once.

    ``covered`` are its leaves in order: a proof is made from all of them. Whether it is still believed is decided
    from the envelope and the trust bundle whenever it is used.
    """

    __tablename__ = "approvals"
    __table_args__ = (
        UniqueConstraint("signed_id"),
        Index("ix_approvals_organization_id_id", "organization_id", "id"),
    )

    signed_id: Mapped[UUID]
    key_id: Mapped[str] = mapped_column(String(32))
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    covered: Mapped[list[dict[str, Any]]] = mapped_column(JsonB)
    max_starts: Mapped[int]
    valid_from: Mapped[datetime]
    valid_until: Mapped[datetime]
    stored_at: Mapped[datetime]
    stored_by: Mapped[str] = mapped_column(SHORT)


class CoveredCommand(Tenant):
    """One leaf of an approval, to be found by its agent and the SHA-256 of its bytes."""

    __tablename__ = "approval_leaves"
    __table_args__ = (
        UniqueConstraint("approval_id", "position"),
        Index("ix_approval_leaves_agent_id_digest", "agent_id", "digest"),
    )

    approval_id: Mapped[UUID] = mapped_column(ForeignKey("approvals.id", ondelete="CASCADE"))
    position: Mapped[int]
    agent_id: Mapped[UUID] = mapped_column(ForeignKey("agents.id", ondelete="CASCADE"))
    digest: Mapped[str] = mapped_column(String(64))
