"""The pages of plans."""

from typing import Annotated, Any, Final
from uuid import UUID

from litestar import Response, get, post
from litestar.params import FromPath, QueryParameter

from redflag_core.approval_files import parse_answer
from redflag_core.errors import RedFlagError
from redflag_core.patching import PlanState
from redflag_server.accounts.forms import MAX_CHOICES_BYTES
from redflag_server.approvals.controller import DOWNLOAD, MEDIA_TYPE
from redflag_server.approvals.requests import export_request
from redflag_server.approvals.service import store_approval
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
from redflag_server.plans.listing import PlanFilter, get_plan, list_plans
from redflag_server.plans.service import confirm_plan, discard_plan, install_plan
from redflag_server.problems import InvalidRequestError, NotFoundError
from redflag_server.runtime import Runtime

MAX_PASTED: Final = MAX_CHOICES_BYTES // 2
"""Characters of an approval that is pasted, about 100 commands: quotes grow when sent. The API takes more."""

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

    @get("/{plan_id:uuid}/approval-request", opt={"page": True, "permission": "approvals:read"})
    async def approval_request(
        self, plan_id: FromPath[UUID], visible: Injected[Scope], runtime: Injected[Runtime]
    ) -> Page:
        """What an operator looks through and signs, to take away."""
        data = await export_request(runtime, visible, [plan_id])
        return Response(data, media_type=MEDIA_TYPE, headers=DOWNLOAD)

    @post("/{plan_id:uuid}/approve", opt={"page": True, "permission": "approvals:write"})
    async def approve(
        self, request: AnyRequest, plan_id: FromPath[UUID], visible: Injected[Scope], runtime: Injected[Runtime]
    ) -> Page:
        """Bring what an operator signed, and show the plan again."""
        async with runtime.database.read() as session:
            await get_plan(session, visible, plan_id, runtime.clock.now())
        form = await read_form(request)
        try:
            await store_approval(runtime, visible, parse_answer(form.fields.get("approval", "").encode()))
        except NotFoundError as error:
            wrong = InvalidRequestError(error.message)
            return await _plan_page(request, runtime, visible, plan_id, mistake=form.mistake("approve", wrong))
        except RedFlagError as error:
            return await _plan_page(request, runtime, visible, plan_id, mistake=form.mistake("approve", error))
        return redirect(request, f"/plans/{plan_id}?done=true")

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
        "can_approve": visible.caller.may("approvals:write"),
        "max_approval": MAX_PASTED,
        "done": news,
        "mistake": mistake,
        "path": path,
        "url": path if mistake else own_url(request),
    }
    return render(request, whole_or_part(request, "plan"), context, status=mistake.status if mistake else 200)
