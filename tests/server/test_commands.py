"""The queue as people use it: ordered once, cancelled if that is possible, released, tried again, archived."""

import asyncio
from contextlib import contextmanager
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import event
from sqlalchemy.exc import DatabaseError
from uuid_utils.compat import uuid7

from redflag_core.command_queue import ALLOWED, MAX_LIVE, START_WITHIN_SECONDS, CommandState
from redflag_core.commands import CommandType, ScanParams, command_digest
from redflag_core.encoding import b64decode
from redflag_core.enrolment import AgentStatus
from redflag_core.keys import VerifyKey
from redflag_core.statements import open_statement
from redflag_server.accounts.permissions import PERMISSIONS
from redflag_server.agents.tables import Agent
from redflag_server.commands import queue
from redflag_server.commands.tables import Command, CommandSubject
from redflag_server.db.migrations.versions import __path__ as versions
from redflag_server.events.tables import Event
from redflag_server.problems import ConflictError, NotFoundError
from tests.helpers.operators import API, add_machine, api_key, first_place
from tests.helpers.orders import (
    ACTOR,
    HEARTBEAT,
    SCAN,
    act,
    command_of,
    held_subjects,
    history,
    new_command,
    order,
    plan,
    state_of,
)

CANCELLED = ("cancelled", "cancelled")
NOBODY = "01936f3e-8b5a-7c4d-9e2f-0a1b2c3d4e00"


@pytest.fixture
async def agent_id(server) -> UUID:
    """A machine that is active."""
    return await add_machine(server.runtime, await first_place(server.runtime))


async def order_again(server, agent_id, what=SCAN, **changes):
    """Order something that may be there already; its id, and whether it was made."""
    async with server.runtime.database.write() as session:
        wanted = new_command(agent_id, what, **changes)
        command, made = await queue.order(session, ACTOR, wanted, server.clock.now())
        return command.id, made


# --- ordering ---


async def test_an_order_is_kept_with_who_when_and_why(server, agent_id):
    """The command waits, names its digest, and an event in the same transaction tells of it."""
    command = await command_of(server, await order(server, agent_id, reason="after the maintenance"))

    now = server.clock.now()
    assert ("pending", now, ACTOR, "after the maintenance") == (
        command.state,
        command.created_at,
        command.created_by,
        command.reason,
    )
    assert command_digest(str(command.id), "scan.run", command.params) == command.digest
    assert now + timedelta(seconds=START_WITHIN_SECONDS) == command.start_by
    told = await server.row(Event, Event.kind == "command.ordered")
    assert (ACTOR, agent_id, str(command.id)) == (told.actor, told.agent_id, told.data["command"])
    assert "scan.run was ordered for web-01: after the maintenance" == told.message


async def test_the_same_order_again_is_the_first_one(server, agent_id):
    """A second click makes no second command, and no second event."""
    first = await order(server, agent_id)

    assert (first, False) == await order_again(server, agent_id)
    assert ["ordered"] == await history(server)


async def test_different_things_are_ordered_side_by_side(server, agent_id):
    """Each subject has one live command: a scan of apt is not a scan of everything, nor is it a heartbeat."""
    await order(server, agent_id)
    await order(server, agent_id, (CommandType.SCAN_RUN, ScanParams("apt")))
    await order(server, agent_id, HEARTBEAT)
    await order(server, agent_id, plan("bash", "openssl"))

    subjects = {"scan:*", "scan:apt", "agent.heartbeat", "apt:bash:amd64", "apt:openssl:amd64"}
    assert subjects == await held_subjects(server)


async def test_two_orders_never_share_a_package(server, agent_id):
    """One that is about some of the same packages is refused, and says which command is in its way."""
    first = await order(server, agent_id, plan("bash", "openssl"))

    with pytest.raises(ConflictError, match=f"{first} is about apt:openssl:amd64"):
        await order_again(server, agent_id, plan("openssl", "zlib1g"))
    with pytest.raises(ConflictError, match="wait for it"):
        await order_again(server, agent_id, plan("bash"))
    assert {"apt:bash:amd64", "apt:openssl:amd64"} == await held_subjects(server)


