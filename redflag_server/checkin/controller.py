"""The check-in endpoint."""

from typing import Annotated, Any

from litestar import Controller, Request, post
from litestar.params import Body

from redflag_core.enrolment import Access
from redflag_core.messages import CheckIn, CheckInAnswer
from redflag_server.bodies import Strict
from redflag_server.checkin.authentication import AgentAuthentication, AgentRoute, provide_agent
from redflag_server.checkin.polling import answer_check_in
from redflag_server.injection import Parsed
from redflag_server.openapi import answers, example
from redflag_server.runtime import provide_runtime
from redflag_server.wire_examples import CHECK_IN, CHECK_IN_ANSWER


class CheckInController(Controller):
    """Where an agent says that it is there, and learns what is wanted of it."""

    tags = ("Agent",)
    security = ({"agent": []},)
    middleware = (AgentAuthentication,)

    @post(
        "/agent/check-in",
        operation_id="CheckIn",
        summary="Check in",
        description="With `wait`, the answer comes when there is a command, at the latest after so many seconds.",
        dto=Strict[CheckIn],
        return_dto=None,
        status_code=200,
        responses=answers(CheckInAnswer, CHECK_IN_ANSWER, 429),
        opt={"agent": AgentRoute(Access.CHECK_IN, claims_itself=True)},
    )
    async def check_in(
        self,
        data: Annotated[Parsed[CheckIn], Body(examples=[example(CHECK_IN)])],
        request: Request[Any, Any, Any],
    ) -> CheckInAnswer:
        """Report state and what each scanner last saw; get the pace, the reports wanted and commands."""
        # Not as dependencies: two of them cost a task group for each request, a tenth of a whole check-in.
        runtime, agent = provide_runtime(request), provide_agent(request)
        return await answer_check_in(runtime, agent, data, request.receive)
