"""Asking for commands: held open where that works, never in the way of anything, never a hot loop."""

import asyncio

import httpx2
import pytest

from redflag_core.commands import CommandType, HeartbeatParams, ScanParams
from redflag_core.encoding import b64decode
from redflag_core.scanning import ScannerPolicy
from tests.helpers.agents import Desk, FakeScanner, agent_parts, package, runner_of, running
from tests.helpers.stub_server import StubServer, problem
from tests.helpers.virtual_time import run_in_virtual_time

HOUR = 3600.0
DAILY = ScannerPolicy(interval=24 * HOUR, timeout=60.0)


def in_virtual_time(test):
    """Run an async test of (path, clock) where waiting takes no time."""

    def wrapped(tmp_path):
        run_in_virtual_time(lambda clock: test(tmp_path, clock))

    wrapped.__name__, wrapped.__doc__ = test.__name__, test.__doc__
    return wrapped


def holding(clock):
    """A server that holds check-ins, and then wants the next at once, as the real one does."""
    server = StubServer(clock)
    server.holds, server.pace = True, 1
    return server


def waits(server):
    """For how long each check-in asked to be held."""
    return [check_in.wait for check_in in server.only_agent().check_ins]


def cut_after(parts, seconds, error=httpx2.ReadError):
    """Put something on the way that does not wait for an answer any longer than *seconds*."""
    transport = parts.http._transport
    handle = transport.handle_async_request

    async def impatient(request):
        try:
            return await asyncio.wait_for(handle(request), seconds)
        except TimeoutError:
            if isinstance(error, type):
                raise error("cut", request=request) from None
            return httpx2.Response(error, stream=httpx2.ByteStream(b"<html>"))

    transport.handle_async_request = impatient


@in_virtual_time
async def test_a_command_starts_within_a_moment_while_a_check_in_is_held(tmp_path, clock):
    """Nobody waits for the next check-in: what is ordered is handed over in the same second."""
    async with agent_parts(tmp_path / "a", holding(clock)) as parts:
        await parts.register()
        runner = runner_of(parts)
        async with running(runner):
            await asyncio.sleep(125)
            parts.server.order(ScanParams(), CommandType.SCAN_RUN)
            await asyncio.sleep(0.5)

            assert 1 == len(runner.commander.received)


@in_virtual_time
async def test_a_command_soon_after_the_start_does_not_wait_for_the_pace(tmp_path, clock):
    """The first check-in is plain and its answer says to come back in a minute: one that is held comes sooner."""
    async with agent_parts(tmp_path / "a", holding(clock)) as parts:
        parts.server.pace = 60
        await parts.register()
        runner = runner_of(parts)
        async with running(runner):
            await asyncio.sleep(4)
            parts.server.order(ScanParams(), CommandType.SCAN_RUN)
            await asyncio.sleep(0.5)

            assert 1 == len(runner.commander.received)


@in_virtual_time
async def test_check_ins_are_held_and_follow_each_other(tmp_path, clock):
    """The first is plain, so that the status is known at once; then one is always open."""
    async with agent_parts(tmp_path / "a", holding(clock)) as parts:
        await parts.register()
        async with running(runner_of(parts)):
            await asyncio.sleep(HOUR)

        assert [0, 50, 50] == waits(parts.server)[:3]
        assert HOUR / 51 - 2 <= len(waits(parts.server)) <= HOUR / 51 + 2


@in_virtual_time
async def test_a_server_that_does_not_hold_is_asked_at_its_pace(tmp_path, clock):
    """It answers at once, and says when to come back: one check-in more, after the first, is all that it costs."""
    async with agent_parts(tmp_path / "a", StubServer(clock)) as parts:
        await parts.register()
        async with running(runner_of(parts)):
            await asyncio.sleep(HOUR)

        assert 61 <= len(waits(parts.server)) <= 62


@in_virtual_time
async def test_a_report_does_not_wait_for_a_check_in_that_is_held(tmp_path, clock):
    """What a scan found is delivered while the server holds the check-in."""
    scanner = FakeScanner((package("a"),))
    async with agent_parts(tmp_path / "a", holding(clock)) as parts:
        await parts.register()
        runner = runner_of(parts, scanner, policy=DAILY)
        async with running(runner):
            await asyncio.sleep(60)
            asked = len(waits(parts.server))
            scanner.packages = (package("a", available="2.0"),)
            await runner.scanning.rescan("apt")
            await asyncio.sleep(1)

            (held,) = parts.server.only_agent().inventories["apt"]
            assert "2.0" == held.available
            assert asked == len(waits(parts.server))


