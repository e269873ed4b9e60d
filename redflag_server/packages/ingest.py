"""Accepting scan reports: full or delta, each once, so that the rows are exactly the inventory of the hash."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import bindparam, func, insert, not_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from redflag_core.errors import MalformedError
from redflag_core.messages import MAX_SCANNERS, Report, ReportAccepted
from redflag_core.patching.states import UNDECIDED
from redflag_core.scanning import (
    FACT_SCANNERS,
    SCANNED_STATES,
    PackageKey,
    PackageState,
    ScanStatus,
    Severity,
    content_digest,
    fold,
    index_packages,
    inventory_hash,
    updated_hash,
)
from redflag_core.scanning import Package as ScannedPackage
from redflag_core.scanning.states import is_damaged
from redflag_server.checkin.authentication import VerifiedAgent
from redflag_server.checkin.claims import recheck
from redflag_server.events.recorder import NewEvent, record, record_all
from redflag_server.packages.moves import DECISION_COLUMNS, PLANNED
from redflag_server.packages.tables import Package, Scanner, ScanReport
from redflag_server.plans.changes import SCANNED, drop, open_plans
from redflag_server.problems import ConflictError
from redflag_server.runtime import Runtime

KEYS_AT_ONCE: Final = 5_000
"""Package keys in one statement: two variables each, and SQLite takes 32,766."""


async def accept_report(runtime: Runtime, sender: VerifiedAgent, name: str, report: Report) -> ReportAccepted:
    """
    Store one report of one scanner.

    Args:
        runtime: The server.
        sender: The verified agent.
        name: The scanner, from the path.
        report: The report.

    Returns:
        Whether it was stored. A delta against another inventory than the one held here is not: the answer asks for
        a full report.

    Raises:
        MalformedError: A full report whose hash is not of its packages.
        ConflictError: The report id was used by another report.
    """
    async with runtime.database.write() as session:
        await recheck(session, sender.entry)
        now = runtime.clock.now()
        ingest = _Ingest(session, sender.entry.agent_id, sender.organization_id, name, report, now)
        repeated = await ingest.repeated()
        if repeated is not None:
            return repeated
        scanner = await ingest.scanner()
        if report.status is not ScanStatus.OK:
            await ingest.fail(scanner)
        elif not await ingest.store(scanner):
            return ReportAccepted(1, accepted=False, hash=scanner.inventory_hash)
        await ingest.finish(scanner)
        return ReportAccepted(1, accepted=True, hash=scanner.inventory_hash)


@attrs.define
class _Ingest:
    """One report on its way into the database."""

    session: AsyncSession
    agent_id: UUID
    organization_id: UUID
    name: str
    report: Report
    now: datetime
    changed: int = 0
    removed: int = 0

    async def repeated(self) -> ReportAccepted | None:
        """The answer to a report that was accepted before."""
        stored = await self.session.get(ScanReport, UUID(self.report.report_id))
        if stored is None:
            return None
        if (stored.agent_id, stored.scanner) != (self.agent_id, self.name):
            raise ConflictError("this report id was used already: make a new one for each report")
        scanner = await self.scanner()
        return ReportAccepted(1, accepted=True, hash=scanner.inventory_hash)

    async def scanner(self) -> Scanner:
        """The record of the scanner, made at its first report."""
        query = select(Scanner).where(Scanner.agent_id == self.agent_id, Scanner.name == self.name)
        found = (await self.session.scalars(query.with_for_update())).one_or_none()
        if found is not None:
            return found
        others = select(func.count()).select_from(Scanner).where(Scanner.agent_id == self.agent_id)
        if (await self.session.scalars(others)).one() >= MAX_SCANNERS:
            raise ConflictError(f"an agent has at most {MAX_SCANNERS} scanners")
        return Scanner(
            organization_id=self.organization_id,
            agent_id=self.agent_id,
            name=self.name,
            manager=self.report.manager,
            status=ScanStatus.OK,
            warnings=[],
            facts={},
            duration_ms=0,
        )

    async def fail(self, scanner: Scanner) -> None:
        """A scan that failed: what its packages are is not known now."""
        for state in PackageState:
            folded = fold(state, None, scan_ok=False)
            if folded is not state:
                await self._restate(folded, Package.state == state)
        if scanner.status == ScanStatus.OK:
            await self._event("scanner.failed", f"The scanner {self.name} failed: {self.report.error}")

    async def store(self, scanner: Scanner) -> bool:
        """A scan that succeeded: make the rows the inventory it saw. False when the delta does not fit."""
        come = index_packages(self.report.packages)
        rows = await self._rows(None if self.report.base is None else {*come, *self.report.removed})
        if self.report.base is None:
            if inventory_hash(self.report.packages) != self.report.hash:
                raise MalformedError("the hash is not of these packages")
            gone = {key for key, row in rows.items() if row.present and key not in come}
        else:
            gone = set(self.report.removed)
            if not self._fits(scanner, rows, come):
                return False
        left = await self._write(rows, come, gone)
        await self._settle()
        await self._drop_plans(left)
        if scanner.status != ScanStatus.OK:
            await self._event("scanner.recovered", f"The scanner {self.name} works again.")
        return True

    def _fits(
        self, scanner: Scanner, rows: Mapping[PackageKey, Any], come: Mapping[PackageKey, ScannedPackage]
    ) -> bool:
        present = {key: _scanned(row) for key, row in rows.items() if row.present}
        if scanner.inventory_hash != self.report.base or not present.keys() >= set(self.report.removed):
            return False
        return updated_hash(self.report.base or "", gone=present.values(), come=come.values()) == self.report.hash

    async def finish(self, scanner: Scanner) -> None:
        """Store the report's own record, and what the scanner says of itself."""
        report = self.report
        taken_at = datetime.fromtimestamp(report.taken_at, tz=UTC)
        first = scanner.id is None
        scanner.manager = report.manager
        scanner.status = report.status
        scanner.error = report.error
        scanner.warnings = list(report.warnings)
        scanner.facts = report.facts
        scanner.duration_ms = report.duration_ms
        scanner.taken_at = taken_at
        scanner.content = content_digest(
            status=report.status,
            error=report.error,
            warnings=report.warnings,
            facts=report.facts,
            inventory=report.hash,
        )
        if report.status is ScanStatus.OK:
            scanner.succeeded_at = taken_at
            scanner.inventory_hash = report.hash
        self.session.add(scanner)
        self.session.add(
            ScanReport(
                id=UUID(report.report_id),
                organization_id=self.organization_id,
                agent_id=self.agent_id,
                scanner=self.name,
                received_at=self.now,
                taken_at=taken_at,
                status=report.status,
                full=report.base is None,
                changed=self.changed,
                removed=self.removed,
                inventory_hash=report.hash,
            )
        )
        if self.changed or self.removed or (first and self.name not in FACT_SCANNERS):
            message = (
                f"The scanner {self.name} reported {self.changed} new or changed packages, {self.removed} gone."
            )
            await self._event("packages.reported", message)

    async def _rows(self, keys: set[PackageKey] | None) -> dict[PackageKey, Any]:
        """Rows of this scanner by key: all of them, or those with *keys*."""
        table = Package.__table__
        query = select(table).where(table.c.agent_id == self.agent_id, table.c.scanner == self.name)
        if keys is None:
            return {PackageKey(row.name, row.arch): row for row in await self.session.execute(query)}
        rows: dict[PackageKey, Any] = {}
        pairs = sorted((key.name, key.arch) for key in keys)
        for start in range(0, len(pairs), KEYS_AT_ONCE):
            part = query.where(tuple_(table.c.name, table.c.arch).in_(pairs[start : start + KEYS_AT_ONCE]))
            rows.update({PackageKey(row.name, row.arch): row for row in await self.session.execute(part)})
        return rows

    async def _write(
        self,
        rows: Mapping[PackageKey, Any],
        come: Mapping[PackageKey, ScannedPackage],
        gone: Iterable[PackageKey],
    ) -> set[UUID]:
        """Write what was seen; the plans that a package left."""
        new = [self._new(come[key]) for key in sorted(come.keys() - rows.keys())]
        kept = [
            self._changed(rows[key], come[key])
            for key in sorted(come.keys() & rows.keys())
            if not rows[key].present or _scanned(rows[key]) != come[key]
        ]
        closed = [self._closed(rows[key]) for key in sorted(gone)]
        self.changed, self.removed = len(new) + len(kept), len(closed)
        ended = {change["row"]: PackageState(change["state"]) for change in (*kept, *closed)}
        freed = [row for row in rows.values() if ended.get(row.id) in UNDECIDED and row.state not in UNDECIDED]
        await self._tell_ended([row for row in freed if row.state != PackageState.INSTALLED], ended)
        connection = await self.session.connection()
        table = Package.__table__
        if new:
            await connection.execute(insert(table), new)  # type: ignore[arg-type]
        for changes in (kept, closed):
            if changes:
                columns: dict[str, Any] = {name: bindparam(f"new_{name}") for name in changes[0] if name != "row"}
                values = [{(k if k == "row" else f"new_{k}"): v for k, v in change.items()} for change in changes]
                statement = update(table).where(table.c.id == bindparam("row")).values(columns)  # type: ignore[arg-type]
                await connection.execute(statement, values)
        return {row.plan_id for row in freed if row.plan_id is not None and row.state in PLANNED}

    def _new(self, package: ScannedPackage) -> dict[str, Any]:
        return {
            "id": uuid7(),
            "organization_id": self.organization_id,
            "agent_id": self.agent_id,
            "manager": self.report.manager,
            "scanner": self.name,
            "first_seen_at": self.now,
            "state_at": self.now,
            "state": fold(None, package.state, scan_ok=True),
            **_columns(package),
        }

    def _changed(self, row: Any, package: ScannedPackage) -> dict[str, Any]:
        damaged = is_damaged(package.state, package.reason)
        state = fold(PackageState(row.state), package.state, scan_ok=True, damaged=damaged)
        state_at = row.state_at if state == row.state else self.now
        changes = {"state": state, "state_at": state_at, "manager": self.report.manager}
        return {"row": row.id, **changes, **_said(row, state), **_columns(package)}

    def _closed(self, row: Any) -> dict[str, Any]:
        state = fold(PackageState(row.state), None, scan_ok=True)
        state_at = row.state_at if state == row.state else self.now
        return {"row": row.id, "state": state, "state_at": state_at, "present": False, **_said(row, state)}

    async def _settle(self) -> None:
        """
        Packages that did not change are again what was observed of them.

        After a failure they are unknown, and what a plan or an installation found out of them is older than this
        scan. What was installed stays so: its row may be from before.
        """
        pairs = tuple_(Package.state, Package.observed).in_(_GIVE_WAY)
        broken = (Package.state == PackageState.FAILED) & Package.reason.is_not(None)
        await self._restate(
            Package.observed, pairs, not_(broken & (Package.observed == PackageState.CURRENT)), Package.present
        )

    async def _restate(self, state: Any, *conditions: Any) -> None:
        """Set a state in which only scans speak."""
        await self.session.execute(
            update(Package)
            .where(Package.agent_id == self.agent_id, Package.scanner == self.name, *conditions)
            .values(state=state, state_at=self.now, **dict.fromkeys(_SAID))
            .execution_options(synchronize_session=False)
        )

    async def _tell_ended(self, rows: Iterable[Any], states: Mapping[UUID, PackageState]) -> None:
        """What people said of packages ends when there is nothing left to say it of."""
        events = [
            NewEvent(
                kind="package.decision_ended",
                actor=f"agent:{self.agent_id}",
                message=f"{row.name} is {_words(states[row.id])} now; it was {_words(row.state)}.",
                organization_id=self.organization_id,
                agent_id=self.agent_id,
                package_id=row.id,
                data={"name": row.name, "before": row.state, "after": states[row.id], "decision": row.decision},
            )
            for row in rows
        ]
        await record_all(self.session, self.now, events)

    async def _drop_plans(self, plan_ids: set[UUID]) -> None:
        """A plan is carried out as a whole or not at all."""
        why = "a scan saw that a package of it is up to date or gone"
        for plan in await open_plans(self.session, plan_ids):
            await drop(self.session, plan, f"agent:{self.agent_id}", self.now, code=SCANNED, why=why)

    async def _event(self, kind: str, message: str) -> None:
        await record(
            self.session,
            at=self.now,
            kind=kind,
            actor=f"agent:{self.agent_id}",
            message=message,
            organization_id=self.organization_id,
            agent_id=self.agent_id,
            data={"scanner": self.name, "report": self.report.report_id},
        )


