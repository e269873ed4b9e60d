"""Where agents send their errors."""

from typing import Annotated

from litestar import Controller, post
from litestar.di import Provide
from litestar.params import Body

from redflag_core.enrolment import Access
from redflag_core.messages import Accepted, Errors
from redflag_server.bodies import Strict
from redflag_server.checkin.authentication import AgentAuthentication, AgentRoute, VerifiedAgent, provide_agent
from redflag_server.client_errors.service import accept_errors
from redflag_server.injection import Injected, Parsed
from redflag_server.openapi import answers, example
from redflag_server.rate_limits.classes import RateClass
from redflag_server.runtime import Runtime
from redflag_server.wire_examples import ACCEPTED, ERRORS

MAX_BODY = 12 * 1024 * 1024
"""Bytes: the largest legal batch. Each of its 100 errors may take 94 KiB of stack (16,000 escaped characters),
16 KiB of context and 8 KiB of message (2,000 characters of four bytes)."""


class AgentErrorController(Controller):
    """Errors of agents."""

    tags = ("Agent",)
    security = ({"agent": []},)
    middleware = (AgentAuthentication,)
    dependencies = {"agent": Provide(provide_agent, sync_to_thread=False)}  # noqa: RUF012  (Litestar's form)

    @post(
        "/agent/errors",
        operation_id="SendErrors",
        summary="Send errors",
        dto=Strict[Errors],
        return_dto=None,
        status_code=200,
        responses=answers(Accepted, ACCEPTED, 429),
        opt={"agent": AgentRoute(Access.STORE, max_body=MAX_BODY, limit=RateClass.ERROR)},
    )
    async def send_errors(
        self,
        data: Annotated[Parsed[Errors], Body(examples=[example(ERRORS)])],
        agent: Injected[VerifiedAgent],
        runtime: Injected[Runtime],
    ) -> Accepted:
        """Store errors that the agent met. The same batch again counts once."""
        await accept_errors(runtime, agent, data)
        return Accepted()