@in_virtual_time
async def test_a_report_that_arrives_while_a_check_in_is_held_is_sent_once(tmp_path, clock):
    """The answer of the held check-in, which knows only the old inventory, does not ask for it again."""
    scanner = FakeScanner((package("a"),))
    async with agent_parts(tmp_path / "a", holding(clock)) as parts:
        await parts.register()
        runner = runner_of(parts, scanner, policy=DAILY)
        async with running(runner):
            for number in range(10):
                await asyncio.sleep(70)
                scanner.packages = (package("a", available=f"{number}.5"),)
                await runner.scanning.rescan("apt")
            await asyncio.sleep(200)

        reports = parts.server.only_agent().reports
        assert 11 == len(reports)
        assert [True] + 10 * [False] == [report.base is None for report in reports]


@pytest.mark.parametrize("error", [httpx2.ReadError, 504])
def test_something_that_cuts_is_found_out_and_lived_with(tmp_path, error):
    """Held shorter, all goes on: an hour costs few cuts, no errors, and the circuit stays closed."""

    async def main(clock):
        async with agent_parts(tmp_path / "a", holding(clock)) as parts:
            await parts.register()
            cut_after(parts, 20.0, error)
            runner = runner_of(parts)
            async with running(runner):
                await asyncio.sleep(HOUR)
                parts.server.order(ScanParams(), CommandType.SCAN_RUN)
                await asyncio.sleep(1)
                received = len(runner.commander.received)
                asked = waits(parts.server)
                await asyncio.sleep(HOUR / 10)
            cuts = [wait for wait in waits(parts.server) if wait > 20]
            return asked, received, len(cuts), runner.check_ins.tokens.client.may_hold, parts.errors.batch()

    asked, received, cuts, settled, errors = run_in_virtual_time(main)

    assert [0, 50, 0, 25, 0, 12, 12] == asked[:7]
    assert {12} == set(asked[7:])
    assert 1 == received
    assert 3 == cuts
    assert (True, None) == (settled, errors)


@in_virtual_time
async def test_something_that_cuts_at_once_is_no_hot_loop(tmp_path, clock):
    """However short a check-in is held, it is cut: holding is given up, and the pace is the server's."""
    async with agent_parts(tmp_path / "a", holding(clock)) as parts:
        parts.server.pace = 60
        await parts.register()
        cut_after(parts, 3.0)
        runner = runner_of(parts)
        async with running(runner):
            await asyncio.sleep(HOUR)

        assert [50, 25, 12, 6, 5] == [wait for wait in waits(parts.server) if wait]
        assert 60 <= len(waits(parts.server)) <= 75
        assert runner.check_ins.tokens.client.may_hold
        assert parts.errors.batch() is None


@in_virtual_time
async def test_a_server_that_hangs_is_a_failure(tmp_path, clock):
    """It takes connections and answers nothing: the plain check-in after the cut fails, and tries get rare."""
    async with agent_parts(tmp_path / "a", holding(clock)) as parts:
        await parts.register()
        async with running(runner_of(parts)):
            await asyncio.sleep(100)

            async def hang(request):
                parts.server.requests.append(("POST", request.url.path))
                await asyncio.sleep(request.extensions["timeout"]["read"])
                raise httpx2.ReadTimeout("", request=request)

            parts.http._transport.handle_async_request = hang
            parts.server.requests.clear()
            await asyncio.sleep(6 * HOUR)

        assert 10 < len(parts.server.requests) < 120
        assert parts.errors.batch() is not None


@in_virtual_time
async def test_the_first_check_ins_after_an_outage_are_plain(tmp_path, clock):
    """A trial of an open circuit that is held would keep every report waiting."""
    async with agent_parts(tmp_path / "a", holding(clock)) as parts:
        await parts.register()
        async with running(runner_of(parts)):
            await asyncio.sleep(200)
            parts.server.script.append(lambda _request: problem(503, "unavailable"))
            await asyncio.sleep(2 * HOUR)
            parts.server.script.clear()
            before = len(waits(parts.server))
            await asyncio.sleep(HOUR)

        assert [0, 50] == waits(parts.server)[before : before + 2]


@pytest.mark.parametrize("status", ["pending", "hardware_changed", "executor_rolled_back"])
def test_an_agent_that_gets_no_commands_is_not_held(tmp_path, status):
    """There is nothing to wait for; it comes back at the pace of the server."""

    async def main(clock):
        async with agent_parts(tmp_path / "a", holding(clock)) as parts:
            parts.server.pace = 60
            await parts.register()
            parts.server.only_agent().status = status
            async with running(runner_of(parts)):
                await asyncio.sleep(600)
            return waits(parts.server)

    assert {0} == set(run_in_virtual_time(main))


@in_virtual_time
async def test_an_executor_that_lost_its_journal_goes_on_scanning_and_reporting(tmp_path, clock):
    """Only commands are kept from it."""
    scanner = FakeScanner((package("a"),))
    async with agent_parts(tmp_path / "a", holding(clock)) as parts:
        await parts.register()
        parts.server.pace = 60
        parts.server.only_agent().status = "executor_rolled_back"
        parts.server.order(ScanParams(), CommandType.SCAN_RUN)
        runner = runner_of(parts, scanner, policy=DAILY)
        async with running(runner):
            await asyncio.sleep(600)

        assert "executor_rolled_back" == parts.state.state.status
        assert 1 == len(parts.server.only_agent().inventories["apt"])
        assert [] == runner.commander.received


