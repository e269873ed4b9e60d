"""One round with the server: what is wanted and waiting arrives, once, and as small as it can be."""

import json
from datetime import timedelta

import attrs
import pytest

from redflag_agent.answers import AnswerError, ServerRefusedError, UnreachableError
from redflag_agent.delivery import PROGRESS_PAUSE
from redflag_core.encoding import b64decode
from redflag_core.errors import MalformedError
from redflag_core.keys import SigningKey
from redflag_core.messages import Phase, Progress
from redflag_core.scanning import failed_report
from redflag_core.statements import CommandAccepted, sign_statement
from redflag_core.testing import FrozenClock
from redflag_core.trust import new_bundle, sign_bundle
from tests.helpers.agents import agent_parts, failed, new_id, package, scan_report
from tests.helpers.stub_server import Answer, LostAnswerError, StubServer, problem

MANY = tuple(package(f"p{number}") for number in range(200))


async def enrolled(parts, *packages):
    """Register, and deliver an inventory."""
    await parts.register()
    delivery = parts.delivery()
    parts.outbox.record_scan(scan_report(*packages), report_id=new_id(1))
    await delivery.round()
    return delivery


def paths(server):
    """What was asked for, in order."""
    return [path.removeprefix("/api/v1") for method, path in server.requests if method == "POST"]


async def test_a_first_round_delivers_the_inventory(tmp_path):
    """Check in, then the full report; the server then holds what the scanner saw."""
    async with agent_parts(tmp_path / "a") as parts:
        await enrolled(parts, *MANY)

        assert ["/agents/register", "/agent/token", "/agent/check-in", "/agent/reports/apt"] == paths(parts.server)
        assert MANY == tuple(sorted(parts.server.only_agent().inventories["apt"], key=lambda p: int(p.name[1:])))
        assert () == parts.outbox.pending()


async def test_an_unchanged_inventory_costs_a_check_in(tmp_path):
    """Nothing else is sent."""
    async with agent_parts(tmp_path / "a") as parts:
        delivery = await enrolled(parts, *MANY)
        parts.server.requests.clear()

        parts.outbox.record_scan(scan_report(*MANY), report_id=new_id(2))
        await delivery.round()

        assert ["/agent/check-in"] == paths(parts.server)


async def test_a_change_travels_as_a_change(tmp_path):
    """One package of two hundred, one gone."""
    async with agent_parts(tmp_path / "a") as parts:
        delivery = await enrolled(parts, *MANY)
        changed = (package("p0", available="2.0"), *MANY[1:-1])

        parts.outbox.record_scan(scan_report(*changed), report_id=new_id(2))
        await delivery.round()

        report = parts.server.only_agent().reports[-1]
        assert (["p0"], ["p199"]) == ([p.name for p in report.packages], [k.name for k in report.removed])
        assert set(changed) == set(parts.server.only_agent().inventories["apt"])


async def test_a_server_that_holds_another_inventory_gets_everything(tmp_path):
    """Its base is not this agent's: a delta would be nonsense."""
    async with agent_parts(tmp_path / "a") as parts:
        delivery = await enrolled(parts, *MANY)
        parts.server.only_agent().inventories["apt"] = (package("other"),)

        parts.outbox.record_scan(scan_report(*MANY, package("new")), report_id=new_id(2))
        await delivery.round()

        assert [None, None] == [report.base for report in parts.server.only_agent().reports]
        assert 201 == len(parts.server.only_agent().inventories["apt"])


async def test_a_delta_that_is_not_accepted_is_followed_by_everything(tmp_path):
    """The server lost the base between check-in and report: it gets the inventory in the same round."""
    async with agent_parts(tmp_path / "a") as parts:
        delivery = await enrolled(parts, *MANY)

        def forget_base(request):
            if "/reports/" in request.path:
                parts.server.script.clear()
                parts.server.only_agent().inventories.clear()

        parts.server.script.append(forget_base)
        parts.outbox.record_scan(scan_report(*MANY, package("new")), report_id=new_id(2))
        await delivery.round()

        assert 201 == len(parts.server.only_agent().inventories["apt"])


