"""API of plans, for people and scripts."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final
from uuid import UUID

from litestar import get, post
from litestar.params import Body, FromPath, QueryParameter

from redflag_core.patching import PlanState
from redflag_server.bodies import Strict
from redflag_server.db.pages import DEFAULT_LIMIT, Page, PageOf
from redflag_server.db.scope import Scope
from redflag_server.fields import Reason, ids_of, uuid_of
from redflag_server.injection import Injected, Parsed
from redflag_server.openapi import answers, example
from redflag_server.operators import Cursor, Limit, OperatorController
from redflag_server.plans.listing import PlanFilter, get_plan, list_plans
from redflag_server.plans.schema import (
    NEW_PLANS_EXAMPLE,
    PLAN_DETAIL_EXAMPLE,
    PLAN_EXAMPLE,
    PLANS_MADE_EXAMPLE,
    NewPlans,
    PlanDetail,
    PlanItem,
    PlansMade,
)
from redflag_server.plans.service import confirm_plan, discard_plan, install_plan, make_plans, plan_machine
from redflag_server.runtime import Runtime

NEXT: Final = "AZNvPotafE2eLwobLD1OZg"
WHY: Final = Reason("patch day")

ReasonBody = Annotated[Parsed[Reason], Body(examples=[example(WHY)])]


class PlanController(OperatorController):
    """What updates would change, and carrying exactly that out."""

    path = "/plans"
    tags = ("Plans",)

    @get(
        operation_id="ListPlans",
        summary="List plans",
        description="Newest first.",
        opt={"permission": "packages:read"},
        responses=answers(Page[PlanItem], Page([PLAN_EXAMPLE], NEXT)),
    )
    async def list_plans(
        self,
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        agent_id: Annotated[UUID | None, QueryParameter(description="Id of the machine.")] = None,
        states: Annotated[
            list[PlanState] | None, QueryParameter(name="state", description="Any of these; repeatable.")
        ] = None,
        cursor: Cursor = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Page[PlanItem]:
        """List plans, newest first."""
        page = PageOf(cursor, limit, newest_first=True)
        async with runtime.database.read() as session:
            return await list_plans(session, visible, PlanFilter(agent_id, states or ()), page)

    @get(
        "/{plan_id:uuid}",
        operation_id="GetPlan",
        summary="Get a plan",
        opt={"permission": "packages:read"},
        responses=answers(PlanDetail, PLAN_DETAIL_EXAMPLE, 404),
    )
    async def get_plan(
        self, plan_id: FromPath[UUID], visible: Injected[Scope], runtime: Injected[Runtime]
    ) -> PlanDetail:
        """Get a plan, with every change that its machine would make."""
        async with runtime.database.read() as session:
            return await get_plan(session, visible, plan_id, runtime.clock.now())

    @post(
        operation_id="MakePlans",
        summary="Have updates planned",
        description="One plan for each machine and package manager. Packages must be approved. An older plan that "
        "one of them waits for is dropped.",
        dto=Strict[NewPlans],
        return_dto=None,
        opt={"permission": "packages:write"},
        responses=answers(PlansMade, PLANS_MADE_EXAMPLE, 404, 409, status=201),
    )
    async def make_plans(
        self,
        data: Annotated[Parsed[NewPlans], Body(examples=[example(NEW_PLANS_EXAMPLE)])],
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> PlansMade:
        """Have machines work out what the updates would change."""
        agent_id = uuid_of("agent_id", data.agent_id)
        if agent_id is not None:
            return await plan_machine(runtime, visible, agent_id, data.reason)
        return await make_plans(runtime, visible, ids_of("package_ids", data.package_ids or ()), data.reason)

    @post(
        "/{plan_id:uuid}/confirm",
        operation_id="ConfirmPlan",
        summary="Confirm a plan",
        description="Agree to the changes that nobody asked for. What is beyond routine needs an approval too.",
        dto=Strict[Reason],
        return_dto=None,
        status_code=200,
        opt={"permission": "packages:write"},
        responses=answers(PlanDetail, PLAN_DETAIL_EXAMPLE, 404, 409),
    )
    async def confirm_plan(
        self, plan_id: FromPath[UUID], data: ReasonBody, visible: Injected[Scope], runtime: Injected[Runtime]
    ) -> PlanDetail:
        """Agree to what a plan brings along."""
        return await _done(runtime, visible, plan_id, confirm_plan, data)

    @post(
        "/{plan_id:uuid}/discard",
        operation_id="DiscardPlan",
        summary="Discard a plan",
        description="One that is not being installed. Its packages stay approved.",
        dto=Strict[Reason],
        return_dto=None,
        status_code=200,
        opt={"permission": "packages:write"},
        responses=answers(PlanDetail, PLAN_DETAIL_EXAMPLE, 404, 409),
    )
    async def discard_plan(
        self, plan_id: FromPath[UUID], data: ReasonBody, visible: Injected[Scope], runtime: Injected[Runtime]
    ) -> PlanDetail:
        """Give a plan up."""
        return await _done(runtime, visible, plan_id, discard_plan, data)

    @post(
        "/{plan_id:uuid}/install",
        operation_id="InstallPlan",
        summary="Install a plan",
        description="Exactly what was planned, or nothing: a machine that would change anything else refuses. "
        "409 for a plan beyond routine that no operator approved.",
        dto=Strict[Reason],
        return_dto=None,
        status_code=200,
        opt={"permission": "packages:write"},
        responses=answers(PlanDetail, PLAN_DETAIL_EXAMPLE, 404, 409),
    )
    async def install_plan(
        self, plan_id: FromPath[UUID], data: ReasonBody, visible: Injected[Scope], runtime: Injected[Runtime]
    ) -> PlanDetail:
        """Order the installation of a plan."""
        return await _done(runtime, visible, plan_id, install_plan, data)


async def _done(
    runtime: Runtime,
    visible: Scope,
    plan_id: UUID,
    action: Callable[[Runtime, Scope, UUID, str], Awaitable[Any]],
    data: Reason,
) -> PlanDetail:
    await action(runtime, visible, plan_id, data.reason)
    async with runtime.database.read() as session:
        return await get_plan(session, visible, plan_id, runtime.clock.now())
