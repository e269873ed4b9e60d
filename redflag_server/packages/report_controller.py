"""Where agents send what their scanners saw."""

from typing import Annotated

from litestar import Controller, post
from litestar.di import Provide
from litestar.params import Body, Parameter

from redflag_core.enrolment import Access
from redflag_core.messages import MAX_REPORT_BODY, Report, ReportAccepted
from redflag_server.bodies import Strict
from redflag_server.checkin.authentication import AgentAuthentication, AgentRoute, VerifiedAgent, provide_agent
from redflag_server.injection import Injected, Parsed
from redflag_server.openapi import answers, example
from redflag_server.packages.ingest import accept_report
from redflag_server.rate_limits.classes import RateClass
from redflag_server.runtime import Runtime
from redflag_server.wire_examples import REPORT, REPORT_ACCEPTED


class ReportController(Controller):
    """Scan reports."""

    tags = ("Agent",)
    security = ({"agent": []},)
    middleware = (AgentAuthentication,)
    dependencies = {"agent": Provide(provide_agent, sync_to_thread=False)}  # noqa: RUF012  (Litestar's form)

    @post(
        "/agent/reports/{scanner:str}",
        operation_id="SendReport",
        summary="Send what a scanner saw",
        dto=Strict[Report],
        return_dto=None,
        status_code=200,
        responses=answers(ReportAccepted, REPORT_ACCEPTED, 429),
        opt={"agent": AgentRoute(Access.STORE, max_body=MAX_REPORT_BODY, limit=RateClass.REPORT)},
    )
    async def send_report(
        self,
        scanner: Annotated[str, Parameter(pattern=r"^[a-z][a-z0-9_]{0,31}\Z", description="Name of the scanner.")],
        data: Annotated[Parsed[Report], Body(examples=[example(REPORT)])],
        agent: Injected[VerifiedAgent],
        runtime: Injected[Runtime],
    ) -> ReportAccepted:
        """Store the inventory of one scanner: full, or the changes against the last accepted hash."""
        return await accept_report(runtime, agent, scanner, data)
