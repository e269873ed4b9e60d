"""What time does to agents."""

from datetime import timedelta

from sqlalchemy import select

from redflag_core.enrolment import MISMATCH_GRACE_SECONDS, AgentStatus
from redflag_server.agents.tables import Agent
from redflag_server.db.engine import wake_after_commit
from redflag_server.events.recorder import record
from redflag_server.runtime import Runtime


async def mark_changed_hardware(runtime: Runtime) -> None:
    """Agents that for a day showed only other hardware wait for an operator's approval."""
    now = runtime.clock.now()
    since = now - timedelta(seconds=MISMATCH_GRACE_SECONDS)
    async with runtime.database.write() as session:
        query = select(Agent).where(
            Agent.status == AgentStatus.ACTIVE, Agent.mismatch_since <= since, Agent.last_match_at <= since
        )
        for agent in await session.scalars(query.order_by(Agent.id).with_for_update(key_share=True)):
            agent.status = AgentStatus.HARDWARE_CHANGED
            agent.status_reason = "for a day only other hardware used its key"
            agent.status_at = now
            wake_after_commit(session, agent.id)
            await record(
                session,
                at=now,
                kind="agent.hardware_changed",
                actor="server",
                message=f"{agent.hostname} shows other hardware since a day and waits for approval.",
                organization_id=agent.organization_id,
                agent_id=agent.id,
            )
