"""Packages as operators see them."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.patching import Decision
from redflag_core.scanning import PackageState, Severity
from redflag_server.agents.tables import Agent
from redflag_server.db.pages import Page, PageOf, fetch_page
from redflag_server.db.scope import Scope
from redflag_server.packages.schema import PackageItem
from redflag_server.packages.tables import Package
from redflag_server.problems import NotFoundError

HIDDEN: Final = (PackageState.CURRENT, PackageState.NOT_APPLICABLE)
"""States that are shown only when asked for: most packages, and those that are gone."""


@attrs.frozen
class PackageFilter:
    """
    Which packages.

    Attributes:
        agent_id: Their machine; None for all.
        states: Any of these; empty for all but `HIDDEN`.
        include_current: Also those that are up to date.
        severities: Any of these; empty for all.
        name: Part of the name, in any case.
        manager: Their package manager; None for all.
    """

    agent_id: UUID | None = None
    states: Sequence[PackageState] = ()
    include_current: bool = False
    severities: Sequence[Severity] = ()
    name: str | None = None
    manager: str | None = None


def select_packages(visible: Scope, wanted: PackageFilter, *columns: Any) -> "Select[Any]":
    """The SELECT of the packages that a filter finds, of those that the caller may see."""
    query = visible.select(Package, *columns)
    if wanted.states:
        query = query.where(Package.state.in_(wanted.states))
    else:
        hidden = HIDDEN[1:] if wanted.include_current else HIDDEN
        query = query.where(Package.state.not_in(hidden))
    if wanted.agent_id is not None:
        query = query.where(Package.agent_id == wanted.agent_id)
    if wanted.severities:
        query = query.where(Package.severity.in_(wanted.severities))
    if wanted.name:
        query = query.where(Package.name.icontains(wanted.name, autoescape=True))
    if wanted.manager is not None:
        query = query.where(Package.manager == wanted.manager)
    return query


async def list_packages(
    session: AsyncSession, visible: Scope, wanted: PackageFilter, page: PageOf
) -> Page[PackageItem]:
    """One page of the packages that the caller may see."""
    query = select_packages(visible, wanted, Package, Agent.hostname).join(Agent, Agent.id == Package.agent_id)
    rows, cursor = await fetch_page(session, query, Package, page)
    return Page([package_item(package, hostname) for package, hostname in rows], cursor)


async def get_package(session: AsyncSession, visible: Scope, package_id: UUID) -> PackageItem:
    """
    One package.

    Raises:
        NotFoundError: No such package, or not for the caller to see.
    """
    query = visible.select(Package, Package, Agent.hostname).join(Agent, Agent.id == Package.agent_id)
    row = (await session.execute(query.where(Package.id == package_id))).one_or_none()
    if row is None:
        raise NotFoundError("there is no such package")
    return package_item(*row)


def package_item(package: Package, hostname: str) -> PackageItem:
    """What is shown of a package."""
    return PackageItem(
        id=package.id,
        agent_id=package.agent_id,
        hostname=hostname,
        manager=package.manager,
        name=package.name,
        arch=package.arch,
        installed=package.installed,
        available=package.available,
        severity=Severity(package.severity),
        state=PackageState(package.state),
        reason=package.state_reason or package.reason,
        security=package.security,
        origin=package.origin,
        source=package.source,
        source_version=package.source_version,
        download_size=package.download_size,
        automatic=package.automatic,
        cves=list(package.cves),
        first_seen_at=package.first_seen_at,
        state_at=package.state_at,
        decision=None if package.decision is None else Decision(package.decision),
        decided_at=package.decided_at,
        decided_by=package.decided_by,
        decided_until=package.decided_until,
        decision_reason=package.decision_reason,
        plan_id=package.plan_id,
    )