async def test_a_server_that_takes_not_even_everything_is_not_sent_it_with_all_other_news(tmp_path):
    """Once for each check-in is enough for megabytes that it does not want."""
    async with agent_parts(tmp_path / "a") as parts:
        await parts.register()
        parts.outbox.record_scan(scan_report(*MANY), report_id=new_id(1))
        unwanted = Answer(200, b'{"v":1,"accepted":false,"hash":null}')
        parts.server.script.append(lambda request: unwanted if "/reports/" in request.path else None)
        delivery = parts.delivery()
        await delivery.round()
        for _ in range(10):
            await delivery.runner.delivery.send()
        await delivery.round()

        assert 2 == paths(parts.server).count("/agent/reports/apt")
        assert ("apt",) == parts.outbox.pending()


async def test_a_server_that_lost_an_inventory_gets_it_again(tmp_path):
    """Restored from a backup, it asks, though nothing changed here."""
    async with agent_parts(tmp_path / "a") as parts:
        delivery = await enrolled(parts, *MANY)
        parts.server.only_agent().inventories.clear()
        parts.server.only_agent().statuses.clear()

        await delivery.round()

        assert 200 == len(parts.server.only_agent().inventories["apt"])


async def test_a_failed_scan_is_told_with_its_reason(tmp_path):
    """The server learns why, and keeps the inventory to mark it unknown."""
    async with agent_parts(tmp_path / "a") as parts:
        delivery = await enrolled(parts, *MANY)
        report = failed_report(failed("dpkg is broken"), scanner="apt", manager="apt", taken_at=9, duration_ms=1)

        parts.outbox.record_scan(report, report_id=new_id(2))
        await delivery.round()
        await delivery.round()

        assert ["ok", "failed"] == [report.status for report in parts.server.only_agent().reports]
        assert "dpkg is broken" == parts.server.only_agent().reports[-1].error
        assert 200 == len(parts.server.only_agent().inventories["apt"])


async def test_a_report_whose_answer_was_lost_is_sent_again_under_the_same_id(tmp_path):
    """The server can count it once."""
    async with agent_parts(tmp_path / "a") as parts:
        await parts.register()
        parts.outbox.record_scan(scan_report(*MANY), report_id=new_id(1))
        parts.server.script.append(lose_answers_to(parts.server, "/reports/"))
        with pytest.raises(UnreachableError):
            await parts.delivery().round()
        parts.server.script.clear()
        parts.server.clock.advance(120)

        await parts.delivery().round()

        assert {new_id(1)} == {report.report_id for report in parts.server.only_agent().reports}
        assert () == parts.outbox.pending()


async def test_a_report_that_is_refused_for_good_is_told_and_put_aside(tmp_path):
    """It does not come again every minute; the refusal goes to the server as an error."""
    async with agent_parts(tmp_path / "a") as parts:
        await parts.register()
        parts.outbox.record_scan(scan_report(*MANY), report_id=new_id(1))
        refused = problem(413, "too_large")
        parts.server.script.append(lambda request: refused if "/reports/" in request.path else None)
        delivery = parts.delivery()

        await delivery.round()
        await delivery.round()

        assert 1 == paths(parts.server).count("/agent/reports/apt")
        (batch,) = parts.server.only_agent().errors.values()
        assert ["report.apt"] == [error.subsystem for error in batch.errors]


@pytest.mark.parametrize(
    "status, code", [(429, "rate_limited"), (403, "agent_pending"), (408, "too_slow"), (503, "unavailable")]
)
async def test_a_report_that_cannot_be_taken_now_waits(tmp_path, status, code):
    """Too busy, or not yet allowed: the report is not put aside, and arrives when it can."""
    async with agent_parts(tmp_path / "a") as parts:
        await parts.register()
        parts.outbox.record_scan(scan_report(*MANY), report_id=new_id(1))
        later = problem(status, code)
        parts.server.script.append(lambda request: later if "/reports/" in request.path else None)
        with pytest.raises(AnswerError):
            await parts.delivery().round()
        parts.server.script.clear()

        await parts.delivery().round()

        assert 200 == len(parts.server.only_agent().inventories["apt"])


