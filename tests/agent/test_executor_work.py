"""The executor's work: what was accepted is carried out in its order, once, and its end is told as it was."""

import fcntl
import os
import shutil
import sqlite3
import sys
from contextlib import closing

import attrs
import pytest

from redflag_agent.executor.upgrade import LOCK_POLL, RECHECK
from redflag_agent.executor.work import RUNS_KEPT
from redflag_agent.installers.model import Aftermath, Planned, Step
from redflag_core.commands import CommandType, PlanParams, UpgradeParams
from redflag_core.errors import ScanError
from redflag_core.freshness import unix
from redflag_core.messages import Phase
from redflag_core.patching import Change, PackageTarget, Transaction
from redflag_core.statements import (
    MAX_OUTPUT,
    MAX_STATEMENT_BYTES,
    CommandAccepted,
    CommandResult,
    Outcome,
    PackageOutcome,
    PackageResult,
)
from redflag_core.trust import DAY
from tests.helpers.executors import bench
from tests.helpers.shell_installer import ENV, ShellInstaller, key_of


@pytest.fixture
def desk(tmp_path):
    """An executor that nothing was ordered of yet."""
    with bench(tmp_path) as opened:
        yield opened


# --- one command


async def test_an_upgrade_installs_what_was_planned_and_tells_it(desk):
    """Versions, exit status, output and transaction are in the result, and the server sees a new scan."""
    what = await desk.upgrade("a", "b")

    result = await desk.carry_out(what)

    now = int(unix(desk.clock.now()))
    assert (Outcome.COMPLETED, None, now, now, 0) == (
        result.outcome,
        result.code,
        result.started_at,
        result.finished_at,
        result.exit_status,
    )
    assert ("unpacking a\nunpacking b\n", 24) == (result.output, result.output_bytes)
    assert (key_of("a"), key_of("b")) == result.transaction.requested
    assert {"a": "2", "b": "2"} == {each.name: each.installed for each in result.packages}
    assert {PackageOutcome.INSTALLED} == {each.outcome for each in result.packages}
    assert (["a=2 b=2"], [None], []) == (desk.installer.starts(), desk.scans, desk.errors)


async def test_a_plan_tells_what_would_change_and_changes_nothing(desk):
    """It counts for no limit either."""
    result = await desk.carry_out(desk.plan("a"))

    assert (Outcome.COMPLETED, [key_of("a")]) == (
        result.outcome,
        [each.key for each in result.transaction.changes],
    )
    assert ("1", []) == (desk.installer.installed("a"), desk.installer.starts())
    assert [] == desk.journalled()["starts"]


async def test_a_plan_of_what_is_not_so_any_more_has_nothing_to_do(desk):
    """It fails with what became of each package."""
    what = desk.plan("a")
    desk.installer.put("a", "2", "2")

    result = await desk.carry_out(what)

    assert (Outcome.FAILED, "nothing_to_do") == (result.outcome, result.code)
    assert [PackageOutcome.STALE] == [each.outcome for each in result.packages]


async def test_a_plan_that_cannot_be_made_fails_with_its_reason(desk):
    """The package manager cannot tell: that is said, in its words."""
    what = desk.plan("a")
    desk.installer.blind = True

    result = await desk.carry_out(what)

    assert ("scan_failed", "the shell cannot tell") == (result.code, result.detail)


async def test_a_scan_is_run_and_its_failure_is_the_result(desk):
    """One scanner or all of them."""
    good, bad = desk.scan("shell"), desk.scan()
    assert Outcome.COMPLETED == (await desk.carry_out(good)).outcome
    desk.scan_failure.append(ScanError("dpkg is broken"))

    result = await desk.carry_out(bad)

    assert (Outcome.FAILED, "scan_failed", "dpkg is broken") == (result.outcome, result.code, result.detail)
    assert ["shell", None] == desk.scans


async def test_a_failed_scan_after_an_upgrade_is_an_error_and_not_its_result(desk):
    """The result was signed before."""
    desk.scan_failure.append(ScanError("dpkg is broken"))

    assert Outcome.COMPLETED == (await desk.carry_out(await desk.upgrade("a"))).outcome
    await desk.work_until(lambda: desk.errors)

    assert ["dpkg is broken"] == [str(error) for _, error in desk.errors]


