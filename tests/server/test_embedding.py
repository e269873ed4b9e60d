"""The server inside other applications: Litestar, FastAPI, Django, and what they must not notice of it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
from fastapi import FastAPI
from litestar import Litestar, get
from litestar import Request as LitestarRequest
from sqlalchemy.ext.asyncio import create_async_engine

from redflag_core.errors import ConfigurationError
from redflag_core.system import SystemEntropy
from redflag_core.testing import FrozenClock
from redflag_server.embedding import EmbeddedServer, HostOperator, inner_target
from redflag_server.plugin import RedFlagPlugin
from redflag_server.settings import Settings
from tests.helpers.databases import CURRENT
from tests.helpers.fleet import Machine, full_report, package
from tests.helpers.server import NO_LIMIT, Server

NAME = "tools.example"
PATH = "/redflag"
FETCH = {"sec-fetch-site": "same-origin"}


@attrs.define
class Host:
    """
    A host application with the server in it.

    Attributes:
        app: The whole of it, as its ASGI server sees it.
        server: The embedded server.
        below: A client whose requests go to the embedded server.
        root: A client of the host itself.
    """

    app: Any
    server: EmbeddedServer
    below: httpx.AsyncClient
    root: httpx.AsyncClient

    @property
    def under_test(self) -> Server:
        """The embedded server, with the helpers of the other tests."""
        return Server(self.server.app, self.below, self.server.app.state.runtime.clock)

    async def agent(self, *, prefix: str = PATH) -> Machine:
        """A machine that registered, and signs the path as it is in public."""
        machine = Machine(now=self.under_test.clock.now, authority=NAME, prefix=prefix)
        return await machine.enrol(self.root, await self.under_test.token())


def settings_in(data: Path, **changes: Any) -> Settings:
    """Settings of an embedded server."""
    limits = {"agent_limit": NO_LIMIT, "register_limit": NO_LIMIT}
    changes = {"public_urls": (f"http://{NAME}{PATH}",), **limits, **changes}
    return Settings(data=data, postgresql=CURRENT.place.address(data), **changes)


def embedded(settings: Settings, **choices: Any) -> EmbeddedServer:
    """An embedded server without jobs."""
    clock = FrozenClock()
    return EmbeddedServer(settings, path=PATH, run_jobs=False, clock=clock, entropy=SystemEntropy(), **choices)


def in_litestar(server: EmbeddedServer) -> Litestar:
    """A Litestar application with a route of its own."""

    @get("/hello")
    async def hello(request: LitestarRequest[Any, Any, Any]) -> dict[str, Any]:
        return {"hello": "host", "state": sorted(request.app.state.dict())}

    return Litestar([hello], plugins=[RedFlagPlugin(server)], logging_config=None)


def in_fastapi(server: EmbeddedServer) -> FastAPI:
    """A FastAPI application with a route of its own."""
    api = FastAPI(lifespan=server.lifespan)

    @api.get("/hello")
    async def hello() -> dict[str, Any]:
        return {"hello": "host"}

    api.mount(PATH, server)
    return api


def in_django(server: EmbeddedServer) -> Any:
    """A Django application with a route of its own."""
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import JsonResponse
    from django.urls import path

    if not settings.configured:
        urls = [path("hello", lambda _request: JsonResponse({"hello": "host"}))]
        settings.configure(ROOT_URLCONF=tuple(urls), ALLOWED_HOSTS=["*"], SECRET_KEY="k" * 50, USE_TZ=True)
    return server.beside(get_asgi_application())


HOSTS = {"litestar": in_litestar, "fastapi": in_fastapi, "django": in_django}
in_every_host = pytest.mark.parametrize("kind", HOSTS)


@contextlib.asynccontextmanager
async def hosted(app: Any, server: EmbeddedServer) -> AsyncIterator[Host]:
    """Start a host by its ASGI lifespan, as its ASGI server does."""
    sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    life = asyncio.create_task(app({"type": "lifespan", "asgi": {"version": "3.0"}}, sent.get, told.put))
    await sent.put({"type": "lifespan.startup"})
    started = await told.get()
    assert "lifespan.startup.complete" == started["type"], started
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    client = httpx.AsyncClient(transport=transport, base_url=f"http://{NAME}")
    below = httpx.AsyncClient(transport=transport, base_url=f"http://{NAME}{PATH}")
    try:
        async with client, below:
            yield Host(app, server, below, client)
    finally:
        await sent.put({"type": "lifespan.shutdown"})
        assert "lifespan.shutdown.complete" == (await told.get())["type"]
        await life


@contextlib.asynccontextmanager
async def host_of(kind: str, settings: Settings, **choices: Any) -> AsyncIterator[Host]:
    """One of the hosts."""
    server = embedded(settings, **choices)
    async with hosted(HOSTS[kind](server), server) as host:
        yield host


@in_every_host
@pytest.mark.postgresql
async def test_an_agent_works_through_every_host(kind: str, tmp_path: Path):
    """It registers, checks in, and reports, with the public path in what it signs."""
    async with host_of(kind, settings_in(tmp_path / "data")) as host:
        machine = await host.agent()
        checked_in = await machine.check_in(host.root)
        reported = await machine.report(host.root, full_report([package("curl")]))

    assert [200, 200] == [checked_in.status_code, reported.status_code]


@in_every_host
async def test_what_was_signed_for_another_path_is_refused_in_every_host(kind: str, tmp_path: Path):
    """The path under the prefix is in the signature: one without the prefix is for another server."""
    async with host_of(kind, settings_in(tmp_path / "data")) as host:
        machine = await host.agent()
        signed = attrs.evolve(machine, prefix="").sign("/agent/check-in", machine.check_in_body())
        answer = await attrs.evolve(signed, path=PATH + signed.path).send(host.root)

    assert (401, "bad_signature") == (answer.status_code, answer.json()["code"])


@in_every_host
async def test_the_target_is_taken_undecoded_in_every_host(kind: str, tmp_path: Path):
    """A scanner's name that is quoted is verified as it was sent, although every host decodes it."""
    async with host_of(kind, settings_in(tmp_path / "data")) as host:
        machine = await host.agent()
        quoted = await machine.report(host.root, full_report([package("curl")]), scanner="%61pt")
        (scanner,) = (await host.under_test.dump())["scanners"]

    assert (200, True) == (quoted.status_code, "'apt'" in scanner)


