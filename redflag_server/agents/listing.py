"""Machines as operators see them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import ColumnElement, and_, case, func, or_
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.enrolment import AgentStatus
from redflag_core.lifecycle import presence
from redflag_core.scanning import FACT_SCANNERS, PENDING_STATES, PackageState, ScanStatus
from redflag_server.agents.schema import AgentDetail, AgentItem, ScannerItem
from redflag_server.agents.tables import Agent
from redflag_server.db.pages import Page, PageOf, fetch_page
from redflag_server.db.scope import Scope
from redflag_server.organizations.tables import Site
from redflag_server.packages.tables import Package, Scanner
from redflag_server.problems import NotFoundError

NOT_COUNTED: Final = (PackageState.CURRENT, PackageState.NOT_APPLICABLE)
"""Nothing is open about these; they are hidden unless asked for."""

_NOT_OUTSTANDING: Final = (*NOT_COUNTED, PackageState.INSTALLED, PackageState.REBOOT_PENDING, PackageState.UNKNOWN)
OUTSTANDING: Final = tuple(state for state in PackageState if state not in _NOT_OUTSTANDING)
"""An update is known and not installed, whatever was decided about it: an approval alone closes no hole."""


def lacks_security() -> ColumnElement[bool]:
    """That a security update is missing: also one that came out while the one before waits for a reboot."""
    waits = and_(Package.state == PackageState.REBOOT_PENDING, Package.observed.in_(PENDING_STATES))
    return and_(Package.security, or_(Package.state.in_(OUTSTANDING), waits))


@attrs.frozen
class AgentFilter:
    """
    Which machines.

    Attributes:
        statuses: Any of these; empty for all.
        hostname: Part of the name, in any case.
        site_id: Its site.
    """

    statuses: Sequence[AgentStatus] = ()
    hostname: str | None = None
    site_id: UUID | None = None


@attrs.frozen
class Counts:
    """
    What is open on one machine.

    Attributes:
        states: Number of packages in each state but `NOT_COUNTED`.
        security: Packages that lack a security update.
        failing: Scanners that could not tell.
        scanned_at: The last scan of packages that could.
    """

    states: Mapping[str, int] = attrs.field(factory=dict)
    security: int = 0
    failing: int = 0
    scanned_at: datetime | None = None


async def list_agents(
    session: AsyncSession, visible: Scope, wanted: AgentFilter, page: PageOf, now: datetime
) -> Page[AgentItem]:
    """One page of the machines that the caller may see."""
    query = visible.select(Agent, Agent, Site.name).join(Site, Site.id == Agent.site_id)
    if wanted.statuses:
        query = query.where(Agent.status.in_(wanted.statuses))
    if wanted.hostname:
        query = query.where(Agent.hostname.icontains(wanted.hostname, autoescape=True))
    if wanted.site_id is not None:
        query = query.where(Agent.site_id == wanted.site_id)
    rows, cursor = await fetch_page(session, query, Agent, page)
    counts = await count_packages(session, visible, [agent.id for agent, _ in rows])
    return Page([_item(agent, site, counts.get(agent.id, Counts()), now) for agent, site in rows], cursor)


async def get_agent(session: AsyncSession, visible: Scope, agent_id: UUID, now: datetime) -> AgentDetail:
    """
    One machine.

    Raises:
        NotFoundError: No such machine, or not for the caller to see.
    """
    query = (
        visible.select(Agent, Agent, Site.name).join(Site, Site.id == Agent.site_id).where(Agent.id == agent_id)
    )
    row = (await session.execute(query)).one_or_none()
    if row is None:
        raise NotFoundError("there is no such machine")
    agent, site = row
    counts = await count_packages(session, visible, [agent_id])
    scanners = visible.select(Scanner).where(Scanner.agent_id == agent_id).order_by(Scanner.name)
    return AgentDetail(
        agent=_item(agent, site, counts.get(agent_id, Counts()), now),
        key_id=agent.key_id,
        executor_key_id=agent.executor_key_id,
        machine_binding=agent.machine_binding,
        weak_ids=list(agent.evidence.get("weak", ())),
        container=bool(agent.evidence.get("container", False)),
        mismatch_since=agent.mismatch_since,
        last_address=agent.last_address,
        scanners=[_scanner(scanner) for scanner in await session.scalars(scanners)],
    )


async def count_packages(session: AsyncSession, visible: Scope, agents: Sequence[UUID]) -> dict[UUID, Counts]:
    """What is open on each of *agents*."""
    pending = case((lacks_security(), 1), else_=0)
    failing = case((Scanner.status != ScanStatus.OK, 1), else_=0)
    packages = (
        visible.select(Package, Package.agent_id, Package.state, func.count(), func.sum(pending))
        .where(Package.agent_id.in_(agents), Package.state.not_in(NOT_COUNTED))
        .group_by(Package.agent_id, Package.state)
    )
    scanned = func.max(Scanner.succeeded_at).filter(Scanner.name.not_in(FACT_SCANNERS))
    scanners = (
        visible.select(Scanner, Scanner.agent_id, func.sum(failing), scanned)
        .where(Scanner.agent_id.in_(agents))
        .group_by(Scanner.agent_id)
    )
    counts = {row[0]: Counts(failing=row[1], scanned_at=row[2]) for row in await session.execute(scanners)}
    for agent, state, number, security in await session.execute(packages):
        before = counts.get(agent, Counts())
        states = {**before.states, state: number}
        counts[agent] = attrs.evolve(before, states=states, security=before.security + security)
    return counts


def _item(agent: Agent, site: str, counts: Counts, now: datetime) -> AgentItem:
    return AgentItem(
        id=agent.id,
        organization_id=agent.organization_id,
        site_id=agent.site_id,
        site=site,
        hostname=agent.hostname,
        os=dict(agent.os),
        agent_version=agent.agent_version,
        status=AgentStatus(agent.status),
        status_reason=agent.status_reason,
        status_at=agent.status_at,
        presence=presence(last_seen=agent.last_seen_at, next_due=agent.next_check_in_at, now=now),
        registered_at=agent.registered_at,
        last_seen_at=agent.last_seen_at,
        next_check_in_at=agent.next_check_in_at,
        packages=_in_order(counts.states),
        security=counts.security,
        failing_scanners=counts.failing,
        scanned_at=counts.scanned_at,
    )


def _in_order(states: Mapping[str, int]) -> dict[str, int]:
    return {state: states[state] for state in PackageState if state in states}


def _scanner(scanner: Any) -> ScannerItem:
    return ScannerItem(
        name=scanner.name,
        manager=scanner.manager,
        status=scanner.status,
        error=scanner.error,
        warnings=list(scanner.warnings),
        facts=dict(scanner.facts),
        duration_ms=scanner.duration_ms,
        taken_at=scanner.taken_at,
        succeeded_at=scanner.succeeded_at,
    )
