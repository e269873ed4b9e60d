"""
ASGI middleware in front of every agent endpoint: a handler only ever sees a verified request.

Order (cheap and anonymous first): address limit, shape, time, token, signature, key and agent belong together;
then the gate of `checkin.claims`, for which the signed head is enough; only then is room taken and the body read,
which is signed through its digest. The check-in endpoint has a small body and passes the gate after it, in its own
batch. For a registration the key is in the (small) body.

A route says what it needs in ``opt["agent"]``, an `AgentRoute`.
"""

import asyncio
import contextlib
from contextlib import AbstractAsyncContextManager
from typing import Any, Final
from uuid import UUID

import attrs
from litestar import Litestar, Request
from litestar.exceptions import MethodNotAllowedException
from litestar.types import ASGIApp, Receive, Scope, Send
from sqlalchemy import select

from redflag_core import codec
from redflag_core.enrolment import Access
from redflag_core.errors import (
    MalformedError,
    RedFlagError,
    SignatureError,
    TooLargeError,
    UnknownKeyError,
)
from redflag_core.freshness import check_window
from redflag_core.http_auth import request_from_asgi
from redflag_core.keys import VerifyKey
from redflag_core.messages import MAX_SMALL_BODY, Register
from redflag_core.signed_requests import ParsedRequest, VerifiedRequest, parse_head
from redflag_server.addresses import client_address
from redflag_server.agents.tables import Agent
from redflag_server.checkin.claims import AgentRequest, charge_class, claim, not_free
from redflag_server.checkin.key_cache import AgentKeys
from redflag_server.checkin.nonces import claim_nonces, nonce_horizon
from redflag_server.checkin.picture import NonceUse
from redflag_server.compression import GZIP, gunzip
from redflag_server.problems import TokenError, UnsupportedEncodingError
from redflag_server.rate_limits.classes import RateClass
from redflag_server.runtime import Runtime


@attrs.frozen
class AgentRoute:
    """
    What an agent endpoint needs.

    Attributes:
        access: Class of the endpoint; None for registration, where the key is in the body.
        with_token: Whether an access token is required; without, there must be none.
        max_body: Longest body, bytes.
        claims_itself: The handler passes the gate in a batch of its own.
        limit: The rate limit that these requests have, if it is set, beside that of all requests of an agent.
    """

    access: Access | None
    with_token: bool = True
    max_body: int = MAX_SMALL_BODY
    claims_itself: bool = False
    limit: RateClass | None = None

    @property
    def is_large(self) -> bool:
        """Whether bodies can be large: they need room, and may be compressed."""
        return self.max_body > MAX_SMALL_BODY


@attrs.frozen
class VerifiedAgent:
    """
    Who sent a request, proven.

    Attributes:
        entry: The verified request of a registered agent.
        executor_key: Key of its executor, to verify what the executor signed.
    """

    entry: AgentRequest
    executor_key: VerifyKey

    @property
    def organization_id(self) -> UUID:
        """Its organization."""
        return self.entry.organization_id


@attrs.frozen
class VerifiedNewcomer:
    """A registration whose request was signed by the key in its body."""

    request: VerifiedRequest
    address: str


_STATE_KEY: Final = "agent"

BODY_SECONDS: Final = 60
"""How long a body may take: a full inventory over a slow line, but not for ever."""


class AgentAuthentication:
    """
    The middleware.

    Args:
        app: What handles verified requests.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Verify, then hand on with the body read."""
        route: AgentRoute | None = scope["route_handler"].opt.get("agent")
        if route is None:  # the framework's own handler of OPTIONS
            raise MethodNotAllowedException
        runtime: Runtime = Litestar.from_scope(scope).state.runtime
        address = client_address(scope, runtime.settings.trusted_proxies)
        await runtime.policies.refresh()
        _charge_address(runtime, route, address)
        raw = request_from_asgi(scope)
        head = parse_head(
            raw,
            authorities=runtime.settings.authorities,
            with_token=route.with_token,
            prefix=runtime.settings.prefix,
        )
        check_window(head.created, head.expires, now=runtime.clock.now())
        encoding = _encoding(raw.header(b"content-encoding"), route)
        agent = None if route.access is None else await _verify_agent(runtime, head, route.access, address)
        if agent is not None:
            # Known from here on: also an event about a refusal at the gate belongs to this agent.
            scope["state"][_STATE_KEY] = agent
            if not route.claims_itself:
                await _pass_gate(runtime, agent.entry, route.limit)
        async with _room(runtime, route, agent):
            sent = await _read_body(receive, route.max_body)
            whole = head.with_body(sent)
            body = gunzip(sent, max_bytes=route.max_body) if encoding == GZIP else sent
            if not body:
                raise MalformedError("the body is empty: send a JSON object")
            if agent is None:
                scope["state"][_STATE_KEY] = await _verify_newcomer(runtime, whole, address)
            await self._app(scope, _replay(body, receive), send)


