"""Errors of agents: accepted once, without secrets, equal ones counted in one row."""

import asyncio
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.error_reports import kinds_of
from redflag_core.messages import Errors
from redflag_server.checkin.authentication import VerifiedAgent
from redflag_server.checkin.claims import recheck
from redflag_server.client_errors.storing import Owner, count_errors
from redflag_server.client_errors.tables import ErrorBatch, ErrorSource
from redflag_server.events.recorder import record
from redflag_server.problems import ConflictError
from redflag_server.runtime import Runtime


async def accept_errors(runtime: Runtime, sender: VerifiedAgent, body: Errors) -> None:
    """
    Store a batch of errors, once.

    Args:
        runtime: The server.
        sender: Who sent it.
        body: The batch; what it says is untrusted, and may hold secrets.

    Raises:
        ConflictError: The batch id was used by another agent.
    """
    owner = Owner(ErrorSource.AGENT, sender.organization_id, sender.entry.agent_id)
    # To search the largest batch for secrets takes a second: other requests must not wait for it.
    kinds = await asyncio.to_thread(kinds_of, body.errors)
    async with runtime.database.write() as session:
        await recheck(session, sender.entry)
        now = runtime.clock.now()
        if not await _is_first(session, owner, UUID(body.batch_id), now):
            return
        forgotten = await count_errors(session, owner, kinds, now)
        if body.dropped or forgotten:
            await _tell_of_missing(session, owner, body.dropped, forgotten, now)


async def _is_first(session: AsyncSession, owner: Owner, batch_id: UUID, now: datetime) -> bool:
    """Claim the id of a batch; False if it was accepted before."""
    dialect: Any = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    claim = dialect.insert(ErrorBatch).values(
        id=batch_id, organization_id=owner.organization_id, agent_id=owner.agent_id, received_at=now
    )
    result: Any = await session.execute(claim.on_conflict_do_nothing())
    if result.rowcount:
        return True
    of = await session.scalar(select(ErrorBatch.agent_id).where(ErrorBatch.id == batch_id))
    if of != owner.agent_id:
        raise ConflictError("this batch id was used already: make a new one for each batch")
    return False


async def _tell_of_missing(
    session: AsyncSession, owner: Owner, dropped: int, forgotten: int, now: datetime
) -> None:
    await record(
        session,
        at=now,
        kind="agent.errors_dropped",
        actor=f"agent:{owner.agent_id}",
        message=f"Errors are missing: the agent dropped {dropped}, the server {forgotten} kinds.",
        organization_id=owner.organization_id,
        agent_id=owner.agent_id,
        data={"dropped": dropped, "forgotten": forgotten},
    )