async def test_an_agent_that_waits_for_approval_checks_in_and_stores_nothing(tmp_path):
    """Approved, it delivers what waited."""
    async with agent_parts(tmp_path / "a") as parts:
        await parts.register()
        parts.server.only_agent().status = "pending"
        parts.outbox.record_scan(scan_report(*MANY), report_id=new_id(1))
        parts.errors.record("x", failed())
        delivery = parts.delivery()
        await delivery.round()

        assert ("pending", {}) == (parts.state.state.status, parts.server.only_agent().inventories)
        parts.server.only_agent().status = "active"
        await delivery.round()

        assert 200 == len(parts.server.only_agent().inventories["apt"])
        assert 1 == len(parts.server.only_agent().errors)


async def test_errors_are_told_once(tmp_path):
    """Also when the answer was lost: the same batch again."""
    async with agent_parts(tmp_path / "a") as parts:
        await parts.register()
        parts.errors.record("scanner.apt", failed("locked"))
        parts.server.script.append(lose_answers_to(parts.server, "/errors"))
        with pytest.raises(UnreachableError):
            await parts.delivery().round()
        parts.server.script.clear()
        parts.server.clock.advance(120)

        await parts.delivery().round()

        (batch,) = parts.server.only_agent().errors.values()
        assert ["locked"] == [error.message for error in batch.errors]
        assert parts.errors.batch() is None


async def test_errors_that_are_refused_for_good_are_dropped_and_counted(tmp_path):
    """Rounds go on, and the next batch tells how much is missing and why."""
    async with agent_parts(tmp_path / "a") as parts:
        delivery = await enrolled(parts)
        for _ in range(3):
            parts.errors.record("scanner.apt", failed("locked"))
        refused = problem(413, "too_large")
        parts.server.script.append(lambda request: refused if "/errors" in request.path else None)
        await delivery.round()
        parts.server.script.clear()

        await delivery.round()

        (batch,) = parts.server.only_agent().errors.values()
        assert (3, ["errors"]) == (batch.dropped, [error.subsystem for error in batch.errors])
        assert "too_large" in batch.errors[0].message


async def test_a_server_that_refuses_every_batch_of_errors_is_asked_once_more(tmp_path):
    """The word of the refusal is refused too, and then there is nothing left to send."""
    async with agent_parts(tmp_path / "a") as parts:
        delivery = await enrolled(parts)
        parts.errors.record("scanner.apt", failed("locked"))
        refused = problem(400, "malformed")
        parts.server.script.append(lambda request: refused if "/errors" in request.path else None)

        for _ in range(5):
            await delivery.round()

        assert 2 == paths(parts.server).count("/agent/errors")


@pytest.mark.parametrize("status", [401, 403, 408, 429, 500])
async def test_errors_that_cannot_be_taken_now_wait(tmp_path, status):
    """Not known, not allowed yet, too slow, too many, or broken: nothing is dropped."""
    async with agent_parts(tmp_path / "a") as parts:
        delivery = await enrolled(parts)
        parts.errors.record("scanner.apt", failed("locked"))
        later = problem(status, "not_now")
        parts.server.script.append(lambda request: later if "/errors" in request.path else None)
        with pytest.raises(AnswerError):
            await delivery.round()
        parts.server.script.clear()

        await parts.delivery().round()

        (batch,) = parts.server.only_agent().errors.values()
        assert (0, ["locked"]) == (batch.dropped, [error.message for error in batch.errors])


async def test_a_bundle_refused_by_a_clock_that_was_ahead_is_believed_once_it_is_right(tmp_path):
    """No restart is needed; the refusal is told once."""
    async with agent_parts(tmp_path / "a") as parts:
        delivery = await enrolled(parts)
        parts.server.publish(version=2)
        delivery.trust.clock = FrozenClock(parts.clock.now() + timedelta(days=200))
        await delivery.round()
        await delivery.round()
        assert 1 == parts.state.state.bundle_version
        delivery.trust.clock = parts.clock

        await delivery.round()

        assert 2 == parts.state.state.bundle_version
        (batch,) = parts.server.only_agent().errors.values()
        assert [("trust", 1)] == [(error.subsystem, error.count) for error in batch.errors]


