"""API of rate limits, for people and scripts."""

from typing import Annotated, Final
from uuid import UUID

from litestar import get, post, put
from litestar.params import Body, FromPath, QueryParameter

from redflag_server.bodies import Strict
from redflag_server.db.pages import DEFAULT_LIMIT, Page, PageOf
from redflag_server.db.scope import Scope
from redflag_server.fields import uuid_of
from redflag_server.injection import Injected, Parsed
from redflag_server.openapi import answers, example
from redflag_server.operators import Cursor, Limit, OperatorController
from redflag_server.rate_limits.schema import (
    AGENT_EXAMPLE,
    IN_FORCE_EXAMPLE,
    LIMIT_EXAMPLE,
    NEW_EXAMPLE,
    OLD_EXAMPLE,
    AgentLimits,
    LimitInForce,
    LimitsInForce,
    NewRateLimit,
    OldRateLimit,
    RateLimitItem,
)
from redflag_server.rate_limits.service import (
    Place,
    limits_in_force,
    limits_of_agent,
    list_limits,
    remove_limit,
    set_limit,
)
from redflag_server.runtime import Runtime

NEXT: Final = "AZNvPotafE2eLwobLD1Oeg"

NewBody = Annotated[Parsed[NewRateLimit], Body(examples=[example(NEW_EXAMPLE)])]
OldBody = Annotated[Parsed[OldRateLimit], Body(examples=[example(OLD_EXAMPLE)])]


class RateLimitController(OperatorController):
    """How many requests are served."""

    tags = ("Rate limits",)

    @get(
        "/rate-limits",
        operation_id="ListRateLimits",
        summary="List the policies that were set",
        description="Oldest first. What nobody set is not here: see the limits in force.",
        opt={"permission": "rate-limits:read"},
        responses=answers(Page[RateLimitItem], Page([LIMIT_EXAMPLE], NEXT)),
    )
    async def list_rate_limits(
        self,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        cursor: Cursor = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Page[RateLimitItem]:
        """List the policies that were set."""
        async with runtime.database.read() as session:
            return await list_limits(session, visible, PageOf(cursor, limit))

    @get(
        "/rate-limits/in-force",
        operation_id="GetRateLimitsInForce",
        summary="Get the limits that hold, and why",
        description="For an organization, or for what belongs to none. The organization's policy comes first, "
        "then the installation's, then the built-in one.",
        opt={"permission": "rate-limits:read"},
        responses=answers(LimitsInForce, IN_FORCE_EXAMPLE, 404),
    )
    async def in_force(
        self,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        organization_id: Annotated[UUID | None, QueryParameter(description="Id of the organization.")] = None,
    ) -> LimitsInForce:
        """Get the limits that hold, and why."""
        return await limits_in_force(runtime, visible, organization_id)

    @get(
        "/agents/{agent_id:uuid}/rate-limits",
        operation_id="GetAgentRateLimits",
        summary="Get the limits that hold for a machine, why, and what is left",
        opt={"permission": "rate-limits:read"},
        responses=answers(AgentLimits, AGENT_EXAMPLE, 404),
    )
    async def of_agent(
        self, agent_id: FromPath[UUID], visible: Injected[Scope], runtime: Injected[Runtime]
    ) -> AgentLimits:
        """Get the limits of a machine."""
        return await limits_of_agent(runtime, visible, agent_id)

    @put(
        "/rate-limits",
        operation_id="SetRateLimit",
        summary="Set a policy",
        description="In place of the one before. On other servers it holds within five seconds. For callers who "
        "see the whole installation.",
        dto=Strict[NewRateLimit],
        return_dto=None,
        opt={"permission": "rate-limits:write"},
        responses=answers(RateLimitItem, LIMIT_EXAMPLE, 404),
    )
    async def set_rate_limit(
        self, data: NewBody, visible: Injected[Scope], runtime: Injected[Runtime]
    ) -> RateLimitItem:
        """Set a policy."""
        place = Place(data.limit, uuid_of("organization_id", data.organization_id))
        return await set_limit(runtime, visible, place, data.policy, data.reason)

    @post(
        "/rate-limits/delete",
        operation_id="DeleteRateLimit",
        summary="Remove a policy",
        description="The installation's holds again, or the built-in one. The answer is what holds now.",
        dto=Strict[OldRateLimit],
        return_dto=None,
        status_code=200,
        opt={"permission": "rate-limits:write"},
        responses=answers(LimitInForce, IN_FORCE_EXAMPLE.items[0], 404),
    )
    async def delete_rate_limit(
        self, data: OldBody, visible: Injected[Scope], runtime: Injected[Runtime]
    ) -> LimitInForce:
        """Remove a policy."""
        place = Place(data.limit, uuid_of("organization_id", data.organization_id))
        return await remove_limit(runtime, visible, place, data.reason)
