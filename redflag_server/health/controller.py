"""Liveness and readiness."""

from typing import Final

import attrs
from litestar import Controller, Response, get
from sqlalchemy.exc import SQLAlchemyError

from redflag_server.db import migrate
from redflag_server.injection import Injected
from redflag_server.openapi import answers
from redflag_server.runtime import Runtime


@attrs.frozen
class Health:
    """
    Health of this process.

    Attributes:
        status: ``ok``, or ``unavailable``.
        database: Whether the database answers with this release's schema.
    """

    status: str
    database: bool


HEALTHY: Final = Health("ok", database=True)


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
        """Whether the process runs at all; does not touch the database."""
        return Health("ok", database=True)

    @get(
        "/ready",
        operation_id="GetReadiness",
        summary="The server can serve",
        responses=answers(Health, HEALTHY, 503, public=True),
    )
    async def ready(self, runtime: Injected[Runtime]) -> Response[Health]:
        """Whether the database answers and has the schema of this release."""
        try:
            usable = not await migrate.pending(runtime.database)
        except (SQLAlchemyError, OSError):
            usable = False
        health = Health("ok" if usable else "unavailable", database=usable)
        return Response(health, status_code=200 if usable else 503)
