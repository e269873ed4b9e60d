"""Write events: `record` and `record_all` inside a transaction; `RefusalRecorder` for what changed nothing."""

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from redflag_core.ports import Clock
from redflag_core.rate_limit import RateLimitPolicy, step
from redflag_server.db.engine import Database
from redflag_server.events.tables import Event
from redflag_server.jobs.bells import Bell, ring
from redflag_server.organizations.tables import INSTALLATION

logger = logging.getLogger(__name__)

MAX_REMEMBERED: Final = 10_000
"""Keys of refusals that are counted one by one: bounds the memory that a scanner of the internet can take."""

REFUSAL_POLICY: Final = RateLimitPolicy(count=6, period_seconds=60, burst=20)
"""Events written for one (code, address): the rest is counted, so that an attacker cannot fill the disk."""

CODE_REFUSAL_POLICY: Final = RateLimitPolicy(count=120, period_seconds=60, burst=500)


@attrs.frozen(kw_only=True)
class NewEvent:
    """
    Something that happens.

    Attributes:
        kind: Stable name, ``agent.registered``.
        actor: Who: ``user:...``, ``agent:...``, ``server``, ``address:...``.
        message: One sentence for people, without secrets.
        organization_id: Whose event it is; the installation's when it belongs to no client.
        agent_id: The agent it is about, if any.
        package_id: The package of it that it is about, if any.
        code: Error code of a refusal or failure.
        data: Further facts, without secrets.
    """

    kind: str
    actor: str
    message: str
    organization_id: UUID = INSTALLATION
    agent_id: UUID | None = None
    package_id: UUID | None = None
    code: str | None = None
    data: dict[str, Any] = attrs.field(factory=dict)


async def record_all(session: AsyncSession, at: datetime, events: Sequence[NewEvent]) -> None:
    """
    Record what happens, in the transaction in which it happens.

    Args:
        session: The open write transaction.
        at: Database time.
        events: What happens, in order.
    """
    if events:
        await session.execute(insert(Event), [_row(at, event) for event in events])
        await ring(session, Bell.EVENTS)


def _row(at: datetime, event: NewEvent) -> dict[str, Any]:
    values = attrs.asdict(event, recurse=False)
    return {**values, "id": uuid7(), "at": at, "actor": event.actor[:128]}


async def record(
    session: AsyncSession,
    *,
    at: datetime,
    kind: str,
    actor: str,
    message: str,
    organization_id: UUID = INSTALLATION,
    agent_id: UUID | None = None,
    package_id: UUID | None = None,
    code: str | None = None,
    data: dict[str, Any] | None = None,
) -> None:
    """Record one event; see `NewEvent`."""
    event = NewEvent(
        kind=kind,
        actor=actor,
        message=message,
        organization_id=organization_id,
        agent_id=agent_id,
        package_id=package_id,
        code=code,
        data=data or {},
    )
    await record_all(session, at, [event])


@attrs.frozen
class Refusal:
    """A request that was refused and changed nothing."""

    code: str
    address: str
    method: str
    path: str
    message: str
    organization_id: UUID = INSTALLATION
    agent_id: UUID | None = None
    kind: str = "request.refused"


@attrs.define
class RefusalRecorder:
    """
    Records refused requests as events, bounded by code and address, and by code over all addresses.

    What is not written is counted, and the count goes into the next event of the same kind.
    """

    _database: Database
    _clock: Clock
    _arrivals: dict[tuple[str, str], tuple[float, int]] = attrs.field(factory=dict, init=False)
    _by_code: dict[str, float] = attrs.field(factory=dict, init=False)

    async def record(self, refusal: Refusal) -> None:
        """Write an event, or count it. A database that cannot be written is logged, not raised."""
        suppressed = self.admit((refusal.code, refusal.address))
        if suppressed is None:
            return
        try:
            await self._write(refusal, suppressed)
        except Exception:  # the refusal itself must still be answered
            logger.exception("could not record a refused request")

    def admit(self, key: tuple[str, str]) -> int | None:
        """
        Charge one event.

        Args:
            key: What kind of event, one of a few, and of whom.

        Returns:
            How many were suppressed since the last event of *key*, or None to suppress this one too.
        """
        now = self._clock.now().timestamp()
        arrival, suppressed = self._arrivals.pop(key, (None, 0))
        arrival, own = step(arrival, now, REFUSAL_POLICY)
        if own.allowed:
            # Each code has a budget of its own: a flood of one kind must not hide another.
            overall_arrival, overall = step(self._by_code.get(key[0]), now, CODE_REFUSAL_POLICY)
            self._by_code[key[0]] = overall_arrival
        admitted = own.allowed and overall.allowed
        self._arrivals[key] = (arrival, 0 if admitted else suppressed + 1)
        if len(self._arrivals) > MAX_REMEMBERED:
            self._arrivals.pop(next(iter(self._arrivals)))
        return suppressed if admitted else None

    async def _write(self, refusal: Refusal, suppressed: int) -> None:
        data: dict[str, Any] = {"method": refusal.method, "path": refusal.path[:300]}
        if suppressed:
            data["suppressed_before"] = suppressed
        async with self._database.write() as session:
            await record(
                session,
                at=self._clock.now(),
                kind=refusal.kind,
                actor=f"address:{refusal.address}",
                message=refusal.message,
                organization_id=refusal.organization_id,
                agent_id=refusal.agent_id,
                code=refusal.code,
                data=data,
            )
