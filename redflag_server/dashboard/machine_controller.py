"""The pages of one machine: itself and its history."""

from typing import Annotated
from uuid import UUID

from litestar import get, post
from litestar.params import FromPath, QueryParameter

from redflag_core.commands import CommandType
from redflag_core.enrolment import Access, allows
from redflag_core.errors import RedFlagError
from redflag_core.lifecycle import AgentAction, permits
from redflag_core.scanning import PackageState
from redflag_server.agents.operations import act
from redflag_server.commands.schema import NewOrder
from redflag_server.commands.service import order_command
from redflag_server.dashboard.history_views import Subject, see_history, see_hostname, see_news
from redflag_server.dashboard.pages import (
    MAX_DETAILS,
    AnyRequest,
    Done,
    Form,
    Mistake,
    Page,
    PageController,
    one_of,
    own_url,
    read_form,
    short_of,
    tomorrow,
    whole_or_part,
)
from redflag_server.dashboard.rendering import redirect, render
from redflag_server.dashboard.views import see_machine
from redflag_server.db.scope import Scope
from redflag_server.injection import Injected
from redflag_server.operators import MAX_FILTER, Cursor
from redflag_server.packages.listing import PackageFilter
from redflag_server.plans.decisions import decide, decide_matching
from redflag_server.plans.schema import BulkOutcome, PlansMade
from redflag_server.plans.service import plan_machine
from redflag_server.problems import NotFoundError
from redflag_server.runtime import Runtime


