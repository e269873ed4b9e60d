"""Handing commands out: one at a time, signed at delivery, again until the executor answers, started once."""

import asyncio
from datetime import timedelta
from uuid import UUID

import attrs
import pytest

from redflag_core.command_queue import LEASE_SECONDS, MAX_BYPASSING
from redflag_core.commands import COMMAND_SECONDS, CancelParams, CommandType, Order, open_command
from redflag_core.encoding import MAX_INTEGER, b64decode
from redflag_core.enrolment import AgentStatus
from redflag_core.keys import SigningKey
from redflag_core.lifecycle import AgentAction
from redflag_core.testing import FrozenClock
from redflag_core.trust import BUNDLE_LIFETIME
from redflag_server.agents.operations import act as act_on_agent
from redflag_server.agents.tables import Agent
from redflag_server.checkin.answers import CheckInRequest
from redflag_server.checkin.claims import AgentRequest
from redflag_server.checkin.service import check_in
from redflag_server.commands import queue
from redflag_server.commands.tables import Command, CommandDelivery
from redflag_server.commands.upkeep import expire_commands, lapse_leases, raise_alarms
from redflag_server.db.scope import whole_installation
from redflag_server.events.tables import Event
from redflag_server.trust.tables import ServerState
from tests.helpers.orders import (
    HEARTBEAT,
    act,
    command_of,
    held_subjects,
    history,
    order,
    plan,
    state_of,
)
from tests.helpers.server import running

OPERATOR = whole_installation("user:alice")


@pytest.fixture
async def machine(server):
    """A machine that knows the command keys."""
    machine = await server.agent()
    await machine.learn_trust(server.client)
    return machine


def opened(machine, wire):
    """What a command says, as its executor reads it."""
    return open_command(wire, machine.command_keys).body


async def fetched(server, machine, **changes):
    """The ids of the commands that a check-in brings."""
    return [opened(machine, wire).cmd_id for wire in await machine.fetch(server.client, **changes)]


# --- what is handed out ---


async def test_a_check_in_brings_what_was_ordered(server, machine):
    """For this executor on this machine, with the parameters that were ordered and a window of five minutes."""
    first = await order(server, machine.agent_id, plan("bash"), reason="security")

    (wire,) = await machine.fetch(server.client)

    command, row = opened(machine, wire), await command_of(server, first)
    now = int(server.clock.now().timestamp())
    assert (str(first), machine.agent_id, machine.server) == (command.cmd_id, command.agent_id, command.server)
    assert (machine.evidence().binding, machine.executor.key_id) == (command.machine_binding, command.key_fp)
    assert (row.params, row.digest) == (b64decode(command.params), command.digest)
    assert (now, now + COMMAND_SECONDS) == (command.iat, command.exp)
    assert int(row.start_by.timestamp()) == command.start_by
    assert machine.recipient().epoch == command.epoch


async def test_a_lease_is_on_record(server, machine):
    """State, time, order and what was signed, with an event, before the answer is sent."""
    first = await order(server, machine.agent_id)
    (wire,) = await machine.fetch(server.client)

    row, delivery = await command_of(server, first), await server.row(CommandDelivery)
    verified, now = open_command(wire, machine.command_keys), server.clock.now()
    assert ("leased", now, now + timedelta(seconds=LEASE_SECONDS)) == (
        row.state,
        row.delivered_at,
        row.leased_until,
    )
    assert verified.body.order == Order(row.order_epoch, row.order_gen, row.order_seq)
    assert (first, verified.hash) == (delivery.command_id, delivery.body)
    assert verified.body.order == Order(delivery.epoch, delivery.gen, delivery.seq)
    agent = await server.row(Agent)
    assert verified.body.order == Order(agent.issued_epoch, agent.issued_gen, agent.issued_seq)
    assert ["ordered", "leased"] == await history(server, first)


