"""API of machines and registration tokens, for people and scripts."""

from typing import Annotated, Final
from uuid import UUID

from litestar import get, post
from litestar.params import Body, FromPath, QueryParameter

from redflag_core.enrolment import AgentStatus
from redflag_core.lifecycle import AgentAction
from redflag_server.agents import registration_tokens
from redflag_server.agents.listing import AgentFilter, get_agent, list_agents
from redflag_server.agents.operations import act
from redflag_server.agents.schema import (
    AGENT_EXAMPLE,
    DETAIL_EXAMPLE,
    MADE_TOKEN_EXAMPLE,
    NEW_TOKEN_EXAMPLE,
    TOKEN_EXAMPLE,
    AgentDetail,
    AgentItem,
    MadeToken,
    NewToken,
    TokenItem,
)
from redflag_server.bodies import Strict
from redflag_server.db.pages import DEFAULT_LIMIT, Page, PageOf
from redflag_server.db.scope import Scope
from redflag_server.fields import Reason
from redflag_server.injection import Injected, Parsed
from redflag_server.openapi import answers, example
from redflag_server.operators import MAX_FILTER, Cursor, Limit, OperatorController
from redflag_server.runtime import Runtime

NEXT: Final = "AZNvPotafE2eLwobLD1OYQ"
WHY: Final = Reason("seen on the rack, serial number checked")

ReasonBody = Annotated[Parsed[Reason], Body(examples=[example(WHY)])]


class AgentController(OperatorController):
    """Machines."""

    path = "/agents"
    tags = ("Agents",)

    @get(
        operation_id="ListAgents",
        summary="List machines",
        opt={"permission": "agents:read"},
        responses=answers(Page[AgentItem], Page([AGENT_EXAMPLE], NEXT)),
    )
    async def list_agents(
        self,
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        status: Annotated[
            list[AgentStatus] | None, QueryParameter(description="Any of these; repeatable.")
        ] = None,
        hostname: Annotated[
            str | None, QueryParameter(max_length=MAX_FILTER, description="Part of the name, in any case.")
        ] = None,
        site: Annotated[UUID | None, QueryParameter(description="Id of the site.")] = None,
        cursor: Cursor = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Page[AgentItem]:
        """List machines, with what is open on each."""
        wanted = AgentFilter(status or (), hostname, site)
        async with runtime.database.read() as session:
            return await list_agents(session, visible, wanted, PageOf(cursor, limit), runtime.clock.now())

    @get(
        "/{agent_id:uuid}",
        operation_id="GetAgent",
        summary="Get a machine",
        opt={"permission": "agents:read"},
        responses=answers(AgentDetail, DETAIL_EXAMPLE, 404),
    )
    async def get_agent(
        self, agent_id: FromPath[UUID], visible: Injected[Scope], runtime: Injected[Runtime]
    ) -> AgentDetail:
        """Get a machine, with its scanners."""
        async with runtime.database.read() as session:
            return await get_agent(session, visible, agent_id, runtime.clock.now())

    @post(
        "/{agent_id:uuid}/approve",
        operation_id="ApproveAgent",
        summary="Approve a machine",
        description="For one that waits: a new one, one with changed hardware, one whose renewal is overdue.",
        dto=Strict[Reason],
        return_dto=None,
        status_code=200,
        opt={"permission": "agents:write"},
        responses=answers(AgentDetail, DETAIL_EXAMPLE, 404, 409),
    )
    async def approve_agent(
        self,
        agent_id: FromPath[UUID],
        data: ReasonBody,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> AgentDetail:
        """Let a machine take part."""
        return await _acted(runtime, visible, agent_id, AgentAction.APPROVE, data)

    @post(
        "/{agent_id:uuid}/release",
        operation_id="ReleaseAgent",
        summary="Release a machine from quarantine",
        description="Every access token of it ends. When two machines still use its key, both are cut off again.",
        dto=Strict[Reason],
        return_dto=None,
        status_code=200,
        opt={"permission": "agents:write"},
        responses=answers(AgentDetail, DETAIL_EXAMPLE, 404, 409),
    )
    async def release_agent(
        self,
        agent_id: FromPath[UUID],
        data: ReasonBody,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> AgentDetail:
        """Let a quarantined machine take part again."""
        return await _acted(runtime, visible, agent_id, AgentAction.RELEASE, data)

    @post(
        "/{agent_id:uuid}/revoke",
        operation_id="RevokeAgent",
        summary="Revoke a machine",
        description="Its key is cut off for ever, its history is kept. The machine can register with a new key.",
        dto=Strict[Reason],
        return_dto=None,
        status_code=200,
        opt={"permission": "agents:write"},
        responses=answers(AgentDetail, DETAIL_EXAMPLE, 404),
    )
    async def revoke_agent(
        self,
        agent_id: FromPath[UUID],
        data: ReasonBody,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> AgentDetail:
        """Cut a machine off for ever."""
        return await _acted(runtime, visible, agent_id, AgentAction.REVOKE, data)


class RegistrationTokenController(OperatorController):
    """With what new machines register."""

    path = "/registration-tokens"
    tags = ("Registration tokens",)

    @get(
        operation_id="ListRegistrationTokens",
        summary="List registration tokens",
        opt={"permission": "registration-tokens:read"},
        responses=answers(Page[TokenItem], Page([TOKEN_EXAMPLE], NEXT)),
    )
    async def list_registration_tokens(
        self,
        *,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
        cursor: Cursor = None,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Page[TokenItem]:
        """List tokens, without their secrets."""
        return await registration_tokens.list_tokens(runtime, visible, PageOf(cursor, limit))

    @post(
        operation_id="MakeRegistrationToken",
        summary="Make a registration token",
        dto=Strict[NewToken],
        return_dto=None,
        opt={"permission": "registration-tokens:write"},
        responses=answers(MadeToken, MADE_TOKEN_EXAMPLE, 404, status=201),
    )
    async def make_registration_token(
        self,
        data: Annotated[Parsed[NewToken], Body(examples=[example(NEW_TOKEN_EXAMPLE)])],
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> MadeToken:
        """Make a token; the answer is the only place where it can be read."""
        item, token = await registration_tokens.create_registration_token(runtime, visible, data)
        return MadeToken(token.text(), item)

    @post(
        "/{token_id:uuid}/revoke",
        operation_id="RevokeRegistrationToken",
        summary="Revoke a registration token",
        description="Nobody registers with it any more. Machines that did stay.",
        dto=Strict[Reason],
        return_dto=None,
        status_code=200,
        opt={"permission": "registration-tokens:write"},
        responses=answers(TokenItem, TOKEN_EXAMPLE, 404),
    )
    async def revoke_registration_token(
        self,
        token_id: FromPath[UUID],
        data: ReasonBody,
        visible: Injected[Scope],
        runtime: Injected[Runtime],
    ) -> TokenItem:
        """Revoke a token."""
        return await registration_tokens.revoke_token(runtime, visible, token_id, data.reason)


async def _acted(
    runtime: Runtime, visible: Scope, agent_id: UUID, action: AgentAction, data: Reason
) -> AgentDetail:
    await act(runtime, visible, agent_id, action, data.reason)
    async with runtime.database.read() as session:
        return await get_agent(session, visible, agent_id, runtime.clock.now())
