"""
Leases: of several processes, one does something.

Whoever takes or renews a lease does so in the transaction that the lease is for. So who lost it while held up
cannot write: the same transaction would have to take it.
"""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import attrs
from sqlalchemy import case, or_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_server.jobs.tables import Lease


@attrs.frozen
class LeaseTerms:
    """
    A lease.

    Attributes:
        name: Of what.
        lasts: How long, unless it is renewed. Much longer than the clocks of replicas differ.
    """

    name: str
    lasts: timedelta


async def hold(session: AsyncSession, terms: LeaseTerms, holder: UUID, now: datetime) -> int | None:
    """
    Take a lease that is free or has lapsed, or renew one's own.

    Nobody else can take it before the end of the transaction.

    Args:
        session: The open write transaction.
        terms: Which lease.
        holder: Who takes it.
        now: Database time.

    Returns:
        Its fence, which goes up whenever somebody else takes it; None when somebody else has it.
    """
    insert = (postgresql if session.get_bind().dialect.name == "postgresql" else sqlite).insert
    values: dict[str, Any] = {"name": terms.name, "holder": holder, "until": now + terms.lasts, "fence": 1}
    statement = insert(Lease).values(values)
    # One that ends far later than any that is given now was given while a clock was wrong.
    lapsed = or_(Lease.until <= now, Lease.until > now + 2 * terms.lasts)
    statement = statement.on_conflict_do_update(
        index_elements=[Lease.name],
        set_={
            "holder": holder,
            "until": now + terms.lasts,
            "fence": case((Lease.holder == holder, Lease.fence), else_=Lease.fence + 1),
        },
        where=or_(Lease.holder == holder, lapsed),
    )
    fence: int | None = await session.scalar(statement.returning(Lease.fence))
    return fence


async def give_back(session: AsyncSession, terms: LeaseTerms, now: datetime) -> None:
    """Let anybody take a lease that was taken in this transaction, from its end on."""
    await session.execute(update(Lease).where(Lease.name == terms.name).values(until=now))