class MachineController(PageController):
    """One machine."""

    path = "/machines/{agent_id:uuid}"

    @get(opt={"page": True, "permission": "agents:read"})
    async def machine(
        self,
        request: AnyRequest,
        agent_id: FromPath[UUID],
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        current: Annotated[bool, QueryParameter()] = False,
        done: Done = False,
    ) -> Page:
        """The machine."""
        return await machine_page(request, runtime, visible, agent_id, current=current, done=done)

    @post("/{action:str}", opt={"page": True, "permission": "agents:write"})
    async def act(
        self,
        request: AnyRequest,
        agent_id: FromPath[UUID],
        action: FromPath[str],
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> Page:
        """Approve, release or revoke a machine, and show it again."""
        if action not in list(AgentAction):
            raise NotFoundError("there is no such page")
        form = await read_form(request)
        try:
            await act(runtime, visible, agent_id, AgentAction(action), form.reason)
        except RedFlagError as error:
            mistake = form.mistake(action, error)
            return await machine_page(request, runtime, visible, agent_id, mistake=mistake)
        return redirect(request, f"/machines/{agent_id}")

    @post("/packages", opt={"page": True, "permission": "packages:write"})
    async def decide(
        self,
        request: AnyRequest,
        agent_id: FromPath[UUID],
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> Page:
        """Decide about packages of one state: those that were ticked, or all of them."""
        form = await read_form(request)
        name = f"decide-{form.fields.get('state', '')}"
        try:
            mistake = short_of(name, await _decide(runtime, visible, agent_id, form))
        except RedFlagError as error:
            mistake = form.mistake(name, error)
        if mistake is not None:
            return await machine_page(request, runtime, visible, agent_id, mistake=mistake)
        return redirect(request, f"/machines/{agent_id}?done=true")

    @post("/plans", opt={"page": True, "permission": "packages:write"})
    async def plan(
        self,
        request: AnyRequest,
        agent_id: FromPath[UUID],
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> Page:
        """Have the machine plan its approved updates."""
        form = await read_form(request)
        try:
            made = await plan_machine(runtime, visible, agent_id, form.reason)
        except RedFlagError as error:
            return await machine_page(request, runtime, visible, agent_id, mistake=form.mistake("plan", error))
        if made.left or made.skipped:
            mistake = _partly_planned(made)
            return await machine_page(request, runtime, visible, agent_id, mistake=mistake)
        return redirect(request, _of_plans(agent_id, made))

    @post("/scan", opt={"page": True, "permission": "commands:write"})
    async def scan(
        self,
        request: AnyRequest,
        agent_id: FromPath[UUID],
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> Page:
        """Have the machine scan itself now."""
        form = await read_form(request)
        try:
            wanted = NewOrder(agent_id=str(agent_id), type=CommandType.SCAN_RUN, reason=form.reason)
            await order_command(runtime, visible, wanted)
        except RedFlagError as error:
            return await machine_page(request, runtime, visible, agent_id, mistake=form.mistake("scan", error))
        return redirect(request, f"/machines/{agent_id}?done=true")

    @get("/history", opt={"page": True, "permission": "events:read"})
    async def history(
        self,
        request: AnyRequest,
        agent_id: FromPath[UUID],
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        about: Annotated[str | None, QueryParameter(max_length=MAX_FILTER)] = None,
        cursor: Cursor = None,
    ) -> Page:
        """All that happened to it."""
        subject = one_of(Subject, "about", about)
        async with runtime.database.read() as session:
            hostname = await see_hostname(session, visible, agent_id)
            events = await see_history(session, visible, agent_id, about=subject, cursor=cursor)
        context = {
            "hostname": hostname,
            "agent_id": agent_id,
            "events": events,
            "about": subject,
            "is_first": cursor is None,
            "path": f"{runtime.settings.prefix}/machines/{agent_id}/history",
            "url": own_url(request),
        }
        return render(request, whole_or_part(request, "history"), context)


async def _decide(runtime: Runtime, visible: Scope, agent_id: UUID, form: Form) -> BulkOutcome:
    decision, reason, until = form.decision, form.reason, form.until
    if not form.fields.get("every"):
        return await decide(runtime, visible, form.packages, decision, reason, until=until)
    state = one_of(PackageState, "state", form.fields.get("state"))
    wanted = PackageFilter(agent_id=agent_id, states=() if state is None else (state,))
    return await decide_matching(runtime, visible, wanted, decision, reason, until=until)


def _partly_planned(made: PlansMade) -> Mistake:
    left = f"{made.left} do not fit: plan again when these are installed" if made.left else ""
    skipped = f"{len(made.skipped)} cannot be planned now:" if made.skipped else ""
    return Mistake(
        form="plan",
        title="Planned, but not everything.",
        message="; ".join(part for part in (left, skipped) if part),
        details=[(package.name, package.detail) for package in made.skipped[:MAX_DETAILS]],
        status=200,
    )


def _of_plans(agent_id: UUID, made: PlansMade) -> str:
    """Where to look at what was made: at the plan, or at the machine that has several."""
    if len(made.items) == 1:
        return f"/plans/{made.items[0].id}?done=true"
    return f"/machines/{agent_id}?done=true"


async def machine_page(
    request: AnyRequest,
    runtime: Runtime,
    visible: Scope,
    agent_id: UUID,
    *,
    current: bool = False,
    done: bool = False,
    mistake: Mistake | None = None,
) -> Page:
    """
    The page of a machine.

    Args:
        request: The request that it answers.
        runtime: The server.
        visible: Who looks.
        agent_id: The machine.
        current: Whether packages that are up to date are shown.
        done: Whether to say what the caller has just done.
        mistake: What the caller tried and did not work.

    Raises:
        NotFoundError: No such machine, or not for the caller to see.
    """
    now, path = runtime.clock.now(), f"{runtime.settings.prefix}/machines/{agent_id}"
    async with runtime.database.read() as session:
        machine = await see_machine(session, visible, agent_id, show_current=current, now=now)
        news = await see_news(session, visible, agent_id, now) if done else None
    status = machine.detail.agent.status
    may_act = visible.caller.may("agents:write")
    context = {
        "machine": machine,
        "actions": [action.value for action in AgentAction if may_act and permits(status, action)],
        "may_decide": visible.caller.may("packages:write"),
        "may_order": visible.caller.may("commands:write") and allows(status, Access.COMMANDS),
        "done": news,
        "mistake": mistake,
        "tomorrow": tomorrow(now),
        "url": path if mistake else own_url(request),
    }
    return render(request, whole_or_part(request, "machine"), context, status=mistake.status if mistake else 200)
