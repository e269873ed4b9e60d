"""Liveness and readiness."""

from typing import Any, Final

import attrs
from litestar import Controller, Request, Response, get

from redflag_server.health.readiness import Readiness
from redflag_server.injection import Injected
from redflag_server.openapi import answers
from redflag_server.runtime import Runtime


@attrs.frozen
class Health:
    """
    Health of this process.

    Attributes:
        status: ``ok``, or ``unavailable``.
        failed: Which checks fail: ``database``, ``migrations``, ``writable``, ``clock``, ``keys``.
    """

    status: str
    failed: tuple[str, ...] = ()


HEALTHY: Final = Health("ok")


class HealthController(Controller):
    """For process supervisors and load balancers."""

    path = "/health"
    tags = ("Health",)
    opt = {"public": True}  # noqa: RUF012  (Litestar's form)

    @get(
        "/live",
        operation_id="GetLiveness",
        summary="The process answers",
        sync_to_thread=False,
        responses=answers(Health, HEALTHY, public=True),
    )
    def live(self) -> Health:
        """Whether the process runs at all; looks at nothing else."""
        return HEALTHY

    @get(
        "/ready",
        operation_id="GetReadiness",
        summary="The server can serve",
        responses=answers(Health, HEALTHY, 503, public=True),
    )
    async def ready(self, runtime: Injected[Runtime], request: Request[Any, Any, Any]) -> Response[Health]:
        """Whether requests can be served: database, schema, clock and keys; looked up at most once a second."""
        state = request.app.state
        if "readiness" not in state:
            state.readiness = Readiness(runtime)
        failed = await state.readiness.failed()
        health = Health("unavailable" if failed else "ok", failed)
        return Response(health, status_code=503 if failed else 200)
