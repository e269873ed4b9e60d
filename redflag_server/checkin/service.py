"""
`check_in`: one batch of verified check-ins in, one answer for each out, in one transaction.

How batches are made can change without anybody noticing. One that is held open looks again with `look_again`,
which is a transaction of its own.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import attrs
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core import codec
from redflag_core.command_queue import may_hand_out, takes_commands
from redflag_core.commands import Order
from redflag_core.enrolment import Access, AgentStatus, allows, next_check_in, next_poll
from redflag_core.errors import RedFlagError
from redflag_core.lifecycle import expected_by
from redflag_core.machine import MachineEvidence
from redflag_core.messages import CheckIn, CheckInAnswer, ExecutorState, ScannerState
from redflag_core.resilience import random_fraction
from redflag_core.scanning import ScanStatus
from redflag_server.agents.admission import Outcome, admit, follow_order
from redflag_server.agents.statements import open_evidence, open_state
from redflag_server.checkin.authentication import VerifiedAgent
from redflag_server.checkin.claims import AgentRequest, claim, recheck
from redflag_server.commands.leasing import Taken, agents_with_commands, take_turn
from redflag_server.packages.tables import Scanner
from redflag_server.runtime import Runtime
from redflag_server.trust.tables import ServerState, TrustDocument


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


@attrs.frozen
class _Common:
    """What answers are made from. ``scanners``: rows by agent and name; ``ordered``: agents that have commands."""

    now: datetime
    epoch: int
    bundle_version: int
    bundle: str
    scanners: Mapping[UUID, Mapping[str, Any]]
    ordered: AbstractSet[UUID]


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


async def check_in(runtime: Runtime, batch: Sequence[CheckInRequest]) -> list[CheckedIn | RedFlagError]:
    """
    Answer a batch of check-ins.

    Claims the nonces, charges the rate limits, judges machine, boot and executor, stores what is new, says what is
    wanted and hands out commands, for all of them in one transaction.

    Args:
        runtime: The server.
        batch: Verified check-ins, in order of arrival.

    Returns:
        An answer or a refusal for each, in the same order.
    """
    async with runtime.database.write() as session:
        now = runtime.clock.now()
        entries = [request.entry for request in batch]
        gate = await claim(session, entries, now=now, policy=runtime.settings.agent_limit)
        passed = [result.id for result in gate if not isinstance(result, RedFlagError)]
        common = await _common(session, now, passed)
        answers: list[CheckedIn | RedFlagError] = []
        seen: set[UUID] = set()
        for request, result in zip(batch, gate, strict=True):
            if isinstance(result, RedFlagError):
                answers.append(result)
                continue
            # What an earlier request of this batch changed, another of the same agent must see.
            agent = await _again(session, request) if result.id in seen else result
            seen.add(result.id)
            if isinstance(agent, RedFlagError):
                answers.append(agent)
                continue
            answers.append(await _answer(session, runtime, request, agent, common))
        return answers


async def look_again(runtime: Runtime, request: CheckInRequest) -> CheckedIn:
    """
    Look for commands of a check-in that passed the gate before and was held open since.

    Args:
        runtime: The server.
        request: The check-in; ``hold`` is for how long it will be held open from now on.

    Raises:
        RedFlagError: The agent was cut off meanwhile.
    """
    async with runtime.database.write() as session:
        now = runtime.clock.now()
        agent = await recheck(session, request.entry)
        common = await _common(session, now, [agent.id])
        return await _finish(session, runtime, request, Outcome(agent, now), common)


async def _again(session: AsyncSession, request: CheckInRequest) -> Any:
    try:
        return await recheck(session, request.entry)
    except RedFlagError as refusal:
        return refusal


async def _answer(
    session: AsyncSession, runtime: Runtime, request: CheckInRequest, agent: Any, common: _Common
) -> CheckedIn | RedFlagError:
    outcome = await admit(session, agent, request.evidence, request.body.boot_id, common.now)
    if outcome.refusal is not None:
        await outcome.store(session)
        return outcome.refusal
    follow_order(outcome, request.state, common.epoch)
    outcome.changes.update(_news(request, common.now))
    await _note_scans(session, _scans(request, outcome), common.scanners.get(agent.id, {}))
    return await _finish(session, runtime, request, outcome, common)


async def _finish(
    session: AsyncSession, runtime: Runtime, request: CheckInRequest, outcome: Outcome, common: _Common
) -> CheckedIn:
    """Hand out what is due, and say when to come back."""
    status, agent_id = AgentStatus(outcome.value("status")), request.entry.agent_id
    takes = takes_commands(status, held_epoch=request.state.epoch, epoch=common.epoch)
    takes = takes and may_hand_out(_order_of(request.state), _recorded(outcome))
    polls = takes and request.hold is not None
    pause = _pause(runtime, polls=polls)
    away = pause + (request.hold or 0.0 if polls else 0.0)
    outcome.changes["next_check_in_at"] = expected_by(
        common.now, pause=away, base=runtime.settings.check_in_seconds
    )
    await outcome.store(session)
    taken = Taken()
    if takes and agent_id in common.ordered:
        taken = await take_turn(session, runtime, agent_id, common.now)
    answer = _answer_of(request, outcome, common, pause=pause, commands=taken.envelopes)
    return CheckedIn(answer, waits=takes and not taken.envelopes, again=taken.again)


def _order_of(state: ExecutorState) -> Order:
    return Order(state.epoch, state.gen, state.seq)


def _recorded(outcome: Outcome) -> Order:
    return Order(outcome.value("epoch"), outcome.value("gen"), outcome.value("seq"))


def _pause(runtime: Runtime, *, polls: bool) -> int:
    jitter = random_fraction(runtime.entropy)
    if polls:
        return next_poll(jitter=jitter)
    return next_check_in(base=runtime.settings.check_in_seconds, jitter=jitter)


def _scans(request: CheckInRequest, outcome: Outcome) -> Sequence[ScannerState]:
    """What is said of scanners, by an agent that may say something."""
    return request.body.scanners if allows(AgentStatus(outcome.value("status")), Access.STORE) else ()


def _answer_of(
    request: CheckInRequest, outcome: Outcome, common: _Common, *, pause: int, commands: tuple[str, ...]
) -> CheckInAnswer:
    known, scans = common.scanners.get(request.entry.agent_id, {}), _scans(request, outcome)
    return CheckInAnswer(
        v=1,
        server_time=int(common.now.timestamp()),
        status=outcome.value("status"),
        next_check_in_seconds=pause,
        reports_wanted=tuple(scan.scanner for scan in scans if _is_news(scan, known.get(scan.scanner))),
        report_bases={name: row.inventory_hash for name, row in known.items() if row.inventory_hash},
        epoch=common.epoch,
        bundle_version=common.bundle_version,
        bundle=common.bundle,
        commands=commands,
    )


async def _common(session: AsyncSession, now: datetime, agents: Sequence[UUID]) -> _Common:
    epoch = (await session.scalars(select(ServerState.epoch))).one()
    newest = select(TrustDocument.version, TrustDocument.digest).where(TrustDocument.kind == "bundle")
    version, digest = (await session.execute(newest.order_by(TrustDocument.version.desc()).limit(1))).one()
    scanners, ordered = await _scanners(session, agents), await agents_with_commands(session, agents)
    return _Common(now, epoch, version, digest, scanners, ordered)


async def _scanners(session: AsyncSession, ids: Sequence[UUID]) -> dict[UUID, dict[str, Any]]:
    columns = (
        Scanner.id,
        Scanner.agent_id,
        Scanner.name,
        Scanner.status,
        Scanner.inventory_hash,
        Scanner.content,
        Scanner.taken_at,
    )
    found: dict[UUID, dict[str, Any]] = {}
    for row in await session.execute(select(*columns).where(Scanner.agent_id.in_(ids))):
        found.setdefault(row.agent_id, {})[row.name] = row
    return found


def _news(request: CheckInRequest, now: datetime) -> dict[str, Any]:
    """What a check-in says that is new."""
    body = request.body
    changes: dict[str, Any] = {"last_seen_at": now, "last_address": request.entry.address}
    if body.hostname is not None:
        changes["hostname"] = body.hostname
    if body.os is not None:
        changes["os"] = codec.unstructure(body.os)
    if body.versions is not None:
        changes.update(agent_version=body.versions.agent, protocol=list(body.versions.protocol))
    return changes


def _is_news(scan: ScannerState, known: Any) -> bool:
    """Whether the server does not hold what this scanner last saw."""
    if known is None or known.status != scan.status:
        return True
    if scan.content is not None and scan.content != known.content:
        return True
    return scan.status == ScanStatus.OK and known.inventory_hash != scan.hash


async def _note_scans(session: AsyncSession, scans: Sequence[ScannerState], known: Mapping[str, Any]) -> None:
    """An inventory that did not change is not sent again: note that it was looked at."""
    for scan in scans:
        row = known.get(scan.scanner)
        taken_at = datetime.fromtimestamp(scan.taken_at, tz=UTC)
        if row is None or _is_news(scan, row) or scan.status != ScanStatus.OK or taken_at <= row.taken_at:
            continue
        await session.execute(
            update(Scanner)
            .where(Scanner.id == row.id)
            .values(taken_at=taken_at, succeeded_at=taken_at)
            .execution_options(synchronize_session=False)
        )
