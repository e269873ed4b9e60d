"""The pages of plans."""

from typing import Annotated, Any, Final
from uuid import UUID

from litestar import get, post
from litestar.params import FromPath, QueryParameter

from redflag_core.errors import RedFlagError
from redflag_core.patching import PlanState
from redflag_server.dashboard.history_views import see_news
from redflag_server.dashboard.pages import (
    AnyRequest,
    Done,
    Mistake,
    Page,
    PageController,
    one_of,
    own_url,
    read_form,
    whole_or_part,
)
from redflag_server.dashboard.plan_views import LISTED, see_plan
from redflag_server.dashboard.rendering import redirect, render
from redflag_server.db.pages import PageOf
from redflag_server.db.scope import Scope
from redflag_server.injection import Injected
from redflag_server.operators import MAX_FILTER, Cursor
from redflag_server.plans.listing import PlanFilter, list_plans
from redflag_server.plans.service import confirm_plan, discard_plan, install_plan
from redflag_server.problems import NotFoundError
from redflag_server.runtime import Runtime

_STEPS: Final = {"confirm": confirm_plan, "install": install_plan, "discard": discard_plan}


class PlanPageController(PageController):
    """What updates would change, or did."""

    path = "/plans"

    @get(opt={"page": True, "permission": "packages:read"})
    async def plans(
        self,
        request: AnyRequest,
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        chosen: Annotated[str | None, QueryParameter(name="state", max_length=MAX_FILTER)] = None,
        cursor: Cursor = None,
    ) -> Page:
        """All plans."""
        wanted = one_of(PlanState, "state", chosen)
        async with runtime.database.read() as session:
            states = () if wanted is None else (wanted,)
            page = await list_plans(
                session, visible, PlanFilter(states=states), PageOf(cursor, LISTED, newest_first=True)
            )
        context = {"page": page, "state": wanted, "is_first": cursor is None, "url": own_url(request)}
        return render(request, whole_or_part(request, "plans"), context)

    @get("/{plan_id:uuid}", opt={"page": True, "permission": "packages:read"})
    async def plan(
        self,
        request: AnyRequest,
        plan_id: FromPath[UUID],
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        done: Done = False,
    ) -> Page:
        """One plan."""
        return await _plan_page(request, runtime, visible, plan_id, done=done)

    @post("/{plan_id:uuid}/{step:str}", opt={"page": True, "permission": "packages:write"})
    async def act(
        self,
        request: AnyRequest,
        plan_id: FromPath[UUID],
        step: FromPath[str],
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> Page:
        """Confirm, install or discard a plan, and show it again."""
        if step not in _STEPS:
            raise NotFoundError("there is no such page")
        form = await read_form(request)
        try:
            await _STEPS[step](runtime, visible, plan_id, form.reason)
        except RedFlagError as error:
            return await _plan_page(request, runtime, visible, plan_id, mistake=form.mistake(step, error))
        return redirect(request, f"/plans/{plan_id}?done=true")


async def _plan_page(
    request: AnyRequest,
    runtime: Runtime,
    visible: Scope,
    plan_id: UUID,
    *,
    done: bool = False,
    mistake: Mistake | None = None,
) -> Page:
    path = f"{runtime.settings.prefix}/plans/{plan_id}"
    async with runtime.database.read() as session:
        now = runtime.clock.now()
        plan = await see_plan(session, visible, plan_id, now)
        since = plan.detail.state_at
        news = await see_news(session, visible, plan.detail.agent_id, now, since=since) if done else None
    context: dict[str, Any] = {
        "plan": plan,
        "offers": plan.offers if visible.caller.may("packages:write") else (),
        "done": news,
        "mistake": mistake,
        "path": path,
        "url": path if mistake else own_url(request),
    }
    return render(request, whole_or_part(request, "plan"), context, status=mistake.status if mistake else 200)