async def test_one_at_a_time_the_oldest_first(server, machine):
    """The next comes when the one before it was accepted, not before."""
    ordered = [str(await order(server, machine.agent_id, plan(name))) for name in ("bash", "dash", "zsh")]

    seen = []
    for _ in ordered:
        (wire,) = await machine.fetch(server.client)
        assert [] == await machine.fetch(server.client)
        await machine.deliver(server.client, machine.execute(wire))
        seen.append(opened(machine, wire).cmd_id)

    assert ordered == seen


async def test_a_cancellation_and_a_heartbeat_do_not_wait(server, machine):
    """They come although another command was handed out and not answered, each with an order of its own."""
    first = await order(server, machine.agent_id)
    await machine.fetch(server.client)
    heartbeat = await order(server, machine.agent_id, HEARTBEAT)
    await act(server, queue.cancel, first)

    wires = await machine.fetch(server.client)

    commands = [opened(machine, wire) for wire in wires]
    assert ["agent.heartbeat", "command.cancel"] == [command.type for command in commands]
    assert str(heartbeat) == commands[0].cmd_id
    assert commands[0].order < commands[1].order


async def test_an_answer_stays_small(server, machine):
    """However many cancellations there are, they come in several answers."""
    for number in range(MAX_BYPASSING + 3):
        target = str(UUID(int=number))
        await order(server, machine.agent_id, (CommandType.COMMAND_CANCEL, CancelParams(target)))

    assert [MAX_BYPASSING, 3] == [len(await machine.fetch(server.client)) for _ in range(2)]


async def test_a_long_queue_does_not_hide_a_cancellation(server, machine):
    """It passes hundreds of commands that were ordered before it."""
    for number in range(150):
        await order(server, machine.agent_id, plan(f"package-{number}"))
    cancel = await order(server, machine.agent_id, (CommandType.COMMAND_CANCEL, CancelParams(str(UUID(int=1)))))

    assert str(cancel) == (await fetched(server, machine))[0]


async def test_what_an_executor_takes_it_can_take_for_ever(server, machine):
    """Fifty commands one after the other: every order is above the one before, and every nonce is new."""
    for number in range(50):
        await order(server, machine.agent_id, plan(f"package-{number}"))
        (wire,) = await machine.fetch(server.client)
        await machine.deliver(server.client, machine.execute(wire))
        await machine.deliver(server.client, machine.run(opened(machine, wire).cmd_id))

    assert (50, 50) == (machine.order.seq, len(machine.starts))
    assert {"completed"} == {row.state for row in await server.rows(Command)}


# --- lost answers ---


async def test_a_lost_answer_is_delivered_again_with_a_fresh_signature(server, machine):
    """Not before the lease ran out; same id and order to do, another nonce, window and order number."""
    first = await order(server, machine.agent_id)
    (lost,) = await machine.fetch(server.client)
    server.clock.advance(LEASE_SECONDS - 1)
    early = await machine.fetch(server.client)
    server.clock.advance(1)

    (again,) = await machine.fetch(server.client)

    before, after = opened(machine, lost), opened(machine, again)
    assert [] == early
    assert (before.cmd_id, before.digest) == (after.cmd_id, after.digest)
    assert before.order < after.order
    assert (before.nonce, before.iat) != (after.nonce, after.iat)
    assert 2 == (await command_of(server, first)).deliveries


async def test_a_command_that_arrives_twice_is_started_once(server, machine):
    """Both deliveries reach the executor; it answers the second with what it said of the first."""
    first = str(await order(server, machine.agent_id))
    (one,) = await machine.fetch(server.client)
    server.clock.advance(LEASE_SECONDS)
    (two,) = await machine.fetch(server.client)
    statements = [machine.execute(one)]
    machine.run(first)
    statements.append(machine.execute(two))

    for statement in statements:
        assert 200 == (await machine.deliver(server.client, statement)).status_code

    assert [first] == machine.starts
    assert "completed" == await state_of(server, first)