_SAID: Final = (*DECISION_COLUMNS, "plan_id", "state_reason")
_WORDS: Final = {PackageState.CURRENT: "up to date", PackageState.NOT_APPLICABLE: "gone"}


def _words(state: str) -> str:
    return _WORDS.get(PackageState(state)) or state.replace("_", " ")


def _said(row: Any, state: PackageState) -> dict[str, Any]:
    """What people, plans and installations said of a package: kept while its state is one of theirs."""
    return {name: None if state in UNDECIDED else getattr(row, name) for name in _SAID}


_GIVE_WAY: Final = [
    (state, observed)
    for state in sorted(set(PackageState) - {PackageState.INSTALLED})
    for observed in sorted(SCANNED_STATES)
    if fold(state, observed, scan_ok=True) is not state
]
"""State and observed state of packages that a scan would move to the latter."""


_FIELDS = tuple(field.name for field in attrs.fields(ScannedPackage) if field.name not in ("state", "cves"))


def _columns(package: ScannedPackage) -> dict[str, Any]:
    """A scanned package as columns."""
    columns: dict[str, Any] = {name: getattr(package, name) for name in _FIELDS}
    return {**columns, "observed": package.state, "cves": list(package.cves), "present": True}


def _scanned(row: Any) -> ScannedPackage:
    """The package that a row was made from."""
    fields = {name: getattr(row, name) for name in _FIELDS if name != "severity"}
    return ScannedPackage(
        **fields, severity=Severity(row.severity), state=PackageState(row.observed), cves=tuple(row.cves)
    )
