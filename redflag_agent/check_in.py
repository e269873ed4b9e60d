"""A check-in: what this agent says of itself, and what it makes of the answer."""

import logging
import uuid
from typing import Final

import attrs

from redflag_agent import host
from redflag_agent.contact import Contact
from redflag_agent.error_log import ErrorLog
from redflag_agent.executor import Evidence, Executor
from redflag_agent.outbox import LAST_CHECK_IN, Outbox
from redflag_agent.progress import line
from redflag_agent.state import StateFile
from redflag_agent.tokens import Tokens, member
from redflag_agent.trust import TrustStore
from redflag_core import codec
from redflag_core.enrolment import AgentStatus
from redflag_core.errors import ExpiredError, MalformedError, VerificationError
from redflag_core.freshness import unix
from redflag_core.messages import CheckIn, CheckInAnswer, OperatingSystem, ScannerState, Versions
from redflag_core.ports import Clock, Entropy
from redflag_core.scanning import ScanStatus

log = logging.getLogger(__name__)

MAX_PACE: Final = 3600
"""Seconds. Longest pause that a server may order: an operator must be able to reach an agent within the hour."""


@attrs.frozen
class _Announcement:
    """What is sent after a start and when it changes."""

    os: OperatingSystem
    versions: Versions
    hostname: str


@attrs.define
class CheckIns:
    """
    Checks in.

    Args:
        tokens: Sends requests with an access token.
        state: What is remembered of the server's word.
        executor: Speaks for the machine.
        trust: The roots and the bundle held.
        outbox: What the scanners last said.
        errors: Errors on their way.
        contact: Told how this agent stands.
        clock: Wall time.
        entropy: Draws report ids.
    """

    tokens: Tokens
    state: StateFile
    executor: Executor
    trust: TrustStore
    outbox: Outbox
    errors: ErrorLog
    contact: Contact
    clock: Clock
    entropy: Entropy
    _announced: _Announcement | None = attrs.field(default=None, init=False)
    _refused_bundle: str | None = attrs.field(default=None, init=False)
    _told_bundle: str | None = attrs.field(default=None, init=False)

    async def check_in(self, *, hold: int = 0) -> CheckInAnswer:
        """
        Check in, and take over what the answer says: status, trust, and which reports are wanted.

        Args:
            hold: Seconds for which the server may wait for a command before it answers.

        Returns:
            The answer; its commands are untrusted.

        Raises:
            RedFlagError: The server cannot be reached or refuses.
            PollCutError: The connection broke while the server held the check-in.
        """
        evidence = self.executor.evidence(replace_machine_id=self.state.state.replace_machine_id)
        await self.tokens.ensure(evidence)
        since = self.contact.mark()
        answer = await self._ask(evidence, hold)
        status = AgentStatus(answer.status)
        self.state.update(status=status.value, status_detail=None)
        self.outbox.note(LAST_CHECK_IN, int(unix(self.clock.now())))
        await self._refresh_trust(answer.bundle)
        for scanner in answer.reports_wanted:
            if self.contact.is_current(scanner, since):
                self.outbox.send_again(scanner, report_id=self._new_id())
        self.contact.told(status, answer.report_bases, since=since)
        return answer

    async def _ask(self, evidence: Evidence, hold: int) -> CheckInAnswer:
        now = _Announcement(host.operating_system(), host.versions(), host.hostname())
        news = None if now == self._announced else now
        body = CheckIn(
            v=1,
            state=self.tokens.executor_state(),
            boot_id=evidence.boot_id,
            scanners=tuple(
                ScannerState(run.scanner, ScanStatus(run.status), run.hash, run.taken_at, run.content)
                for run in self.outbox.runs()
            ),
            # The access token vouches for the evidence: `ensure` renews it whenever the evidence changes.
            evidence=None,
            os=news.os if news else None,
            versions=news.versions if news else None,
            hostname=news.hostname if news else None,
            wait=hold,
        )
        wire = await self.tokens.post("/agent/check-in", codec.dump(body), evidence, hold=hold)
        answer = codec.parse(CheckInAnswer, wire, max_bytes=len(wire))
        if answer.status not in set(AgentStatus):
            raise MalformedError("the server gave this agent a status that this release does not know")
        self._announced = now
        facts = {"status": answer.status, "next": answer.next_check_in_seconds, "held": hold or None}
        log.debug(line("checked_in", **facts, commands=len(answer.commands) or None))
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

    def _new_id(self) -> str:
        return str(uuid.UUID(bytes=self.entropy.token(16), version=4))


def pace(answer: CheckInAnswer) -> float:
    """Seconds until the next check-in: what the server says, never a hot loop and never a week."""
    return float(min(max(answer.next_check_in_seconds, 1), MAX_PACE))
