"""Check-ins that are held open: answered when there is a command, never holding anything but memory."""

import asyncio
from contextlib import asynccontextmanager
from uuid import UUID

import attrs
import pytest

from redflag_core.enrolment import AgentStatus
from redflag_core.errors import LimitError
from redflag_core.lifecycle import AgentAction
from redflag_core.messages import MAX_WAIT_SECONDS
from redflag_server.agents.operations import act as act_on_agent
from redflag_server.agents.tables import Agent
from redflag_server.checkin.waiting import Ended, Waiting
from redflag_server.commands import queue
from redflag_server.commands.tables import CommandDelivery
from redflag_server.db.scope import whole_installation
from tests.helpers.operators import API, api_key
from tests.helpers.orders import ACTOR, HEARTBEAT, new_command, order, plan, state_of

OPERATOR = whole_installation("user:alice")
ORDINARY_PACE = range(45, 76)


@attrs.define
class Timer:
    """The time of held check-ins: it passes when a test says so."""

    asked: list[float] = attrs.field(factory=list)
    running: list[asyncio.Timeout] = attrs.field(factory=list)
    news: asyncio.Event = attrs.field(factory=asyncio.Event)

    def timeout(self, seconds: float) -> asyncio.Timeout:
        """Like `asyncio.timeout`, but no time passes."""
        self.asked.append(seconds)
        self.running.append(asyncio.timeout(None))
        self.news.set()
        return self.running[-1]

    def end(self) -> None:
        """Let the time pass for whoever waits."""
        self.running[-1].reschedule(asyncio.get_running_loop().time())

    async def until(self, count: int) -> None:
        """Wait until so many waits have begun."""
        while len(self.asked) < count:
            self.news.clear()
            await self.news.wait()


@pytest.fixture
def timer(server):
    """The timer of the server under test."""
    timer = Timer()
    server.runtime.waiting.timeout = timer.timeout
    return timer


@pytest.fixture
async def machine(server):
    """A machine that knows the command keys."""
    machine = await server.agent()
    await machine.learn_trust(server.client)
    return machine


@asynccontextmanager
async def polling(server, machine, timer, **changes):
    """A check-in that is held open when the block begins; its answer is awaited by the test."""
    asked = len(timer.asked)
    task = asyncio.create_task(machine.check_in(server.client, wait=MAX_WAIT_SECONDS, **changes))
    held = asyncio.create_task(timer.until(asked + 1))
    await asyncio.wait([task, held], return_when=asyncio.FIRST_COMPLETED)
    held.cancel()
    assert not task.done(), task.result().text
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def commands_of(task):
    """How many commands an awaited answer brings."""
    answer = await task
    assert answer.status_code == 200, answer.text
    return len(answer.json()["commands"])


# --- what ends the waiting ---


async def test_an_order_is_handed_to_a_waiting_agent(server, machine, timer):
    """At once: nobody waits for the next check-in."""
    async with polling(server, machine, timer) as poll:
        first = await order(server, machine.agent_id)
        answer = await poll

    assert 1 == len(answer.json()["commands"])
    assert answer.json()["next_check_in_seconds"] in (0, 1)
    assert "leased" == await state_of(server, first)


async def test_what_is_there_already_is_not_waited_for(server, machine, timer):
    """A check-in that would wait is answered at once when there is a command."""
    await order(server, machine.agent_id)

    answer = await machine.check_in(server.client, wait=MAX_WAIT_SECONDS)

    assert (1, []) == (len(answer.json()["commands"]), timer.asked)


async def test_without_an_order_the_answer_comes_when_the_time_is_over(server, machine, timer):
    """Empty, within the time that the agent waits, and the next one follows at once."""
    async with polling(server, machine, timer) as poll:
        timer.end()
        answer = await poll

    assert ([], "active") == (answer.json()["commands"], answer.json()["status"])
    assert answer.json()["next_check_in_seconds"] in (0, 1)
    (seconds,) = timer.asked
    assert 0.8 * MAX_WAIT_SECONDS <= seconds <= MAX_WAIT_SECONDS


async def test_who_does_not_ask_to_wait_does_not(server, machine, timer):
    """An ordinary check-in is answered at once, with the ordinary pace."""
    answer = await machine.check_in(server.client)

    assert [] == timer.asked
    assert answer.json()["next_check_in_seconds"] in ORDINARY_PACE


async def test_an_order_for_another_agent_wakes_nobody_else(server, timer):
    """Each waits for its own."""
    token = await server.token(seats=2)
    one, other = [await server.machine().enrol(server.client, token) for _ in range(2)]
    async with polling(server, one, timer) as poll, polling(server, other, timer) as others:
        await order(server, one.agent_id)
        await poll
        for _ in range(20):
            await asyncio.sleep(0)
        assert not others.done()


