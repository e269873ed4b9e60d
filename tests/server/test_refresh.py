"""Access tokens and the refresh chain: lost answers recover, copies are caught."""

import asyncio

import attrs
from sqlalchemy import update

from redflag_core.enrolment import REFRESH_SECONDS, new_secret
from redflag_core.keys import SigningKey
from redflag_server.agents.tables import Agent
from redflag_server.trust.tables import ServerState
from tests.helpers.fleet import ENTROPY
from tests.helpers.server import Server


async def test_the_chain_moves_on_with_each_token(server: Server):
    """Each refresh takes the successor announced before."""
    machine = await server.agent()

    codes = [(await machine.refresh(server.client)).status_code for _ in range(3)]

    assert ([200] * 3, 4) == (codes, (await server.row(Agent)).refresh_generation)


async def test_a_lost_answer_recovers_by_itself(server: Server):
    """An agent that was killed between sending and storing sends the same pair again, and goes on."""
    machine = await server.agent()
    lost = await machine.sign("/agent/token", machine.token_body(), with_token=False).send(server.client)

    again = await machine.refresh(server.client)

    assert (200, 200) == (lost.status_code, again.status_code)
    assert lost.json()["refresh_generation"] == again.json()["refresh_generation"]
    assert 200 == (await machine.check_in(server.client)).status_code
    assert 200 == (await machine.refresh(server.client)).status_code


async def test_a_copied_secret_used_by_two_quarantines_both(server: Server):
    """Whoever comes second is refused, and from then on the first is too; an event says why."""
    original = await server.agent()
    copy = attrs.evolve(original, pending=new_secret(ENTROPY))
    assert 200 == (await original.refresh(server.client)).status_code

    forked = await copy.refresh(server.client)

    assert (403, "refresh_fork") == (forked.status_code, forked.json()["code"])
    assert "agent.quarantined" in await server.event_kinds()
    for one in (original, copy):
        answer = await one.check_in(server.client)
        assert (403, "agent_quarantined") == (answer.status_code, answer.json()["code"])
        assert 403 == (await one.refresh(server.client)).status_code


async def test_fifty_concurrent_refreshes_of_one_pair_are_one_step(server: Server):
    """The same pair in parallel is idempotent, not a fork."""
    machine = await server.agent()
    requests = [machine.sign("/agent/token", machine.token_body(), with_token=False) for _ in range(50)]

    answers = await asyncio.gather(*(request.send(server.client) for request in requests))

    agent = await server.row(Agent)
    assert ({200}, 2, "active") == ({a.status_code for a in answers}, agent.refresh_generation, agent.status)


async def test_two_concurrent_successors_have_one_winner(server: Server):
    """Of two copies that refresh at the same moment one is a fork; the agent ends quarantined."""
    machine = await server.agent()
    copy = attrs.evolve(machine, pending=new_secret(ENTROPY))

    answers = await asyncio.gather(machine.refresh(server.client), copy.refresh(server.client))

    assert [200, 403] == sorted(answer.status_code for answer in answers)
    assert "quarantined" == (await server.row(Agent)).status


async def test_a_server_restored_from_a_backup_adopts_the_chain_once(server: Server):
    """With a raised generation an executor-proven higher chain is taken over, once; nobody is quarantined."""
    machine = await server.agent()
    backup = await server.row(Agent)
    for _ in range(3):
        await machine.refresh(server.client)
    columns = ("refresh_current", "refresh_previous", "refresh_generation", "refresh_expires_at")
    async with server.runtime.database.write() as session:
        await session.execute(update(Agent).values({name: getattr(backup, name) for name in columns}))
        await session.execute(update(ServerState).values(gen=1))

    adopted = await machine.refresh(server.client)

    assert (200, 5) == (adopted.status_code, adopted.json()["refresh_generation"])
    assert "agent.refresh_adopted" in await server.event_kinds()
    assert 200 == (await machine.refresh(server.client)).status_code
    assert "active" == (await server.row(Agent)).status


async def test_without_a_restore_nothing_is_adopted(server: Server):
    """A higher generation alone, on a server that was never restored, is a fork."""
    machine = await server.agent()
    machine.secret, machine.generation = new_secret(ENTROPY), 9

    assert "refresh_fork" == (await machine.refresh(server.client)).json()["code"]


async def test_an_agent_that_was_away_too_long_needs_approval(server: Server):
    """After 90 days the chain has lapsed: the agent waits for an operator, and its record is kept."""
    machine = await server.agent()
    server.clock.advance(REFRESH_SECONDS + 1)

    answer = await machine.refresh(server.client)

    assert (403, "agent_renewal_pending") == (answer.status_code, answer.json()["code"])
    assert "renewal_pending" == (await server.row(Agent)).status


async def test_the_state_must_be_signed_by_the_executor(server: Server):
    """The network process alone cannot claim a refresh generation."""
    machine = await server.agent()
    other = attrs.evolve(machine, executor=SigningKey.generate())

    answer = await machine.sign("/agent/token", machine.token_body(state=other.state()), with_token=False).send(
        server.client
    )

    assert 401 == answer.status_code


async def test_the_state_of_another_agent_is_refused(server: Server):
    """A genuine statement about somebody else proves nothing."""
    machine = await server.agent()

    answer = await machine.sign(
        "/agent/token",
        machine.token_body(state=machine.state(agent_id="00000000-0000-4000-8000-000000000000")),
        with_token=False,
    ).send(server.client)

    assert (401, "wrong_recipient") == (answer.status_code, answer.json()["code"])
