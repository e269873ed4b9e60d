"""The loop of the agent over hours and days, in virtual time: its pace, its patience, its end."""

import asyncio
import logging

import pytest

from redflag_agent.answers import ServerRefusedError, ThrottledError, UnreachableError
from redflag_agent.pace import LONGEST_PAUSE, needs_operator, pause_after
from redflag_core.commands import CommandType, Order, ScanParams
from redflag_core.errors import CircuitOpenError
from redflag_core.scanning import ScannerPolicy
from tests.helpers.agents import FakeScanner, agent_parts, failed, package, runner_of, running
from tests.helpers.stub_server import StubServer, problem
from tests.helpers.virtual_time import run_in_virtual_time

HOUR = 3600.0
HOURLY = ScannerPolicy(interval=HOUR, timeout=60.0)


def in_virtual_time(test):
    """Run an async test of (path, clock) where waiting takes no time."""

    def wrapped(tmp_path):
        run_in_virtual_time(lambda clock: test(tmp_path, clock))

    wrapped.__name__, wrapped.__doc__ = test.__name__, test.__doc__
    return wrapped


def count(server, part):
    """Requests whose path holds *part*."""
    return sum(part in path for _, path in server.requests)


@in_virtual_time
async def test_a_quiet_day(tmp_path, clock):
    """A check-in when the server wants one, a scan an hour, one report, one renewed token: nothing else."""
    scanner = FakeScanner((package("a"),))
    async with agent_parts(tmp_path / "a", StubServer(clock)) as parts:
        parts.server.pace = 600
        await parts.register()
        async with running(runner_of(parts, scanner, policy=HOURLY)):
            await asyncio.sleep(24 * HOUR - 1)

        assert 24 == scanner.scans
        assert 145 <= count(parts.server, "check-in") <= 147
        assert 1 == count(parts.server, "reports")
        assert 2 == count(parts.server, "agent/token")


@in_virtual_time
async def test_a_change_is_told_as_soon_as_it_is_seen(tmp_path, clock):
    """The end of a scan with news does not wait for the next check-in."""
    scanner = FakeScanner((package("a"),))
    async with agent_parts(tmp_path / "a", StubServer(clock)) as parts:
        parts.server.pace = 3000
        await parts.register()
        async with running(runner_of(parts, scanner, policy=HOURLY)):
            await asyncio.sleep(HOUR - 10)
            scanner.packages = (package("a", available="2.0"),)
            await asyncio.sleep(20)

            (held,) = parts.server.only_agent().inventories["apt"]
            assert "2.0" == held.available


@in_virtual_time
async def test_an_outage_costs_the_server_little_and_the_agent_nothing(tmp_path, clock):
    """Six hours without a server: scans go on, the tries get rare, and afterwards everything arrives."""
    scanner, outage = FakeScanner((package("a"),)), problem(503, "unavailable")
    async with agent_parts(tmp_path / "a", StubServer(clock)) as parts:
        await parts.register()
        async with running(runner_of(parts, scanner, policy=HOURLY)):
            await asyncio.sleep(600)
            parts.server.requests.clear()
            parts.server.script.append(lambda _request: outage)
            await asyncio.sleep(HOUR)
            scanner.packages = (package("a"), package("b"))
            await asyncio.sleep(5 * HOUR)
            tries = len(parts.server.requests)
            parts.server.script.clear()
            await asyncio.sleep(1000)

        assert 20 < tries < 90
        assert 2 == len(parts.server.only_agent().inventories["apt"])
        told = [error.type for batch in parts.server.only_agent().errors.values() for error in batch.errors]
        assert ["server_failed"] == told


@in_virtual_time
async def test_news_during_an_outage_do_not_make_it_ask_more_often(tmp_path, clock):
    """A scanner that sees something new every minute does not undo the spreading of the tries."""
    scanner = FakeScanner()
    async with agent_parts(tmp_path / "a", StubServer(clock)) as parts:
        await parts.register()
        parts.server.requests.clear()
        parts.server.script.append(lambda _request: problem(503, "unavailable"))
        async with running(runner_of(parts, scanner, policy=ScannerPolicy(interval=60.0))):
            for number in range(360):
                scanner.packages = (package(f"p{number}"),)
                await asyncio.sleep(60)

        assert scanner.scans >= 359
        assert len(parts.server.requests) < 120


