"""What every API endpoint for people and scripts has in common."""

from typing import Annotated, Any, Final

from litestar import Controller, Request
from litestar.di import Provide
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter
from litestar.typing import FieldDefinition

from redflag_core.errors import MalformedError
from redflag_core.messages import MAX_SMALL_BODY
from redflag_server.accounts.authentication import OperatorAuthentication, provide_scope
from redflag_server.db.pages import DEFAULT_LIMIT, MAX_LIMIT
from redflag_server.problems import InvalidRequestError

MAX_FILTER: Final = 256
"""Characters of a filter: as long as the longest name that it could find."""

Cursor = Annotated[
    str | None, QueryParameter(max_length=64, description="`next` of the page before; absent for the first page.")
]
Limit = Annotated[
    int, QueryParameter(ge=1, le=MAX_LIMIT, description=f"Items on a page, {DEFAULT_LIMIT} if absent.")
]


async def check_request(request: Request[Any, Any, Any]) -> None:
    """
    Refuse query parameters that the handler does not take: a misspelt filter must not look like "no filter".

    Raises:
        InvalidRequestError: One that is unknown, there twice, or holds U+0000. The message names it.
        MalformedError: There is no body where there must be one.
    """
    if request.method in ("POST", "PUT") and not await request.body():
        raise MalformedError("the body is empty: send a JSON object")
    known = query_parameters(request.route_handler)
    seen: set[str] = set()
    for name, value in request.query_params.multi_items():
        if name not in known:
            allowed = f"there are {', '.join(sorted(known))}" if known else "there are none"
            raise InvalidRequestError(f"there is no query parameter {_shown(name)} here; {allowed}")
        if "\0" in str(value):
            raise InvalidRequestError(f"{name} holds U+0000")
        if name in seen and not known[name]:
            raise InvalidRequestError(f"{name} can be given once")
        seen.add(name)


def query_parameters(handler: HTTPRouteHandler) -> dict[str, bool]:
    """Names of the query parameters of a handler, and whether each can be repeated."""
    return {
        field.kwarg_definition.name or name: _is_list(field)
        for name, field in handler.parsed_fn_signature.parameters.items()
        if isinstance(field.kwarg_definition, QueryParameter)
    }


def _is_list(field: FieldDefinition) -> bool:
    return any(inner.is_non_string_sequence for inner in (field, *field.inner_types))


def _shown(name: str) -> str:
    text = "".join(character if character.isprintable() else "?" for character in name[:40])
    return repr(text)


class OperatorController(Controller):
    """
    Base of controllers for people and scripts.

    Their handlers take ``visible: Injected[Scope]`` and say what they need in ``opt["permission"]``.
    """

    middleware = (OperatorAuthentication,)
    dependencies = {"visible": Provide(provide_scope, sync_to_thread=False)}  # noqa: RUF012  (Litestar's form)
    request_max_body_size = MAX_SMALL_BODY
    security = ({"session": []}, {"apiKey": []})
    before_request = staticmethod(check_request)