async def test_the_result_is_the_same_bytes_for_ever(desk):
    """Signed once; a restart does not sign it anew."""
    what = await desk.upgrade("a")
    await desk.carry_out(what)
    first = desk.commander.statements()[-1].envelope
    desk.take_all()

    with bench(desk.path, desk.issuer) as again:
        assert first == await again.commander.execute(again.issuer.sign(what, again.recipient))


# --- order


async def test_changes_are_made_one_at_a_time_in_their_order(desk):
    """The second does not start while the first runs."""
    gate = desk.installer.mark("gates", "b")
    first, second = await desk.upgrade("b"), await desk.upgrade("a")
    await desk.deliver(first)
    await desk.deliver(second)

    await desk.work_until(lambda: desk.reached("b"))
    assert ["b=2"] == desk.installer.starts()
    gate.unlink()
    await desk.work_off()

    assert ["b=2", "a=2"] == desk.installer.starts()
    assert [first.cmd_id, second.cmd_id] == [
        each.cmd_id for each in desk.said() if isinstance(each, CommandResult)
    ]


async def test_a_plan_does_not_run_beside_a_change(desk):
    """What it would see is half of the truth."""
    gate = desk.installer.mark("gates", "b")
    await desk.deliver(await desk.upgrade("b"))
    await desk.deliver(desk.plan("a"))
    plans = desk.installer.plans
    await desk.work_until(lambda: desk.reached("b"))

    assert plans + 1 == desk.installer.plans
    gate.unlink()
    await desk.work_off()
    assert plans + 2 == desk.installer.plans


async def test_a_plan_passes_a_change_that_waits_and_a_later_change_does_not(desk):
    """What the owner holds back keeps its place."""
    held, after, plan = await desk.upgrade("a"), await desk.upgrade("b"), desk.plan("b")
    for what in (held, after, plan):
        await desk.deliver(what)
    with desk.limits("changes = false\n"):
        await desk.work_until(lambda: plan.cmd_id in desk.results())
    assert [] == desk.installer.starts()
    desk.clock.advance(RECHECK)
    await desk.work_off()

    assert ["a=2", "b=2"] == desk.installer.starts()


# --- what is not started


async def test_another_plan_than_the_one_that_was_seen_is_not_carried_out(desk):
    """A newer version appeared: nobody has agreed to that."""
    what = await desk.upgrade("a", "b")
    desk.installer.put("a", "1", "3")

    result = await desk.carry_out(what)

    assert (Outcome.FAILED, "plan_drifted", None) == (result.outcome, result.code, result.started_at)
    assert ["stale", "planned"] == [each.outcome for each in result.packages]
    assert [] == desk.installer.starts()


async def test_a_plan_hash_that_is_not_this_plans_is_not_carried_out(desk):
    """The hash decides, not the list of packages."""
    result = await desk.carry_out(await desk.upgrade("a", plan_hash="0" * 64))

    assert ("plan_drifted", []) == (result.code, desk.installer.starts())


@pytest.mark.parametrize("mark, reason", [("held", "held"), ("removes", "removal")])
async def test_what_goes_beyond_routine_needs_an_approval(desk, mark, reason):
    """The machine decides that about what it simulated itself, and names why."""
    desk.installer.mark(mark, "b")

    result = await desk.carry_out(await desk.upgrade("b" if mark == "held" else "a"))

    assert (Outcome.FAILED, "needs_approval", []) == (result.outcome, result.code, desk.installer.starts())
    assert reason in result.detail


async def test_a_limit_that_came_after_the_acceptance_holds_it_back(desk):
    """Shown as waiting, and tried again until the owner allows it."""
    what = await desk.upgrade("a")
    await desk.deliver(what)
    with desk.limits("changes = false\n"):
        await desk.work_until(desk.shows)
    assert (Phase.WAITING, what.cmd_id) == (desk.shown.phase, desk.shown.cmd_id)
    assert "the owner of this machine allows no changes" in desk.shown.doing
    desk.clock.advance(RECHECK)
    await desk.work_off()

    assert Outcome.COMPLETED == desk.results()[what.cmd_id].outcome


async def test_what_waited_too_long_fails_and_is_never_started(desk):
    """The time by which it had to be started is looked at again just before starting."""
    what = await desk.upgrade("a", start_by=100)
    await desk.deliver(what)
    with desk.limits("changes = false\n"):
        await desk.work_until(desk.commander.progress)
        desk.clock.advance(101)
        await desk.work_off()

    result = desk.results()[what.cmd_id]
    assert (Outcome.FAILED, "start_by_passed", None) == (result.outcome, result.code, result.started_at)
    assert [] == desk.installer.starts()


