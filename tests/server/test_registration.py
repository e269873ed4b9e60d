"""Registration: seats, repeats, conflicts, and who may not come in."""

import asyncio
from datetime import timedelta
from typing import Any

import attrs
import pytest

from redflag_core import codec
from redflag_core.encoding import b64encode
from redflag_core.enrolment import new_secret
from redflag_core.keys import SigningKey
from redflag_core.messages import PublicKey
from redflag_core.system import SystemEntropy
from redflag_server.agents.tables import Agent, RegistrationToken
from tests.helpers.fleet import ENTROPY
from tests.helpers.server import Server


async def test_an_agent_registers_with_a_token(server: Server):
    """A machine with a token becomes an active agent of the token's organization, and an event says so."""
    machine = server.machine()

    answer = await machine.register(server.client, await server.token())

    agent = await server.row(Agent)
    assert 201 == answer.status_code
    assert ("active", str(agent.id)) == (answer.json()["status"], answer.json()["agent_id"])
    assert "agent.registered" in await server.event_kinds()


async def test_fifty_concurrent_registrations_on_five_seats_make_five_agents(server: Server):
    """Seats are never oversold."""
    token = await server.token(seats=5)
    machines = [server.machine() for _ in range(50)]

    answers = await asyncio.gather(*(machine.register(server.client, token) for machine in machines))

    codes = sorted(answer.status_code for answer in answers)
    assert [201] * 5 + [403] * 45 == codes
    assert 5 == len(await server.rows(Agent))
    assert 5 == (await server.row(RegistrationToken)).used


async def test_the_same_registration_again_costs_no_seat(server: Server):
    """A lost answer is repeated, also after the token expired."""
    machine, token = server.machine(), await server.token(seats=2)
    first = await machine.register(server.client, token)
    server.clock.advance(2 * 24 * 3600)

    again = await machine.register(server.client, token)

    assert first.json() == again.json()
    assert (1, 1) == (len(await server.rows(Agent)), (await server.row(RegistrationToken)).used)


async def test_the_same_key_with_other_data_is_a_conflict(server: Server):
    """A record is never taken over: another secret, machine or executor with a known key is 409."""
    machine, token = server.machine(), await server.token(seats=9)
    await machine.register(server.client, token)
    before = await server.dump()
    for change in (
        {"secret": new_secret(ENTROPY)},
        {"machine_id": ENTROPY.token(16)},
        {"executor": SigningKey.generate()},
        {"key": SigningKey.generate()},
    ):
        other = attrs.evolve(machine, **change)
        answer = await other.register(server.client, token)
        assert (409, "registration_conflict") == (answer.status_code, answer.json()["code"]), change
        assert before == await server.dump()


async def test_two_agents_with_one_machine_id_are_told_apart(server: Server):
    """A duplicate machine id is refused with its own code, and with a random one the machine gets in."""
    token = await server.token(seats=5)
    one = server.machine()
    await one.register(server.client, token)

    other = server.machine(machine_id=one.machine_id)
    refused = await other.register(server.client, token)
    other.machine_id = ENTROPY.token(16)
    accepted = await other.register(server.client, token)

    assert (409, "duplicate_machine_id") == (refused.status_code, refused.json()["code"])
    assert (201, 2) == (accepted.status_code, (await server.row(RegistrationToken)).used)


