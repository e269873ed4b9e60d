"""
From a scanner to what is known: breaker, schedule, reports and states together, as an embedder puts them together.

A scanner that fails makes its packages unknown. It never looks like a machine without packages.
"""

from collections.abc import Mapping

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core.errors import CircuitOpenError, ScanError
from redflag_core.resilience import Breaker, BreakerPolicy, BreakerState
from redflag_core.scanning import (
    PENDING_STATES,
    SCANNED_STATES,
    Package,
    PackageKey,
    PackageState,
    ScannerActivity,
    ScannerPolicy,
    ScanReport,
    ScanStatus,
    due,
    failed_report,
    fold_report,
    seconds_until_due,
)
from redflag_core.scanning.states import RUNNING, is_damaged
from redflag_core.testing import FrozenClock

POLICY = ScannerPolicy(interval=600, timeout=60, failure_threshold=3, reset_timeout=3600)
BASH = Package(name="bash", arch="amd64", installed="1", state=PackageState.CURRENT)
CURL = Package(name="curl", arch="amd64", installed="1", available="2", state=PackageState.AVAILABLE)


def ok(*packages):
    """A scan that went well."""
    return ScanReport(
        scanner="apt", manager="apt", taken_at=0, duration_ms=0, status=ScanStatus.OK, packages=packages
    )


def failed(error=None):
    """One that did not."""
    return failed_report(error or ScanError("locked"), scanner="apt", manager="apt", taken_at=0, duration_ms=0)


@attrs.define
class Machine:
    """One scanner under its policy, and what is known of its packages."""

    clock: FrozenClock = attrs.field(factory=FrozenClock)
    outcome: ScanReport | Exception = attrs.field(factory=lambda: ok(BASH, CURL))
    known: Mapping[PackageKey, PackageState] = attrs.field(factory=dict)
    activity: ScannerActivity = attrs.field(factory=ScannerActivity)
    tried: int = 0
    breaker: Breaker = attrs.field(init=False)

    def __attrs_post_init__(self):
        policy = BreakerPolicy(
            failure_threshold=POLICY.failure_threshold,
            reset_timeout=POLICY.reset_timeout,
            call_timeout=POLICY.timeout,
        )
        self.breaker = Breaker("apt", policy, clock=self.clock)

    async def scan(self):
        self.tried += 1
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    async def round(self):
        """Run the scanner through its breaker, and fold what came of it."""
        try:
            report = await self.breaker.call(self.scan)
        except Exception as error:
            report = failed(error)
        self.known = fold_report(self.known, report)
        status = self.breaker.status
        open_until = self.clock.monotonic() + status.retry_after if status.state is BreakerState.OPEN else None
        self.activity = ScannerActivity(finished_at=self.clock.monotonic(), open_until=open_until)
        return report

    def wait(self, **changes):
        """Seconds until it is due."""
        return seconds_until_due(POLICY, attrs.evolve(self.activity, **changes), self.clock.monotonic())

    def states(self):
        return {key.name: state for key, state in self.known.items()}


async def test_a_failing_scanner_makes_its_packages_unknown_until_it_works_again():
    """Through failures, an open circuit and the trial after it, no package is ever closed or called current."""
    machine = Machine()
    await machine.round()
    assert {"bash": PackageState.CURRENT, "curl": PackageState.AVAILABLE} == machine.states()

    machine.outcome = ScanError("the lists cannot be read")
    for _ in range(POLICY.failure_threshold):
        machine.clock.advance(machine.wait())
        assert ScanStatus.FAILED is (await machine.round()).status
        assert {PackageState.UNKNOWN} == set(machine.states().values())

    machine.clock.advance(POLICY.reset_timeout)
    machine.outcome = ok(BASH, CURL)
    assert ("apt",) == due({"apt": POLICY}, {"apt": machine.activity}, machine.clock.monotonic())
    await machine.round()
    assert {"bash": PackageState.CURRENT, "curl": PackageState.AVAILABLE} == machine.states()


