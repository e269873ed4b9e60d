"""What the API says about events."""

from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import attrs


@attrs.frozen
class EventItem:
    """
    Something that happened.

    Attributes:
        id: Its id.
        organization_id: Whose event it is; all zero for the server's own.
        at: When.
        kind: Stable name, ``agent.registered``.
        actor: Who: ``user:...``, ``api-key:...``, ``agent:...``, ``server``, ``address:...``.
        agent_id: The machine it is about, or null.
        package_id: The package of it that it is about, or null.
        code: Error code of a refusal, or null.
        message: What happened, for people.
        data: Further facts.
        position: Place in the history of its organization, 1, 2, 3 without a gap; null until it has one, for a
            second.
    """

    id: UUID
    organization_id: UUID
    at: datetime
    kind: str
    actor: str
    agent_id: UUID | None
    package_id: UUID | None
    code: str | None
    message: str
    data: dict[str, Any]
    position: int | None


EVENT_EXAMPLE: Final = EventItem(
    id=UUID("01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e64"),
    organization_id=UUID("01936f3e-0000-7000-8000-000000000001"),
    at=datetime(2026, 1, 2, 9, 30, tzinfo=UTC),
    kind="agent.approved",
    actor="user:alice",
    agent_id=UUID("01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e61"),
    package_id=None,
    code=None,
    message="web-01 was approved: seen on the rack, serial number checked",
    data={"before": "pending", "reason": "seen on the rack, serial number checked"},
    position=1042,
)
