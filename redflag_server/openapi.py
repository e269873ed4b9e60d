"""What operations say of themselves in OpenAPI: an example of each answer, and the problems that can come."""

from typing import Any, Final

import msgspec
from litestar.openapi import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, Example, Reference, SecurityScheme

from redflag_core import __version__
from redflag_server.problems import Problem

_PROBLEMS: Final[dict[int, Problem]] = {
    400: Problem("Bad Request", 400, "invalid_request", "limit: Expected `int` <= 1000"),
    401: Problem("Unauthorized", 401, "not_authenticated", "sign in, or send a valid API key"),
    403: Problem("Forbidden", 403, "forbidden", "this needs the permission agents:write"),
    404: Problem("Not Found", 404, "not_found", "there is no such machine"),
    409: Problem("Conflict", 409, "conflict", "web-01 is quarantined: it cannot be approved"),
    503: Problem("Service Unavailable", 503, "unavailable", "The database does not answer; nothing was accepted."),
    429: Problem("Too Many Requests", 429, "rate_limited", "too many requests: slow down"),
}


def openapi_config() -> OpenAPIConfig:
    """The document at ``/schema/openapi.json``. A page for it would need somebody else's scripts."""
    schemes: dict[str, SecurityScheme | Reference] = {
        "apiKey": SecurityScheme(type="http", scheme="bearer", description="An API key, `rfk_...`."),
        "session": SecurityScheme(
            type="apiKey",
            name="__Host-redflag",
            security_scheme_in="cookie",
            description="The session of a person; a change needs its form token in `X-Form-Token` too.",
        ),
        "agent": SecurityScheme(
            type="http",
            scheme="bearer",
            description="The access token of an agent, in a request signed with its key (RFC 9421).",
        ),
    }
    return OpenAPIConfig(
        title="RedFlag",
        version=__version__,
        description="Update management for fleets. Errors are problem details (RFC 9457) with a stable `code`.",
        path="/schema",
        render_plugins=[JsonRenderPlugin()],
        components=Components(security_schemes=schemes),
    )


def example(value: Any) -> Example:
    """An example from a value of the documented type: it cannot go out of date unnoticed."""
    return Example(value=msgspec.to_builtins(value))


def answers(
    kind: Any, value: Any, *problems: int, status: int = 200, public: bool = False
) -> dict[int, ResponseSpec]:
    """
    Document the answers of an operation.

    Args:
        kind: Type of the answer.
        value: An example of it.
        problems: Statuses of problems that can come, beside 400, 401 and 403.
        status: Status of success.
        public: For everybody: there are only the problems named.
    """
    described = {
        code: ResponseSpec(
            Problem,
            generate_examples=False,
            media_type="application/problem+json",
            description=_PROBLEMS[code].title,
            examples=[example(_PROBLEMS[code])],
        )
        for code in (*(() if public else (400, 401, 403)), *problems)
    }
    success = ResponseSpec(kind, generate_examples=False, description="Done", examples=[example(value)])
    return {status: success, **described}
