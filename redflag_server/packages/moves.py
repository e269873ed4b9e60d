"""
How packages change when no scan changes them: by the core's table, each with an event of its own.

Nothing else sets the state of a package but `redflag_server.packages.ingest`, for scans. A state in which only
scans speak keeps nobody's decision and no plan.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.patching import MOVES, Move, Sighting, move
from redflag_core.patching.states import UNDECIDED
from redflag_core.scanning import PackageState
from redflag_server.agents.tables import Agent
from redflag_server.events.recorder import NewEvent, record_all
from redflag_server.packages.tables import Package

PLANNED: Final = frozenset({PackageState.APPROVED, PackageState.NEEDS_CONFIRMATION})
"""In these states a package may wait in a plan that cannot be carried out without it."""

DECISION_COLUMNS: Final = ("decision", "decided_at", "decided_by", "decided_until", "decision_reason")


@attrs.frozen(kw_only=True)
class Told:
    """How an event is called, and what it says between the names of package and machine and the reason."""

    kind: str
    words: str


TOLD: Final[Mapping[Move, Told]] = {
    Move.APPROVE: Told(kind="package.approved", words="was approved"),
    Move.EXCLUDE: Told(kind="package.excluded", words="was excluded"),
    Move.DEFER: Told(kind="package.deferred", words="was deferred"),
    Move.REOPEN: Told(kind="package.reopened", words="was reopened"),
    Move.PLAN: Told(kind="package.planning", words="is being planned"),
    Move.PLAN_CLEAN: Told(kind="package.planned", words="was planned"),
    Move.PLAN_EXTRA: Told(kind="package.needs_confirmation", words="waits for confirmation"),
    Move.PLAN_HELD: Told(kind="package.held", words="is held"),
    Move.PLAN_FAILED: Told(kind="package.failed", words="could not be planned"),
    Move.PLAN_DROPPED: Told(kind="package.plan_dropped", words="is in no plan any more and stays approved"),
    Move.CONFIRM: Told(kind="package.confirmed", words="was confirmed"),
    Move.INSTALL: Told(kind="package.installing", words="is being installed"),
    Move.INSTALL_DONE: Told(kind="package.installed", words="was installed"),
    Move.INSTALL_NEEDS_REBOOT: Told(kind="package.reboot_pending", words="was installed and waits for a reboot"),
    Move.INSTALL_FAILED: Told(kind="package.failed", words="could not be installed"),
    Move.INSTALL_DROPPED: Told(kind="package.not_installed", words="was not installed and stays approved"),
    Move.REBOOTED: Told(kind="package.installed", words="is in use since the reboot"),
    Move.ROLLED_BACK: Told(kind="package.rolled_back", words="was rolled back"),
}
"""What is told of each move."""


@attrs.define
class PackageMoves:
    """
    The moves of one transaction, and the events about them.

    Args:
        session: The open write transaction.
        actor: Who moves them.
        now: Database time, aware UTC.
    """

    session: AsyncSession
    actor: str
    now: datetime
    _events: list[tuple[Package, Told, str | None, dict[str, Any]]] = attrs.field(factory=list, init=False)

    def move(
        self,
        package: Package,
        how: Move,
        seen: Sighting,
        *,
        why: str | None = None,
        told: Told | None = None,
        **facts: Any,
    ) -> PackageState:
        """
        Move a package.

        Args:
            package: Its row, locked.
            how: What happens.
            seen: What scans say.
            why: Why, for people.
            told: How it is told, if not as `TOLD` says.
            facts: Further facts for the event; ``code`` is its code.

        Returns:
            Its new state.

        Raises:
            IllegalMoveError: The core's table has no such move; nothing was changed.
        """
        before = PackageState(package.state)
        after = move(before, how, seen)
        # Where it leads elsewhere than its rule says, scans saw something meanwhile: then they speak.
        restate(package, after, self.now, reason=why if after is MOVES[how].to else None)
        self.tell(package, told or TOLD[how], why, before=before, after=after, **facts)
        return after

    def tell(self, package: Package, told: Told, why: str | None, **facts: Any) -> None:
        """Note an event about a package; `store` writes it."""
        versions = {"name": package.name, "installed": package.installed, "available": package.available}
        self._events.append((package, told, why, {**versions, **facts}))

    async def store(self) -> None:
        """Write what was changed, and the events."""
        await self.session.flush()
        if not self._events:
            return
        agents = {package.agent_id for package, *_ in self._events}
        query = select(Agent.id, Agent.hostname).where(Agent.id.in_(agents))
        names = {row.id: row.hostname for row in await self.session.execute(query)}
        events = [self._event(names[event[0].agent_id], *event) for event in self._events]
        await record_all(self.session, self.now, events)
        self._events.clear()

    def _event(
        self, hostname: str, package: Package, told: Told, why: str | None, facts: dict[str, Any]
    ) -> NewEvent:
        sentence = f"{package.name} on {hostname} {told.words}"
        return NewEvent(
            kind=told.kind,
            actor=self.actor,
            message=f"{sentence}: {why}" if why else f"{sentence}.",
            organization_id=package.organization_id,
            agent_id=package.agent_id,
            package_id=package.id,
            code=facts.get("code"),
            data={key: value for key, value in facts.items() if value is not None and key != "code"},
        )


def restate(package: Package, state: PackageState, now: datetime, *, reason: str | None) -> None:
    """
    Give a package a state, and take from it what does not hold in that state.

    Args:
        package: Its row.
        state: The state.
        now: Database time, aware UTC.
        reason: Why it has this state; None leaves an approved package the reason of its approval.
    """
    if package.state != state:
        package.state, package.state_at = state, now
    if state in UNDECIDED:
        package.plan_id = None
        for name in DECISION_COLUMNS:
            setattr(package, name, None)
    if reason is None and state is PackageState.APPROVED:
        reason = package.decision_reason
    package.state_reason = reason


async def packages_of_plan(session: AsyncSession, plan_id: UUID) -> list[Package]:
    """The packages that point to a plan, locked, in order of name."""
    query = select(Package).where(Package.plan_id == plan_id).order_by(Package.name, Package.arch)
    return list((await session.scalars(query.with_for_update())).all())
