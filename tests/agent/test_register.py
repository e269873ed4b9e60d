"""Becoming an agent: believed only when proven, repeated when the answer was lost."""

import attrs
import pytest

from redflag_agent.answers import ServerRefusedError, UnreachableError
from redflag_agent.register import register
from redflag_core import codec
from redflag_core.errors import MalformedError, UnknownKeyError, VerificationError, WrongRecipientError
from redflag_core.machine import RawMachine
from redflag_core.messages import Registered
from tests.helpers.agents import RAW, FakeMachine, agent_parts, new_id
from tests.helpers.stub_server import Answer, LostAnswerError, StubServer


async def test_a_machine_becomes_an_agent(tmp_path):
    """The record is made once and remembered over a restart."""
    async with agent_parts(tmp_path / "a") as parts:
        await parts.register()
        server = parts.server

    async with agent_parts(tmp_path / "a", server) as parts:
        assert server.only_agent().agent_id == parts.state.state.registration.agent_id
        assert "active" == parts.state.state.status


async def test_nothing_is_sent_about_this_machine_before_the_server_proved_itself(tmp_path):
    """A server whose root is not the one in the token gets no registration."""
    async with agent_parts(tmp_path / "a") as parts:
        with pytest.raises(UnknownKeyError):
            await parts.register(root_fp="0" * 64)

        assert [] == [path for method, path in parts.server.requests if method == "POST"]
        assert parts.state.state.registration is None


async def test_a_bundle_of_another_root_stops_the_registration(tmp_path):
    """A bundle that the root did not sign is not believed."""
    async with agent_parts(tmp_path / "a") as parts:
        other = StubServer(parts.clock)
        other.rotate_root()
        other.publish(version=1)
        parts.server.bundle = other.bundle

        with pytest.raises(UnknownKeyError):
            await parts.register()

        assert {} == parts.server.agents


async def test_a_lost_answer_is_asked_for_again_with_the_same_keys(tmp_path):
    """Killed after sending, the agent registers again as the same agent, though the token is used up."""
    server = StubServer()
    async with agent_parts(tmp_path / "a", server) as parts:
        token = server.registration_token()
        server.script.append(lose_answers_of(server, "/agents/register"))
        with pytest.raises(UnreachableError):
            await register_with(parts, token)
    server.script.clear()

    async with agent_parts(tmp_path / "a", server, seed=9) as parts:
        await register_with(parts, token)

        assert server.only_agent().agent_id == parts.state.state.registration.agent_id


async def test_a_used_up_token_is_refused_with_the_servers_sentence(tmp_path):
    """The server's code and sentence reach whoever asked."""
    async with agent_parts(tmp_path / "a") as parts:
        parts.server.tokens.clear()
        token = parts.server.registration_token()
        parts.server.tokens.clear()

        with pytest.raises(ServerRefusedError, match="ask for a new token") as refusal:
            await register_with(parts, token)

        assert ("registration_refused", 403) == (refusal.value.problem, refusal.value.status)


async def test_a_machine_id_that_another_agent_has_is_replaced(tmp_path):
    """Told that its id is a duplicate, the agent shows its own random one, marks it, and registers."""
    server = StubServer()
    twin = FakeMachine(RawMachine(machine_id=RAW.machine_id, boot_id=RAW.boot_id))
    async with agent_parts(tmp_path / "a", server) as parts:
        await parts.register()

    async with agent_parts(tmp_path / "b", server, machine=twin, seed=5) as parts:
        await parts.register()

        records = list(server.agents.values())
        assert 2 == len(records)
        assert records[0].evidence.machine_id != records[1].evidence.machine_id
        assert ("machine_id",) == records[1].evidence.weak
        assert parts.state.state.replace_machine_id


async def test_a_replaced_machine_id_stays_replaced_after_a_restart(tmp_path):
    """The replacement and the mark are on disk, so the keys stay and the evidence does not flip back."""
    server = StubServer()
    async with agent_parts(tmp_path / "a", server) as parts:
        await parts.register()
    async with agent_parts(tmp_path / "b", server, seed=5) as parts:
        await parts.register()
        first = parts.identity.agent_key

    async with agent_parts(tmp_path / "b", server, seed=6) as parts:
        await parts.delivery().round()

        assert first == parts.identity.agent_key
        assert 2 == len(server.agents)


@pytest.mark.parametrize(
    "changes, error",
    [({"server": new_id(99)}, WrongRecipientError), ({"agent_id": "not-a-uuid"}, MalformedError)],
)
async def test_an_answer_that_is_not_of_this_server_is_not_taken(tmp_path, changes, error):
    """An answer that names another server, or gives no id, leaves the agent unregistered."""
    async with agent_parts(tmp_path / "a") as parts:
        good = Registered(1, new_id(5), parts.server.id, "active", new_id(7))
        forged = codec.dump(attrs.evolve(good, **changes))
        parts.server.script.append(
            lambda request: Answer(201, forged) if request.path.endswith("/register") else None
        )

        with pytest.raises(error):
            await parts.register()

        assert parts.state.state.registration is None


async def test_roots_are_followed_to_the_newest(tmp_path):
    """After two rotations the bundle is signed by root 3, reached from the pinned root 1."""
    server = StubServer()
    server.rotate_root()
    server.rotate_root()
    server.publish(version=4, epoch=2)
    async with agent_parts(tmp_path / "a", server) as parts:
        await parts.register()

        assert (4, 2) == (parts.state.state.bundle_version, parts.state.state.bundle_epoch)


async def test_a_gap_in_the_root_chain_is_refused(tmp_path):
    """A chain that lacks a link does not lead to the newest root."""
    server = StubServer()
    server.rotate_root()
    server.rotate_root()
    server.publish(version=1)
    del server.roots[1]
    async with agent_parts(tmp_path / "a", server) as parts:
        with pytest.raises(VerificationError):
            await parts.register()


def register_with(parts, token):
    """Register with a given token."""
    return register(parts.client, token, identity=parts.identity, state=parts.state, trust=parts.trust)


def lose_answers_of(server, suffix):
    """Handle requests whose path ends so, and break the connection before the answer."""

    def step(request):
        if request.path.endswith(suffix):
            server.answer(request)
            raise LostAnswerError
        return

    return step
