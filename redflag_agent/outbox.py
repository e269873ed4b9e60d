"""
Reports that the server has not accepted yet, and what it accepted last.

The latest report of a scanner supersedes the one before it; the last accepted inventory stays, as the base of the
next delta. The executor's statements are in its own journal; here is only which of them the server refused. Each
public method is one short transaction (`redflag_agent.database`).
"""

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import attrs

from redflag_agent.database import Database
from redflag_agent.reports import content_digest, report_hash
from redflag_core import codec
from redflag_core.errors import MalformedError
from redflag_core.messages import MAX_REPORT_BODY
from redflag_core.scanning import ScanReport

LAST_CHECK_IN: Final = "last_check_in"
"""Name of a number kept by `Outbox.note`: unix seconds of the last check-in that was answered."""


@attrs.frozen
class ScanRun:
    """
    The last run of a scanner, as `status` and check-ins show it.

    Attributes:
        scanner: Its name.
        manager: Package manager.
        status: ``ok`` or ``failed``.
        hash: Inventory hash of the last successful scan, or None before the first.
        taken_at: Unix seconds.
        duration_ms: Milliseconds.
        error: Why it failed, or None.
        warnings: What it could not do.
        states: Packages in each state, of this run.
        content: Digest of all that it said.
    """

    scanner: str
    manager: str
    status: str
    hash: str | None
    taken_at: int
    duration_ms: int
    error: str | None
    warnings: tuple[str, ...]
    states: dict[str, int]
    content: str


@attrs.frozen
class StoredReport:
    """
    A report as it is kept.

    Attributes:
        report_id: UUID under which the server accepts it once.
        hash: Its inventory hash, None for a failed scan.
        report: The report with all packages.
    """

    report_id: str
    hash: str | None
    report: ScanReport


@attrs.frozen
class Refusal:
    """
    That the server refused a statement for good.

    Attributes:
        code: The server's code.
        at: Unix seconds.
    """

    code: str
    at: int


