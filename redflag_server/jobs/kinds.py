"""What a kind of job is: the function that does it, and how often it is tried."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

import attrs

from redflag_core.resilience import RetryPolicy
from redflag_server.jobs.queue import ClaimedJob
from redflag_server.runtime import Runtime

RETRIES: Final = RetryPolicy(attempts=10, wait_initial=5, wait_max=3600, wait_jitter=1)
"""About twenty minutes in all, on average: longer than a database or a network is away for most of the time."""


@attrs.frozen
class Rest:
    """
    What is left of a job after one part.

    Attributes:
        payload: The payload of the next part.
    """

    payload: Mapping[str, Any]


Handler: TypeAlias = Callable[[Runtime, ClaimedJob], Awaitable[Rest | None]]
"""
Does a job, or one part of it.

It may be called again for the same job, also when it has done all of it: the process may have died before that was
written down, or have been held up so long that another one took over. So it must be idempotent, by `check_held` in
each of its transactions or by nature. It is cancelled after `queue.RUN_SECONDS`.
"""


@attrs.frozen
class Kind:
    """
    A kind of job.

    Attributes:
        handle: Does it.
        retries: How often it is tried, and with what waits. The policy's timeout has no meaning here.
    """

    handle: Handler
    retries: RetryPolicy = RETRIES
