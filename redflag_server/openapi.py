"""What operations say of themselves in OpenAPI: an example of each answer, and the problems that can come."""

from typing import Any, Final

import msgspec
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example

from redflag_server.problems import Problem

_PROBLEMS: Final[dict[int, Problem]] = {
    400: Problem("Bad Request", 400, "invalid_request", "limit: Expected `int` <= 1000"),
    401: Problem("Unauthorized", 401, "not_authenticated", "sign in, or send a valid API key"),
    403: Problem("Forbidden", 403, "forbidden", "this needs the permission agents:write"),
    404: Problem("Not Found", 404, "not_found", "there is no such machine"),
    409: Problem("Conflict", 409, "conflict", "web-01 is quarantined: release or revoke it"),
}


def example(value: Any) -> Example:
    """An example from a value of the documented type: it cannot go out of date unnoticed."""
    return Example(value=msgspec.to_builtins(value))


def answers(kind: Any, value: Any, *problems: int, status: int = 200) -> dict[int, ResponseSpec]:
    """
    Document the answers of an operation for operators.

    Args:
        kind: Type of the answer.
        value: An example of it.
        problems: Statuses of problems that can come, beside 400, 401 and 403.
        status: Status of success.
    """
    described = {
        code: ResponseSpec(
            Problem,
            generate_examples=False,
            media_type="application/problem+json",
            description=_PROBLEMS[code].title,
            examples=[example(_PROBLEMS[code])],
        )
        for code in (400, 401, 403, *problems)
    }
    success = ResponseSpec(kind, generate_examples=False, description="Done", examples=[example(value)])
    return {status: success, **described}
