"""The outbox: what was written stays, what was accepted goes, and no kill or full disk damages it."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import zlib
from pathlib import Path

import attrs
import pytest

from redflag_agent.database import OUTBOX, Database, OutboxError
from redflag_agent.outbox import Outbox, Refusal
from redflag_agent.reports import content_digest
from redflag_core.scanning import failed_report
from tests.helpers.agents import failed, new_id, package, scan_report
from tests.helpers.needs import needs_root


@pytest.fixture
def outbox(tmp_path):
    """An empty outbox."""
    with Database.open(tmp_path / "outbox.db") as database:
        yield Outbox(database)


def failure(error="dpkg is broken"):
    """A failed scan."""
    return failed_report(failed(error), scanner="apt", manager="apt", taken_at=5, duration_ms=1)


def test_the_file_is_private(outbox):
    """So are the files that SQLite puts beside it."""
    outbox.record_scan(scan_report(), report_id=new_id(1))

    assert {0o600} == {path.stat().st_mode & 0o777 for path in outbox.database.path.parent.iterdir()}


def test_what_is_written_is_written_to_the_disk(outbox):
    """Write-ahead log, and a flush at the end of every transaction: a power cut takes nothing back."""
    with outbox.database.transaction() as db:
        assert (2,) == db.execute("PRAGMA synchronous").fetchone()
        assert ("wal",) == db.execute("PRAGMA journal_mode").fetchone()


def test_a_report_waits_until_it_is_accepted(outbox):
    """Accepted, it is the base of the next delta."""
    report = scan_report(package("a"), package("b", available="2.0"))

    assert outbox.record_scan(report, report_id=new_id(1))
    assert ("apt",) == outbox.pending()
    assert report == outbox.pending_report("apt").report
    outbox.accept("apt", new_id(1))

    assert () == outbox.pending()
    assert report == outbox.accepted_report("apt").report


def test_the_latest_report_supersedes_the_one_before_it(outbox):
    """An offline agent keeps one report for each scanner, not a queue of them."""
    outbox.record_scan(scan_report(package("a")), report_id=new_id(1))
    outbox.record_scan(scan_report(package("b")), report_id=new_id(2))

    assert new_id(2) == outbox.pending_report("apt").report_id


def test_an_answer_to_a_superseded_report_accepts_nothing(outbox):
    """A scan that ended while the older report was on its way still has to be sent."""
    outbox.record_scan(scan_report(package("a")), report_id=new_id(1))
    outbox.record_scan(scan_report(package("b")), report_id=new_id(2))

    outbox.accept("apt", new_id(1))

    assert ("apt",) == outbox.pending()
    assert outbox.accepted_report("apt") is None


def test_an_unchanged_inventory_is_nothing_to_tell(outbox):
    """After it was accepted, the same again waits for nothing."""
    report = scan_report(package("a"))
    outbox.record_scan(report, report_id=new_id(1))
    outbox.accept("apt", new_id(1))

    assert not outbox.record_scan(report, report_id=new_id(2))
    assert () == outbox.pending()


def test_going_back_to_what_was_accepted_withdraws_what_waits(outbox):
    """Changed and changed back before anybody was told: there is nothing to tell."""
    outbox.record_scan(scan_report(package("a")), report_id=new_id(1))
    outbox.accept("apt", new_id(1))
    outbox.record_scan(scan_report(package("b")), report_id=new_id(2))

    assert not outbox.record_scan(scan_report(package("a")), report_id=new_id(3))
    assert () == outbox.pending()


def test_a_failed_scan_keeps_the_accepted_inventory(outbox):
    """It is told, and the next good scan is still a small change against what the server holds."""
    report = scan_report(package("a"))
    outbox.record_scan(report, report_id=new_id(1))
    outbox.accept("apt", new_id(1))
    outbox.record_scan(failure(), report_id=new_id(2))
    outbox.accept("apt", new_id(2))

    assert () == outbox.pending()
    assert report == outbox.accepted_report("apt").report
    assert outbox.record_scan(report, report_id=new_id(3))


def test_a_failed_scan_keeps_the_hash_of_the_last_good_one(outbox):
    """The check-in still says what was last known."""
    outbox.record_scan(scan_report(package("a")), report_id=new_id(1))
    good = outbox.runs()[0].hash
    outbox.record_scan(failure(), report_id=new_id(2))

    (run,) = outbox.runs()
    assert ("failed", good, "dpkg is broken") == (run.status, run.hash, run.error)


def test_a_refused_report_is_not_sent_again(outbox):
    """What the server will never take does not become a loop; the next scan takes its place."""
    outbox.record_scan(scan_report(package("a")), report_id=new_id(1))
    outbox.refuse("apt", new_id(1), "too_large")
    assert () == outbox.pending()

    outbox.record_scan(scan_report(package("a")), report_id=new_id(2))
    assert ("apt",) == outbox.pending()


def test_an_inventory_that_the_server_lost_is_sent_again(outbox):
    """As long as it is what the scanner last saw."""
    outbox.record_scan(scan_report(package("a")), report_id=new_id(1))
    outbox.accept("apt", new_id(1))

    outbox.send_again("apt", report_id=new_id(2))

    assert new_id(2) == outbox.pending_report("apt").report_id


def test_facts_alone_are_kept_sent_and_sent_again(outbox):
    """A scanner without packages: changed facts are news, equal ones are not, and lost ones are sent anew."""
    first, second = (attrs.evolve(scan_report(scanner="storage"), facts={"n": n}) for n in (1, 2))
    for number, report in enumerate([first, second], start=1):
        assert outbox.record_scan(report, report_id=new_id(number))
        outbox.accept("storage", new_id(number))
        assert not outbox.record_scan(report, report_id=new_id(9))
    outbox.send_again("storage", report_id=new_id(3))

    assert (("storage",), second) == (outbox.pending(), outbox.pending_report("storage").report)


def test_a_run_knows_the_digest_of_what_it_said(outbox):
    """The check-in tells it, so that a server that was set back notices."""
    report = attrs.evolve(scan_report(scanner="storage"), facts={"n": 1})
    outbox.record_scan(report, report_id=new_id(1))

    assert content_digest(report) == outbox.runs()[0].content


def test_an_inventory_to_be_sent_again_is_not_withdrawn_by_an_unchanged_scan(outbox):
    """The server lost it: a scan that sees the same before it was sent must not make it forgotten for ever."""
    outbox.record_scan(scan_report(package("a")), report_id=new_id(1))
    outbox.accept("apt", new_id(1))
    outbox.send_again("apt", report_id=new_id(2))

    assert outbox.record_scan(scan_report(package("a")), report_id=new_id(3))
    assert new_id(3) == outbox.pending_report("apt").report_id


@pytest.mark.parametrize("body", [b"", b"not compressed", zlib.compress(b'{"written_by": "another release"}')])
def test_a_report_that_cannot_be_read_counts_as_none(outbox, body):
    """Written by another release: the next scan takes its place, and the server gets everything."""
    for number in (1, 2):
        outbox.record_scan(scan_report(package(f"p{number}")), report_id=new_id(number))
        if number == 1:
            outbox.accept("apt", new_id(1))
    with outbox.database.transaction() as db:
        db.execute("UPDATE reports SET body = ?", (body,))

    assert (None, None) == (outbox.accepted_report("apt"), outbox.pending_report("apt"))
    outbox.record_scan(scan_report(package("p3")), report_id=new_id(3))
    assert new_id(3) == outbox.pending_report("apt").report_id


def test_an_inventory_older_than_a_failed_scan_is_not_sent_again(outbox):
    """It would claim that an old look is the latest, and be asked for without end."""
    outbox.record_scan(scan_report(package("a")), report_id=new_id(1))
    outbox.accept("apt", new_id(1))
    outbox.record_scan(failure(), report_id=new_id(2))
    outbox.accept("apt", new_id(2))

    outbox.send_again("apt", report_id=new_id(3))

    assert () == outbox.pending()


def test_a_failed_scan_that_the_server_lost_is_news_again(outbox):
    """It is not kept, but the next scan that fails in the same way is sent, once."""
    outbox.record_scan(failure(), report_id=new_id(1))
    outbox.accept("apt", new_id(1))
    assert not outbox.record_scan(failure(), report_id=new_id(2))

    outbox.send_again("apt", report_id=new_id(3))

    assert outbox.record_scan(failure(), report_id=new_id(4))
    outbox.accept("apt", new_id(4))
    assert not outbox.record_scan(failure(), report_id=new_id(5))


def test_everything_is_there_after_a_restart(tmp_path):
    """Reports, runs and numbers."""
    path = tmp_path / "outbox.db"
    with Database.open(path) as database:
        Outbox(database).record_scan(scan_report(package("a")), report_id=new_id(1))
        Outbox(database).note("n", 7)

    with Database.open(path) as database:
        assert ("apt",) == Outbox(database).pending()
        assert {"current": 1} == Outbox(database).runs()[0].states
        assert (7, None) == (Outbox(database).noted("n"), Outbox(database).noted("m"))


@pytest.mark.parametrize("damage", ["header", "middle"])
def test_a_damaged_file_is_a_sentence(tmp_path, damage):
    """It says that the file may be moved away: everything in it is made anew by scanning."""
    path = tmp_path / "outbox.db"
    with Database.open(path) as database:
        for number in range(40):
            Outbox(database).record_scan(
                scan_report(*(package(f"p{n}-{number}") for n in range(50)), scanner=f"s{number}"),
                report_id=new_id(number),
            )
    content = bytearray(path.read_bytes())
    start = 0 if damage == "header" else 4096
    content[start : start + 3000] = random.Random(1).randbytes(3000)
    path.write_bytes(bytes(content))

    with pytest.raises(OutboxError, match="move it away"):
        Database.open(path)


def test_a_file_of_a_newer_release_is_not_touched(tmp_path):
    """After a downgrade the agent says so instead of guessing."""
    path = tmp_path / "outbox.db"
    Database.open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()

    with pytest.raises(OutboxError, match="newer release"):
        Database.open(path)


def test_a_full_file_is_a_sentence_and_keeps_what_was_there(outbox):
    """SQLite's own "full" is told in words; room again, and it goes on."""
    outbox.record_scan(scan_report(package("a")), report_id=new_id(1))
    with outbox.database.transaction() as db:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")

    with pytest.raises(OutboxError, match="disk is full"):
        outbox.record_scan(large_report(), report_id=new_id(2))
    assert new_id(1) == outbox.pending_report("apt").report_id

    with outbox.database.transaction() as db:
        db.execute("PRAGMA max_page_count = 100000")
    assert outbox.record_scan(large_report(), report_id=new_id(2))


