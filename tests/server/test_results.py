"""What executors sign about commands: recorded once, followed by the table, believed as far as it can be true."""

import asyncio
from datetime import timedelta
from uuid import UUID

import attrs
import pytest
from sqlalchemy import func, select

from redflag_core import codec
from redflag_core.command_queue import LEASE_SECONDS, RETRY_FIRST, RETRY_LONGEST, CommandEvent
from redflag_core.commands import Order, Orderable, sign_command
from redflag_core.envelope import sign_envelope
from redflag_core.errors import LimitError, SignatureError
from redflag_core.keys import SigningKey
from redflag_core.messages import MAX_PROGRESS_LINES, MAX_STATEMENT_TEXT, Phase
from redflag_core.patching import Change as PackageChange
from redflag_core.patching import Transaction
from redflag_core.scanning import PackageKey
from redflag_core.statements import (
    ACCEPTED_TYPE,
    MAX_OUTPUT,
    MAX_STATEMENT_BYTES,
    REFUSED_TYPE,
    RESULT_TYPE,
    Outcome,
)
from redflag_core.system import SystemEntropy
from redflag_server.agents.tables import Agent
from redflag_server.commands import queue, results
from redflag_server.commands.changes import Change, change
from redflag_server.commands.tables import Command, CommandDelivery, CommandStatement
from redflag_server.events.tables import Event
from redflag_server.trust.tables import ServerState
from tests.helpers.fleet import Entry
from tests.helpers.orders import act, command_of, held_subjects, history, order, plan, state_of

ALARMS = ("unverifiable", "unknown", "mismatched", "foreign", "contradicted")


@pytest.fixture
async def machine(server):
    """A machine that knows the command keys."""
    machine = await server.agent()
    await machine.learn_trust(server.client)
    return machine


async def handed_out(server, machine, what=None):
    """The id of a command that the machine was given and judged, and what it signed about it."""
    first = str(await order(server, machine.agent_id, *([what] if what else [])))
    (wire,) = await machine.fetch(server.client)
    return first, machine.execute(wire)


async def accepted(server, machine, what=None):
    """The id of a command that the server knows to be accepted."""
    first, statement = await handed_out(server, machine, what)
    await deliver(server, machine, statement)
    return first


async def deliver(server, machine, statement):
    """Send a statement until the server takes it, as an agent does: too many at once are to come again."""
    answer = await machine.deliver(server.client, statement)
    while answer.status_code == 503:
        answer = await machine.deliver(server.client, statement)
    assert answer.status_code == 200, answer.text


async def alarms(server):
    """Kinds of the alarms."""
    return [kind for kind in await history(server) if kind in ALARMS]


# --- the three statements ---


async def test_a_command_goes_its_way(server, machine):
    """Accepted, carried out, done: each with who, when and why, and the proofs are kept exactly as they came."""
    first, acceptance = await handed_out(server, machine)
    await deliver(server, machine, acceptance)
    result = machine.run(first, output="all fine\n", output_bytes=9)
    await deliver(server, machine, result)

    command = await command_of(server, first)
    assert ("completed", None, None) == (command.state, command.code, command.detail)
    assert {server.clock.now()} == {command.accepted_at, command.started_at, command.finished_at}
    assert ("all fine\n", 9) == (command.result["output"], command.result["output_bytes"])
    assert [acceptance, result] == [row.envelope for row in await server.rows(CommandStatement)]
    assert ["ordered", "leased", "accepted", "completed"] == await history(server, first)
    done = await server.row(Event, Event.kind == "command.completed")
    assert f"agent:{machine.agent_id}" == done.actor
    assert set() == await held_subjects(server)


