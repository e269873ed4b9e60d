"""
Errors as problem details (RFC 9457): one table from stable codes to HTTP status, one shape of answer.

An expected failure is a `RedFlagError`; its ``code`` is in the table. Whatever else is raised is answered 500 with
no detail, and logged.
"""

import logging
from collections.abc import Mapping
from datetime import datetime
from email.utils import format_datetime
from http import HTTPStatus
from typing import Any, Final

import attrs
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.types import ExceptionHandlersMap
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from redflag_core.encoding import dump_json
from redflag_core.errors import RedFlagError, StaleError
from redflag_core.rate_limit import Decision, headers
from redflag_server.client_errors.capture import about
from redflag_server.db.duplicates import is_duplicate

logger = logging.getLogger(__name__)

RETRY_SECONDS: Final = 5
"""``Retry-After`` of a 503: long enough for a lock to be given back."""


class ServerError(RedFlagError):
    """
    A request that this server answers with an error of its own.

    Attributes:
        headers: Headers of the answer.
    """

    headers: Mapping[str, str] = {}


class NotAuthenticatedError(ServerError):
    """No valid session or API key came with the request."""

    code = "not_authenticated"
    headers: Mapping[str, str] = {"WWW-Authenticate": "Bearer"}


class ForbiddenError(ServerError):
    """The caller is known and may not do this."""

    code = "forbidden"


class NotFoundError(ServerError):
    """There is no such thing, or the caller may not see it: the two are not told apart."""

    code = "not_found"


class SignInRefusedError(ServerError):
    """Unknown name, wrong password or disabled account: the three are not told apart."""

    code = "sign_in_refused"


class ConflictError(ServerError):
    """The request contradicts what is on record."""

    code = "conflict"


class InvalidRequestError(ServerError):
    """A parameter has no meaning here. The message names it."""

    code = "invalid_request"


class UnsupportedEncodingError(ServerError):
    """The body has a content encoding that is not accepted."""

    code = "unsupported_encoding"

    def __init__(self, message: str, accepted: str = "identity") -> None:
        super().__init__(message)
        self.headers = {"Accept-Encoding": accepted}


class TokenError(ServerError):
    """The access token is not valid any more: ask for a new one."""

    code = "bad_token"
    headers: Mapping[str, str] = {"WWW-Authenticate": 'Bearer error="invalid_token"'}


class AgentStateError(ServerError):
    """The agent's status does not allow this request. ``code`` is ``agent_`` and the status."""

    def __init__(self, message: str, status: str) -> None:
        super().__init__(message)
        self.code = f"agent_{status}"  # type: ignore[misc]  # one code for each status


class RegistrationRefusedError(ServerError):
    """The registration token is unknown, used up, expired, revoked, or not for this address."""

    code = "registration_refused"


class RegistrationConflictError(ServerError):
    """The key is registered with other data. A record is never taken over."""

    code = "registration_conflict"


class DuplicateMachineError(ServerError):
    """Another agent has this machine id: replace it by a random one and register again."""

    code = "duplicate_machine_id"


class RefreshForkError(ServerError):
    """Two hold the same refresh secret: the agent is quarantined."""

    code = "refresh_fork"


class UnavailableError(ServerError):
    """The database does not answer now: nothing was accepted, try again."""

    code = "unavailable"
    headers: Mapping[str, str] = {"Retry-After": str(RETRY_SECONDS)}


class RateLimitedError(ServerError):
    """A rate limit holds."""

    code = "rate_limited"

    def __init__(self, decision: Decision, name: str) -> None:
        super().__init__("too many requests: slow down")
        self.headers = headers(decision, name)


_STATUS: Final[Mapping[str, HTTPStatus]] = {
    "malformed": HTTPStatus.BAD_REQUEST,
    "invalid_request": HTTPStatus.BAD_REQUEST,
    "invalid_policy": HTTPStatus.BAD_REQUEST,
    "too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "unsupported_encoding": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "not_authenticated": HTTPStatus.UNAUTHORIZED,
    "unknown_key": HTTPStatus.UNAUTHORIZED,
    "bad_signature": HTTPStatus.UNAUTHORIZED,
    "bad_token": HTTPStatus.UNAUTHORIZED,
    "stale": HTTPStatus.UNAUTHORIZED,
    "replayed": HTTPStatus.UNAUTHORIZED,
    "verification_failed": HTTPStatus.UNAUTHORIZED,
    "expired": HTTPStatus.UNAUTHORIZED,
    "rollback": HTTPStatus.UNAUTHORIZED,
    "wrong_recipient": HTTPStatus.UNAUTHORIZED,
    "forbidden": HTTPStatus.FORBIDDEN,
    "sign_in_refused": HTTPStatus.FORBIDDEN,
    "machine_mismatch": HTTPStatus.FORBIDDEN,
    "registration_refused": HTTPStatus.FORBIDDEN,
    "refresh_fork": HTTPStatus.FORBIDDEN,
    "agent_pending": HTTPStatus.FORBIDDEN,
    "agent_quarantined": HTTPStatus.FORBIDDEN,
    "agent_hardware_changed": HTTPStatus.FORBIDDEN,
    "agent_renewal_pending": HTTPStatus.FORBIDDEN,
    "agent_executor_rolled_back": HTTPStatus.FORBIDDEN,
    "agent_revoked": HTTPStatus.FORBIDDEN,
    "not_found": HTTPStatus.NOT_FOUND,
    "conflict": HTTPStatus.CONFLICT,
    "illegal_move": HTTPStatus.CONFLICT,
    "registration_conflict": HTTPStatus.CONFLICT,
    "duplicate_machine_id": HTTPStatus.CONFLICT,
    "rate_limited": HTTPStatus.TOO_MANY_REQUESTS,
    "unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
}


