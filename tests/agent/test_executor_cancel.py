"""Cancelling and the heartbeat: what does not wait for anything, and what it can still change."""

import pytest

from redflag_core.statements import CommandRefused, CommandResult, Outcome
from tests.helpers.executors import bench, unique


@pytest.fixture
def desk(tmp_path):
    """An executor that nothing was ordered of yet."""
    with bench(tmp_path) as opened:
        yield opened


async def test_an_accepted_command_is_cancelled_and_never_started(desk):
    """Both ends are signed at once: its own, and that of the cancelling."""
    what = await desk.upgrade("a")
    await desk.deliver(what)

    answer = await desk.deliver(desk.cancel(what))
    await desk.work_until(lambda: not desk.commander.busy())

    assert Outcome.COMPLETED == answer.outcome
    ended = desk.results()[what.cmd_id]
    assert (Outcome.CANCELLED, "cancelled", None) == (ended.outcome, ended.code, ended.started_at)
    assert ended == await desk.deliver(what)
    assert [] == desk.installer.starts()


async def test_a_command_that_was_cancelled_before_it_arrived_never_is_accepted(desk):
    """Its id is remembered, and what it would have ordered once it comes: the same answer for ever."""
    what = await desk.upgrade("a")
    assert Outcome.COMPLETED == (await desk.deliver(desk.cancel(what))).outcome

    answers = [await desk.deliver(what) for _ in range(2)]

    assert (CommandRefused, "cancelled", True) == (type(answers[0]), answers[0].code, answers[0].never)
    assert answers[0] == answers[1]
    assert answers[0].digest is not None
    await desk.work_until(lambda: not desk.commander.busy())
    assert [] == desk.installer.starts()


async def test_a_cancelled_id_is_remembered_over_a_restart(tmp_path):
    """The journal holds it, not the process."""
    with bench(tmp_path) as desk:
        what = await desk.upgrade("a")
        await desk.deliver(desk.cancel(what))
    with bench(tmp_path, desk.issuer) as desk:
        assert "cancelled" == (await desk.deliver(what)).code


async def test_what_runs_is_not_ended(desk):
    """A package manager is never killed: it is too late, and the change goes on to its end."""
    gate = desk.installer.mark("gates", "a")
    what = await desk.upgrade("a")
    await desk.deliver(what)
    await desk.work_until(lambda: desk.reached("a"))

    answer = await desk.deliver(desk.cancel(what))
    gate.unlink()
    await desk.work_off()

    assert (Outcome.FAILED, "too_late") == (answer.outcome, answer.code)
    assert "it was started already" in answer.detail
    assert (Outcome.COMPLETED, "2") == (desk.results()[what.cmd_id].outcome, desk.installer.installed("a"))


async def test_what_has_ended_stays_ended(desk):
    """Its result is not touched."""
    what = await desk.upgrade("a")
    result = await desk.carry_out(what)

    answer = await desk.deliver(desk.cancel(what))

    assert (Outcome.FAILED, "too_late") == (answer.outcome, answer.code)
    assert result == desk.results()[what.cmd_id]


async def test_cancelling_again_what_will_not_be_started_succeeds(desk):
    """Cancelled while it waited or before it came, or refused for ever: it is not started, as was wanted."""
    waited, unknown, never = await desk.upgrade("a"), await desk.upgrade("b"), desk.scan(start_by=-1)
    await desk.deliver(waited)
    await desk.deliver(never)
    for what in (waited, unknown):
        await desk.deliver(desk.cancel(what))

    answers = [await desk.deliver(desk.cancel(what)) for what in (waited, unknown, never)]

    assert {Outcome.COMPLETED} == {answer.outcome for answer in answers}


async def test_a_cancelling_that_cancels_itself_changes_nothing(desk):
    """There is nothing to be cancelled: it happens now."""
    answer = await desk.deliver(desk.cancel(unique(1), cmd_id=unique(1)))

    assert (Outcome.FAILED, "too_late") == (answer.outcome, answer.code)


async def test_what_waits_for_the_owner_can_be_cancelled(desk):
    """It gives way to what comes after it."""
    held, after = await desk.upgrade("a"), await desk.upgrade("b")
    await desk.deliver(held)
    with desk.limits("changes = false\n"):
        await desk.work_until(desk.shows)
    await desk.deliver(after)
    await desk.deliver(desk.cancel(held))
    await desk.work_off()

    results = desk.results()
    assert ("cancelled", "completed") == tuple(results[each.cmd_id].outcome for each in (held, after))
    assert ["b=2"] == desk.installer.starts()


@pytest.mark.parametrize("kind", ["upgrade", "plan"])
async def test_cancelling_while_it_is_being_prepared_wins_or_loses_but_never_both(desk, kind):
    """Between plan and start the claim decides: a command that was cancelled is not started, nor its plan told."""
    what = await desk.upgrade("a") if kind == "upgrade" else desk.plan("a")
    cancelled = []

    class Slow(type(desk.installer)):
        async def plan(self, targets):
            planned = await super().plan(targets)
            if not cancelled:
                cancelled.append(await again.deliver(again.cancel(what)))
            return planned

    with bench(desk.path, desk.issuer, installers=[Slow(desk.installer.root)]) as again:
        await again.deliver(what)
        await again.work_off()

        result = again.results()[what.cmd_id]
        assert (Outcome.COMPLETED, Outcome.CANCELLED) == (cancelled[0].outcome, result.outcome)
        assert (None, []) == (result.transaction, again.installer.starts())


async def test_neither_waits_for_a_change(desk):
    """Cancelling and the heartbeat are carried out while a change runs, and told at once."""
    gate = desk.installer.mark("gates", "a")
    await desk.deliver(await desk.upgrade("a"))
    waiting = desk.plan("b")
    await desk.deliver(waiting)
    await desk.work_until(lambda: desk.reached("a"))

    answers = [await desk.deliver(each) for each in (desk.cancel(waiting), desk.heartbeat())]
    gate.unlink()
    await desk.work_off()

    assert [(CommandResult, Outcome.COMPLETED)] * 2 == [(type(answer), answer.outcome) for answer in answers]


async def test_the_heartbeat_is_fast_for_as_long_as_ordered(desk):
    """From the moment it was accepted, and not longer; a later order replaces it."""
    assert desk.commander.heartbeat_until() is None
    await desk.deliver(desk.heartbeat(60))
    assert desk.clock.monotonic() + 60 == desk.commander.heartbeat_until()
    desk.clock.advance(59)
    await desk.deliver(desk.heartbeat(30))
    assert desk.clock.monotonic() + 30 == desk.commander.heartbeat_until()
    desk.clock.advance(30)

    assert desk.commander.heartbeat_until() is None


async def test_a_heartbeat_that_comes_again_does_not_begin_anew(desk):
    """The same order delivered twice is one order."""
    what = desk.heartbeat(60)
    await desk.deliver(what)
    until = desk.commander.heartbeat_until()
    desk.clock.advance(10)
    await desk.deliver(what)

    assert until == desk.commander.heartbeat_until()