@pytest.mark.parametrize(
    "outcome, state",
    [(Outcome.FAILED, "failed"), (Outcome.INTERRUPTED, "interrupted"), (Outcome.CANCELLED, "cancelled")],
)
async def test_a_command_that_did_not_work_says_why(server, machine, outcome, state):
    """Code and sentence of the machine stay with the command; its subject is free again."""
    first = await accepted(server, machine, plan("bash"))
    await deliver(server, machine, machine.run(first, outcome))

    command = await command_of(server, first)
    assert (state, "install_failed", "it did not work") == (command.state, command.code, command.detail)
    assert [state] == (await history(server, first))[-1:]
    assert set() == await held_subjects(server)


async def test_a_refusal_for_now_comes_back_later_and_later(server, machine):
    """The machine's limit holds it: it waits as long as the machine asks, and longer each time."""
    first = str(await order(server, machine.agent_id))
    for refusals in range(1, 4):
        (wire,) = await machine.fetch(server.client)
        machine.journal[first] = entry = _entry(machine, wire)
        machine.order = entry.command.order
        limit = LimitError("not now")
        refused = machine.refuse(entry.command, entry.body, limit, retry_after=600)
        await deliver(server, machine, refused)
        command = await command_of(server, first)
        wait = (command.not_before - server.clock.now()).total_seconds()
        assert ("pending", refusals) == (command.state, command.refusals)
        assert 600 <= wait <= 600 + RETRY_FIRST * 2 ** (refusals - 1)
        assert [] == await machine.fetch(server.client)
        server.clock.advance(wait)

    assert [str(first)] == [_entry(machine, wire).command.cmd_id for wire in await machine.fetch(server.client)]
    assert ["ordered", *["leased", "returned"] * 3, "leased"] == await history(server, first)


async def test_a_machine_cannot_put_a_command_off_for_ever(server, machine):
    """Whatever it asks for, it is asked again within two hours."""
    first, _ = await handed_out(server, machine)
    entry = machine.journal[first]
    refused = machine.refuse(entry.command, entry.body, LimitError("never mind"), retry_after=10**9)

    await deliver(server, machine, refused)

    wait = (await command_of(server, first)).not_before - server.clock.now()
    assert timedelta(seconds=RETRY_LONGEST) <= wait <= timedelta(seconds=RETRY_LONGEST + RETRY_FIRST)


@pytest.mark.parametrize(
    "code, state", [("plan_drifted", "failed"), ("start_by_passed", "expired"), ("cancelled", "cancelled")]
)
async def test_a_refusal_for_ever_ends_a_command(server, machine, code, state):
    """The machine has a tombstone for it: it will never be started, so its subjects are free."""
    first, _ = await handed_out(server, machine)
    await deliver(server, machine, machine.never(first, code))

    command = await command_of(server, first)
    assert (state, code, "not started") == (command.state, command.code, command.detail)
    assert set() == await held_subjects(server)


async def test_cancelling_works_with_the_machine(server, machine):
    """Handed out, cancelled, never started: the machine says so with its signature."""
    first, acceptance = await handed_out(server, machine, plan("bash"))
    await deliver(server, machine, acceptance)
    await act(server, queue.cancel, first)
    (wire,) = await machine.fetch(server.client)
    machine.execute(wire)
    cancel = str((await server.row(Command, Command.type == "command.cancel")).id)

    await deliver(server, machine, machine.never(first))
    await deliver(server, machine, machine.run(cancel))

    assert ("cancelled", "completed") == (await state_of(server, first), await state_of(server, cancel))
    assert [cancel] == machine.starts
    assert set() == await held_subjects(server)


async def test_a_cancellation_overtakes_a_command_whose_delivery_was_lost(server, machine):
    """The machine hears of the cancellation first, and refuses the command for ever when it comes."""
    first = str(await order(server, machine.agent_id))
    await machine.fetch(server.client)  # the answer is lost
    await act(server, queue.cancel, first)
    (cancel,) = await machine.fetch(server.client)
    await deliver(server, machine, machine.execute(cancel))
    server.clock.advance(LEASE_SECONDS)
    (again,) = await machine.fetch(server.client)

    await deliver(server, machine, machine.execute(again))

    assert ("cancelled", "cancelled") == attrs.astuple(_Ended.of(await command_of(server, first)))
    assert first not in machine.starts


