"""From what a scanner said to what goes on the wire: full, or as the change against what the server holds."""

from redflag_core import scanning
from redflag_core.messages import Report
from redflag_core.scanning import PackageDelta, ScanReport, ScanStatus, delta, inventory_hash


def report_hash(report: ScanReport) -> str | None:
    """Inventory hash of a successful scan; None for a failed one."""
    return inventory_hash(report.packages) if report.status is ScanStatus.OK else None


def content_digest(report: ScanReport) -> str:
    """See `redflag_core.scanning.content_digest`; the server makes the same of the report that it stores."""
    return scanning.content_digest(
        status=report.status,
        error=report.error,
        warnings=report.warnings,
        facts=report.facts,
        inventory=report_hash(report),
    )


def make_report(report: ScanReport, *, report_id: str, base: ScanReport | None) -> Report:
    """
    The body that tells the server of *report*.

    Args:
        report: Successful or failed.
        report_id: UUID under which the server accepts it once.
        base: The successful report whose inventory the server holds; None to send everything.
    """
    failed = report.status is not ScanStatus.OK
    base = None if failed else base
    change = _change(report, base)
    return Report(
        v=1,
        report_id=report_id,
        taken_at=report.taken_at + report.duration_ms // 1000,
        duration_ms=report.duration_ms,
        status=report.status,
        manager=report.manager,
        error=report.error,
        warnings=report.warnings,
        base=None if base is None else report_hash(base),
        hash=report_hash(report),
        packages=change.upserts,
        removed=change.removed,
        facts=report.facts,
    )


def _change(report: ScanReport, base: ScanReport | None) -> PackageDelta:
    return PackageDelta(report.packages) if base is None else delta(base.packages, report.packages)