async def test_the_starts_of_a_day_are_counted_when_they_are_made(desk):
    """Two that were accepted together are still two."""
    with desk.limits("starts_per_day = 1\n"):
        for name in ("a", "b"):
            await desk.deliver(await desk.upgrade(name, start_by=2 * DAY))
        await desk.work_until(lambda: desk.shows(Phase.WAITING))
        assert ["a=2"] == desk.installer.starts()
        desk.clock.advance(DAY)
        await desk.work_off()

    assert ["a=2", "b=2"] == desk.installer.starts()


async def test_a_clock_that_was_set_back_holds_changes_back(desk):
    """Nothing that depends on time can be judged until it is right."""
    await desk.deliver(await desk.upgrade("a"))
    desk.clock.jump(-1000)
    await desk.work_until(desk.shows)
    assert "clock" in desk.shown.doing
    desk.clock.jump(1000)
    desk.clock.advance(RECHECK)
    await desk.work_off()

    assert ["a=2"] == desk.installer.starts()


async def test_another_package_manager_is_waited_for(desk):
    """And what it changed meanwhile counts: the plan is made anew after the wait."""
    first, second = await desk.upgrade("a"), await desk.upgrade("b")
    await desk.deliver(first)
    await desk.deliver(second)
    with (desk.installer.root / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        await desk.work_until(desk.shows)
        desk.installer.put("a", "3", "3")
    assert (Phase.WAITING, "another process is changing packages") == (desk.shown.phase, desk.shown.doing)
    assert [] == desk.installer.starts()
    desk.clock.advance(LOCK_POLL)
    await desk.work_off()

    assert ("plan_drifted", None) == tuple(desk.results()[each.cmd_id].code for each in (first, second))
    assert ["b=2"] == desk.installer.starts()


async def test_one_that_begins_between_the_look_and_the_plan_is_waited_for_too(desk):
    """What could not be planned because somebody else was at work is planned when they have ended."""
    await desk.deliver(await desk.upgrade("a"))
    with (desk.installer.root / "lock").open("w") as desk.installer.intruder:
        await desk.work_until(desk.shows)
    assert (Phase.WAITING, "another process is changing packages") == (desk.shown.phase, desk.shown.doing)
    desk.clock.advance(LOCK_POLL)
    await desk.work_off()

    assert ["a=2"] == desk.installer.starts()


async def test_a_plan_waits_while_somebody_else_changes_packages(desk):
    """What it would say is not true any more when they have ended; a scan does not wait for it."""
    what, scan = desk.plan("a"), desk.scan()
    await desk.deliver(what)
    await desk.deliver(scan)
    with (desk.installer.root / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        await desk.work_until(lambda: scan.cmd_id in desk.results())
        assert desk.shows(Phase.WAITING)
    assert (0, "another process is changing packages") == (desk.installer.plans, desk.shown.doing)
    desk.clock.advance(LOCK_POLL)
    await desk.work_off()

    assert Outcome.COMPLETED == desk.results()[what.cmd_id].outcome


async def test_a_plan_is_made_again_when_somebody_began_meanwhile(desk):
    """That it could not be made is no fault of its packages: it is not told as a failure."""
    what = desk.plan("a")
    await desk.deliver(what)
    with (desk.installer.root / "lock").open("w") as desk.installer.intruder:
        await desk.work_until(desk.shows)
    assert (Phase.WAITING, {}) == (desk.shown.phase, desk.results())
    desk.clock.advance(LOCK_POLL)
    await desk.work_off()

    assert Outcome.COMPLETED == desk.results()[what.cmd_id].outcome


async def test_a_plan_does_not_wait_for_ever(desk):
    """Past its time it is given up, never made, and nothing is wrong with its packages."""
    what = desk.plan("a", start_by=60)
    await desk.deliver(what)
    with (desk.installer.root / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        await desk.work_until(desk.shows)
        desk.clock.advance(61)
        await desk.work_off()

    result = desk.results()[what.cmd_id]
    assert ("start_by_passed", None, 0) == (result.code, result.started_at, desk.installer.plans)


async def test_a_disk_without_room_for_the_run_holds_it_back(desk):
    """Nothing was started; with room it is."""
    await desk.deliver(await desk.upgrade("a"))
    desk.directory.runs.touch()
    await desk.work_until(desk.shows)
    assert "cannot write" in desk.shown.doing
    desk.directory.runs.unlink()
    desk.clock.advance(RECHECK)
    await desk.work_off()

    assert ["a=2"] == desk.installer.starts()


# --- how it ends


async def test_a_package_manager_that_fails_is_told_with_its_words(desk):
    """Exit status, output, and what is installed and what is not."""
    desk.installer.mark("broken", "b")

    result = await desk.carry_out(await desk.upgrade("a", "b"))

    assert (Outcome.FAILED, "install_failed", 7) == (result.outcome, result.code, result.exit_status)
    assert "install ended with status 7; not installed: b; not finished: b" == result.detail
    assert "b: boom" in result.output
    assert [("a", "installed"), ("b", "failed")] == [(each.name, each.outcome) for each in result.packages]
    assert (False, 0) == (result.repaired, desk.installer.repairs())


async def test_a_package_manager_that_was_killed_is_told_as_that(desk):
    """The runner saw it: this is no interruption."""
    desk.installer.mark("fatal", "a")

    result = await desk.carry_out(await desk.upgrade("a"))

    assert (Outcome.FAILED, -9) == (result.outcome, result.exit_status)


async def test_what_cannot_be_looked_at_is_not_guessed(desk):
    """It ran, and what became of it is not known: no package is claimed to be anything."""
    what = await desk.upgrade("a")
    gate = desk.installer.mark("gates", "a")
    await desk.deliver(what)
    await desk.work_until(lambda: desk.reached("a"))
    desk.installer.blind = True
    gate.unlink()
    await desk.work_off()

    result = desk.results()[what.cmd_id]
    assert (Outcome.FAILED, "scan_failed", 0, ()) == (
        result.outcome,
        result.code,
        result.exit_status,
        result.packages,
    )
    assert ["a=2"] == desk.installer.starts()


async def test_a_mistake_in_an_installer_ends_its_command_and_no_other(desk):
    """It is reported, and the queue goes on."""

    class Mistaken(ShellInstaller):
        async def plan(self, targets):
            if targets[0].name == "a":
                raise ZeroDivisionError
            return await super().plan(targets)

    with bench(desk.path, desk.issuer, installers=[Mistaken(desk.installer.root)]) as again:
        bad, good = again.plan("a"), again.plan("b")
        await again.deliver(bad)
        await again.deliver(good)
        await again.work_off()

        assert ("executor_failed", None) == tuple(again.results()[each.cmd_id].code for each in (bad, good))
        assert [ZeroDivisionError] == [type(error) for _, error in again.errors]


async def test_a_mistake_while_looking_loses_no_result(desk):
    """What was started has an end that is told."""

    class Mistaken(ShellInstaller):
        async def look(self, targets):
            raise ZeroDivisionError

        def percent(self, status):
            raise ZeroDivisionError

    with bench(desk.path, desk.issuer, installers=[Mistaken(desk.installer.root)]) as again:
        result = await again.carry_out(await again.upgrade("a"))

        assert (Outcome.FAILED, "executor_failed", 0) == (result.outcome, result.code, result.exit_status)
        assert (["a=2"], {ZeroDivisionError}) == (
            again.installer.starts(),
            {type(error) for _, error in again.errors},
        )


async def test_a_runner_that_cannot_be_spawned_was_not_started(desk, monkeypatch):
    """The start was claimed, so it stays unstarted: what is there is looked at and told."""
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")

    result = await desk.carry_out(await desk.upgrade("a"))

    assert (Outcome.INTERRUPTED, "interrupted") == (result.outcome, result.code)
    assert "this was about to be started; not installed: a" == result.detail
    assert [] == desk.installer.starts()
    assert ["process_failed"] == [error.code for _, error in desk.errors]


# --- output and size


@attrs.define
class Printing(ShellInstaller):
    """A package manager that prints what a test wants."""

    script: str = ""

    async def steps(self, transaction, *, approved=False):
        """A step that prints, and then what the shell does."""
        said = Step(name="print", argv=("/bin/sh", "-c", self.script), env=ENV)
        return (said, *await super().steps(transaction, approved=approved))


async def printed(desk, script):
    """The result of an upgrade that prints."""
    installer = Printing(desk.installer.root, script=script)
    with bench(desk.path, desk.issuer, installers=[installer]) as again:
        return await again.carry_out(await again.upgrade("a"))


async def test_any_bytes_of_a_package_manager_fit_into_a_result(desk):
    """NUL, half a character, terminal control, other line ends: readable, signed and opened again."""
    script = r"printf 'gr\303\274n \303 \000 \033[1mbold\033[0m\r\n10%%\r100%%\n\302\205\342\200\250end\n'"

    result = await printed(desk, script)

    assert (Outcome.COMPLETED, "grün \ufffd \ufffd bold\n100%\n\ufffd\ufffdend\n") == (
        result.outcome,
        result.output.removesuffix("unpacking a\n"),
    )


async def test_of_much_output_the_end_is_told(desk):
    """And how long all of it was."""
    result = await printed(
        desk, "i=0; while [ $i -lt 3000 ]; do echo 'line of some length number '$i; i=$((i+1)); done"
    )

    assert MAX_OUTPUT == len(result.output)
    assert result.output.endswith("number 2999\nunpacking a\n")
    assert result.output_bytes > 90_000


@attrs.define
class Large(ShellInstaller):
    """A package manager whose plans are large."""

    origin: str = ""
    name: str = "p"
    after: str = "2"

    async def plan(self, targets):
        """As many changes as a transaction may have."""
        changes = [
            Change(
                name=f"{self.name}{number}", arch="all", before="1", after=self.after, origin=self.origin or None
            )
            for number in range(2_000)
        ]
        transaction = Transaction(manager="shell", requested=(changes[0].key,), changes=tuple(changes))
        result = PackageResult(name=changes[0].name, arch="all", outcome=PackageOutcome.PLANNED)
        return Planned(transaction=transaction, packages=(result,))


@pytest.mark.parametrize(
    "origin, after, code, kept",
    [("short", "2", None, "short"), ("long " * 150, "2", None, None), ("", "2" * 256, "too_large", None)],
    ids=["fits", "without origins", "too large"],
)
async def test_a_plan_of_any_size_is_told_or_fails(desk, origin, after, code, kept):
    """First it does without the wording of origins; without its changes it would be no plan."""
    installer = Large(desk.installer.root, origin=origin, name="q" * 200, after=after)
    with bench(desk.path, desk.issuer, installers=[installer]) as again:
        target = PackageTarget(name="p0", arch="all", installed="1", available="2")
        what = again.issuer.order(CommandType.PACKAGES_PLAN, PlanParams("shell", (target,)))
        result = await again.carry_out(what)

        assert len(again.commander.statements()[-1].envelope) <= MAX_STATEMENT_BYTES
        assert code == result.code
        assert (code is None) == (result.transaction is not None)
        if result.transaction is not None:
            assert kept == result.transaction.changes[0].origin


async def test_an_upgrade_of_any_size_is_told(desk):
    """Without its transaction, which the server knows from the plan; what became of each package stays."""

    class Idle(Large):
        async def steps(self, transaction, *, approved=False):
            return (Step(name="idle", argv=("/bin/true",), env=ENV),)

        async def look(self, targets):
            after = PackageResult(name="p0", arch="all", outcome=PackageOutcome.INSTALLED, reason="r" * 1000)
            return Aftermath(packages=(after,), damaged=(), reboot_required=False, reboot_by=())

    installer = Idle(desk.installer.root, name="q" * 200, after="2" * 256)
    with bench(desk.path, desk.issuer, installers=[installer]) as again:
        target = PackageTarget(name="p0", arch="all", installed="1", available="2")
        plan_hash = (await installer.plan((target,))).transaction.plan_hash
        params = UpgradeParams("shell", (target,), plan_hash)
        result = await again.carry_out(again.issuer.order(CommandType.PACKAGES_UPGRADE, params))

        assert (Outcome.COMPLETED, None, 0) == (result.outcome, result.transaction, result.exit_status)
        assert ["r" * 1000] == [each.reason for each in result.packages]


async def test_a_version_that_cannot_be_written_loses_no_result(desk):
    """A lone surrogate has no UTF-8: what holds it is left out."""
    installer = Large(desk.installer.root, after="\ud800")
    with bench(desk.path, desk.issuer, installers=[installer]) as again:
        target = PackageTarget(name="p0", arch="all", installed="1", available="2")
        what = again.issuer.order(CommandType.PACKAGES_PLAN, PlanParams("shell", (target,)))
        result = await again.carry_out(what)

        assert ("too_large", None, 1) == (result.code, result.transaction, len(result.packages))


# --- progress


async def test_who_watches_sees_how_far_it_is(desk):
    """Phase, step, percent and the last lines; nothing is shown twice, and numbers grow over restarts."""
    gate = desk.installer.mark("gates", "b")
    what = await desk.upgrade("a", "b")
    await desk.deliver(what)
    seen = []

    def watching():
        if desk.shows():
            seen.append(desk.shown)
        return seen and (seen[-1].doing, seen[-1].percent, *seen[-1].lines) == (
            "install",
            50,
            "unpacking a",
            "unpacking b",
        )

    await desk.work_until(watching)
    assert (Phase.RUNNING, what.cmd_id) == (seen[-1].phase, seen[-1].cmd_id)
    assert sorted({each.number for each in seen}) == [each.number for each in seen]
    assert desk.commander.progress() is None
    desk.clock.advance(1)
    with bench(desk.path, desk.issuer) as again:
        await again.work_until(again.shows)
        assert again.shown.number > seen[-1].number
        gate.unlink()
        await again.work_off()
        assert again.commander.progress() is None


# --- stops and restarts


async def test_a_stop_leaves_a_change_running_and_the_next_start_tells_its_end(tmp_path):
    """The agent ends at once; the change is neither ended nor started again."""
    with bench(tmp_path) as desk:
        gate = desk.installer.mark("gates", "a")
        what = await desk.upgrade("a")
        await desk.deliver(what)
        await desk.work_until(lambda: desk.reached("a"))
    with bench(tmp_path, desk.issuer) as again:
        assert isinstance(await again.deliver(what), CommandAccepted)
        await again.work_until(again.commander.progress)
        gate.unlink()
        await again.work_off()

        result = again.results()[what.cmd_id]
        assert (Outcome.COMPLETED, 0, "unpacking a\n") == (result.outcome, result.exit_status, result.output)
        assert (["a=2"], [None]) == (again.installer.starts(), again.scans)


async def test_what_was_accepted_and_not_started_is_given_back_after_a_restart(tmp_path):
    """One result, the truth in it: nothing was changed."""
    with bench(tmp_path) as desk:
        orders = [await desk.upgrade("a"), desk.plan("b"), desk.scan()]
        for what in orders:
            await desk.deliver(what)
    with bench(tmp_path, desk.issuer) as again:
        fresh = again.plan("b")
        await again.deliver(fresh)
        await again.work_off()

        results = again.results()
        assert {(Outcome.FAILED, "not_started", None)} == {
            (results[each.cmd_id].outcome, results[each.cmd_id].code, results[each.cmd_id].started_at)
            for each in orders
        }
        assert Outcome.COMPLETED == results[fresh.cmd_id].outcome
        assert ([], []) == (again.installer.starts(), again.scans)


async def test_a_scan_that_was_cut_off_is_told_as_interrupted(tmp_path):
    """It changed nothing; the server orders another when it wants one."""
    with bench(tmp_path) as desk:
        what = desk.scan()
        await desk.deliver(what)
        with desk.journal.page() as page:
            assert page.start(what.cmd_id, at=1, change=None)
    with bench(tmp_path, desk.issuer) as again:
        await again.work_off()

        assert (Outcome.INTERRUPTED, "interrupted") == (
            again.results()[what.cmd_id].outcome,
            again.results()[what.cmd_id].code,
        )
        assert [] == again.scans


async def test_a_change_by_a_manager_that_is_gone_is_still_waited_for(tmp_path):
    """The agent was set up differently meanwhile: the end is told, and that nobody could look."""
    with bench(tmp_path) as desk:
        gate = desk.installer.mark("gates", "a")
        what = await desk.upgrade("a")
        await desk.deliver(what)
        await desk.work_until(lambda: desk.reached("a"))
    with bench(tmp_path, desk.issuer, installers=[]) as again:
        await again.work_until(again.commander.progress)
        assert what.cmd_id not in again.results()
        gate.unlink()
        await again.work_off()

        assert "executor_failed" == again.results()[what.cmd_id].code


async def test_a_result_waits_for_a_journal_with_room(desk):
    """It is not lost when the disk is full at its end."""
    what = await desk.upgrade("a")
    gate = desk.installer.mark("gates", "a")
    await desk.deliver(what)
    await desk.work_until(lambda: desk.reached("a"))
    full = "CREATE TRIGGER full BEFORE INSERT ON statements BEGIN SELECT RAISE(ABORT, 'no room'); END"
    with desk.journal.page() as page:
        page.db.execute(full)
    gate.unlink()

    def told():
        seen = any("no room" in str(error) for _, error in desk.errors)
        if seen:
            with desk.journal.page() as page:
                page.db.execute("DROP TRIGGER IF EXISTS full")
        return seen and not desk.commander.busy()

    await desk.work_until(told)
    assert (Outcome.COMPLETED, ["a=2"]) == (desk.results()[what.cmd_id].outcome, desk.installer.starts())


# --- what is kept


def take_back_journal(tmp_path, backup=None):
    """Put an older journal in place of the one that is there, or none."""
    for path in tmp_path.glob("data/executor.db*"):
        path.unlink()
    if backup is not None:
        shutil.copy(backup, tmp_path / "data/executor.db")


@pytest.mark.parametrize("known", ["accepted", "not at all", "nothing"])
@pytest.mark.parametrize("broken", [False, True])
async def test_a_restored_journal_starts_nothing_again_and_tells_the_truth(tmp_path, known, broken):
    """The run directory tells that it was begun: its end is the result, and the change is not made twice."""
    with bench(tmp_path) as desk:
        what = await desk.upgrade("a", start_by=DAY)
        if known == "accepted":
            await desk.deliver(what)
        desk.take_all()
        paths = (desk.directory.journal, tmp_path / "backup")
        with closing(sqlite3.connect(paths[0])) as db, closing(sqlite3.connect(paths[1])) as copy:
            db.backup(copy)
        if broken:
            desk.installer.mark("broken", "a")
        if known == "accepted":
            await desk.work_until(lambda: what.cmd_id in desk.results())
        else:
            await desk.carry_out(what)
        first = desk.results()[what.cmd_id]
    take_back_journal(tmp_path, None if known == "nothing" else tmp_path / "backup")

    with bench(tmp_path, desk.issuer) as again:
        if known == "accepted":
            await again.work_until(lambda: what.cmd_id in again.results())
            result = again.results()[what.cmd_id]
        else:
            result = await again.carry_out(what)

        assert (first.outcome, first.code, first.exit_status) == (result.outcome, result.code, result.exit_status)
        assert first.packages == result.packages
        assert result.started_at is not None
        assert ["a=2"] == again.installer.starts()


async def test_run_directories_go_a_week_after_their_result_arrived(desk):
    """A person can look at them until then; what the server has not got stays."""
    for name in ("a", "b"):
        await desk.carry_out(await desk.upgrade(name))
    first, last = desk.results()
    for each in desk.commander.statements():
        if each.cmd_id == first:
            desk.commander.delivered(each.id)

    (desk.directory.runs / "left-behind").mkdir()
    long_ago = unix(desk.clock.now())
    os.utime(desk.directory.runs / "left-behind", (long_ago, long_ago))

    desk.clock.advance(RUNS_KEPT + 1)
    await desk.work_until(lambda: not (desk.directory.runs / first).exists())

    assert [last] == [path.name for path in desk.directory.runs.iterdir()]


async def test_after_ninety_days_the_outcome_is_left(desk):
    """Ids stay for ever: the same command is never started again, and is told the same each time."""
    done, never = await desk.upgrade("a", start_by=1000 * DAY), desk.scan(start_by=-1)
    kept = await desk.upgrade("b", start_by=1000 * DAY)
    await desk.carry_out(done)
    await desk.deliver(never)
    desk.take_all()
    await desk.carry_out(kept)
    desk.clock.advance(90 * DAY + 1)
    desk.issuer.version = 2
    desk.issuer.publish()
    await desk.work_until(lambda: not any(row[1] == done.cmd_id for row in desk.journalled()["statements"]))

    answers = [await desk.deliver(what) for what in (done, never, done, never)]
    assert answers[:2] == answers[2:]
    assert ("completed", "", (), None) == (
        answers[0].outcome,
        answers[0].output,
        answers[0].packages,
        answers[0].transaction,
    )
    assert ("start_by_passed", True) == (answers[1].code, answers[1].never)
    assert "unpacking b\n" == desk.results()[kept.cmd_id].output
    await desk.work_off()
    assert ["a=2", "b=2"] == desk.installer.starts()