def provide_agent(request: Request[Any, Any, Any]) -> VerifiedAgent:
    """Dependency: the agent that sent the request."""
    agent: VerifiedAgent = request.scope["state"][_STATE_KEY]
    return agent


def provide_newcomer(request: Request[Any, Any, Any]) -> VerifiedNewcomer:
    """Dependency: the sender of a registration."""
    newcomer: VerifiedNewcomer = request.scope["state"][_STATE_KEY]
    return newcomer


def verified_sender(scope: Scope) -> VerifiedAgent | None:
    """The agent of a request, if it was verified before the request failed."""
    sender = scope.get("state", {}).get(_STATE_KEY)
    return sender if isinstance(sender, VerifiedAgent) else None


def _charge_address(runtime: Runtime, route: AgentRoute, address: str) -> None:
    name = RateClass.REGISTER if route.access is None else RateClass.ADDRESS
    runtime.limits.charge(name, address, runtime.policies.required(name))


def _room(runtime: Runtime, route: AgentRoute, agent: VerifiedAgent | None) -> AbstractAsyncContextManager[None]:
    """What must be had before a body is read: large ones are in memory until they are handled."""
    if agent is None or not route.is_large:
        return contextlib.nullcontext()
    return runtime.large_bodies.taken_by(agent.entry.agent_id)


def _encoding(name: str | None, route: AgentRoute) -> str | None:
    """The content encoding of a body. It is signed, like the body as it was sent."""
    accepted = (None, "identity", GZIP) if route.is_large else (None, "identity")
    if name not in accepted:
        offered = "identity, gzip" if route.is_large else "identity"
        raise UnsupportedEncodingError(f"the content encoding must be one of: {offered}", offered)
    return name


async def _read_body(receive: Receive, limit: int) -> bytes:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _collect(receive, limit)
    except TimeoutError:
        raise MalformedError(f"the body did not arrive within {BODY_SECONDS} seconds") from None


async def _collect(receive: Receive, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise MalformedError("the body ended early")
        chunks.append(message.get("body", b""))  # type: ignore[arg-type]
        size += len(chunks[-1])
        if size > limit:
            raise TooLargeError(f"the body is larger than {limit} bytes")
        if not message.get("more_body", False):
            return b"".join(chunks)


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replayed() -> Any:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _verify_newcomer(runtime: Runtime, parsed: ParsedRequest, address: str) -> VerifiedNewcomer:
    key = codec.parse(Register, parsed.body, max_bytes=MAX_SMALL_BODY).agent_key.open()
    request = parsed.verify(key)
    async with runtime.database.write() as session:
        horizon = await nonce_horizon(session)
        use = NonceUse(request.created, request.key_id, request.nonce)
        free = await claim_nonces(session, [use], horizon=horizon)
    if not free:
        raise not_free(request.created, horizon=horizon, now=runtime.clock.now())
    return VerifiedNewcomer(request, address)


async def _verify_agent(runtime: Runtime, head: ParsedRequest, access: Access, address: str) -> VerifiedAgent:
    claims = None
    if head.access_token is not None:
        claims = runtime.access_tokens.verify(head.access_token, now=runtime.clock.now())
        if claims.key_id != head.key_id:
            raise TokenError("the access token belongs to another key")
    agent = await _find(runtime, head.key_id)
    request = head.verify(VerifyKey(agent.public_key))
    if claims is not None and claims.agent_id != agent.agent_id:
        raise SignatureError("the access token belongs to another agent")
    entry = AgentRequest(agent.agent_id, agent.organization_id, request, claims, access, address)
    return VerifiedAgent(entry, VerifyKey(agent.executor_key))


async def _find(runtime: Runtime, key_id: str) -> AgentKeys:
    remembered = runtime.agent_keys.get(key_id)
    if remembered is not None:
        return remembered
    query = select(Agent.id, Agent.organization_id, Agent.public_key, Agent.executor_key)
    async with runtime.database.read() as session:
        row = (await session.execute(query.where(Agent.key_id == key_id))).one_or_none()
    if row is None:
        raise UnknownKeyError("this key is not registered here")
    found = AgentKeys(*row)
    runtime.agent_keys.put(key_id, found)
    return found


async def _pass_gate(runtime: Runtime, entry: AgentRequest, limit: RateClass | None) -> None:
    now = runtime.clock.now()
    async with runtime.database.write() as session:
        (result,) = await claim(session, [entry], now=now, policies=runtime.policies)
        if limit is not None and not isinstance(result, RedFlagError):
            result = await charge_class(session, entry, limit, now=now, policies=runtime.policies)
    if isinstance(result, RedFlagError):
        raise result
