"""
Fifty at once, over two replicas of one server: whatever they race for, one gets it, and all get an answer.

With SQLite there is one server, whose writers take turns: its races are beside what they are about.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import attrs
import httpx
import pytest
import pytest_asyncio

from redflag_core.keys import SigningKey
from redflag_core.lifecycle import AgentAction
from redflag_core.messages import ClientError, Errors
from redflag_core.system import SystemEntropy
from redflag_core.testing import FrozenClock
from redflag_server.accounts.permissions import UserRole
from redflag_server.accounts.setup import issue_setup_link
from redflag_server.accounts.tables import SetupLink, User
from redflag_server.accounts.users import disable_user
from redflag_server.agents.operations import act as act_on_agent
from redflag_server.agents.tables import Agent, RegistrationToken
from redflag_server.checkin.nonces import purge_nonces
from redflag_server.client_errors import tables as errors
from redflag_server.commands import queue
from redflag_server.commands.tables import Command, CommandDelivery, CommandStatement
from redflag_server.commands.upkeep import lapse_leases
from redflag_server.db.scope import whole_installation
from redflag_server.jobs.service import Job, prepare, run_due
from redflag_server.jobs.tables import Schedule
from redflag_server.packages.tables import Package, ScanReport
from redflag_server.problems import ConflictError
from redflag_server.trust.operator_keys import add_operator_key
from redflag_server.trust.service import current_bundle, read_bundle
from redflag_server.trust.tables import TrustDocument
from tests.helpers.approvals import public
from tests.helpers.databases import Place
from tests.helpers.fleet import full_report, new_id, package
from tests.helpers.operators import first_place, make_user
from tests.helpers.orders import new_command, order, plan
from tests.helpers.patching import new_ward
from tests.helpers.server import Server, running

pytestmark = pytest.mark.postgresql(only=True)

MANY = 50
TWO_BODIES = 503
"""Of one machine, a server reads two large bodies at once."""

OPERATOR = whole_installation("user:test")


@attrs.frozen
class Replicas:
    """Servers that share a database."""

    servers: list[Server]

    @property
    def first(self) -> Server:
        """One of them, to look at what came of it."""
        return self.servers[0]

    async def all_at_once(self, what: Any, many: int = MANY) -> list[Any]:
        """What *what* comes to, called with a number and the servers in turn, errors included."""
        calls = [what(number, self.servers[number % len(self.servers)]) for number in range(many)]
        return await asyncio.gather(*calls, return_exceptions=True)

    async def requests(self, what: Any, many: int = MANY) -> list[int]:
        """The sorted statuses of what *what* sends with the client of each server in turn."""
        answers = await self.all_at_once(lambda number, server: what(number, server.client), many)
        return sorted(answer.status_code for answer in answers)


@pytest_asyncio.fixture
async def replicas(database: Place, tmp_path: Path) -> AsyncIterator[Replicas]:
    """Two servers on one database."""
    clock = FrozenClock()
    async with running(tmp_path / "first", clock=clock) as first:
        database.share(tmp_path / "first", tmp_path / "second")
        async with running(tmp_path / "second", clock=clock) as second:
            yield Replicas([first, second])


# --- registration, tokens, nonces ---


async def test_seats_are_never_oversold(replicas: Replicas):
    """Five seats make five machines."""
    server = replicas.first
    token = await server.token(seats=5)
    machines = [server.machine() for _ in range(MANY)]

    codes = await replicas.requests(lambda number, client: machines[number].register(client, token))

    assert [201] * 5 + [403] * 45 == codes
    assert (5, 5) == (len(await server.rows(Agent)), (await server.row(RegistrationToken)).used)


async def test_the_same_registration_takes_one_seat(replicas: Replicas):
    """A machine that sends again and again is one machine."""
    server = replicas.first
    machine, token = server.machine(), await server.token(seats=MANY)

    codes = await replicas.requests(lambda _, client: machine.register(client, token))

    assert {201} == set(codes)
    assert (1, 1) == (len(await server.rows(Agent)), (await server.row(RegistrationToken)).used)


async def test_a_machine_id_belongs_to_one_machine(replicas: Replicas):
    """Copies of one disk image that start together do not all get in, whatever their tokens."""
    server = replicas.first
    model = server.machine()
    machines = [server.machine(machine_id=model.machine_id) for _ in range(MANY)]
    tokens = [await server.token() for _ in machines]

    codes = await replicas.requests(lambda number, client: machines[number].register(client, tokens[number]))

    assert [201] + [409] * 49 == codes
    assert 1 == len(await server.rows(Agent))


async def test_a_nonce_is_claimed_once(replicas: Replicas):
    """Fifty copies of one request: one is accepted, whichever replica it reaches."""
    machine = await replicas.first.agent()
    signed = machine.sign("/agent/check-in", machine.check_in_body())

    codes = await replicas.requests(lambda _, client: signed.send(client))

    assert [200] + [401] * 49 == codes


async def test_a_purge_makes_no_nonce_free(replicas: Replicas):
    """Nonces are forgotten while they are claimed: none is accepted again, and the purge comes to its end."""
    server = replicas.first
    machine = await server.agent()
    signed = [machine.sign("/agent/check-in", machine.check_in_body()) for _ in range(10)]
    assert {200} == {(await one.send(server.client)).status_code for one in signed}
    server.clock.advance(299)

    async def race(number: int, on: Server) -> Any:
        if number % 10 == 9:
            await purge_nonces(on.runtime)
            return httpx.Response(401)
        return await signed[number % 10].send(on.client)

    answers = await replicas.all_at_once(race)

    assert {401} == {answer.status_code for answer in answers}


async def test_the_same_refresh_is_one_step(replicas: Replicas):
    """The chain moves on once, and nobody is taken for a copy."""
    server = replicas.first
    machine = await server.agent()
    sent = [machine.sign("/agent/token", machine.token_body(), with_token=False) for _ in range(MANY)]

    codes = await replicas.requests(lambda number, client: sent[number].send(client))

    agent = await server.row(Agent)
    assert ({200}, 2, "active") == (set(codes), agent.refresh_generation, agent.status)


# --- reports and errors ---


async def test_a_report_is_stored_once(replicas: Replicas):
    """The same report over and over: one record, and the rows of it."""
    server = replicas.first
    machine = await server.agent()
    report = full_report([package("bash"), package("curl")])

    codes = await replicas.requests(lambda _, client: machine.report(client, report))

    assert {200, TWO_BODIES} >= set(codes)
    assert (1, 2) == (len(await server.rows(ScanReport)), len(await server.rows(Package)))


async def test_reports_of_one_machine_take_turns(replicas: Replicas):
    """Of full reports that differ, the rows are exactly those of one of them."""
    server = replicas.first
    machine = await server.agent()
    sent = [full_report([package("bash"), package(f"p{number}")]) for number in range(MANY)]

    codes = await replicas.requests(lambda number, client: machine.report(client, sent[number]))

    assert {200, TWO_BODIES} >= set(codes)
    present = {row.name for row in await server.rows(Package, Package.present)}
    assert present in [{"bash", f"p{number}"} for number in range(MANY)]


async def test_errors_are_counted_once(replicas: Replicas):
    """Batches with the same error are one row that counts them; the same batch again does not count."""
    server = replicas.first
    machine = await server.agent()
    error = ClientError("transport", "Timeout", "no answer", 1, 1, 1)
    batches = [Errors(1, new_id(), (error,)) for _ in range(MANY // 2)]

    codes = await replicas.requests(lambda number, client: machine.send_errors(client, batches[number // 2]))

    stored = await server.rows(errors.ErrorBatch)
    assert {200, TWO_BODIES} >= set(codes)
    assert len(stored) == (await server.row(errors.ClientError)).count


# --- commands and plans ---


async def test_orders_of_the_same_make_one_command(replicas: Replicas):
    """One is made, and everybody is given it."""
    server = replicas.first
    machine = await server.agent()

    async def give(_: int, on: Server) -> UUID:
        async with on.runtime.database.write() as session:
            command, _made = await queue.order(
                session, "user:alice", new_command(machine.agent_id), on.clock.now()
            )
            return command.id

    made = await replicas.all_at_once(give)

    assert {row.id for row in await server.rows(Command)} == set(made)
    assert 1 == len(set(made))


async def test_a_command_is_leased_once(replicas: Replicas):
    """Fifty check-ins at the same moment: one of them brings it, under one number."""
    server = replicas.first
    machine = await server.agent()
    await order(server, machine.agent_id)

    brought = await replicas.all_at_once(lambda _, on: machine.fetch(on.client))

    assert 1 == sum(len(wires) for wires in brought)
    assert 1 == len(await server.rows(CommandDelivery))


async def test_leases_lapse_while_statements_arrive(replicas: Replicas):
    """A command that is accepted at the moment at which its lease ends is accepted, once."""
    server = replicas.first
    machine = await server.agent()
    await order(server, machine.agent_id)
    await machine.learn_trust(server.client)
    (wire,) = await machine.fetch(server.client)
    acceptance = machine.execute(wire)
    server.clock.advance(3600)
    await machine.refresh(server.client)

    async def race(number: int, on: Server) -> Any:
        return await (lapse_leases(on.runtime) if number % 5 == 0 else machine.deliver(on.client, acceptance))

    answers = await replicas.all_at_once(race)

    assert {None, 200, TWO_BODIES} >= {answer and answer.status_code for answer in answers}
    assert ("accepted", 1) == ((await server.row(Command)).state, len(await server.rows(CommandStatement)))


async def test_a_revoked_machine_keeps_nothing_that_waits(replicas: Replicas):
    """Orders that race a revocation are refused, or ended by it: none is left."""
    server = replicas.first
    machine = await server.agent()

    async def race(number: int, on: Server) -> None:
        if number == MANY // 2:
            await act_on_agent(on.runtime, OPERATOR, UUID(machine.agent_id), AgentAction.REVOKE, "stolen")
            return
        async with on.runtime.database.write() as session:
            new = new_command(machine.agent_id, plan(f"p{number}"))
            await queue.order(session, "user:alice", new, on.clock.now())

    answers = await replicas.all_at_once(race)

    assert {ConflictError} >= {type(answer) for answer in answers if answer is not None}
    assert {"cancelled"} >= {row.state for row in await server.rows(Command)}


async def test_a_plan_is_installed_once(replicas: Replicas):
    """Fifty who press the button order one installation."""
    ward = await new_ward(replicas.first, "curl")
    await ward.decide("approve", "curl")
    planned = await ward.plan("curl")
    body = {"reason": "Patch day"}

    codes = await replicas.requests(
        lambda _, client: client.post(f"/api/v1/plans/{planned['id']}/install", json=body, headers=ward.headers)
    )

    upgrades = await replicas.first.rows(Command, Command.type == "packages.upgrade")
    assert ({200}, 1) == (set(codes), len(upgrades))


async def test_decisions_and_installations_do_not_wait_in_circles(replicas: Replicas):
    """A package is excluded while its plan is installed: one of the two comes first, and both are told."""
    server = replicas.first
    wards = [await new_ward(server, "curl") for _ in range(10)]
    races = []
    for ward in wards:
        await ward.decide("approve", "curl")
        races += [
            f"plans/{(await ward.plan('curl'))['id']}/install",
            f"packages/{(await ward.row('curl')).id}/exclude",
        ]

    codes = await replicas.requests(
        lambda number, client: client.post(
            f"/api/v1/{races[number]}", json={"reason": "Patch day"}, headers=wards[number // 2].headers
        ),
        len(races),
    )

    assert [200] * 10 + [409] * 10 == codes


# --- what there is one of ---


async def test_a_schedule_runs_once(replicas: Replicas):
    """However many processes look for what is due."""
    runs: list[int] = []

    async def run(_runtime: Any) -> None:
        runs.append(1)

    jobs = {"a-test": Job(timedelta(hours=1), run)}
    await replicas.all_at_once(lambda _, on: prepare(on.runtime, jobs))
    await replicas.all_at_once(lambda _, on: run_due(on.runtime, jobs))

    assert [1] == runs
    assert 1 == len(await replicas.first.rows(Schedule, Schedule.name == "a-test"))


async def test_one_owner_stays(replicas: Replicas):
    """Owners who disable each other at the same moment do not lock everybody out."""
    server = replicas.first
    for number in range(6):
        await make_user(server.runtime, f"owner{number}", UserRole.OWNER)
    owners = [user.id for user in await server.rows(User)]

    answers = await replicas.all_at_once(
        lambda number, on: disable_user(on.runtime, OPERATOR, owners[number % 6], "gone"), 12
    )

    left = await server.rows(User, User.disabled_at.is_(None))
    assert 1 == len(left)
    assert {ConflictError} == {type(each) for each in answers if isinstance(each, Exception)}


async def test_a_set_up_link_is_made_over_and_over(replicas: Replicas):
    """Replicas that start together show a link each; the last one counts."""
    links = await replicas.all_at_once(lambda _, on: issue_setup_link(on.runtime))

    assert {str} == {type(link) for link in links}
    assert 1 == len(await replicas.first.rows(SetupLink))


async def test_no_key_is_lost_from_the_bundle(replicas: Replicas):
    """Keys that are added at the same moment are all in the last bundle, each version issued once."""
    server = replicas.first
    place = await first_place(server.runtime)
    keys = [SigningKey.from_seed(SystemEntropy().token(32)) for _ in range(20)]

    await replicas.all_at_once(
        lambda number, on: add_operator_key(
            on.runtime,
            public_key=public(keys[number]),
            name=f"key {number}",
            organizations={place.organization_id},
            actor="cli:test",
        ),
        20,
    )

    async with server.runtime.database.read() as session:
        held = {key.open().key_id for key in read_bundle(await current_bundle(session)).keys}
    assert {key.verify_key.key_id for key in keys} <= held
    assert 21 == len(await server.rows(TrustDocument, TrustDocument.kind == "bundle"))
