"""Running scanners: what they do wrong becomes their report, and never the agent's end."""

import asyncio

import attrs
import pytest

from redflag_agent.scans import ScannerRun, run_all, scanner_runs
from redflag_core.scanning import ScannerPolicy, ScanStatus
from redflag_core.testing import FrozenClock
from tests.helpers.agents import FakeScanner, failed, package
from tests.helpers.virtual_time import run_in_virtual_time

POLICY = ScannerPolicy(interval=600.0, timeout=30.0, failure_threshold=2, reset_timeout=1200.0)


def scanner_run(scanner, clock=None, policy=POLICY):
    """A scanner and what is told of its errors."""
    told = []
    return ScannerRun(
        scanner, policy, clock or FrozenClock(), lambda name, error: told.append((name, error))
    ), told


async def test_a_good_scan_is_its_report():
    """As the scanner gave it."""
    run, told = scanner_run(FakeScanner((package("a"),)))

    report = await run.run()

    assert (ScanStatus.OK, 1, []) == (report.status, len(report.packages), told)


@pytest.mark.parametrize("error, said", [(failed("locked"), "locked"), (RuntimeError("secret"), "RuntimeError")])
async def test_a_failed_scan_is_a_failed_report(error, said):
    """With the scanner's sentence, or only the type of what nobody expected."""
    run, told = scanner_run(FakeScanner(failure=error))

    report = await run.run()

    assert (ScanStatus.FAILED, ()) == (report.status, report.packages)
    assert said in report.error
    assert "secret" not in report.error
    assert ["apt"] == [name for name, _ in told]


@pytest.mark.parametrize("other", [{"scanner": "dnf"}, {"manager": "dnf"}])
async def test_a_report_of_another_scanner_is_a_failed_scan(other):
    """A scanner speaks for itself only: what another one found is not overwritten by its mistake."""

    class Confused(FakeScanner):
        async def scan(self):
            return attrs.evolve(await super().scan(), **other)

    run, told = scanner_run(Confused((package("a"),)))

    report = await run.run()

    assert ("apt", "apt", ScanStatus.FAILED, ()) == (
        report.scanner,
        report.manager,
        report.status,
        report.packages,
    )
    assert "the scanner apt (apt) gave a report of" in report.error
    assert "dnf" in report.error
    assert ["apt"] == [name for name, _ in told]


def test_a_scan_that_hangs_is_ended_by_the_clock():
    """After its timeout, with a sentence."""

    async def main(clock):
        run, _ = scanner_run(FakeScanner(gate=asyncio.Event()), clock)
        report = await run.run()
        return report, clock.monotonic()

    report, seconds = run_in_virtual_time(main)

    assert "longer than 30 s" in report.error
    assert 30.0 == seconds


async def test_a_scanner_is_due_at_the_start_and_then_after_its_interval():
    """The interval counts from the end of a scan."""
    clock = FrozenClock()
    run, _ = scanner_run(FakeScanner(), clock)
    assert 0.0 == run.seconds_until_due()

    await run.run()
    clock.advance(500)

    assert 100.0 == run.seconds_until_due()


async def test_a_scanner_that_keeps_failing_is_left_alone():
    """After two failures it waits for the trial, longer than its interval; one success closes the circuit."""
    clock, scanner = FrozenClock(), FakeScanner(failure=failed("dpkg is broken"))
    run, told = scanner_run(scanner, clock)
    reports = [await run.run(), await run.run()]

    assert 1200.0 == run.seconds_until_due()
    assert [ScanStatus.FAILED, ScanStatus.OPEN] == [report.status for report in reports]
    assert "dpkg is broken (it kept failing, so it is tried only every 20 minutes)" == reports[1].error
    assert ["dpkg is broken"] * 2 == [error.message for _, error in told]

    clock.advance(1200)
    scanner.failure = None
    assert ScanStatus.OK == (await run.run()).status
    assert not run.is_open


async def test_scanners_run_beside_each_other():
    """A slow one does not hold up the others."""
    gate = asyncio.Event()
    slow, fast = FakeScanner(gate=gate, name="dnf"), FakeScanner(name="apt")
    runs = scanner_runs([slow, fast], lambda _name: POLICY, clock=FrozenClock(), on_error=lambda *_: None)

    task = asyncio.create_task(run_all(runs))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (1, 1) == (slow.scans, fast.scans)
    gate.set()

    assert {"apt", "dnf"} == {report.scanner for report in await task}


async def test_a_disabled_scanner_does_not_run():
    """It is not even among the runs."""
    off = ScannerPolicy(enabled=False)

    assert {} == scanner_runs([FakeScanner()], lambda _name: off, clock=FrozenClock(), on_error=lambda *_: None)


async def test_a_cancelled_scan_is_cancelled():
    """The agent's end is not a failure of the scanner."""
    run, told = scanner_run(FakeScanner(gate=asyncio.Event()))
    task = asyncio.create_task(run.run())
    await asyncio.sleep(0)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert [] == told
    assert run.seconds_until_due() is not None