# --- twice, late, in any order ---


async def test_the_same_statement_again_is_the_same_fact(server, machine):
    """Sent ten times at once and ten times later: recorded once, followed once."""
    first, acceptance = await handed_out(server, machine)
    result = machine.run(first)
    for statement in (acceptance, result):
        await asyncio.gather(*(deliver(server, machine, statement) for _ in range(10)))
        after = await server.dump()
        await deliver(server, machine, statement)
        assert after == await server.dump()

    assert 2 == len(await server.rows(CommandStatement))
    assert ["ordered", "leased", "accepted", "completed"] == await history(server, first)


async def test_a_statement_in_another_wrapping_is_the_same_statement(server, machine):
    """What counts is what was signed, not how the envelope is written."""
    first, acceptance = await handed_out(server, machine)
    await deliver(server, machine, acceptance)
    entry = machine.journal[first]
    stranger = SigningKey.generate()
    both = sign_envelope(ACCEPTED_TYPE, codec.dump(machine.accepted(first)), machine.executor, stranger)

    await deliver(server, machine, both)

    assert entry
    assert 1 == len(await server.rows(CommandStatement))


async def test_a_result_may_come_before_the_acceptance(server, machine):
    """Requests overtake each other: the command is done, and stays done."""
    first, acceptance = await handed_out(server, machine)
    await deliver(server, machine, machine.run(first))
    await deliver(server, machine, acceptance)

    command = await command_of(server, first)
    assert ("completed", server.clock.now()) == (command.state, command.accepted_at)
    assert ["ordered", "leased", "completed"] == await history(server, first)


@pytest.mark.parametrize("how", ["release", "expire"])
async def test_a_late_result_counts(server, machine, how):
    """Given up here, done there: what the machine says happened is true."""
    first, _ = await handed_out(server, machine, plan("bash"))
    if how == "release":
        await act(server, queue.release, first, "gone for good")
    else:
        await deliver(server, machine, machine.never(first, "start_by_passed"))
    successor = await order(server, machine.agent_id, plan("bash"))

    await deliver(server, machine, machine.run(first))

    command = await command_of(server, first)
    assert ("completed", None, None) == (command.state, command.code, command.detail)
    assert {"apt:bash:amd64"} == await held_subjects(server), "of the successor"
    assert "pending" == await state_of(server, successor)
    assert [] == await alarms(server)


async def test_an_acceptance_of_an_earlier_delivery_is_one(server, machine):
    """It was delivered twice, and the executor answers the second with what it signed about the first."""
    first = str(await order(server, machine.agent_id))
    (one,) = await machine.fetch(server.client)
    acceptance = machine.execute(one)
    server.clock.advance(LEASE_SECONDS)
    (two,) = await machine.fetch(server.client)

    await deliver(server, machine, machine.execute(two))

    assert acceptance == machine.journal[first].statement
    assert "accepted" == await state_of(server, first)
    assert [] == await alarms(server)


async def test_the_next_command_waits_for_the_acceptance_only(server, machine):
    """Not for the result: what the executor does one after the other is its own matter."""
    first = await accepted(server, machine, plan("bash"))
    second = await order(server, machine.agent_id, plan("dash"))

    (wire,) = await machine.fetch(server.client)

    assert str(second) == _entry(machine, wire).command.cmd_id
    assert "accepted" == await state_of(server, first)


# --- lies and mistakes ---


async def test_a_statement_that_another_key_signed_is_refused(server, machine):
    """Of the agent's network process, of a stranger, or with one bit changed: nothing is recorded."""
    first, acceptance = await handed_out(server, machine)
    statement = codec.dump(machine.accepted(first))
    before = await server.dump()
    forged = {
        "agent key": sign_envelope(ACCEPTED_TYPE, statement, machine.key),
        "stranger": sign_envelope(ACCEPTED_TYPE, statement, SigningKey.generate()),
        "bit": acceptance.replace(b'"sig":"', b'"sig":"A', 1)[:-1],
        "nothing": b"{}",
    }
    for name, wire in forged.items():
        answer = await machine.deliver(server.client, wire)
        assert 400 <= answer.status_code < 500, name
        assert before == await server.dump(), name


