"""
The gate of every agent request after its signature: nonce, status, token, evidence and rate, in one transaction.

A request that fails later does not get its nonce back.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.enrolment import Access, AgentStatus, allows
from redflag_core.errors import RedFlagError, ReplayError, UnknownKeyError
from redflag_core.freshness import TOLERANCE
from redflag_core.rate_limit import step
from redflag_core.signed_requests import VerifiedRequest
from redflag_server.agents.access_tokens import AccessClaims
from redflag_server.agents.tables import Agent
from redflag_server.checkin.nonces import claim_nonces, nonce_horizon
from redflag_server.checkin.picture import NonceUse
from redflag_server.problems import AgentStateError, RateLimitedError, TokenError, UnavailableError
from redflag_server.rate_limits.arrivals import take
from redflag_server.rate_limits.classes import RateClass
from redflag_server.rate_limits.policies import Policies
from redflag_server.rate_limits.tables import key_of

STATUS_MESSAGES: Final = {
    AgentStatus.PENDING: "this agent waits for an operator's approval",
    AgentStatus.QUARANTINED: "this agent is quarantined: an operator must look at it",
    AgentStatus.HARDWARE_CHANGED: "the machine's evidence changed: an operator must approve it",
    AgentStatus.RENEWAL_PENDING: "this agent was away too long: an operator must approve its return",
    AgentStatus.EXECUTOR_ROLLED_BACK: "this agent's journal was rolled back: an operator must approve it",
    AgentStatus.REVOKED: "this agent was revoked",
}


@attrs.frozen
class AgentRequest:
    """
    A request of a registered agent whose signature was verified; not yet claimed.

    Attributes:
        agent_id: The agent that the key belongs to.
        organization_id: Its organization, whose rate limits hold.
        request: The verified request.
        claims: What its access token says; None for the endpoint that gives tokens.
        access: Class of the endpoint.
        address: Client address.
    """

    agent_id: UUID
    organization_id: UUID
    request: VerifiedRequest
    claims: AccessClaims | None
    access: Access
    address: str

    @property
    def nonce_use(self) -> NonceUse:
        """The nonce it uses."""
        return NonceUse(self.request.created, self.request.key_id, self.request.nonce)


async def claim(
    session: AsyncSession, requests: Sequence[AgentRequest], *, now: datetime, policies: Policies
) -> list[Any | RedFlagError]:
    """
    Judge a batch of verified requests: who passes, and why the others do not.

    Claims the nonces and charges the rate limits: of refused requests as well, for they cost as much.

    Args:
        session: The open write transaction.
        requests: Verified requests, in order of arrival.
        now: Database time, aware UTC.
        policies: The rate limits that hold.

    Returns:
        For each request the agent's record (a row of `Agent`, locked), or the refusal.
    """
    horizon = await nonce_horizon(session)
    free = await claim_nonces(session, [entry.nonce_use for entry in requests], horizon=horizon)
    agents = await _agents(session, {entry.agent_id for entry in requests})
    arrivals: dict[UUID, float] = {}
    results: list[Any | RedFlagError] = []
    for entry in requests:
        agent = agents.get(entry.agent_id)
        if entry.nonce_use not in free:
            results.append(not_free(entry.request.created, horizon=horizon, now=now))
            continue
        free.discard(entry.nonce_use)
        limited = None
        if agent is not None:
            before = arrivals.get(agent.id, agent.rate_arrival)
            policy = policies.required(RateClass.AGENT, entry.organization_id)
            arrivals[agent.id], decision = step(before, now.timestamp(), policy)
            limited = None if decision.allowed else RateLimitedError(decision, RateClass.AGENT)
        results.append(limited or refusal_of(entry, agent) or agent)
    await _store_arrivals(session, arrivals)
    return results


async def charge(session: AsyncSession, entry: AgentRequest, *, now: datetime, policies: Policies) -> None:
    """
    Charge the rate limit of a request whose nonce was claimed before.

    Args:
        session: The open write transaction.
        entry: The request.
        now: Database time, aware UTC.
        policies: The rate limits that hold.

    Raises:
        RateLimitedError: The limit holds. What was charged is stored all the same.
    """
    agent = (await _agents(session, {entry.agent_id})).get(entry.agent_id)
    if agent is None:
        return
    policy = policies.required(RateClass.AGENT, entry.organization_id)
    arrival, decision = step(agent.rate_arrival, now.timestamp(), policy)
    await _store_arrivals(session, {agent.id: arrival})
    if not decision.allowed:
        raise RateLimitedError(decision, RateClass.AGENT)


async def charge_class(
    session: AsyncSession, entry: AgentRequest, name: RateClass, *, now: datetime, policies: Policies
) -> RateLimitedError | None:
    """
    Charge the limit that requests of one kind have beside that of all; nothing where there is none.

    Args:
        session: The open write transaction, in which the agent's record was locked.
        entry: A request that passed the gate.
        name: Of which kind it is.
        now: Database time, aware UTC.
        policies: The rate limits that hold.

    Returns:
        Why it is refused, or None. Returned, not raised: the transaction must be committed.
    """
    policy = policies.optional(name, entry.organization_id)
    if policy is None:
        return None
    _, decision = await take(session, key_of(name, entry.agent_id), policy, now)
    return None if decision.allowed else RateLimitedError(decision, name)


async def recheck(session: AsyncSession, entry: AgentRequest) -> Any:
    """
    The record of an agent that passed the gate in an earlier transaction, if it would still pass.

    Args:
        session: The open write transaction, in which the request is carried out.
        entry: The request.

    Returns:
        The agent's record, a row of `Agent`, locked.

    Raises:
        RedFlagError: It was cut off meanwhile.
    """
    agent = (await _agents(session, {entry.agent_id})).get(entry.agent_id)
    refusal = refusal_of(entry, agent)
    if refusal is not None:
        raise refusal
    return agent


def refusal_of(entry: AgentRequest, agent: Any) -> RedFlagError | None:
    """Why an agent's record does not allow a verified request, or None."""
    if agent is None or agent.key_id != entry.request.key_id:
        return UnknownKeyError("this key is not registered here")
    status = AgentStatus(agent.status)
    if not allows(status, entry.access):
        return AgentStateError(STATUS_MESSAGES[status], status)
    claims = entry.claims
    if claims is not None and claims.token_version != agent.token_version:
        return TokenError("the access token was withdrawn: ask for a new one")
    if claims is not None and claims.evidence_digest != agent.evidence_digest:
        return TokenError("the access token was given for other machine evidence: ask for a new one")
    return None


def not_free(created: int, *, horizon: int, now: datetime) -> RedFlagError:
    """
    Why a nonce could not be claimed.

    A restored server does not know which nonces were used last: it says so until that is over.

    Args:
        created: When the request was signed, unix seconds.
        horizon: Nothing signed at or before it can be claimed.
        now: Database time, aware UTC.
    """
    if created <= horizon and horizon > now.timestamp() - TOLERANCE:
        return UnavailableError("the server was restored a moment ago: try again in some minutes")
    return ReplayError("this request was received before: sign each attempt with a fresh nonce")


async def _agents(session: AsyncSession, ids: set[UUID]) -> dict[UUID, Any]:
    # Locked in the order of their ids: crossing batches of two replicas must not wait in a circle.
    query = select(Agent.__table__).where(Agent.id.in_(ids)).order_by(Agent.id).with_for_update(key_share=True)
    return {row.id: row for row in await session.execute(query)}


async def _store_arrivals(session: AsyncSession, arrivals: Mapping[UUID, float]) -> None:
    table = Agent.__table__
    for agent_id, arrival in sorted(arrivals.items()):
        statement = update(table).where(table.c.id == agent_id)  # type: ignore[arg-type]
        await session.execute(statement.values(rate_arrival=arrival))
