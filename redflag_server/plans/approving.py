"""Plans beyond routine: which approval there is, and what people are told when there is none."""

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.commands import CommandType, dump_params
from redflag_core.patching import NEVER_APPROVED
from redflag_server.agents.tables import Agent
from redflag_server.approvals.service import LiveApproval, approval_of
from redflag_server.plans.follow import upgrade_params
from redflag_server.plans.tables import Plan

NEVER: Final = (
    "no approval stands in for the signature of a repository, or for the word of the machine's owner: have the "
    "repository signed or the hold taken away, then plan again"
)


def is_never_approved(beyond_routine: Iterable[str]) -> bool:
    """Whether a plan is beyond routine for a reason that no approval allows: its machine refuses it."""
    return not NEVER_APPROVED.isdisjoint(beyond_routine)


async def approval_of_plan(session: AsyncSession, plan: Plan, now: datetime) -> LiveApproval | None:
    """
    The approval with which a plan can be installed now; None when there is none.

    Args:
        session: An open transaction.
        plan: A plan that its machine made.
        now: Database time, aware UTC.
    """
    machine = await session.get_one(Agent, plan.agent_id)
    params = dump_params(upgrade_params(plan))
    return await approval_of(session, machine, CommandType.PACKAGES_UPGRADE, params, now)


def needed_approval(plan: Plan) -> str:
    """What to do about a plan that is beyond routine and that no operator approved, for people."""
    if is_never_approved(plan.beyond_routine):
        return NEVER
    why = ", ".join(reason.replace("_", " ") for reason in plan.beyond_routine)
    return (
        f"this goes beyond a routine update ({why}), so an operator must approve it: export it with "
        f"GET /api/v1/approvals/request?plan_id={plan.id}, sign the file with `redflag approve`, and bring the "
        "answer with POST /api/v1/approvals"
    )
