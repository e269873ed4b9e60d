"""
ASGI middleware in front of everything for operators: who is asking, and may it.

Runs before the framework reads anything of the request, so that nobody learns from error messages what a caller
without the permission should not know. A route says what it needs in ``opt["permission"]``; one for everybody says
``opt["public"]`` and is still told who is signed in. ``opt["page"]``: sessions only, no API keys.
``opt["anonymous_form"]``: a form that is filled in before there is a session.
"""

import logging
from typing import Any, Final

import attrs
from litestar import Litestar, Request
from litestar.exceptions import MethodNotAllowedException
from litestar.types import ASGIApp, Receive, Send
from litestar.types import Scope as AsgiScope
from sqlalchemy.exc import OperationalError

from redflag_server.accounts.credentials import (
    CredentialKind,
    Presented,
    find,
    key_digest,
    note_use,
    session_digest,
    use_is_news,
)
from redflag_server.accounts.forms import check_form_token, check_same_origin, form_token
from redflag_server.accounts.host_operators import HOST_SCOPE, HostOperator, IdentifyOperator
from redflag_server.db.scope import Caller, Scope, scoped
from redflag_server.problems import ForbiddenError, NotAuthenticatedError
from redflag_server.runtime import Runtime

logger = logging.getLogger(__name__)

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
REFRESH_HEADER: Final = "x-refresh"
"""Sent by pages that refresh themselves: a page left open is not a person at work, so it keeps no session."""

_STATE_KEY: Final = "operator"


@attrs.frozen
class Operator:
    """
    Who came in, proven.

    Attributes:
        caller: What it may do and see.
        presented: The credential and the person; None for an operator of a host.
        form_token: For forms of this session; None for an API key, or what else no browser sends by itself.
    """

    caller: Caller
    presented: Presented | None
    form_token: str | None = attrs.field(repr=False)

    @property
    def name(self) -> str:
        """The name to call a person by."""
        return self.caller.actor.partition(":")[2]


class OperatorAuthentication:
    """
    The middleware.

    Args:
        app: What handles requests of people and scripts.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Find out who is asking, refuse what it may not do, and hand on."""
        opt = scope["route_handler"].opt
        if not opt.get("public") and "permission" not in opt:  # the framework's own handler of OPTIONS
            raise MethodNotAllowedException
        request: Request[Any, Any, Any] = Request(scope, receive, send)
        runtime: Runtime = Litestar.from_scope(scope).state.runtime
        host: IdentifyOperator | None = Litestar.from_scope(scope).state.operators
        if host is None:
            operator = await self._identify(request, runtime, page=bool(opt.get("page")))
        else:
            found = await host(dict(scope).get(HOST_SCOPE, scope))  # type: ignore[arg-type]
            operator = _of_host(found, runtime)
        scope["state"][_STATE_KEY] = operator
        await _charge(runtime, operator)
        if not opt.get("public"):
            check_permission(operator, opt["permission"])
        if request.method not in SAFE_METHODS:
            await _check_sender(request, operator, runtime)
        await self._app(scope, receive, send)

    async def _identify(self, request: Request[Any, Any, Any], runtime: Runtime, *, page: bool) -> Operator | None:
        authorization = request.headers.get("authorization")
        if authorization is not None and not page:
            scheme, _, key = authorization.partition(" ")
            digest = key_digest(key.strip()) if scheme.lower() == "bearer" else None
            kind = CredentialKind.API_KEY
        else:
            digest = session_digest(request.cookies.get(cookie_name(runtime), ""))
            kind = CredentialKind.SESSION
        if digest is None:
            return None
        presented = await _find(runtime, kind, digest, noted=REFRESH_HEADER not in request.headers)
        if presented is None:
            return None
        is_session = kind is CredentialKind.SESSION
        token = form_token(runtime.keys.forms, digest) if is_session else None
        return Operator(presented.caller, presented, token)


def _of_host(found: HostOperator | None, runtime: Runtime) -> Operator | None:
    if found is None:
        return None
    token = form_token(runtime.keys.forms, found.digest) if found.ambient else None
    return Operator(found.caller, None, token)


def cookie_name(runtime: Runtime) -> str:
    """Name of the session cookie. ``__Host-`` binds it to this host and to TLS (RFC 6265bis, 4.1.3.2)."""
    return "__Host-redflag" if runtime.settings.is_secure else "redflag_session"


def operator_of(request: Request[Any, Any, Any]) -> Operator | None:
    """Who is signed in, if anybody."""
    operator: Operator | None = request.scope["state"].get(_STATE_KEY)
    return operator


def provide_scope(request: Request[Any, Any, Any]) -> Scope:
    """
    Dependency: the statements that the caller may make.

    Raises:
        NotAuthenticatedError: Nobody valid is asking.
        ForbiddenError: It lacks the permission of the route.
    """
    return scoped(check_permission(operator_of(request), request.route_handler.opt["permission"]))


def check_permission(operator: Operator | None, permission: str) -> Caller:
    """
    The caller, if it holds *permission*.

    Raises:
        NotAuthenticatedError: Nobody valid is asking.
        ForbiddenError: The permission is missing.
    """
    if operator is None:
        raise NotAuthenticatedError("sign in, or send a valid API key: Authorization: Bearer rfk_...")
    if not operator.caller.may(permission):
        raise ForbiddenError(f"this needs the permission {permission}")
    return operator.caller


async def _charge(runtime: Runtime, operator: Operator | None) -> None:
    """Charge the rate limit of a credential, or of a person whom the host knows."""
    await runtime.policies.refresh()
    if operator is None:
        return
    caller = operator.caller
    subject = caller.actor if operator.presented is None else str(caller.credential_id)
    seen = caller.organizations or frozenset()
    await runtime.operators.charge(subject, next(iter(seen)) if len(seen) == 1 else None)


async def _check_sender(request: Request[Any, Any, Any], operator: Operator | None, runtime: Runtime) -> None:
    """A page of ours must have sent what changes something; an API key proves itself."""
    opt = request.route_handler.opt
    by_cookie = operator is not None and operator.form_token is not None
    if by_cookie or opt.get("page"):
        check_same_origin(request.scope, runtime.settings)
    if operator is not None and operator.form_token is not None and not opt.get("anonymous_form"):
        await check_form_token(request, operator.form_token)


async def _find(runtime: Runtime, kind: CredentialKind, digest: bytes, *, noted: bool) -> Presented | None:
    now = runtime.clock.now()
    async with runtime.database.read() as session:
        presented = await find(session, kind, digest, now)
    if presented is not None and noted and use_is_news(presented.credential, now):
        try:
            async with runtime.database.write() as session:
                await note_use(session, presented.credential, now)
        except OperationalError:  # on a full disk, people must still be able to look
            logger.warning("could not note the use of a credential", exc_info=True)
    return presented
