"""The pages of packages: over all machines, and each on its machine."""

from typing import Annotated, Any
from uuid import UUID

from litestar import get, post
from litestar.params import FromPath, QueryParameter

from redflag_core.errors import RedFlagError
from redflag_core.scanning import PackageState
from redflag_server.dashboard.history_views import see_history, see_news
from redflag_server.dashboard.package_list_views import (
    MAX_CURSOR,
    OPEN_STATES,
    PackageName,
    Wanted,
    find_decidable,
    parse_name,
    see_packages,
    see_places,
)
from redflag_server.dashboard.package_views import ordered, see_package
from redflag_server.dashboard.pages import (
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
from redflag_server.dashboard.words import DECIDED
from redflag_server.db.scope import Scope
from redflag_server.injection import Injected
from redflag_server.operators import MAX_FILTER, Cursor
from redflag_server.plans.decisions import MAX_IN_TURN, decide, decide_in_turn
from redflag_server.plans.service import make_plans
from redflag_server.problems import ConflictError
from redflag_server.runtime import Runtime


class PackagePageController(PageController):
    """What machines lack."""

    @get("/packages", opt={"page": True, "permission": "packages:read"})
    async def packages(
        self,
        request: AnyRequest,
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        name: Annotated[str | None, QueryParameter(max_length=MAX_FILTER)] = None,
        states: Annotated[list[str] | None, QueryParameter(name="state")] = None,
        security: Annotated[bool, QueryParameter()] = False,
        cursor: Annotated[str | None, QueryParameter(max_length=MAX_CURSOR)] = None,
        done: Done = False,
    ) -> Page:
        """All of them, by name."""
        chosen = [state for text in states or () if (state := one_of(PackageState, "state", text)) is not None]
        wanted = Wanted(chosen, security, name or None)
        return await _packages_page(request, runtime, visible, wanted, cursor=cursor, done=done)

    @post("/packages", opt={"page": True, "permission": "packages:write"})
    async def decide_everywhere(
        self, request: AnyRequest, *, visible: Injected[Scope], runtime: Injected[Runtime]
    ) -> Page:
        """Decide about packages wherever that is possible now."""
        form = await read_form(request)
        try:
            mistake = await _decide_everywhere(runtime, visible, form)
        except RedFlagError as error:
            mistake = form.mistake("fleet", error)
        if mistake is not None:
            return await _packages_page(request, runtime, visible, Wanted(), mistake=mistake)
        return redirect(request, "/packages?done=true")

    @get("/packages/machines", opt={"page": True, "permission": "packages:read"})
    async def places(
        self,
        request: AnyRequest,
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        manager: Annotated[str, QueryParameter(max_length=MAX_FILTER)],
        name: Annotated[str, QueryParameter(max_length=MAX_FILTER)],
        cursor: Cursor = None,
    ) -> Page:
        """Where something is open about one of them."""
        async with runtime.database.read() as session:
            page = await see_places(session, visible, PackageName(manager, name), cursor)
        context = {"page": page, "is_first": cursor is None, "url": own_url(request)}
        return render(request, whole_or_part(request, "places"), context)

    @get("/machines/{agent_id:uuid}/packages/{package_id:uuid}", opt={"page": True, "permission": "packages:read"})
    async def package(
        self,
        request: AnyRequest,
        agent_id: FromPath[UUID],
        package_id: FromPath[UUID],
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        cursor: Cursor = None,
        done: Done = False,
    ) -> Page:
        """One of them on its machine."""
        return await _package_page(request, runtime, visible, agent_id, package_id, cursor=cursor, done=done)

    @post(
        "/machines/{agent_id:uuid}/packages/{package_id:uuid}", opt={"page": True, "permission": "packages:write"}
    )
    async def decide(
        self,
        request: AnyRequest,
        agent_id: FromPath[UUID],
        package_id: FromPath[UUID],
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> Page:
        """Decide about one of them."""
        form = await read_form(request)
        await _check_place(runtime, visible, agent_id, package_id)
        try:
            outcome = await decide(runtime, visible, [package_id], form.decision, form.reason, until=form.until)
            mistake = short_of("decide", outcome)
        except RedFlagError as error:
            mistake = form.mistake("decide", error)
        if mistake is not None:
            return await _package_page(request, runtime, visible, agent_id, package_id, mistake=mistake)
        return redirect(request, f"/machines/{agent_id}/packages/{package_id}?done=true")

    @post(
        "/machines/{agent_id:uuid}/packages/{package_id:uuid}/plan",
        opt={"page": True, "permission": "packages:write"},
    )
    async def plan(
        self,
        request: AnyRequest,
        agent_id: FromPath[UUID],
        package_id: FromPath[UUID],
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> Page:
        """Have the machine plan the update of one of them."""
        form = await read_form(request)
        await _check_place(runtime, visible, agent_id, package_id)
        try:
            made = await make_plans(runtime, visible, [package_id], form.reason)
        except RedFlagError as error:
            mistake = form.mistake("plan", error)
            return await _package_page(request, runtime, visible, agent_id, package_id, mistake=mistake)
        return redirect(request, f"/plans/{made.items[0].id}?done=true")


async def _check_place(runtime: Runtime, visible: Scope, agent_id: UUID, package_id: UUID) -> None:
    """The package must be on the machine that the path names; raises `NotFoundError`."""
    async with runtime.database.read() as session:
        await see_package(session, visible, agent_id, package_id)


async def _decide_everywhere(runtime: Runtime, visible: Scope, form: Form) -> Mistake | None:
    names, decision, reason, until = (
        [parse_name(key) for key in form.chosen],
        form.decision,
        form.reason,
        form.until,
    )
    async with runtime.database.read() as session:
        found = await find_decidable(session, visible, names, decision, MAX_IN_TURN + 1)
    if not found:
        raise ConflictError(f"what you chose can be {DECIDED[decision].lower()} on no machine now")
    return short_of("fleet", await decide_in_turn(runtime, visible, found, decision, reason, until=until))


async def _packages_page(
    request: AnyRequest,
    runtime: Runtime,
    visible: Scope,
    wanted: Wanted,
    *,
    cursor: str | None = None,
    done: bool = False,
    mistake: Mistake | None = None,
) -> Page:
    now, path = runtime.clock.now(), f"{runtime.settings.prefix}/packages"
    async with runtime.database.read() as session:
        page = await see_packages(session, visible, wanted, cursor)
        news = await see_news(session, visible, None, now) if done else None
    context: dict[str, Any] = {
        "page": page,
        "wanted": wanted,
        "OPEN_STATES": OPEN_STATES,
        "offers": ordered(("approve", "reject", "exclude", "defer", "reopen")),
        "may_decide": visible.caller.may("packages:write"),
        "tomorrow": tomorrow(now),
        "done": news,
        "mistake": mistake,
        "is_first": cursor is None,
        "url": path if mistake else own_url(request),
    }
    return render(request, whole_or_part(request, "packages"), context, status=mistake.status if mistake else 200)


async def _package_page(
    request: AnyRequest,
    runtime: Runtime,
    visible: Scope,
    agent_id: UUID,
    package_id: UUID,
    *,
    cursor: str | None = None,
    done: bool = False,
    mistake: Mistake | None = None,
) -> Page:
    now, path = runtime.clock.now(), f"{runtime.settings.prefix}/machines/{agent_id}/packages/{package_id}"
    async with runtime.database.read() as session:
        page = await see_package(session, visible, agent_id, package_id)
        events = await see_history(session, visible, agent_id, package_id=package_id, cursor=cursor)
        since = page.package.row.state_at
        news = await see_news(session, visible, agent_id, now, since=since) if done else None
    may_decide = visible.caller.may("packages:write")
    context: dict[str, Any] = {
        "page": page,
        "events": events,
        "offers": ordered(page.package.offers) if may_decide else (),
        "may_decide": may_decide,
        "tomorrow": tomorrow(now),
        "done": news,
        "mistake": mistake,
        "is_first": cursor is None,
        "path": path,
        "url": path if mistake else own_url(request),
    }
    return render(request, whole_or_part(request, "package"), context, status=mistake.status if mistake else 200)
