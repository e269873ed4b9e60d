"""What the API says about packages."""

from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import attrs

from redflag_core.patching import Decision
from redflag_core.scanning import PackageState, Severity


@attrs.frozen
class PackageItem:
    """
    A package on a machine.

    Attributes:
        id: Its id.
        agent_id: The machine.
        hostname: Name of the machine.
        manager: Package manager.
        name: As the manager spells it.
        arch: Architecture; ``any`` where the manager has none.
        installed: Installed version, or null.
        available: Version that the manager would install, or null.
        severity: How bad it is to lack that one.
        state: Where it stands.
        reason: Why it is in this state, or null: what the machine, its scanner or whoever decided says.
        security: Whether a security update is among what it lacks.
        origin: Repository of the available version, or null.
        source: Source package, or null.
        source_version: Its version, or null.
        download_size: Bytes to fetch, or null.
        automatic: Whether it is there only because another package needs it.
        cves: Vulnerabilities that the available version is known to close.
        first_seen_at: When it was first seen.
        state_at: Since when it has this state.
        decision: What was decided about it, or null. It holds until it is taken back or ends.
        decided_at: When, or null.
        decided_by: By whom, or null.
        decided_until: Until when it holds, or null for without an end.
        decision_reason: Why, or null.
        plan_id: The plan that it waits for or that changed it last, or null.
    """

    id: UUID
    agent_id: UUID
    hostname: str
    manager: str
    name: str
    arch: str
    installed: str | None
    available: str | None
    severity: Severity
    state: PackageState
    reason: str | None
    security: bool
    origin: str | None
    source: str | None
    source_version: str | None
    download_size: int | None
    automatic: bool
    cves: list[str]
    first_seen_at: datetime
    state_at: datetime
    decision: Decision | None
    decided_at: datetime | None
    decided_by: str | None
    decided_until: datetime | None
    decision_reason: str | None
    plan_id: UUID | None


_AT: Final = datetime(2026, 1, 2, 9, 30, tzinfo=UTC)

PACKAGE_EXAMPLE: Final = PackageItem(
    id=UUID("01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e63"),
    agent_id=UUID("01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e61"),
    hostname="web-01",
    manager="apt",
    name="openssl",
    arch="amd64",
    installed="3.0.15-1~deb12u1",
    available="3.0.16-1~deb12u1",
    severity=Severity.UNKNOWN,
    state=PackageState.APPROVED,
    reason="tested on the bench",
    security=True,
    origin="Debian-Security:12/stable-security",
    source="openssl",
    source_version="3.0.15-1~deb12u1",
    download_size=1_434_120,
    automatic=True,
    cves=["CVE-2024-13176"],
    first_seen_at=_AT,
    state_at=_AT,
    decision=Decision.APPROVE,
    decided_at=_AT,
    decided_by="user:alice",
    decided_until=None,
    decision_reason="tested on the bench",
    plan_id=None,
)
