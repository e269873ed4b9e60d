"""Scanners at work: one scan of each at a time, and whoever asks gets one that began after the question."""

import asyncio

import pytest

from redflag_agent.contact import Contact
from redflag_agent.database import OutboxError
from redflag_agent.scanning import Scanning
from redflag_agent.scans import scanner_runs
from redflag_core.errors import ScanError
from redflag_core.scanning import ScannerPolicy
from tests.helpers.agents import FakeScanner, agent_parts, failed, package
from tests.helpers.stub_server import StubServer
from tests.helpers.virtual_time import run_in_virtual_time

HOURLY = ScannerPolicy(interval=3600.0, timeout=600.0)


def scanning_of(parts, *scanners, policy=HOURLY):
    """The scanners of *parts* at work."""
    scans = scanner_runs(scanners, lambda _name: policy, clock=parts.clock, on_error=lambda *_: None)
    return Scanning(scans, parts.outbox, Contact(), parts.entropy, asyncio.sleep, parts.tell)


def held(parts, name="apt"):
    """Names of the packages in the report that waits."""
    stored = parts.outbox.pending_report(name)
    return [found.name for found in stored.report.packages]


async def settle():
    """Let everything that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_rescan_after_a_change_begins_after_the_change(tmp_path):
    """A scan that was under way looked before the installation ended: another one follows and is waited for."""
    gate = asyncio.Event()
    scanner = FakeScanner((package("before"),), gate=gate)
    async with agent_parts(tmp_path / "a") as parts:
        scanning = scanning_of(parts, scanner)
        early = asyncio.create_task(scanning.scan_all())
        await settle()
        scanner.packages = (package("after"),)

        rescan = asyncio.create_task(scanning.rescan("apt"))
        await settle()
        assert 1 == scanner.scans
        gate.set()
        await early
        await rescan

        assert 2 == scanner.scans
        assert ["after"] == held(parts)


async def test_those_who_ask_while_one_runs_share_the_next(tmp_path):
    """Ten questions are two scans, and each answer is in the outbox when its question returns."""
    gate = asyncio.Event()
    scanner = FakeScanner((package("a"),), gate=gate)
    async with agent_parts(tmp_path / "a") as parts:
        scanning = scanning_of(parts, scanner)
        early = asyncio.create_task(scanning.scan_all())
        await settle()
        asked = [asyncio.create_task(scanning.rescan(None)) for _ in range(10)]
        await settle()
        gate.set()

        await asyncio.gather(early, *asked)

        assert 2 == scanner.scans


async def test_a_question_after_a_scan_is_a_scan_of_its_own(tmp_path):
    """An outcome that is there already is older than the question."""
    scanner = FakeScanner((package("a"),))
    async with agent_parts(tmp_path / "a") as parts:
        scanning = scanning_of(parts, scanner)
        for _ in range(3):
            await scanning.rescan("apt")

        assert 3 == scanner.scans


async def test_a_scan_that_was_given_up_answers_nobody(tmp_path):
    """Whoever shared it scans anew."""
    gate = asyncio.Event()
    scanner = FakeScanner((package("a"),), gate=gate)
    async with agent_parts(tmp_path / "a") as parts:
        scanning = scanning_of(parts, scanner)
        first = asyncio.create_task(scanning.rescan("apt"))
        await settle()
        second, third = (asyncio.create_task(scanning.rescan("apt")) for _ in range(2))
        await settle()
        first.cancel()
        await settle()
        assert 2 == scanner.scans
        second.cancel()
        gate.set()

        await third

        assert 3 == scanner.scans


async def test_a_rescan_that_fails_says_why(tmp_path):
    """The report of the failure is in the outbox too."""
    scanner = FakeScanner(failure=failed("dpkg was interrupted"))
    async with agent_parts(tmp_path / "a") as parts:
        scanning = scanning_of(parts, scanner)

        with pytest.raises(ScanError, match="apt: dpkg was interrupted"):
            await scanning.rescan(None)

        assert "dpkg was interrupted" == parts.outbox.pending_report("apt").report.error


async def test_a_scanner_that_is_not_here_is_a_sentence(tmp_path):
    """Nothing is scanned in its place."""
    scanner = FakeScanner()
    async with agent_parts(tmp_path / "a") as parts:
        with pytest.raises(ScanError, match="no scanner dnf"):
            await scanning_of(parts, scanner).rescan("dnf")

    assert 0 == scanner.scans


async def test_a_report_that_cannot_be_kept_is_no_scan(tmp_path):
    """The result of the command must not say that it was."""
    async with agent_parts(tmp_path / "a") as parts:
        scanning = scanning_of(parts, FakeScanner((package("a"),)))
        with parts.database.transaction() as db:
            db.execute("PRAGMA query_only = ON")

        with pytest.raises(OutboxError):
            await scanning.rescan("apt")


async def test_a_report_that_says_something_new_is_news(tmp_path):
    """And one that says the same is not."""
    scanner = FakeScanner((package("a"),))
    async with agent_parts(tmp_path / "a") as parts:
        await parts.register()
        scanning = scanning_of(parts, scanner)
        await scanning.rescan("apt")
        assert scanning.contact.news.is_set()
        await parts.delivery().round()
        scanning.contact.news.clear()

        await scanning.rescan("apt")

        assert not scanning.contact.news.is_set()


def test_a_scanner_that_was_asked_for_is_not_due_at_its_old_time(tmp_path):
    """Its interval counts from its last scan, whoever asked for that, and its loop goes on afterwards."""

    async def main(clock):
        scanner = FakeScanner()
        async with agent_parts(tmp_path / "a", StubServer(clock)) as parts:
            scanning, stop = scanning_of(parts, scanner), asyncio.Event()
            loop = asyncio.create_task(scanning.loop("apt", stop))
            await asyncio.sleep(1800)
            await scanning.rescan("apt")
            await asyncio.sleep(3500)
            early = scanner.scans
            await asyncio.sleep(200)
            stop.set()
            await loop
            return early, scanner.scans

    assert (2, 3) == run_in_virtual_time(main)


def test_the_loop_waits_for_a_scan_that_somebody_asked_for(tmp_path):
    """Due in the middle of it, the scanner does not run twice at once, and its loop does not end."""

    async def main(clock):
        scanner = FakeScanner()
        async with agent_parts(tmp_path / "a", StubServer(clock)) as parts:
            scanning, stop = scanning_of(parts, scanner), asyncio.Event()
            loop = asyncio.create_task(scanning.loop("apt", stop))
            await asyncio.sleep(3599)
            scanner.gate = asyncio.Event()
            rescan = asyncio.create_task(scanning.rescan("apt"))
            await asyncio.sleep(60)
            during = scanner.scans
            scanner.gate.set()
            await rescan
            await asyncio.sleep(3599 * 2)
            stop.set()
            await loop
            return during, scanner.scans

    assert (2, 3) == run_in_virtual_time(main)
