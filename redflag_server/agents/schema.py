"""What the API says about machines and registration tokens."""

from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import attrs

from redflag_core.enrolment import AgentStatus
from redflag_core.lifecycle import Presence
from redflag_server.fields import MAX_LABEL, between, line

MAX_SEATS: Final = 1000
MAX_TOKEN_SECONDS: Final = 30 * 86_400
"""Longest life of a registration token: it is a key to the house, made for a job."""


@attrs.frozen
class AgentItem:
    """
    A machine in a list.

    Attributes:
        id: Its id.
        organization_id: Whose it is.
        site_id: Where it is.
        site: Name of that site.
        hostname: As the machine calls itself.
        os: As the machine says: family, id, name, version, kernel, arch.
        agent_version: Version of the agent on it.
        status: Whether it may take part.
        status_reason: Why it has this status.
        status_at: Since when.
        presence: Whether it checks in: ``online``, ``offline`` or ``never``.
        registered_at: When it registered.
        last_seen_at: Its last check-in; its registration before the first.
        next_check_in_at: When it was told to come back, or null.
        packages: Number of packages in each state; ``current`` and ``not_applicable`` are left out.
        security: How many of them lack a security update.
        failing_scanners: How many scanners could not tell what the machine has.
        scanned_at: The last scan of packages that could tell, or null.
    """

    id: UUID
    organization_id: UUID
    site_id: UUID
    site: str
    hostname: str
    os: dict[str, Any]
    agent_version: str
    status: AgentStatus
    status_reason: str
    status_at: datetime
    presence: Presence
    registered_at: datetime
    last_seen_at: datetime | None
    next_check_in_at: datetime | None
    packages: dict[str, int]
    security: int
    failing_scanners: int
    scanned_at: datetime | None


@attrs.frozen
class ScannerItem:
    """
    One scanner on a machine.

    Attributes:
        name: Its name.
        manager: Package manager it speaks for.
        status: ``ok``, ``failed``, or ``open`` when it is not run because it kept failing.
        error: Why it failed, or null.
        warnings: What it could not do.
        facts: What else it saw.
        duration_ms: How long it took.
        taken_at: Its last run.
        succeeded_at: Its last run that could tell, or null.
    """

    name: str
    manager: str
    status: str
    error: str | None
    warnings: list[str]
    facts: dict[str, Any]
    duration_ms: int
    taken_at: datetime
    succeeded_at: datetime | None


@attrs.frozen
class AgentDetail:
    """
    A machine.

    Attributes:
        agent: What is in the list too.
        key_id: Key id of the network process.
        executor_key_id: Key id of the process that changes the machine.
        machine_binding: The machine id that commands are bound to.
        weak_ids: Hardware ids that are no evidence.
        container: Whether it says that it is a container.
        mismatch_since: Since when other hardware uses its key, or null.
        last_address: Address of its last check-in; of its registration before the first.
        scanners: Its scanners.
    """

    agent: AgentItem
    key_id: str
    executor_key_id: str
    machine_binding: str
    weak_ids: list[str]
    container: bool
    mismatch_since: datetime | None
    last_address: str | None
    scanners: list[ScannerItem]


@attrs.frozen
class TokenItem:
    """
    A registration token, without its secret.

    Attributes:
        id: Its id.
        organization_id: Where its machines will belong.
        site_id: Where its machines will be.
        label: What it is for.
        seats: How many machines may use it.
        used: How many did.
        expires_at: When it ends.
        cidr: The only network it can be used from, or null.
        needs_approval: Whether its machines wait for approval.
        created_at: When it was made.
        created_by: Who made it.
        revoked_at: When it was revoked, or null.
    """

    id: UUID
    organization_id: UUID
    site_id: UUID
    label: str
    seats: int
    used: int
    expires_at: datetime
    cidr: str | None
    needs_approval: bool
    created_at: datetime
    created_by: str
    revoked_at: datetime | None


@attrs.frozen
class NewToken:
    """
    Body of a request for a registration token.

    Attributes:
        label: What it is for.
        seats: How many machines may use it.
        expires_in_seconds: How long it can be used.
        site_id: Where its machines will be, or null for the first site.
        cidr: The only network it can be used from, or null.
        needs_approval: Whether its machines wait for approval.
    """

    label: str = attrs.field(validator=line(MAX_LABEL))
    seats: int = attrs.field(validator=between(1, MAX_SEATS))
    expires_in_seconds: int = attrs.field(validator=between(1, MAX_TOKEN_SECONDS))
    site_id: str | None = None
    cidr: str | None = attrs.field(default=None, validator=attrs.validators.optional(line(64)))
    needs_approval: bool = False


@attrs.frozen
class MadeToken:
    """
    A registration token that was made.

    Attributes:
        text: What to give to the machines. It is shown this once.
        registration_token: Its record.
    """

    text: str = attrs.field(repr=False)
    registration_token: TokenItem


_AT: Final = datetime(2026, 1, 2, 9, 30, tzinfo=UTC)
_ORGANIZATION: Final = UUID("01936f3e-0000-7000-8000-000000000001")
_SITE: Final = UUID("01936f3e-0000-7000-8000-000000000002")

AGENT_EXAMPLE: Final = AgentItem(
    id=UUID("01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e61"),
    organization_id=_ORGANIZATION,
    site_id=_SITE,
    site="Main",
    hostname="web-01",
    os={"family": "linux", "id": "debian", "name": "Debian GNU/Linux 12 (bookworm)", "version": "12"},
    agent_version="0.1.0",
    status=AgentStatus.ACTIVE,
    status_reason="registered with the token office",
    status_at=_AT,
    presence=Presence.ONLINE,
    registered_at=_AT,
    last_seen_at=_AT,
    next_check_in_at=_AT,
    packages={"available": 12, "held": 1, "kept_back": 2},
    security=3,
    failing_scanners=0,
    scanned_at=_AT,
)
DETAIL_EXAMPLE: Final = AgentDetail(
    agent=AGENT_EXAMPLE,
    key_id="0f1e2d3c4b5a69788796a5b4c3d2e1f0",
    executor_key_id="f0e1d2c3b4a5968778695a4b3c2d1e0f",
    machine_binding="6f9619ff8b864d01b42d00cf4fc964ff",
    weak_ids=["board_serial"],
    container=False,
    mismatch_since=None,
    last_address="192.0.2.10",
    scanners=[ScannerItem("apt", "apt", "ok", None, ["the lists are 9 days old"], {"held": 2}, 812, _AT, _AT)],
)
TOKEN_EXAMPLE: Final = TokenItem(
    id=UUID("01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e62"),
    organization_id=_ORGANIZATION,
    site_id=_SITE,
    label="office",
    seats=20,
    used=3,
    expires_at=_AT,
    cidr="192.0.2.0/24",
    needs_approval=False,
    created_at=_AT,
    created_by="user:alice",
    revoked_at=None,
)
NEW_TOKEN_EXAMPLE: Final = NewToken("office", 20, 86_400, str(_SITE), "192.0.2.0/24")
MADE_TOKEN_EXAMPLE: Final = MadeToken(
    "rfreg1.eyJhZGRyZXNzZXMiOlsiaHR0cHM6Ly9yZWRmbGFnLmV4YW1wbGUuY29tIl19", TOKEN_EXAMPLE
)
