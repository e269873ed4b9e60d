"""Errors as pages: what the API answers as a problem, a browser gets to read."""

import json
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.types import ExceptionHandlersMap

from redflag_server.accounts.authentication import REFRESH_HEADER
from redflag_server.dashboard.rendering import HTML, redirect, render

API_PATHS: Final = ("/api/", "/metrics", "/schema", "/static/")

Handler = Callable[[Request[Any, Any, Any], Any], Response[Any]]

_TITLES: Final = {
    400: "That did not work",
    401: "Sign in first",
    403: "Not allowed",
    404: "Not found",
    409: "That is not possible now",
    413: "That is too much",
    429: "Slow down",
    503: "Try again in a moment",
}


def with_pages(handlers: ExceptionHandlersMap) -> ExceptionHandlersMap:
    """The same handlers; outside the API their answers become pages."""
    return {kind: _page_of(handler) for kind, handler in handlers.items()}


def _page_of(handler: Any) -> Handler:
    def handle(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
        problem: Response[Any] = handler(request, error)
        if request.scope["path"].startswith(API_PATHS):
            return problem
        return _page(request, problem, error)

    return handle


def _page(request: Request[Any, Any, Any], problem: Response[Any], error: Exception) -> Response[Any]:
    status, detail = problem.status_code or 500, json.loads(problem.content)["detail"]
    if status == 401 and REFRESH_HEADER not in request.headers:
        state = request.app.state
        if state.operators is None:
            return redirect(request, _sign_in(request))
        if state.sign_in_url is not None:
            return Response(b"", media_type=HTML, status_code=303, headers={"Location": state.sign_in_url})
    if isinstance(error, HTTPException) and status in (404, 405):
        # A page that exists for other methods is not told apart from one that does not exist.
        status, detail = 404, "there is no such page"
    title = _TITLES.get(status, "Something went wrong" if status >= 500 else "That did not work")
    context = {"title": title, "detail": detail, "status": status}
    kept = {
        name: value for name, value in problem.headers.items() if name.lower() not in ("allow", "content-type")
    }
    return render(request, "message.html", context, status=status, headers=kept)


def _sign_in(request: Request[Any, Any, Any]) -> str:
    if request.method != "GET" or request.scope["path"] == "/":
        return "/sign-in"
    query = request.scope["query_string"].decode("latin-1")
    target = request.scope["path"] + (f"?{query}" if query else "")
    return f"/sign-in?next={quote(target, safe='')}" if len(target) <= 400 else "/sign-in"
