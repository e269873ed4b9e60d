"""The executor with real apt and dpkg: what was planned is installed, and an interruption is repaired and told."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from redflag_agent.executor.run_once import CURRENT
from redflag_agent.installers.apt import AptInstaller
from redflag_core.commands import CommandType, PlanParams, UpgradeParams
from redflag_core.messages import Phase
from redflag_core.patching import PackageTarget
from redflag_core.statements import CommandAccepted, Outcome, PackageOutcome
from tests.beds.apt import V1, V2, Deb, needs_apt
from tests.helpers.executors import PATIENCE, bench
from tests.helpers.processes import child

pytestmark = needs_apt

RUN = [sys.executable, "-m", "tests.helpers.executor_process"]
GATED = "rf-gated"
HOLD_LOCK = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(600)
"""


@pytest.fixture
def bed(apt_bed):
    """A bed with a package whose new version waits, half configured, as long as a file is there."""
    wait = f"touch {apt_bed.directory}/reached\nwhile [ -e {apt_bed.directory}/gate ]; do sleep 0.05; done\n"
    apt_bed.publish(Deb(GATED), Deb(GATED, V2, postinst=wait))
    apt_bed.run("dpkg", "-i", str(apt_bed.repo / "pool" / f"{GATED}_{V1}_all.deb"))
    return apt_bed


def opened(path, bed, issuer=None):
    """An executor that patches the bed."""
    return bench(path, issuer, installers=[AptInstaller(path_prefix=bed.bin)])


def target(name, available=V2):
    """Bring a package to a version."""
    return PackageTarget(name=name, arch="all", installed=V1, available=available)


def installed(bed, name):
    """Version and state of a package, as dpkg says."""
    return bed.run("dpkg-query", "-W", "-f", "${Version} ${Status}", name).stdout


async def planned(desk, *targets):
    """The order to carry out what the executor itself plans now."""
    plan = await desk.carry_out(desk.issuer.order(CommandType.PACKAGES_PLAN, PlanParams("apt", targets)))
    assert Outcome.COMPLETED == plan.outcome, plan
    params = UpgradeParams("apt", targets, plan.transaction.plan_hash)
    return desk.issuer.order(CommandType.PACKAGES_UPGRADE, params)


def wait_for(condition):
    """Wait for another process."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def session(pid):
    """Processes of a runner's session: itself, apt, dpkg and scripts."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == pid:
                    members.append(int(entry.name))
            except ProcessLookupError:
                continue
    return members


def runner_of(desk_path, cmd_id):
    """The runner of a command: its session has its process id."""
    step = json.loads((desk_path / "data" / "runs" / cmd_id / CURRENT).read_text())["process"][0]
    return os.getsid(step)


async def test_what_was_planned_is_what_is_installed(tmp_path, bed):
    """With the new package that it needs, and nothing else; the result has apt's own words."""
    with opened(tmp_path, bed) as desk:
        result = await desk.carry_out(await planned(desk, target("rf-normal"), target("rf-newdep")))

        assert (Outcome.COMPLETED, 0, False) == (result.outcome, result.exit_status, result.reboot_required)
        changed = {(each.name, each.before, each.after) for each in result.transaction.changes}
        assert {("rf-normal", V1, V2), ("rf-newdep", V1, V2), ("rf-dep-new", None, V2)} == changed
        assert {f"{V2} install ok installed"} == {installed(bed, name) for name, _, _ in changed}
        assert f"{V1} install ok installed" == installed(bed, "rf-local")
        assert "Setting up rf-newdep" in result.output


async def test_a_reboot_that_is_asked_for_is_told(tmp_path, bed):
    """And by which package."""
    with opened(tmp_path, bed) as desk:
        result = await desk.carry_out(await planned(desk, target("rf-reboot")))

        assert (Outcome.COMPLETED, True, ("rf-reboot",)) == (
            result.outcome,
            result.reboot_required,
            result.reboot_by,
        )


