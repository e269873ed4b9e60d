"""How an agent gets in: registration and access tokens."""

from typing import Annotated

from litestar import Controller, post
from litestar.di import Provide
from litestar.params import Body

from redflag_core.enrolment import Access
from redflag_core.messages import Register, Registered, Token, TokenRequest
from redflag_server.agents.refresh import give_token
from redflag_server.agents.registration import register
from redflag_server.bodies import Strict
from redflag_server.checkin.authentication import (
    AgentAuthentication,
    AgentRoute,
    VerifiedAgent,
    VerifiedNewcomer,
    provide_agent,
    provide_newcomer,
)
from redflag_server.injection import Injected, Parsed
from redflag_server.openapi import answers, example
from redflag_server.rate_limits.classes import RateClass
from redflag_server.runtime import Runtime
from redflag_server.wire_examples import REGISTER, REGISTERED, TOKEN, TOKEN_REQUEST


class EnrolmentController(Controller):
    """Signed like every agent request, but before there is an access token."""

    tags = ("Agent",)
    security = ({"agent": []},)
    middleware = (AgentAuthentication,)
    return_dto = None

    @post(
        "/agents/register",
        operation_id="RegisterAgent",
        summary="Register this machine",
        dto=Strict[Register],
        dependencies={"newcomer": Provide(provide_newcomer, sync_to_thread=False)},
        responses=answers(Registered, REGISTERED, 409, 429, status=201),
        opt={"agent": AgentRoute(None, with_token=False)},
    )
    async def register(
        self,
        data: Annotated[Parsed[Register], Body(examples=[example(REGISTER)])],
        newcomer: Injected[VerifiedNewcomer],
        runtime: Injected[Runtime],
    ) -> Registered:
        """Take a seat of a registration token. The same registration again is answered again and costs no seat."""
        return await register(runtime, newcomer, data)

    @post(
        "/agent/token",
        operation_id="GetAgentToken",
        summary="Get an access token",
        dto=Strict[TokenRequest],
        status_code=200,
        dependencies={"agent": Provide(provide_agent, sync_to_thread=False)},
        responses=answers(Token, TOKEN, 429),
        opt={"agent": AgentRoute(Access.TOKEN, with_token=False, limit=RateClass.TOKEN)},
    )
    async def token(
        self,
        data: Annotated[Parsed[TokenRequest], Body(examples=[example(TOKEN_REQUEST)])],
        agent: Injected[VerifiedAgent],
        runtime: Injected[Runtime],
    ) -> Token:
        """Show the refresh secret, commit to its successor, and get an access token for 24 hours."""
        return await give_token(runtime, agent, data)
