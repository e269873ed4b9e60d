"""
Charge a limit in the database: one atomic statement, for PostgreSQL and SQLite alike.

It is the arithmetic of `redflag_core.rate_limit.step` on the same double numbers, as in `redflag_core.stores`.
Several requests can be charged at once. The limit holds over all servers on one database.
"""

from datetime import datetime
from typing import Final

from sqlalchemy import delete, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.rate_limit import CLOCK_STEP, EPSILON, Decision, RateLimitPolicy, decision_of
from redflag_server.rate_limits.tables import RateArrival

_NOW, _COST = "CAST(:now AS double precision)", "CAST(:cost AS double precision)"
_CAPACITY, _INTERVAL = "CAST(:capacity AS double precision)", "CAST(:interval AS double precision)"

TAKE: Final = text(
    f"""\
INSERT INTO rate_arrivals AS held (key, arrival, allowed)
VALUES (:key, {_NOW} + {_COST}, true)
ON CONFLICT (key) DO UPDATE SET (arrival, allowed) = (
    SELECT CASE WHEN fits THEN base + {_COST} ELSE base END, fits
    FROM (
        SELECT base, base + {_COST} - {_NOW} - {_CAPACITY} <= {EPSILON!r} AS fits
        FROM (
            SELECT CASE
                WHEN held.arrival > {_NOW} + {_CAPACITY} + {CLOCK_STEP!r} THEN {_NOW} + {_CAPACITY} - {_INTERVAL}
                WHEN held.arrival > {_NOW} THEN held.arrival
                ELSE {_NOW}
            END AS base
        ) AS started
    ) AS judged
)
RETURNING arrival, allowed"""  # noqa: S608  (only constants are in the text)
)


async def take(
    session: AsyncSession, key: str, policy: RateLimitPolicy, now: datetime, *, count: int = 1
) -> tuple[float, Decision]:
    """
    Charge requests, all or none.

    Args:
        session: The open write transaction. The row stays locked until it ends.
        key: Of `tables.key_of`.
        policy: The limit.
        now: Database time, aware UTC.
        count: How many, at most the policy's burst: so a new key is never refused.

    Returns:
        The arrival time that was stored, and the decision.
    """
    moment, interval = now.timestamp(), policy.interval
    values = {"key": key, "now": moment, "cost": count * interval, "interval": interval}
    row = await session.execute(TAKE, {**values, "capacity": policy.burst * interval})
    stored, allowed = row.one()
    return stored, decision_of(stored, moment, policy, allowed=bool(allowed))


async def forget_arrivals(session: AsyncSession, now: datetime, limit: int) -> bool:
    """
    Delete some of those whose full burst is there again: no row means the same.

    Args:
        session: The open write transaction.
        now: Database time, aware UTC.
        limit: At most so many.

    Returns:
        Whether there may be more.
    """
    old = select(RateArrival.key).where(RateArrival.arrival <= now.timestamp() - CLOCK_STEP).limit(limit)
    some = old.with_for_update(skip_locked=True)
    result = await session.execute(delete(RateArrival).where(RateArrival.key.in_(some)))
    return bool(result.rowcount == limit)  # type: ignore[attr-defined]