async def test_a_script_that_fails_is_told_with_its_words(tmp_path, bed):
    """Installed or not, package by package."""
    with opened(tmp_path, bed) as desk:
        result = await desk.carry_out(await planned(desk, target("rf-badpost"), target("rf-normal")))

        assert (Outcome.FAILED, "install_failed", 100) == (result.outcome, result.code, result.exit_status)
        assert "rf-badpost: boom" in result.output
        outcomes = {each.name: each.outcome for each in result.packages}
        assert {"rf-badpost": PackageOutcome.FAILED, "rf-normal": PackageOutcome.INSTALLED} == outcomes
        assert "not finished: rf-badpost" in result.detail


async def test_a_package_that_somebody_else_changed_is_drift(tmp_path, bed):
    """Another version is installed than the one that the plan was made for: nothing is changed."""
    with opened(tmp_path, bed) as desk:
        what = await planned(desk, target("rf-normal"))
        bed.run("apt-get", "-y", "install", "rf-normal=1.5-1")
        result = await desk.carry_out(what)

        assert (Outcome.FAILED, "plan_drifted", None) == (result.outcome, result.code, result.started_at)
        assert [PackageOutcome.STALE] == [each.outcome for each in result.packages]
        assert "1.5-1 install ok installed" == installed(bed, "rf-normal")


async def test_a_newer_candidate_is_drift(tmp_path, bed):
    """What the machine's repositories have replaced is not installed any more: it has to be planned again."""
    with opened(tmp_path, bed) as desk:
        what = await planned(desk, target("rf-normal"))
        bed.publish(Deb("rf-normal", "3.0-1"))
        result = await desk.carry_out(what)

        assert (Outcome.FAILED, "plan_drifted", None) == (result.outcome, result.code, result.started_at)
        assert [PackageOutcome.STALE] == [each.outcome for each in result.packages]
        assert "3.0-1" in result.packages[0].reason
        assert f"{V1} install ok installed" == installed(bed, "rf-normal")


async def test_another_package_manager_is_waited_for(tmp_path, bed):
    """The locks of apt and dpkg are looked at, and never taken."""
    with opened(tmp_path, bed) as desk:
        what = await planned(desk, target("rf-normal"))
        await desk.deliver(what)
        with child(sys.executable, "-c", HOLD_LOCK, str(bed.admindir / "lock-frontend")) as other:
            other.until("locked")
            await desk.work_until(lambda: desk.shows(Phase.WAITING))
            assert f"{V1} install ok installed" == installed(bed, "rf-normal")
        desk.clock.advance(60)
        await desk.work_off()

        assert Outcome.COMPLETED == desk.results()[what.cmd_id].outcome


class Hasty(AptInstaller):
    """It looks at the locks a moment before somebody takes them."""

    async def is_locked(self):
        """Free, just now."""
        return False


async def test_apt_does_not_wait_long_for_one_that_began_after_the_look(tmp_path, bed):
    """The time to start was judged before: apt gives up soon, and that nothing was changed is told."""
    with bench(tmp_path, installers=[Hasty(path_prefix=bed.bin)]) as desk:
        what = await planned(desk, target("rf-normal"))
        with child(sys.executable, "-c", HOLD_LOCK, str(bed.admindir / "lock-frontend")) as other:
            other.until("locked")
            result = await desk.carry_out(what)

        assert (Outcome.FAILED, "install_failed", 100) == (result.outcome, result.code, result.exit_status)
        assert [(PackageOutcome.UNCHANGED, V1)] == [(each.outcome, each.installed) for each in result.packages]
        assert "Could not get lock" in result.output
        assert f"{V1} install ok installed" == installed(bed, "rf-normal")


