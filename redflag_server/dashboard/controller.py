"""The first page, how people come in and leave, and the files of the pages. Nothing here decides anything."""

from typing import Annotated, Final

from litestar import Controller, Response, get, post
from litestar.datastructures import Cookie
from litestar.params import FromPath, QueryParameter

from redflag_server.accounts import sessions, setup
from redflag_server.accounts.authentication import cookie_name, operator_of
from redflag_server.accounts.credentials import LONGEST
from redflag_server.accounts.forms import MAX_FORM_BYTES, parse_form
from redflag_server.accounts.users import has_owner
from redflag_server.addresses import client_address
from redflag_server.agents.listing import AgentFilter
from redflag_server.dashboard.pages import AnyRequest, Page, PageController, whole_or_part
from redflag_server.dashboard.rendering import assets, redirect, render
from redflag_server.dashboard.views import STATUSES_OF, FleetPart, see_fleet
from redflag_server.db.scope import Scope
from redflag_server.injection import Injected
from redflag_server.operators import MAX_FILTER, Cursor
from redflag_server.problems import (
    InvalidRequestError,
    NotFoundError,
    RateLimitedError,
    SignInRefusedError,
    status_of,
)
from redflag_server.runtime import Runtime

MAX_NEXT: Final = 500
FOR_EVER: Final = "public, max-age=31536000, immutable"


class FleetController(PageController):
    """What people look at."""

    @get("/", opt={"page": True, "permission": "agents:read"})
    async def fleet(
        self,
        request: AnyRequest,
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        hostname: Annotated[str | None, QueryParameter(max_length=MAX_FILTER)] = None,
        show: Annotated[FleetPart | None, QueryParameter()] = None,
        cursor: Cursor = None,
    ) -> Page:
        """All machines."""
        wanted = AgentFilter(STATUSES_OF[show], hostname or None)
        async with runtime.database.read() as session:
            fleet = await see_fleet(session, visible, wanted, cursor, runtime.clock.now())
        context = {"fleet": fleet, "hostname": hostname or "", "show": show, "is_first": cursor is None}
        return render(request, whole_or_part(request, "fleet"), context)


class SignInController(PageController):
    """How people come in and leave."""

    opt = {"page": True, "public": True}  # noqa: RUF012  (Litestar's form)
    request_max_body_size = MAX_FORM_BYTES

    @get("/sign-in")
    async def sign_in_page(
        self,
        request: AnyRequest,
        runtime: Injected[Runtime],
        target: Annotated[str, QueryParameter(name="next", max_length=MAX_NEXT)] = "/",
    ) -> Page:
        """Ask for name and password."""
        if operator_of(request) is not None:
            return redirect(request, safe_path(target))
        async with runtime.database.read() as session:
            ready = await has_owner(session)
        return render(
            request, "sign_in.html", {"target": safe_path(target), "name": "", "error": None, "ready": ready}
        )

    @post("/sign-in", opt={"anonymous_form": True})
    async def sign_in(self, request: AnyRequest, runtime: Injected[Runtime]) -> Page:
        """Open a session."""
        form = parse_form(await request.body())
        name, target = form.get("name", ""), safe_path(form.get("next", "/"))
        operator = operator_of(request)
        try:
            secret = await sessions.sign_in(
                runtime,
                name=name,
                password=form.get("password", ""),
                address=_address(request, runtime),
                previous=None if operator is None else operator.presented,
            )
        except (SignInRefusedError, RateLimitedError) as error:
            context = {"target": target, "name": name, "error": error.message, "ready": True}
            return render(request, "sign_in.html", context, status=status_of(error), headers=error.headers)
        return _with_session(redirect(request, target), runtime, secret)

    @post("/sign-out")
    async def sign_out(self, request: AnyRequest, runtime: Injected[Runtime]) -> Page:
        """End the session."""
        operator = operator_of(request)
        if operator is not None and operator.presented is not None:
            await sessions.sign_out(runtime, operator.presented, _address(request, runtime))
        page = redirect(request, "/sign-in")
        page.cookies.append(_cookie(runtime, "", max_age=0))
        return page

    @get("/setup/{secret:str}")
    async def setup_page(self, request: AnyRequest, runtime: Injected[Runtime], secret: FromPath[str]) -> Page:
        """Ask for name and password of the first owner."""
        await setup.check_setup_link(runtime, secret)
        return render(request, "setup.html", {"secret": secret, "name": "", "error": None})

    @post("/setup/{secret:str}", opt={"anonymous_form": True})
    async def set_up(self, request: AnyRequest, runtime: Injected[Runtime], secret: FromPath[str]) -> Page:
        """Make the first owner."""
        form = parse_form(await request.body())
        name, password = form.get("name", ""), form.get("password", "")
        address = _address(request, runtime)
        try:
            session = await setup.complete_setup(
                runtime, secret=secret, name=name, password=password, again=form.get("again", ""), address=address
            )
        except InvalidRequestError as error:
            return render(
                request, "setup.html", {"secret": secret, "name": name, "error": error.message}, status=400
            )
        return _with_session(redirect(request, "/"), runtime, session)


class StaticController(Controller):
    """Stylesheet, script and icon."""

    include_in_schema = False
    opt = {"public": True}  # noqa: RUF012  (Litestar's form)

    @get("/static/{name:str}", sync_to_thread=False)
    def file(self, name: FromPath[str]) -> Response[bytes]:
        """One file."""
        asset = assets().get(name)
        if asset is None:
            raise NotFoundError("there is no such file")
        return Response(asset.content, media_type=asset.media_type, headers={"Cache-Control": FOR_EVER})


def safe_path(target: str) -> str:
    """
    Where to go after sign-in: a path of this server, whatever a link says.

    Args:
        target: Untrusted.
    """
    is_path = target.startswith("/") and not target.startswith("//")
    return target if is_path and "\\" not in target and target.isprintable() else "/"


def _address(request: AnyRequest, runtime: Runtime) -> str:
    return client_address(request.scope, runtime.settings.trusted_proxies)


def _with_session(page: Page, runtime: Runtime, secret: str) -> Page:
    page.cookies.append(_cookie(runtime, secret, max_age=int(LONGEST.total_seconds())))
    return page


def _cookie(runtime: Runtime, value: str, *, max_age: int) -> Cookie:
    return Cookie(
        key=cookie_name(runtime),
        value=value,
        max_age=max_age,
        path="/",
        secure=runtime.settings.is_secure,
        httponly=True,
        samesite="strict",
    )