async def test_an_open_circuit_is_not_due_and_is_told_apart_when_it_is_asked_all_the_same():
    """Not even a request starts it; a report of it has the status open, and its packages are unknown."""
    machine = Machine(outcome=ScanError("locked"), known={BASH.key: PackageState.CURRENT})
    for _ in range(POLICY.failure_threshold):
        await machine.round()

    assert POLICY.reset_timeout == machine.wait() == machine.wait(requested=True)
    assert () == due({"apt": POLICY}, {"apt": machine.activity}, machine.clock.monotonic())

    tried = machine.tried
    report = await machine.round()
    assert (ScanStatus.OPEN, (), tried) == (report.status, report.packages, machine.tried)
    assert {"bash": PackageState.UNKNOWN} == machine.states()


async def test_a_trial_that_fails_opens_the_circuit_again():
    """One try for each pause, not one for each interval."""
    machine = Machine(outcome=ScanError("locked"))
    for _ in range(POLICY.failure_threshold):
        await machine.round()
    machine.clock.advance(machine.wait())
    tried = machine.tried
    await machine.round()

    assert tried + 1 == machine.tried
    assert POLICY.reset_timeout == machine.wait()


@pytest.mark.parametrize(
    "error", [ScanError("x"), CircuitOpenError("x", retry_after=1), OSError("x"), TimeoutError()]
)
def test_whatever_ended_a_scan_it_has_no_packages_and_says_why(error):
    """Nothing that can go wrong looks like a scan that found nothing."""
    report = failed(error)

    assert ScanStatus.OK is not report.status
    assert (True, ()) == (bool(report.error), report.packages)


def test_a_machine_without_packages_is_another_thing():
    """A scan that went well and lists nothing closes what was known: that is what it saw."""
    known = {BASH.key: PackageState.CURRENT}

    assert {BASH.key: PackageState.NOT_APPLICABLE} == fold_report(known, ok())
    assert {BASH.key: PackageState.UNKNOWN} == fold_report(known, failed())


@pytest.mark.parametrize(
    "state,reason,expected",
    [
        (PackageState.CURRENT, "half configured", True),
        (PackageState.CURRENT, None, False),
        (PackageState.HELD, "apt-mark hold", False),
        (PackageState.AVAILABLE, None, False),
    ],
)
def test_only_a_package_that_is_up_to_date_and_has_a_reason_is_damaged(state, reason, expected):
    """Every other state has reasons of its own."""
    assert expected is is_damaged(state, reason)


@pytest.mark.parametrize(
    "previous,reason,expected",
    [
        (PackageState.FAILED, "half configured", PackageState.FAILED),
        (PackageState.FAILED, None, PackageState.CURRENT),
        (PackageState.APPROVED, "half configured", PackageState.CURRENT),
    ],
)
def test_an_installation_that_failed_half_way_is_not_over_because_its_version_is_there(previous, reason, expected):
    """The report's reason says that the manager has not finished with it."""
    report = ok(attrs.evolve(BASH, reason=reason))

    assert {BASH.key: expected} == fold_report({BASH.key: previous}, report)


keys = st.sampled_from([PackageKey(name, "all") for name in "abc"])
inventory = st.dictionaries(keys, st.sampled_from(sorted(SCANNED_STATES))).map(
    lambda states: ok(*(Package(name=key.name, arch=key.arch, state=state) for key, state in states.items()))
)


@given(st.dictionaries(keys, st.sampled_from(list(PackageState))), st.integers(1, 4), inventory)
def test_failures_between_two_scans_change_nothing_that_the_second_one_says(known, failures, last):
    """However often it fails, the next success says what it would have said without the failures."""
    after = known
    for _ in range(failures):
        after = fold_report(after, failed())
        assert known.keys() == after.keys()
        assert not {PackageState.CURRENT, *PENDING_STATES, PackageState.INSTALLED} & set(after.values())

    once, through = fold_report(known, last), fold_report(after, last)

    for key in once:
        if known.get(key) is not PackageState.INSTALLED:
            assert once[key] is through[key]


@given(st.dictionaries(keys, st.sampled_from(list(PackageState))), inventory)
def test_a_scan_says_something_of_every_package_that_is_known_or_seen(known, report):
    """None is forgotten, none is invented, and none becomes what no scan can say."""
    after = fold_report(known, report)

    assert known.keys() | {package.key for package in report.packages} == after.keys()
    new = {state for key, state in after.items() if state is not known.get(key)}
    assert new <= SCANNED_STATES | {PackageState.NOT_APPLICABLE}
    assert {key for key in known if known[key] in RUNNING} <= {key for key in after if after[key] in RUNNING}