@in_virtual_time
async def test_a_quarantined_agent_asks_seldom_and_returns_by_itself(tmp_path, clock):
    """Never a hot loop: about four times an hour. Its status says why; released, it goes on."""
    async with agent_parts(tmp_path / "a", StubServer(clock)) as parts:
        await parts.register()
        async with running(runner_of(parts, FakeScanner(), policy=HOURLY)):
            await asyncio.sleep(600)
            parts.server.only_agent().status = "quarantined"
            parts.server.requests.clear()
            await asyncio.sleep(10 * HOUR)

            assert 30 <= len(parts.server.requests) <= 56
            assert "agent_quarantined" == parts.state.state.status
            assert "an operator must look at it" == parts.state.state.status_detail

            parts.server.only_agent().status = "active"
            await asyncio.sleep(1200)
            assert ("active", None) == (parts.state.state.status, parts.state.state.status_detail)


@in_virtual_time
async def test_an_agent_that_the_server_forgot_asks_seldom(tmp_path, clock):
    """Deleted there, it does not hammer, and says so."""
    async with agent_parts(tmp_path / "a", StubServer(clock)) as parts:
        await parts.register()
        parts.server.agents.clear()
        async with running(runner_of(parts, FakeScanner(), policy=HOURLY)):
            await asyncio.sleep(10 * HOUR)

        assert count(parts.server, "/agent/") <= 56
        assert "unknown_key" == parts.state.state.status


@in_virtual_time
async def test_a_failing_scanner_is_told_and_left_alone(tmp_path, clock):
    """Its failures reach the server as a report and as a counted error; the agent goes on."""
    scanner = FakeScanner(failure=failed("dpkg was interrupted"))
    async with agent_parts(tmp_path / "a", StubServer(clock)) as parts:
        parts.server.pace = 600
        await parts.register()
        async with running(runner_of(parts, scanner, policy=HOURLY)):
            await asyncio.sleep(12 * HOUR)

        record = parts.server.only_agent()
        assert ["failed", "open"] == [report.status for report in record.reports]
        assert all("dpkg was interrupted" in report.error for report in record.reports)
        assert sum(error.count for batch in record.errors.values() for error in batch.errors) == scanner.scans
        assert 72 <= count(parts.server, "check-in") <= 87


@in_virtual_time
async def test_a_bug_in_a_round_does_not_end_the_agent(tmp_path, clock):
    """It is told by type and place, and the next round is tried after a pause."""
    async with agent_parts(tmp_path / "a", StubServer(clock)) as parts:
        await parts.register()
        runner = runner_of(parts, FakeScanner(), policy=HOURLY)
        real, runner.check_ins.trust = runner.check_ins.trust, None
        async with running(runner):
            await asyncio.sleep(30)
            runner.check_ins.trust = real
            await asyncio.sleep(HOUR)

        (batch,) = parts.server.only_agent().errors.values()
        assert ["AttributeError"] == [error.type for error in batch.errors]


@in_virtual_time
async def test_a_full_disk_does_not_end_the_agent_and_is_no_hot_loop(tmp_path, clock):
    """Scans cannot be kept, rounds fail in a sentence; with room again everything is delivered."""
    scanner = FakeScanner((package("a"),))
    async with agent_parts(tmp_path / "a", StubServer(clock)) as parts:
        await parts.register()
        runner = runner_of(parts, scanner, policy=HOURLY)
        with parts.database.transaction() as db:
            db.execute("PRAGMA query_only = ON")
        async with running(runner):
            await asyncio.sleep(2.5 * HOUR)
            assert 3 == scanner.scans
            assert count(parts.server, "check-in") < 60
            assert parts.told[-1]["code"] == "outbox"
            parts.database._connection.execute("PRAGMA query_only = OFF")
            await asyncio.sleep(2 * HOUR)

        assert 1 == len(parts.server.only_agent().inventories["apt"])