@needs_root()
def test_a_disk_that_is_really_full_is_a_sentence(tmp_path):
    """On a file system without a byte left: at the start, and while running."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], check=False)
    if mounted.returncode:
        pytest.skip("root may not mount here (a container)")
    try:
        with Database.open(tmp_path / "outbox.db") as database:
            outbox = Outbox(database)
            outbox.record_scan(scan_report(package("a")), report_id=new_id(1))
            fill(tmp_path / "filler")
            with pytest.raises(OutboxError, match="disk is full"):
                outbox.record_scan(large_report(), report_id=new_id(2))
            (tmp_path / "filler").unlink()
            assert new_id(1) == outbox.pending_report("apt").report_id
        fill(tmp_path / "filler")
        with pytest.raises(OutboxError):
            Database.open(tmp_path / "other.db")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


WRITER = """
import pathlib, sys, uuid
from redflag_agent.database import Database
from redflag_agent.outbox import Outbox
from redflag_agent.reports import content_digest
from tests.helpers.agents import package, scan_report
start = int(sys.argv[2])
with Database.open(pathlib.Path(sys.argv[1])) as database:
    outbox = Outbox(database)
    for number in range(start, start + 100000):
        names = [f"p{number}-{n}" for n in range(60)]
        report_id = str(uuid.UUID(int=number))
        outbox.record_scan(scan_report(*map(package, names)), report_id=report_id)
        print(f"scan {number}", flush=True)
        outbox.accept("apt", report_id)
        print(f"accepted {number}", flush=True)
