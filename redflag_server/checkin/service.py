"""
`check_in`: one batch of verified check-ins in, one answer for each out, in one transaction.

The controller knows nothing else, so how batches are made can change without it.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import attrs
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core import codec
from redflag_core.enrolment import Access, AgentStatus, allows, next_check_in
from redflag_core.errors import RedFlagError
from redflag_core.machine import MachineEvidence
from redflag_core.messages import CheckIn, CheckInAnswer, ExecutorState, ScannerState
from redflag_core.scanning import ScanStatus
from redflag_server.agents.admission import admit
from redflag_server.agents.statements import open_evidence, open_state
from redflag_server.checkin.authentication import VerifiedAgent
from redflag_server.checkin.claims import AgentRequest, claim, recheck
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
    """

    entry: AgentRequest
    body: CheckIn
    state: ExecutorState
    evidence: MachineEvidence | None


@attrs.frozen
class _Common:
    """What the answers of a batch are made from. ``scanners``: rows by agent and name."""

    now: datetime
    epoch: int
    bundle_version: int
    bundle: str
    scanners: Mapping[UUID, Mapping[str, Any]]


def check_in_request(sender: VerifiedAgent, body: CheckIn, server: str) -> CheckInRequest:
    """
    Verify what the executor signed in a check-in.

    Raises:
        VerificationError: It did not sign it.
    """
    evidence = None if body.evidence is None else open_evidence(body.evidence, sender.executor_key)
    state = open_state(body.state, sender.executor_key, server=server, agent_id=sender.entry.agent_id)
    return CheckInRequest(sender.entry, body, state, evidence)


async def check_in(runtime: Runtime, batch: Sequence[CheckInRequest]) -> list[CheckInAnswer | RedFlagError]:
    """
    Answer a batch of check-ins.

    Claims the nonces, charges the rate limits, judges machine and boot, stores what is new and says what is
    wanted, for all of them in one transaction.

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
        answers: list[CheckInAnswer | RedFlagError] = []
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
            jitter = int.from_bytes(runtime.entropy.token(4)) / 2**32
            pause = next_check_in(base=runtime.settings.check_in_seconds, jitter=jitter)
            answers.append(await _answer(session, request, agent, common, pause))
        return answers


async def _again(session: AsyncSession, request: CheckInRequest) -> Any:
    try:
        return await recheck(session, request.entry)
    except RedFlagError as refusal:
        return refusal


async def _answer(
    session: AsyncSession, request: CheckInRequest, agent: Any, common: _Common, pause: int
) -> CheckInAnswer | RedFlagError:
    now = common.now
    outcome = await admit(session, agent, request.evidence, request.body.boot_id, now)
    if outcome.refusal is None:
        outcome.changes.update(_news(agent, request, now, pause))
    await outcome.store(session)
    if outcome.refusal is not None:
        return outcome.refusal
    known = common.scanners.get(agent.id, {})
    scans = request.body.scanners if allows(AgentStatus(agent.status), Access.STORE) else ()
    await _note_scans(session, scans, known)
    return CheckInAnswer(
        v=1,
        server_time=int(now.timestamp()),
        status=agent.status,
        next_check_in_seconds=pause,
        reports_wanted=tuple(scan.scanner for scan in scans if _is_news(scan, known.get(scan.scanner))),
        report_bases={name: row.inventory_hash for name, row in known.items() if row.inventory_hash},
        epoch=common.epoch,
        bundle_version=common.bundle_version,
        bundle=common.bundle,
    )


async def _common(session: AsyncSession, now: datetime, agents: Sequence[UUID]) -> _Common:
    epoch = (await session.scalars(select(ServerState.epoch))).one()
    newest = select(TrustDocument.version, TrustDocument.digest).where(TrustDocument.kind == "bundle")
    version, digest = (await session.execute(newest.order_by(TrustDocument.version.desc()).limit(1))).one()
    return _Common(now, epoch, version, digest, await _scanners(session, agents))


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


def _news(agent: Any, request: CheckInRequest, now: datetime, pause: int) -> dict[str, Any]:
    """What a check-in says that is new."""
    body, state = request.body, request.state
    changes: dict[str, Any] = {
        "last_seen_at": now,
        "last_address": request.entry.address,
        "next_check_in_at": now + timedelta(seconds=pause),
    }
    if body.hostname is not None:
        changes["hostname"] = body.hostname
    if body.os is not None:
        changes["os"] = codec.unstructure(body.os)
    if body.versions is not None:
        changes.update(agent_version=body.versions.agent, protocol=list(body.versions.protocol))
    order = (state.epoch, state.gen, state.seq)
    if order > (agent.epoch, agent.gen, agent.seq):
        changes.update(zip(("epoch", "gen", "seq"), order, strict=True))
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
