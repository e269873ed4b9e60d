"""What a check-in is answered with, from what was decided: the same for both ways in which it is handled."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

import attrs

from redflag_core.commands import Order
from redflag_core.enrolment import Access, AgentStatus, allows, next_check_in, next_poll
from redflag_core.lifecycle import expected_by
from redflag_core.machine import MachineEvidence
from redflag_core.messages import CheckIn, CheckInAnswer, ExecutorState, ScannerState
from redflag_core.resilience import random_fraction
from redflag_core.scanning import ScanStatus
from redflag_server.agents.statements import open_evidence, open_state
from redflag_server.checkin.authentication import VerifiedAgent
from redflag_server.checkin.claims import AgentRequest
from redflag_server.checkin.picture import Trust
from redflag_server.runtime import Runtime


@attrs.frozen
class CheckInRequest:
    """
    One verified check-in.

    Attributes:
        entry: The verified request, not yet claimed.
        body: What it says.
        state: Verified state of the executor.
        evidence: Verified evidence, None when the access token vouches for it.
        hold: Seconds for which it will be held open if there is nothing to do; None for an answer at once.
    """

    entry: AgentRequest
    body: CheckIn
    state: ExecutorState
    evidence: MachineEvidence | None
    hold: float | None = None

    @property
    def reported(self) -> Order:
        """How far the executor says it has come."""
        return Order(self.state.epoch, self.state.gen, self.state.seq)


@attrs.frozen
class CheckedIn:
    """
    What a check-in came to.

    Attributes:
        answer: The answer.
        waits: Whether it is worth waiting for commands: the agent may be given some, and there are none now.
        again: When there will be something that is not due now, or None.
    """

    answer: CheckInAnswer
    waits: bool = False
    again: datetime | None = None


class KnownScan(Protocol):
    """What is on record of one scanner of one agent."""

    @property
    def status(self) -> str:
        """Whether it could tell."""

    @property
    def inventory_hash(self) -> str | None:
        """Of the inventory that is held."""

    @property
    def content(self) -> str | None:
        """Digest of all that its last report said."""

    @property
    def taken_at(self) -> datetime:
        """When it looked last."""


def check_in_request(
    sender: VerifiedAgent, body: CheckIn, server: str, *, hold: float | None = None
) -> CheckInRequest:
    """
    Verify what the executor signed in a check-in.

    Raises:
        VerificationError: It did not sign it.
    """
    evidence = None if body.evidence is None else open_evidence(body.evidence, sender.executor_key)
    state = open_state(body.state, sender.executor_key, server=server, agent_id=sender.entry.agent_id)
    return CheckInRequest(sender.entry, body, state, evidence, hold)


def scans_of(request: CheckInRequest, status: AgentStatus) -> Sequence[ScannerState]:
    """What is said of scanners, by an agent that may say something."""
    return request.body.scanners if allows(status, Access.STORE) else ()


def is_news(scan: ScannerState, known: KnownScan | None) -> bool:
    """Whether the server does not hold what this scanner last saw."""
    if known is None or known.status != scan.status:
        return True
    if scan.content is not None and scan.content != known.content:
        return True
    return scan.status == ScanStatus.OK and known.inventory_hash != scan.hash


def is_later(scan: ScannerState, known: KnownScan | None) -> bool:
    """Whether this scanner looked again and saw the same."""
    if known is None or is_news(scan, known) or scan.status != ScanStatus.OK:
        return False
    return scan.taken_at > known.taken_at.timestamp()


def pace(runtime: Runtime, request: CheckInRequest, now: datetime, *, polls: bool) -> tuple[int, datetime]:
    """Seconds until an agent should come back, and until when it is expected at the latest."""
    base, jitter = runtime.settings.check_in_seconds, random_fraction(runtime.entropy)
    pause = next_poll(jitter=jitter) if polls else next_check_in(base=base, jitter=jitter)
    away = pause + (request.hold or 0.0 if polls else 0.0)
    return pause, expected_by(now, pause=away, base=base)


def answer_of(
    request: CheckInRequest,
    status: AgentStatus,
    known: Mapping[str, KnownScan],
    trust: Trust,
    *,
    now: datetime,
    pause: int,
    commands: tuple[str, ...] = (),
) -> CheckInAnswer:
    """
    The answer.

    Args:
        request: The check-in.
        status: The agent's status after it.
        known: What is on record of its scanners, by name.
        trust: The bundle it should hold.
        now: Database time, aware UTC.
        pause: Seconds until it should come back.
        commands: Signed commands, envelopes in base64.
    """
    return CheckInAnswer(
        v=1,
        server_time=int(now.timestamp()),
        status=status,
        next_check_in_seconds=pause,
        reports_wanted=tuple(
            scan.scanner for scan in scans_of(request, status) if is_news(scan, known.get(scan.scanner))
        ),
        report_bases={name: scan.inventory_hash for name, scan in known.items() if scan.inventory_hash},
        epoch=trust.epoch,
        bundle_version=trust.version,
        bundle=trust.digest,
        commands=commands,
    )