def holding(clock):
    """A server that holds check-ins, and then wants the next at once, as the real one does."""
    server = StubServer(clock)
    server.holds, server.pace = True, 1
    return server


@in_virtual_time
async def test_a_command_is_carried_out_and_answered_within_a_second(tmp_path, clock):
    """Ordered while a check-in is held: accepted, done, its report and its result are at the server."""
    scanner = FakeScanner((package("a"),))
    async with agent_parts(tmp_path / "a", holding(clock), installers=()) as parts:
        await parts.register()
        async with running(runner_of(parts, scanner, policy=HOURLY)):
            await asyncio.sleep(600)
            scanner.packages = (package("a", available="2.0"),)
            cmd_id = parts.server.order(ScanParams("apt"), CommandType.SCAN_RUN)
            await asyncio.sleep(1)

            record = parts.server.only_agent()
            assert "completed" == record.results()[cmd_id].outcome
            assert [cmd_id] * 2 == [statement.cmd_id for statement in record.statements]
            assert "2.0" == record.inventories["apt"][0].available
            assert 2 == scanner.scans


@in_virtual_time
async def test_a_scan_that_was_ordered_and_fails_is_a_failed_command(tmp_path, clock):
    """With the scanner's sentence; the next command is carried out all the same."""
    scanner = FakeScanner((package("a"),))
    async with agent_parts(tmp_path / "a", holding(clock), installers=()) as parts:
        await parts.register()
        async with running(runner_of(parts, scanner, policy=HOURLY)):
            await asyncio.sleep(600)
            scanner.failure = failed("dpkg was interrupted")
            first = parts.server.order(ScanParams("apt"), CommandType.SCAN_RUN)
            await asyncio.sleep(10)
            scanner.failure = None
            second = parts.server.order(ScanParams(), CommandType.SCAN_RUN)
            await asyncio.sleep(10)

        results = parts.server.only_agent().results()
        assert ("failed", "scan_failed") == (results[first].outcome, results[first].code)
        assert "dpkg was interrupted" in results[first].detail
        assert "completed" == results[second].outcome


@in_virtual_time
async def test_after_a_day_without_a_server_everything_arrives_once(tmp_path, clock):
    """What was accepted before is carried out, and its result waits; nothing is lost and nothing comes twice."""
    scanner = FakeScanner((package("a"),))
    async with agent_parts(tmp_path / "a", holding(clock), installers=()) as parts:
        await parts.register()
        async with running(runner_of(parts, scanner, policy=HOURLY)):
            await asyncio.sleep(600)
            cmd_id = parts.server.order(ScanParams(), CommandType.SCAN_RUN)
            parts.server.script.append(
                lambda request: None if "check-in" in request.path else problem(503, "unavailable")
            )
            await asyncio.sleep(5)
            parts.server.script.append(lambda _request: problem(503, "unavailable"))
            await asyncio.sleep(24 * HOUR)
            assert [] == parts.server.only_agent().statements
            parts.server.script.clear()
            await asyncio.sleep(1200)

        record = parts.server.only_agent()
        assert "completed" == record.results()[cmd_id].outcome
        assert 2 == len(record.statements) == len(record.envelopes)
        assert 1 + 1 + 24 == scanner.scans


@in_virtual_time
async def test_news_do_not_make_a_delivery_that_fails_more_frequent(tmp_path, clock):
    """Check-ins work and results do not: a change a minute does not shorten the pauses in between."""
    scanner = FakeScanner()
    async with agent_parts(tmp_path / "a", holding(clock), installers=()) as parts:
        await parts.register()
        runner = runner_of(parts, scanner, policy=HOURLY)
        async with running(runner):
            await asyncio.sleep(600)
            parts.server.script.append(
                lambda request: problem(503, "unavailable") if "/results" in request.path else None
            )
            cmd_id = parts.server.order(ScanParams(), CommandType.SCAN_RUN)
            for number in range(3 * 60):
                scanner.packages = (package(f"p{number}"),)
                await runner.scanning.rescan("apt")
                await asyncio.sleep(60)
            tries = count(parts.server, "/results")
            parts.server.script.clear()
            await asyncio.sleep(1200)

        record = parts.server.only_agent()
        assert 10 < tries < 60
        assert ("completed", []) == (record.results()[cmd_id].outcome, undelivered(parts))
        assert "p179" == record.inventories["apt"][0].name


