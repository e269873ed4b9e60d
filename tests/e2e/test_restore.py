"""
A server restored from yesterday's backup: agents go on, nothing can be played back, no one is quarantined.

Restored twice from the same file: the same.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import attrs
import httpx
import httpx2
import pytest

from redflag_agent.answers import ServerFailedError
from redflag_agent.register import register
from redflag_core.command_queue import LEASE_SECONDS
from redflag_core.enrolment import AgentStatus, new_secret
from redflag_core.freshness import TOLERANCE
from redflag_core.lifecycle import AgentAction
from redflag_core.messages import ScannerState
from redflag_core.scanning import PackageState, ScanStatus
from redflag_core.testing import FrozenClock
from redflag_server.agents.operations import act
from redflag_server.agents.tables import Agent
from redflag_server.commands import queue
from redflag_server.commands.tables import Command, CommandSubject
from redflag_server.db.scope import whole_installation
from redflag_server.events.tables import Event
from redflag_server.jobs.list import JOBS
from redflag_server.jobs.service import run_due
from redflag_server.packages.tables import Package, Scanner
from tests.beds.apt import AptBed, needs_apt
from tests.helpers.agents import FakeMachine, agent_parts, new_id, scan_report
from tests.helpers.agents import package as scanned
from tests.helpers.backups import back_up, restore_from
from tests.helpers.fleet import ENTROPY, Machine, full_report, package
from tests.helpers.orders import HEARTBEAT, order, state_of
from tests.helpers.orders import act as act_on
from tests.helpers.processes import REDFLAG, child, free_port, redflag
from tests.helpers.processes import server as server_process
from tests.helpers.server import AUTHORITY, Server, running
from tests.helpers.stub_server import StubServer

OLD = [package(f"p{number}") for number in range(10)]
NEW = [*OLD[:8], package("p8", state=PackageState.AVAILABLE), package("fresh")]
DAY = 86_400


async def lose_an_answer(server: Server, machine: Machine) -> None:
    """The server moved the chain on; the machine never learnt it, and will send the same pair again."""
    answer = await machine.sign("/agent/token", machine.token_body(), with_token=False).send(server.client)
    assert 200 == answer.status_code


async def idle(_server: Server, _machine: Machine) -> None:
    """A machine that was off all day."""


async def refresh_once(server: Server, machine: Machine) -> None:
    assert 200 == (await machine.refresh(server.client)).status_code


async def refresh_often(server: Server, machine: Machine) -> None:
    for _ in range(3):
        await refresh_once(server, machine)


async def lose_the_last(server: Server, machine: Machine) -> None:
    """The lost server died before the answer arrived."""
    await refresh_once(server, machine)
    await lose_an_answer(server, machine)


async def only_lose(server: Server, machine: Machine) -> None:
    """The one renewal of the day was not answered: the pair is the one that the backup expects."""
    await lose_an_answer(server, machine)


async def reboot(server: Server, machine: Machine) -> None:
    """Two new boots, which the backup has not seen."""
    for _ in range(2):
        machine.boot_id = str(uuid4())
        await refresh_once(server, machine)
        assert 200 == (await machine.check_in(server.client)).status_code


LIVES = (idle, refresh_once, refresh_often, lose_the_last, only_lose, reboot)
AHEAD = {refresh_once, refresh_often, lose_the_last, reboot}
"""Whose chain is further than the backup and the secret after it."""


@attrs.define
class Yesterday:
    """
    A fleet whose server is restored from a backup that is a day old.

    Attributes:
        data: The server's data directory.
        file: The backup.
        clock: Everybody's time.
        machines: What each lived through since the backup.
        recorded: Requests that the lost server accepted, as somebody on the way may have kept them.
    """

    data: Path
    file: Path
    clock: FrozenClock
    machines: dict[Any, Machine]
    recorded: list[Any]

    async def lost(self) -> "Yesterday":
        """Live through the day until the server is lost."""
        async with running(self.data, clock=self.clock) as server:
            for life in LIVES:
                machine = await server.agent()
                assert (await machine.report(server.client, full_report(OLD))).json()["accepted"]
                if life is only_lose:
                    await machine.refresh(server.client)
                self.machines[life] = machine
        back_up(self.data, self.file, self.clock)
        self.clock.advance(DAY - 3600)
        async with running(self.data, clock=self.clock) as server:
            for life, machine in self.machines.items():
                await life(server, machine)
                if life is not idle:
                    await self._report(server, machine)
            self.clock.advance(600)
            for machine in self.machines.values():
                for created in (self.clock.now(), self.clock.now() + timedelta(seconds=TOLERANCE)):
                    await self._record(server, machine, created)
        return self

    async def _report(self, server: Server, machine: Machine) -> None:
        answer = await machine.report(server.client, full_report(NEW))
        assert answer.json()["accepted"], answer.text

    async def _record(self, server: Server, machine: Machine, created: Any) -> None:
        for path, body in (
            ("/agent/check-in", machine.check_in_body()),
            ("/agent/reports/apt", full_report(OLD)),
        ):
            request = machine.sign(path, body, created=created)
            assert 200 == (await request.send(server.client)).status_code
            self.recorded.append(request)


@pytest.fixture
async def yesterday(tmp_path: Path) -> Yesterday:
    """A server that is lost, a day after its last backup."""
    made = Yesterday(tmp_path / "data", tmp_path / "backup.tar", FrozenClock(), {}, [])
    return await made.lost()


async def go_on(server: Server, machine: Machine) -> None:
    """What an agent does by itself: check in, renew when told to, bring what is wanted."""
    report = full_report(NEW)
    state = ScannerState("apt", ScanStatus.OK, report.hash, int(server.clock.now().timestamp()))
    answer = await machine.check_in(server.client, [state])
    if answer.status_code == 401:
        assert "bad_token" == answer.json()["code"]
        assert 200 == (await machine.refresh(server.client)).status_code
        answer = await machine.check_in(server.client, [state])
    assert 200 == answer.status_code, answer.text
    if "apt" in answer.json()["reports_wanted"]:
        assert (await machine.report(server.client, report)).json()["accepted"]
    assert 200 == (await machine.refresh(server.client)).status_code
    assert 200 == (await machine.check_in(server.client)).status_code


@pytest.mark.parametrize("restores", [1, 2])
async def test_agents_go_on_after_a_restore(yesterday: Yesterday, restores: int):
    """Whatever a machine lived through since the backup: it goes on, its chain is adopted if need be, once."""
    for _ in range(restores):
        yesterday.clock.advance(60)
        await restore_from(yesterday.file, yesterday.data, yesterday.clock)
        yesterday.clock.advance(TOLERANCE + 1)
        async with running(yesterday.data, clock=yesterday.clock) as server:
            await run_due(server.runtime, JOBS)
            for machine in yesterday.machines.values():
                await go_on(server, machine)

            agents = await server.rows(Agent)
            kinds = await server.event_kinds()
            adopted = await server.rows(Event, Event.kind == "agent.refresh_adopted")
            scanners = await server.rows(Scanner)
            packages = await server.rows(Package, Package.name == "fresh")
        assert {AgentStatus.ACTIVE} == {agent.status for agent in agents}
        assert not {"agent.quarantined", "agent.machine_mismatch", "agent.hardware_changed"} & set(kinds)
        ahead = {UUID(machine.agent_id) for life, machine in yesterday.machines.items() if life in AHEAD}
        assert ahead <= {event.agent_id for event in adopted}
        assert len(adopted) == len({event.agent_id for event in adopted})
        assert {full_report(NEW).hash} == {scanner.inventory_hash for scanner in scanners}
        assert len(LIVES) == len(packages)


async def test_for_five_minutes_nobody_is_answered_and_nobody_is_harmed(yesterday: Yesterday):
    """503 with Retry-After on every endpoint, registration too; not one record changes."""
    await restore_from(yesterday.file, yesterday.data, yesterday.clock)
    async with running(yesterday.data, clock=yesterday.clock) as server:
        before = await server.dump()
        for seconds in (0, 150, 150):
            yesterday.clock.advance(seconds)
            for life, machine in yesterday.machines.items():
                asked = [await machine.refresh(server.client)]
                if life is not idle:  # its access token is older than a day
                    asked.append(await machine.check_in(server.client))
                    asked.append(await machine.report(server.client, full_report(NEW)))
                assert {(503, "unavailable")} == {(one.status_code, one.json()["code"]) for one in asked}
                assert all(int(one.headers["retry-after"]) > 0 for one in asked)
        token = await server.token()
        waiting = await server.machine().register(server.client, token)
        after = await server.dump()
        yesterday.clock.advance(1)
        assert 201 == (await server.machine().register(server.client, token)).status_code
        assert 200 == (await yesterday.machines[refresh_often].check_in(server.client)).status_code

    assert (503, "unavailable") == (waiting.status_code, waiting.json()["code"])
    del before["registration_tokens"], after["registration_tokens"]
    assert before == after


@pytest.mark.parametrize("restores", [1, 2])
async def test_what_the_lost_server_accepted_cannot_be_played_back(yesterday: Yesterday, restores: int):
    """Recorded requests, also of a machine whose clock was ahead: at no time accepted again."""
    for _ in range(restores):
        await restore_from(yesterday.file, yesterday.data, yesterday.clock)
        async with running(yesterday.data, clock=yesterday.clock) as server:
            before = await server.dump()
            for seconds in (0, 1, 298, 1, 1, 1, 298, 1, 1, 600):
                yesterday.clock.advance(seconds)
                codes = {(await request.send(server.client)).status_code for request in yesterday.recorded}
                assert codes <= {401, 503}
            assert before == await server.dump()


async def test_within_one_restore_the_second_unknown_secret_is_a_fork(yesterday: Yesterday):
    """A restore is no open door: after the adoption a copy is found out as ever."""
    await restore_from(yesterday.file, yesterday.data, yesterday.clock)
    yesterday.clock.advance(TOLERANCE + 1)
    machine = yesterday.machines[refresh_often]
    copy = attrs.evolve(machine, pending=new_secret(ENTROPY))
    async with running(yesterday.data, clock=yesterday.clock) as server:
        assert 200 == (await machine.refresh(server.client)).status_code
        forked = await copy.refresh(server.client)
        status = (await server.row(Agent, Agent.id == UUID(machine.agent_id))).status

    assert (403, "refresh_fork", "quarantined") == (forked.status_code, forked.json()["code"], status)


async def test_a_restore_without_the_jump_would_quarantine(yesterday: Yesterday, tmp_path: Path):
    """What the restore prevents: the same database put back by hand takes every machine for a thief."""
    other = tmp_path / "by-hand"
    await restore_from(yesterday.file, other, yesterday.clock)
    with closing(sqlite3.connect(other / "redflag.db")) as database, database:
        database.execute("UPDATE server_state SET gen = 0, nonce_horizon = 0")

    async with running(other, clock=yesterday.clock) as server:
        answer = await yesterday.machines[refresh_often].refresh(server.client)

    assert "refresh_fork" == answer.json()["code"]


async def test_what_was_revoked_since_is_back_and_what_registered_since_is_not_known(tmp_path: Path):
    """As the documentation says: revoke again, register again."""
    clock, data = FrozenClock(), tmp_path / "data"
    async with running(data, clock=clock) as server:
        revoked = await server.agent()
    file = back_up(data, tmp_path / "b.tar", clock)
    clock.advance(3600)
    async with running(data, clock=clock) as server:
        newcomer = await server.agent()
        everything = whole_installation("cli:test")
        await act(server.runtime, everything, UUID(revoked.agent_id), AgentAction.REVOKE, "stolen")
        assert 403 == (await revoked.check_in(server.client)).status_code

    done = await restore_from(file, data, clock)
    clock.advance(TOLERANCE + 1)

    async with running(data, clock=clock) as server:
        assert 200 == (await revoked.check_in(server.client)).status_code
        unknown = await newcomer.check_in(server.client)
        assert (401, "unknown_key") == (unknown.status_code, unknown.json()["code"])
        again = attrs.evolve(server.machine(), machine_id=newcomer.machine_id)
        assert 201 == (await again.register(server.client, await server.token())).status_code
    assert 1 == done.outcome.machines


# --- commands --------------------------------------------------------------------------------------------------


@attrs.define
class Story:
    """
    One command to one machine, and what became of it before and after the backup.

    Attributes:
        before: What happened before it: any of ``fetched``, ``accepted``.
        since: What happened since, on the server that was lost: ``started`` and ``ended`` besides, ``cancelled``.
        state: Where it must stand once the machine was asked again.
    """

    before: tuple[str, ...]
    since: tuple[str, ...]
    state: str = "completed"
    machine: Any = None
    command_id: Any = None

    async def go(self, server: Server, steps: tuple[str, ...]) -> None:
        """Live through some steps."""
        for step in steps:
            await getattr(self, step)(server)

    async def fetched(self, server: Server) -> None:
        """Take what is handed out, and keep the answers."""
        for wire in await self.machine.fetch(server.client, state=self.machine.state()):
            self.machine.execute(wire)

    async def accepted(self, server: Server) -> None:
        """Bring the answers."""
        for entry in self.machine.journal.values():
            assert 200 == (await self.machine.deliver(server.client, entry.statement)).status_code

    async def started(self, server: Server) -> None:
        """Start it, and say so."""
        assert 200 == (await self.machine.progress(server.client, str(self.command_id))).status_code
        self.machine.run(str(self.command_id))

    async def ended(self, server: Server) -> None:
        """Bring the result."""
        await self.accepted(server)

    async def cancelled(self, server: Server) -> None:
        """Somebody cancels it; the machine has not started it."""
        await act_on(server, queue.cancel, self.command_id)
        server.clock.advance(LEASE_SECONDS + 1)
        await self.fetched(server)
        await self.accepted(server)

    async def finish(self, server: Server) -> None:
        """What an executor does by itself: answer, start what it accepted and did not start, bring the result."""
        await self.fetched(server)
        await self.accepted(server)
        command_id = str(self.command_id)
        if command_id in self.machine.journal and not {command_id} & {
            *self.machine.starts,
            *self.machine.tombstones,
        }:
            self.machine.run(command_id)
        await self.accepted(server)


FETCHED, ACCEPTED, STARTED = ("fetched",), ("fetched", "accepted"), ("fetched", "accepted", "started")
ENDED = (*STARTED, "ended")


def stories() -> list[Story]:
    """Every way in which a backup can be behind a command that works, and one that was cancelled."""
    whole = [Story(ENDED[:before], ENDED[before:since]) for before in range(4) for since in range(before, 5)]
    return [*whole, Story((), (*ACCEPTED, "cancelled"), "cancelled"), Story(ACCEPTED, ("cancelled",), "cancelled")]


@pytest.mark.parametrize("restores", [1, 2])
async def test_nothing_is_started_twice_and_the_server_learns_how_it_ended(tmp_path: Path, restores: int):
    """Wherever a command stood in the backup and on the lost server: one start at most, and its true end."""
    clock, data = FrozenClock(), tmp_path / "data"
    told = stories()
    async with running(data, clock=clock) as server:
        for story in told:
            story.machine = await server.agent()
            story.command_id = await order(server, story.machine.agent_id)
            await story.go(server, story.before)
    file = back_up(data, tmp_path / "b.tar", clock)
    clock.advance(3600)
    async with running(data, clock=clock) as server:
        for story in told:
            await story.go(server, story.since)
        since = await order(server, told[0].machine.agent_id, HEARTBEAT)

    for _ in range(restores):
        clock.advance(60)
        await restore_from(file, data, clock)
        clock.advance(TOLERANCE + 1)
        async with running(data, clock=clock) as server:
            for story in told:
                assert 200 == (await story.machine.refresh(server.client)).status_code
                await story.finish(server)
            states = {row.id: row.state for row in await server.rows(Command)}
            events = {row.kind for row in await server.rows(Event, Event.kind.startswith("command."))}
            held = await server.rows(CommandSubject)
        assert [story.state for story in told] == [states[story.command_id] for story in told]
        assert since not in states
        assert [] == held
        assert not events & {"command.contradicted", "command.mismatched", "command.unverifiable"}
    for story in told:
        assert story.machine.starts == ([] if story.state == "cancelled" else [str(story.command_id)])


async def test_a_command_that_may_have_been_started_is_not_cancelled_here(tmp_path: Path):
    """After a restore, cancelling asks the machine, though the backup says that it never got the command."""
    clock, data = FrozenClock(), tmp_path / "data"
    story = Story((), STARTED)
    async with running(data, clock=clock) as server:
        story.machine = await server.agent()
        story.command_id = await order(server, story.machine.agent_id)
    file = back_up(data, tmp_path / "b.tar", clock)
    async with running(data, clock=clock) as server:
        await story.go(server, story.since)

    await restore_from(file, data, clock)
    clock.advance(TOLERANCE + 1)
    async with running(data, clock=clock) as server:
        await act_on(server, queue.cancel, story.command_id)
        assert "pending" == await state_of(server, story.command_id)
        assert 1 == len([row for row in await server.rows(CommandSubject) if row.command_id == story.command_id])
        await story.machine.refresh(server.client)
        await story.finish(server)
        assert "completed" == await state_of(server, story.command_id)


# --- the real agent --------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def agent(path: Path, server: Server, *, machine: FakeMachine, seed: int):
    """The parts of a real agent of *server*, started anew."""
    stand_in = StubServer(server.clock, addresses=(f"http://{AUTHORITY}",))
    transport = httpx2.ASGITransport(server.app)
    async with agent_parts(path, stand_in, transport=transport, machine=machine, seed=seed) as parts:
        yield parts


async def bring(parts: Any, *names: str, number: int) -> None:
    """Scan and bring it to the server."""
    parts.outbox.record_scan(scan_report(*map(scanned, names)), report_id=new_id(number))
    await parts.delivery().round()


@pytest.mark.full
async def test_the_real_agent_waits_and_goes_on(tmp_path: Path):
    """It is told to wait, loses nothing, and brings its newest inventory; twice from the same file."""
    clock, data, machine = FrozenClock(), tmp_path / "server", FakeMachine()
    async with (
        running(data, clock=clock) as server,
        agent(tmp_path / "a", server, machine=machine, seed=0) as parts,
    ):
        token = await server.token()
        await register(parts.client, token, identity=parts.identity, state=parts.state, trust=parts.trust)
        await bring(parts, "a", "b", number=1)
    file = back_up(data, tmp_path / "b.tar", clock)
    clock.advance(3600)
    async with (
        running(data, clock=clock) as server,
        agent(tmp_path / "a", server, machine=machine, seed=1) as parts,
    ):
        for _ in range(2):
            await parts.tokens.renew(parts.identity.executor.evidence())
        machine.raw = attrs.evolve(machine.raw, boot_id=str(uuid4()))
        await bring(parts, "a", "c", number=2)

    for restores in (1, 2):
        await restore_from(file, data, clock)
        async with (
            running(data, clock=clock) as server,
            agent(tmp_path / "a", server, machine=machine, seed=10 * restores) as parts,
        ):
            await wait_and_go_on(server, parts, number=10 * restores)
        clock.advance(3600)


async def wait_and_go_on(server: Server, parts: Any, *, number: int) -> None:
    """One restore in the life of an agent."""
    with pytest.raises(ServerFailedError) as waits:
        await bring(parts, "a", "c", "d", number=number)
    assert ("unavailable", True) == (waits.value.problem, waits.value.retry_after > 0)
    server.clock.advance(TOLERANCE + 1)
    await parts.delivery().round()
    await parts.tokens.renew(parts.identity.executor.evidence())
    await parts.delivery().round()

    assert () == parts.outbox.pending()
    record = await server.row(Agent)
    assert ("active", parts.state.state.refresh.generation) == (record.status, record.refresh_generation)
    assert {"a", "c", "d"} == {row.name for row in await server.rows(Package, Package.present.is_(True))}
    kinds = await server.event_kinds()
    assert (1, 0) == (kinds.count("agent.refresh_adopted"), kinds.count("agent.quarantined"))


async def test_a_new_agent_that_comes_too_early_is_told_to_wait(tmp_path: Path):
    """Right after a restore a registration is put off, not refused: the agent tries again by itself."""
    clock, data = FrozenClock(), tmp_path / "server"
    async with running(data, clock=clock):
        pass
    await restore_from(back_up(data, tmp_path / "b.tar", clock), data, clock)

    async with running(data, clock=clock) as server:
        token = await server.token()
        async with agent(tmp_path / "a", server, machine=FakeMachine(), seed=0) as parts:
            known = {"identity": parts.identity, "state": parts.state, "trust": parts.trust}
            with pytest.raises(ServerFailedError):
                await register(parts.client, token, **known)
            clock.advance(TOLERANCE + 1)
            await register(parts.client, token, **known)

            assert 1 == len(await server.rows(Agent))


# --- real processes --------------------------------------------------------------------------------------------


def run_agent(data: Path, token: str = "") -> tuple[int, str]:
    """``redflag agent run --once``: its exit code and what it said."""
    command = [REDFLAG, "agent", "run", "--once", "--data", str(data), "--token-stdin", "--progress-json"]
    with child(*command, stdin=token) as process:
        return process.wait(), process.transcript()


def forget_access_token(data: Path) -> None:
    """As after a day: the access token is gone, the refresh secret is needed."""
    path = data / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "access": None}), encoding="utf-8")


def five_minutes_pass(data: Path) -> None:
    """The horizon of a stopped server, as if the clocks had gone on: no test waits for it."""
    with closing(sqlite3.connect(data / "redflag.db")) as database, database:
        database.execute("UPDATE server_state SET nonce_horizon = nonce_horizon - ?", (TOLERANCE + 1,))


@contextlib.contextmanager
def api(data: Path, port: int) -> Iterator[Any]:
    """A running server process, and a function that reads lists of its API."""
    with server_process(data, port) as process:
        key = redflag("server", "api-key", "add", "e2e", "--scope", "*", "--data", str(data)).strip()

        def get(path: str, **query: Any) -> list[dict[str, Any]]:
            headers = {"authorization": f"Bearer {key}"}
            answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/{path}", params=query, headers=headers)
            assert 200 == answer.status_code, answer.text
            items: list[dict[str, Any]] = answer.json()["items"]
            return items

        yield process, get


@needs_apt
@pytest.mark.full
def test_processes_that_are_killed_restored_and_started_again(tmp_path: Path, apt_bed: AptBed):
    """The whole story with the commands that people type: back up, lose the server, restore, twice."""
    data, port, file, agent_data = tmp_path / "server", free_port(), tmp_path / "backup.tar", tmp_path / "agent"
    agent_data.mkdir(mode=0o700)
    settings = f'[apt]\nconfig = "{apt_bed.apt_config}"\npath_prefix = "{apt_bed.bin}"\nrefresh = "off"\n'
    (agent_data / "agent.toml").write_text(settings, encoding="utf-8")
    with api(data, port) as (process, get):
        token = redflag("server", "registration-token", "add", "e2e", "--data", str(data)).strip().splitlines()[-1]
        assert 0 == run_agent(agent_data, token)[0]
        redflag("server", "backup", str(file), "--data", str(data))
        for _ in range(2):
            forget_access_token(agent_data)
            assert 0 == run_agent(agent_data)[0]
        apt_bed.run("apt-mark", "hold", "rf-uptodate")
        code, said = run_agent(agent_data)
        assert 0 == code, said
        held = {item["name"] for item in get("packages", state="held")}
        process.kill()

    for _ in range(2):
        out = redflag("server", "restore", str(file), "--data", str(data), "--replace")
        assert "they go on by themselves" in out
        with server_process(data, port):
            forget_access_token(agent_data)
            code, said = run_agent(agent_data)
            assert (True, True) == (code != 0, "unavailable" in said), said
        five_minutes_pass(data)
        with api(data, port) as (_, get):
            code, said = run_agent(agent_data)
            assert 0 == code, said
            (found,) = get("agents")
            kinds = [event["kind"] for event in get("events", limit=1000)]
            again = {item["name"] for item in get("packages", state="held")}
        assert "active" == found["status"]
        assert held == again
        assert (1, 0) == (kinds.count("agent.refresh_adopted"), kinds.count("agent.quarantined"))
