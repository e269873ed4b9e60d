"""Access tokens and the refresh chain: nothing is lost by a kill, nothing is asked for too often."""

import asyncio

import attrs
import pytest

from redflag_agent.answers import ServerRefusedError, UnreachableError
from redflag_agent.state import AccessToken, StateFile
from redflag_agent.tokens import NotRegisteredError, renewal_due
from redflag_core.testing import START
from tests.helpers.agents import OTHER, RAW, FakeMachine, agent_parts
from tests.helpers.stub_server import LostAnswerError, StubServer

HOUR = 3600


def token_requests(server):
    """How often a token was asked for."""
    return sum(path.endswith("/agent/token") for _, path in server.requests)


async def renew(parts):
    """Renew with what the machine shows."""
    await parts.tokens.renew(parts.identity.executor.evidence())


async def test_the_chain_moves_on_with_every_renewal(tmp_path):
    """Each answer makes the pending secret the current one, on disk."""
    async with agent_parts(tmp_path / "a") as parts:
        await parts.register()
        secrets = {parts.state.state.refresh.current}
        for _ in range(3):
            await renew(parts)
            secrets.add(parts.state.state.refresh.current)

        assert 4 == len(secrets)
        assert 3 == parts.server.only_agent().chain.generation == parts.state.state.refresh.generation
        assert parts.state.state.refresh.pending is None


async def test_the_successor_is_on_disk_before_it_is_sent(tmp_path):
    """When the request arrives, the agent can no longer forget what it committed to."""
    async with agent_parts(tmp_path / "a") as parts:
        await parts.register()
        seen = []
        parts.server.script.append(lambda request: seen.append(pending_on_disk(parts)))
        await renew(parts)

        assert [parts.state.state.refresh.current] == seen


async def test_an_agent_killed_between_send_and_store_recovers_by_itself(tmp_path):
    """The same pair is sent after a restart, is answered again, and the chain goes on without a fork."""
    server = StubServer()
    async with agent_parts(tmp_path / "a", server) as parts:
        await parts.register()
        await renew(parts)
        server.script.append(lose_token_answers(server))
        with pytest.raises(UnreachableError):
            await renew(parts)
    server.script.clear()

    async with agent_parts(tmp_path / "a", server, seed=77) as parts:
        await renew(parts)
        await renew(parts)

        assert "active" == server.only_agent().status
        assert [1, 2, 2, 2, 2, 3] == server.only_agent().generations
        assert server.only_agent().chain.generation == parts.state.state.refresh.generation


async def test_a_copied_refresh_secret_is_a_fork(tmp_path):
    """Two that go on from one secret: the second is refused with the server's code, and both are cut off."""
    server = StubServer()
    async with agent_parts(tmp_path / "a", server) as parts:
        await parts.register()
        copied = parts.state.state
        await renew(parts)
        await renew(parts)
        parts.state.update(**attrs.asdict(copied, recurse=False))

        with pytest.raises(ServerRefusedError) as refusal:
            await renew(parts)

        assert "refresh_fork" == refusal.value.problem
        assert "quarantined" == server.only_agent().status


async def test_a_server_restored_from_a_backup_adopts_the_chain(tmp_path):
    """The executor-signed higher generation brings a server that is behind up to date, once."""
    async with agent_parts(tmp_path / "a") as parts:
        await parts.register()
        backup = parts.server.only_agent().chain
        for _ in range(3):
            await renew(parts)
        parts.server.only_agent().chain = backup
        parts.server.gen = 1

        await renew(parts)

        assert "active" == parts.server.only_agent().status
        assert 4 == parts.state.state.refresh.generation


async def test_a_token_that_the_server_withdrew_is_renewed_once(tmp_path):
    """A 401 for the token leads to one renewal and one repetition, not to a loop."""
    async with agent_parts(tmp_path / "a") as parts:
        await parts.register()
        await parts.delivery().round()
        parts.server.withdraw_access_tokens()

        await parts.delivery().round()

        assert 2 == token_requests(parts.server)
        assert 2 == len(parts.server.only_agent().check_ins)


async def test_requests_at_the_same_time_renew_the_token_once(tmp_path):
    """Worn out, it is renewed by one of them; the others use what that one got. The chain does not fork."""
    async with agent_parts(tmp_path / "a") as parts:
        await parts.register()
        tokens, evidence = slow(parts).tokens, parts.identity.executor.evidence()

        answers = await asyncio.gather(
            *(tokens.post("/nowhere", b"{}", evidence) for _ in range(8)), return_exceptions=True
        )

        assert {"not_found"} == {answer.problem for answer in answers}
        assert [1] == parts.server.only_agent().generations