@pytest.mark.parametrize("kind", [RESULT_TYPE, REFUSED_TYPE, "application/vnd.redflag.command.v1+json"])
async def test_a_statement_is_never_taken_for_another(server, machine, kind):
    """The type is signed with it: an acceptance under another name is refused."""
    first, _ = await handed_out(server, machine)
    wire = sign_envelope(kind, codec.dump(machine.accepted(first)), machine.executor)

    answer = await machine.deliver(server.client, wire)

    assert 400 == answer.status_code
    assert ("leased", []) == (await state_of(server, first), await server.rows(CommandStatement))


@pytest.mark.parametrize("kind", ["accepted", "result", "never", "progress"])
async def test_nobody_speaks_for_another_agent(server, kind):
    """An executor that signs about a command of another agent is refused, with an event, and nothing changes."""
    token = await server.token(seats=2)
    victim, liar = [await server.machine().enrol(server.client, token) for _ in range(2)]
    await victim.learn_trust(server.client)
    first, _ = await handed_out(server, victim)
    liar.journal = victim.journal
    before = await server.dump()
    statements = {
        "accepted": lambda: liar.sign_statement(liar.accepted(first)),
        "result": lambda: liar.sign_statement(liar.result(first)),
        "never": lambda: liar.never(first),
    }

    if kind == "progress":
        answer = await liar.progress(server.client, first)
    else:
        answer = await liar.deliver(server.client, statements[kind]())

    assert (401, "wrong_recipient") == (answer.status_code, answer.json()["code"])
    assert before == await server.dump()
    refusal = await server.row(Event, Event.code == "wrong_recipient")
    assert liar.agent_id == str(refusal.agent_id)


@pytest.mark.parametrize("field", ["agent_id", "server"])
async def test_a_statement_names_its_agent_and_server(server, machine, field):
    """One of another agent or server is refused, whoever signed it."""
    first, _ = await handed_out(server, machine)
    other = "01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e00"
    wire = machine.sign_statement(machine.accepted(first, **{field: other}))

    answer = await machine.deliver(server.client, wire)

    assert (401, "wrong_recipient") == (answer.status_code, answer.json()["code"])


async def test_accepting_what_was_never_handed_out_is_an_alarm(server, machine):
    """Somebody else signs with the command key, or the executor makes it up: recorded, and nothing follows."""
    first = str(await order(server, machine.agent_id))
    row = await command_of(server, first)
    wire = sign_command(
        Orderable(cmd_id=first, type=row.type, params=row.params, start_by=int(row.start_by.timestamp())),
        machine.recipient(),
        Order(1, 0, 99),
        server.runtime.keys.command,
        now=server.clock.now(),
        entropy=SystemEntropy(),
    )

    await deliver(server, machine, machine.execute(wire))

    assert ("pending", ["foreign"]) == (await state_of(server, first), await alarms(server))
    assert 1 == len(await server.rows(CommandStatement))


@pytest.mark.parametrize("changes", [{"body": "0" * 64}, {"seq": 7}, {"gen": 1}, {"epoch": 2}])
async def test_an_acceptance_names_exactly_what_was_signed(server, machine, changes):
    """Another body or another order is something that this server did not hand out."""
    first, _ = await handed_out(server, machine)

    await deliver(server, machine, machine.sign_statement(machine.accepted(first, **changes)))

    assert ("leased", ["foreign"]) == (await state_of(server, first), await alarms(server))


