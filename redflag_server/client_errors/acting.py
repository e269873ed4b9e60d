"""What operators do with errors: resolve and delete. Each is an event; to resolve again changes nothing."""

from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from redflag_server.client_errors.listing import error_item
from redflag_server.client_errors.schema import Deleted, ErrorItem
from redflag_server.client_errors.tables import ClientError
from redflag_server.db.scope import Scope
from redflag_server.events.recorder import record
from redflag_server.problems import NotFoundError
from redflag_server.runtime import Runtime


async def resolve_error(runtime: Runtime, visible: Scope, error_id: UUID, note: str) -> ErrorItem:
    """
    Take an error for resolved. Seen again, it is open again.

    Args:
        runtime: The server.
        visible: Who does it.
        error_id: Which.
        note: What was done about it.

    Raises:
        NotFoundError: No such error, or not for the caller to see.
    """
    async with runtime.database.write() as session:
        error, now = await _found(session, visible, error_id), runtime.clock.now()
        if error.resolved_at is None:
            error.resolved_at, error.resolved_by, error.resolution = now, visible.caller.actor, note
            await _tell(session, visible, error, note, kind="error.resolved", at=now)
        return error_item(error)


async def delete_error(runtime: Runtime, visible: Scope, error_id: UUID, reason: str) -> Deleted:
    """
    Delete an error. Seen again, it is a new one.

    Args:
        runtime: The server.
        visible: Who does it.
        error_id: Which.
        reason: Why, for the event.

    Raises:
        NotFoundError: No such error, or not for the caller to see.
    """
    async with runtime.database.write() as session:
        error, now = await _found(session, visible, error_id), runtime.clock.now()
        await session.delete(error)
        await _tell(session, visible, error, reason, kind="error.deleted", at=now)
    return Deleted(error_id)


async def _found(session: AsyncSession, visible: Scope, error_id: UUID) -> ClientError:
    query = visible.select(ClientError).where(ClientError.id == error_id).with_for_update()
    error: ClientError | None = (await session.scalars(query)).one_or_none()
    if error is None:
        raise NotFoundError("there is no such error")
    return error


async def _tell(
    session: AsyncSession, visible: Scope, error: ClientError, reason: str, *, kind: str, at: datetime
) -> None:
    await record(
        session,
        at=at,
        kind=kind,
        actor=visible.caller.actor,
        message=f"The error {error.type} in {error.subsystem} was {kind.partition('.')[2]}: {reason}",
        organization_id=error.organization_id,
        agent_id=error.agent_id,
        data={"error": str(error.id), "digest": error.digest, "count": error.count, "reason": reason},
    )