async def test_requests_whose_token_was_withdrawn_at_the_same_time_renew_it_once(tmp_path):
    """Each got a 401 for the same token: the second to hold the lock finds a new one there."""
    async with agent_parts(tmp_path / "a") as parts:
        await parts.register()
        tokens, evidence = slow(parts).tokens, parts.identity.executor.evidence()
        await tokens.ensure(evidence)
        parts.server.withdraw_access_tokens()

        answers = await asyncio.gather(
            *(tokens.post("/nowhere", b"{}", evidence) for _ in range(8)), return_exceptions=True
        )

        assert {"not_found"} == {answer.problem for answer in answers}
        assert [1, 2] == parts.server.only_agent().generations
        assert "active" == parts.server.only_agent().status


async def test_a_renewal_that_is_given_up_lets_the_next_one_ask_again(tmp_path):
    """With the same pair: a check-in that was cancelled in the middle leaves neither a lock nor a fork behind."""
    async with agent_parts(tmp_path / "a") as parts:
        await parts.register()
        tokens, evidence, asked = slow(parts).tokens, parts.identity.executor.evidence(), asyncio.Event()
        parts.server.script.append(lambda _request: asked.set())
        first = asyncio.create_task(tokens.ensure(evidence))
        await asked.wait()
        first.cancel()

        await tokens.ensure(evidence)

        assert [1, 1] == parts.server.only_agent().generations
        assert 1 == parts.state.state.refresh.generation


async def test_a_server_that_refuses_every_token_is_not_hammered(tmp_path):
    """Two refusals in a row are the answer."""
    async with agent_parts(tmp_path / "a") as parts:
        await parts.register()
        parts.server.script.append(
            lambda request: parts.server.withdraw_access_tokens() if "check-in" in request.path else None
        )

        with pytest.raises(ServerRefusedError) as refusal:
            await parts.delivery().round()

        assert "bad_token" == refusal.value.problem
        assert 2 == token_requests(parts.server)


async def test_changed_hardware_is_shown_with_a_new_token_before_anything_else(tmp_path):
    """A new disk in the same machine: the token is renewed with the new evidence, and all goes on."""
    async with agent_parts(tmp_path / "a") as parts:
        await parts.register()
        await parts.delivery().round()
        parts.machine.raw = attrs.evolve(RAW, disk_serial="NEW-DISK-9")

        await parts.delivery().round()

        assert 2 == token_requests(parts.server)
        assert parts.identity.executor.evidence().digest == parts.server.only_agent().evidence.digest


async def test_a_copied_state_directory_on_another_machine_is_refused(tmp_path):
    """No component matches: the copy gets the server's refusal, and the chain of the original stays."""
    server = StubServer()
    async with agent_parts(tmp_path / "a", server) as parts:
        await parts.register()
        await parts.delivery().round()
        generation = server.only_agent().chain.generation

    async with agent_parts(tmp_path / "a", server, machine=FakeMachine(OTHER), seed=4) as copy:
        with pytest.raises(ServerRefusedError) as refusal:
            await copy.delivery().round()

        assert "machine_mismatch" == refusal.value.problem
        assert generation == server.only_agent().chain.generation

    async with agent_parts(tmp_path / "a", server, seed=5) as original:
        await original.delivery().round()


@pytest.mark.parametrize(
    "passed, due",
    [(0, False), (21.5 * HOUR, False), (21.6 * HOUR, True), (24 * HOUR, True), (-HOUR, False)],
)
def test_a_token_is_renewed_in_the_last_tenth_of_its_life(passed, due):
    """Early enough for an outage, not so early that it costs anything."""
    now = int(START.timestamp())
    access = AccessToken("t", int(now - passed), 24 * HOUR, "e")

    assert due is renewal_due(access, "e", now=START)


def test_other_evidence_always_asks_for_a_new_token():
    """The token vouches for the evidence it was given for, and for no other."""
    access = AccessToken("t", int(START.timestamp()), 24 * HOUR, "e")

    assert renewal_due(access, "f", now=START)
    assert renewal_due(None, "e", now=START)


async def test_without_a_registration_there_is_a_sentence(tmp_path):
    """It says what to run."""
    async with agent_parts(tmp_path / "a") as parts:
        with pytest.raises(NotRegisteredError, match="redflag agent register"):
            await parts.delivery().round()

        assert [] == parts.server.requests


def slow(parts):
    """Let each request take some turns of the loop, so that others come in between."""
    handle = parts.http._transport.handle_async_request

    async def handle_slowly(request):
        await asyncio.sleep(0)
        response = await handle(request)
        for _ in range(20):
            await asyncio.sleep(0)
        return response

    parts.http._transport.handle_async_request = handle_slowly
    return parts


def pending_on_disk(parts):
    """The successor secret as the file has it."""
    return StateFile.open(parts.directory.state).state.refresh.pending


def lose_token_answers(server):
    """Break the connection before the answer of each token request, which was handled."""

    def step(request):
        if request.path.endswith("/agent/token"):
            server.answer(request)
            raise LostAnswerError

    return step