async def test_an_executor_killed_while_dpkg_works_tells_its_end_after_the_next_start(tmp_path, bed, monkeypatch):
    """Dpkg is not ended, not started again, and its end is told."""
    gate = bed.directory / "gate"
    gate.touch()
    issuer, what = await start_and_kill(tmp_path, bed, monkeypatch)
    with opened(tmp_path, bed, issuer) as desk:
        assert isinstance(await desk.deliver(what), CommandAccepted)
        await desk.work_until(lambda: desk.shows(Phase.RUNNING))
        gate.unlink()
        await desk.work_off()

        result = desk.results()[what.cmd_id]
        assert (Outcome.COMPLETED, 0, False) == (result.outcome, result.exit_status, result.repaired)
        assert 1 == result.output.count(f"Setting up {GATED}")
        assert f"{V2} install ok installed" == installed(bed, GATED)


@pytest.mark.parametrize("all_of_it", [True, False], ids=["apt too", "runner only"])
async def test_a_dpkg_that_was_cut_off_is_repaired_and_told_as_interrupted(tmp_path, bed, monkeypatch, all_of_it):
    """Killed in the middle it leaves a half configured package; apt that only lost its runner finishes alone."""
    gate = bed.directory / "gate"
    gate.touch()
    issuer, what = await start_and_kill(tmp_path, bed, monkeypatch)
    runner = runner_of(tmp_path, what.cmd_id)
    for pid in session(runner) if all_of_it else [runner]:
        os.kill(pid, signal.SIGKILL)
    if all_of_it:
        wait_for(lambda: not session(runner))
        assert "half-configured" in installed(bed, GATED)
        gate.unlink()
    with opened(tmp_path, bed, issuer) as desk:
        await desk.deliver(what)
        if not all_of_it:
            await desk.work_until(desk.shows)
            assert what.cmd_id not in desk.results()
            gate.unlink()
        await desk.work_off()

        result = desk.results()[what.cmd_id]
        assert (Outcome.INTERRUPTED, "interrupted", all_of_it) == (result.outcome, result.code, result.repaired)
        assert [(PackageOutcome.INSTALLED, V2)] == [(each.outcome, each.installed) for each in result.packages]
        assert f"{V2} install ok installed" == installed(bed, GATED)


@pytest.mark.parametrize("all_of_it", [True, False], ids=["apt too", "runner only"])
async def test_automatic_packages_stay_so_over_an_interruption(tmp_path, bed, monkeypatch, all_of_it):
    """The step that puts the marks in order is made up for, whether or not something is damaged."""
    gate = bed.directory / "gate"
    gate.touch()
    bed.run("apt-mark", "auto", GATED)
    issuer, what = await start_and_kill(tmp_path, bed, monkeypatch, "rf-newdep")
    runner = runner_of(tmp_path, what.cmd_id)
    for pid in session(runner) if all_of_it else [runner]:
        os.kill(pid, signal.SIGKILL)
    gate.unlink()
    wait_for(lambda: not session(runner))
    with opened(tmp_path, bed, issuer) as desk:
        await desk.work_off()

        result = desk.results()[what.cmd_id]
        assert (Outcome.INTERRUPTED, all_of_it) == (result.outcome, result.repaired)
        assert {PackageOutcome.INSTALLED} == {each.outcome for each in result.packages}
    assert {GATED, "rf-dep-new"} <= set(bed.run("apt-mark", "showauto").stdout.split())
    assert "rf-newdep" in bed.run("apt-mark", "showmanual").stdout.split()


async def start_and_kill(path, bed, monkeypatch, *others):
    """An executor that is killed while dpkg configures the package that waits."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with opened(path, bed) as desk:
        what = await planned(desk, target(GATED), *map(target, others))
        wire = path / "wire"
        wire.write_bytes(desk.issuer.sign(what, desk.recipient))
    with child(*RUN, str(path), str(wire), environment={"APT_BIN": str(bed.bin)}) as process:
        process.until("working")
        wait_for((bed.directory / "reached").exists)
        process.kill()
    return desk.issuer, what
