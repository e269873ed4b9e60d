"""
The scanners at work: each at its own pace and whenever somebody asks, one scan of each at a time.

Whoever asks gets the outcome of a scan that began after the question: a scan that was under way may have looked
before whatever the question is about.
"""

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import Mapping
from typing import Final

import attrs

from redflag_agent.contact import Contact
from redflag_agent.database import OutboxError
from redflag_agent.failures import log_failure
from redflag_agent.outbox import Outbox
from redflag_agent.progress import Tell, line
from redflag_agent.scans import ScannerRun
from redflag_agent.waiting import Sleep, pause
from redflag_core.errors import ScanError
from redflag_core.ports import Entropy
from redflag_core.scanning import PENDING_STATES, ScanReport, ScanStatus

log = logging.getLogger(__name__)

NOT_HERE: Final = "this machine has no scanner {name}, or its settings disable it"


@attrs.define
class Turns:
    """
    One scanner whose scans follow each other.

    Args:
        run: The scanner.
    """

    run: ScannerRun
    _one: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False)
    _begun: int = attrs.field(default=0, init=False)
    _last: tuple[int, ScanReport] | None = attrs.field(default=None, init=False)

    async def free(self) -> None:
        """Wait until no scan is under way."""
        async with self._one:
            return

    async def begin(self, scanning: "Scanning") -> ScanReport:
        """The report of a scan that began after this was called. Several who wait for one share the next."""
        asked = self._begun
        async with self._one:
            if self._last is not None and self._last[0] > asked:
                return self._last[1]
            self._begun = number = self._begun + 1
            report = await scanning.scan(self.run)
            self._last = number, report
            return report


@attrs.define
class Scanning:
    """
    Runs scanners and keeps what they say.

    Args:
        scans: The scanners by name.
        outbox: Where their reports wait.
        contact: Told that there is something to deliver.
        entropy: Draws report ids.
        sleep: How to wait.
        tell: Told what happens.
    """

    scans: Mapping[str, ScannerRun]
    outbox: Outbox
    contact: Contact
    entropy: Entropy
    sleep: Sleep
    tell: Tell
    _turns: dict[str, Turns] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._turns = {name: Turns(run) for name, run in self.scans.items()}

    async def loop(self, name: str, stop: asyncio.Event) -> None:
        """Run one scanner whenever it is due, until *stop*."""
        turns = self._turns[name]
        while not stop.is_set():
            wait = turns.run.seconds_until_due()
            if wait is None:
                await turns.free()
            elif wait > 0:
                await pause(wait, stop, sleep=self.sleep)
            else:
                await self._scan_patiently(turns)

    async def scan_all(self) -> None:
        """Run every scanner once, beside each other. A full disk is told, and the scan will be due again."""
        await asyncio.gather(*(self._scan_patiently(turns) for turns in self._turns.values()))

    async def rescan(self, name: str | None) -> None:
        """
        Run a scanner, or all of them, now; their reports are in the outbox when this returns.

        Args:
            name: Which one, None for all.

        Raises:
            ScanError: It could not tell what the machine has, or is not here.
            OutboxError: The report cannot be kept.
        """
        if name is not None and name not in self._turns:
            raise ScanError(NOT_HERE.format(name=name))
        chosen = self._turns.values() if name is None else [self._turns[name]]
        reports = await asyncio.gather(*(turns.begin(self) for turns in chosen))
        failed = [report for report in reports if report.status is not ScanStatus.OK]
        if failed:
            raise ScanError("; ".join(f"{report.scanner}: {report.error}" for report in failed))

    async def scan(self, run: ScannerRun) -> ScanReport:
        """
        Scan and keep the report. `Turns.begin` is for those who must not get in each other's way.

        Raises:
            OutboxError: It cannot be kept.
        """
        self.tell("scan_started", scanner=run.scanner.name)
        report = await run.run()
        self._announce(report)
        report_id = str(uuid.UUID(bytes=self.entropy.token(16), version=4))
        if self.outbox.record_scan(report, report_id=report_id):
            self.contact.news.set()
        return report

    async def _scan_patiently(self, turns: Turns) -> None:
        try:
            await turns.begin(self)
        except OutboxError as error:
            log_failure("outbox", error)

    def _announce(self, report: ScanReport) -> None:
        states = Counter(package.state.value for package in report.packages)
        facts = {
            "scanner": report.scanner,
            "status": report.status.value,
            "packages": len(report.packages),
            "pending": sum(states[state.value] for state in PENDING_STATES),
        }
        self.tell("scan_done", **facts, by_state=dict(states), error=report.error, warnings=list(report.warnings))
        log.info(line("scan_done", **facts, ms=report.duration_ms, error=report.error))
