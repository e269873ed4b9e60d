"""Registered agents and the tokens with which they register."""

from datetime import datetime
from typing import Any
from uuid import UUID

from advanced_alchemy.types import JsonB
from sqlalchemy import BigInteger, CheckConstraint, Float, ForeignKey, Index, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from redflag_core.enrolment import AgentStatus
from redflag_server.db.base import NAME, SHORT, Tenant, enum_check


class RegistrationToken(Tenant):
    """A number of seats for new agents. The secret itself is not kept, only its SHA-256."""

    __tablename__ = "registration_tokens"
    __table_args__ = (CheckConstraint("used >= 0 AND used <= seats", name="seats"),)

    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id", ondelete="RESTRICT"))
    label: Mapped[str] = mapped_column(NAME)
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    seats: Mapped[int]
    used: Mapped[int] = mapped_column(default=0)
    expires_at: Mapped[datetime]
    cidr: Mapped[str | None] = mapped_column(String(64))
    needs_approval: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(SHORT)
    revoked_at: Mapped[datetime | None]


class Agent(Tenant):
    """
    One enrolled machine.

    Identity is ``key_id``; the machine (``evidence``) is evidence for it. Times that requests are compared with
    are unix seconds, as on the wire. ``epoch, gen, seq`` is the highest order that the executor signed,
    ``order_at`` when it signed its last statement; ``issued_*`` is the highest that was given out to it.
    """

    __tablename__ = "agents"
    __table_args__ = (
        CheckConstraint(enum_check("status", AgentStatus), name="status"),
        Index("ix_agents_organization_id_id", "organization_id", "id"),
    )

    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id", ondelete="RESTRICT"), index=True)
    hostname: Mapped[str] = mapped_column(NAME)
    os: Mapped[dict[str, Any]]
    agent_version: Mapped[str] = mapped_column(SHORT)
    protocol: Mapped[list[int]] = mapped_column(JsonB)

    status: Mapped[str] = mapped_column(String(20), index=True)
    status_reason: Mapped[str] = mapped_column(Text, default="")
    status_at: Mapped[datetime]
    registered_at: Mapped[datetime]
    registered_with: Mapped[UUID | None] = mapped_column(ForeignKey("registration_tokens.id", ondelete="RESTRICT"))

    key_type: Mapped[str] = mapped_column(String(16))
    key_id: Mapped[str] = mapped_column(String(32), unique=True)
    public_key: Mapped[bytes] = mapped_column(LargeBinary(32))
    executor_key_id: Mapped[str] = mapped_column(String(32), unique=True)
    executor_key: Mapped[bytes] = mapped_column(LargeBinary(32))
    token_version: Mapped[int] = mapped_column(default=1)

    machine_binding: Mapped[str] = mapped_column(String(32), index=True)
    evidence: Mapped[dict[str, Any]]
    evidence_digest: Mapped[str] = mapped_column(String(64))
    presented_evidence: Mapped[dict[str, Any] | None]
    mismatch_since: Mapped[datetime | None]
    last_match_at: Mapped[datetime]
    boot_id: Mapped[str | None] = mapped_column(String(64))
    previous_boot_id: Mapped[str | None] = mapped_column(String(64))

    first_refresh_hash: Mapped[bytes] = mapped_column(LargeBinary(32))
    first_evidence_digest: Mapped[str] = mapped_column(String(64))
    refresh_current: Mapped[bytes] = mapped_column(LargeBinary(32))
    refresh_previous: Mapped[bytes | None] = mapped_column(LargeBinary(32))
    refresh_generation: Mapped[int] = mapped_column(default=0)
    refresh_expires_at: Mapped[int] = mapped_column(BigInteger)
    refresh_adopted_gen: Mapped[int | None] = mapped_column(BigInteger)

    epoch: Mapped[int] = mapped_column(BigInteger, default=0)
    gen: Mapped[int] = mapped_column(BigInteger, default=0)
    seq: Mapped[int] = mapped_column(BigInteger, default=0)
    order_at: Mapped[int] = mapped_column(BigInteger, default=0)
    issued_epoch: Mapped[int] = mapped_column(BigInteger, default=0)
    issued_gen: Mapped[int] = mapped_column(BigInteger, default=0)
    issued_seq: Mapped[int] = mapped_column(BigInteger, default=0)

    last_seen_at: Mapped[datetime | None]
    last_address: Mapped[str | None] = mapped_column(String(64))
    next_check_in_at: Mapped[datetime | None]
    rate_arrival: Mapped[float | None] = mapped_column(Float)