async def test_a_delivery_that_arrives_late_is_refused_and_harms_nothing(server, machine):
    """The older of two deliveries comes after the newer: its number is too low, and the command goes on."""
    first = str(await order(server, machine.agent_id))
    (one,) = await machine.fetch(server.client)
    server.clock.advance(LEASE_SECONDS)
    (two,) = await machine.fetch(server.client)
    await machine.deliver(server.client, machine.execute(two))

    await machine.deliver(server.client, machine.execute(one))

    assert "accepted" == await state_of(server, first)
    assert ["ordered", "leased", "leased", "accepted"] == await history(server, first)


async def test_a_lease_that_ran_out_is_returned_by_a_job(server, machine):
    """An agent that is gone does not look as if it had the command."""
    first = await order(server, machine.agent_id)
    await machine.fetch(server.client)
    await lapse_leases(server.runtime)
    held = await state_of(server, first)
    server.clock.advance(LEASE_SECONDS)

    for _ in range(2):
        await lapse_leases(server.runtime)

    assert ("leased", "pending") == (held, await state_of(server, first))
    assert ["ordered", "leased", "returned"] == await history(server, first)
    assert [str(first)] == await fetched(server, machine)


# --- time ---


async def test_what_nobody_fetched_in_time_ends(server, machine):
    """By a job, and by the check-in itself if that comes first: nothing too late is handed out."""
    soon = server.clock.now() + timedelta(minutes=5)
    by_job = await order(server, machine.agent_id, start_by=soon)
    await expire_commands(server.runtime)
    waiting = await state_of(server, by_job)
    server.clock.advance(301)
    await expire_commands(server.runtime)
    by_check_in = await order(server, machine.agent_id, start_by=soon)

    brought = await fetched(server, machine)

    assert ("pending", []) == (waiting, brought)
    for command_id in (by_job, by_check_in):
        command = await command_of(server, command_id)
        assert ("expired", "start_by_passed") == (command.state, command.code)
        assert ["ordered", "expired"] == await history(server, command_id)
    assert set() == await held_subjects(server)


async def test_what_was_handed_out_does_not_expire_by_itself(server, machine):
    """It is handed out again though it is too late, and the executor says that it was not started."""
    first = await order(server, machine.agent_id, start_by=server.clock.now() + timedelta(minutes=5))
    await machine.fetch(server.client)
    server.clock.advance(3600)
    await expire_commands(server.runtime)
    unanswered = await state_of(server, first)

    (wire,) = await machine.fetch(server.client)
    await machine.deliver(server.client, machine.execute(wire))

    command = await command_of(server, first)
    assert ("leased", "expired", "start_by_passed") == (unanswered, command.state, command.code)
    assert [] == machine.starts
    assert set() == await held_subjects(server)


async def test_what_takes_too_long_is_an_alarm_once_in_each_state(server, machine):
    """Nothing changes by it. Accepted, it has the time of its type again."""
    first = await order(server, machine.agent_id)
    server.clock.advance(3599)
    await raise_alarms(server.runtime)
    early = (await command_of(server, first)).overdue_at
    server.clock.advance(1)
    for _ in range(2):
        await raise_alarms(server.runtime)
    (wire,) = await machine.fetch(server.client)
    leased = await command_of(server, first)
    await machine.deliver(server.client, machine.execute(wire))
    accepted = await command_of(server, first)
    server.clock.advance(1800)
    for _ in range(2):
        await raise_alarms(server.runtime)

    assert (None, None) == (early, accepted.overdue_at)
    assert leased.overdue_at is not None
    assert "accepted" == await state_of(server, first)
    assert ["ordered", "overdue", "leased", "accepted", "overdue"] == await history(server, first)


async def test_every_command_is_looked_at_however_many_there_are(server, machine, monkeypatch):
    """Upkeep goes through all of them, some at a time."""
    monkeypatch.setattr("redflag_server.commands.upkeep.AT_ONCE", 3)
    for number in range(10):
        await order(server, machine.agent_id, plan(f"package-{number}"))
    server.clock.advance(3600)

    await raise_alarms(server.runtime)

    assert 10 == (await history(server)).count("overdue")


