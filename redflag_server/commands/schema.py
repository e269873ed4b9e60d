"""What the API says about commands, and what people send to order one."""

from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import attrs

from redflag_core.command_queue import ORDERED_BY_PEOPLE, CommandState
from redflag_core.commands import HEARTBEAT_SECONDS, CommandType
from redflag_core.encoding import b64encode
from redflag_server.fields import MAX_REASON, between, line

MAX_SCANNER: Final = 32


@attrs.frozen
class CommandItem:
    """
    An order to one machine.

    Attributes:
        id: Its id, for ever the same.
        organization_id: The machine's organization.
        agent_id: The machine.
        hostname: Name of the machine.
        type: What is ordered.
        params: With what.
        state: Where it stands.
        state_at: Since when.
        reason: Why it was ordered.
        created_at: When.
        created_by: By whom.
        retry_of: The command that it is tried again for, or null.
        plan_id: The plan that it belongs to, or null.
        start_by: Until when it may be started.
        not_before: When it is handed out again, after it was refused for now; or null.
        delivered_at: When it was first handed out: from then on the machine may have started it. Null before.
        deliveries: How often it was handed out.
        refusals: How often the machine refused it for now.
        accepted_at: When the machine accepted it, by the machine's clock; or null.
        started_at: When it started it, or null.
        finished_at: When it ended, or null.
        code: Why it did not work, or null.
        detail: The same for people, or null.
        progress: What the machine last said while it carried it out, or null.
        cancel_requested_at: When the machine was asked not to start it, or null.
        overdue_at: Since when it takes longer than it should, or null.
        archived_at: When it was archived, or null.
    """

    id: UUID
    organization_id: UUID
    agent_id: UUID
    hostname: str
    type: str
    params: dict[str, Any]
    state: CommandState
    state_at: datetime
    reason: str
    created_at: datetime
    created_by: str
    retry_of: UUID | None
    plan_id: UUID | None
    start_by: datetime
    not_before: datetime | None
    delivered_at: datetime | None
    deliveries: int
    refusals: int
    accepted_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    code: str | None
    detail: str | None
    progress: dict[str, Any] | None
    cancel_requested_at: datetime | None
    overdue_at: datetime | None
    archived_at: datetime | None


@attrs.frozen
class StatementItem:
    """
    What the machine's executor signed about a command: verify it yourself with the key beside it.

    Attributes:
        kind: ``accepted``, ``refused`` or ``result``.
        received_at: When it arrived.
        envelope: The envelope (DSSE) as it came, in base64.
    """

    kind: str
    received_at: datetime
    envelope: str


@attrs.frozen
class CommandDetail:
    """
    An order to one machine, with what the machine answered.

    Attributes:
        command: What is in the list too.
        digest: What was ordered: SHA-256 over type, parameters and id. Each statement names it.
        result: What the executor signed as its result, without what is above; null before.
        executor_key: Public key of the machine's executor, in base64.
        statements: What it signed, the newest first; of more than 20, the newest.
    """

    command: CommandItem
    digest: str
    result: dict[str, Any] | None
    executor_key: str
    statements: list[StatementItem]


@attrs.frozen
class NewOrder:
    """
    Body of an order.

    Attributes:
        agent_id: The machine.
        type: ``scan.run`` or ``agent.heartbeat``.
        reason: Why, for the event: one line.
        scanner: For a scan: the scanner, or null for all.
        seconds: For a heartbeat: for how long the machine checks in fast.
    """

    agent_id: str = attrs.field(validator=line(36))
    type: str = attrs.field(validator=attrs.validators.in_(sorted(ORDERED_BY_PEOPLE)))
    reason: str = attrs.field(validator=line(MAX_REASON))
    scanner: str | None = attrs.field(default=None, validator=attrs.validators.optional(line(MAX_SCANNER)))
    seconds: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(between(10, HEARTBEAT_SECONDS))
    )


@attrs.frozen
class Ordered:
    """
    What was ordered.

    Attributes:
        command: The command.
        made: Whether it is a new one. The machine may have the same order open already: then it is that one.
    """

    command: CommandItem
    made: bool


_AT: Final = datetime(2026, 1, 2, 9, 30, tzinfo=UTC)

COMMAND_EXAMPLE: Final = CommandItem(
    id=UUID("01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e68"),
    organization_id=UUID("01936f3e-0000-7000-8000-000000000001"),
    agent_id=UUID("01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e61"),
    hostname="web-01",
    type=CommandType.SCAN_RUN,
    params={"scanner": "apt"},
    state=CommandState.COMPLETED,
    state_at=_AT,
    reason="after the maintenance",
    created_at=_AT,
    created_by="user:alice",
    retry_of=None,
    plan_id=None,
    start_by=datetime(2026, 1, 9, 9, 30, tzinfo=UTC),
    not_before=None,
    delivered_at=_AT,
    deliveries=1,
    refusals=0,
    accepted_at=_AT,
    started_at=_AT,
    finished_at=_AT,
    code=None,
    detail=None,
    progress={
        "at": 1_767_346_200,
        "number": 1,
        "phase": "running",
        "doing": "scanning",
        "percent": None,
        "lines": [],
    },
    cancel_requested_at=None,
    overdue_at=None,
    archived_at=None,
)
COMMAND_DETAIL_EXAMPLE: Final = CommandDetail(
    command=COMMAND_EXAMPLE,
    digest="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    result={"exit_status": None, "output": "", "output_bytes": 0, "reboot_required": False},
    executor_key=b64encode(b"executor key of example machine "),
    statements=[StatementItem("result", _AT, b64encode(b'{"payload":"...","payloadType":"..."}'))],
)
NEW_ORDER_EXAMPLE: Final = NewOrder(
    agent_id="01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e61",
    type=CommandType.SCAN_RUN,
    reason="after the maintenance",
    scanner="apt",
)
ORDERED_EXAMPLE: Final = Ordered(COMMAND_EXAMPLE, made=True)