@attrs.frozen
class Outbox:
    """
    Reports on their way.

    Args:
        database: Where they are kept.
    """

    database: Database

    def record_scan(self, report: ScanReport, *, report_id: str) -> bool:
        """
        Keep the outcome of a scan, in place of an older one that was not accepted.

        Args:
            report: What the scanner said.
            report_id: UUID to send it under.

        Returns:
            Whether there is something to tell the server: False when it accepted the same already.
        """
        content, inventory = content_digest(report), report_hash(report)
        with self.database.transaction() as db:
            db.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL) ON CONFLICT (scanner) DO UPDATE SET"
                " manager = excluded.manager, status = excluded.status, hash = coalesce(excluded.hash, hash),"
                " taken_at = excluded.taken_at, duration_ms = excluded.duration_ms, error = excluded.error,"
                " warnings = excluded.warnings, states = excluded.states, content = excluded.content",
                (*_run_columns(report, inventory), content),
            )
            db.execute("DELETE FROM reports WHERE scanner = ? AND slot = 'pending'", (report.scanner,))
            (known,) = db.execute(
                "SELECT accepted_content FROM runs WHERE scanner = ?", (report.scanner,)
            ).fetchone()
            if known == content:
                return False
            db.execute(
                "INSERT INTO reports VALUES (?, 'pending', ?, ?, ?, NULL)",
                (report.scanner, report_id, inventory, zlib.compress(codec.dump(report))),
            )
        return True

    def pending(self) -> tuple[str, ...]:
        """Scanners whose latest report the server has neither accepted nor refused."""
        query = "SELECT scanner FROM reports WHERE slot = 'pending' AND refused IS NULL ORDER BY scanner"
        with self.database.transaction() as db:
            return tuple(row[0] for row in db.execute(query))

    def pending_report(self, scanner: str) -> StoredReport | None:
        """The report to send; None when there is none, or one that another release wrote."""
        return self._stored(scanner, "pending")

    def accepted_report(self, scanner: str) -> StoredReport | None:
        """The last successful report that the server accepted; None as for `pending_report`."""
        return self._stored(scanner, "accepted")

    def accept(self, scanner: str, report_id: str) -> None:
        """The server accepted this report. Nothing happens when a newer one took its place meanwhile."""
        key = (scanner, report_id)
        with self.database.transaction() as db:
            row = db.execute(
                "SELECT hash FROM reports WHERE scanner = ? AND report_id = ? AND slot = 'pending'", key
            ).fetchone()
            if row is None:
                return
            db.execute("UPDATE runs SET accepted_content = content WHERE scanner = ?", (scanner,))
            if row[0] is None:
                db.execute("DELETE FROM reports WHERE scanner = ? AND slot = 'pending'", (scanner,))
                return
            db.execute("DELETE FROM reports WHERE scanner = ? AND slot = 'accepted'", (scanner,))
            db.execute("UPDATE reports SET slot = 'accepted' WHERE scanner = ?", (scanner,))

    def refuse(self, scanner: str, report_id: str, reason: str) -> None:
        """The server will never take this report: keep it, do not send it, until a scan takes its place."""
        with self.database.transaction() as db:
            db.execute(
                "UPDATE reports SET refused = ? WHERE scanner = ? AND report_id = ? AND slot = 'pending'",
                (reason, scanner, report_id),
            )

    def send_again(self, scanner: str, *, report_id: str) -> None:
        """
        The server lost what it had accepted: it is pending again.

        What is not kept, such as a failed scan or an inventory older than one, is sent after the next scan: that
        counts as news even if it says the same.
        """
        with self.database.transaction() as db:
            db.execute(
                "UPDATE reports SET slot = 'pending', report_id = :report_id"
                " WHERE scanner = :scanner AND slot = 'accepted' AND EXISTS ("
                "SELECT 1 FROM runs WHERE scanner = :scanner AND status = 'ok' AND content = accepted_content)",
                {"scanner": scanner, "report_id": report_id},
            )
            db.execute("UPDATE runs SET accepted_content = NULL WHERE scanner = ?", (scanner,))

    def runs(self) -> tuple[ScanRun, ...]:
        """The last run of each scanner."""
        query = (
            "SELECT scanner, manager, status, hash, taken_at, duration_ms, error, warnings, states, content"
            " FROM runs ORDER BY scanner"
        )
        with self.database.transaction() as db:
            return tuple(_scan_run(row) for row in db.execute(query))

    def note(self, name: str, value: int) -> None:
        """Remember a number, such as the time of the last check-in."""
        with self.database.transaction() as db:
            db.execute("INSERT OR REPLACE INTO counters VALUES (?, ?)", (name, value))

    def noted(self, name: str) -> int | None:
        """A number remembered by `note`."""
        with self.database.transaction() as db:
            row = db.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
        return None if row is None else int(row[0])

    def note_refusal(self, envelope: bytes, code: str, *, now: int) -> None:
        """The server refused this statement for good. It is shown, and tried again some day."""
        with self.database.transaction() as db:
            row = _digest(envelope), code, now
            db.execute("INSERT OR REPLACE INTO refused_statements VALUES (?, ?, ?)", row)

    def forget_refusal(self, envelope: bytes) -> None:
        """The server has this statement now."""
        with self.database.transaction() as db:
            db.execute("DELETE FROM refused_statements WHERE digest = ?", (_digest(envelope),))

    def refusal(self, envelope: bytes) -> Refusal | None:
        """The refusal of this statement, if there was one."""
        query = "SELECT code, at FROM refused_statements WHERE digest = ?"
        with self.database.transaction() as db:
            row = db.execute(query, (_digest(envelope),)).fetchone()
        return None if row is None else Refusal(*row)

    def _stored(self, scanner: str, slot: str) -> StoredReport | None:
        with self.database.transaction() as db:
            row = db.execute(
                "SELECT report_id, hash, body FROM reports WHERE scanner = ? AND slot = ?", (scanner, slot)
            ).fetchone()
        if row is None:
            return None
        try:
            report = codec.parse(ScanReport, zlib.decompress(row[2]), max_bytes=MAX_REPORT_BODY)
        except (MalformedError, zlib.error):
            return None
        return StoredReport(row[0], row[1], report)


def _digest(envelope: bytes) -> str:
    return hashlib.sha256(envelope).hexdigest()


def _run_columns(report: ScanReport, inventory: str | None) -> tuple[str | int | None, ...]:
    states = Counter(package.state.value for package in report.packages)
    return (
        report.scanner,
        report.manager,
        report.status.value,
        inventory,
        report.taken_at,
        report.duration_ms,
        report.error,
        json.dumps(report.warnings),
        json.dumps(states, sort_keys=True),
    )


def _scan_run(row: Sequence[Any]) -> ScanRun:
    scanner, manager, status, inventory, taken_at, duration_ms, error, warnings, states, content = row
    decoded = tuple(json.loads(warnings)), json.loads(states)
    return ScanRun(scanner, manager, status, inventory, taken_at, duration_ms, error, *decoded, content)
