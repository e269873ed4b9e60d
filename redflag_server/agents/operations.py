"""What operators do with machines: approve, release, revoke. Each is an event; doing it again changes nothing."""

from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core import codec
from redflag_core.enrolment import REFRESH_SECONDS, AgentStatus
from redflag_core.lifecycle import AgentAction, permits, result_of
from redflag_core.machine import MachineEvidence
from redflag_server.agents.tables import Agent
from redflag_server.commands.queue import end_all
from redflag_server.db.engine import wake_after_commit
from redflag_server.db.locks import Lock, take
from redflag_server.db.scope import Scope
from redflag_server.events.recorder import record
from redflag_server.problems import ConflictError, NotFoundError
from redflag_server.runtime import Runtime

_DONE: Final = {
    AgentAction.APPROVE: "approved",
    AgentAction.RELEASE: "released",
    AgentAction.REVOKE: "revoked",
}


async def act(runtime: Runtime, visible: Scope, agent_id: UUID, action: AgentAction, reason: str) -> None:
    """
    Do *action* with a machine.

    Approving changed hardware makes it the hardware on record; approving an executor that was rolled back makes
    what it reports next the record. Releasing and revoking end every access token; a released machine asks for a
    new one, with the refresh secret that is due. Two that still use one key quarantine each other again. Whatever
    waited for a revoked machine ends: it is never to be asked again.

    Args:
        runtime: The server.
        visible: Who does it.
        agent_id: The machine.
        action: What to do.
        reason: Why, for the event.

    Raises:
        NotFoundError: No such machine, or not for the caller to see.
        ConflictError: Its status does not allow it.
    """
    now = runtime.clock.now()
    async with runtime.database.write() as session:
        query = visible.select(Agent).where(Agent.id == agent_id).with_for_update(key_share=True)
        agent: Agent | None = (await session.scalars(query)).one_or_none()
        if agent is None:
            raise NotFoundError("there is no such machine")
        before = AgentStatus(agent.status)
        if before is result_of(action):
            return
        if not permits(before, action):
            raise ConflictError(f"{agent.hostname} is {before}: it cannot be {_DONE[action]}")
        await _change(session, agent, action, now)
        agent.status, agent.status_at, agent.status_reason = result_of(action), now, reason
        wake_after_commit(session, agent.id)
        await record(
            session,
            at=now,
            kind=f"agent.{_DONE[action]}",
            actor=visible.caller.actor,
            message=f"{agent.hostname} was {_DONE[action]}: {reason}",
            organization_id=agent.organization_id,
            agent_id=agent.id,
            data={"before": before, "reason": reason},
        )
        if action is AgentAction.REVOKE:
            await end_all(session, visible.caller.actor, agent.id, reason, now)


async def _change(session: AsyncSession, agent: Agent, action: AgentAction, now: datetime) -> None:
    if action is not AgentAction.APPROVE:
        agent.token_version += 1
        # Who comes first after a release says which boot is the current one.
        agent.boot_id = agent.previous_boot_id = None
        return
    if agent.status == AgentStatus.RENEWAL_PENDING:
        agent.refresh_expires_at = int((now + timedelta(seconds=REFRESH_SECONDS)).timestamp())
    if agent.status == AgentStatus.EXECUTOR_ROLLED_BACK:
        agent.epoch = agent.gen = agent.seq = agent.order_at = 0
    if agent.status == AgentStatus.HARDWARE_CHANGED and agent.presented_evidence is not None:
        await _adopt(session, agent, agent.presented_evidence, now)


async def _adopt(session: AsyncSession, agent: Agent, presented: dict[str, Any], now: datetime) -> None:
    """Make the hardware that was shown the hardware on record."""
    evidence = codec.structure(MachineEvidence, presented)
    await _refuse_duplicate(session, agent, evidence)
    agent.evidence, agent.evidence_digest = presented, evidence.digest
    agent.machine_binding = evidence.binding
    agent.presented_evidence = agent.mismatch_since = None
    agent.last_match_at = now


async def _refuse_duplicate(session: AsyncSession, agent: Agent, evidence: MachineEvidence) -> None:
    """A machine id belongs to one machine of the installation, whoever may see it."""
    await take(session, Lock.MACHINE, evidence.binding)
    query = select(Agent.id).where(
        Agent.machine_binding == evidence.binding, Agent.id != agent.id, Agent.status != AgentStatus.REVOKED
    )
    if (await session.scalars(query.limit(1))).first() is not None:
        raise ConflictError(
            f"the hardware that {agent.hostname} shows is another machine here: revoke one of them"
        )
