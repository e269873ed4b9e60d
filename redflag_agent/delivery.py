"""One round with the server: check in, then bring what it wants and what it has not got."""

import logging
import uuid
from typing import Final

import attrs

from redflag_agent import host
from redflag_agent.answers import ServerRefusedError
from redflag_agent.error_log import ErrorLog
from redflag_agent.executor import Evidence, Executor
from redflag_agent.outbox import LAST_CHECK_IN, Outbox, StoredReport
from redflag_agent.progress import Tell, line
from redflag_agent.reports import make_report
from redflag_agent.state import StateFile
from redflag_agent.tokens import Tokens, member
from redflag_agent.trust import TrustStore
from redflag_core import codec
from redflag_core.enrolment import Access, AgentStatus, allows
from redflag_core.errors import ExpiredError, MalformedError, VerificationError
from redflag_core.freshness import unix
from redflag_core.messages import (
    MAX_SMALL_BODY,
    Accepted,
    CheckIn,
    CheckInAnswer,
    Errors,
    OperatingSystem,
    ReportAccepted,
    ScannerState,
    Versions,
)
from redflag_core.ports import Clock, Entropy
from redflag_core.scanning import ScanReport, ScanStatus

log = logging.getLogger(__name__)

MAX_PACE: Final = 3600
"""Seconds. Longest pause that a server may order: an operator must be able to reach an agent within the hour."""

NOT_NOW: Final = frozenset({401, 403, 408, 429})
"""Refusals (4xx) that are not about what was sent: not known, not allowed yet, too slow, too many."""

UNSENT_ERRORS: Final = "errors"
"""Subsystem of the error that tells that a batch of errors was refused."""


@attrs.frozen
class _Announcement:
    """What is sent after a start and when it changes."""

    os: OperatingSystem
    versions: Versions
    hostname: str