@in_every_host
async def test_the_host_keeps_its_own_routes(kind: str, tmp_path: Path):
    """Its answers have none of our headers, its errors are not our problems, and its names are free."""
    async with host_of(kind, settings_in(tmp_path / "data")) as host:
        hello = await host.root.get("/hello")
        missing = await host.root.get("/nothing-here")
        beside = await host.root.get("/redflagged/api/v1/health/live")
        ours = await host.below.get("/api/v1/nothing-here")

    assert "host" == hello.json()["hello"]
    assert [] == [
        name for name in hello.headers if name.startswith(("content-security", "x-redflag", "x-request"))
    ]
    assert [(404, False), (404, False)] == [
        (answer.status_code, "problem+json" in answer.headers["content-type"]) for answer in (missing, beside)
    ]
    assert (404, "not_found") == (ours.status_code, ours.json()["code"])


async def test_litestar_hosts_get_one_route_and_nothing_else(tmp_path: Path):
    """No state, no handler of exceptions, no hook, no dependency and no operation of ours is the host's."""
    server = embedded(settings_in(tmp_path / "data"))
    app = in_litestar(server)
    bare = Litestar([], logging_config=None)
    async with hosted(app, server) as host:
        state = (await host.root.get("/hello")).json()["state"]
        document = (await host.root.get("/schema/openapi.json")).json()

    assert [] == state
    assert ["/hello"] == list(document["paths"])
    assert "tags" not in document
    for name in ("exception_handlers", "before_send", "after_exception", "middleware", "dependencies"):
        assert getattr(bare, name) == getattr(app, name), name
    assert ["/hello"] == [route.path for route in app.routes if not route.path.startswith((PATH, "/schema"))]


async def test_operators_are_those_of_the_host(tmp_path: Path):
    """What the host says of a request counts: organizations, permissions, and nobody at all."""

    async def identify(scope: Any) -> HostOperator | None:
        who = dict(scope["headers"]).get(b"x-host-user", b"").decode()
        return HostOperator(who, {"agents:read"}, None, ambient=False) if who else None

    async with host_of("fastapi", settings_in(tmp_path / "data"), operators=identify) as host:
        await host.agent()
        paths = ("/api/v1/agents", "/api/v1/packages")
        alice = [await host.below.get(path, headers={"x-host-user": "alice"}) for path in paths]
        nobody = await host.below.get("/api/v1/agents")
        gone = [await host.below.get(path) for path in ("/sign-in", "/api/v1/users", "/api/v1/api-keys")]

    assert [200, 403] == [answer.status_code for answer in alice]
    assert 401 == nobody.status_code
    assert [404, 404, 404] == [answer.status_code for answer in gone]


