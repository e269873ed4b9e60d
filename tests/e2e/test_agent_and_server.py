"""The real agent and the real server, in one process and one time: what each promises holds between the two."""

import contextlib
import shutil

import attrs
import httpx2
import pytest

from redflag_agent.answers import ServerRefusedError, UnreachableError
from redflag_agent.register import register
from redflag_core.errors import CircuitOpenError
from redflag_core.machine import RawMachine
from redflag_core.scanning import PackageState, failed_report
from redflag_server.agents.tables import Agent
from redflag_server.packages.tables import Package as PackageRow
from tests.helpers.agents import OTHER, RAW, FakeMachine, agent_parts, failed, new_id, package, scan_report
from tests.helpers.server import AUTHORITY, running
from tests.helpers.stub_server import StubServer

MANY = tuple(package(f"p{number}") for number in range(50))


class Way(httpx2.AsyncBaseTransport):
    """The way to the server, which loses the answers to paths that hold ``losing``."""

    def __init__(self, app):
        self.asgi = httpx2.ASGITransport(app)
        self.losing = None
        self.paths = []

    async def handle_async_request(self, request):
        """Hand on, and lose the answer if so wanted."""
        self.paths.append(request.url.path)
        response = await self.asgi.handle_async_request(request)
        if self.losing is not None and self.losing in request.url.path:
            raise httpx2.ReadError("the connection broke", request=request)
        return response


@pytest.fixture
async def server(tmp_path):
    """A real server with a clock that stands."""
    async with running(tmp_path / "server") as server:
        yield server


@contextlib.asynccontextmanager
async def agent(path, server, **options):
    """The parts of an agent of *server*, and the way to it."""
    way = Way(server.app)
    stand_in = StubServer(server.clock, addresses=(f"http://{AUTHORITY}",))
    async with agent_parts(path, stand_in, transport=way, **options) as parts:
        yield parts, way


async def enrol(parts, server, **changes):
    """Register with a new token."""
    token = await server.token(**changes)
    await register(parts.client, token, identity=parts.identity, state=parts.state, trust=parts.trust)


async def deliver(parts, *packages, number=1):
    """Scan and bring it to the server, on a round as after a start."""
    parts.outbox.record_scan(scan_report(*packages), report_id=new_id(number))
    await parts.delivery().round()


async def live(parts, token):
    """What a start of the agent does: register if there is no record, scan, deliver."""
    if parts.state.state.registration is None:
        await register(parts.client, token, identity=parts.identity, state=parts.state, trust=parts.trust)
    await deliver(parts, *MANY)


async def held(server):
    """Packages on record, with their states."""
    return {row.name: row.state for row in await server.rows(PackageRow)}


async def test_a_machine_registers_and_its_packages_are_on_record(tmp_path, server):
    """From the token to the packages, over signed requests."""
    async with agent(tmp_path / "a", server) as (parts, _):
        await enrol(parts, server)
        await deliver(parts, package("a"), package("b", available="2.0"))

        record = await server.row(Agent)
        assert (parts.state.state.registration.agent_id, "active") == (str(record.id), record.status)
        assert {"a": "current", "b": "available"} == await held(server)


@pytest.mark.parametrize("failure", [failed("dpkg is broken"), CircuitOpenError("left alone", retry_after=9.0)])
async def test_changes_and_failures_arrive(tmp_path, server, failure):
    """A delta against what was accepted; a failed scan makes packages unknown, the next good one known."""
    async with agent(tmp_path / "a", server) as (parts, way):
        await enrol(parts, server)
        await deliver(parts, *MANY)
        await deliver(parts, package("p0", available="2.0"), *MANY[1:-1], number=2)
        states = await held(server)
        assert ("available", "not_applicable") == (states["p0"], states["p49"])

        broken = failed_report(failure, scanner="apt", manager="apt", taken_at=1_800_000_100, duration_ms=1)
        parts.outbox.record_scan(broken, report_id=new_id(3))
        await parts.delivery().round()
        assert PackageState.UNKNOWN == (await held(server))["p1"]

        later = attrs.evolve(scan_report(*MANY), taken_at=1_800_000_200)
        parts.outbox.record_scan(later, report_id=new_id(4))
        await parts.delivery().round()
        assert {"current"} == set((await held(server)).values())
        assert () == parts.outbox.pending()

        way.paths.clear()
        await parts.delivery().round()
        assert ["/api/v1/agent/check-in"] == way.paths


@pytest.mark.parametrize("lost", ["/register", "/agent/token", "/check-in", "/reports/", "/errors"])
async def test_whichever_answer_is_lost_the_agent_goes_on_by_itself(tmp_path, server, lost):
    """Killed between send and store, and started again: one record, one seat, one chain, everything delivered."""
    token = await server.token()
    async with agent(tmp_path / "a", server) as (parts, way):
        way.losing = lost
        parts.errors.record("scanner.apt", failed("locked"))
        with pytest.raises(UnreachableError):
            await live(parts, token)

    async with agent(tmp_path / "a", server, seed=1) as (parts, _):
        await live(parts, token)
        await parts.tokens.renew(parts.identity.executor.evidence())

        record = await server.row(Agent)
        assert ("active", 50) == (record.status, len(await held(server)))
        assert parts.state.state.refresh.generation == record.refresh_generation
        assert (None, ()) == (parts.errors.batch(), parts.outbox.pending())


