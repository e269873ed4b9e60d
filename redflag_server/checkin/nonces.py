"""Nonces in the database: one statement claims a batch, a job forgets what is too old to pass anyway."""

from collections.abc import Sequence

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.freshness import next_horizon
from redflag_server.checkin.picture import NonceUse
from redflag_server.checkin.tables import Nonce
from redflag_server.events.recorder import record
from redflag_server.runtime import Runtime
from redflag_server.trust.tables import ServerState


async def nonce_horizon(session: AsyncSession) -> int:
    """The horizon. It stays until the transaction ends: what is claimed above it is not forgotten meanwhile."""
    return (await session.scalars(select(ServerState.nonce_horizon).with_for_update(read=True))).one()


async def claim_nonces(session: AsyncSession, uses: Sequence[NonceUse], *, horizon: int) -> set[NonceUse]:
    """
    Claim nonces for their one use.

    Args:
        session: The open write transaction.
        uses: What is claimed. One that is there twice is claimed once: the caller decides for whom.
        horizon: Nothing created at or below it can be claimed any more.

    Returns:
        The uses that were free until now.
    """
    # Sorted: crossing batches of two replicas must not wait for each other in a circle.
    rows = [use._asdict() for use in sorted(set(uses)) if use.created > horizon]
    if not rows:
        return set()
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(Nonce).values(rows).on_conflict_do_nothing()
    result = await session.execute(statement.returning(Nonce.created, Nonce.key_id, Nonce.nonce))
    return {NonceUse(*row) for row in result}


async def purge_nonces(runtime: Runtime) -> None:
    """
    Forget nonces that no request can use any more. The horizon is stored first, so none becomes free again.

    A horizon that is further ahead than a restore sets it was stored while the clock was wrong. It is set to the
    end of the tolerance: everything signed until now stays refused, and agents come in again within minutes.
    """
    now = runtime.clock.now()
    async with runtime.database.write() as session:
        stored = (await session.scalars(select(ServerState.nonce_horizon).with_for_update(key_share=True))).one()
        horizon = next_horizon(stored, now)
        if horizon == stored:
            return
        if horizon < stored:
            message = "The server's clock was far ahead and was set back: requests signed before are refused."
            await record(session, at=now, kind="server.clock_set_back", actor="server", message=message)
        await session.execute(update(ServerState).values(nonce_horizon=horizon))
    async with runtime.database.write() as session:
        await session.execute(delete(Nonce).where(Nonce.created <= horizon))
