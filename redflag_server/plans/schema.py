"""What the API says about decisions and plans."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import attrs
from attrs import validators

from redflag_core.patching import ApprovalReason, ChangeKind, Decision, PlanState
from redflag_core.scanning import PackageState, Severity
from redflag_core.statements import PackageOutcome
from redflag_server.fields import MAX_REASON, line

MAX_AT_ONCE: Final = 1_000
"""Most packages of one request: their ids fit into a small body, and others need not wait for its transaction."""

MAX_FILTER_VALUES: Final = 20
"""Values of one filter: there are fewer states than that."""

_IDS: Final[Any] = validators.deep_iterable(
    validators.max_len(36), [validators.min_len(1), validators.max_len(MAX_AT_ONCE)]
)


# --- decisions ---


@attrs.frozen
class Until:
    """
    Body of a decision that may end by itself.

    Attributes:
        reason: Why, for the event: one line.
        until: Until when, RFC 3339 with its offset (`2026-02-01T00:00:00Z`); null for without an end.
    """

    reason: str = attrs.field(validator=line(MAX_REASON))
    until: str | None = attrs.field(default=None, validator=validators.optional(validators.max_len(40)))


@attrs.frozen
class Selection:
    """
    Which packages, with the filters of the list: those that it shows for them.

    Attributes:
        agent_id: Their machine; null for all.
        states: Any of these; empty for all but packages that are up to date or gone.
        severities: Any of these; empty for all.
        name: Part of the name, in any case; null for all.
        manager: Their package manager; null for all.
    """

    agent_id: str | None = None
    states: tuple[PackageState, ...] = attrs.field(default=(), validator=validators.max_len(MAX_FILTER_VALUES))
    severities: tuple[Severity, ...] = attrs.field(default=(), validator=validators.max_len(MAX_FILTER_VALUES))
    name: str | None = attrs.field(default=None, validator=validators.optional(line(256)))
    manager: str | None = attrs.field(default=None, validator=validators.optional(line(32)))


@attrs.frozen
class Decide:
    """
    Body of a decision about many packages: those named, or all that are selected.

    Attributes:
        decision: What.
        reason: Why, for the events: one line.
        until: Until when, as for one package; needed to defer, possible to exclude.
        package_ids: The packages.
        select: Or all of these.
    """

    decision: Decision
    reason: str = attrs.field(validator=line(MAX_REASON))
    until: str | None = attrs.field(default=None, validator=validators.optional(validators.max_len(40)))
    package_ids: tuple[str, ...] | None = attrs.field(default=None, validator=validators.optional(_IDS))
    select: Selection | None = None

    def __attrs_post_init__(self) -> None:
        """One way to say which packages."""
        if (self.package_ids is None) == (self.select is None):
            raise ValueError("give either package_ids or select")


class DecisionOutcome(StrEnum):
    """What became of a decision about one package."""

    CHANGED = "changed"
    ALREADY = "already"
    REFUSED = "refused"
    NOT_FOUND = "not_found"


@attrs.frozen
class DecidedPackage:
    """
    One package of a decision.

    Attributes:
        package_id: Its id.
        name: Its name; null when there is no such package.
        outcome: ``changed``, ``already`` (so before), ``refused`` or ``not_found``.
        state: Its state now, or null.
        detail: Why it was refused and what to do, or null.
    """

    package_id: UUID
    name: str | None
    outcome: DecisionOutcome
    state: PackageState | None
    detail: str | None


@attrs.frozen
class BulkOutcome:
    """
    What became of a decision about many packages.

    Attributes:
        changed: How many were changed.
        already: How many were so before.
        refused: How many could not be decided about.
        not_found: How many there are not.
        items: Each of them.
    """

    changed: int
    already: int
    refused: int
    not_found: int
    items: list[DecidedPackage]


# --- plans ---


@attrs.frozen
class NewPlans:
    """
    Body of a request for plans: one for each machine and package manager.

    Attributes:
        reason: Why, for the events: one line.
        package_ids: Approved packages to plan.
        agent_id: Or all approved packages of this machine.
    """

    reason: str = attrs.field(validator=line(MAX_REASON))
    package_ids: tuple[str, ...] | None = attrs.field(default=None, validator=validators.optional(_IDS))
    agent_id: str | None = None

    def __attrs_post_init__(self) -> None:
        """One way to say which packages."""
        if (self.package_ids is None) == (self.agent_id is None):
            raise ValueError("give either package_ids or agent_id")


@attrs.frozen
class PlanItem:
    """
    A plan in a list.

    Attributes:
        id: Its id.
        agent_id: The machine.
        hostname: Name of the machine.
        manager: Package manager.
        state: Where it stands.
        state_at: Since when.
        code: Code of what went wrong, or null.
        detail: What went wrong, for people, or null.
        packages: How many packages were asked for.
        changes: How many packages would be changed; null while that is not known.
        extra: How many of them nobody asked for; null likewise.
        download_size: Bytes to fetch, or null.
        beyond_routine: Why it is more than a routine update: ``removal``, ``downgrade``, ``held``,
            ``unauthenticated``, ``not_installed``.
        advice: What to do, or null.
        created_at: When it was asked for.
        created_by: By whom.
        planned_at: When the machine answered, or null.
        confirmed_at: When its extra changes were confirmed, or null.
        confirmed_by: By whom, or null.
    """

    id: UUID
    agent_id: UUID
    hostname: str
    manager: str
    state: PlanState
    state_at: datetime
    code: str | None
    detail: str | None
    packages: int
    changes: int | None
    extra: int | None
    download_size: int | None
    beyond_routine: list[ApprovalReason]
    advice: str | None
    created_at: datetime
    created_by: str
    planned_at: datetime | None
    confirmed_at: datetime | None
    confirmed_by: str | None


@attrs.frozen
class PlannedPackage:
    """
    A package that was asked for.

    Attributes:
        package_id: Its id, or null when it is forgotten.
        name: Its name.
        arch: Architecture.
        installed: Version that was installed when it was asked for.
        available: Version to install.
        outcome: What the machine said of it last, or null.
        reason: Why, or null.
        state: Its state now, or null.
        changed: What changed about it since, or null: the machine will refuse the plan.
    """

    package_id: UUID | None
    name: str
    arch: str
    installed: str
    available: str
    outcome: PackageOutcome | None
    reason: str | None
    state: PackageState | None
    changed: str | None


@attrs.frozen
class PlannedChange:
    """
    One package that would be changed.

    Attributes:
        name: Its name.
        arch: Architecture.
        kind: ``upgrade``, ``install``, ``remove`` or ``downgrade``.
        before: Installed version, or null.
        after: Version afterwards, or null.
        extra: Whether nobody asked for it.
        held: Whether the machine's owner holds it.
        authenticated: Whether it comes from a repository whose signature was checked.
        origin: Repository, or null.
    """

    name: str
    arch: str
    kind: ChangeKind
    before: str | None
    after: str | None
    extra: bool
    held: bool
    authenticated: bool
    origin: str | None


@attrs.frozen
class PlannedTransaction:
    """
    Exactly what the machine would do.

    Attributes:
        hash: Hash of it: the machine carries out what has this hash, or nothing.
        changes: Every package that would be changed, in order of name.
        download_size: Bytes to fetch, or null.
        disk_size: Bytes that the disk would hold more, negative for less, or null.
    """

    hash: str
    changes: list[PlannedChange]
    download_size: int | None
    disk_size: int | None


@attrs.frozen
class PlanApproval:
    """
    An operator's approval with which a plan can be installed now.

    Attributes:
        id: The approval.
        key_name: Whose key signed it.
        valid_until: Until when the installation may begin.
    """

    id: UUID
    key_name: str
    valid_until: datetime


@attrs.frozen
class PlanDetail(PlanItem):
    """
    A plan.

    Attributes:
        targets: What was asked for, and what became of it.
        transaction: What the machine would do; null while that is not known.
        approval: The approval of a plan that is beyond routine and waits; null for none.
    """

    targets: list[PlannedPackage]
    transaction: PlannedTransaction | None
    approval: PlanApproval | None = None


@attrs.frozen
class SkippedPackage:
    """
    An approved package that is in none of the plans, and stays approved.

    Attributes:
        package_id: Its id.
        name: Its name.
        detail: Why, and what to do.
    """

    package_id: UUID
    name: str
    detail: str


@attrs.frozen
class PlansMade:
    """
    Plans that were asked for now.

    Attributes:
        items: The plans, one for each machine and package manager.
        left: How many approved packages of the machine did not fit. They stay approved: plan again afterwards.
        skipped: Packages that cannot be planned now: their machine still works on them or, where a machine was
            named, their names or versions are none that may become part of a command line.
    """

    items: list[PlanItem]
    left: int = 0
    skipped: list[SkippedPackage] = attrs.field(factory=list)


# --- examples ---

_AT: Final = datetime(2026, 1, 2, 9, 30, tzinfo=UTC)
_PACKAGE: Final = UUID("01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e63")
_AGENT: Final = UUID("01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e61")

UNTIL_EXAMPLE: Final = Until("not before the migration", "2026-02-01T00:00:00Z")
DECIDE_EXAMPLE: Final = Decide(
    Decision.APPROVE, "security updates", select=Selection(str(_AGENT), severities=(Severity.IMPORTANT,))
)
BULK_EXAMPLE: Final = BulkOutcome(
    changed=1,
    already=0,
    refused=1,
    not_found=0,
    items=[
        DecidedPackage(_PACKAGE, "openssl", DecisionOutcome.CHANGED, PackageState.APPROVED, None),
        DecidedPackage(
            UUID("01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e65"),
            "linux-image-amd64",
            DecisionOutcome.REFUSED,
            PackageState.HELD,
            "a package that is held cannot be approved: release it on the machine itself, where it is held, "
            "then scan again",
        ),
    ],
)
NEW_PLANS_EXAMPLE: Final = NewPlans("patch day", (str(_PACKAGE),))
_PLAN: Final[dict[str, Any]] = {
    "id": UUID("01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e66"),
    "agent_id": _AGENT,
    "hostname": "web-01",
    "manager": "apt",
    "state": PlanState.NEEDS_CONFIRMATION,
    "state_at": _AT,
    "code": None,
    "detail": None,
    "packages": 1,
    "changes": 2,
    "extra": 1,
    "download_size": 1_434_120,
    "beyond_routine": [],
    "advice": "look at the changes that nobody asked for, then confirm the plan or discard it",
    "created_at": _AT,
    "created_by": "user:alice",
    "planned_at": _AT,
    "confirmed_at": None,
    "confirmed_by": None,
}
PLAN_EXAMPLE: Final = PlanItem(**_PLAN)
PLAN_DETAIL_EXAMPLE: Final = PlanDetail(
    **_PLAN,
    targets=[
        PlannedPackage(
            _PACKAGE,
            "openssl",
            "amd64",
            "3.0.15-1~deb12u1",
            "3.0.16-1~deb12u1",
            PackageOutcome.PLANNED,
            None,
            PackageState.NEEDS_CONFIRMATION,
            None,
        )
    ],
    transaction=PlannedTransaction(
        hash="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        changes=[
            PlannedChange(
                "libssl3", "amd64", ChangeKind.UPGRADE, "3.0.15-1~deb12u1", "3.0.16-1~deb12u1", True, False, True,
                "Debian-Security:12/stable-security",
            ),
            PlannedChange(
                "openssl", "amd64", ChangeKind.UPGRADE, "3.0.15-1~deb12u1", "3.0.16-1~deb12u1", False, False, True,
                "Debian-Security:12/stable-security",
            ),
        ],
        download_size=1_434_120,
        disk_size=0,
    ),
)  # fmt: skip
PLANS_MADE_EXAMPLE: Final = PlansMade([PLAN_EXAMPLE])
