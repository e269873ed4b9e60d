"""A command that is ordered at one replica reaches an agent that waits at another one."""

import asyncio
from contextlib import AsyncExitStack
from uuid import UUID

import pytest
from sqlalchemy import text

from redflag_core.commands import open_command
from redflag_core.encoding import b64decode
from redflag_core.enrolment import AgentStatus
from redflag_core.lifecycle import AgentAction
from redflag_server.agents.operations import act as act_on_agent
from redflag_server.checkin import doorbell
from redflag_server.checkin.doorbell import NAMES_AT_ONCE, Doorbell
from redflag_server.checkin.waiting import Ended, Waiting
from redflag_server.db.scope import whole_installation
from tests.helpers.orders import order, plan
from tests.helpers.server import running
from tests.server.test_long_poll import Timer, polling

pytestmark = pytest.mark.postgresql(only=True)

OPERATOR = whole_installation("user:alice")


@pytest.fixture
async def replicas(database, tmp_path, monkeypatch):
    """Two servers on one database, which look for lost signals only when a test lets them."""
    monkeypatch.setattr(doorbell, "LOOK_SECONDS", 3600)
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(running(tmp_path / "data")) for _ in range(2)]


@pytest.fixture
def timer(replicas):
    """The time of check-ins that the second one holds."""
    timer = Timer()
    replicas[1].runtime.waiting.timeout = timer.timeout
    return timer


@pytest.fixture
async def machine(replicas):
    """A machine that knows the command keys."""
    machine = await replicas[0].agent()
    await machine.learn_trust(replicas[0].client)
    return machine


async def test_an_order_at_one_replica_is_handed_out_by_another(replicas, machine, timer):
    """The agent waits at the second one; nobody looks in between."""
    here, there = replicas
    async with polling(there, machine, timer) as answer:
        command = await order(here, machine.agent_id, plan("bash"))

        async with asyncio.timeout(30):
            commands = (await answer).json()["commands"]
    opened = [open_command(b64decode(wire), machine.command_keys).body.cmd_id for wire in commands]
    assert [str(command)] == opened


async def test_an_agent_that_is_revoked_elsewhere_is_told_at_once(replicas, machine, timer):
    """It does not wait until its time is over."""
    here, there = replicas
    async with polling(there, machine, timer) as answer:
        await act_on_agent(here.runtime, OPERATOR, UUID(machine.agent_id), AgentAction.REVOKE, "stolen")

        assert (403, f"agent_{AgentStatus.REVOKED}") == ((await answer).status_code, (await answer).json()["code"])


async def test_a_lost_signal_is_made_up_for_by_looking(replicas, machine, timer):
    """The connection was gone when the bell rang: whoever has something due is woken at the next look."""
    here, there = replicas
    here.runtime.database.on_wake = here.runtime.waiting.wake  # it does not ring
    async with polling(there, machine, timer) as answer:
        await order(here, machine.agent_id, plan("bash"))
        bell = Doorbell(there.runtime.database, there.runtime.waiting, there.clock)
        await bell.look()

        assert 1 == len((await answer).json()["commands"])
        await bell.close()


async def test_who_has_nothing_due_is_left_alone(replicas, machine, timer):
    """Looking wakes nobody for nothing."""
    there = replicas[1]
    async with polling(there, machine, timer):
        bell = Doorbell(there.runtime.database, there.runtime.waiting, there.clock)
        await bell.look()
        await bell.close()
        await asyncio.sleep(0)

        assert 1 == len(timer.asked)


async def test_a_lost_connection_is_made_anew(replicas, machine, timer):
    """The database was started anew, or closed it: the next look listens again."""
    here, there = replicas
    waiting = Waiting()
    bell = Doorbell(there.runtime.database, waiting, there.clock)
    await bell.look()
    await bell._connection.close()
    await bell.look()
    poll = waiting.enter(UUID(machine.agent_id))

    here.runtime.database.on_wake(UUID(machine.agent_id))

    assert Ended.NEWS is await poll.wait(30)
    await bell.close()


async def test_many_are_woken_with_few_signals(replicas):
    """As many names as fit into one; what comes while one is sent waits for the next."""
    here, there = replicas
    waiting = Waiting(limit=3 * NAMES_AT_ONCE)
    bell = Doorbell(there.runtime.database, waiting, there.clock)
    await bell.look()
    agents = [UUID(int=number) for number in range(1, 2 * NAMES_AT_ONCE + 2)]
    polls = [waiting.enter(agent) for agent in agents]

    for agent in agents:
        here.runtime.database.on_wake(agent)

    assert {Ended.NEWS} == set(await asyncio.gather(*(poll.wait(30) for poll in polls)))
    await bell.close()


async def test_nonsense_on_the_channel_wakes_nobody(replicas):
    """Whoever may use the database may ring: it is a hint, and one that cannot be read is none."""
    here, there = replicas
    waiting = Waiting()
    bell = Doorbell(there.runtime.database, waiting, there.clock)
    await bell.look()
    agent = UUID(int=1)
    poll = waiting.enter(agent)

    async with here.runtime.database.write() as session:
        await session.execute(text("SELECT pg_notify('redflag_wake', :said)"), {"said": "x ' ; " + agent.hex})

    assert Ended.NEWS is await poll.wait(30)
    await bell.close()