@in_virtual_time
async def test_a_held_check_in_is_given_up_at_once_when_told_to_stop(tmp_path, clock):
    """No grace is needed: nothing is lost by it."""
    async with agent_parts(tmp_path / "a", holding(clock)) as parts:
        await parts.register()
        async with running(runner_of(parts)):
            await asyncio.sleep(65)
            before = clock.monotonic()

        assert before == clock.monotonic()


@in_virtual_time
async def test_while_somebody_watches_it_checks_in_fast(tmp_path, clock):
    """A heartbeat makes the pause short, for as long as it was asked for and no longer."""
    desk = Desk()
    async with agent_parts(tmp_path / "a", StubServer(clock), commander=desk) as parts:
        await parts.register()
        async with running(runner_of(parts)):
            await asyncio.sleep(60)
            parts.server.order(HeartbeatParams(300), CommandType.AGENT_HEARTBEAT)
            await asyncio.sleep(60)
            assert 1 == len(desk.received)
            parts.server.only_agent().commands.clear()
            desk.fast_until = clock.monotonic() + 300
            await asyncio.sleep(60)
            before = len(waits(parts.server))
            await asyncio.sleep(180)
            during = len(waits(parts.server)) - before
            await asyncio.sleep(300)
            after = len(waits(parts.server)) - before - during

        assert during >= 60
        assert after <= 20 + 6


@in_virtual_time
async def test_what_is_handed_over_is_what_was_sent(tmp_path, clock):
    """Byte for byte; a command that was not answered comes again, signed anew."""
    async with agent_parts(tmp_path / "a", StubServer(clock)) as parts:
        await parts.register()
        parts.server.order(ScanParams("apt"), CommandType.SCAN_RUN)
        runner = runner_of(parts)
        async with running(runner):
            await asyncio.sleep(200)

        received = runner.commander.received
        assert 3 <= len(received) == len(set(received))
        assert all(b"application/vnd.redflag.command.v1+json" in envelope for envelope in received)


@pytest.mark.parametrize("junk", [[""], ["%%%"], ["AAAA="], ["Zh=="], ["é"], ["AAAA\n"]])
def test_junk_among_the_commands_is_told_and_passed_over(tmp_path, junk):
    """The next command of the same answer is handed over, and the round goes on."""

    async def main(clock):
        async with agent_parts(tmp_path / "a", StubServer(clock)) as parts:
            await parts.register()
            twist_commands(parts.server, [*junk, "AAAA"])
            runner = runner_of(parts)
            async with running(runner):
                await asyncio.sleep(130)
            batches = parts.server.only_agent().errors.values()
            told = {(error.subsystem, error.type) for batch in batches for error in batch.errors}
            return runner.commander.received, told, len(waits(parts.server))

    received, told, asked = run_in_virtual_time(main)

    assert b64decode("AAAA") in received
    assert junk == [""] or {("commands", "malformed")} == told
    assert 4 == asked


@in_virtual_time
async def test_an_answer_full_of_commands_is_bounded(tmp_path, clock):
    """Ten thousand of them are sixteen calls and one error."""
    async with agent_parts(tmp_path / "a", StubServer(clock)) as parts:
        await parts.register()
        twist_commands(parts.server, ["AAAA"] * 10_000)
        runner = runner_of(parts)
        async with running(runner):
            await asyncio.sleep(30)

        assert 16 * len(waits(parts.server)) == len(runner.commander.received)


@in_virtual_time
async def test_an_executor_that_fails_does_not_end_the_round(tmp_path, clock):
    """Whatever it raises is told, and the agent goes on asking."""
    desk = Desk()
    desk.failure = RuntimeError("secret")
    async with agent_parts(tmp_path / "a", StubServer(clock), commander=desk) as parts:
        await parts.register()
        parts.server.order(ScanParams(), CommandType.SCAN_RUN)
        async with running(runner_of(parts)):
            await asyncio.sleep(200)

        told = [error for batch in parts.server.only_agent().errors.values() for error in batch.errors]
        assert {("commands", "RuntimeError")} == {(error.subsystem, error.type) for error in told}
        assert 5 == len(waits(parts.server))


def twist_commands(server, commands):
    """Let every check-in answer carry these."""
    import json

    import attrs

    def twist(request):
        if "check-in" not in request.path:
            return None
        answer = server.answer(request)
        return attrs.evolve(answer, body=json.dumps({**json.loads(answer.body), "commands": commands}).encode())

    server.script.append(twist)
