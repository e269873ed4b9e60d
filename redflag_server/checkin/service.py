"""
`check_in`: one batch of verified check-ins in, one answer for each out.

Those that say nothing new are handled together (`checkin.plain`), the rest in a transaction with locks. One that
is held open looks again with `look_again`, which is a transaction of its own.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from itertools import compress
from typing import Any
from uuid import UUID

import attrs
from sqlalchemy import select, update
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core import codec
from redflag_core.command_queue import may_hand_out, takes_commands
from redflag_core.commands import Order
from redflag_core.enrolment import AgentStatus
from redflag_core.errors import RedFlagError
from redflag_core.messages import ScannerState
from redflag_server.agents.admission import Outcome, admit, follow_order
from redflag_server.checkin.answers import CheckedIn, CheckInRequest, answer_of, is_later, pace, scans_of
from redflag_server.checkin.claims import charge, recheck
from redflag_server.checkin.picture import Mark, Picture, Trust
from redflag_server.checkin.plain import judge
from redflag_server.commands.leasing import Taken, agents_with_commands, take_turn
from redflag_server.packages.tables import Scanner
from redflag_server.runtime import Runtime
from redflag_server.trust.tables import ServerState, TrustDocument


@attrs.frozen
class _Common:
    """What answers are made from. ``scanners``: rows by agent and name; ``ordered``: agents that have commands."""

    now: datetime
    trust: Trust
    scanners: Mapping[UUID, Mapping[str, Any]]
    ordered: AbstractSet[UUID]


async def check_in(runtime: Runtime, batch: Sequence[CheckInRequest]) -> list[CheckedIn | RedFlagError]:
    """
    Answer a batch of check-ins.

    Claims the nonces, charges the rate limits, judges machine, boot and executor, stores what is new, says what is
    wanted and hands out commands.

    Args:
        runtime: The server.
        batch: Verified check-ins, in order of arrival.

    Returns:
        An answer or a refusal for each, in the same order.
    """
    now = runtime.clock.now()
    results: list[CheckedIn | RedFlagError | None] = []

    def judge_all(picture: Picture) -> list[Mark]:
        judged, marks = judge(runtime, batch, picture, now)
        results.extend(judged)
        return marks

    uses = {request.entry.nonce_use for request in batch}
    agents = {request.entry.agent_id for request in batch}
    unstored = await runtime.gate.run(uses, agents, judge_all, now)
    left = [_is_left(request, result, unstored) for request, result in zip(batch, results, strict=True)]
    others = iter(await _check_in_others(runtime, list(compress(batch, left)), unstored))
    return [next(others) if is_left else result for result, is_left in zip(results, left, strict=True)]  # type: ignore[misc]


def _is_left(
    request: CheckInRequest, result: CheckedIn | RedFlagError | None, unstored: AbstractSet[UUID]
) -> bool:
    """Whether a request passed the gate and is not answered yet, or its answer was not stored."""
    return not isinstance(result, RedFlagError) and (result is None or request.entry.agent_id in unstored)


async def _check_in_others(
    runtime: Runtime, batch: Sequence[CheckInRequest], uncharged: AbstractSet[UUID]
) -> list[Any]:
    """Check-ins that passed the gate and say something new, together; each alone when one spoils it for all."""
    if not batch:
        return []
    try:
        return await _with_locks(runtime, batch, uncharged)
    except (DataError, IntegrityError):
        if len(batch) == 1:
            raise
        return [result for request in batch for result in await _alone(runtime, request, uncharged)]


async def _alone(runtime: Runtime, request: CheckInRequest, uncharged: AbstractSet[UUID]) -> list[Any]:
    try:
        return [*await _with_locks(runtime, [request], uncharged)]
    except (DataError, IntegrityError) as error:
        return [error]


async def _with_locks(
    runtime: Runtime, batch: Sequence[CheckInRequest], uncharged: AbstractSet[UUID]
) -> list[CheckedIn | RedFlagError]:
    async with runtime.database.write() as session:
        now = runtime.clock.now()
        # Locked in the order of their ids: crossing batches of two replicas must not wait in a circle.
        inner = sorted(range(len(batch)), key=lambda place: batch[place].entry.agent_id)
        common = await _common(session, now, sorted({request.entry.agent_id for request in batch}))
        results = {place: await _one(session, runtime, batch[place], common, uncharged) for place in inner}
        return [results[place] for place in range(len(batch))]


async def _one(
    session: AsyncSession,
    runtime: Runtime,
    request: CheckInRequest,
    common: _Common,
    uncharged: AbstractSet[UUID],
) -> CheckedIn | RedFlagError:
    try:
        if request.entry.agent_id in uncharged:
            await charge(session, request.entry, now=common.now, policies=runtime.policies)
        agent = await recheck(session, request.entry)
        return await _answer(session, runtime, request, agent, common)
    except RedFlagError as refusal:
        return refusal


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


async def _answer(
    session: AsyncSession, runtime: Runtime, request: CheckInRequest, agent: Any, common: _Common
) -> CheckedIn | RedFlagError:
    outcome = await admit(session, agent, request.evidence, request.body.boot_id, common.now)
    if outcome.refusal is not None:
        await outcome.store(session)
        return outcome.refusal
    follow_order(outcome, request.state, common.trust.epoch)
    outcome.changes.update(_news(request, common.now))
    scans = scans_of(request, AgentStatus(outcome.value("status")))
    await _note_scans(session, scans, common.scanners.get(agent.id, {}))
    return await _finish(session, runtime, request, outcome, common)


async def _finish(
    session: AsyncSession, runtime: Runtime, request: CheckInRequest, outcome: Outcome, common: _Common
) -> CheckedIn:
    """Hand out what is due, and say when to come back."""
    status, agent_id = AgentStatus(outcome.value("status")), request.entry.agent_id
    takes = takes_commands(status, held_epoch=request.state.epoch, epoch=common.trust.epoch)
    takes = takes and may_hand_out(request.reported, _recorded(outcome))
    pause, expected = pace(runtime, request, common.now, polls=takes and request.hold is not None)
    outcome.changes["next_check_in_at"] = expected
    await outcome.store(session)
    taken = Taken()
    if takes and agent_id in common.ordered:
        taken = await take_turn(session, runtime, agent_id, common.now)
    known = common.scanners.get(agent_id, {})
    answer = answer_of(request, status, known, common.trust, now=common.now, pause=pause, commands=taken.envelopes)
    return CheckedIn(answer, waits=takes and not taken.envelopes, again=taken.again)


def _recorded(outcome: Outcome) -> Order:
    return Order(outcome.value("epoch"), outcome.value("gen"), outcome.value("seq"))


async def _common(session: AsyncSession, now: datetime, agents: Sequence[UUID]) -> _Common:
    epoch = (await session.scalars(select(ServerState.epoch))).one()
    newest = select(TrustDocument.version, TrustDocument.digest).where(TrustDocument.kind == "bundle")
    version, digest = (await session.execute(newest.order_by(TrustDocument.version.desc()).limit(1))).one()
    scanners, ordered = await _scanners(session, agents), await agents_with_commands(session, agents)
    return _Common(now, Trust(epoch, version, digest), scanners, ordered)


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


async def _note_scans(session: AsyncSession, scans: Sequence[ScannerState], known: Mapping[str, Any]) -> None:
    """An inventory that did not change is not sent again: note that it was looked at."""
    for scan in scans:
        row = known.get(scan.scanner)
        if row is None or not is_later(scan, row):
            continue
        taken_at = datetime.fromtimestamp(scan.taken_at, tz=UTC)
        await session.execute(
            update(Scanner)
            .where(Scanner.id == row.id)
            .values(taken_at=taken_at, succeeded_at=taken_at)
            .execution_options(synchronize_session=False)
        )
