"""
What is forgotten, and when. The inventory itself is never touched.

Events, commands, what was handed out and what executors signed are history and stay: they prove what was done to
a machine.
"""

from datetime import timedelta
from typing import Any, Final

from sqlalchemy import delete, select

from redflag_server.agents.locks import lock_agents
from redflag_server.client_errors.tables import ClientError, ErrorBatch
from redflag_server.packages.tables import Package, ScanReport
from redflag_server.runtime import Runtime

KEEP_REPORTS: Final = timedelta(days=30)
"""Records of accepted reports: an agent sends the same report again for minutes, people look back for days."""

KEEP_ERRORS: Final = timedelta(days=90)
KEEP_GONE_PACKAGES: Final = timedelta(days=90)
"""Packages that are no longer installed: after a quarter, one that comes back is a new one."""

MACHINES_AT_ONCE: Final = 200
"""Machines whose packages are forgotten in one transaction: their check-ins wait for it."""


async def forget_old(runtime: Runtime) -> None:
    """Delete what nobody needs any more."""
    now = runtime.clock.now()
    async with runtime.database.write() as session:
        await session.execute(delete(ScanReport).where(ScanReport.received_at < now - KEEP_REPORTS))
        await session.execute(delete(ErrorBatch).where(ErrorBatch.received_at < now - KEEP_REPORTS))
        await session.execute(delete(ClientError).where(ClientError.last_seen_at < now - KEEP_ERRORS))
    gone = (Package.present.is_(False), Package.state_at < now - KEEP_GONE_PACKAGES)
    while await _forget_packages(runtime, gone):
        pass


async def _forget_packages(runtime: Runtime, gone: tuple[Any, ...]) -> bool:
    """Forget those of some machines; whether there may be more."""
    async with runtime.database.write() as session:
        query = select(Package.agent_id).where(*gone).distinct().limit(MACHINES_AT_ONCE)
        agents = (await session.scalars(query)).all()
        await lock_agents(session, agents)
        await session.execute(delete(Package).where(Package.agent_id.in_(agents), *gone))
    return len(agents) == MACHINES_AT_ONCE