@in_virtual_time
async def test_an_agent_that_was_killed_before_it_delivered_delivers_after_the_restart(tmp_path, clock):
    """The result is the one that was signed then, byte for byte, and the work is not done again."""
    server, scanner = holding(clock), FakeScanner((package("a"),))
    async with agent_parts(tmp_path / "a", server, installers=()) as parts:
        await parts.register()
        async with running(runner_of(parts, scanner, policy=HOURLY)):
            await asyncio.sleep(600)
            server.script.append(
                lambda request: problem(503, "unavailable") if "/results" in request.path else None
            )
            cmd_id = server.order(ScanParams(), CommandType.SCAN_RUN)
            await asyncio.sleep(5)
            server.script.clear()
        signed = undelivered(parts)
    scans = scanner.scans

    async with agent_parts(tmp_path / "a", server, installers=(), seed=5) as parts:
        async with running(runner_of(parts)):
            await asyncio.sleep(600)

        record = server.only_agent()
        assert "completed" == record.results()[cmd_id].outcome
        assert signed == record.envelopes
        assert [] == undelivered(parts)
        assert scans == scanner.scans


@in_virtual_time
async def test_days_of_both_loops_do_not_fork_the_chain(tmp_path, clock):
    """Tokens that wear out or are withdrawn are renewed once, whichever loop finds out: no quarantine."""
    scanner = FakeScanner()
    async with agent_parts(tmp_path / "a", holding(clock), installers=()) as parts:
        parts.server.pace = 600
        await parts.register()
        slow(parts)
        async with running(runner_of(parts, scanner, policy=HOURLY)):
            for number in range(30):
                scanner.packages = (package(f"p{number}"),)
                parts.server.order(ScanParams("apt"), CommandType.SCAN_RUN)
                if number in (3, 5):
                    parts.server.withdraw_access_tokens()
                await asyncio.sleep(HOUR)

        record = parts.server.only_agent()
        assert "active" == record.status
        assert list(range(1, len(record.generations) + 1)) == record.generations
        assert 1 + 2 + 1 == len(record.generations)
        assert 30 == len(record.results())


@in_virtual_time
async def test_a_command_of_another_epoch_waits_for_the_bundle(tmp_path, clock):
    """The new bundle is fetched before its first command is handed over."""
    async with agent_parts(tmp_path / "a", holding(clock), installers=()) as parts:
        await parts.register()
        async with running(runner_of(parts, FakeScanner(), policy=HOURLY)):
            await asyncio.sleep(600)
            parts.server.publish(version=2, epoch=1)
            cmd_id = parts.server.order(ScanParams(), CommandType.SCAN_RUN)
            await asyncio.sleep(120)

        assert "completed" == parts.server.only_agent().results()[cmd_id].outcome


@in_virtual_time
async def test_the_state_in_a_check_in_is_the_journals(tmp_path, clock):
    """The server learns from each check-in how far the executor has come."""
    async with agent_parts(tmp_path / "a", holding(clock), installers=()) as parts:
        await parts.register()
        async with running(runner_of(parts, FakeScanner(), policy=HOURLY)):
            await asyncio.sleep(60)
            for _ in range(3):
                parts.server.order(ScanParams(), CommandType.SCAN_RUN)
                await asyncio.sleep(60)

        assert Order(0, 0, 3) == parts.server.only_agent().reported


