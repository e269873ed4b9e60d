"""
Bringing the server what it has not got: statements of the executor, reports, errors, progress, in this order.

What the server accepted is forgotten here, and nothing else is; progress apart, which is lost without harm. A
statement is never given up: one that the server refuses for good is passed over for a day, and told.
"""

import logging
from typing import Final

import attrs

from redflag_agent.answers import ServerRefusedError, ThrottledError
from redflag_agent.contact import Contact
from redflag_agent.error_log import ErrorLog
from redflag_agent.executor import Executor
from redflag_agent.executor.commander import Commander, Undelivered
from redflag_agent.outbox import Outbox, StoredReport
from redflag_agent.progress import Tell, line
from redflag_agent.reports import make_report
from redflag_agent.state import StateFile
from redflag_agent.tokens import Tokens
from redflag_core import codec
from redflag_core.encoding import b64encode
from redflag_core.enrolment import Access
from redflag_core.freshness import unix
from redflag_core.messages import MAX_SMALL_BODY, Accepted, Errors, ReportAccepted, StatementPost
from redflag_core.ports import Clock
from redflag_core.scanning import ScanReport

log = logging.getLogger(__name__)

NOT_NOW: Final = frozenset({401, 403, 408, 429})
"""Refusals (4xx) that are not about what was sent: not known, not allowed yet, too slow, too many."""

WRONG_RECIPIENT: Final = "wrong_recipient"
"""Code (401) about a statement all the same: a request of another agent would not have passed as a check-in."""

UNSENT_ERRORS: Final = "errors"
"""Subsystem of the error that tells that a batch of errors was refused."""

REFUSED_PAUSE: Final = 86_400.0
"""Seconds for which a statement that was refused for good is not sent: the server may be updated meanwhile."""

PROGRESS_PAUSE: Final = 2.0
"""Seconds between two messages of progress: half of the requests that a server grants an agent for good. The other
half is for what must not wait."""

THROTTLED_PAUSE: Final = 30.0
"""Seconds without progress at least when the server asked for fewer requests."""

LOOK_AGAIN: Final = 3600.0
"""Seconds after which the loop looks for something to deliver though nobody said that there is."""


