"""Policies that somebody set, and how far those that are limited have come."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import Boolean, CheckConstraint, Float, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from redflag_core.rate_limit import MAX_TEXT
from redflag_server.db.base import SHORT, Base, Tenant, enum_check, in_order
from redflag_server.rate_limits.classes import RateClass


class RateLimit(Tenant):
    """
    A policy that replaces the built-in one, for one organization or, in the installation's, for all without one.

    ``policy`` is the text form of the core.
    """

    __tablename__ = "rate_limits"
    __table_args__ = (
        UniqueConstraint("organization_id", "class"),
        CheckConstraint(enum_check("class", RateClass), name="class"),
        Index("ix_rate_limits_organization_id_id", "organization_id", "id"),
    )

    rate_class: Mapped[str] = mapped_column("class", String(16))
    policy: Mapped[str] = mapped_column(String(MAX_TEXT))
    changed_at: Mapped[datetime]
    changed_by: Mapped[str] = mapped_column(SHORT)


class RateArrival(Base):
    """
    How far somebody has come in one class: the TAT of `redflag_core.rate_limit`.

    ``allowed`` is whether the last request was; it is there so that the statement that charges can tell.
    """

    __tablename__ = "rate_arrivals"

    key: Mapped[str] = mapped_column(in_order(192), primary_key=True)
    arrival: Mapped[float] = mapped_column(Float(53))
    allowed: Mapped[bool] = mapped_column(Boolean)


def key_of(name: RateClass, subject: UUID | str) -> str:
    """The key of one limited agent or credential in a class."""
    return f"{name}:{subject}"
