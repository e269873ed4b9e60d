"""
The loop of the agent: scanners at their own pace, rounds with the server at its pace, and an orderly end.

Nothing here decides: the core says which scanner is due, whether a call is worth repeating and what a package's
state is. A round that fails leaves everything in the outbox and comes back later.
"""

import asyncio
import logging
import traceback
import uuid
from collections import Counter
from collections.abc import Mapping
from typing import Final

import attrs

from redflag_agent.answers import AnswerError
from redflag_agent.database import OutboxError
from redflag_agent.delivery import Delivery
from redflag_agent.error_log import ErrorLog
from redflag_agent.outbox import Outbox
from redflag_agent.pace import needs_operator, pause_after
from redflag_agent.progress import Tell, line
from redflag_agent.scans import ScannerRun, run_all
from redflag_agent.state import StateFile
from redflag_agent.waiting import Sleep, pause
from redflag_core.errors import CircuitOpenError, RedFlagError
from redflag_core.ports import Entropy
from redflag_core.resilience import random_fraction
from redflag_core.scanning import PENDING_STATES, ScanReport

log = logging.getLogger(__name__)

GRACE: Final = 3.0
"""Seconds for the request under way when the agent is told to stop; with ending the children it is below 5."""


@attrs.define
class Runner:
    """
    What runs until it is told to stop.

    Args:
        delivery: One round with the server.
        scans: The scanners by name.
        outbox: Where their reports wait.
        errors: Errors on their way.
        state: Where the server's refusals are remembered.
        entropy: Draws report ids and jitter.
        sleep: How to wait.
        tell: Told what happens.
    """

    delivery: Delivery
    scans: Mapping[str, ScannerRun]
    outbox: Outbox
    errors: ErrorLog
    state: StateFile
    entropy: Entropy
    sleep: Sleep
    tell: Tell
    _news: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _failures: int = attrs.field(default=0, init=False)

    async def run(self, stop: asyncio.Event) -> None:
        """
        Scan and talk until *stop* is set; then end within seconds, children included.

        Raises:
            Exception: A bug ended one of the loops, and with it the others.
        """
        scanning = [asyncio.create_task(self._scan_loop(run, stop)) for run in self.scans.values()]
        talking = asyncio.create_task(self._talk_loop(stop))
        for loop in (*scanning, talking):
            loop.add_done_callback(lambda task: stop.set() if _failed(task) else None)
        try:
            await stop.wait()
        finally:
            for loop in scanning:
                loop.cancel()
            await asyncio.wait([talking], timeout=GRACE)
            talking.cancel()
            ends = await asyncio.gather(*scanning, talking, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def run_once(self) -> None:
        """
        Scan everything once and deliver it.

        Raises:
            RedFlagError: It could not be delivered; it is in the outbox.
        """
        for name in self.scans:
            self.tell("scan_started", scanner=name)
        for report in await run_all(self.scans):
            self._keep(report)
        await self.delivery.round()

    async def turn(self) -> tuple[float, bool]:
        """
        One round, whatever comes of it.

        Returns:
            Seconds until the next, and whether this one succeeded.
        """
        try:
            wait = await self.delivery.round()
        except Exception as error:  # a round that fails in any way must not end the agent
            self._failures += 1
            wait = pause_after(error, failures=self._failures, fraction=random_fraction(self.entropy))
            self._note(error, wait)
            return wait, False
        self._failures = 0
        return wait, True

    async def _talk_loop(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self._news.clear()
            wait, succeeded = await self.turn()
            # News do not cut the pause after a failure short: that would undo the spreading.
            await pause(wait, *([stop, self._news] if succeeded else [stop]), sleep=self.sleep)

    async def _scan_loop(self, run: ScannerRun, stop: asyncio.Event) -> None:
        while not stop.is_set():
            wait = run.seconds_until_due()
            if wait is None:
                return
            if wait > 0:
                await pause(wait, stop, sleep=self.sleep)
                continue
            self.tell("scan_started", scanner=run.scanner.name)
            if self._keep(await run.run()):
                self._news.set()

    def _keep(self, report: ScanReport) -> bool:
        """Put a report into the outbox; whether there is something to tell the server."""
        states = Counter(package.state.value for package in report.packages)
        facts = {
            "scanner": report.scanner,
            "status": report.status.value,
            "packages": len(report.packages),
            "pending": sum(states[state.value] for state in PENDING_STATES),
        }
        self.tell("scan_done", **facts, by_state=dict(states), error=report.error, warnings=list(report.warnings))
        log.info(line("scan_done", **facts, ms=report.duration_ms, error=report.error))
        try:
            return self.outbox.record_scan(
                report, report_id=str(uuid.UUID(bytes=self.entropy.token(16), version=4))
            )
        except OutboxError as error:
            self._log("outbox", error)
            return False

    def _note(self, error: Exception, wait: float) -> None:
        self._log("server", error, wait=round(wait))
        self.tell("error", **_facts(error))
        try:
            if not isinstance(error, CircuitOpenError):  # it only says that the failures before it were too many
                self.errors.record("server", error)
            if needs_operator(error) and isinstance(error, AnswerError):
                self.state.update(status=error.problem, status_detail=error.detail)
        except RedFlagError as second:
            self._log("outbox", second)

    def _log(self, subsystem: str, error: Exception, **facts: object) -> None:
        stack = None
        if not isinstance(error, RedFlagError):
            stack = "".join(traceback.format_tb(error.__traceback__))
        log.warning(line("failed", subsystem=subsystem, **_facts(error), **facts, stack=stack))


def _facts(error: Exception) -> dict[str, str]:
    """What may be told of an error: a sentence only if it was written for people."""
    if isinstance(error, RedFlagError):
        code = error.problem if isinstance(error, AnswerError) else error.code
        return {"code": code, "detail": error.message}
    return {"code": "unexpected", "detail": type(error).__name__}


def _failed(task: "asyncio.Task[None]") -> bool:
    return not task.cancelled() and task.exception() is not None