@attrs.define
class Delivery:
    """
    Delivers.

    Args:
        tokens: Sends requests with an access token.
        state: What is remembered of the server's word.
        executor: Speaks for the machine.
        commander: Has statements and progress.
        outbox: Reports that the server has not accepted.
        errors: Errors on their way.
        contact: How this agent stands.
        clock: Both kinds of time.
        tell: Told what was accepted.
    """

    tokens: Tokens
    state: StateFile
    executor: Executor
    commander: Commander
    outbox: Outbox
    errors: ErrorLog
    contact: Contact
    clock: Clock
    tell: Tell
    _passed_over: dict[int, float] = attrs.field(factory=dict, init=False)
    """Until when each refused statement is passed over, monotonic."""
    _next_progress: float = attrs.field(default=0.0, init=False)

    async def send(self) -> float:
        """
        Deliver what there is. Nothing is sent while the last check-in failed or told that nothing is stored.

        Returns:
            Seconds after which there may be something to deliver that nobody tells of.

        Raises:
            RedFlagError: The server cannot be reached or refuses; what was not delivered stays.
        """
        if not self.contact.allows(Access.STORE):
            return LOOK_AGAIN
        await self._send_statements()
        for scanner in self.outbox.pending():
            stored = self.outbox.pending_report(scanner)
            if stored is not None and not self.contact.is_put_off(scanner):
                await self._send_report(scanner, stored)
        await self._send_errors()
        return await self._send_progress()

    async def _post(self, path: str, body: bytes, *, once: bool = False) -> bytes:
        evidence = self.executor.evidence(replace_machine_id=self.state.state.replace_machine_id)
        return await self.tokens.post(path, body, evidence, once=once)

    # --- statements ---

    async def _send_statements(self) -> None:
        now = self.clock.monotonic()
        self._passed_over = {number: until for number, until in self._passed_over.items() if until > now}
        # Page by page: those that are passed over must not hide the ones after them.
        while page := self.commander.statements(skip=self._passed_over):
            for statement in page:
                await self._send_statement(statement)

    async def _send_statement(self, statement: Undelivered) -> None:
        body = codec.dump(StatementPost(1, b64encode(statement.envelope)))
        try:
            wire = await self._post("/agent/results", body)
        except ServerRefusedError as refusal:
            if _is_later(refusal):
                raise
            self._pass_over(statement, refusal)
            return
        codec.parse(Accepted, wire, max_bytes=MAX_SMALL_BODY)
        self.commander.delivered(statement.id)
        self.outbox.forget_refusal(statement.envelope)
        log.info(line("statement_delivered", command=statement.cmd_id, bytes=len(body)))

    def _pass_over(self, statement: Undelivered, refusal: ServerRefusedError) -> None:
        self._passed_over[statement.id] = self.clock.monotonic() + REFUSED_PAUSE
        log.warning(
            line("statement_refused", command=statement.cmd_id, code=refusal.problem, detail=refusal.detail)
        )
        self.outbox.note_refusal(statement.envelope, refusal.problem, now=int(unix(self.clock.now())))
        self.errors.record("statement", refusal)

    # --- reports ---

    async def _send_report(self, scanner: str, stored: StoredReport) -> None:
        """Send the change if the server holds what was accepted last, and everything if it does not."""
        base = self.outbox.accepted_report(scanner)
        known = base.report if base is not None and base.hash == self.contact.base(scanner) else None
        try:
            accepted = await self._post_report(scanner, stored, known)
            if not accepted and known is not None:
                accepted = await self._post_report(scanner, stored, None)
        except ServerRefusedError as refusal:
            if _is_later(refusal):
                raise
            self.outbox.refuse(scanner, stored.report_id, refusal.problem)
            self.errors.record(f"report.{scanner}", refusal)
            log.warning(line("report_refused", scanner=scanner, code=refusal.problem, detail=refusal.detail))
            return
        if not accepted:
            self.contact.put_off(scanner)
            return
        self.outbox.accept(scanner, stored.report_id)
        self.contact.accepted(scanner, stored.hash)
        self.tell("report_accepted", scanner=scanner, packages=len(stored.report.packages))
        log.info(line("report_accepted", scanner=scanner, packages=len(stored.report.packages)))

    async def _post_report(self, scanner: str, stored: StoredReport, base: ScanReport | None) -> bool:
        body = codec.dump(make_report(stored.report, report_id=stored.report_id, base=base))
        wire = await self._post(f"/agent/reports/{scanner}", body)
        answer = codec.parse(ReportAccepted, wire, max_bytes=MAX_SMALL_BODY)
        log.debug(
            line("report_sent", scanner=scanner, full=base is None, bytes=len(body), accepted=answer.accepted)
        )
        return answer.accepted

    # --- errors and progress ---

    async def _send_errors(self) -> None:
        batch = self.errors.batch()
        if batch is None:
            return
        try:
            wire = await self._post("/agent/errors", codec.dump(batch))
        except ServerRefusedError as refusal:
            if _is_later(refusal):
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

    async def _send_progress(self) -> float:
        """Send what is new, not too often; seconds until there may be more."""
        early = self._next_progress - self.clock.monotonic()
        if early > 0:
            return early
        progress = self.commander.progress()
        if progress is None:
            return LOOK_AGAIN
        pause = PROGRESS_PAUSE
        try:
            await self._post("/agent/progress", codec.dump(progress), once=True)
        except ThrottledError as refusal:
            pause = max(THROTTLED_PAUSE, refusal.retry_after or 0.0)
        except ServerRefusedError as refusal:
            if _is_later(refusal):
                raise
            log.debug(line("progress_refused", code=refusal.problem, detail=refusal.detail))
        self._next_progress = self.clock.monotonic() + pause
        return pause


def _is_later(refusal: ServerRefusedError) -> bool:
    """Whether a refusal is not about what was sent, so that the same may be sent again."""
    return refusal.status in NOT_NOW and refusal.problem != WRONG_RECIPIENT
