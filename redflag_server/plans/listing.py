"""Plans as operators see them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer

from redflag_core import codec
from redflag_core.patching import ApprovalReason, PackageTarget, PlanState, Transaction
from redflag_core.patching.plan_states import OPEN
from redflag_core.scanning import PackageKey, PackageState
from redflag_core.statements import PackageResult
from redflag_server.agents.tables import Agent
from redflag_server.db.pages import Page, PageOf, fetch_page
from redflag_server.db.scope import Scope
from redflag_server.packages.tables import Package
from redflag_server.plans.approving import NEVER, approval_of_plan, is_never_approved
from redflag_server.plans.follow import targets_of
from redflag_server.plans.schema import (
    PlanApproval,
    PlanDetail,
    PlanItem,
    PlannedChange,
    PlannedPackage,
    PlannedTransaction,
)
from redflag_server.plans.tables import Plan
from redflag_server.problems import NotFoundError

NEEDS_APPROVAL: Final = (
    "an operator must approve this: export it from /approvals/request, sign it with `redflag approve`, and bring "
    "the answer to /approvals"
)

_WAITING: Final = frozenset({PlanState.NEEDS_CONFIRMATION, PlanState.READY})

_ADVICE: Final[Mapping[PlanState, str]] = {
    PlanState.PLANNING: "wait for the machine",
    PlanState.NEEDS_CONFIRMATION: "look at the changes that nobody asked for, then confirm the plan or discard it",
    PlanState.READY: "install it",
    PlanState.INSTALLING: "wait for the machine",
    PlanState.FAILED: "look at why, then approve the packages again or reopen them",
    PlanState.DROPPED: "plan the packages again",
}


@attrs.frozen
class PlanFilter:
    """
    Which plans.

    Attributes:
        agent_id: Of this machine; None for all.
        states: Any of these; empty for all.
    """

    agent_id: UUID | None = None
    states: Sequence[PlanState] = ()


async def list_plans(session: AsyncSession, visible: Scope, wanted: PlanFilter, page: PageOf) -> Page[PlanItem]:
    """One page of the plans that the caller may see, newest first."""
    bulky = (defer(Plan.targets), defer(Plan.transaction), defer(Plan.outcomes))
    query = visible.select(Plan, Plan, Agent.hostname).join(Agent, Agent.id == Plan.agent_id).options(*bulky)
    if wanted.agent_id is not None:
        query = query.where(Plan.agent_id == wanted.agent_id)
    if wanted.states:
        query = query.where(Plan.state.in_(wanted.states))
    rows, cursor = await fetch_page(session, query, Plan, page)
    return Page([plan_item(plan, hostname) for plan, hostname in rows], cursor)


async def get_plan(session: AsyncSession, visible: Scope, plan_id: UUID, now: datetime) -> PlanDetail:
    """
    One plan, with the approval that it has *now*, if it needs one.

    Raises:
        NotFoundError: No such plan, or not for the caller to see.
    """
    query = visible.select(Plan, Plan, Agent.hostname).join(Agent, Agent.id == Plan.agent_id)
    row = (await session.execute(query.where(Plan.id == plan_id))).one_or_none()
    if row is None:
        raise NotFoundError("there is no such plan")
    plan, hostname = row
    packages = visible.select(Package).where(
        Package.agent_id == plan.agent_id,
        Package.scanner == plan.scanner,
        Package.name.in_({target["name"] for target in plan.targets}),
    )
    known = {PackageKey(row.name, row.arch): row for row in (await session.scalars(packages)).all()}
    approval = await _approval(session, plan, now)
    return PlanDetail(
        **_facts(plan, hostname, is_approved=approval is not None),
        targets=_targets(plan, known),
        transaction=None if plan.transaction is None else _shown(codec.structure(Transaction, plan.transaction)),
        approval=approval,
    )


def plan_item(plan: Plan, hostname: str) -> PlanItem:
    """What a list shows of a plan."""
    return PlanItem(**_facts(plan, hostname))


def what_changed(plan: Plan, target: PackageTarget, package: Package | None) -> str | None:
    """
    What became different about a package since its plan was made, for people; None for nothing.

    Only an open plan is told about: what happened after one that ended is not its concern.
    """
    if PlanState(plan.state) not in OPEN:
        return None
    if package is None or not package.present:
        return "it is no longer on the machine"
    if package.installed != target.installed:
        return f"{package.installed} is installed by now"
    if package.available != target.available:
        return f"{package.available} is available by now" if package.available else "nothing newer is known by now"
    return None


async def _approval(session: AsyncSession, plan: Plan, now: datetime) -> PlanApproval | None:
    if not plan.beyond_routine or plan.state not in _WAITING:
        return None
    found = await approval_of_plan(session, plan, now)
    return None if found is None else PlanApproval(found.row.signed_id, found.key_name, found.row.valid_until)


def _facts(plan: Plan, hostname: str, *, is_approved: bool = False) -> dict[str, Any]:
    return {
        "id": plan.id,
        "agent_id": plan.agent_id,
        "hostname": hostname,
        "manager": plan.manager,
        "state": PlanState(plan.state),
        "state_at": plan.state_at,
        "code": plan.code,
        "detail": plan.detail,
        "packages": plan.packages,
        "changes": plan.changes,
        "extra": plan.extra,
        "download_size": plan.download_size,
        "beyond_routine": [ApprovalReason(reason) for reason in plan.beyond_routine],
        "advice": _advice(plan, is_approved=is_approved),
        "created_at": plan.created_at,
        "created_by": plan.created_by,
        "planned_at": plan.planned_at,
        "confirmed_at": plan.confirmed_at,
        "confirmed_by": plan.confirmed_by,
    }


def _advice(plan: Plan, *, is_approved: bool) -> str | None:
    state = PlanState(plan.state)
    if plan.beyond_routine and state in _WAITING and not is_approved:
        return NEVER if is_never_approved(plan.beyond_routine) else NEEDS_APPROVAL
    return _ADVICE.get(state)


def _targets(plan: Plan, known: Mapping[PackageKey, Package]) -> list[PlannedPackage]:
    outcomes = [codec.structure(PackageResult, outcome) for outcome in plan.outcomes]
    said = {outcome.key: outcome for outcome in outcomes}
    return [_target(plan, target, known.get(target.key), said.get(target.key)) for target in targets_of(plan)]


def _target(
    plan: Plan, target: PackageTarget, package: Package | None, said: PackageResult | None
) -> PlannedPackage:
    return PlannedPackage(
        package_id=None if package is None else package.id,
        name=target.name,
        arch=target.arch,
        installed=target.installed,
        available=target.available,
        outcome=None if said is None else said.outcome,
        reason=None if said is None else said.reason,
        state=None if package is None else PackageState(package.state),
        changed=what_changed(plan, target, package),
    )


def _shown(transaction: Transaction) -> PlannedTransaction:
    asked = set(transaction.requested)
    changes = [
        PlannedChange(
            name=change.name,
            arch=change.arch,
            kind=change.kind,
            before=change.before,
            after=change.after,
            extra=change.key not in asked,
            held=change.held,
            authenticated=change.authenticated,
            origin=change.origin,
        )
        for change in sorted(transaction.changes, key=lambda change: change.key)
    ]
    return PlannedTransaction(transaction.plan_hash, changes, transaction.download_size, transaction.disk_size)
