"""
When a scanner is due. Running it, in parallel with the others, is the agent's.

All times are monotonic seconds of one clock: setting the wall clock does not make every scanner due at once.
"""

from collections.abc import Mapping
from typing import Final

import attrs
from attrs import validators

MIN_INTERVAL: Final = 60.0
"""Shortest pause between two scans, seconds: a scan of a large machine takes some seconds of CPU."""

MAX_INTERVAL: Final = 7 * 86_400.0
"""Longest pause, seconds: after a week without a look nobody should trust what is shown."""

MAX_TIMEOUT: Final = 3_600.0
"""Longest scan, seconds. A first search of Windows Update has taken 20 minutes."""

MAX_FAILURES: Final = 100
"""Largest failure threshold: beyond it a breaker never opens in a day of hourly scans, and is no breaker."""


@attrs.frozen(kw_only=True)
class ScannerPolicy:
    """
    How often and how long a scanner may run, and when to leave it alone.

    Attributes:
        enabled: Whether it runs at all.
        interval: Pause from the end of a scan to the start of the next, seconds.
        timeout: Longest scan, seconds; a longer one is failed.
        failure_threshold: Failures in a row after which the circuit opens.
        reset_timeout: How long an open circuit waits for its trial scan, seconds.
    """

    enabled: bool = True
    interval: float = attrs.field(
        default=3_600.0, validator=[validators.ge(MIN_INTERVAL), validators.le(MAX_INTERVAL)]
    )
    timeout: float = attrs.field(default=900.0, validator=[validators.gt(0.0), validators.le(MAX_TIMEOUT)])
    failure_threshold: int = attrs.field(default=3, validator=[validators.ge(1), validators.le(MAX_FAILURES)])
    reset_timeout: float = attrs.field(
        default=3_600.0, validator=[validators.ge(MIN_INTERVAL), validators.le(MAX_INTERVAL)]
    )


@attrs.frozen(kw_only=True)
class ScannerActivity:
    """
    What a scanner is doing and did last.

    Attributes:
        finished_at: End of its last scan, successful or not; None when it has not run since the start.
        running: Whether a scan is running: then it is not due.
        requested: Whether somebody asked for a scan: it does not wait for the interval.
        open_until: End of its open circuit, None when closed. A request does not close a circuit.
    """

    finished_at: float | None = None
    running: bool = False
    requested: bool = False
    open_until: float | None = None


def seconds_until_due(policy: ScannerPolicy, activity: ScannerActivity, now: float) -> float | None:
    """
    How long the scanner still has to wait.

    Args:
        policy: Its policy.
        activity: What it is doing.
        now: Monotonic seconds, of the clock that *activity* was measured with.

    Returns:
        Seconds, 0 when it is due now; None while it is disabled or running.
    """
    if activity.running or not policy.enabled:
        return None
    waits = [0.0]
    if activity.open_until is not None:
        waits.append(activity.open_until - now)
    if activity.finished_at is not None and not activity.requested:
        waits.append(activity.finished_at + policy.interval - now)
    return max(waits)


def due(
    policies: Mapping[str, ScannerPolicy], activities: Mapping[str, ScannerActivity], now: float
) -> tuple[str, ...]:
    """
    Names of the scanners that are due now, sorted.

    Args:
        policies: Policy of each scanner, by name.
        activities: Activity by name. One that is missing has not run yet.
        now: Monotonic seconds.
    """
    idle = ScannerActivity()
    return tuple(
        name
        for name, policy in sorted(policies.items())
        if seconds_until_due(policy, activities.get(name, idle), now) == 0.0
    )