async def test_another_machine_is_another_matter(server, agent_id):
    """Subjects are those of one machine."""
    other = await add_machine(server.runtime, await first_place(server.runtime), hostname="web-02")
    await order(server, agent_id)

    assert (await order_again(server, other))[1]


async def test_a_race_for_a_subject_ends_as_a_duplicate(server, agent_id):
    """Another transaction that was a moment earlier has made the command: it is given back, and nothing fails."""
    rival = await order(server, agent_id)

    with looked_too_early(server):
        assert (rival, False) == await order_again(server, agent_id)

    assert 1 == len(await server.rows(Command))


async def test_a_race_for_a_package_ends_as_a_conflict(server, agent_id):
    """The same, when the other one is about more."""
    rival = await order(server, agent_id, plan("bash", "openssl"))

    with looked_too_early(server), pytest.raises(ConflictError, match=str(rival)):
        await order_again(server, agent_id, plan("bash"))

    assert 1 == len(await server.rows(Command))


async def test_twenty_orders_at_once_make_one_command(server, agent_id):
    """However they are interleaved."""
    made = await asyncio.gather(*(order_again(server, agent_id) for _ in range(20)))

    assert [True] + [False] * 19 == sorted((each[1] for each in made), reverse=True)
    assert 1 == len({each[0] for each in made})
    assert ["ordered"] == await history(server)


async def test_nothing_is_ordered_from_a_revoked_or_unknown_machine(server, agent_id):
    """There is nobody who would ever fetch it."""
    place = await first_place(server.runtime)
    revoked = await add_machine(server.runtime, place, hostname="gone", status=AgentStatus.REVOKED)

    with pytest.raises(ConflictError, match="revoked"):
        await order_again(server, revoked)
    with pytest.raises(NotFoundError):
        await order_again(server, uuid7())


async def test_the_queue_of_a_machine_is_bounded(server, agent_id):
    """More than a thousand open commands are a mistake of a script, and are refused as one."""
    now = server.clock.now()
    async with server.runtime.database.write() as session:
        organization_id = (await session.get_one(Agent, agent_id)).organization_id
        for _ in range(MAX_LIVE):
            row = queue._row(new_command(agent_id), b"{}", organization_id, ACTOR, now)
            session.add(row)

    with pytest.raises(ConflictError, match="cancel some"):
        await order_again(server, agent_id)


async def test_an_order_that_is_rolled_back_was_never_there(server, agent_id):
    """No command, no subject, no event: nothing is announced that was not committed."""

    async def fail():
        async with server.runtime.database.write() as session:
            await queue.order(session, ACTOR, new_command(agent_id), server.clock.now())
            raise RuntimeError("the caller failed")

    with pytest.raises(RuntimeError, match="the caller failed"):
        await fail()
    assert ([], set(), []) == (await server.rows(Command), await held_subjects(server), await history(server))


# --- ending without a word of the machine ---


async def test_what_was_never_handed_out_is_cancelled_at_once(server, agent_id):
    """Its subject is free, and the machine is not told."""
    first = await order(server, agent_id)

    await act(server, queue.cancel, first, "ordered for the wrong machine")

    command = await command_of(server, first)
    assert CANCELLED == (command.state, command.code)
    assert "ordered for the wrong machine" == command.detail
    assert server.clock.now() == command.finished_at
    assert ["ordered", "cancelled"] == await history(server, first)
    assert (await order_again(server, agent_id))[1]


async def test_what_was_handed_out_is_not_cancelled_by_the_server_alone(server, agent_id):
    """The machine may have started it: it is asked not to, once, and the subject stays taken."""
    first = await order(server, agent_id, plan("bash"))
    await _hand_out(server, first)

    for _ in range(2):
        await act(server, queue.cancel, first)

    assert "leased" == await state_of(server, first)
    cancel = await server.row(Command, Command.type == "command.cancel")
    assert {"apt:bash:amd64", f"cancel:{first}"} == await held_subjects(server)
    assert server.clock.now() == (await command_of(server, first)).cancel_requested_at
    assert ["ordered", "cancel_requested"] == await history(server, first)
    assert ["ordered"] == await history(server, cancel.id)