# --- to whom ---


@pytest.mark.parametrize(
    "status", [AgentStatus.PENDING, AgentStatus.HARDWARE_CHANGED, AgentStatus.EXECUTOR_ROLLED_BACK]
)
async def test_an_agent_that_waits_for_approval_gets_nothing(server, machine, status):
    """Its commands wait, and come when it is approved."""
    first = await order(server, machine.agent_id)
    await _set_agent(server, status=status)

    waiting = await fetched(server, machine)
    await act_on_agent(server.runtime, OPERATOR, UUID(machine.agent_id), AgentAction.APPROVE, "seen")

    assert ([], [str(first)]) == (waiting, await fetched(server, machine))


async def test_the_refused_sender_of_a_check_in_gets_nothing(server, machine):
    """A copy on another machine, with its key and all: the command stays where it was."""
    from redflag_core.encoding import b64encode

    first = await order(server, machine.agent_id)
    copy = attrs.evolve(machine, machine_id=b"another machine!")
    evidence = b64encode(copy.evidence_envelope())

    answer = await copy.check_in(server.client, evidence=evidence)

    assert 403 == answer.status_code
    assert ("pending", 0) == (await state_of(server, first), len(await server.rows(CommandDelivery)))


async def test_a_replayed_check_in_gets_nothing(server, machine):
    """Whoever recorded a request cannot fetch a command with it."""
    signed = machine.sign("/agent/check-in", machine.check_in_body())
    await signed.send(server.client)
    first = await order(server, machine.agent_id)

    assert 401 == (await signed.send(server.client)).status_code
    assert "pending" == await state_of(server, first)


async def test_each_agent_of_a_batch_gets_its_own(server):
    """Several check-ins in one transaction, one of them twice: one command each, and none of another's."""
    token = await server.token(seats=3)
    machines = [await server.machine().enrol(server.client, token) for _ in range(3)]
    ordered = [str(await order(server, machine.agent_id, plan("bash"))) for machine in machines]
    ordered += [str(await order(server, machine.agent_id, plan("dash"))) for machine in machines]

    def request(machine):
        from redflag_core.enrolment import Access
        from redflag_core.signed_requests import VerifiedRequest, new_nonce
        from redflag_core.system import SystemEntropy
        from redflag_server.agents.statements import open_state
        from redflag_server.organizations.tables import INSTALLATION

        created, agent_id = int(server.clock.now().timestamp()), UUID(machine.agent_id)
        verified = VerifiedRequest(machine.key.key_id, created, new_nonce(SystemEntropy()), None, b"")
        body = machine.check_in_body()
        state = open_state(body.state, machine.executor.verify_key, server=machine.server, agent_id=agent_id)
        return CheckInRequest(
            AgentRequest(agent_id, INSTALLATION, verified, None, Access.CHECK_IN, "127.0.0.1"), body, state, None
        )

    results = await check_in(server.runtime, [request(machine) for machine in (*machines, machines[0])])

    await machines[0].learn_trust(server.client)
    brought = [[opened(machines[0], b64decode(text)) for text in result.answer.commands] for result in results]
    assert ordered[:3] == [commands[0].cmd_id for commands in brought[:3]]
    assert [machine.agent_id for machine in machines] == [commands[0].agent_id for commands in brought[:3]]
    assert [] == brought[3]


async def test_concurrent_check_ins_of_one_agent_lease_a_command_once(server, machine):
    """Ten at the same moment: one of them brings it."""
    await order(server, machine.agent_id)

    brought = await asyncio.gather(*(machine.fetch(server.client) for _ in range(10)))

    assert 1 == sum(len(wires) for wires in brought)
    assert 1 == len(await server.rows(CommandDelivery))


# --- order numbers ---


