"""What the API says about approvals."""

from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import attrs

from redflag_core.approval_files import ApprovalAnswer, ApprovalItem, ApprovalRequest
from redflag_core.approvals import ApprovalLeaf
from redflag_core.patching import Change, Transaction
from redflag_core.scanning import PackageKey


@attrs.frozen
class ApprovalSummary:
    """
    An approval that an operator signed.

    Attributes:
        id: The id in it.
        organization_id: Whose machines these are.
        key_id: The key that signed it.
        key_name: Whose key that is.
        commands: How many commands it covers.
        max_starts: How often each of them may be started.
        valid_from: From when it is valid.
        valid_until: Until when.
        stored_at: When it was brought here.
        stored_by: By whom.
        live: Whether machines believe it now.
    """

    id: UUID
    organization_id: UUID
    key_id: str
    key_name: str
    commands: int
    max_starts: int
    valid_from: datetime
    valid_until: datetime
    stored_at: datetime
    stored_by: str
    live: bool


@attrs.frozen
class StoredApproval:
    """
    What became of an answer.

    Attributes:
        approval: The approval.
        made: Whether it was stored now; false when it was there already.
    """

    approval: ApprovalSummary
    made: bool


# --- examples ---

_AGENT: Final = "01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e61"
_BINDING: Final = "4a1f0c7b9d3e4f2a8b6c5d4e3f2a1b0c"
_LEAF: Final = ApprovalLeaf(agent_id=_AGENT, machine_binding=_BINDING, type="packages.upgrade", params="a" * 64)

SUMMARY_EXAMPLE: Final = ApprovalSummary(
    id=UUID("7d0c1a52-0b7e-4b6c-9a0e-6f3c2d1b0a98"),
    organization_id=UUID("01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e51"),
    key_id="21fe31dfa154a261626bf854046fd227",
    key_name="alice",
    commands=1,
    max_starts=1,
    valid_from=datetime(2026, 1, 2, 10, 0, tzinfo=UTC),
    valid_until=datetime(2026, 1, 5, 10, 0, tzinfo=UTC),
    stored_at=datetime(2026, 1, 2, 10, 5, tzinfo=UTC),
    stored_by="user:alice",
    live=True,
)
STORED_EXAMPLE: Final = StoredApproval(SUMMARY_EXAMPLE, made=True)
ANSWER_EXAMPLE: Final = ApprovalAnswer(envelope="eyJwYXlsb2FkIjoiLi4uIn0=", leaves=(_LEAF,))
REQUEST_EXAMPLE: Final = ApprovalRequest(
    server="0190b5a4-7a3c-7def-8abc-0123456789ab",
    root_fp="5" * 64,
    organization=str(SUMMARY_EXAMPLE.organization_id),
    organization_name="Default",
    items=(
        ApprovalItem(
            agent_id=_AGENT,
            hostname="web-01",
            machine_binding=_BINDING,
            type="packages.upgrade",
            params="e30=",
            transaction=Transaction(
                manager="apt",
                requested=(PackageKey("nginx", "amd64"),),
                changes=(
                    Change(name="nginx", arch="amd64", before="1.22.1-9", after="1.22.1-9+deb12u1"),
                    Change(name="nginx-old", arch="amd64", before="1.22.1-9"),
                ),
            ),
        ),
    ),
)
