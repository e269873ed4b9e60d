"""
Set and remove policies, and say which holds and why.

A limit protects the whole server. So who sees only some organizations may read what holds for these, and changes
nothing.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

import attrs
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from redflag_core.rate_limit import EPSILON, RateLimitPolicy, decision_of
from redflag_server.agents.tables import Agent
from redflag_server.db.pages import Page, PageOf, fetch_page
from redflag_server.db.scope import Scope
from redflag_server.events.recorder import record
from redflag_server.organizations.service import find_organization
from redflag_server.organizations.tables import INSTALLATION
from redflag_server.problems import ForbiddenError, InvalidRequestError, NotFoundError
from redflag_server.rate_limits.classes import (
    AGENT_CLASSES,
    PROTECTIONS,
    RateClass,
    default_of,
    open_policy,
    text_of,
)
from redflag_server.rate_limits.schema import (
    AgentLimit,
    AgentLimits,
    LimitInForce,
    LimitsInForce,
    RateLimitItem,
)
from redflag_server.rate_limits.tables import RateArrival, RateLimit, key_of
from redflag_server.runtime import Runtime


@attrs.frozen
class Place:
    """Where a policy is: which class, and which organization (None for the installation)."""

    limit: RateClass
    organization_id: UUID | None


async def list_limits(session: AsyncSession, visible: Scope, page: PageOf) -> Page[RateLimitItem]:
    """One page of the policies that somebody set and the caller may see."""
    rows, cursor = await fetch_page(session, visible.select(RateLimit), RateLimit, page)
    return Page([_item(row[0]) for row in rows], cursor)


async def limits_in_force(runtime: Runtime, visible: Scope, organization_id: UUID | None) -> LimitsInForce:
    """
    What holds for an organization, or with None for what belongs to none, and why.

    Raises:
        NotFoundError: No such organization, or not for the caller to see.
    """
    if organization_id is not None:
        async with runtime.database.read() as session:
            await find_organization(session, visible, organization_id)
    owner = organization_id or INSTALLATION
    return LimitsInForce(organization_id, [_in_force(runtime, name, owner) for name in RateClass])


async def limits_of_agent(runtime: Runtime, visible: Scope, agent_id: UUID) -> AgentLimits:
    """
    Which limits hold for a machine, why, and what is left of them.

    Raises:
        NotFoundError: No such machine, or not for the caller to see.
    """
    columns = (Agent.organization_id, Agent.rate_arrival)
    keys = {key_of(name, agent_id): name for name in AGENT_CLASSES}
    async with runtime.database.read() as session:
        agent = (await session.execute(visible.select(Agent, *columns).where(Agent.id == agent_id))).one_or_none()
        if agent is None:
            raise NotFoundError("there is no such machine")
        held: Any = await session.execute(
            select(RateArrival.key, RateArrival.arrival).where(RateArrival.key.in_(keys))
        )
        arrivals = {keys[key]: arrival for key, arrival in held}
    arrivals[RateClass.AGENT] = agent.rate_arrival
    now = runtime.clock.now()
    items = [_of_agent(runtime, name, agent.organization_id, arrivals.get(name), now) for name in AGENT_CLASSES]
    return AgentLimits(agent_id, agent.organization_id, items)


async def set_limit(runtime: Runtime, visible: Scope, place: Place, text: str, reason: str) -> RateLimitItem:
    """
    Set a policy. It holds here at once, on other servers within `policies.FRESH_SECONDS`.

    Raises:
        PolicyError: It is none, or would lock out whom it must let in.
        InvalidRequestError: This class is the same for all organizations.
        NotFoundError: No such organization, or not for the caller to see.
        ForbiddenError: The caller does not see the whole installation.
    """
    now = runtime.clock.now()
    async with runtime.database.write() as session:
        owner = await _writable(session, visible, place)
        policy = open_policy(place.limit, text)
        row = await _row(session, place.limit, owner)
        before = None if row is None else row.policy
        if row is None:
            row = RateLimit(id=uuid7(), organization_id=owner, rate_class=place.limit)
            session.add(row)
        row.policy, row.changed_at, row.changed_by = text_of(place.limit, policy), now, visible.caller.actor
        change = {"before": before, "after": row.policy, "reason": reason}
        await _record(runtime, session, visible, row, change)
        item = _item(row)
    await runtime.policies.reload()
    return item


async def remove_limit(runtime: Runtime, visible: Scope, place: Place, reason: str) -> LimitInForce:
    """
    Remove a policy: the installation's or the built-in one holds again.

    Returns:
        What holds now.

    Raises:
        InvalidRequestError: This class is the same for all organizations.
        NotFoundError: None is set, or no such organization, or not for the caller to see.
        ForbiddenError: The caller does not see the whole installation.
    """
    async with runtime.database.write() as session:
        owner = await _writable(session, visible, place)
        row = await _row(session, place.limit, owner)
        if row is None:
            raise NotFoundError(f'no policy is set for the limit "{place.limit}" there')
        await session.execute(delete(RateLimit).where(RateLimit.id == row.id))
        change = {"before": row.policy, "after": None, "reason": reason}
        await _record(runtime, session, visible, row, change)
    await runtime.policies.reload()
    return _in_force(runtime, place.limit, owner)


async def _writable(session: AsyncSession, visible: Scope, place: Place) -> UUID:
    """The organization whose policy the caller may change."""
    owner = INSTALLATION
    if place.organization_id is not None:
        owner = (await find_organization(session, visible, place.organization_id)).id
    if visible.caller.organizations is not None:
        raise ForbiddenError("rate limits protect the whole installation: who sees all of it sets them")
    if owner != INSTALLATION and PROTECTIONS[place.limit].is_coarse:
        raise InvalidRequestError(
            f'the limit "{place.limit}" is counted before anybody is known: leave organization_id out'
        )
    return owner


async def _row(session: AsyncSession, name: RateClass, owner: UUID) -> RateLimit | None:
    query = select(RateLimit).where(RateLimit.rate_class == name, RateLimit.organization_id == owner)
    return (await session.scalars(query.with_for_update())).one_or_none()


async def _record(
    runtime: Runtime, session: AsyncSession, visible: Scope, row: RateLimit, change: dict[str, str | None]
) -> None:
    kind = "rate_limit.set"
    told = f"is now {change['after']}"
    if change["after"] is None:
        kind = "rate_limit.removed"
        told = "was removed"
    await record(
        session,
        at=runtime.clock.now(),
        kind=kind,
        actor=visible.caller.actor,
        message=f'The rate limit "{row.rate_class}" {told}: {change["reason"]}',
        organization_id=row.organization_id,
        data={"limit": str(row.rate_class), **change},
    )


def _item(row: RateLimit) -> RateLimitItem:
    return RateLimitItem(
        id=row.id,
        limit=RateClass(row.rate_class),
        organization_id=None if row.organization_id == INSTALLATION else row.organization_id,
        policy=row.policy,
        changed_at=row.changed_at,
        changed_by=row.changed_by,
    )


def _in_force(runtime: Runtime, name: RateClass, owner: UUID) -> LimitInForce:
    known = PROTECTIONS[name]
    policy, source = runtime.policies.in_force(name, owner)
    built_in = default_of(runtime.settings, name)
    return LimitInForce(
        name, known.what, _text(name, policy), source, _text(name, built_in), least=str(known.least)
    )


def _of_agent(runtime: Runtime, name: RateClass, owner: UUID, arrival: float | None, now: datetime) -> AgentLimit:
    policy, source = runtime.policies.in_force(name, owner)
    what = PROTECTIONS[name].what
    if policy is None:
        return AgentLimit(name, what, None, source, None, None)
    moment = now.timestamp()
    stored = max(arrival or moment, moment)
    wait = max(0.0, decision_of(stored, moment, policy, allowed=False).retry_after)
    free = wait <= EPSILON
    left = decision_of(stored, moment, policy, allowed=True).remaining if free else 0
    return AgentLimit(name, what, _text(name, policy), source, left, 0.0 if free else round(wait, 3))


def _text(name: RateClass, policy: RateLimitPolicy | None) -> str | None:
    return None if policy is None else text_of(name, policy)