async def test_a_bundle_that_is_not_to_be_believed_is_fetched_once(tmp_path):
    """Time heals no signature: it is not asked for again in every round."""
    async with agent_parts(tmp_path / "a") as parts:
        delivery = await enrolled(parts)
        parts.server.bundle = sign_bundle(
            new_bundle(parts.server.id, [], version=2, epoch=0, now=parts.clock.now()), SigningKey.generate()
        )
        parts.server.requests.clear()

        for _ in range(3):
            await delivery.round()

        assert 1 == parts.server.requests.count(("GET", "/api/v1/trust/bundle"))
        assert 1 == parts.state.state.bundle_version


async def test_a_server_that_lost_a_failed_scan_learns_of_it_with_the_next(tmp_path):
    """Restored from a backup, it would show "ok" for ever: the same failure is news again."""
    async with agent_parts(tmp_path / "a") as parts:
        delivery = await enrolled(parts, *MANY)
        report = failed_report(failed("dpkg is broken"), scanner="apt", manager="apt", taken_at=9, duration_ms=1)
        parts.outbox.record_scan(report, report_id=new_id(2))
        await delivery.round()
        parts.server.only_agent().statuses["apt"] = "ok"

        await delivery.round()
        parts.outbox.record_scan(report, report_id=new_id(3))
        await delivery.round()

        assert "failed" == parts.server.only_agent().statuses["apt"]


async def stating(parts, *numbers):
    """Register, and have these statements of the executor to deliver."""
    await parts.register()
    desk = parts.desk
    for number in numbers:
        desk.state(number, statement_of(parts, number), new_id(number))
    return desk


def statement_of(parts, number):
    """What the executor of *parts* signed about a command."""
    record = parts.server.only_agent()
    accepted = CommandAccepted(
        server=parts.server.id,
        agent_id=record.agent_id,
        cmd_id=new_id(number),
        digest="0" * 64,
        body="0" * 64,
        epoch=0,
        gen=0,
        seq=number,
        iat=1_800_000_000,
    )
    return sign_statement(accepted, parts.identity.executor.key)


def stated(server):
    """Order numbers of the statements that the server recorded."""
    return [statement.seq for statement in server.only_agent().statements]


async def test_statements_go_first_and_in_their_order(tmp_path):
    """Before reports and errors, the oldest first, and each until it is delivered."""
    async with agent_parts(tmp_path / "a") as parts:
        desk = await stating(parts, 3, 1, 2)
        parts.outbox.record_scan(scan_report(*MANY), report_id=new_id(1))
        parts.errors.record("x", failed())
        await parts.delivery().round()

        asked = [path for path in paths(parts.server) if path not in ("/agents/register", "/agent/token")]
        assert ["/agent/check-in", *3 * ["/agent/results"], "/agent/reports/apt", "/agent/errors"] == asked
        assert ([1, 2, 3], {}) == (stated(parts.server), desk.waiting)


async def test_a_statement_whose_answer_was_lost_is_sent_again_and_recorded_once(tmp_path):
    """Nothing is taken for delivered that the server did not say it has."""
    async with agent_parts(tmp_path / "a") as parts:
        desk = await stating(parts, 1)
        parts.server.script.append(lose_answers_to(parts.server, "/results"))
        with pytest.raises(UnreachableError):
            await parts.delivery().round()
        assert [1] == list(desk.waiting)
        parts.server.script.clear()
        parts.server.clock.advance(120)

        await parts.delivery().round()

        assert ([1], {}) == (stated(parts.server), desk.waiting)
        assert 1 < len(parts.server.only_agent().envelopes)