async def test_an_operator_of_the_host_sees_its_organizations_only(tmp_path: Path):
    """With the id of another organization, there is no machine to see."""
    from uuid import UUID

    async def identify(_scope: Any) -> HostOperator | None:
        return HostOperator("alice", {"*"}, {UUID(int=7)}, ambient=False)

    async with host_of("litestar", settings_in(tmp_path / "data"), operators=identify) as host:
        await host.agent()
        answer = await host.below.get("/api/v1/agents")

    assert (200, []) == (answer.status_code, answer.json()["items"])


async def test_the_host_scope_is_what_the_port_gets(tmp_path: Path):
    """What the host's middleware put into the scope is there to be asked."""
    seen: list[Any] = []

    async def identify(scope: Any) -> HostOperator | None:
        seen.append((scope["user"], scope["path"]))
        return HostOperator(scope["user"], {"*"}, None)

    server = embedded(settings_in(tmp_path / "data"), operators=identify)
    inner = in_fastapi(server)

    async def with_user(scope: Any, receive: Any, send: Any) -> None:
        await inner({**scope, "user": "carol"}, receive, send)

    async with hosted(with_user, server) as host:
        page = await host.below.get("/")

    assert [("carol", "/redflag/")] == seen
    assert (200, True) == (page.status_code, "carol" in page.text)
    assert "/sign-out" not in page.text


async def test_a_change_with_a_hosts_cookie_needs_the_form_token(tmp_path: Path):
    """What a browser sends by itself orders nothing: neither from another site nor without the token."""

    async def identify(_scope: Any) -> HostOperator | None:
        return HostOperator("alice", {"*"}, None)

    async with host_of("litestar", settings_in(tmp_path / "data"), operators=identify) as host:
        machine = await host.agent()
        page = await host.below.get(f"/machines/{machine.agent_id}")
        token = page.text.partition('name="form_token" value="')[2].partition('"')[0]
        path, form = f"/machines/{machine.agent_id}/scan", {"reason": "because"}
        answers = [
            await host.below.post(path, data=form | more, headers=headers)
            for more, headers in (
                ({}, FETCH),
                ({"form_token": token}, {"sec-fetch-site": "cross-site"}),
                ({"form_token": token}, FETCH),
            )
        ]

    assert [403, 403, 303] == [answer.status_code for answer in answers]


async def test_a_page_for_somebody_unknown_leads_to_the_hosts_sign_in(tmp_path: Path):
    """With an address for it people are sent there; without, they are told."""

    async def identify(_scope: Any) -> HostOperator | None:
        return None

    async with host_of(
        "fastapi", settings_in(tmp_path / "a"), operators=identify, sign_in_url="/login?next=/redflag/"
    ) as host:
        sent = await host.below.get("/")
    async with host_of("fastapi", settings_in(tmp_path / "b"), operators=identify) as host:
        told = await host.below.get("/")

    assert (303, "/login?next=/redflag/") == (sent.status_code, sent.headers["location"])
    assert (401, True) == (told.status_code, told.headers["content-type"].startswith("text/html"))


async def test_a_port_that_fails_lets_nobody_in(tmp_path: Path):
    """An error in the host's own code is an error of the server, not an open door."""

    async def identify(_scope: Any) -> HostOperator | None:
        raise LookupError("the session store is gone")

    async with host_of("fastapi", settings_in(tmp_path / "data"), operators=identify) as host:
        answer = await host.below.get("/api/v1/agents")

    assert (500, "internal", False) == (answer.status_code, answer.json()["code"], "session" in answer.text)


@pytest.mark.parametrize(
    "wrong", [{"name": ""}, {"name": "a\nb"}, {"permissions": ["fly"]}, {"permissions": []}], ids=str
)
def test_an_operator_of_the_host_is_checked(wrong: dict[str, Any]):
    """A name that would forge events, and a permission that does not exist, are refused."""
    from redflag_server.problems import InvalidRequestError

    with pytest.raises(InvalidRequestError):
        HostOperator(**{"name": "alice", "permissions": ["*"], "organizations": None, **wrong})


async def test_without_the_dashboard_there_is_the_api_only(tmp_path: Path):
    """Pages and their files are not there, and what is not there is a problem, not a page."""
    async with host_of("litestar", settings_in(tmp_path / "data"), dashboard=False) as host:
        machine = await host.agent()
        checked_in = await machine.check_in(host.root)
        gone = [await host.below.get(path) for path in ("/", "/sign-in", "/static/redflag.css")]

    assert 200 == checked_in.status_code
    assert [(404, "not_found")] * 3 == [(answer.status_code, answer.json()["code"]) for answer in gone]


