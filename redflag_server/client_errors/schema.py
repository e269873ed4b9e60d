"""What the API says about errors of machines."""

from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import attrs


@attrs.frozen
class ErrorItem:
    """
    One kind of error of one machine.

    Attributes:
        id: Its id.
        agent_id: The machine.
        subsystem: Part of the agent that met it.
        type: Its type.
        message: What it says.
        stack: Where it happened, or null.
        context: Further facts, without secrets.
        count: How often it was met.
        first_seen_at: When first.
        last_seen_at: When last.
    """

    id: UUID
    agent_id: UUID
    subsystem: str
    type: str
    message: str
    stack: str | None
    context: dict[str, Any]
    count: int
    first_seen_at: datetime
    last_seen_at: datetime


_AT: Final = datetime(2026, 1, 2, 9, 30, tzinfo=UTC)

ERROR_EXAMPLE: Final = ErrorItem(
    id=UUID("01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e65"),
    agent_id=UUID("01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e61"),
    subsystem="scanner.apt",
    type="ScanError",
    message="apt-get ended with 100: the package lists are damaged",
    stack="redflag_agent.scanners.apt:120 in scan",
    context={"exit_status": 100},
    count=7,
    first_seen_at=_AT,
    last_seen_at=_AT,
)
