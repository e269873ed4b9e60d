"""Scan reports and the packages they list."""

from datetime import datetime
from typing import Any
from uuid import UUID

from advanced_alchemy.types import JsonB
from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from redflag_core.scanning import PackageState, Severity
from redflag_server.db.base import NAME, SHORT, Tenant, enum_check, in_order


class Scanner(Tenant):
    """What is known of one scanner on one agent."""

    __tablename__ = "scanners"
    __table_args__ = (
        UniqueConstraint("agent_id", "name"),
        CheckConstraint("status IN ('ok', 'failed', 'open')", name="status"),
    )

    agent_id: Mapped[UUID] = mapped_column(ForeignKey("agents.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(in_order(32))
    manager: Mapped[str] = mapped_column(String(32))
    status: Mapped[str] = mapped_column(String(16))
    error: Mapped[str | None] = mapped_column(Text)
    warnings: Mapped[list[str]] = mapped_column(JsonB)
    facts: Mapped[dict[str, Any]]
    duration_ms: Mapped[int] = mapped_column(BigInteger)
    taken_at: Mapped[datetime]
    succeeded_at: Mapped[datetime | None]
    inventory_hash: Mapped[str | None] = mapped_column(String(64))
    content: Mapped[str | None] = mapped_column(String(64))


class ScanReport(Tenant):
    """One accepted report, without its packages. ``id`` is the agent's report id: sent again, accepted once."""

    __tablename__ = "scan_reports"
    __table_args__ = (Index("ix_scan_reports_agent_id_received_at", "agent_id", "received_at"),)

    agent_id: Mapped[UUID] = mapped_column(ForeignKey("agents.id", ondelete="CASCADE"))
    scanner: Mapped[str] = mapped_column(String(32))
    received_at: Mapped[datetime]
    taken_at: Mapped[datetime]
    status: Mapped[str] = mapped_column(String(16))
    full: Mapped[bool]
    changed: Mapped[int]
    removed: Mapped[int]
    inventory_hash: Mapped[str | None] = mapped_column(String(64))


class Package(Tenant):
    """
    One package on one agent.

    ``observed`` is what the last successful scan saw; ``state`` is what is true of it now: the same, unless the
    scanner failed since (`unknown`) or the package is gone (`not_applicable`). ``present`` says whether it is in
    the inventory that the scanner's hash is of.

    ``reason`` is the scanner's; ``state_reason`` says why the state is one that no scan gave. Where only scans
    speak (`redflag_core.patching.states.UNDECIDED`) nobody's decision and no plan is kept.
    """

    __tablename__ = "packages"
    __table_args__ = (
        UniqueConstraint("agent_id", "scanner", "name", "arch"),
        CheckConstraint(enum_check("state", PackageState), name="state"),
        CheckConstraint(enum_check("observed", PackageState), name="observed"),
        CheckConstraint(enum_check("severity", Severity), name="severity"),
        Index("ix_packages_agent_id_state_security", "agent_id", "state", "security"),
        Index("ix_packages_organization_id_state", "organization_id", "state"),
    )

    agent_id: Mapped[UUID] = mapped_column(ForeignKey("agents.id", ondelete="CASCADE"))
    manager: Mapped[str] = mapped_column(in_order(32))
    scanner: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(in_order(256))
    arch: Mapped[str] = mapped_column(in_order(32))
    installed: Mapped[str | None] = mapped_column(NAME)
    available: Mapped[str | None] = mapped_column(NAME)
    observed: Mapped[str] = mapped_column(String(24))
    state: Mapped[str] = mapped_column(String(24))
    state_at: Mapped[datetime]
    severity: Mapped[str] = mapped_column(String(16))
    security: Mapped[bool]
    reason: Mapped[str | None] = mapped_column(Text)
    origin: Mapped[str | None] = mapped_column(Text)
    source: Mapped[str | None] = mapped_column(NAME)
    source_version: Mapped[str | None] = mapped_column(NAME)
    download_size: Mapped[int | None] = mapped_column(BigInteger)
    automatic: Mapped[bool]
    cves: Mapped[list[str]] = mapped_column(JsonB)
    first_seen_at: Mapped[datetime]
    present: Mapped[bool]
    plan_id: Mapped[UUID | None] = mapped_column(ForeignKey("plans.id", ondelete="SET NULL"), index=True)
    decision: Mapped[str | None] = mapped_column(String(16))
    decided_at: Mapped[datetime | None]
    decided_by: Mapped[str | None] = mapped_column(SHORT)
    decided_until: Mapped[datetime | None] = mapped_column(index=True)
    decision_reason: Mapped[str | None] = mapped_column(Text)
    state_reason: Mapped[str | None] = mapped_column(Text)