@pytest.mark.parametrize(
    "changes",
    [
        {"expires_at": timedelta(seconds=-1)},
        {"revoked_at": timedelta(0)},
        {"seats": 0},
        {"cidr": "10.0.0.0/8"},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_a_token_that_gives_no_seat_is_refused(server: Server, changes: dict[str, Any]):
    """Expired, revoked, used up, or not for this address: 403, and nobody is registered."""
    values = {
        name: server.clock.now() + value if isinstance(value, timedelta) else value
        for name, value in changes.items()
    }
    machine, token = server.machine(), await server.token(**values)

    answer = await machine.register(server.client, token)

    assert (403, "registration_refused") == (answer.status_code, answer.json()["code"])
    assert [] == await server.rows(Agent)


async def test_a_guessed_token_is_refused_like_an_expired_one(server: Server):
    """An unknown id, a wrong secret and an expired token get the same sentence."""
    token = await server.token()
    expired = await server.token(expires_at=server.clock.now() - timedelta(seconds=1))
    tries = [
        expired,
        attrs.evolve(token, secret=new_secret(SystemEntropy())),
        attrs.evolve(token, id="00000000-0000-4000-8000-000000000000"),
    ]
    answers = []
    for tried in tries:
        machine = server.machine()
        body = machine.register_body(attrs.evolve(tried, id=token.id))
        body = attrs.evolve(body, registration_token=tried.credential)
        # The proof names another token id for the last, which is refused first: prove the proof apart.
        if tried.id == token.id:
            answers.append(await machine.sign("/agents/register", body, with_token=False).send(server.client))
    answers.append(await server.machine().register(server.client, expired))

    assert {(403, answers[0].json()["detail"])} == {(a.status_code, a.json()["detail"]) for a in answers}


async def test_a_token_from_the_right_network_is_accepted(server: Server):
    """A token limited to a network works from it."""
    answer = await server.machine().register(server.client, await server.token(cidr="127.0.0.0/8"))

    assert 201 == answer.status_code


async def test_a_pending_agent_stores_no_data(server: Server):
    """An unapproved agent may check in and learns that it waits; its reports are refused."""
    from tests.helpers.fleet import full_report, package

    machine = await server.machine().enrol(server.client, await server.token(needs_approval=True))

    check_in = await machine.check_in(server.client)
    report = await machine.report(server.client, full_report([package("bash")]))

    assert (200, "pending") == (check_in.status_code, check_in.json()["status"])
    assert (403, "agent_pending") == (report.status_code, report.json()["code"])


async def test_the_executor_must_have_signed_exactly_this(server: Server):
    """A proof for another key, machine, server, root or token is refused."""
    token = await server.token(seats=9)
    machine = server.machine()
    other = server.machine()
    good = machine.register_body(token)
    foreign = [
        attrs.evolve(good, executor_proof=other.register_body(token).executor_proof),
        attrs.evolve(good, evidence=b64encode(other.evidence_envelope())),
        attrs.evolve(good, executor_key=PublicKey.of(other.executor)),
        attrs.evolve(good, executor_proof=good.evidence),
        machine.register_body(attrs.evolve(token, server="00000000-0000-4000-8000-000000000000")),
        machine.register_body(attrs.evolve(token, root_fp="0" * 64)),
        attrs.evolve(good, executor_proof="AAAA"),
        attrs.evolve(good, evidence="?"),
    ]
    for body in foreign:
        answer = await machine.sign("/agents/register", body, with_token=False).send(server.client)
        assert 400 <= answer.status_code < 500
        assert "application/problem+json" == answer.headers["content-type"]
    assert [] == await server.rows(Agent)


async def test_one_key_cannot_be_agent_and_executor(server: Server):
    """The two keys must differ: one compromise must not be two."""
    machine = server.machine()
    machine.executor = machine.key

    answer = await machine.register(server.client, await server.token())

    assert 401 == answer.status_code


async def test_a_registration_signed_by_another_key_is_refused(server: Server):
    """The request must be signed by the key that it registers."""
    machine = server.machine()
    body = machine.register_body(await server.token())
    machine.key = SigningKey.generate()

    answer = await machine.sign("/agents/register", body, with_token=False).send(server.client)

    assert (401, "bad_signature") == (answer.status_code, answer.json()["code"])


@pytest.mark.parametrize(
    "damage",
    [
        {"unknown": 1},
        {"hostname": ""},
        {"hostname": "a" * 254},
        {"hostname": "a\u0000b"},
        {"refresh_hash": "F" * 64},
        {"refresh_hash": 7},
        {"agent_key": {"key": "AAAA", "key_type": "ed25519"}},
        {"agent_key": {"key": "AAAA", "key_type": "rsa"}},
        {"registration_token": "x" * 129},
        {"versions": {"agent": "1", "protocol": []}},
        {"os": None},
        {"v": 2},
    ],
    ids=str,
)
async def test_a_malformed_registration_is_refused(server: Server, damage: dict[str, Any]):
    """Unknown fields and values out of bounds are 400, never 500, and nothing changes."""
    from redflag_core.encoding import dump_json

    machine = server.machine()
    body = codec.unstructure(machine.register_body(await server.token()))
    before = await server.dump()

    answer = await machine.sign("/agents/register", dump_json({**body, **damage}), with_token=False).send(
        server.client
    )

    assert (400, "malformed") == (answer.status_code, answer.json()["code"])
    assert before == await server.dump()


async def test_no_secret_is_stored(server: Server):
    """Neither the registration secret nor the refresh secret can be read from the database."""
    token = await server.token()
    machine = await server.machine().enrol(server.client, token)

    stored = repr(await server.dump())

    for secret in (token.secret, machine.secret, machine.access_token):
        assert secret not in stored
