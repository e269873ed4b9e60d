"""Packages over all machines that one may see: which are open, on how many machines, and on which."""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import and_, case, func, or_
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.encoding import b64url_decode, b64url_encode, dump_json, parse_json
from redflag_core.enrolment import AgentStatus
from redflag_core.errors import MalformedError
from redflag_core.patching import DECISIONS, MOVES, Decision
from redflag_core.scanning import PackageState
from redflag_server.agents.listing import lacks_security
from redflag_server.agents.tables import Agent
from redflag_server.dashboard.package_views import SeenPackage, seen
from redflag_server.dashboard.words import STATES
from redflag_server.db.pages import PageOf, fetch_page
from redflag_server.db.scope import Scope
from redflag_server.packages.sightings import scanners_ok
from redflag_server.packages.tables import Package
from redflag_server.plans.decisions import DECIDED_AGAINST
from redflag_server.problems import InvalidRequestError

NAMES: Final = 100
"""Names of packages on one page."""

ROWS: Final = 1_000
"""Rows that are read at once where all are looked at."""

MAX_CURSOR: Final = 2_000
"""Characters of a cursor: it holds a name and a manager, each character in up to six bytes."""

_CLOSED: Final = (PackageState.CURRENT, PackageState.INSTALLED, PackageState.NOT_APPLICABLE)
OPEN_STATES: Final = tuple(PackageState(state) for state in STATES if state not in _CLOSED)
"""States of packages about which something is open, in the order of pages."""


@attrs.frozen
class PackageName:
    """A package wherever it is: the same name of the same manager."""

    manager: str
    name: str

    @property
    def key(self) -> str:
        """Its text in forms."""
        return f"{self.manager}:{self.name}"


def parse_name(key: str) -> PackageName:
    """
    The package that a form means.

    Args:
        key: `PackageName.key`, untrusted.
    """
    manager, _, name = key.partition(":")
    return PackageName(manager, name)


@attrs.frozen
class Wanted:
    """
    Which packages.

    Attributes:
        states: Any of these; empty for all of `OPEN_STATES`.
        security: Only those that lack a security update.
        name: Part of the name, in any case.
    """

    states: Sequence[PackageState] = ()
    security: bool = False
    name: str | None = None

    @property
    def is_narrow(self) -> bool:
        """Whether it leaves something out."""
        return bool(self.states or self.security or self.name)

    @property
    def query(self) -> Sequence[tuple[str, str]]:
        """The same as a query of the page."""
        states = [("state", state.value) for state in self.states]
        return [*states, ("security", "true" if self.security else ""), ("name", self.name or "")]


@attrs.frozen
class Spread:
    """
    One package over all machines.

    Attributes:
        package: Which.
        machines: On how many machines something is open about it.
        security: On how many of them a security update is missing.
        states: How often it is in each state.
        oldest: Least of the available versions as text, None when nothing newer is known.
        newest: Greatest of them as text. Which version is newer only its manager can say.
    """

    package: PackageName
    machines: int
    security: int
    states: Mapping[str, int]
    oldest: str | None
    newest: str | None


@attrs.frozen
class PackageList:
    """
    One page of packages.

    Attributes:
        packages: They, those with security updates first.
        next: Cursor of the next page, or None.
    """

    packages: Sequence[Spread]
    next: str | None


@attrs.frozen
class Places:
    """
    The machines on which something is open about one package.

    Attributes:
        package: Which.
        rows: One page of them: the package there, and the name of the machine.
        next: Cursor of the next page, or None.
    """

    package: PackageName
    rows: Sequence[tuple[SeenPackage, str]]
    next: str | None