async def test_an_order_number_is_never_given_out_twice(server, machine):
    """Also not by code that goes past the counters: the database refuses it."""
    from sqlalchemy.exc import IntegrityError

    await order(server, machine.agent_id)
    await machine.fetch(server.client)
    delivery = await server.row(CommandDelivery)
    values = {
        name: getattr(delivery, name) for name in ("organization_id", "agent_id", "command_id", "epoch", "gen")
    }

    with pytest.raises(IntegrityError):
        async with server.runtime.database.write() as session:
            session.add(CommandDelivery(**values, seq=delivery.seq, at=delivery.at, body="0" * 64))


async def test_a_server_that_is_behind_goes_on_above_the_executor(server, machine):
    """It was restored and forgot what it gave out. The executor takes its next command; one event says so."""
    machine.order = Order(1, 0, 40)
    await order(server, machine.agent_id)

    (wire,) = await machine.fetch(server.client)
    machine.execute(wire)
    await machine.fetch(server.client)

    assert Order(1, 0, 41) == machine.order
    moved = await server.row(Event, Event.kind == "agent.order_moved")
    assert ([0, 0, 0], [1, 0, 40]) == (moved.data["before"], moved.data["reported"])


async def test_a_restored_server_numbers_in_a_generation_of_its_own(server, machine):
    """What it gave out before the restore, and does not remember, is below."""
    await order(server, machine.agent_id, plan("bash"))
    (forgotten,) = await machine.fetch(server.client)
    async with server.runtime.database.write() as session:
        (await session.get_one(ServerState, 1)).gen = 1_800_000_000
    server.clock.advance(LEASE_SECONDS)

    (wire,) = await machine.fetch(server.client)

    assert 1_800_000_000 == opened(machine, wire).gen
    assert opened(machine, forgotten).order < opened(machine, wire).order


async def test_an_executor_that_forgot_gets_nothing_until_it_is_approved(server, machine):
    """Its journal was restored: it may have forgotten what it carried out. Reports go on, commands wait."""
    await order(server, machine.agent_id, plan("bash"))
    (wire,) = await machine.fetch(server.client)
    await machine.deliver(server.client, machine.execute(wire))
    await machine.check_in(server.client)
    await order(server, machine.agent_id, plan("dash"))
    machine.order = Order(1)
    server.clock.advance(1)

    for _ in range(2):
        server.clock.advance(1)
        answer = await machine.check_in(server.client)
        assert ("executor_rolled_back", []) == (answer.json()["status"], answer.json()["commands"])
    await act_on_agent(
        server.runtime, OPERATOR, UUID(machine.agent_id), AgentAction.APPROVE, "restored on purpose"
    )
    (wire,) = await machine.fetch(server.client)

    assert machine.execute(wire)
    assert 2 == machine.order.seq
    assert ["agent.executor_rolled_back"] == [
        kind for kind in await server.event_kinds() if kind.startswith("agent.executor")
    ]


async def test_a_request_that_was_overtaken_accuses_nobody(server, machine):
    """An older statement that arrives later says less, and was signed earlier."""
    await order(server, machine.agent_id)
    older = machine.check_in_body()
    server.clock.advance(1)
    (wire,) = await machine.fetch(server.client)
    machine.execute(wire)
    await machine.check_in(server.client)

    answer = await machine.sign("/agent/check-in", older).send(server.client)

    assert "active" == answer.json()["status"]


async def test_an_executor_that_forgot_gets_nothing_though_its_clock_went_back_too(server, machine):
    """A snapshot of the whole machine brings back its old time: the lower number alone keeps commands away."""
    await order(server, machine.agent_id, plan("bash"))
    (wire,) = await machine.fetch(server.client)
    await machine.deliver(server.client, machine.execute(wire))
    await machine.check_in(server.client)
    await order(server, machine.agent_id, plan("dash"))
    machine.order = Order(1)

    answer = await machine.check_in(
        server.client, state=machine.state(iat=int(server.clock.now().timestamp()) - 3600)
    )

    assert ("active", []) == (answer.json()["status"], answer.json()["commands"])


