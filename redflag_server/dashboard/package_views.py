"""Packages on pages: each with the decision about it and with what can be decided now, which the core says."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from uuid import UUID

import attrs
from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer

from redflag_core.patching import DECISIONS, Decision, can
from redflag_core.scanning import PackageState
from redflag_server.agents.tables import Agent
from redflag_server.dashboard.words import STATES
from redflag_server.db.scope import Scope
from redflag_server.packages.sightings import scanners_ok, sighting_of
from redflag_server.packages.tables import Package
from redflag_server.plans.tables import Plan
from redflag_server.problems import NotFoundError

PACKAGES: Final = 500
"""Packages of one state on a page: a person does not read more, and the page stays below a megabyte."""


@attrs.frozen
class SeenPackage:
    """
    One package.

    Attributes:
        row: What is known of it.
        offers: What can be decided about it now, of `Decision`.
    """

    row: Package
    offers: frozenset[str]


@attrs.frozen
class PackageGroup:
    """
    Packages of one state on one machine.

    Attributes:
        state: The state.
        total: How many there are.
        items: The first `PACKAGES` of them, security updates first.
    """

    state: PackageState
    total: int
    items: Sequence[SeenPackage]

    @property
    def offers(self) -> Sequence[str]:
        """What can be decided about at least one of them."""
        return ordered(offer for item in self.items for offer in item.offers)


@attrs.frozen
class PackagePage:
    """
    One package on a page of its own.

    Attributes:
        package: The package.
        hostname: Its machine.
        plan: The plan that it waits for or that changed it last, without what that would change; or None.
    """

    package: SeenPackage
    hostname: str
    plan: Plan | None


def ordered(offers: Iterable[str]) -> Sequence[str]:
    """Decisions, each once, in the order of the buttons."""
    wanted = set(offers)
    return [decision.value for decision in Decision if decision in wanted]


def seen(row: Package, working: Mapping[tuple[UUID, str], bool]) -> SeenPackage:
    """
    A package with what can be decided about it.

    Args:
        row: The package.
        working: Whether the last scan succeeded, by machine and scanner (`scanners_ok`).
    """
    sighting = sighting_of(row, scan_ok=working.get((row.agent_id, row.scanner), True))
    possible = (decision for decision, move in DECISIONS.items() if can(PackageState(row.state), move, sighting))
    return SeenPackage(row, frozenset(decision.value for decision in possible))


async def see_groups(
    session: AsyncSession, visible: Scope, agent_id: UUID, *, show_current: bool
) -> tuple[Sequence[PackageGroup], Mapping[str, int]]:
    """
    The packages of a machine by state, and how many are in each, also in those that are not shown.

    Costs one count over the machine's packages and one bounded query for each state, all by index.
    """
    counts = (
        visible.select(Package, Package.state, func.count())
        .where(Package.agent_id == agent_id)
        .group_by(Package.state)
    )
    numbers: dict[str, int] = dict((await session.execute(counts)).tuples().all())
    hidden = {PackageState.NOT_APPLICABLE} | (set() if show_current else {PackageState.CURRENT})
    shown = [PackageState(state) for state in STATES if state in numbers and state not in hidden]
    return [await _group(session, visible, agent_id, state, numbers[state]) for state in shown], numbers


async def see_package(session: AsyncSession, visible: Scope, agent_id: UUID, package_id: UUID) -> PackagePage:
    """
    One package.

    Raises:
        NotFoundError: No such package on this machine, or not for the caller to see.
    """
    query = (
        visible.select(Package, Package, Agent.hostname, Plan)
        .join(Agent, Agent.id == Package.agent_id)
        .outerjoin(Plan, Plan.id == Package.plan_id)
        .where(Package.id == package_id, Package.agent_id == agent_id)
        .options(defer(Plan.targets), defer(Plan.transaction), defer(Plan.outcomes))
    )
    row = (await session.execute(query)).one_or_none()
    if row is None:
        raise NotFoundError("there is no such package")
    package, hostname, plan = row
    return PackagePage(seen(package, await scanners_ok(session, [package])), hostname, plan)


async def _group(
    session: AsyncSession, visible: Scope, agent_id: UUID, state: PackageState, total: int
) -> PackageGroup:
    query = (
        visible.select(Package)
        .where(Package.agent_id == agent_id, Package.state == state)
        .order_by(Package.security.desc(), Package.name, Package.arch)
        .limit(PACKAGES)
    )
    rows = (await session.scalars(query)).all()
    working = await scanners_ok(session, rows)
    return PackageGroup(state, total, [seen(row, working) for row in rows])