@attrs.frozen
class Problem:
    """
    Problem details, ``application/problem+json``.

    Attributes:
        type: ``about:blank``: the code says more than a page would.
        title: The status in words.
        status: HTTP status.
        code: Stable name of the failure.
        detail: What happened and what to do.
    """

    title: str
    status: int
    code: str
    detail: str
    type: str = "about:blank"


def status_of(error: RedFlagError) -> HTTPStatus:
    """HTTP status of an expected failure; an unlisted code is a bug and answered 500."""
    return _STATUS.get(error.code, HTTPStatus.INTERNAL_SERVER_ERROR)


def problem_response(
    status: int, code: str, detail: str, extra: Mapping[str, str] | None = None
) -> Response[bytes]:
    """The answer for one failure."""
    problem = Problem(HTTPStatus(status).phrase, status, code, detail)
    return Response(
        dump_json(attrs.asdict(problem)),
        status_code=status,
        media_type="application/problem+json",
        headers=dict(extra or {}),
    )


def on_redflag_error(request: Request[Any, Any, Any], error: RedFlagError) -> Response[bytes]:
    """Answer an expected failure."""
    status = status_of(error)
    if status is HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("no HTTP status for code %s", error.code, exc_info=error)
        return problem_response(status, "internal", "An error of the server; it was logged.")
    extra = dict(error.headers) if isinstance(error, ServerError) else {}
    if isinstance(error, StaleError):
        extra["Date"] = http_date(request.app.state.runtime.clock.now())
    return problem_response(status, error.code, error.message, extra)


def on_http_error(_request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Answer what the framework refused: no such route, a method that is not allowed, a bad parameter."""
    status = HTTPStatus(error.status_code)
    code = {
        HTTPStatus.NOT_FOUND: "not_found",
        HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "too_large",
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "unsupported_media_type",
    }.get(status, "invalid_request")
    allow = {k: v for k, v in (error.headers or {}).items() if k.lower() == "allow"}
    return problem_response(status, code, _detail(error, status), allow)


def on_database_error(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The database is locked, full, read-only or gone: nothing was accepted."""
    logger.error("database error: %s", type(error).__name__, exc_info=error, extra=_about(request))
    refusal = UnavailableError("The database does not answer. Try again.")
    return problem_response(status_of(refusal), refusal.code, refusal.message, refusal.headers)


def on_integrity_error(request: Request[Any, Any, Any], error: IntegrityError) -> Response[bytes]:
    """Another request was a moment earlier with the same. Whatever else contradicts the database is a mistake."""
    if not is_duplicate(error):
        return on_unexpected(request, error)
    refusal = ConflictError("another request did the same a moment earlier: look again")
    return problem_response(status_of(refusal), refusal.code, refusal.message)


def on_unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Whatever else: say nothing of it to the outside."""
    logger.error("unexpected error", exc_info=error, extra=_about(request))
    return problem_response(500, "internal", "An error of the server; it was logged.")


def http_date(now: datetime) -> str:
    """A ``Date`` header (RFC 9110, section 5.6.7)."""
    return format_datetime(now, usegmt=True)


def _about(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """What is kept with an error beside its traceback: see `client_errors.capture`."""
    runtime = request.app.state.get("runtime")
    if runtime is None:
        return {}
    return about(runtime.errors, "http", method=str(request.method), path=request.scope["path"][:300])


def _detail(error: HTTPException, status: HTTPStatus) -> str:
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "An error of the server; it was logged."
    extra = error.extra if isinstance(error.extra, list) else []
    fields = [f"{item['key']}: {item['message']}" for item in extra if isinstance(item, dict) and "key" in item]
    return "; ".join(fields) or str(error.detail) or status.phrase


EXCEPTION_HANDLERS: ExceptionHandlersMap = {
    RedFlagError: on_redflag_error,
    HTTPException: on_http_error,
    OperationalError: on_database_error,
    IntegrityError: on_integrity_error,
    PoolTimeoutError: on_database_error,
    Exception: on_unexpected,
}