async def test_a_cancellation_that_nobody_fetched_ends_with_its_command(server, agent_id):
    """There is nothing left to cancel, so the machine need not be asked."""
    first = await order(server, agent_id)
    await _hand_out(server, first)
    await act(server, queue.cancel, first)

    await act(server, queue.release, first)

    cancel = await server.row(Command, Command.type == "command.cancel")
    assert ("cancelled", "too_late") == (cancel.state, cancel.code)
    assert set() == await held_subjects(server)


async def test_the_word_of_an_operator_ends_what_nobody_answers_for(server, agent_id):
    """Released is cancelled with a reason of its own, and an event of its own; saying it again is no news."""
    first = await order(server, agent_id)
    await _hand_out(server, first)

    for _ in range(2):
        await act(server, queue.release, first, "the machine burnt down")

    command = await command_of(server, first)
    assert ("cancelled", "released", "the machine burnt down") == (command.state, command.code, command.detail)
    assert ["ordered", "released"] == await history(server, first)
    assert set() == await held_subjects(server)


@pytest.mark.parametrize("how", [queue.release, queue.archive, queue.retry])
async def test_what_waits_to_be_handed_out_can_only_be_cancelled(server, agent_id, how):
    """There is no answer to give up on, nothing to put away, and nothing to repeat."""
    first = await order(server, agent_id)
    before = await server.dump()

    with pytest.raises(ConflictError):
        await act(server, how, first)

    assert before == await server.dump()


async def test_what_ended_is_not_cancelled_or_released_again(server, agent_id):
    """It says how it ended."""
    first = await order(server, agent_id)
    await _set(server, first, state="completed")

    for how in (queue.cancel, queue.release, queue.retry):
        with pytest.raises(ConflictError, match="completed"):
            await act(server, how, first)


@pytest.mark.parametrize("what", [HEARTBEAT])
async def test_what_is_done_as_soon_as_it_arrives_cannot_be_cancelled_then(server, agent_id, what):
    """A cancellation would come after it in any case."""
    first = await order(server, agent_id, what)
    await _hand_out(server, first)

    with pytest.raises(ConflictError, match="too late"):
        await act(server, queue.cancel, first)


# --- again, and out of sight ---


async def test_a_retry_is_a_new_command_that_names_the_old_one(server, agent_id):
    """Same type, same parameters, another id: the old one keeps its history."""
    first = await order(server, agent_id, (CommandType.SCAN_RUN, ScanParams("apt")))
    await act(server, queue.cancel, first)

    again = await act(server, queue.retry, first, "now for real")

    command = await command_of(server, again.id)
    assert (first, "pending", "now for real") == (command.retry_of, command.state, command.reason)
    assert (await command_of(server, first)).params == command.params
    told = await server.row(Event, Event.kind == "command.ordered", Event.id > again.id)
    assert str(first) == told.data["retry_of"]


async def test_a_plan_is_not_tried_again_blindly(server, agent_id):
    """What was planned then may not hold now: its packages are planned anew."""
    first = await order(server, agent_id, plan("bash"))
    await act(server, queue.cancel, first)

    with pytest.raises(ConflictError, match="plan its packages anew"):
        await act(server, queue.retry, first)


async def test_archived_commands_are_kept_and_left_out(server, agent_id):
    """Nothing is deleted; lists show them when they are asked to."""
    first = await order(server, agent_id)
    await act(server, queue.cancel, first)
    for _ in range(2):
        await act(server, queue.archive, first)
    headers = await api_key(server.runtime, "commands:read")

    shown = [await _listed(server, headers, query) for query in ("", "?archived=true")]

    assert [[], [str(first)]] == shown
    assert ["ordered", "cancelled", "archived"] == await history(server, first)


# --- the database ---


def test_the_database_and_the_core_allow_the_same_moves():
    """The triggers refuse what no event of the core can do, and nothing else."""
    assert list(versions)
    from redflag_server.db.migrations.versions import __name__ as package

    moves = __import__(f"{package}.0002_commands_and_plans", fromlist=["MOVES"]).MOVES["commands"]

    assert {(before, after) for before, targets in moves.items() for after in targets.split()} == {
        (before.value, after.value) for before, after in ALLOWED
    }


