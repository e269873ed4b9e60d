"""
Kill -9 and broken disks at every moment: a change is started once at most, has one result, and it is the truth.

Real processes, a real runner, real files. A test ends what it started and nothing else.
"""

import asyncio
import fcntl
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from redflag_agent.executor.run_once import SPEC
from redflag_agent.executor.upgrade import MAX_REPAIRS
from redflag_core import codec
from redflag_core.statements import CommandAccepted, CommandResult, Outcome, PackageOutcome
from tests.helpers.executors import PATIENCE, bench
from tests.helpers.faults import FAULTS, Point, inject, points_of, run_broken, trace
from tests.helpers.needs import needs
from tests.helpers.processes import child

RUN = [sys.executable, "-m", "tests.helpers.executor_process"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    """The process of an executor is found from here."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


async def ordered(path, *names, runs=False):
    """An issuer, an upgrade, and the file with its signed bytes, for an executor that exists and is closed."""
    with bench(path) as desk:
        what = await desk.upgrade(*names)
        wire = path / "wire"
        wire.write_bytes(desk.issuer.sign(what, desk.recipient))
        return desk.issuer, what, wire


async def claim(desk, what, name):
    """The start is claimed, and then nothing more happens: a power cut."""
    planned = await desk.installer.plan((desk.installer.target(name),))
    with desk.journal.page() as page:
        assert page.start(what.cmd_id, at=1, change=codec.dump(planned.transaction))


def wait_for(condition):
    """Wait for another process."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def members(path):
    """Processes whose command line names *path*: the runner, and what it runs."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if any(str(path) in word for word in words) and int(entry.name) != os.getpid():
                found[int(entry.name)] = words
    return found


def kill_runner(path):
    """Kill -9 the runners of *path*, not what they run."""
    for pid, words in members(path / "data" / "runs").items():
        if any(word.endswith("run_once.py") for word in words):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not members(path / "data" / "runs"))


def kill_steps(path):
    """Kill -9 the scripts that change packages in *path*."""
    for pid in members(path / "root"):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not members(path / "root"))


async def check(path, issuer, what):
    """Start again, deliver the command again, and compare what is told with what is there."""
    with bench(path, issuer) as desk:
        answer = await desk.deliver(what)
        await desk.work_off()
        results = [each for each in desk.take_all() if isinstance(each, CommandResult)]
        starts, installed = desk.installer.starts(), desk.installer.installed("a")
        rows = [row for row in desk.journalled()["statements"] if row[2] == "result"]
        assert (1, 1) == (len(rows), len(results)), (answer, results)
        result = results[0]
        assert what.cmd_id == result.cmd_id
        assert len(starts) <= 1
        if result.outcome is Outcome.COMPLETED:
            assert (["a=2"], "2") == (starts, installed)
        elif result.outcome is Outcome.FAILED:
            assert ("not_started", [], "1") == (result.code, starts, installed)
        else:
            assert Outcome.INTERRUPTED == result.outcome
            assert [(installed, installed == "2")] == [
                (each.installed, each.outcome is PackageOutcome.INSTALLED) for each in result.packages
            ]
        assert [] == list((desk.installer.root / "half").iterdir())
        assert isinstance(await desk.deliver(what), CommandResult)
        await desk.work_off()
        assert starts == desk.installer.starts()
        return result


# --- the executor


async def test_killed_between_accepting_and_starting_nothing_is_started(tmp_path):
    """It waited for another package manager. The next start gives the command back."""
    issuer, what, wire = await ordered(tmp_path, "a")
    with (tmp_path / "root" / "lock").open("w") as other, child(*RUN, str(tmp_path), str(wire)) as process:
        fcntl.flock(other, fcntl.LOCK_EX)
        process.until("working")
        process.kill()

    assert "not_started" == (await check(tmp_path, issuer, what)).code


async def test_killed_while_it_runs_the_change_goes_on_and_its_end_is_told(tmp_path):
    """The runner outlives the executor; the next start waits for it."""
    issuer, what, wire = await ordered(tmp_path, "a")
    gate = tmp_path / "root" / "gates" / "a"
    gate.touch()
    with child(*RUN, str(tmp_path), str(wire)) as process:
        process.until("working")
        wait_for((tmp_path / "root" / "reached" / "a").exists)
        process.kill()
    with bench(tmp_path, issuer) as desk:
        assert isinstance(await desk.deliver(what), CommandAccepted)
        await desk.work_until(desk.shows)
        gate.unlink()
        await desk.work_off()

    result = await check(tmp_path, issuer, what)
    assert (Outcome.COMPLETED, 0, False) == (result.outcome, result.exit_status, result.repaired)


async def test_killed_before_it_saw_the_end_it_tells_it_after_the_next_start(tmp_path):
    """The end was recorded by the runner."""
    issuer, what, wire = await ordered(tmp_path, "a")
    gate = tmp_path / "root" / "gates" / "a"
    gate.touch()
    with child(*RUN, str(tmp_path), str(wire)) as process:
        process.until("working")
        wait_for((tmp_path / "root" / "reached" / "a").exists)
        process.kill()
    gate.unlink()
    wait_for(lambda: not members(tmp_path / "data" / "runs"))

    assert Outcome.COMPLETED == (await check(tmp_path, issuer, what)).outcome


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=str)
async def test_a_signal_to_the_runner_ends_nothing(tmp_path, number):
    """An orderly shutdown of everything around it must not cut a package manager off."""
    with bench(tmp_path) as desk:
        gate = desk.installer.mark("gates", "a")
        what = await desk.upgrade("a")
        await desk.deliver(what)
        await desk.work_until(lambda: desk.reached("a"))
        (runner,) = members(desk.directory.runs)
        os.kill(runner, number)
        gate.unlink()
        await desk.work_off()

        assert Outcome.COMPLETED == desk.results()[what.cmd_id].outcome


# --- the runner


async def test_a_step_that_outlives_its_runner_is_waited_for(tmp_path):
    """Nobody recorded its end, so the command is interrupted; it was not cut off, and nothing needs a repair."""
    with bench(tmp_path) as desk:
        gate = desk.installer.mark("gates", "a")
        what = await desk.upgrade("a")
        await desk.deliver(what)
        await desk.work_until(lambda: desk.reached("a"))
        kill_runner(tmp_path)
        await desk.work_until(desk.shows)
        assert what.cmd_id not in desk.results()
        gate.unlink()
        await desk.work_off()

        result = desk.results()[what.cmd_id]
        assert (Outcome.INTERRUPTED, None, False, "2") == (
            result.outcome,
            result.exit_status,
            result.repaired,
            result.packages[0].installed,
        )
        assert (["a=2"], 0) == (desk.installer.starts(), desk.installer.repairs())
        assert "this was started and nobody saw its end; what was ordered is installed" == result.detail


@pytest.mark.parametrize("executor_too", [False, True])
async def test_a_change_that_was_cut_off_is_repaired_once_and_told_as_interrupted(tmp_path, executor_too):
    """What it left half done is finished by the package manager; the result says so, and what is true now."""
    issuer, what, wire = await ordered(tmp_path, "a", "b")
    gate = tmp_path / "root" / "gates" / "b"
    gate.touch()
    with child(*RUN, str(tmp_path), str(wire)) as process:
        process.until("working")
        wait_for((tmp_path / "root" / "reached" / "b").exists)
        if executor_too:
            process.kill()
        kill_runner(tmp_path)
        gate.unlink()
        os.close(os.open(gate, os.O_CREAT, 0o600))
        kill_steps(tmp_path)
        gate.unlink()
        assert executor_too or process.wait() == 0
    with bench(tmp_path, issuer) as desk:
        await desk.deliver(what)
        await desk.work_off()

        result = desk.results()[what.cmd_id]
        assert (Outcome.INTERRUPTED, "interrupted", True) == (result.outcome, result.code, result.repaired)
        assert {"a": "2", "b": "2"} == {each.name: each.installed for each in result.packages}
        assert ("unpacking a\nunpacking b\nfinished b\n", None) == (result.output, result.exit_status)
        assert (["a=2 b=2"], 1) == (desk.installer.starts(), desk.installer.repairs())


async def test_a_repair_that_was_cut_off_is_made_again_but_not_for_ever(tmp_path):
    """Each repair is claimed before it is started; after the last one the truth is told as it is."""
    issuer, what, wire = await ordered(tmp_path, "a")
    gate, reached = tmp_path / "root" / "gates" / "a", tmp_path / "root" / "reached" / "a"
    gate.touch()
    with child(*RUN, str(tmp_path), str(wire)) as process:
        process.until("working")
        for _ in range(1 + MAX_REPAIRS):
            wait_for(reached.exists)
            kill_runner(tmp_path)
            reached.unlink()
            kill_steps(tmp_path)
        assert 0 == process.wait()
    gate.unlink()
    with bench(tmp_path, issuer) as desk:
        result = desk.results()[what.cmd_id]

        assert (Outcome.INTERRUPTED, False) == (result.outcome, result.repaired)
        assert "not installed: a; not finished: a" in result.detail
        assert [PackageOutcome.FAILED] == [each.outcome for each in result.packages]
        assert (["a=2"], MAX_REPAIRS) == (desk.installer.starts(), desk.installer.repairs())


async def test_a_repair_outlives_an_executor_that_is_killed(tmp_path):
    """The next start waits for it too, and starts no other."""
    issuer, what, wire = await ordered(tmp_path, "a")
    gate, reached = tmp_path / "root" / "gates" / "a", tmp_path / "root" / "reached" / "a"
    gate.touch()
    with child(*RUN, str(tmp_path), str(wire)) as process:
        process.until("working")
        wait_for(reached.exists)
        kill_runner(tmp_path)
        reached.unlink()
        kill_steps(tmp_path)
        wait_for(reached.exists)
        process.kill()
    with bench(tmp_path, issuer) as desk:
        await desk.work_until(desk.shows)
        gate.unlink()
        await desk.work_off()

        result = desk.results()[what.cmd_id]
        assert (Outcome.INTERRUPTED, True, "2") == (result.outcome, result.repaired, result.packages[0].installed)
        assert (["a=2"], 1) == (desk.installer.starts(), desk.installer.repairs())


async def test_an_interrupted_change_is_not_judged_while_somebody_changes_packages(tmp_path):
    """A package manager that outlived everything holds its lock: it is waited for before anybody looks."""
    with bench(tmp_path) as desk:
        what = await desk.upgrade("a")
        await desk.deliver(what)
        await claim(desk, what, "a")
    with bench(tmp_path, desk.issuer) as desk, (desk.installer.root / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        await desk.work_until(desk.shows)
        desk.installer.put("a", "2", "2")
        assert ({}, "another process is changing packages") == (desk.results(), desk.shown.doing)
        fcntl.flock(other, fcntl.LOCK_UN)
        await desk.work_off()

        result = desk.results()[what.cmd_id]
        assert (Outcome.INTERRUPTED, "2") == (result.outcome, result.packages[0].installed)


async def test_a_change_that_nobody_can_look_at_is_told_as_that(tmp_path):
    """Interrupted, and what became of it is not known: nothing is claimed."""
    with bench(tmp_path) as desk:
        what = await desk.upgrade("a")
        await desk.deliver(what)
        await claim(desk, what, "a")
    with bench(tmp_path, desk.issuer) as desk:
        desk.installer.blind = True
        await desk.work_off()

        result = desk.results()[what.cmd_id]
        assert (Outcome.INTERRUPTED, "interrupted", ()) == (result.outcome, result.code, result.packages)
        assert "the shell cannot tell" in result.detail


# --- every system call


async def sweep(tmp_path, points, fault):
    """Break the executor at each of these points, start again, and compare."""
    for number, point in enumerate(points):
        path = tmp_path / str(number)
        issuer, what, wire = await ordered(path, "a")
        await asyncio.to_thread(run_broken, [*RUN, str(path), str(wire)], point, fault, follow=False)
        wait_for(lambda at=path: not members(at))
        try:
            await check(path, issuer, what)
        except BaseException as error:
            error.add_note(f"{fault} at {point}")
            raise


async def executor_points(tmp_path):
    """The changing calls of an executor that carries out one upgrade."""
    path = tmp_path / "traced"
    _, _, wire = await ordered(path, "a")
    return await asyncio.to_thread(trace, [*RUN, str(path), str(wire)], follow=False)


@needs("strace")
async def test_an_executor_killed_at_a_system_call_starts_nothing_twice(tmp_path):
    """A sample of the calls that change the disk."""
    points = await executor_points(tmp_path)
    flushes = [point for point in points if point.call == "fdatasync"]

    assert len(flushes) > 6  # acceptance, start and result are on the disk when they are said
    await sweep(tmp_path, flushes[2::4], "kill")


@needs("strace")
@pytest.mark.full
@pytest.mark.parametrize("fault", FAULTS)
async def test_an_executor_broken_at_any_system_call_starts_nothing_twice(tmp_path, fault):
    """Every call that changes the disk, killed there, on a full disk, and on a dying one."""
    await sweep(tmp_path, await executor_points(tmp_path), fault)


def strace_launcher(log, options):
    """Run the runner under strace; it alone, not what it runs."""
    return lambda _name: ("/usr/bin/strace", "-q", "-o", str(log), *options, "--")


EITHER = (Outcome.COMPLETED, Outcome.INTERRUPTED)


async def runner_sweep(tmp_path, points, fault, outcomes=EITHER):
    """Break the runner at each of these points, make sure that it was hit, and compare."""
    mark = "+++ killed by SIGKILL +++" if fault == "kill" else "(INJECTED)"
    for number, point in enumerate(points):
        path = tmp_path / str(number)
        launcher = strace_launcher(tmp_path / "log", inject(point, fault))
        with bench(path, launcher=launcher) as desk:
            what = await desk.upgrade("a")
            await desk.deliver(what)
            await desk.work_off()
            assert mark in (tmp_path / "log").read_text(), point
        result = await check(path, desk.issuer, what)
        assert result.outcome in outcomes, (point, result)


async def runner_points(tmp_path):
    """The changing calls of a runner that carries out one step."""
    log = tmp_path / "log"
    with bench(tmp_path / "traced", launcher=strace_launcher(log, ["-e", "trace=write,fsync,rename"])) as desk:
        assert Outcome.COMPLETED == (await desk.carry_out(await desk.upgrade("a"))).outcome
    return points_of(log.read_text())


@needs("strace")
async def test_a_runner_killed_at_a_system_call_is_told_as_interrupted(tmp_path):
    """Just before it would have made its end known: everything is installed, and nobody recorded that."""
    points = await runner_points(tmp_path)

    assert Point("rename", 2) in points
    await runner_sweep(tmp_path, [Point("fsync", 1), Point("rename", 2)], "kill", (Outcome.INTERRUPTED,))


@needs("strace")
@pytest.mark.full
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_runner_broken_at_any_system_call_is_told_as_it_was(tmp_path, fault):
    """Killed, on a full disk and on a dying one: the packages are what the result says."""
    await runner_sweep(tmp_path, await runner_points(tmp_path), fault)


async def test_what_is_to_be_run_is_on_the_disk_before_the_start_is_claimed(tmp_path):
    """The claim is the last thing before the runner: whoever finds it finds the run directory whole."""
    with bench(tmp_path) as desk:
        gate = desk.installer.mark("gates", "a")
        what = await desk.upgrade("a")
        await desk.deliver(what)
        await desk.work_until(lambda: desk.reached("a"))
        run = desk.directory.runs / what.cmd_id
        (entry,) = (row for row in desk.journalled()["commands"] if row[1] == what.cmd_id)

        assert "starting" in entry
        assert {0o600} == {path.stat().st_mode & 0o777 for path in run.iterdir()}
        assert 0o700 == run.stat().st_mode & 0o777
        assert (run / SPEC).stat().st_mtime <= (run / "begun").stat().st_mtime
        gate.unlink()
        await desk.work_off()
