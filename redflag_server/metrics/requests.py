"""Counted as it happens: requests, refusals, errors. Each application has a registry of its own."""

from typing import Final

from litestar.types import Scope
from prometheus_client import CollectorRegistry, Counter, Histogram

from redflag_core.errors import RedFlagError

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
"""Seconds. A check-in takes about one millisecond, and one that is held open up to 50 seconds."""

UNMATCHED: Final = "unmatched"
"""The route of a request for a path that does not exist: the path itself is anybody's choice."""


class RequestMetrics:
    """Counters of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "redflag_requests",
            "Requests by route template.",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "redflag_request_seconds",
            "Time until the answer was sent. Check-ins that are held open count with the time they were held.",
            ("route", "method"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._refusals = Counter(
            "redflag_refusals", "Requests that were refused, by code.", ("code",), registry=self.registry
        )
        self._errors = Counter(
            "redflag_errors",
            "Requests that failed in the server, by type of error.",
            ("type",),
            registry=self.registry,
        )

    def count(self, route: str, method: str, status: int, seconds: float) -> None:
        """
        Count one request.

        Args:
            route: Template of the route; `UNMATCHED` if there was none.
            method: Untrusted.
            status: HTTP status; 0 if nothing was answered.
            seconds: How long it took.
        """
        method = method if method in METHODS else "other"
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route, method).observe(seconds)

    async def count_failure(self, error: Exception, _scope: Scope) -> None:
        """Count why a request failed: Litestar's hook ``after_exception``."""
        if isinstance(error, RedFlagError):
            self._refusals.labels(error.code).inc()
        elif getattr(error, "status_code", 500) < 500:
            self._refusals.labels("invalid_request").inc()
        else:
            self._errors.labels(type(error).__name__).inc()