async def see_packages(session: AsyncSession, visible: Scope, wanted: Wanted, cursor: str | None) -> PackageList:
    """
    One page of the packages that are open somewhere.

    Groups all open packages of the fleet for each page: reads them once, not those that are up to date.

    Raises:
        InvalidRequestError: The cursor is none that this server gave out.
    """
    lacks = func.max(case((lacks_security(), 1), else_=0))
    states = [func.sum(case((Package.state == state, 1), else_=0)) for state in OPEN_STATES]
    missing = func.count(case((lacks_security(), 1)))
    columns = (
        Package.manager,
        Package.name,
        lacks,
        func.count(Package.agent_id.distinct()),
        missing,
        func.min(Package.available),
        func.max(Package.available),
        *states,
    )
    query = _open(visible.select(Package, *columns), wanted).group_by(Package.name, Package.manager)
    if cursor is not None:
        last, name, manager = _parse_cursor(cursor)
        later = or_(Package.name > name, and_(Package.name == name, Package.manager > manager))
        query = query.having(or_(lacks < last, and_(lacks == last, later)))
    query = query.order_by(lacks.desc(), Package.name, Package.manager).limit(NAMES + 1)
    rows = (await session.execute(query)).all()
    shown = rows[:NAMES]
    following = _make_cursor(shown[-1]) if len(rows) > NAMES else None
    return PackageList([_spread(row) for row in shown], following)


async def see_places(session: AsyncSession, visible: Scope, package: PackageName, cursor: str | None) -> Places:
    """One page of the machines on which something is open about a package."""
    query = _open(visible.select(Package, Package, Agent.hostname), Wanted()).where(
        Package.manager == package.manager, Package.name == package.name
    )
    rows, following = await fetch_page(session, query, Package, PageOf(cursor, NAMES))
    working = await scanners_ok(session, [row for row, _ in rows])
    return Places(package, [(seen(row, working), hostname) for row, hostname in rows], following)


async def find_decidable(
    session: AsyncSession, visible: Scope, names: Sequence[PackageName], decision: Decision, most: int
) -> Sequence[UUID]:
    """
    At most *most* packages of these names about which that can be decided now, on machines that are not revoked.

    Args:
        session: An open transaction.
        visible: Who asks.
        names: Which packages, at least one.
        decision: What is to be decided.
        most: How many.

    Raises:
        InvalidRequestError: No name.
    """
    if not names:
        raise InvalidRequestError("choose at least one package")
    by_manager: dict[str, list[str]] = {}
    for each in names:
        by_manager.setdefault(each.manager, []).append(each.name)
    chosen = [and_(Package.manager == manager, Package.name.in_(some)) for manager, some in by_manager.items()]
    query = _open(
        visible.select(Package), Wanted(states=sorted(MOVES[DECISIONS[decision]].origins - _kept(decision)))
    )
    query = query.where(or_(*chosen)).order_by(Package.id).limit(ROWS)
    found: list[UUID] = []
    rows: Sequence[Package] = (await session.scalars(query)).all()
    while rows and len(found) < most:
        working = await scanners_ok(session, rows)
        found += [row.id for row in rows if decision in seen(row, working).offers]
        rows = (await session.scalars(query.where(Package.id > rows[-1].id))).all()
    return found[:most]


def _kept(decision: Decision) -> frozenset[PackageState]:
    """States that a decision about many packages leaves as they are: what somebody decided against stays so."""
    return DECIDED_AGAINST if decision is Decision.APPROVE else frozenset()


def _open(query: Any, wanted: Wanted) -> Any:
    query = query.join(Agent, Agent.id == Package.agent_id).where(
        Agent.status != AgentStatus.REVOKED, Package.state.in_(wanted.states or OPEN_STATES)
    )
    if wanted.security:
        query = query.where(lacks_security())
    if wanted.name:
        query = query.where(Package.name.icontains(wanted.name, autoescape=True))
    return query


def _spread(row: Any) -> Spread:
    manager, name, _, machines, security, oldest, newest, *numbers = row
    states = {state.value: number for state, number in zip(OPEN_STATES, numbers, strict=True) if number}
    return Spread(PackageName(manager, name), machines, security, states, oldest, newest)


def _make_cursor(row: Any) -> str:
    return b64url_encode(dump_json([row[2], row[1], row[0]]))


def _parse_cursor(text: str) -> tuple[int, str, str]:
    wrong = InvalidRequestError("cursor is not one of this list: take it from `next`")
    try:
        last = parse_json(b64url_decode(text), max_bytes=MAX_CURSOR)
    except MalformedError:
        raise wrong from None
    match last:
        case [(0 | 1) as lacks, str(name), str(manager)] if type(lacks) is int:  # True equals 1
            return lacks, name, manager
    raise wrong
