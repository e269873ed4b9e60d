"""What is asked of an operator: plans beyond routine as a file, with the exact bytes that would be ordered."""

from collections.abc import Collection, Sequence
from typing import Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core import codec
from redflag_core.approval_files import ApprovalItem, ApprovalRequest, dump_request
from redflag_core.commands import CommandType, dump_params
from redflag_core.encoding import b64encode
from redflag_core.patching import PlanState, Transaction
from redflag_server.agents.tables import Agent
from redflag_server.db.scope import Scope
from redflag_server.organizations.tables import Organization
from redflag_server.plans.approving import NEVER, is_never_approved
from redflag_server.plans.follow import upgrade_params
from redflag_server.plans.tables import Plan
from redflag_server.problems import ConflictError, InvalidRequestError, NotFoundError
from redflag_server.runtime import Runtime

MAX_PLANS: Final = 200
"""Plans of one request: their ids fit into an address, and nobody looks through more at once."""

_WAITING: Final = frozenset({PlanState.NEEDS_CONFIRMATION, PlanState.READY})


async def export_request(runtime: Runtime, visible: Scope, plan_ids: Collection[UUID]) -> bytes:
    """
    The file that an operator looks through and signs.

    Args:
        runtime: The server.
        visible: Who asks.
        plan_ids: Plans of one organization that wait and are beyond routine.

    Raises:
        InvalidRequestError: None or too many plans.
        NotFoundError: One of them does not exist, or is not for the caller to see.
        ConflictError: One of them needs no approval, does not wait for one, or belongs to another organization.
        MalformedError: Together they are too large for one file.
    """
    wanted = set(plan_ids)
    if not 1 <= len(wanted) <= MAX_PLANS:
        raise InvalidRequestError(f"name 1 to {MAX_PLANS} plans with plan_id")
    async with runtime.database.read() as session:
        query = visible.select(Plan, Plan, Agent).join(Agent, Agent.id == Plan.agent_id).where(Plan.id.in_(wanted))
        rows = (await session.execute(query.order_by(Plan.id))).tuples().all()
        if len(rows) < len(wanted):
            raise NotFoundError("there is no such plan" if len(wanted) == 1 else "not all of these plans exist")
        organization = await _organization(session, [plan for plan, _ in rows])
    request = ApprovalRequest(
        server=runtime.server,
        root_fp=runtime.root_fp,
        organization=str(organization.id),
        organization_name=organization.name,
        items=tuple(_item(plan, agent) for plan, agent in rows),
    )
    return dump_request(request)


async def _organization(session: AsyncSession, plans: Sequence[Plan]) -> Organization:
    (first, *others) = {plan.organization_id for plan in plans}
    if others:
        raise ConflictError("these plans are of several organizations: ask for those of one at a time")
    return await session.get_one(Organization, first)


def _item(plan: Plan, agent: Agent) -> ApprovalItem:
    if plan.state not in _WAITING:
        raise ConflictError(f"the plan for {agent.hostname} is {plan.state}: only one that waits can be approved")
    if not plan.beyond_routine:
        raise ConflictError(f"the plan for {agent.hostname} is a routine one: it needs no operator's approval")
    if is_never_approved(plan.beyond_routine):
        raise ConflictError(f"the plan for {agent.hostname}: {NEVER}")
    return ApprovalItem(
        agent_id=str(agent.id),
        hostname=agent.hostname,
        machine_binding=agent.machine_binding,
        type=CommandType.PACKAGES_UPGRADE.value,
        params=b64encode(dump_params(upgrade_params(plan))),
        transaction=codec.structure(Transaction, plan.transaction),
    )