@pytest.mark.postgresql
async def test_the_engine_can_be_the_hosts(tmp_path: Path):
    """Agents work over it, it is still open after the server ended, and its transactions are ours."""
    settings = settings_in(tmp_path / "data")
    url = settings.database_url.replace("postgresql://", "postgresql+asyncpg://")
    engine = create_async_engine(url)
    try:
        async with host_of("litestar", settings, engine=engine) as host:
            machine = await host.agent()
            answers = await asyncio.gather(*(machine.check_in(host.root) for _ in range(10)))
            reported = await machine.report(host.root, full_report([package("curl")]))
        async with engine.connect() as connection:
            alive = (await connection.exec_driver_sql("SELECT count(*) FROM agents")).scalar_one()
    finally:
        await engine.dispose()

    assert ([200] * 10, 200, 1) == ([answer.status_code for answer in answers], reported.status_code, alive)


@pytest.mark.sqlite
@pytest.mark.parametrize("url", ["postgresql+asyncpg://there/db", "sqlite+aiosqlite:///other.db"])
async def test_an_engine_of_another_database_is_refused(url: str, tmp_path: Path):
    """The command line goes by the settings: it would look elsewhere."""
    server = embedded(settings_in(tmp_path / "data"), engine=create_async_engine(url))

    with pytest.raises(ConfigurationError, match="engine"):
        async with server.lifespan():
            pass


@pytest.mark.sqlite
async def test_a_second_process_on_the_same_sqlite_is_refused(tmp_path: Path):
    """Two workers of a host would both serve it: the second one does not start."""
    async with host_of("litestar", settings_in(tmp_path / "data")):
        with pytest.raises(ConfigurationError, match="another RedFlag server"):
            async with embedded(settings_in(tmp_path / "data")).lifespan():
                pass


async def test_a_host_that_forgot_the_lifespan_is_told(tmp_path: Path):
    """Before it was entered every request is answered 503, with the reason."""
    server = embedded(settings_in(tmp_path / "data"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(server), base_url=f"http://{NAME}") as client:
        answer = await client.get(f"{PATH}/api/v1/health/live")

    assert (503, True) == (answer.status_code, "lifespan" in answer.json()["detail"])


@pytest.mark.parametrize("path", ["", "/", "redflag", "/redflag/", "/red flag"])
def test_a_path_that_is_none_is_refused(path: str, tmp_path: Path):
    """It is said when the server is made, not with the first request."""
    with pytest.raises(ConfigurationError, match="path to mount"):
        EmbeddedServer(Settings(data=tmp_path, public_urls=("http://h/redflag",)), path=path)


def test_a_server_without_a_public_url_is_not_embedded(tmp_path: Path):
    """It cannot know where the host listens, and tells machines nothing wrong."""
    with pytest.raises(ConfigurationError, match="public_urls"):
        EmbeddedServer(Settings(data=tmp_path), path=PATH)


@pytest.mark.parametrize(
    "raw, root, expected",
    [
        ("/redflag/api/v1/x", "", "/api/v1/x"),
        ("/redflag/api/v1/x", "/redflag", "/api/v1/x"),
        ("/tools/redflag/api/v1/x", "/tools", "/api/v1/x"),
        ("/tools/redflag/api/v1/x", "/tools/redflag", "/api/v1/x"),
        ("/redflag/api/v1/x", "/tools/redflag", "/api/v1/x"),
        ("/redflag/api/v1/x", "/tools", "/api/v1/x"),
        ("/redflag/a%2Fb?q=1", "/redflag", "/a%2Fb"),
        ("/redflag", "/redflag", "/"),
        ("/redflagged/api", "", None),
        ("/%72edflag/api", "/redflag", None),
        ("/api/v1/x", "", None),
    ],
)
def test_the_target_below_the_mount(raw: str, root: str, expected: str | None):
    """However hosts and proxies note the prefix, the undecoded rest is the same, and nothing else is ours."""
    assert expected == inner_target({"raw_path": raw.encode(), "root_path": root, "path": raw}, PATH)


async def test_a_fastapi_host_behind_a_proxy_that_takes_a_prefix_away(tmp_path: Path):
    """The public URL has the proxy's part, the request has not: it verifies under the public one."""
    settings = settings_in(tmp_path / "data", public_urls=(f"http://{NAME}/tools{PATH}",))
    server = embedded(settings)
    inner = in_fastapi(server)

    async def with_root_path(scope: Any, receive: Any, send: Any) -> None:
        await inner({**scope, "root_path": "/tools"}, receive, send)

    async with hosted(with_root_path, server) as host:
        machine = await host.agent(prefix="/tools" + PATH)
        signed = machine.sign("/agent/check-in", machine.check_in_body())
        answer = await attrs.evolve(signed, path=signed.path.removeprefix("/tools")).send(host.root)

    assert 200 == answer.status_code
