"""Running the scanners of this machine: each at its own pace, with a timeout and a breaker, beside the others."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import attrs

from redflag_core.errors import CircuitOpenError, RedFlagError, ScanError
from redflag_core.freshness import unix
from redflag_core.ports import Clock
from redflag_core.resilience import Breaker, BreakerPolicy, BreakerState
from redflag_core.scanning import (
    Scanner,
    ScannerActivity,
    ScannerPolicy,
    ScanReport,
    failed_report,
    seconds_until_due,
)

OnError: TypeAlias = Callable[[str, Exception], None]


@attrs.define
class ScannerRun:
    """
    One scanner with its policy and its past.

    Args:
        scanner: What is run.
        policy: When and how long.
        clock: Both kinds of time.
        on_error: Told the scanner's name and why a scan failed.
    """

    scanner: Scanner
    policy: ScannerPolicy
    clock: Clock
    on_error: OnError
    _breaker: Breaker = attrs.field(init=False)
    _activity: ScannerActivity = attrs.field(factory=ScannerActivity, init=False)

    def __attrs_post_init__(self) -> None:
        policy = BreakerPolicy(
            failure_threshold=self.policy.failure_threshold,
            reset_timeout=self.policy.reset_timeout,
            call_timeout=self.policy.timeout,
        )
        self._breaker = Breaker(f"the scanner {self.scanner.name}", policy, clock=self.clock)

    @property
    def is_open(self) -> bool:
        """Whether it failed so often that it is left alone for a while."""
        return self._breaker.status.state is BreakerState.OPEN

    def seconds_until_due(self) -> float | None:
        """See `redflag_core.scanning.seconds_until_due`."""
        now = self.clock.monotonic()
        open_until = now + self._breaker.status.retry_after if self.is_open else None
        activity = attrs.evolve(self._activity, open_until=open_until)
        return seconds_until_due(self.policy, activity, now)

    async def run(self) -> ScanReport:
        """Scan now. A scan that fails or takes too long gives a failed report, never "nothing found"."""
        began, taken_at = self.clock.monotonic(), int(unix(self.clock.now()))
        self._activity = ScannerActivity(running=True)
        try:
            return await self._breaker.call(self._scan)
        except Exception as error:  # whatever a scanner does wrong becomes its report, not the agent's end
            failure = self._explain(error)
            self.on_error(self.scanner.name, failure)
            return failed_report(
                self._left_alone(failure) if self.is_open else failure,
                scanner=self.scanner.name,
                manager=self.scanner.manager,
                taken_at=taken_at,
                duration_ms=int(1000 * (self.clock.monotonic() - began)),
            )
        finally:
            self._activity = ScannerActivity(finished_at=self.clock.monotonic())

    async def _scan(self) -> ScanReport:
        report = await self.scanner.scan()
        if (report.scanner, report.manager) != (self.scanner.name, self.scanner.manager):
            told = f"{report.scanner} ({report.manager})"
            raise ScanError(f"the scanner {self.scanner.name} ({self.scanner.manager}) gave a report of {told}")
        return report

    def _explain(self, error: Exception) -> Exception:
        if isinstance(error, TimeoutError):
            return ScanError(f"the scan took longer than {self.policy.timeout:.0f} s and was ended")
        return error

    def _left_alone(self, failure: Exception) -> CircuitOpenError:
        """The failure that opened the circuit, and what follows: the report is then ``open`` and says why."""
        why = failure.message if isinstance(failure, RedFlagError) else f"unexpected {type(failure).__name__}"
        pause = f"it kept failing, so it is tried only every {self.policy.reset_timeout / 60:.0f} minutes"
        return CircuitOpenError(f"{why} ({pause})", retry_after=self._breaker.status.retry_after)


def scanner_runs(
    scanners: Sequence[Scanner], policy: Callable[[str], ScannerPolicy], *, clock: Clock, on_error: OnError
) -> Mapping[str, ScannerRun]:
    """The enabled scanners by name."""
    runs = (ScannerRun(scanner, policy(scanner.name), clock, on_error) for scanner in scanners)
    return {run.scanner.name: run for run in runs if run.policy.enabled}


async def run_all(runs: Mapping[str, ScannerRun]) -> tuple[ScanReport, ...]:
    """Run all of them once, in parallel."""
    return tuple(await asyncio.gather(*(run.run() for run in runs.values())))
