"""What the API says about rate limits, and what it takes."""

from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import attrs

from redflag_core.rate_limit import MAX_TEXT
from redflag_server.fields import MAX_REASON, line
from redflag_server.rate_limits.classes import RateClass
from redflag_server.rate_limits.policies import Source


@attrs.frozen
class RateLimitItem:
    """
    A policy that somebody set.

    Attributes:
        id: Its id.
        limit: For which requests: the class.
        organization_id: For which organization; null for all that have no policy of their own.
        policy: The policy, and of what each one has it.
        changed_at: When it was set.
        changed_by: Who set it.
    """

    id: UUID
    limit: RateClass
    organization_id: UUID | None
    policy: str
    changed_at: datetime
    changed_by: str


@attrs.frozen
class LimitInForce:
    """
    A limit that holds, and why.

    Attributes:
        limit: The class.
        what: Which requests are counted.
        policy: The policy in force, or null: these requests have no limit of their own.
        source: ``organization``, ``installation``, or ``built-in``: nobody set one.
        built_in: The policy that would hold if nobody had set one, or null for none.
        least: The smallest policy that can be set.
    """

    limit: RateClass
    what: str
    policy: str | None
    source: Source
    built_in: str | None
    least: str


@attrs.frozen
class LimitsInForce:
    """
    The limits that hold for an organization, or for what belongs to none.

    Attributes:
        organization_id: Whose; null for the installation.
        items: One for each class.
    """

    organization_id: UUID | None
    items: list[LimitInForce]


@attrs.frozen
class AgentLimit:
    """
    A limit of one machine: what holds, why, and how much is left.

    Attributes:
        limit: The class.
        what: Which requests are counted.
        policy: The policy in force, or null for no limit of their own.
        source: Where it comes from.
        remaining: Requests that would be allowed at this moment, or null without a policy.
        retry_after: Seconds until a request is allowed, 0 for now; or null.
    """

    limit: RateClass
    what: str
    policy: str | None
    source: Source
    remaining: int | None
    retry_after: float | None


@attrs.frozen
class AgentLimits:
    """
    The limits of one machine. A request counts in ``agent``, and in its own class too if that has a policy.

    Attributes:
        agent_id: The machine.
        organization_id: Its organization, whose policies come first.
        items: One for each class of requests of machines.
    """

    agent_id: UUID
    organization_id: UUID
    items: list[AgentLimit]


@attrs.frozen
class NewRateLimit:
    """
    A policy to set.

    Attributes:
        limit: The class.
        policy: ``60/minute burst 20``.
        reason: Why, for the event: one line.
        organization_id: For which organization; absent for all that have no policy of their own.
    """

    limit: RateClass
    policy: str = attrs.field(validator=line(MAX_TEXT))
    reason: str = attrs.field(validator=line(MAX_REASON))
    organization_id: str | None = None


@attrs.frozen
class OldRateLimit:
    """
    A policy to remove.

    Attributes:
        limit: The class.
        reason: Why, for the event: one line.
        organization_id: Of which organization; absent for the installation's.
    """

    limit: RateClass
    reason: str = attrs.field(validator=line(MAX_REASON))
    organization_id: str | None = None


_ORGANIZATION: Final = UUID("01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e5f")

LIMIT_EXAMPLE: Final = RateLimitItem(
    id=UUID("01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e7a"),
    limit=RateClass.AGENT,
    organization_id=_ORGANIZATION,
    policy="120/minute per agent, burst 60",
    changed_at=datetime(2026, 1, 2, 9, 30, tzinfo=UTC),
    changed_by="user:alice",
)

IN_FORCE_EXAMPLE: Final = LimitsInForce(
    organization_id=_ORGANIZATION,
    items=[
        LimitInForce(
            limit=RateClass.AGENT,
            what="all requests of a machine together",
            policy="120/minute per agent, burst 60",
            source=Source.ORGANIZATION,
            built_in="60/minute per agent",
            least="360/hour burst 10",
        )
    ],
)

AGENT_EXAMPLE: Final = AgentLimits(
    agent_id=UUID("01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e60"),
    organization_id=_ORGANIZATION,
    items=[
        AgentLimit(
            limit=RateClass.AGENT,
            what="all requests of a machine together",
            policy="120/minute per agent, burst 60",
            source=Source.ORGANIZATION,
            remaining=58,
            retry_after=0.0,
        )
    ],
)

NEW_EXAMPLE: Final = NewRateLimit(
    limit=RateClass.AGENT,
    policy="120/minute burst 60",
    reason="their agents report more often",
    organization_id=str(_ORGANIZATION),
)

OLD_EXAMPLE: Final = OldRateLimit(
    limit=RateClass.AGENT, reason="they report less often now", organization_id=str(_ORGANIZATION)
)