async def test_an_acceptance_from_before_a_restore_counts(server, machine):
    """The backup did not know of the delivery. Its generation says that it may have been this server's."""
    first, acceptance = await handed_out(server, machine)
    async with server.runtime.database.write() as session:
        (await session.get_one(ServerState, 1)).gen = 1_800_000_000
        for delivery in (await session.scalars(select(CommandDelivery))).all():
            await session.delete(delivery)

    await deliver(server, machine, acceptance)

    assert ("accepted", []) == (await state_of(server, first), await alarms(server))


async def test_a_command_that_a_restore_doubts_is_accepted_again(server, machine):
    """It is handed out again, and the executor answers with the statement that the backup has already."""
    first = await accepted(server, machine)
    async with server.runtime.database.write() as session:
        (await session.get_one(ServerState, 1)).gen = 1_800_000_000
        command, why = await session.get_one(Command, UUID(first)), Change(actor="server", now=server.clock.now())
        await change(session, command, CommandEvent.DOUBT, why)

    (again,) = await machine.fetch(server.client)
    await deliver(server, machine, machine.execute(again))

    assert ("accepted", []) == (await state_of(server, first), await alarms(server))
    assert 1 == len(await server.rows(CommandStatement))


@pytest.mark.parametrize("kind", ["accepted", "result", "never"])
async def test_another_order_under_the_same_id_is_an_alarm(server, machine, kind):
    """What the executor has in its journal is not what was ordered: recorded, and nothing follows."""
    first, _ = await handed_out(server, machine)
    other = attrs.evolve(machine.journal[first].command, type="packages.plan")
    machine.journal[first] = Entry(other, machine.journal[first].body)
    make = {
        "accepted": lambda: machine.sign_statement(machine.accepted(first)),
        "result": lambda: machine.sign_statement(machine.result(first)),
        "never": lambda: machine.never(first),
    }

    await deliver(server, machine, make[kind]())

    assert ("leased", ["mismatched"]) == (await state_of(server, first), await alarms(server))


async def test_a_second_other_result_is_an_alarm(server, machine):
    """A result is signed once. The first stays; the second is kept as proof."""
    first = await accepted(server, machine)
    await deliver(server, machine, machine.run(first))

    await deliver(server, machine, machine.sign_statement(machine.result(first, Outcome.FAILED)))

    assert ("completed", ["contradicted"]) == (await state_of(server, first), await alarms(server))
    assert 3 == len(await server.rows(CommandStatement))


async def test_a_result_of_a_command_that_is_not_known_is_kept(server, machine):
    """The server was restored and forgot it. The statement is taken, so that the agent need not keep it."""
    first, acceptance = await handed_out(server, machine)
    async with server.runtime.database.write() as session:
        await session.delete(await session.get_one(Command, UUID(first)))

    for statement in (acceptance, machine.run(first)):
        await deliver(server, machine, statement)

    assert ["unknown", "unknown"] == await alarms(server)
    assert {UUID(first)} == {row.command_id for row in await server.rows(CommandStatement)}


async def test_a_command_that_nobody_believes_is_a_security_alarm(server, machine):
    """The executor got something that no live key signed: somebody tried, or the bundle is old."""
    wire = sign_envelope("application/vnd.redflag.command.v1+json", b"{}", SigningKey.generate())

    await deliver(server, machine, machine.execute(wire))

    alarm = await server.row(Event, Event.kind == "command.unverifiable")
    assert ("unknown_key", machine.agent_id) == (alarm.code, str(alarm.agent_id))


async def test_a_flood_of_alarms_is_counted_not_written(server, machine):
    """Hundreds of different refusals: a few events, a bounded number of envelopes, and the others are counted."""
    for number in range(results.MAX_STRAY + 50):
        error = SignatureError("not signed by anybody")
        await deliver(server, machine, machine.refuse(None, f"{number:064x}", error))

    assert 20 == len(await alarms(server))
    assert results.MAX_STRAY == len(await server.rows(CommandStatement))
    server.clock.advance(3600)
    await deliver(server, machine, machine.refuse(None, "f" * 64, SignatureError("not signed by anybody")))
    alarm = (await server.rows(Event, Event.kind == "command.unverifiable"))[-1]
    assert results.MAX_STRAY + 30 == alarm.data["suppressed_before"]


