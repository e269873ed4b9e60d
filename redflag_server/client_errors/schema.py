"""What the API says about errors."""

from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import attrs

from redflag_server.client_errors.tables import ErrorSource


@attrs.frozen
class ErrorItem:
    """
    One kind of error of one machine, or of the server.

    Attributes:
        id: Its id.
        organization_id: Whose it is; all zero for the server's own.
        source: Who met it.
        agent_id: The machine, or null.
        digest: What makes two errors the same: equal on all machines.
        subsystem: Part of the agent or server that met it.
        type: Its type.
        message: What it says, the last time.
        stack: Where it happened, or null.
        context: Further facts, without secrets.
        count: How often it was met.
        first_seen_at: When first.
        last_seen_at: When last.
        resolved_at: Since when it is taken for resolved, or null. To be seen again makes it null.
        resolved_by: Who resolved it last, or null.
        resolution: What they said, or null.
    """

    id: UUID
    organization_id: UUID
    source: ErrorSource
    agent_id: UUID | None
    digest: str
    subsystem: str
    type: str
    message: str
    stack: str | None
    context: dict[str, Any]
    count: int
    first_seen_at: datetime
    last_seen_at: datetime
    resolved_at: datetime | None
    resolved_by: str | None
    resolution: str | None


@attrs.frozen
class ErrorCount:
    """
    Errors of one type in one subsystem.

    Attributes:
        source: Who met them.
        subsystem: Part of the agent or server that met them.
        type: Their type.
        kinds: How many kinds, each counted once for each machine.
        machines: On how many machines; 0 for the server's.
        count: How often they were met.
        last_seen_at: When last.
    """

    source: ErrorSource
    subsystem: str
    type: str
    kinds: int
    machines: int
    count: int
    last_seen_at: datetime


@attrs.frozen
class ErrorCounts:
    """
    Errors counted.

    Attributes:
        items: The most frequent first; at most 100.
        kinds: All kinds, also of what is not listed.
        count: How often all of them were met.
    """

    items: list[ErrorCount]
    kinds: int
    count: int


@attrs.frozen
class Deleted:
    """
    Answer where something was deleted.

    Attributes:
        id: Its id.
    """

    id: UUID


_AT: Final = datetime(2026, 1, 2, 9, 30, tzinfo=UTC)

ERROR_EXAMPLE: Final = ErrorItem(
    id=UUID("01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e65"),
    organization_id=UUID("01936f3e-0000-7000-8000-000000000001"),
    source=ErrorSource.AGENT,
    agent_id=UUID("01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e61"),
    digest="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    subsystem="scanner.apt",
    type="ScanError",
    message="apt-get ended with 100: the package lists are damaged",
    stack="redflag_agent.scanners.apt:120 in scan",
    context={"exit_status": 100},
    count=7,
    first_seen_at=_AT,
    last_seen_at=_AT,
    resolved_at=None,
    resolved_by=None,
    resolution=None,
)
RESOLVED_EXAMPLE: Final = attrs.evolve(
    ERROR_EXAMPLE, resolved_at=_AT, resolved_by="user:alice", resolution="the disk was full"
)
COUNTS_EXAMPLE: Final = ErrorCounts(
    items=[ErrorCount(ErrorSource.AGENT, "scanner.apt", "ScanError", 3, 2, 19, _AT)], kinds=3, count=19
)
DELETED_EXAMPLE: Final = Deleted(ERROR_EXAMPLE.id)