async def test_the_database_refuses_an_illegal_move(server, agent_id):
    """Also to code that goes past the core."""
    first = await order(server, agent_id)
    await _set(server, first, state="completed")

    for state in CommandState:
        if state is not CommandState.COMPLETED:
            with pytest.raises(DatabaseError, match="illegal move"):
                await _set(server, first, state=state.value)


async def test_the_database_refuses_a_second_live_command_about_a_subject(server, agent_id):
    """Whatever the code above it does."""
    first = await order(server, agent_id)
    row = await server.row(CommandSubject)

    with pytest.raises(DatabaseError, match=r"UNIQUE|uq_command_subjects_agent_id"):
        async with server.runtime.database.write() as session:
            session.add(
                CommandSubject(
                    organization_id=row.organization_id,
                    agent_id=agent_id,
                    subject=row.subject,
                    command_id=first,
                )
            )


# --- the API ---


async def test_a_scan_is_ordered_over_the_api(server, agent_id):
    """With a permission of its own; the same again answers the same and says so."""
    headers = await api_key(server.runtime, "commands:write")
    body = {"agent_id": str(agent_id), "type": "scan.run", "reason": "after the maintenance", "scanner": "apt"}

    first = await server.client.post(f"{API}/commands", headers=headers, json=body)
    again = await server.client.post(f"{API}/commands", headers=headers, json=body)

    assert [200, 200] == [first.status_code, again.status_code]
    assert [True, False] == [first.json()["made"], again.json()["made"]]
    command = first.json()["command"]
    assert ("pending", {"scanner": "apt"}, "web-01") == (command["state"], command["params"], command["hostname"])
    assert "api-key:test" == command["created_by"]
    assert again.json()["command"] == command


@pytest.mark.parametrize(
    "changes, status",
    [
        ({"type": "packages.upgrade"}, 400),
        ({"type": "command.cancel"}, 400),
        ({"type": "agent.heartbeat", "scanner": "apt"}, 400),
        ({"seconds": 60}, 400),
        ({"scanner": "../etc"}, 400),
        ({"type": "agent.heartbeat", "seconds": 9}, 400),
        ({"type": "agent.heartbeat", "seconds": 3601}, 400),
        ({"agent_id": "nonsense"}, 400),
        ({"agent_id": NOBODY}, 404),
        ({"reason": "two\nlines"}, 400),
        ({"command": "rm"}, 400),
    ],
)
async def test_nothing_else_can_be_ordered_by_itself(server, agent_id, changes, status):
    """Updates come from plans, cancelling from cancelling; a body that means nothing is refused whole."""
    headers = await api_key(server.runtime)
    body = {"agent_id": str(agent_id), "type": "scan.run", "reason": "a test", **changes}

    answer = await server.client.post(f"{API}/commands", headers=headers, json=body)

    assert status == answer.status_code, answer.text
    assert ([], []) == (await server.rows(Command), await history(server))


async def test_fast_check_ins_are_ordered_for_five_minutes(server, agent_id):
    """Unless somebody says for how long."""
    headers = await api_key(server.runtime)
    body = {"agent_id": str(agent_id), "type": "agent.heartbeat", "reason": "looking at it"}

    answer = await server.client.post(f"{API}/commands", headers=headers, json=body)

    assert {"seconds": 300} == answer.json()["command"]["params"]


async def test_commands_are_acted_upon_over_the_api(server, agent_id):
    """Cancel, retry and archive answer with the command; a conflict is a 409 with a sentence."""
    headers, first = await api_key(server.runtime), await order(server, agent_id)
    because = {"reason": "wrong machine"}

    async def post(command_id, action):
        return await server.client.post(f"{API}/commands/{command_id}/{action}", headers=headers, json=because)

    early = await post(first, "release")
    cancelled = await post(first, "cancel")
    again = await post(first, "retry")
    archived = await post(first, "archive")

    assert (409, "conflict") == (early.status_code, early.json()["code"])
    assert "cancelled" == cancelled.json()["command"]["state"]
    assert str(first) == again.json()["command"]["retry_of"]
    assert archived.json()["command"]["archived_at"] is not None
    assert 404 == (await post(uuid7(), "cancel")).status_code