async def test_a_statement_that_is_refused_for_good_is_told_and_kept(tmp_path):
    """It is passed over for a day, hides nothing that comes after it, and is never given up."""
    async with agent_parts(tmp_path / "a") as parts:
        desk = await stating(parts, 1, 2, 3, 4)
        poison = {1, 2, 3}
        parts.server.script.append(refuse_statements(parts, poison))
        delivery = parts.delivery()
        await delivery.round()
        await delivery.round()

        assert ([4], poison) == (stated(parts.server), set(desk.waiting))
        assert 4 == paths(parts.server).count("/agent/results")
        told = [error for batch in parts.server.only_agent().errors.values() for error in batch.errors]
        assert [("statement", 3)] == [(error.subsystem, error.count) for error in told]
        assert {"command_conflict"} == {
            parts.outbox.refusal(desk.waiting[number].envelope).code for number in poison
        }

        parts.server.clock.advance(86_400)
        poison.clear()
        await delivery.round()

        assert ([4, 1, 2, 3], {}) == (stated(parts.server), desk.waiting)
        assert parts.outbox.refusal(statement_of(parts, 1)) is None


async def test_a_statement_that_is_for_somebody_else_does_not_hold_up_the_others(tmp_path):
    """401 like a request that must not be trusted, but the check-in before it was."""
    async with agent_parts(tmp_path / "a") as parts:
        desk = await stating(parts, 1, 2)
        parts.server.script.append(refuse_statements(parts, {1}, problem(401, "wrong_recipient")))
        await parts.delivery().round()

        assert ([2], [1]) == (stated(parts.server), list(desk.waiting))


async def test_a_statement_that_was_refused_is_tried_again_after_a_restart(tmp_path):
    """Whoever updates the server and the agent need not wait for a day."""
    async with agent_parts(tmp_path / "a") as parts:
        desk = await stating(parts, 1)
        poison = {1}
        parts.server.script.append(refuse_statements(parts, poison))
        await parts.delivery().round()
        poison.clear()

        await parts.delivery().round()

        assert ([1], {}) == (stated(parts.server), desk.waiting)


@pytest.mark.parametrize("status", [401, 403, 408, 429, 500, 503])
async def test_a_statement_that_cannot_be_taken_now_waits(tmp_path, status):
    """It is the first thing that is sent when it can be."""
    async with agent_parts(tmp_path / "a") as parts:
        await stating(parts, 1)
        later = problem(status, "not_now")
        parts.server.script.append(lambda request: later if "/results" in request.path else None)
        with pytest.raises(AnswerError):
            await parts.delivery().round()
        parts.server.script.clear()

        await parts.delivery().round()

        assert [1] == stated(parts.server)


async def test_nothing_is_delivered_that_the_server_would_not_store(tmp_path):
    """Statements of an agent that waits for approval wait with it."""
    async with agent_parts(tmp_path / "a") as parts:
        desk = await stating(parts, 1)
        desk.show(progress_of(1))
        parts.server.only_agent().status = "hardware_changed"
        delivery = parts.delivery()
        await delivery.round()
        assert 0 == sum(part in path for path in paths(parts.server) for part in ("results", "progress"))

        parts.server.only_agent().status = "active"
        await delivery.round()

        assert [1] == stated(parts.server)


def progress_of(number):
    """How far a command is."""
    return Progress(1, new_id(1), number, Phase.RUNNING, "installs", percent=number, lines=("Unpacking",))


async def test_progress_is_sent_when_there_is_something_new_and_not_too_often(tmp_path):
    """The latest, at a calm pace, and nothing twice."""
    async with agent_parts(tmp_path / "a") as parts:
        desk = await stating(parts)
        delivery = parts.delivery()
        await delivery.round()
        for number in (1, 2, 3):
            desk.show(progress_of(number))
            await delivery.runner.delivery.send()
        parts.server.clock.advance(PROGRESS_PAUSE)
        wait = await delivery.runner.delivery.send()
        parts.server.clock.advance(5)
        await delivery.runner.delivery.send()

        assert [1, 3] == [progress.number for progress in parts.server.only_agent().progress]
        assert PROGRESS_PAUSE == wait


async def test_a_server_that_is_too_busy_for_progress_is_left_alone_with_it(tmp_path):
    """It is not repeated and holds nothing up: what must arrive does."""
    async with agent_parts(tmp_path / "a") as parts:
        desk = await stating(parts)
        busy = problem(429, "rate_limited", headers={"retry-after": "60"})
        parts.server.script.append(lambda request: busy if "/progress" in request.path else None)
        delivery = parts.delivery()
        for number in range(1, 20):
            desk.show(progress_of(number))
            desk.state(number, statement_of(parts, number), new_id(number))
            await delivery.round()
            parts.server.clock.advance(5)

        assert 2 == paths(parts.server).count("/agent/progress")
        assert list(range(1, 20)) == stated(parts.server)