async def test_statements_about_one_command_are_bounded_and_still_followed(server, machine, monkeypatch):
    """An executor that signs thousands of them fills no disk, and its command ends all the same."""
    monkeypatch.setattr(results, "MAX_STATEMENTS", 5)
    first = await accepted(server, machine)
    for number in range(10):
        await deliver(server, machine, machine.refuse(
            machine.journal[first].command, machine.journal[first].body, LimitError(f"no {number}"))
        )  # fmt: skip

    await deliver(server, machine, machine.run(first))

    assert "completed" == await state_of(server, first)
    assert 5 + 1 == len(await server.rows(CommandStatement)), "and the end of the command"
    assert 6 == (await history(server, first)).count("statements_dropped")


async def test_results_that_contradict_the_end_of_a_command_are_bounded(server, machine):
    """The true one and a handful of the others are kept; each is answered 2xx, and the rest is counted."""
    first = await accepted(server, machine)
    result = machine.run(first)
    await deliver(server, machine, result)

    for number in range(40):
        other = machine.result(first, Outcome.FAILED, output=f"{number} " + "x" * 30_000)
        await deliver(server, machine, machine.sign_statement(other))

    kept = [row.envelope for row in await server.rows(CommandStatement, CommandStatement.kind == "result")]
    assert results.MAX_RESULTS == len(kept)
    assert result in kept
    assert "completed" == await state_of(server, first)
    dropped = await server.rows(Event, Event.kind == "command.statements_dropped")
    assert 20 == len(dropped), "as many at once as there are of any alarm"
    server.clock.advance(3600)
    await deliver(server, machine, machine.sign_statement(machine.result(first, Outcome.INTERRUPTED)))
    last = (await server.rows(Event, Event.kind == "command.statements_dropped"))[-1]
    assert 40 - (results.MAX_RESULTS - 1) - 20 == last.data["suppressed_before"]


async def test_what_ends_a_command_is_kept_when_nothing_else_fits(server, machine, monkeypatch):
    """The bounds are for what else is signed: the proof of what happened has no bound but its own."""
    for name in ("MAX_STATEMENTS", "MAX_RESULTS", "MAX_COMMAND_BYTES"):
        monkeypatch.setattr(results, name, 0)
    first = await accepted(server, machine)
    result = machine.run(first)

    await deliver(server, machine, result)

    assert [result] == [row.envelope for row in await server.rows(CommandStatement)]
    assert "completed" == await state_of(server, first)


@pytest.mark.parametrize("known", [True, False])
async def test_statements_are_bounded_by_their_bytes(server, machine, monkeypatch, known):
    """Large ones about another order under the id of a command, or about no known command: some are kept."""
    monkeypatch.setattr(results, "MAX_COMMAND_BYTES" if known else "MAX_STRAY_BYTES", 100_000)
    first, _ = await handed_out(server, machine)
    other = attrs.evolve(machine.journal[first].command, type="packages.plan")
    machine.journal[first] = Entry(other, machine.journal[first].body)
    if not known:
        async with server.runtime.database.write() as session:
            await session.delete(await session.get_one(Command, UUID(first)))

    for number in range(5):
        large = machine.result(first, output=f"{number} " + "x" * 30_000)
        await deliver(server, machine, machine.sign_statement(large))

    kept = sum(len(row.envelope) for row in await server.rows(CommandStatement))
    assert 50_000 < kept <= 100_000
    assert "command.statements_dropped" in await server.event_kinds()


async def test_a_refusal_of_what_was_accepted_changes_nothing(server, machine):
    """A late copy of a delivery is refused, and the command is under way."""
    first = await accepted(server, machine)
    entry = machine.journal[first]

    await deliver(
        server, machine, machine.refuse(entry.command, entry.body, LimitError("too low"), code="rollback")
    )

    assert "accepted" == await state_of(server, first)


# --- size ---