@pytest.mark.parametrize(
    "query, expected",
    [
        ("", "scan plan heartbeat"),
        ("?state=pending", "plan heartbeat"),
        ("?state=pending&state=cancelled", "scan plan heartbeat"),
        ("?type=packages.plan", "plan"),
        ("?live=true", "plan heartbeat"),
        ("?live=false", "scan"),
        ("?overdue=true", "plan"),
        ("?overdue=false", "scan heartbeat"),
        (f"?plan_id={NOBODY}", ""),
        (f"?agent_id={NOBODY}", ""),
    ],
)
async def test_commands_are_found_by_what_they_are(server, agent_id, query, expected):
    """Each filter, newest first."""
    made = {"scan": await order(server, agent_id), "plan": await order(server, agent_id, plan("bash"))}
    made["heartbeat"] = await order(server, agent_id, HEARTBEAT)
    await act(server, queue.cancel, made["scan"])
    await _set(server, made["plan"], overdue_at=server.clock.now())
    headers = await api_key(server.runtime, "commands:read")

    listed = await _listed(server, headers, query)

    assert [str(made[name]) for name in reversed(expected.split())] == listed


async def test_a_command_shows_the_proofs_to_verify(server):
    """Anybody can check with the key beside them what the executor signed."""
    machine = await server.agent()
    first = await order(server, machine.agent_id)
    (wire,) = await machine.fetch(server.client)
    await machine.deliver(server.client, machine.execute(wire))
    await machine.deliver(server.client, machine.run(str(first), output="done\n", output_bytes=5))
    headers = await api_key(server.runtime, "commands:read")

    shown = (await server.client.get(f"{API}/commands/{first}", headers=headers)).json()

    assert ("completed", "done\n", 5) == (
        shown["command"]["state"],
        shown["result"]["output"],
        shown["result"]["output_bytes"],
    )
    assert ["result", "accepted"] == [statement["kind"] for statement in shown["statements"]]
    key = VerifyKey(b64decode(shown["executor_key"]))
    for statement in shown["statements"]:
        wire = b64decode(statement["envelope"])
        opened = open_statement(wire, key, server=machine.server, agent_id=machine.agent_id)
        assert (str(first), shown["digest"]) == (opened.cmd_id, opened.digest)


async def test_permissions_are_kept(server, agent_id):
    """Who may look cannot order, and who may order cannot look."""
    first = await order(server, agent_id)
    reader, writer = (
        await api_key(server.runtime, "commands:read"),
        await api_key(server.runtime, "commands:write"),
    )
    body = {"agent_id": str(agent_id), "type": "scan.run", "reason": "a test"}

    assert 403 == (await server.client.post(f"{API}/commands", headers=reader, json=body)).status_code
    assert 403 == (await server.client.get(f"{API}/commands", headers=writer)).status_code
    assert 403 == (await server.client.get(f"{API}/commands/{first}", headers=writer)).status_code
    assert {"commands:read", "commands:write"} <= set(PERMISSIONS)


async def _listed(server, headers, query):
    answer = await server.client.get(f"{API}/commands{query}", headers=headers)
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["items"]]


async def _set(server, command_id, **values):
    async with server.runtime.database.write() as session:
        command = await session.get_one(Command, command_id)
        for name, value in values.items():
            setattr(command, name, value)


async def _hand_out(server, command_id):
    """As a check-in does, for a machine that is only a row here."""
    now = server.clock.now()
    await _set(server, command_id, state="leased", delivered_at=now, leased_until=now + timedelta(minutes=1))


@contextmanager
def looked_too_early(server):
    """Let the first look at live subjects find nothing: another transaction commits them a moment later."""
    engine, looks = server.runtime.database.engine.sync_engine, []

    def hide(_connection, _cursor, statement, parameters, _context, _many):
        if statement.startswith("SELECT") and "FROM command_subjects" in statement:
            looks.append(statement)
            if len(looks) == 1:
                statement = f"SELECT * FROM ({statement}) AS looked LIMIT 0"
        return statement, parameters

    event.listen(engine, "before_cursor_execute", hide, retval=True)
    yield
    event.remove(engine, "before_cursor_execute", hide)
    assert len(looks) > 1