"""


def test_kills_at_any_moment_lose_nothing_that_was_written(tmp_path):
    """After each of eight kill -9 the file is intact and holds at least what the process said it had written."""
    path, start = tmp_path / "outbox.db", 1
    moments = random.Random(4)
    for _ in range(8):
        said = write_and_kill(path, start, after=moments.randint(1, 25))
        with Database.open(path) as database:
            outbox = Outbox(database)
            assert [("ok",)] == integrity(database)
            pending, accepted = outbox.pending_report("apt"), outbox.accepted_report("apt")
            assert last(pending, accepted) >= said["scan"]
            assert last(accepted) >= said["accepted"]
            start = last(pending, accepted) + 1


def write_and_kill(path, start, *, after):
    """Let a process write until it has said *after* things, and kill it in the middle of the next."""
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    said = {"scan": start - 1, "accepted": 0}
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(start)], stdout=subprocess.PIPE, text=True, env=environment
    )
    with child:
        for _ in range(after):
            word, number = child.stdout.readline().split()
            said[word] = int(number)
        child.send_signal(signal.SIGKILL)
        for line in child.stdout:
            word, number = line.split()
            said[word] = int(number)
    return said


def integrity(database):
    """SQLite's own word."""
    with database.transaction() as db:
        return db.execute("PRAGMA integrity_check").fetchall()


def last(*reports):
    """The highest number among stored reports."""
    return max((int(report.report_id.replace("-", ""), 16) for report in reports if report), default=0)


def large_report():
    """A report that needs more than a page."""
    letters = random.Random(2)
    return scan_report(*(package(f"p{letters.randbytes(20).hex()}") for _ in range(5000)))


def fill(path):
    """Take what is left of a file system."""
    try:
        with path.open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
    except OSError:
        pass


def test_an_outbox_of_an_earlier_release_is_taken_over(tmp_path):
    """What is new in this release is added to the file, and what is in it stays."""
    path = tmp_path / "outbox.db"
    with Database.open(path, attrs.evolve(OUTBOX, version=1, later=())) as old:
        Outbox(old).record_scan(scan_report(package("a")), report_id=new_id(1))

    with Database.open(path) as database:
        outbox = Outbox(database)
        outbox.note_refusal(b"statement", "malformed", now=7)
        assert ("apt",) == outbox.pending()
        assert Refusal("malformed", 7) == outbox.refusal(b"statement")


def test_the_refusal_of_a_statement_is_remembered_until_it_is_delivered(tmp_path):
    """The last one counts, over restarts, and for this statement only."""
    with Database.open(tmp_path / "outbox.db") as database:
        Outbox(database).note_refusal(b"one", "malformed", now=7)
        Outbox(database).note_refusal(b"one", "too_large", now=8)
    with Database.open(tmp_path / "outbox.db") as database:
        outbox = Outbox(database)
        assert (Refusal("too_large", 8), None) == (outbox.refusal(b"one"), outbox.refusal(b"two"))

        outbox.forget_refusal(b"one")

        assert outbox.refusal(b"one") is None
