"""Where agents send what their executor signed about commands, and how far they are."""

from typing import Annotated

from litestar import Controller, post
from litestar.di import Provide
from litestar.params import Body

from redflag_core.enrolment import Access
from redflag_core.messages import MAX_STATEMENT_BODY, Accepted, Progress, StatementPost
from redflag_server.bodies import Strict
from redflag_server.checkin.authentication import AgentAuthentication, AgentRoute, VerifiedAgent, provide_agent
from redflag_server.commands.progress import accept_progress
from redflag_server.commands.results import accept_statement
from redflag_server.injection import Injected, Parsed
from redflag_server.openapi import answers, example
from redflag_server.rate_limits.classes import RateClass
from redflag_server.runtime import Runtime
from redflag_server.wire_examples import ACCEPTED, PROGRESS, STATEMENT_POST


class ResultController(Controller):
    """Answers to commands."""

    tags = ("Agent",)
    security = ({"agent": []},)
    middleware = (AgentAuthentication,)
    dependencies = {"agent": Provide(provide_agent, sync_to_thread=False)}  # noqa: RUF012  (Litestar's form)

    @post(
        "/agent/results",
        operation_id="SendStatement",
        summary="Send what the executor signed about a command",
        dto=Strict[StatementPost],
        return_dto=None,
        status_code=200,
        responses=answers(Accepted, ACCEPTED, 429),
        opt={"agent": AgentRoute(Access.STORE, max_body=MAX_STATEMENT_BODY, limit=RateClass.RESULT)},
    )
    async def send_statement(
        self,
        data: Annotated[Parsed[StatementPost], Body(examples=[example(STATEMENT_POST)])],
        agent: Injected[VerifiedAgent],
        runtime: Injected[Runtime],
    ) -> Accepted:
        """Store a signed statement once: accepted, refused, or how it ended."""
        return await accept_statement(runtime, agent, data)

    @post(
        "/agent/progress",
        operation_id="SendProgress",
        summary="Say how far a command is",
        dto=Strict[Progress],
        return_dto=None,
        status_code=200,
        responses=answers(Accepted, ACCEPTED, 429),
        opt={"agent": AgentRoute(Access.STORE, limit=RateClass.RESULT)},
    )
    async def send_progress(
        self,
        data: Annotated[Parsed[Progress], Body(examples=[example(PROGRESS)])],
        agent: Injected[VerifiedAgent],
        runtime: Injected[Runtime],
    ) -> Accepted:
        """Store how far a command is, for people who watch."""
        return await accept_progress(runtime, agent, data)
