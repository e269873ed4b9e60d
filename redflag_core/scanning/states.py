"""
How a scan changes what is known of a package.

Two rules hold for the whole file. A rescan never resets what people decided or what is being done. And not knowing
is a state of its own: a failed scan makes packages `unknown`, it never makes them look up to date.

What people, plans and installations change is in `redflag_core.patching.states`, together with the table of every
change of state that there is: those that `fold` makes are read from this file into it.
"""

from collections.abc import Mapping
from typing import Final

from redflag_core.scanning.model import (
    PENDING_STATES,
    Package,
    PackageKey,
    PackageState,
    ScanReport,
    ScanStatus,
    index_packages,
)

RUNNING: Final = frozenset({PackageState.PLANNING, PackageState.INSTALLING, PackageState.REBOOT_PENDING})
"""Something is being done: only its own result ends it. A scan in the middle of it may see anything."""

_ANSWERED: Final = frozenset(
    {
        PackageState.APPROVED,
        PackageState.DEFERRED,
        PackageState.NEEDS_CONFIRMATION,
        PackageState.FAILED,
        PackageState.ROLLED_BACK,
    }
)
"""Said about an update. Holds as long as there is an update: also after a failed scan, which brings no news."""

_OUTLIVES_FAILURE: Final = _ANSWERED | {PackageState.EXCLUDED, PackageState.NOT_APPLICABLE}


def is_damaged(observed: PackageState, reason: str | None) -> bool:
    """
    Whether the newest version of a package is there, and its manager has not finished with it.

    Args:
        observed: What a scan saw it as.
        reason: `Package.reason`: a package that is up to date has one only when it is damaged.
    """
    return observed is PackageState.CURRENT and reason is not None


def fold(
    previous: PackageState | None, observed: PackageState | None, *, scan_ok: bool, damaged: bool = False
) -> PackageState:
    """
    State of a package after a scan.

    Args:
        previous: State before, None for a package that was never seen.
        observed: What the scan says, None when it does not list the package. Means nothing after a failed scan.
        scan_ok: Whether the scan succeeded.
        damaged: See `is_damaged`: an installation that failed half-way is not over because its version is there.

    Returns:
        The new state. A package that a successful scan does not list is closed (`not_applicable`); one that
        appears again opens again, as what it is seen to be.
    """
    if previous in RUNNING:
        return previous
    if not scan_ok:
        return previous if previous in _OUTLIVES_FAILURE else PackageState.UNKNOWN
    if observed is None:
        return PackageState.NOT_APPLICABLE
    return _after_sighting(previous, observed, damaged=damaged)


def _after_sighting(previous: PackageState | None, observed: PackageState, *, damaged: bool) -> PackageState:
    # An exclusion is about the package, not about one update: it must still hold when the next update comes.
    if previous is PackageState.EXCLUDED:
        return previous
    if previous in _ANSWERED and observed in PENDING_STATES:
        return previous
    if previous is PackageState.FAILED and damaged:
        return previous
    if previous is PackageState.INSTALLED and observed is PackageState.CURRENT:
        return previous
    return observed


def fold_report(known: Mapping[PackageKey, PackageState], report: ScanReport) -> dict[PackageKey, PackageState]:
    """
    State of every package of a scanner after *report*.

    Args:
        known: States before, of all packages of this machine and scanner.
        report: A full report or a failed one. After a failed one each known package is folded as failed.
    """
    seen = index_packages(report.packages)
    scan_ok = report.status is ScanStatus.OK
    return {
        key: _fold_package(known.get(key), seen.get(key), scan_ok=scan_ok) for key in known.keys() | seen.keys()
    }


def _fold_package(previous: PackageState | None, package: Package | None, *, scan_ok: bool) -> PackageState:
    if package is None:
        return fold(previous, None, scan_ok=scan_ok)
    return fold(previous, package.state, scan_ok=scan_ok, damaged=is_damaged(package.state, package.reason))