async def test_an_order_that_is_rolled_back_wakes_nobody(server, machine, timer):
    """Nothing was ordered, so there is nothing to look for."""

    async def fail():
        async with server.runtime.database.write() as session:
            await queue.order(session, ACTOR, new_command(machine.agent_id), server.clock.now())
            raise RuntimeError("the caller failed")

    async with polling(server, machine, timer) as poll:
        with pytest.raises(RuntimeError):
            await fail()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not poll.done()


async def test_an_acceptance_lets_the_next_command_out(server, machine, timer):
    """The agent polls while it answers over another connection: the next command comes with that answer."""
    await order(server, machine.agent_id, plan("bash"))
    (wire,) = await machine.fetch(server.client)
    second = await order(server, machine.agent_id, plan("dash"))
    async with polling(server, machine, timer) as poll:
        await machine.deliver(server.client, machine.execute(wire))
        assert 1 == await commands_of(poll)

    assert "leased" == await state_of(server, second)


async def test_a_command_that_was_refused_for_now_is_waited_for_exactly(server, machine, timer):
    """Nobody wakes the agent when its time comes: the wait ends by itself then."""
    first = str(await order(server, machine.agent_id))
    (wire,) = await machine.fetch(server.client)
    machine.execute(wire)
    entry = machine.journal.pop(first)
    refused = machine.refuse(entry.command, entry.body, LimitError("not now"), retry_after=10)
    await machine.deliver(server.client, refused)

    async with polling(server, machine, timer) as poll:
        (seconds,) = timer.asked
        server.clock.advance(seconds)
        timer.end()
        assert 1 == await commands_of(poll)

    assert 10 <= seconds < MAX_WAIT_SECONDS


async def test_being_woken_for_nothing_is_waiting_on(server, machine, timer):
    """A heartbeat that was ordered and cancelled at once: there is nothing, so the check-in stays open."""
    async with polling(server, machine, timer) as poll:
        async with server.runtime.database.write() as session:
            now = server.clock.now()
            command, _ = await queue.order(session, ACTOR, new_command(machine.agent_id, HEARTBEAT), now)
            await queue.cancel(session, ACTOR, command, "changed my mind", now)
        await timer.until(2)
        assert not poll.done()
        await order(server, machine.agent_id)
        assert 1 == await commands_of(poll)


async def test_a_later_check_in_ends_an_earlier_one(server, machine, timer):
    """Its connection is most likely gone, so it gets no command, and is in no hurry."""
    async with polling(server, machine, timer) as first, polling(server, machine, timer) as second:
        ended = await first
        await order(server, machine.agent_id)
        assert 1 == await commands_of(second)

    assert [] == ended.json()["commands"]
    assert ended.json()["next_check_in_seconds"] in ORDINARY_PACE


async def test_a_replay_does_not_end_a_check_in(server, machine, timer):
    """Whoever recorded a request cannot end the wait of the agent with it."""
    signed = machine.sign("/agent/check-in", machine.check_in_body(wait=MAX_WAIT_SECONDS))
    task = asyncio.create_task(signed.send(server.client))
    await timer.until(1)

    replay = await signed.send(server.client)

    assert (401, False) == (replay.status_code, task.done())
    await order(server, machine.agent_id)
    assert 1 == await commands_of(task)


async def test_an_agent_that_is_revoked_while_it_waits_is_refused(server, machine, timer):
    """At once, and it gets nothing."""
    async with polling(server, machine, timer) as poll:
        await act_on_agent(server.runtime, OPERATOR, UUID(machine.agent_id), AgentAction.REVOKE, "stolen")
        answer = await poll

    assert (403, "agent_revoked") == (answer.status_code, answer.json()["code"])


async def test_an_agent_that_loses_its_commands_while_it_waits_learns_it(server, machine, timer):
    """Found out by another request of it: the held one is answered with the new status, and nothing else."""
    await order(server, machine.agent_id, plan("bash"))
    (wire,) = await machine.fetch(server.client)
    machine.execute(wire)
    async with polling(server, machine, timer) as poll:
        server.clock.advance(1)
        machine.order = attrs.evolve(machine.order, seq=0)
        await machine.refresh(server.client)
        answer = await poll

    assert (200, "executor_rolled_back", []) == (
        answer.status_code,
        answer.json()["status"],
        answer.json()["commands"],
    )


async def test_the_end_of_the_server_ends_every_wait(server, machine, timer):
    """Answered at once, without a command, at the ordinary pace: a fleet must not come back all at once."""
    async with polling(server, machine, timer) as poll:
        server.runtime.waiting.close()
        answer = await poll
    later = await machine.check_in(server.client, wait=MAX_WAIT_SECONDS)

    for each in (answer, later):
        assert (200, []) == (each.status_code, each.json()["commands"])
        assert each.json()["next_check_in_seconds"] in ORDINARY_PACE


