"""``/metrics``: in the text format of Prometheus, for whoever has the token."""

import hmac
from typing import Any

from litestar import Controller, Request, Response, get
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from redflag_server.injection import Injected
from redflag_server.metrics.fleet import Fleet
from redflag_server.metrics.requests import RequestMetrics
from redflag_server.problems import NotAuthenticatedError, NotFoundError
from redflag_server.runtime import Runtime


class MetricsController(Controller):
    """Where Prometheus looks. Without a token in the settings there is nothing."""

    include_in_schema = False
    opt = {"public": True}  # noqa: RUF012  (Litestar's form)

    @get("/metrics")
    async def metrics(self, request: Request[Any, Any, Any], runtime: Injected[Runtime]) -> Response[bytes]:
        """All of them."""
        check_metrics_token(request.headers.get("authorization", ""), runtime.settings.metrics_token)
        state = request.app.state
        if "fleet_metrics" not in state:
            state.fleet_metrics = Fleet(runtime)
            state.metrics.registry.register(state.fleet_metrics)
        fleet: Fleet = state.fleet_metrics
        metrics: RequestMetrics = state.metrics
        await fleet.refresh()
        return Response(generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


def check_metrics_token(authorization: str, token: str | None) -> None:
    """
    Check who asks for metrics.

    Args:
        authorization: Header of the request, untrusted.
        token: The token of the settings.

    Raises:
        NotFoundError: There is no token: metrics are off.
        NotAuthenticatedError: It is another one.
    """
    if token is None:
        raise NotFoundError("there is no such path")
    if not hmac.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
        raise NotAuthenticatedError("send the token of the metrics: Authorization: Bearer ...")
