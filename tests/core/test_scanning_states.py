"""How scans change what is known: decisions stay, not knowing is shown."""

import pytest

from redflag_core.errors import ScanError
from redflag_core.scanning import (
    PENDING_STATES,
    SCANNED_STATES,
    Package,
    PackageKey,
    PackageState,
    ScanReport,
    ScanStatus,
    failed_report,
    fold,
    fold_report,
)
from redflag_core.scanning.states import _ANSWERED
from redflag_core.scanning.states import RUNNING as _RUNNING

BY_SCAN = sorted(SCANNED_STATES)
PENDING = sorted(PENDING_STATES)
ANSWERED = sorted(_ANSWERED)
RUNNING = sorted(_RUNNING)


@pytest.mark.parametrize("previous", [*BY_SCAN, None, PackageState.INSTALLED, PackageState.UNKNOWN])
def test_a_failed_scan_makes_packages_unknown(previous):
    """What only a scan can know is not known after a scan that failed."""
    assert PackageState.UNKNOWN is fold(previous, None, scan_ok=False)


@pytest.mark.parametrize("observed", [*BY_SCAN, None])
def test_what_a_failed_scan_saw_is_not_used(observed):
    """Half an answer is no answer."""
    assert PackageState.UNKNOWN is fold(PackageState.CURRENT, observed, scan_ok=False)


@pytest.mark.parametrize("previous", [*ANSWERED, *RUNNING, PackageState.EXCLUDED, PackageState.NOT_APPLICABLE])
def test_a_failed_scan_does_not_reset_what_people_or_installs_said(previous):
    """An approval, a running install, an outcome and a closed package stand, whatever a scanner cannot see."""
    assert previous is fold(previous, None, scan_ok=False)


@pytest.mark.parametrize("previous", [*BY_SCAN, None, PackageState.UNKNOWN, PackageState.NOT_APPLICABLE])
@pytest.mark.parametrize("observed", BY_SCAN)
def test_a_successful_scan_says_what_it_sees(previous, observed):
    """Where nobody decided anything, the state is what was seen: unknown ends and what was gone reopens."""
    assert observed is fold(previous, observed, scan_ok=True)


@pytest.mark.parametrize("previous", sorted(set(PackageState) - _RUNNING))
def test_a_package_that_is_gone_is_closed(previous):
    """What a successful scan does not list does not apply any more."""
    assert PackageState.NOT_APPLICABLE is fold(previous, None, scan_ok=True)


@pytest.mark.parametrize("previous", RUNNING)
@pytest.mark.parametrize("observed", [*BY_SCAN, None])
def test_a_scan_never_resets_what_is_running(previous, observed):
    """Only its own result ends an install, a plan or a reboot."""
    assert previous is fold(previous, observed, scan_ok=True)


@pytest.mark.parametrize("previous", ANSWERED)
@pytest.mark.parametrize("observed", PENDING)
def test_a_rescan_never_resets_an_answer_while_there_is_an_update(previous, observed):
    """Approved stays approved, deferred stays deferred, failed stays failed until something is done."""
    assert previous is fold(previous, observed, scan_ok=True)


@pytest.mark.parametrize("previous", ANSWERED)
def test_an_answer_ends_with_its_update(previous):
    """When the machine got the update by other means there is nothing left to approve or retry."""
    assert PackageState.CURRENT is fold(previous, PackageState.CURRENT, scan_ok=True)


@pytest.mark.parametrize("observed", BY_SCAN)
def test_an_exclusion_outlives_its_update(observed):
    """Excluded is about the package: the next update is excluded too."""
    assert PackageState.EXCLUDED is fold(PackageState.EXCLUDED, observed, scan_ok=True)


@pytest.mark.parametrize("observed", PENDING)
def test_an_installed_package_reopens_with_the_next_update(observed):
    """Installed is said as long as it is the newest."""
    assert PackageState.INSTALLED is fold(PackageState.INSTALLED, PackageState.CURRENT, scan_ok=True)
    assert observed is fold(PackageState.INSTALLED, observed, scan_ok=True)


def test_a_report_folds_all_packages_known_or_seen():
    """Changed, new, gone and decided packages each get their state from one report."""
    known = {
        PackageKey("seen", "all"): PackageState.UNKNOWN,
        PackageKey("gone", "all"): PackageState.CURRENT,
        PackageKey("agreed", "all"): PackageState.APPROVED,
    }
    report = ScanReport(
        scanner="apt",
        manager="apt",
        taken_at=0,
        duration_ms=0,
        status=ScanStatus.OK,
        packages=tuple(
            Package(name=name, arch="all", state=PackageState.AVAILABLE) for name in ("seen", "new", "agreed")
        ),
    )

    states = fold_report(known, report)

    assert {
        "seen": PackageState.AVAILABLE,
        "new": PackageState.AVAILABLE,
        "gone": PackageState.NOT_APPLICABLE,
        "agreed": PackageState.APPROVED,
    } == {key.name: state for key, state in states.items()}


def test_a_failed_report_closes_nothing():
    """A scanner that failed makes its packages unknown; it never looks like an empty machine."""
    known = {
        PackageKey("bash", "amd64"): PackageState.CURRENT,
        PackageKey("held", "amd64"): PackageState.HELD,
        PackageKey("agreed", "amd64"): PackageState.APPROVED,
    }
    report = failed_report(ScanError("locked"), scanner="apt", manager="apt", taken_at=0, duration_ms=0)

    states = fold_report(known, report)

    assert [PackageState.APPROVED, PackageState.UNKNOWN, PackageState.UNKNOWN] == [
        states[key] for key in sorted(known)
    ]