@in_virtual_time
async def test_one_run_carries_out_what_came_and_brings_the_result(tmp_path, clock):
    """Started by a timer, it checks in once, works, scans again, and leaves nothing behind."""
    scanner = FakeScanner((package("a"),))
    async with agent_parts(tmp_path / "a", holding(clock), installers=()) as parts:
        await parts.register()
        cmd_id = parts.server.order(ScanParams(), CommandType.SCAN_RUN)
        await asyncio.wait_for(runner_of(parts, scanner, policy=HOURLY).run_once(), 60)

        record = parts.server.only_agent()
        assert "completed" == record.results()[cmd_id].outcome
        assert ([0], []) == ([check_in.wait for check_in in record.check_ins], undelivered(parts))


@in_virtual_time
async def test_one_run_that_is_refused_is_remembered(tmp_path, clock):
    """``status`` shows the server's word, as it does for an agent that runs on."""
    async with agent_parts(tmp_path / "a", StubServer(clock)) as parts:
        await parts.register()
        parts.server.only_agent().status = "quarantined"
        with pytest.raises(ServerRefusedError):
            await runner_of(parts, FakeScanner(), policy=HOURLY).run_once()

        shown = parts.state.state.status, parts.state.state.status_detail
        assert ("agent_quarantined", "an operator must look at it") == shown


def undelivered(parts):
    """Statements in the journal that no server has."""
    with parts.identity.executor.journal.page() as page:
        return [kept.envelope for kept in page.undelivered(100)]


def slow(parts):
    """Let each request take a second, so that others come in between."""
    handle = parts.http._transport.handle_async_request

    async def handle_slowly(request):
        await asyncio.sleep(0.5)
        response = await handle(request)
        await asyncio.sleep(0.5)
        return response

    parts.http._transport.handle_async_request = handle_slowly


@in_virtual_time
async def test_told_to_stop_it_ends_at_once_in_the_middle_of_a_wait(tmp_path, clock):
    """Neither the pace nor an interval is waited for."""
    async with agent_parts(tmp_path / "a", StubServer(clock)) as parts:
        await parts.register()
        async with running(runner_of(parts, FakeScanner(), policy=HOURLY)):
            await asyncio.sleep(100)
            before = clock.monotonic()

        assert before == clock.monotonic()


@in_virtual_time
async def test_told_to_stop_it_ends_within_five_seconds_whatever_it_does(tmp_path, clock):
    """A scan and a request that hang are given up."""
    async with agent_parts(tmp_path / "a", StubServer(clock)) as parts:
        await parts.register()
        runner = runner_of(parts, FakeScanner(gate=asyncio.Event()), policy=HOURLY)

        async def hang(_self=None):
            await asyncio.Event().wait()

        parts.http._transport.handle_async_request = hang
        async with running(runner):
            await asyncio.sleep(10)
            before = clock.monotonic()

        assert clock.monotonic() - before < 5


@in_virtual_time
async def test_a_request_under_way_is_finished_when_told_to_stop(tmp_path, clock):
    """What the server is just accepting is not sent again at the next start."""
    scanner = FakeScanner((package("a"),))
    async with agent_parts(tmp_path / "a", StubServer(clock)) as parts:
        await parts.register()
        transport, arrived = parts.http._transport, asyncio.Event()
        handle = transport.handle_async_request

        async def slow(request):
            response = await handle(request)
            if "/reports/" in request.url.path:
                arrived.set()
                await asyncio.sleep(2)
            return response

        transport.handle_async_request = slow
        async with running(runner_of(parts, scanner, policy=HOURLY)):
            await arrived.wait()

        assert () == parts.outbox.pending()


@in_virtual_time
async def test_a_bug_in_a_loop_ends_the_agent_with_that_bug(tmp_path, clock):
    """It must not go on half: whoever started it sees the error and starts it again."""
    async with agent_parts(tmp_path / "a", StubServer(clock)) as parts:
        await parts.register()
        runner = runner_of(parts, FakeScanner(), policy=HOURLY)
        runner.scanning.outbox = None

        with pytest.raises(AttributeError):
            await asyncio.wait_for(runner.run(asyncio.Event()), 60)


