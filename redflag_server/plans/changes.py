"""
How a plan changes: by the core's table, with an event, and with its packages, in one transaction.

Nothing else sets the state of a plan.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.patching import Move, PlanState
from redflag_core.patching.plan_states import OPEN, advance
from redflag_core.scanning import PackageState
from redflag_server.agents.tables import Agent
from redflag_server.events.recorder import NewEvent, record_all
from redflag_server.packages.moves import TOLD, PackageMoves, Told, packages_of_plan, restate
from redflag_server.packages.sightings import sighting_of
from redflag_server.plans.tables import Plan

DISCARDED: Final = "discarded"
"""Code of a plan that somebody did not want."""

REPLACED: Final = "replaced"
"""Code of a plan of which a package was planned anew."""

DECIDED: Final = "decided"
"""Code of a plan of which a package was decided about since."""

SCANNED: Final = "scanned"
"""Code of a plan of which a package is up to date or gone by now, as a scan saw."""


@attrs.frozen(kw_only=True)
class Step:
    """
    One step of a plan.

    Attributes:
        told: How it is told.
        actor: Who.
        now: Database time, aware UTC.
        code: Code of what went wrong, or None.
        why: Why, for people, or None.
    """

    told: Told
    actor: str
    now: datetime
    code: str | None = None
    why: str | None = None


async def step(session: AsyncSession, plan: Plan, to: PlanState, how: Step, **facts: Any) -> None:
    """
    Move a plan on and tell it.

    Args:
        session: The open write transaction.
        plan: The plan, locked.
        to: Its next state.
        how: What happened.
        facts: Further facts for the event.

    Raises:
        IllegalMoveError: The core's table has no such move.
    """
    before = PlanState(plan.state)
    plan.state, plan.state_at = advance(before, to), how.now
    plan.code, plan.detail = how.code, None if to in OPEN else how.why
    await tell(session, plan, how, before=before, **facts)


async def tell(session: AsyncSession, plan: Plan, how: Step, **facts: Any) -> None:
    """Record what happened to a plan."""
    hostname = await session.scalar(select(Agent.hostname).where(Agent.id == plan.agent_id))
    sentence = f"The plan of {_counted(plan.packages)} on {hostname} {how.told.words}"
    event = NewEvent(
        kind=how.told.kind,
        actor=how.actor,
        message=f"{sentence}: {how.why}" if how.why else f"{sentence}.",
        organization_id=plan.organization_id,
        agent_id=plan.agent_id,
        code=how.code,
        data={"plan": str(plan.id), "manager": plan.manager, **facts},
    )
    await record_all(session, how.now, [event])


async def open_plans(session: AsyncSession, plan_ids: Collection[UUID]) -> Sequence[Plan]:
    """Those of these plans that have not ended, locked."""
    query = select(Plan).where(Plan.id.in_(plan_ids), Plan.state.in_(OPEN)).order_by(Plan.id).with_for_update()
    return (await session.scalars(query)).all() if plan_ids else ()


async def drop(session: AsyncSession, plan: Plan, actor: str, now: datetime, *, code: str, why: str) -> None:
    """
    Give a plan up before it is carried out. Its packages stay approved and are in no plan any more.

    Args:
        session: The open write transaction.
        plan: The plan, locked.
        actor: Who gives it up.
        now: Database time, aware UTC.
        code: `DISCARDED`, `REPLACED`, `DECIDED` or `SCANNED`.
        why: Why, for people.

    Raises:
        IllegalMoveError: It has ended already.
    """
    told = Told(kind="plan.dropped", words="was dropped")
    how = Step(told=told, actor=actor, now=now, code=code, why=why)
    await step(session, plan, PlanState.DROPPED, how)
    moves = PackageMoves(session, actor, now)
    for package in await packages_of_plan(session, plan.id):
        package.plan_id = None
        if package.state in (PackageState.PLANNING, PackageState.NEEDS_CONFIRMATION):
            moves.move(package, Move.PLAN_DROPPED, sighting_of(package), why=why, plan=str(plan.id))
        elif package.state == PackageState.APPROVED:
            moves.tell(package, TOLD[Move.PLAN_DROPPED], why, plan=str(plan.id))
        if package.state == PackageState.APPROVED:  # what is read there is why somebody approved it
            restate(package, PackageState.APPROVED, now, reason=None)
    await moves.store()


def _counted(number: int) -> str:
    return f"{number} package{'' if number == 1 else 's'}"
