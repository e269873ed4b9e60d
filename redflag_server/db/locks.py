"""
Locks that are no rows: of things that there is one of, or none yet.

They are PostgreSQL's advisory locks, held until the transaction ends, over all processes. With SQLite the one
writer needs none.
"""

from enum import IntEnum

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession


class Lock(IntEnum):
    """
    What can be locked. A transaction that takes several takes them in this order.

    The numbers are the same in all releases: replicas of two releases may run side by side.
    """

    FOUNDING = 1
    """That there is a server, and its schedules."""
    TRUST = 2
    """The newest trust bundle."""
    SETUP = 3
    """Whether there is an owner."""
    MACHINE = 4
    """Whose a machine id is."""
    RIGHTS = 5
    """What the role that serves may do."""


async def take(session: AsyncSession, lock: Lock, what: str = "") -> None:
    """
    Wait until nobody else holds a lock, and hold it until the end of the transaction.

    Args:
        session: The open write transaction.
        lock: Which.
        what: Which of them, if there is one for each of something.
    """
    if session.get_bind().dialect.name == "postgresql":
        await session.execute(select(func.pg_advisory_xact_lock(lock.value, func.hashtext(what))))
