"""The ASGI application: routes, dependencies, errors and lifespan, put together."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.di import Provide
from litestar.types import ExceptionHandlersMap
from sqlalchemy.ext.asyncio import AsyncEngine

from redflag_core.messages import MAX_REPORT_BODY
from redflag_core.ports import Clock, Entropy
from redflag_server.accounts.controller import ApiKeyController, UserController
from redflag_server.accounts.host_operators import IdentifyOperator
from redflag_server.agents.controller import AgentController, RegistrationTokenController
from redflag_server.agents.enrolment_controller import EnrolmentController
from redflag_server.approvals.controller import ApprovalController
from redflag_server.checkin.controller import CheckInController
from redflag_server.checkin.doorbell import doorbell
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
from redflag_server.metrics.controller import MetricsController
from redflag_server.metrics.requests import RequestMetrics
from redflag_server.observing import ObservedApp, Observer, with_request_ids
from redflag_server.openapi import openapi_config
from redflag_server.packages.controller import PackageController
from redflag_server.packages.report_controller import ReportController
from redflag_server.plans.controller import PlanController
from redflag_server.plans.decision_controller import DecisionController
from redflag_server.problems import EXCEPTION_HANDLERS
from redflag_server.published import publish
from redflag_server.rate_limits.controller import RateLimitController
from redflag_server.runtime import Runtime, provide_runtime
from redflag_server.settings import Settings
from redflag_server.start import hold_place, open_runtime
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
    RateLimitController,
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


ACCOUNTS: Final = frozenset({ApiKeyController, UserController, SignInController})
"""What is not there where a host knows the operators."""


def create_app(
    settings: Settings,
    *,
    clock: Clock,
    entropy: Entropy,
    run_jobs: bool = True,
    runtime: Runtime | None = None,
    operators: IdentifyOperator | None = None,
    sign_in_url: str | None = None,
    dashboard: bool = True,
    engine: AsyncEngine | None = None,
    embedded: bool = False,
    listen: bool = True,
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
        operators: See `embedding.EmbeddedServer`, for this and the next three.
        sign_in_url: Where pages send whom *operators* does not know.
        dashboard: Whether there are pages.
        engine: Engine of a host for the database; it is not closed.
        embedded: In a host: a place that must have one server only is held from start to end, and what a browser
            is to do with the whole host name is left to the host.
        listen: Whether to listen for what other replicas commit.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        with hold_place(settings) if embedded else contextlib.nullcontext():
            opened = runtime or await open_runtime(settings, clock, entropy, engine=engine)
            app.state.runtime = opened
            async with _working(opened, run_jobs=run_jobs, listen=listen):
                yield

    metrics = RequestMetrics()
    app = ObservedApp(
        route_handlers=_handlers(dashboard=dashboard, accounts=operators is None),
        dependencies={"runtime": Provide(provide_runtime, sync_to_thread=False)},
        before_request=refuse_nul,
        exception_handlers=_exception_handlers(dashboard=dashboard),
        after_exception=[record_refusal, metrics.count_failure],
        before_send=[SecurityHeaders(secure=settings.is_secure and not embedded)],
        lifespan=[lifespan],
        state=State({"operators": operators, "sign_in_url": sign_in_url, "metrics": metrics}),
        openapi_config=openapi_config(),
        request_max_body_size=MAX_REPORT_BODY,
        debug=False,
        logging_config=None,
    )
    app.observe(Observer(settings, entropy, metrics))
    return app


def _handlers(*, dashboard: bool, accounts: bool) -> list[Any]:
    left_out = frozenset() if accounts else ACCOUNTS
    api = [controller for controller in CONTROLLERS if controller not in left_out]
    pages = [page for page in PAGES if page not in left_out] if dashboard else []
    return [Router(API, route_handlers=api), MetricsController, *pages]


def _exception_handlers(*, dashboard: bool) -> ExceptionHandlersMap:
    handlers = with_request_ids(EXCEPTION_HANDLERS)
    return with_pages(handlers) if dashboard else handlers


@contextlib.asynccontextmanager
async def _working(runtime: Runtime, *, run_jobs: bool, listen: bool) -> AsyncIterator[None]:
    """Publish where the server is, run its jobs, and close it in the end."""
    await publish(runtime)
    await prepare(runtime, JOBS)
    stop = asyncio.Event()
    jobs = asyncio.create_task(keep_working(runtime, stop)) if run_jobs else None
    try:
        async with runtime.errors.capturing(), doorbell(runtime) if listen else contextlib.nullcontext():
            yield
    finally:
        runtime.waiting.close()
        stop.set()
        if jobs is not None:
            await jobs
        await runtime.database.close()