async def test_numbers_counted_up_by_a_thief_hold_commands_and_nothing_else(server, machine):
    """The highest number there is was reported: check-ins go on, commands wait, and an event says why."""
    machine.order = Order(1, MAX_INTEGER, MAX_INTEGER)
    await order(server, machine.agent_id)

    for _ in range(2):
        answer = await machine.check_in(server.client)
        assert (200, []) == (answer.status_code, answer.json()["commands"])
    assert 1 == (await server.event_kinds()).count("agent.numbers_ended")


async def test_a_lease_given_away_by_a_clock_that_was_ahead_lapses(server, machine):
    """It would have lasted for years."""
    made = await order(server, machine.agent_id)
    await machine.fetch(server.client)
    async with server.runtime.database.write() as session:
        (await session.get_one(Command, made)).leased_until = server.clock.now() + timedelta(days=9_000)

    await lapse_leases(server.runtime)

    assert "pending" == await state_of(server, made)


async def test_a_token_request_is_judged_like_a_check_in(server, machine):
    """An executor that forgot is noticed there too, and still gets its token."""
    await order(server, machine.agent_id)
    (wire,) = await machine.fetch(server.client)
    machine.execute(wire)
    await machine.check_in(server.client)
    machine.order = Order(1)
    server.clock.advance(1)

    answer = await machine.refresh(server.client)

    assert (200, "executor_rolled_back") == (answer.status_code, (await server.row(Agent)).status)


# --- keys ---


async def test_an_executor_of_another_epoch_first_gets_the_bundle(server, machine):
    """It would refuse a command of this one."""
    first = await order(server, machine.agent_id)
    async with server.runtime.database.write() as session:
        (await session.get_one(ServerState, 1)).epoch = 2

    waiting = await machine.fetch(server.client)
    machine.order = Order(2)
    (wire,) = await machine.fetch(server.client)

    assert ([], str(first), 2) == (waiting, opened(machine, wire).cmd_id, opened(machine, wire).epoch)


async def test_nothing_is_handed_out_that_no_executor_would_believe(tmp_path):
    """Past the end of the bundle commands wait, and an event says so once a day, not with every check-in."""
    clock = FrozenClock()
    async with running(tmp_path, clock=clock) as server:
        machine = await server.agent()
        await machine.learn_trust(server.client)
        await order(server, machine.agent_id, start_by=clock.now() + timedelta(days=200))
        clock.advance(BUNDLE_LIFETIME + 1)
        await _set_agent(server, refresh_expires_at=int(clock.now().timestamp()) + 10**6)
        assert 200 == (await machine.refresh(server.client)).status_code

        brought = [await fetched(server, machine) for _ in range(3)]

        assert [[], [], []] == brought
        assert 1 == (await server.event_kinds()).count("trust.commands_held")
        clock.advance(86_401)
        await machine.refresh(server.client)
        await fetched(server, machine)
        assert 2 == (await server.event_kinds()).count("trust.commands_held")


async def test_nothing_is_signed_with_a_key_that_the_bundle_does_not_name(server, machine):
    """A key that was put in place by hand, or taken out of the bundle after a theft."""
    first = await order(server, machine.agent_id)
    other = attrs.evolve(server.runtime.keys, command=SigningKey.generate())
    stranger = attrs.evolve(server.runtime, keys=other)
    server.app.state.runtime = stranger

    assert [] == await fetched(server, machine)
    assert "pending" == await state_of(server, first)
    assert "trust.commands_held" in await server.event_kinds()


async def test_a_rebooted_machine_and_new_hardware_are_addressed_as_they_are(server, machine):
    """The recipient is read from the agent's record when the command is signed, not when it was ordered."""
    await order(server, machine.agent_id)
    await _set_agent(server, machine_binding="0" * 32)

    (wire,) = await machine.fetch(server.client)

    assert "0" * 32 == opened(machine, wire).machine_binding


async def _set_agent(server, **values):
    async with server.runtime.database.write() as session:
        agent = await session.get_one(Agent, (await server.row(Agent)).id)
        for name, value in values.items():
            setattr(agent, name, value)
