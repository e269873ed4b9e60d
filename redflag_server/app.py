"""The ASGI application: routes, dependencies, errors and lifespan, put together."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.di import Provide

from redflag_core.messages import MAX_REPORT_BODY
from redflag_core.ports import Clock, Entropy
from redflag_server.accounts.controller import ApiKeyController, UserController
from redflag_server.agents.controller import AgentController, RegistrationTokenController
from redflag_server.agents.enrolment_controller import EnrolmentController
from redflag_server.approvals.controller import ApprovalController
from redflag_server.checkin.controller import CheckInController
from redflag_server.client_errors.controller import AgentErrorController
from redflag_server.client_errors.list_controller import ClientErrorController
from redflag_server.commands.agent_controller import ResultController
from redflag_server.commands.controller import CommandController
from redflag_server.dashboard.command_controller import CommandPageController
from redflag_server.dashboard.controller import FleetController, SignInController, StaticController
from redflag_server.dashboard.errors import with_pages
from redflag_server.dashboard.machine_controller import MachineController
from redflag_server.dashboard.package_controller import PackagePageController
from redflag_server.dashboard.plan_controller import PlanPageController
from redflag_server.events.controller import EventController
from redflag_server.events.refusals import record_refusal
from redflag_server.events.timelines import TimelineController
from redflag_server.fields import refuse_nul
from redflag_server.headers import SecurityHeaders
from redflag_server.health.controller import HealthController
from redflag_server.jobs.background import keep_working
from redflag_server.jobs.controller import JobController
from redflag_server.jobs.list import JOBS
from redflag_server.jobs.service import prepare
from redflag_server.openapi import openapi_config
from redflag_server.packages.controller import PackageController
from redflag_server.packages.report_controller import ReportController
from redflag_server.plans.controller import PlanController
from redflag_server.plans.decision_controller import DecisionController
from redflag_server.problems import EXCEPTION_HANDLERS
from redflag_server.published import publish
from redflag_server.runtime import Runtime, provide_runtime
from redflag_server.settings import Settings
from redflag_server.start import open_runtime
from redflag_server.trust.controller import TrustController

API: Final = "/api/v1"

CONTROLLERS: Final[list[Any]] = [
    AgentController,
    AgentErrorController,
    ApiKeyController,
    ApprovalController,
    CheckInController,
    ClientErrorController,
    CommandController,
    DecisionController,
    EnrolmentController,
    EventController,
    HealthController,
    JobController,
    PackageController,
    PlanController,
    RegistrationTokenController,
    ReportController,
    ResultController,
    TimelineController,
    TrustController,
    UserController,
]

PAGES: Final[list[Any]] = [
    CommandPageController,
    FleetController,
    MachineController,
    PackagePageController,
    PlanPageController,
    SignInController,
    StaticController,
]


def create_app(
    settings: Settings,
    *,
    clock: Clock,
    entropy: Entropy,
    run_jobs: bool = True,
    runtime: Runtime | None = None,
) -> Litestar:
    """
    The server as an ASGI application.

    Args:
        settings: Checked settings.
        clock: Wall and monotonic time.
        entropy: Randomness.
        run_jobs: Whether this process runs the recurring work too.
        runtime: Opened already by `start.open_runtime`, so that a start that must fail does so with its sentence;
            None opens it when the application starts. It is closed when the application ends.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        opened = runtime or await open_runtime(settings, clock, entropy)
        app.state.runtime = opened
        await publish(opened)
        await prepare(opened, JOBS)
        stop = asyncio.Event()
        jobs = asyncio.create_task(keep_working(opened, stop)) if run_jobs else None
        try:
            yield
        finally:
            opened.waiting.close()
            stop.set()
            if jobs is not None:
                await jobs
            await opened.database.close()

    return Litestar(
        route_handlers=[Router(API, route_handlers=CONTROLLERS), *PAGES],
        dependencies={"runtime": Provide(provide_runtime, sync_to_thread=False)},
        before_request=refuse_nul,
        exception_handlers=with_pages(EXCEPTION_HANDLERS),
        after_exception=[record_refusal],
        before_send=[SecurityHeaders(secure=settings.is_secure)],
        lifespan=[lifespan],
        state=State(),
        openapi_config=openapi_config(),
        request_max_body_size=MAX_REPORT_BODY,
        debug=False,
        logging_config=None,
    )
