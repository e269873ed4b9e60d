"""
What people decide about packages: one, some, or all that a filter finds, each with its own answer.

Whether a package can be decided about is the core's table. Up to `MAX_AT_ONCE` packages are one transaction,
and each package gets an event of its own.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import attrs
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.errors import IllegalMoveError
from redflag_core.patching import DECISIONS, MOVES, Decision, Move, Sighting
from redflag_core.patching.states import UNDECIDED, why_not_until
from redflag_core.scanning import PackageState
from redflag_server.agents.locks import lock_agents
from redflag_server.agents.tables import Agent
from redflag_server.db.scope import Scope
from redflag_server.packages.listing import PackageFilter, select_packages
from redflag_server.packages.moves import PLANNED, TOLD, PackageMoves, Told
from redflag_server.packages.sightings import scanners_ok, sighting_of
from redflag_server.packages.tables import Package
from redflag_server.plans.changes import DECIDED, drop, open_plans
from redflag_server.plans.schema import MAX_AT_ONCE, BulkOutcome, DecidedPackage, DecisionOutcome
from redflag_server.problems import ConflictError, InvalidRequestError, NotFoundError
from redflag_server.runtime import Runtime

MAX_IN_TURN: Final = 10_000
"""Most packages of `decide_in_turn`: about half a minute of work, which somebody waits for."""

ENDS_AT_ONCE: Final = 500
"""Decisions whose time is over that end in one transaction: others write in between."""

DECIDED_AGAINST: Final = frozenset({PackageState.EXCLUDED, PackageState.DEFERRED})
"""States that somebody chose, for a reason. Approving many packages at once does not undo it unasked."""

_REJECTED: Final = Told(kind="package.rejected", words="was rejected")
_ENDED: Final = Told(kind="package.decision_ended", words="is open again")


@attrs.frozen
class Verdict:
    """
    A decision that means something.

    Attributes:
        decision: What.
        reason: Why.
        until: Until when it holds; None for without end.
    """

    decision: Decision
    reason: str
    until: datetime | None = None

    @property
    def told(self) -> Told:
        """How it is told."""
        return _REJECTED if self.decision is Decision.REJECT else TOLD[DECISIONS[self.decision]]

    @property
    def why(self) -> str:
        """The reason, with the end."""
        return self.reason if self.until is None else f"{self.reason} (until {self.until:%Y-%m-%d %H:%M} UTC)"


def make_verdict(decision: Decision, reason: str, until: datetime | None, now: datetime) -> Verdict:
    """
    Check a decision.

    Args:
        decision: What.
        reason: Why, one line.
        until: Until when, aware; needed to defer, possible to exclude.
        now: Database time, aware UTC.

    Raises:
        InvalidRequestError: *until* is missing, has no meaning here, or is not in the time to come.
    """
    mistake = why_not_until(decision, until, now)
    if mistake is not None:
        raise InvalidRequestError(mistake)
    return Verdict(decision, reason, until)


async def decide(
    runtime: Runtime,
    visible: Scope,
    package_ids: Iterable[UUID],
    decision: Decision,
    reason: str,
    *,
    until: datetime | None = None,
) -> BulkOutcome:
    """
    Decide about packages.

    Args:
        runtime: The server.
        visible: Who decides.
        package_ids: The packages; each counts once.
        decision: What.
        reason: Why, one line.
        until: Until when, aware; needed to defer, possible to exclude.

    Returns:
        What became of each package, in the order given.

    Raises:
        InvalidRequestError: None or too many packages, or a meaningless end.
        NotFoundError: There is none of them.
    """
    now, wanted = runtime.clock.now(), list(dict.fromkeys(package_ids))
    verdict = make_verdict(decision, reason, until, now)
    if not 1 <= len(wanted) <= MAX_AT_ONCE:
        raise InvalidRequestError(f"name 1 to {MAX_AT_ONCE} packages at once")
    items = await _decide_some(runtime, visible, wanted, verdict, now)
    if all(item.outcome is DecisionOutcome.NOT_FOUND for item in items):
        raise NotFoundError("there is no such package" if len(wanted) == 1 else "there are no such packages")
    return _summary(items)


async def decide_in_turn(
    runtime: Runtime,
    visible: Scope,
    package_ids: Sequence[UUID],
    decision: Decision,
    reason: str,
    *,
    until: datetime | None = None,
) -> BulkOutcome:
    """
    Decide about more packages than one transaction takes: `MAX_AT_ONCE` at a time, as of one moment.

    What was decided stays decided when a later part fails.

    Args:
        runtime: The server.
        visible: Who decides.
        package_ids: The packages, at most `MAX_IN_TURN`.
        decision: What.
        reason: Why, one line.
        until: Until when, aware; needed to defer, possible to exclude.

    Returns:
        What became of each package, in the order given.

    Raises:
        InvalidRequestError: A meaningless end.
        ConflictError: They are too many; nothing was decided.
    """
    now = runtime.clock.now()
    verdict = make_verdict(decision, reason, until, now)
    if len(package_ids) > MAX_IN_TURN:
        raise ConflictError(f"these are more than {MAX_IN_TURN} packages: choose fewer; nothing was decided")
    items: list[DecidedPackage] = []
    for start in range(0, len(package_ids), MAX_AT_ONCE):
        some = package_ids[start : start + MAX_AT_ONCE]
        items += await _decide_some(runtime, visible, some, verdict, now)
    return _summary(items)


async def _decide_some(
    runtime: Runtime, visible: Scope, wanted: Sequence[UUID], verdict: Verdict, now: datetime
) -> list[DecidedPackage]:
    async with runtime.database.write() as session:
        await lock_agents(session, visible.select(Package, Package.agent_id).where(Package.id.in_(wanted)))
        query = visible.select(Package).where(Package.id.in_(wanted)).with_for_update()
        found = (await session.scalars(query)).all()
        outcomes = await _decide(session, visible, list(found), verdict, now)
        return [outcomes.get(package_id) or _unknown(package_id) for package_id in wanted]


async def decide_matching(
    runtime: Runtime,
    visible: Scope,
    wanted: PackageFilter,
    decision: Decision,
    reason: str,
    *,
    until: datetime | None = None,
) -> BulkOutcome:
    """
    Decide about all packages that a filter finds: those that the list shows for it.

    Args:
        runtime: The server.
        visible: Who decides.
        wanted: Which packages.
        decision: What.
        reason: Why, one line.
        until: Until when, aware; needed to defer, possible to exclude.

    Returns:
        What became of each package.

    Raises:
        InvalidRequestError: A meaningless end.
        NotFoundError: The filter names a machine that there is not.
        ConflictError: It finds more than `MAX_AT_ONCE` packages; nothing was decided.
    """
    now = runtime.clock.now()
    verdict = make_verdict(decision, reason, until, now)
    async with runtime.database.write() as session:
        if wanted.agent_id is not None:
            machine = visible.select(Agent, Agent.id).where(Agent.id == wanted.agent_id)
            if (await session.scalars(machine)).one_or_none() is None:
                raise NotFoundError("there is no such machine")
        query = select_packages(visible, wanted, Package.id, Package.agent_id).order_by(Package.id)
        found = (await session.execute(query.limit(MAX_AT_ONCE + 1))).all()
        await lock_agents(session, {row.agent_id for row in found})
        still = select_packages(visible, wanted, Package).where(Package.id.in_([row.id for row in found]))
        packages = list((await session.scalars(still.order_by(Package.id).with_for_update())).all())
        kept = _kept(packages, decision, wanted)
        if len(found) > MAX_AT_ONCE:
            raise ConflictError(
                f"the filter finds more than {MAX_AT_ONCE} packages: narrow it; nothing was decided"
            )
        rest = [package for package in packages if package.id not in kept]
        outcomes = {**kept, **await _decide(session, visible, rest, verdict, now)}
        return _summary([outcomes[package.id] for package in packages])


def _kept(packages: Sequence[Package], decision: Decision, wanted: PackageFilter) -> dict[UUID, DecidedPackage]:
    """What approving all that a filter finds leaves as it is, unless the filter asks for just that state."""
    return {
        package.id: DecidedPackage(
            package.id,
            package.name,
            DecisionOutcome.REFUSED,
            PackageState(package.state),
            f"{package.decided_by} decided against it ({package.decision_reason}): reopen it first",
        )
        for package in packages
        if decision is Decision.APPROVE and package.state in DECIDED_AGAINST and package.state not in wanted.states
    }


async def end_decisions(runtime: Runtime) -> None:
    """Open what was deferred or excluded until now again: it is what its scanner sees."""
    while await _end_some(runtime):
        pass


async def _end_some(runtime: Runtime) -> bool:
    now = runtime.clock.now()
    async with runtime.database.write() as session:
        over = Package.decided_until <= now
        query = select(Package.id, Package.agent_id).where(over).order_by(Package.decided_until, Package.id)
        found = (await session.execute(query.limit(ENDS_AT_ONCE))).all()
        await lock_agents(session, {row.agent_id for row in found})
        still = select(Package).where(over, Package.id.in_([row.id for row in found]))
        in_order = still.order_by(Package.decided_until, Package.id)
        packages = (await session.scalars(in_order.with_for_update())).all()
        moves, working = PackageMoves(session, "server", now), await scanners_ok(session, packages)
        for package in packages:
            before, reason = package.state.replace("_", " "), package.decision_reason
            why = f"the time for which it was {before} is over ({reason})"
            moves.move(package, Move.REOPEN, _seen(package, working), why=why, told=_ENDED)
        await moves.store()
    return len(found) == ENDS_AT_ONCE


# --- one decision ---


async def _decide(
    session: AsyncSession, visible: Scope, packages: Sequence[Package], verdict: Verdict, now: datetime
) -> Mapping[UUID, DecidedPackage]:
    actor, working = visible.caller.actor, await scanners_ok(session, packages)
    moves, outcomes, plans = PackageMoves(session, actor, now), {}, set()
    for package in packages:
        waited_for = package.plan_id if package.state in PLANNED else None
        outcome = _decide_one(package, verdict, _seen(package, working), moves)
        outcomes[package.id] = outcome
        if outcome.outcome is DecisionOutcome.CHANGED and waited_for is not None:
            plans.add(waited_for)
    await moves.store()
    why = f"a package of it was decided about: {verdict.reason}"
    for plan in await open_plans(session, plans):
        await drop(session, plan, actor, now, code=DECIDED, why=why)
    return outcomes


def _decide_one(package: Package, verdict: Verdict, seen: Sighting, moves: PackageMoves) -> DecidedPackage:
    how = DECISIONS[verdict.decision]
    if _holds_already(package, verdict):
        return _outcome(package, DecisionOutcome.ALREADY)
    facts = {"decision": verdict.decision, "reason": verdict.reason, "until": _text(verdict.until)}
    try:
        moves.move(package, how, seen, why=verdict.why, told=verdict.told, **facts)
    except IllegalMoveError as error:
        return _outcome(package, DecisionOutcome.REFUSED, error.message)
    package.plan_id = None
    if how is not Move.REOPEN:
        package.decision, package.decided_by = verdict.decision, moves.actor[:128]
        package.decided_at, package.decided_until = moves.now, verdict.until
        package.decision_reason = verdict.reason
    return _outcome(package, DecisionOutcome.CHANGED)


def _holds_already(package: Package, verdict: Verdict) -> bool:
    if verdict.decision is Decision.REOPEN:
        return package.state in UNDECIDED
    return package.state == MOVES[DECISIONS[verdict.decision]].to and package.decided_until == verdict.until


def _seen(package: Package, working: Mapping[tuple[UUID, str], bool]) -> Sighting:
    return sighting_of(package, scan_ok=working.get((package.agent_id, package.scanner), True))


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


# --- what became of each ---


def _outcome(package: Package, outcome: DecisionOutcome, detail: str | None = None) -> DecidedPackage:
    return DecidedPackage(package.id, package.name, outcome, PackageState(package.state), detail)


def _unknown(package_id: UUID) -> DecidedPackage:
    return DecidedPackage(package_id, None, DecisionOutcome.NOT_FOUND, None, "there is no such package")


def _summary(items: list[DecidedPackage]) -> BulkOutcome:
    counts = Counter(item.outcome for item in items)
    return BulkOutcome(
        changed=counts[DecisionOutcome.CHANGED],
        already=counts[DecisionOutcome.ALREADY],
        refused=counts[DecisionOutcome.REFUSED],
        not_found=counts[DecisionOutcome.NOT_FOUND],
        items=items,
    )