async def test_the_largest_result_is_taken(server, machine):
    """A plan of two thousand changes and all the output that there may be, in one request."""
    first = await accepted(server, machine, plan("bash"))
    changes = tuple(
        PackageChange(
            name=f"package-{number:04d}-{'x' * 80}", arch="amd64", before="1.0", after="2.0", origin="o" * 60
        )
        for number in range(2_000)
    )
    transaction = Transaction(manager="apt", requested=(PackageKey("bash", "amd64"),), changes=changes)
    result = machine.run(first, transaction=transaction, output="€" * MAX_OUTPUT, output_bytes=10**9)

    await deliver(server, machine, result)

    assert 600_000 < len(result) < MAX_STATEMENT_BYTES
    command = await command_of(server, first)
    assert ("completed", 2_000) == (command.state, len(command.result["transaction"]["changes"]))
    assert transaction == codec.structure(Transaction, command.result["transaction"])


async def test_a_statement_beyond_the_bound_is_refused(server, machine):
    """By the length of the body, before anything is verified; and by that of the envelope."""
    first = await accepted(server, machine)
    before = len(await server.rows(CommandStatement))
    padding = b" " * (MAX_STATEMENT_BYTES * 3 // 4 - 300)
    too_long = sign_envelope(RESULT_TYPE, codec.dump(machine.result(first)) + padding, machine.executor)
    text = '{"v":1,"statement":"' + "A" * (MAX_STATEMENT_TEXT + 2_000) + '"}'

    body = await machine.sign("/agent/results", text.encode()).send(server.client)
    envelope = await machine.deliver(server.client, too_long)

    assert len(too_long) > MAX_STATEMENT_BYTES
    assert [(413, "too_large")] * 2 == [(each.status_code, each.json()["code"]) for each in (body, envelope)]
    assert before == len(await server.rows(CommandStatement))


# --- progress ---


async def test_progress_is_what_was_said_last(server, machine):
    """Overwritten by the next; a message that was overtaken changes nothing."""
    first = await accepted(server, machine)
    await machine.progress(server.client, first, 1, phase=Phase.WAITING, doing="waiting for the lock of apt")
    waiting = await command_of(server, first)
    await machine.progress(server.client, first, 3, doing="unpacking openssl", percent=42, lines=("a", "b"))
    await machine.progress(server.client, first, 2, doing="late")

    command = await command_of(server, first)
    assert ("accepted", "waiting for the lock of apt") == (waiting.state, waiting.progress["doing"])
    assert ("running", server.clock.now()) == (command.state, command.started_at)
    assert ("unpacking openssl", 42, ["a", "b"], 3) == tuple(
        command.progress[name] for name in ("doing", "percent", "lines", "number")
    )
    assert ["ordered", "leased", "accepted", "started"] == await history(server, first)


async def test_progress_alone_does_not_end_the_wait_for_the_signed_answer(server, machine):
    """Only the executor's word takes a command out of delivery; what was shown meanwhile is kept."""
    first, acceptance = await handed_out(server, machine)
    await machine.progress(server.client, first)
    before = await command_of(server, first)
    await deliver(server, machine, acceptance)
    await machine.progress(server.client, first, 2)

    assert ("leased", 1) == (before.state, before.progress["number"])
    assert "running" == await state_of(server, first)


@pytest.mark.parametrize("when", ["ended", "not handed out", "not known"])
async def test_progress_of_nothing_changes_nothing(server, machine, when):
    """It is taken, so that the agent does not send it again."""
    first = str(await order(server, machine.agent_id))
    if when == "ended":
        (wire,) = await machine.fetch(server.client)
        machine.execute(wire)
        await deliver(server, machine, machine.run(first))
    about = "01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e00" if when == "not known" else first
    before = await server.dump()

    answer = await machine.progress(server.client, about)

    assert (200, before) == (answer.status_code, await server.dump())


async def test_progress_is_bounded(server, machine):
    """More lines, or longer ones, than a page shows are refused."""
    first = await accepted(server, machine)

    many = await machine.progress(server.client, first, lines=("x",) * MAX_PROGRESS_LINES)
    raw = b'{"v":1,"cmd_id":"%s","number":9,"phase":"running","doing":"x","lines":[%s]}'
    lines = b",".join([b'"x"'] * (MAX_PROGRESS_LINES + 1))
    more = await machine.sign("/agent/progress", raw % (first.encode(), lines)).send(server.client)

    assert (200, 400) == (many.status_code, more.status_code)


# --- races ---


async def test_ordering_checking_in_and_answering_at_once(server, machine):
    """Many orders, check-ins and statements at the same moment on the real database: all end well, none twice."""
    names = [f"package-{number}" for number in range(12)]

    async def agent():
        quiet = 0
        while quiet < 3:
            wires = await machine.fetch(server.client)
            quiet = 0 if wires else quiet + 1
            for wire in wires:
                acceptance = machine.execute(wire)
                cmd_id = _entry(machine, wire).command.cmd_id
                sending = [deliver(server, machine, acceptance), deliver(server, machine, acceptance)]
                if cmd_id not in machine.starts:
                    sending.append(deliver(server, machine, machine.run(cmd_id)))
                await asyncio.gather(*sending)

    async def people():
        for name in names:
            await order(server, machine.agent_id, plan(name))

    await asyncio.gather(people(), agent(), people_again(server, machine, names))
    await agent()

    commands = await server.rows(Command)
    assert {"completed"} == {command.state for command in commands}
    assert len(commands) == len(machine.starts) == len(set(machine.starts))
    assert (set(), []) == (await held_subjects(server), await alarms(server))
    orders = [(row.epoch, row.gen, row.seq) for row in await server.rows(CommandDelivery)]
    assert len(orders) == len(set(orders))


async def people_again(server, machine, names):
    """The same orders by somebody else at the same time: duplicates, or new ones when the first ended."""
    from tests.helpers.orders import new_command

    for name in names:
        async with server.runtime.database.write() as session:
            wanted = new_command(machine.agent_id, plan(name))
            await queue.order(session, "user:bob", wanted, server.clock.now())


async def test_a_result_races_a_release(server, machine):
    """Whichever comes first, the result counts in the end."""
    for number in range(8):
        first, _ = await handed_out(server, machine, plan(f"package-{number}"))
        result = machine.run(first)
        release = act(server, queue.release, first)
        await asyncio.gather(deliver(server, machine, result), release, return_exceptions=True)
        assert "completed" == await state_of(server, first)

    assert set() == await held_subjects(server)
    count = select(func.count()).select_from(CommandStatement)
    async with server.runtime.database.read() as session:
        assert 8 == (await session.scalars(count)).one()


async def test_statements_of_an_agent_that_was_cut_off_are_refused(server, machine):
    """A quarantined agent says nothing more."""
    first, acceptance = await handed_out(server, machine)
    async with server.runtime.database.write() as session:
        (await session.get_one(Agent, UUID(machine.agent_id))).status = "quarantined"

    answer = await machine.deliver(server.client, acceptance)

    assert (403, "leased") == (answer.status_code, await state_of(server, first))


async def test_an_agent_that_was_rolled_back_still_tells_how_things_ended(server, machine):
    """It gets no commands, but what it carried out counts."""
    first = await accepted(server, machine)
    async with server.runtime.database.write() as session:
        (await session.get_one(Agent, UUID(machine.agent_id))).status = "executor_rolled_back"

    await deliver(server, machine, machine.run(first))

    assert "completed" == await state_of(server, first)


@attrs.frozen
class _Ended:
    state: str
    code: str | None

    @classmethod
    def of(cls, command):
        """How a command ended."""
        return cls(command.state, command.code)


def _entry(machine, wire) -> Entry:
    """A command as a journal has it."""
    from redflag_core.commands import open_command

    opened = open_command(wire, machine.command_keys)
    return Entry(opened.body, opened.hash)