@in_virtual_time
async def test_progress_is_told_as_it_happens(tmp_path, clock):
    """Scan started, scan done with its numbers, report accepted."""
    scanner = FakeScanner((package("a"), package("b", available="2.0")))
    async with agent_parts(tmp_path / "a", StubServer(clock)) as parts:
        await parts.register()
        await runner_of(parts, scanner, policy=HOURLY).run_once()

        assert ["scan_started", "scan_done", "report_accepted"] == [fact["event"] for fact in parts.told]
        assert {"current": 1, "available": 1} == parts.told[1]["by_state"]
        assert (2, 1, "ok") == tuple(parts.told[1][name] for name in ("packages", "pending", "status"))


@in_virtual_time
async def test_one_round_that_fails_says_so(tmp_path, clock):
    """Run once, the agent does not pretend; the report waits in the outbox."""
    async with agent_parts(tmp_path / "a", StubServer(clock)) as parts:
        await parts.register()
        parts.server.script.append(lambda _request: problem(503, "unavailable"))

        with pytest.raises(Exception, match="unavailable"):
            await runner_of(parts, FakeScanner((package("a"),)), policy=HOURLY).run_once()

        assert ("apt",) == parts.outbox.pending()


@pytest.mark.parametrize("level", [logging.DEBUG])
def test_no_secret_is_ever_logged(tmp_path, caplog, level):
    """Not at any level, of any logger, in good times and bad."""
    caplog.set_level(level)

    async def main(clock):
        async with agent_parts(tmp_path / "a", StubServer(clock)) as parts:
            secrets = [parts.state.state.refresh.current]
            token = parts.server.registration_token()
            secrets += [token.secret, token.text(), token.credential]
            parts.server.script.append(lambda _request: problem(503, "unavailable"))
            async with running(runner_of(parts, FakeScanner(failure=failed()), policy=HOURLY)):
                await asyncio.sleep(100)
            parts.server.script.clear()
            await parts.register()
            async with running(runner_of(parts, FakeScanner((package("a"),)), policy=HOURLY)):
                await asyncio.sleep(100)
                parts.server.withdraw_access_tokens()
                await asyncio.sleep(100)
                parts.server.only_agent().status = "quarantined"
                await asyncio.sleep(HOUR)
            state = parts.state.state
            secrets += [state.refresh.current, state.access.token, parts.identity.agent_key.seed.hex()]
            return secrets, [str(fact) for fact in parts.told]

    secrets, told = run_in_virtual_time(main)

    text = "\n".join([caplog.text, *told])
    assert "agent_quarantined" in text
    assert [] == [secret for secret in secrets if secret in text]


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.999])
def test_pauses_after_failures_grow_are_spread_and_end(fraction):
    """Full jitter over an interval that doubles up to a quarter of an hour."""
    error = UnreachableError("gone")
    pauses = [pause_after(error, failures=number, fraction=fraction) for number in range(1, 60)]

    assert pauses == sorted(pauses)
    assert all(1.0 <= pause <= LONGEST_PAUSE for pause in pauses)


@pytest.mark.parametrize(
    "error",
    [ThrottledError(429, "rate_limited", "slow", 120.0), CircuitOpenError("open", retry_after=120.0)],
)
def test_what_was_asked_for_is_waited_for(error):
    """And something on top, so that not everybody returns at once."""
    assert 120.0 <= pause_after(error, failures=1, fraction=0.0) < pause_after(error, failures=1, fraction=0.9)


@pytest.mark.parametrize(
    "error, expected",
    [
        (ServerRefusedError(403, "machine_mismatch", ""), True),
        (ServerRefusedError(403, "agent_revoked", ""), True),
        (ServerRefusedError(401, "unknown_key", ""), True),
        (ServerRefusedError(401, "bad_token", ""), False),
        (ServerRefusedError(400, "malformed", ""), False),
        (UnreachableError("gone"), False),
    ],
)
def test_who_needs_a_person(error, expected):
    """Only what no repetition can change."""
    assert expected is needs_operator(error)
