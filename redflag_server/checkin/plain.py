"""
Check-ins that say nothing new, almost all of them: judged together, from one look at the database.

What is read is a `Picture`; what follows is a result for each request, and a `Mark` to store for each agent. A
request that says anything new has the result None: it passed the gate, and is handled in a transaction with locks
and events (`checkin.service`). Nothing is decided here that is not decided there, with the same functions of the
core: this is the short way for when nothing changes.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

import attrs

from redflag_core.command_queue import may_hand_out, noted_at, takes_commands
from redflag_core.commands import Order
from redflag_core.enrolment import AgentStatus
from redflag_core.errors import RedFlagError
from redflag_core.machine import BootVerdict, judge_boot
from redflag_core.rate_limit import step
from redflag_server.checkin.answers import (
    CheckedIn,
    CheckInRequest,
    answer_of,
    is_later,
    pace,
    scans_of,
)
from redflag_server.checkin.claims import not_free, refusal_of
from redflag_server.checkin.picture import Mark, Member, Picture, Seen
from redflag_server.problems import RateLimitedError
from redflag_server.rate_limits.classes import RateClass
from redflag_server.runtime import Runtime

Result = CheckedIn | RedFlagError | None


def judge(
    runtime: Runtime, requests: Sequence[CheckInRequest], picture: Picture, now: datetime
) -> tuple[list[Result], list[Mark]]:
    """
    Judge a batch.

    Args:
        runtime: The server: its settings and its randomness.
        requests: Verified check-ins, in order of arrival.
        picture: What was read for them; its ``free`` nonces are used up.
        now: Database time, aware UTC.

    Returns:
        For each request an answer, a refusal, or None: it passed the gate and says something new. And the marks.
    """
    batch = _Batch(runtime, picture, now)
    results = [batch.judge(request) for request in requests]
    return results, list(batch.marks())


@attrs.define
class _Batch:
    """One batch on its way through the gate."""

    runtime: Runtime
    picture: Picture
    now: datetime
    _arrivals: dict[UUID, float] = attrs.field(factory=dict, init=False)
    _seen: dict[UUID, Seen | None] = attrs.field(factory=dict, init=False)
    """Of agents that passed; None when the first request says something new."""

    def judge(self, request: CheckInRequest) -> Result:
        """A refusal, an answer, or None; in the order of `claims.claim`."""
        entry = request.entry
        if entry.nonce_use not in self.picture.free:
            return not_free(entry.request.created, horizon=self.picture.horizon, now=self.now)
        self.picture.free.discard(entry.nonce_use)
        member = self.picture.members.get(entry.agent_id)
        refusal = self._charge(request, member) or refusal_of(entry, member)
        if refusal is not None or member is None:
            return refusal
        if member.id in self._seen:
            return None  # what an earlier request of this batch changes, it must see
        answer, self._seen[member.id] = self._plain(request, member) or (None, None)
        return answer

    def marks(self) -> Iterable[Mark]:
        """What to store, in the order of ids: crossing batches must not wait in a circle."""
        for agent_id, arrival in sorted(self._arrivals.items()):
            yield Mark(agent_id, self.picture.members[agent_id].version, arrival, self._seen.get(agent_id))

    def _charge(self, request: CheckInRequest, member: Member | None) -> RedFlagError | None:
        if member is None:
            return None
        before = self._arrivals.get(member.id, member.rate_arrival)
        policy = self.runtime.policies.required(RateClass.AGENT, request.entry.organization_id)
        self._arrivals[member.id], decision = step(before, self.now.timestamp(), policy)
        return None if decision.allowed else RateLimitedError(decision, RateClass.AGENT)

    def _plain(self, request: CheckInRequest, member: Member) -> tuple[CheckedIn, Seen] | None:
        status, recorded = AgentStatus(member.status), Order(member.epoch, member.gen, member.seq)
        if _says_something(request, member) or request.reported != recorded:
            return None
        if any(is_later(scan, member.scans.get(scan.scanner)) for scan in scans_of(request, status)):
            return None
        takes = takes_commands(status, held_epoch=request.state.epoch, epoch=self.picture.trust.epoch)
        takes = takes and may_hand_out(request.reported, recorded)
        if takes and member.ordered:
            return None
        pause, expected = pace(self.runtime, request, self.now, polls=takes and request.hold is not None)
        answer = answer_of(request, status, member.scans, self.picture.trust, now=self.now, pause=pause)
        order_at = noted_at(request.state.iat, member.order_at, now=self.now)
        return CheckedIn(answer, waits=takes), Seen(request.entry.address, order_at, expected)


def _says_something(request: CheckInRequest, member: Member) -> bool:
    """Whether machine, system or versions may be other than on record."""
    body = request.body
    told = (request.evidence, body.hostname, body.os, body.versions)
    boot = judge_boot(member.boot_id, member.previous_boot_id, body.boot_id)
    return any(each is not None for each in told) or member.mismatched or boot is not BootVerdict.SAME
