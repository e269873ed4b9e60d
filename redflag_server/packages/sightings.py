"""What scans say of packages, from their rows: the core decides about packages with it."""

from collections.abc import Iterable, Mapping
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.patching import Sighting
from redflag_core.scanning import PackageState, ScanStatus
from redflag_core.scanning.states import is_damaged
from redflag_server.packages.tables import Package, Scanner


def sighting_of(package: Package, *, scan_ok: bool = True, version: str | None = None) -> Sighting:
    """
    What scans say of a package now.

    Args:
        package: Its row.
        scan_ok: Whether the last scan succeeded.
        version: The version that was to be installed by what ends now; None when nothing of the kind ends.
    """
    observed = PackageState(package.observed)
    return Sighting(
        observed=observed,
        present=package.present,
        scan_ok=scan_ok,
        damaged=is_damaged(observed, package.reason),
        newer=version is not None and package.available not in (None, version),
    )


async def scanners_ok(session: AsyncSession, packages: Iterable[Package]) -> Mapping[tuple[UUID, str], bool]:
    """Whether the last scan succeeded, by machine and scanner of these packages."""
    agents = {package.agent_id for package in packages}
    query = select(Scanner.agent_id, Scanner.name, Scanner.status).where(Scanner.agent_id.in_(agents))
    return {(agent, name): status == ScanStatus.OK for agent, name, status in await session.execute(query)}
