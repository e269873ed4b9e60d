"""Errors of agents: equal ones are one row with a count."""

import hashlib
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.encoding import dump_json
from redflag_core.messages import ClientError as WireError
from redflag_core.messages import Errors
from redflag_server.checkin.authentication import VerifiedAgent
from redflag_server.checkin.claims import recheck
from redflag_server.client_errors.tables import ClientError, ErrorBatch
from redflag_server.events.recorder import record
from redflag_server.problems import ConflictError
from redflag_server.runtime import Runtime

MAX_KINDS: Final = 500
"""Kinds of errors kept for one agent: far more than anybody reads, and at most some megabytes."""


async def accept_errors(runtime: Runtime, sender: VerifiedAgent, body: Errors) -> None:
    """
    Store a batch of errors, once.

    Raises:
        ConflictError: The batch id was used by another agent.
    """
    agent_id, organization_id = sender.entry.agent_id, sender.organization_id
    async with runtime.database.write() as session:
        await recheck(session, sender.entry)
        now = runtime.clock.now()
        batch = await session.get(ErrorBatch, UUID(body.batch_id))
        if batch is not None:
            if batch.agent_id != agent_id:
                raise ConflictError("this batch id was used already: make a new one for each batch")
            return
        session.add(
            ErrorBatch(id=UUID(body.batch_id), organization_id=organization_id, agent_id=agent_id, received_at=now)
        )
        for error in body.errors:
            digest = _digest(error)
            query = select(ClientError).where(ClientError.agent_id == agent_id, ClientError.digest == digest)
            known = (await session.scalars(query)).one_or_none()
            if known is None:
                session.add(_new(error, digest, agent_id, organization_id))
            else:
                known.count += error.count
                known.last_seen_at = max(known.last_seen_at, _time(error.last_seen))
            await session.flush()
        forgotten = await _forget_oldest(session, agent_id)
        if body.dropped or forgotten:
            await record(
                session,
                at=now,
                kind="agent.errors_dropped",
                actor=f"agent:{agent_id}",
                message=f"Errors are missing: the agent dropped {body.dropped}, the server {forgotten} kinds.",
                organization_id=organization_id,
                agent_id=agent_id,
                data={"dropped": body.dropped, "forgotten": forgotten},
            )


async def _forget_oldest(session: AsyncSession, agent_id: UUID) -> int:
    """Keep the newest `MAX_KINDS` kinds of errors of an agent: one machine must not fill the disk."""
    oldest = (
        select(ClientError.id)
        .where(ClientError.agent_id == agent_id)
        .order_by(ClientError.last_seen_at.desc(), ClientError.id.desc())
        .offset(MAX_KINDS)
    )
    ids = (await session.scalars(oldest)).all()
    if ids:
        await session.execute(delete(ClientError).where(ClientError.id.in_(ids)))
    return len(ids)


def _digest(error: WireError) -> str:
    """What makes two errors the same."""
    parts = [error.subsystem, error.type, error.message, error.stack]
    return hashlib.sha256(dump_json(parts)).hexdigest()


def _new(error: WireError, digest: str, agent_id: UUID, organization_id: UUID) -> ClientError:
    return ClientError(
        organization_id=organization_id,
        agent_id=agent_id,
        digest=digest,
        subsystem=error.subsystem,
        type=error.type,
        message=error.message,
        stack=error.stack,
        context=error.context,
        count=error.count,
        first_seen_at=_time(error.first_seen),
        last_seen_at=_time(error.last_seen),
    )


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)
