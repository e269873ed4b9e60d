"""
The lock of a machine: whoever changes what belongs to it holds it.

Commands, plans, packages and scanners of a machine are read, decided about and written under the lock of its
record. It is taken first, those of several machines in the order of their ids: no two transactions decide about
one machine at once, on however many servers, and none wait for each other in a circle. With SQLite there is one
writer, and the lock is nothing.
"""

from collections.abc import Collection
from typing import Any
from uuid import UUID

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_server.agents.tables import Agent


async def lock_agents(session: AsyncSession, agents: "Collection[UUID] | Select[Any]") -> None:
    """
    Hold the locks of machines until the end of the transaction. What they belong to is read after that.

    Args:
        session: The open write transaction.
        agents: Ids, or a SELECT of ids.
    """
    if session.get_bind().dialect.name == "postgresql":
        # Rows that point to the machine can be written meanwhile: its id stays.
        query = select(Agent.id).where(Agent.id.in_(agents)).order_by(Agent.id)
        await session.execute(query.with_for_update(key_share=True))
