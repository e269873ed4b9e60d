"""Around every request: its id, how long it took, one line in the access log, and a count."""

import json
import logging
import re
import time
from typing import Any, Final

from litestar import Litestar, Request, Response
from litestar.types import ExceptionHandlersMap
from structlog.contextvars import bound_contextvars

from redflag_core.encoding import dump_json
from redflag_core.ports import Entropy
from redflag_server.addresses import is_trusted_peer
from redflag_server.checkin.authentication import verified_sender
from redflag_server.metrics.requests import UNMATCHED, RequestMetrics
from redflag_server.settings import Settings

access = logging.getLogger("redflag.access")

REQUEST_ID: Final = "redflag.request_id"
"""Where the scope of a request has its id."""

HEADER: Final = b"x-request-id"
_FORM: Final = re.compile(r"[A-Za-z0-9._-]{8,64}")
ID_BYTES: Final = 12
"""Random bytes of an id: two requests with one are not to be expected in years of a busy server."""


class ObservedApp(Litestar):
    """
    Litestar, with an eye on every request, those to paths that do not exist included.

    Set `observe` before the first request.
    """

    _observer: "Observer | None" = None

    def observe(self, observer: "Observer") -> None:
        """Let *observer* see every request."""
        self._observer = observer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or self._observer is None:
            await super().__call__(scope, receive, send)
        else:
            await self._observer.serve(super().__call__, scope, receive, send)


class Observer:
    """
    What is noted of requests.

    Args:
        settings: Whose word about ids is taken, and whether there is an access log.
        entropy: Draws ids.
        metrics: Counts.
    """

    def __init__(self, settings: Settings, entropy: Entropy, metrics: RequestMetrics) -> None:
        self._settings, self._entropy, self._metrics = settings, entropy, metrics

    async def serve(self, app: Any, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        started, status = time.perf_counter(), 0
        request_id = scope[REQUEST_ID] = self._id_of(scope)

        async def noting(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (HEADER, request_id.encode())]
            await send(message)

        with bound_contextvars(request_id=request_id):
            try:
                await app(scope, receive, noting)
            finally:
                self._note(scope, status, time.perf_counter() - started)

    def _id_of(self, scope: Any) -> str:
        """The id that a trusted proxy gave, or a new one: nobody else may choose what stands in our log."""
        if is_trusted_peer(scope, self._settings.trusted_proxies):
            given: list[str] = [value.decode("latin-1") for name, value in scope["headers"] if name == HEADER]
            if len(given) == 1 and _FORM.fullmatch(given[0]):
                return given[0]
        return self._entropy.token(ID_BYTES).hex()

    def _note(self, scope: Any, status: int, seconds: float) -> None:
        route = scope.get("path_template") or UNMATCHED
        self._metrics.count(route, scope["method"], status, seconds)
        if self._settings.access_log:
            # Never the path itself: links of the setup have their secret in it.
            sender = verified_sender(scope)
            facts = {
                "route": route,
                "method": scope["method"],
                "status": status,
                "ms": round(seconds * 1000, 2),
                "agent_id": None if sender is None else str(sender.entry.agent_id),
            }
            access.info("request", extra={"facts": {k: v for k, v in facts.items() if v is not None}})


def with_request_ids(handlers: ExceptionHandlersMap) -> ExceptionHandlersMap:
    """The same handlers, whose problems say the id of the request, for whoever has to find it in the log."""
    return {kind: _with_id(handler) for kind, handler in handlers.items()}


def _with_id(handler: Any) -> Any:
    def handle(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
        response: Response[Any] = handler(request, error)
        request_id = dict(request.scope).get(REQUEST_ID)
        if request_id is not None:
            response.content = dump_json({**json.loads(response.content), "request_id": request_id})
        return response

    return handle