async def test_a_closed_connection_gets_no_command(server, machine, timer):
    """It ends while the agent waits: the command stays for the next check-in."""
    signed = machine.sign("/agent/check-in", machine.check_in_body(wait=MAX_WAIT_SECONDS))
    connection = Connection(server.app, signed)
    task = asyncio.create_task(connection.run())
    await timer.until(1)

    connection.cut.set()
    await task
    first = await order(server, machine.agent_id)

    assert "pending" == await state_of(server, first)
    assert ([], 0) == (await server.rows(CommandDelivery), len(server.runtime.waiting))


# --- what waiting costs ---


async def test_waiting_holds_no_connection_of_the_database(server, timer):
    """Many agents wait; the database is free, and so is the turn to write."""
    token = await server.token(seats=25)
    machines = [await server.machine().enrol(server.client, token) for _ in range(25)]
    polls = [asyncio.create_task(each.check_in(server.client, wait=30)) for each in machines]
    await timer.until(len(machines))

    assert (25, 0) == (len(server.runtime.waiting), server.runtime.database.engine.pool.checkedout())
    for each in machines:
        await order(server, each.agent_id)
    assert [1] * 25 == [await commands_of(poll) for poll in polls]
    assert 0 == len(server.runtime.waiting)


async def test_the_number_of_waiting_agents_is_bounded(server, timer):
    """Whoever comes beyond is answered at once, and comes back at the ordinary pace."""
    server.runtime.waiting.limit = 1
    token = await server.token(seats=2)
    one, other = [await server.machine().enrol(server.client, token) for _ in range(2)]
    async with polling(server, one, timer):
        answer = await other.check_in(server.client, wait=MAX_WAIT_SECONDS)

    assert answer.json()["next_check_in_seconds"] in ORDINARY_PACE
    assert 0 == len(server.runtime.waiting)


@pytest.mark.parametrize("status", [AgentStatus.PENDING, AgentStatus.HARDWARE_CHANGED])
async def test_an_agent_that_gets_no_commands_does_not_wait_for_them(server, machine, timer, status):
    """And does not come back every second to ask for them."""
    async with server.runtime.database.write() as session:
        (await session.get_one(Agent, UUID(machine.agent_id))).status = status

    answer = await machine.check_in(server.client, wait=MAX_WAIT_SECONDS)

    assert [] == timer.asked
    assert answer.json()["next_check_in_seconds"] in ORDINARY_PACE


async def test_an_executor_of_another_epoch_does_not_wait(server, machine, timer):
    """It has a bundle to fetch first."""
    machine.order = attrs.evolve(machine.order, epoch=0)

    await machine.check_in(server.client, wait=MAX_WAIT_SECONDS)

    assert [] == timer.asked


async def test_an_agent_that_waits_is_there(server, machine, timer):
    """Online while it is held, a minute after it was answered, and not for ever."""
    headers = await api_key(server.runtime, "agents:read")

    async def presence():
        listed = await server.client.get(f"{API}/agents", headers=headers)
        return listed.json()["items"][0]["presence"]

    seen = []
    async with polling(server, machine, timer) as poll:
        server.clock.advance(MAX_WAIT_SECONDS)
        seen.append(await presence())
        timer.end()
        await poll
    for seconds in (60, 300):
        server.clock.advance(seconds)
        seen.append(await presence())

    assert ["online", "online", "offline"] == seen


# --- the waiting room itself ---


async def test_nothing_is_missed_between_looking_and_waiting():
    """Woken after it looked and before it waits: the wait ends at once."""
    waiting, agent_id = Waiting(), UUID(int=1)
    poll = waiting.enter(agent_id)
    waiting.wake(agent_id)

    assert Ended.NEWS is await poll.wait(3600)
    waiting.leave(agent_id, poll)
    waiting.wake(agent_id)
    assert 0 == len(waiting)


async def test_an_end_is_final():
    """What happens after it changes nothing."""
    waiting, agent_id = Waiting(), UUID(int=1)
    first, second = waiting.enter(agent_id), waiting.enter(agent_id)
    waiting.supersede(agent_id, second)
    waiting.close()

    assert (Ended.SUPERSEDED, Ended.CLOSING) == (await first.wait(3600), await second.wait(3600))
    assert Ended.SUPERSEDED is await first.wait(3600)
    assert waiting.enter(agent_id) is None


@attrs.define
class Connection:
    """One request over a connection that a test can cut."""

    app: object
    signed: object
    cut: asyncio.Event = attrs.field(factory=asyncio.Event)
    _sent: bool = False

    async def run(self):
        """Send the request; whatever is answered goes nowhere."""
        headers = [(name.encode(), value.encode()) for name, value in self.signed.headers.items()]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": self.signed.method,
            "scheme": "http",
            "path": self.signed.path,
            "raw_path": self.signed.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8750),
        }
        await self.app(scope, self._receive, self._send)

    async def _receive(self):
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self.signed.body, "more_body": False}
        await self.cut.wait()
        return {"type": "http.disconnect"}

    async def _send(self, _message):
        return None