async def test_the_state_copied_to_another_machine_is_refused_and_the_original_goes_on(tmp_path, server):
    """No component matches: 403, an event that says why, the record as it was."""
    async with agent(tmp_path / "a", server) as (parts, _):
        await enrol(parts, server)
        await deliver(parts, *MANY)
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    async with agent(tmp_path / "b", server, machine=FakeMachine(OTHER), seed=1) as (copy, _):
        with pytest.raises(ServerRefusedError) as refusal:
            await copy.delivery().round()
    assert "machine_mismatch" == refusal.value.problem
    assert "agent.machine_mismatch" in await server.event_kinds()

    async with agent(tmp_path / "a", server, seed=2) as (parts, _):
        await deliver(parts, *MANY, package("new"), number=2)
    assert ("active", "current") == ((await server.row(Agent)).status, (await held(server))["new"])


async def test_a_refresh_secret_used_by_two_cuts_both_off(tmp_path, server):
    """The same machine twice: the second successor is a fork, and neither gets anything any more."""
    async with agent(tmp_path / "a", server) as (parts, _):
        await enrol(parts, server)
        await deliver(parts, *MANY)
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    async with (
        agent(tmp_path / "a", server, seed=1) as (one, _),
        agent(tmp_path / "b", server, seed=2) as (two, _),
    ):
        await one.tokens.renew(one.identity.executor.evidence())
        problems = []
        for parts in (two, one):
            with pytest.raises(ServerRefusedError) as refusal:
                await parts.tokens.renew(parts.identity.executor.evidence())
            problems.append(refusal.value.problem)

    assert ["refresh_fork", "agent_quarantined"] == problems
    assert "quarantined" == (await server.row(Agent)).status


async def test_a_duplicate_machine_id_becomes_a_second_agent(tmp_path, server):
    """Two machines of one badly made image: the second shows a random id, marked as weak."""
    bare = RawMachine(machine_id=RAW.machine_id)
    for number, name in enumerate("ab"):
        async with agent(tmp_path / name, server, machine=FakeMachine(bare), seed=number) as (parts, _):
            await enrol(parts, server)
            await parts.delivery().round()

    records = await server.rows(Agent)
    assert 2 == len({record.machine_binding for record in records})
    assert [[], ["machine_id"]] == sorted(list(record.evidence["weak"]) for record in records)


@pytest.mark.parametrize("offset", [-7 * 86_400, 7 * 86_400])
async def test_a_machine_with_a_wrong_clock_becomes_and_stays_an_agent(tmp_path, server, offset):
    """A week off: the server says what time it is, and only the signatures are shifted."""
    wrong = type(server.clock)(server.clock.now())
    wrong.jump(offset)
    async with agent(tmp_path / "a", server, clock=wrong) as (parts, _):
        await enrol(parts, server)
        await deliver(parts, *MANY)

        assert 50 == len(await held(server))


async def test_new_hardware_in_the_same_machine_is_taken_over(tmp_path, server):
    """The token is renewed with the new evidence, the record follows, and nothing is interrupted."""
    async with agent(tmp_path / "a", server) as (parts, _):
        await enrol(parts, server)
        await deliver(parts, *MANY)
        parts.machine.raw = attrs.evolve(RAW, disk_serial="NEW-DISK-1")
        await deliver(parts, *MANY, package("new"), number=2)

    assert "agent.evidence_changed" in await server.event_kinds()
    assert 51 == len(await held(server))


async def test_an_agent_that_needs_approval_waits_with_its_report(tmp_path, server):
    """It checks in, and stores nothing until somebody approved it."""
    async with agent(tmp_path / "a", server) as (parts, way):
        await enrol(parts, server, needs_approval=True)
        await deliver(parts, *MANY)

    assert "pending" == parts.state.state.status
    assert {} == await held(server)
    assert not [path for path in way.paths if "/reports/" in path]


async def test_everything_holds_over_a_restart_of_the_server(tmp_path):
    """The agent notices nothing: its token, its chain and the base of its deltas are the server's too."""
    async with running(tmp_path / "server") as server:
        async with agent(tmp_path / "a", server) as (parts, _):
            await enrol(parts, server)
            await deliver(parts, *MANY)
        clock = server.clock

    async with running(tmp_path / "server", clock=clock) as server:
        async with agent(tmp_path / "a", server, seed=1) as (parts, way):
            await deliver(parts, *MANY, package("new"), number=2)

        assert ["/api/v1/agent/check-in", "/api/v1/agent/reports/apt"] == way.paths
        assert 51 == len(await held(server))