@pytest.mark.parametrize("status", [400, 404, 409])
async def test_progress_that_is_refused_is_lost_without_harm(tmp_path, status):
    """No error, no repetition: somebody watched, or not."""
    async with agent_parts(tmp_path / "a") as parts:
        desk = await stating(parts)
        refused = problem(status, "no")
        parts.server.script.append(lambda request: refused if "/progress" in request.path else None)
        desk.show(progress_of(1))
        await parts.delivery().round()

        assert 1 == paths(parts.server).count("/agent/progress")
        assert parts.errors.batch() is None


async def test_what_the_machine_is_called_is_sent_after_a_start_and_not_again(tmp_path):
    """Operating system, versions and name."""
    async with agent_parts(tmp_path / "a") as parts:
        delivery = await enrolled(parts)
        await delivery.round()
        await parts.delivery().round()

        sent = [check_in.os is not None for check_in in parts.server.only_agent().check_ins]
        assert [True, False, True] == sent
        first = parts.server.only_agent().check_ins[0]
        assert (1,) == first.versions.protocol
        assert first.hostname


async def test_the_server_sets_the_pace_within_bounds(tmp_path):
    """As it says, but never a hot loop and never a week."""
    async with agent_parts(tmp_path / "a") as parts:
        delivery = await enrolled(parts)
        paces = []
        for said in (45, 0, -5, 10**9):
            parts.server.pace = said
            paces.append(await delivery.round())

        assert [45.0, 1.0, 1.0, 3600.0] == paces


@pytest.mark.parametrize("field, value", [("status", "loved"), ("v", "1"), ("surprise", 1)])
async def test_an_answer_of_another_form_is_refused(tmp_path, field, value):
    """Nothing of it is used."""
    async with agent_parts(tmp_path / "a") as parts:
        delivery = await enrolled(parts)

        def twist(request):
            if "check-in" not in request.path:
                return None
            answer = parts.server.answer(request)
            return attrs.evolve(answer, body=json.dumps({**json.loads(answer.body), field: value}).encode())

        parts.server.script.append(twist)
        with pytest.raises(MalformedError):
            await delivery.round()


async def test_a_quarantined_agent_gets_the_servers_word(tmp_path):
    """As a refusal that names the state."""
    async with agent_parts(tmp_path / "a") as parts:
        delivery = await enrolled(parts)
        parts.server.only_agent().status = "quarantined"

        with pytest.raises(ServerRefusedError) as refusal:
            await delivery.round()

        assert "agent_quarantined" == refusal.value.problem


async def test_a_restart_goes_on_where_it_was(tmp_path):
    """Token, outbox and base of the next delta are all on disk: no new token, no full report."""
    server = StubServer()
    async with agent_parts(tmp_path / "a", server) as parts:
        await enrolled(parts, *MANY)
    server.requests.clear()

    async with agent_parts(tmp_path / "a", server, seed=8) as parts:
        parts.outbox.record_scan(scan_report(*MANY, package("new")), report_id=new_id(2))
        await parts.delivery().round()

        assert ["/agent/check-in", "/agent/reports/apt"] == paths(server)
        assert ["new"] == [p.name for p in server.only_agent().reports[-1].packages]


def refuse_statements(parts, poison, answer=None):
    """Refuse the statements with these numbers for good."""

    def step(request):
        if "/results" not in request.path:
            return None
        sent = b64decode(json.loads(request.body)["statement"])
        refused = any(sent == statement_of(parts, number) for number in poison)
        return (answer or problem(409, "command_conflict")) if refused else None

    return step


def lose_answers_to(server, part):
    """Handle requests with *part* in their path, and break the connection before the answer."""

    def step(request):
        if part in request.path:
            server.answer(request)
            raise LostAnswerError

    return step