@attrs.define
class Delivery:
    """
    What the network process does in one round.

    Args:
        tokens: Sends requests with an access token.
        state: What is remembered of the server's word.
        executor: Speaks for the machine.
        trust: The roots and the bundle held.
        outbox: What the server has not accepted.
        errors: Errors on their way.
        clock: Wall time.
        entropy: Draws report ids.
        tell: Told what was accepted.
    """

    tokens: Tokens
    state: StateFile
    executor: Executor
    trust: TrustStore
    outbox: Outbox
    errors: ErrorLog
    clock: Clock
    entropy: Entropy
    tell: Tell
    _announced: _Announcement | None = attrs.field(default=None, init=False)
    _refused_bundle: str | None = attrs.field(default=None, init=False)
    _told_bundle: str | None = attrs.field(default=None, init=False)

    async def round(self) -> float:
        """
        Check in, and deliver what there is.

        Returns:
            Seconds until the next round.

        Raises:
            RedFlagError: The server cannot be reached or refuses; what was not delivered stays in the outbox.
        """
        evidence = self.executor.evidence(replace_machine_id=self.state.state.replace_machine_id)
        answer = await self._check_in(evidence)
        status = AgentStatus(answer.status)
        self.state.update(status=status.value, status_detail=None)
        self.outbox.note(LAST_CHECK_IN, int(unix(self.clock.now())))
        await self._refresh_trust(answer.bundle)
        if allows(status, Access.STORE):
            await self._send_reports(answer, evidence)
            await self._send_errors(evidence)
        return float(min(max(answer.next_check_in_seconds, 1), MAX_PACE))

    async def _check_in(self, evidence: Evidence) -> CheckInAnswer:
        await self.tokens.ensure(evidence)
        now = _Announcement(host.operating_system(), host.versions(), host.hostname())
        news = None if now == self._announced else now
        body = CheckIn(
            v=1,
            state=self.tokens.executor_state(),
            boot_id=evidence.boot_id,
            scanners=tuple(
                ScannerState(run.scanner, ScanStatus(run.status), run.hash, run.taken_at)
                for run in self.outbox.runs()
            ),
            # The access token vouches for the evidence: `ensure` renews it whenever the evidence changes.
            evidence=None,
            os=news.os if news else None,
            versions=news.versions if news else None,
            hostname=news.hostname if news else None,
        )
        wire = await self.tokens.post("/agent/check-in", codec.dump(body), evidence)
        answer = codec.parse(CheckInAnswer, wire, max_bytes=len(wire))
        if answer.status not in set(AgentStatus):
            raise MalformedError("the server gave this agent a status that this release does not know")
        self._announced = now
        log.debug(line("checked_in", status=answer.status, next=answer.next_check_in_seconds))
        return answer

    async def _refresh_trust(self, digest: str) -> None:
        """
        Fetch an announced bundle. One that is not to be believed is told once and changes nothing.

        It is not fetched again, unless it is past its end: this machine's clock may be ahead, and be set right.
        """
        if self.trust.is_current(digest) or digest == self._refused_bundle:
            return
        try:
            await self.trust.refresh(self.tokens.client, member(self.state.state).pins)
            log.info(line("trust_refreshed", version=self.state.state.bundle_version))
        except VerificationError as error:
            if not isinstance(error, ExpiredError):
                self._refused_bundle = digest
            if digest != self._told_bundle:
                self._told_bundle = digest
                self.errors.record("trust", error)
                log.warning(line("trust_refused", code=error.code, detail=error.message))

    async def _send_reports(self, answer: CheckInAnswer, evidence: Evidence) -> None:
        for scanner in answer.reports_wanted:
            self.outbox.send_again(scanner, report_id=self._new_id())
        for scanner in self.outbox.pending():
            stored = self.outbox.pending_report(scanner)
            if stored is not None:
                await self._send_report(scanner, stored, answer.report_bases.get(scanner), evidence)

    async def _send_report(self, scanner: str, stored: StoredReport, held: str | None, evidence: Evidence) -> None:
        """Send the change if the server holds what was accepted last, and everything if it does not."""
        base = self.outbox.accepted_report(scanner)
        known = base.report if base is not None and base.hash == held else None
        try:
            accepted = await self._post_report(scanner, stored, known, evidence)
            if not accepted and known is not None:
                accepted = await self._post_report(scanner, stored, None, evidence)
        except ServerRefusedError as refusal:
            if refusal.status in NOT_NOW:
                raise
            self.outbox.refuse(scanner, stored.report_id, refusal.problem)
            self.errors.record(f"report.{scanner}", refusal)
            log.warning(line("report_refused", scanner=scanner, code=refusal.problem, detail=refusal.detail))
            return
        if accepted:
            self.outbox.accept(scanner, stored.report_id)
            self.tell("report_accepted", scanner=scanner, packages=len(stored.report.packages))
            log.info(line("report_accepted", scanner=scanner, packages=len(stored.report.packages)))

    async def _post_report(
        self, scanner: str, stored: StoredReport, base: ScanReport | None, evidence: Evidence
    ) -> bool:
        body = codec.dump(make_report(stored.report, report_id=stored.report_id, base=base))
        wire = await self.tokens.post(f"/agent/reports/{scanner}", body, evidence)
        answer = codec.parse(ReportAccepted, wire, max_bytes=MAX_SMALL_BODY)
        log.debug(
            line("report_sent", scanner=scanner, full=base is None, bytes=len(body), accepted=answer.accepted)
        )
        return answer.accepted

    async def _send_errors(self, evidence: Evidence) -> None:
        batch = self.errors.batch()
        if batch is None:
            return
        try:
            wire = await self.tokens.post("/agent/errors", codec.dump(batch), evidence)
        except ServerRefusedError as refusal:
            if refusal.status in NOT_NOW:
                raise
            self._give_up(batch, refusal)
            return
        codec.parse(Accepted, wire, max_bytes=MAX_SMALL_BODY)
        self.errors.accept(batch.batch_id)

    def _give_up(self, batch: Errors, refusal: ServerRefusedError) -> None:
        """The server will never take this batch: the next one tells how much is missing, and why."""
        self.errors.drop(batch.batch_id)
        log.warning(line("errors_refused", code=refusal.problem, detail=refusal.detail, dropped=len(batch.errors)))
        # A server that refuses even this one would otherwise be told of it in every round.
        if any(error.subsystem != UNSENT_ERRORS for error in batch.errors):
            self.errors.record(UNSENT_ERRORS, refusal)

    def _new_id(self) -> str:
        return str(uuid.UUID(bytes=self.entropy.token(16), version=4))
