"""
The whole server below a path of somebody else's application: Litestar, FastAPI, Starlette, Django, any ASGI.

It stays an application of its own behind one door, `EmbeddedServer`. Nothing of it gets into the host: no route,
no exception handler, no middleware, no state, no entry in the host's OpenAPI document. And nothing of the host
changes what an agent signed: the path is the undecoded target below the place where the server is mounted.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias
from urllib.parse import quote, unquote

from litestar import Litestar
from sqlalchemy.ext.asyncio import AsyncEngine

from redflag_core.encoding import dump_json
from redflag_core.errors import ConfigurationError
from redflag_core.ports import Clock, Entropy
from redflag_core.system import SystemClock, SystemEntropy
from redflag_server.accounts.host_operators import HOST_SCOPE, HostOperator, IdentifyOperator
from redflag_server.app import create_app
from redflag_server.settings import Settings

__all__ = ["EmbeddedServer", "HostOperator", "IdentifyOperator"]

AsgiApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]

_KEPT: Final = ("type", "asgi", "http_version", "method", "scheme", "query_string", "headers", "client", "server")
"""What of a host's scope is about the request. The rest (state, session, user, route) is the host's own."""

_PATH_SAFE: Final = "/:@!$&'()*+,;=-._~"


class EmbeddedServer:
    """
    The server as an ASGI application to mount, with a lifespan for the host to enter.

    Belongs to one event loop. With SQLite, to one process: a second one is refused at its start.

    Args:
        settings: Checked settings. ``public_urls`` says under which URLs agents reach it, the path included:
            ``https://example.com/redflag``. Where it listens is the host's business.
        path: Where the host mounts it: ``/redflag``.
        operators: Tells who is asking, instead of our sessions and API keys. Then there are no accounts here: no
            sign-in, and no endpoints for users and keys.
        sign_in_url: Where pages send somebody whom *operators* does not know; None shows a page that says so.
        dashboard: Whether there are pages. Without, there is the API only.
        engine: The host's engine for the database of the settings, instead of one of ours; see
            `redflag_server.db.engine.Database`. The host closes it.
        run_jobs: Whether this process runs the recurring work too.
        clock: Wall and monotonic time.
        entropy: Randomness.

    Raises:
        ConfigurationError: The settings have no public URL, or *path* is none.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        path: str,
        operators: IdentifyOperator | None = None,
        sign_in_url: str | None = None,
        dashboard: bool = True,
        engine: AsyncEngine | None = None,
        run_jobs: bool = True,
        clock: Clock | None = None,
        entropy: Entropy | None = None,
    ) -> None:
        _check(settings, path)
        self.path: Final = path
        self.app: Final[Litestar] = create_app(
            settings,
            clock=clock or SystemClock(),
            entropy=entropy or SystemEntropy(),
            run_jobs=run_jobs,
            operators=operators,
            sign_in_url=sign_in_url,
            dashboard=dashboard,
            engine=engine,
            embedded=True,
        )

    @asynccontextmanager
    async def lifespan(self, _host: Any = None) -> AsyncIterator[None]:
        """
        Keep the server open: what the host's own lifespan enters, or has as its lifespan.

        Raises:
            ConfigurationError: The data directory, a key or the database must not or cannot be used.
        """
        try:
            async with self.app.lifespan():
                yield
        except BaseExceptionGroup as group:  # the framework's task group: say the one sentence that matters
            refusals, others = group.split(ConfigurationError)
            if refusals is None or others is not None:
                raise
            raise refusals.exceptions[0] from None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection that the host's router sent here."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._serve(scope, receive, send)

    def beside(self, host: AsgiApp) -> AsgiApp:
        """
        One application of the two, for a host that cannot mount (Django): what is below the path comes here.

        Args:
            host: Takes every other request. Its lifespan is not run: Django has none.
        """

        async def dispatch(scope: Any, receive: Any, send: Any) -> None:
            ours = scope["type"] == "lifespan" or inner_target(scope, self.path) is not None
            await (self if ours else host)(scope, receive, send)

        return dispatch

    async def _serve(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        target = inner_target(scope, self.path)
        if "runtime" not in self.app.state:
            await _answer(send, 503, "unavailable", "the host did not enter the lifespan of the server")
        elif target is None:
            await _answer(send, 404, "not_found", "there is no such path")
        else:
            inner = {name: scope[name] for name in _KEPT if name in scope}
            inner |= {"root_path": "", "path": unquote(target), "raw_path": target.encode("latin-1")}
            inner |= {"state": {}, HOST_SCOPE: scope}
            await self.app(inner, receive, send)  # type: ignore[arg-type]


def inner_target(scope: Mapping[str, Any], path: str) -> str | None:
    """
    The undecoded target of a request below the place where the server is mounted, without its query.

    Hosts disagree: some take their part of the path away and some leave it, some note it in ``root_path``, and a
    proxy may have taken away another. All leave ``raw_path`` as it was received.

    Args:
        scope: The host's scope of a request. Untrusted.
        path: Where the server is mounted.

    Returns:
        It, or None if the request is for another place.
    """
    raw = scope.get("raw_path")
    sent = (quote(scope["path"], safe=_PATH_SAFE).encode() if raw is None else raw).split(b"?", 1)[0]
    target = sent.decode("latin-1")
    root = scope.get("root_path", "").rstrip("/")
    for prefix in (root if root.endswith(path) else root + path, path):
        if target == prefix or target.startswith(prefix + "/"):
            return target[len(prefix) :] or "/"
    return None


def _check(settings: Settings, path: str) -> None:
    if not settings.public_urls:
        raise ConfigurationError(
            "say under which URL agents and people reach the server, its path included: "
            f"public_urls=('https://example.com{path}',)"
        )
    if not path.startswith("/") or path.endswith("/") or quote(path, safe=_PATH_SAFE) != path:
        raise ConfigurationError(f"{path!r} is not a path to mount a server at: write '/redflag'")


async def _answer(send: Any, status: int, code: str, detail: str) -> None:
    problem = {"type": "about:blank", "status": status, "code": code, "detail": detail}
    headers = [(b"content-type", b"application/problem+json"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": dump_json(problem)})
