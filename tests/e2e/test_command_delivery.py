"""Commands over real connections: the server is killed at the worst moments, connections break, nobody waits."""

import asyncio
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import attrs
import httpx
import pytest

from redflag_core.commands import open_command
from redflag_core.encoding import b64encode
from redflag_core.enrolment import parse_registration_token
from redflag_core.messages import StatementPost
from tests.helpers.fleet import API, Machine, Signed
from tests.helpers.processes import DEADLINE, Child, free_port, redflag, server

WAIT = 30
"""Seconds that agents wait here: long enough that nothing is answered because the time is over."""


def now() -> datetime:
    """Real time, in whole seconds as they are signed."""
    return datetime.now(UTC)


@attrs.define
class Place:
    """A data directory, a port, one machine and an operator; servers come and go."""

    data: Path
    port: int
    machine: Machine
    key: str = ""

    @property
    def url(self) -> str:
        """Where the server is."""
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def serving(self) -> Iterator[Child]:
        """A server."""
        with server(self.data, self.port) as process:
            yield process

    def client(self) -> httpx.AsyncClient:
        """A connection of the agent."""
        return httpx.AsyncClient(base_url=self.url, timeout=DEADLINE)

    async def settle(self) -> None:
        """Register the machine, and make a key for the operator."""
        text = redflag("server", "registration-token", "add", "e2e", "--data", str(self.data))
        async with self.client() as client:
            await self.machine.enrol(client, parse_registration_token(text.strip().splitlines()[-1]))
            await self.machine.learn_trust(client)
        self.key = redflag("server", "api-key", "add", "e2e", "--scope", "*", "--data", str(self.data)).strip()

    def call(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        """Call the API as an operator."""
        answer = httpx.request(
            method,
            f"{self.url}{API}{path}",
            headers={"authorization": f"Bearer {self.key}"},
            timeout=DEADLINE,
            **({"json": body} if body else {}),
        )
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def order(self, scanner: str | None = None) -> str:
        """Order a scan."""
        body = {"agent_id": self.machine.agent_id, "type": "scan.run", "reason": "a test", "scanner": scanner}
        return str(self.call("POST", "/commands", **body)["command"]["id"])

    def state(self, command_id: str) -> str:
        """Where a command stands, read past the server."""
        with closing(sqlite3.connect(self.data / "redflag.db")) as database, database:
            rows = database.execute("SELECT state FROM commands WHERE id = ?", (UUID(command_id).bytes,))
            ((state,),) = rows.fetchall()
        return str(state)

    def until(self, command_id: str, state: str) -> None:
        """Wait until a command stands there."""
        deadline = time.monotonic() + DEADLINE
        while self.state(command_id) != state:
            assert time.monotonic() < deadline, f"{state} never came"

    def end_leases(self) -> None:
        """As if a minute had passed."""
        with closing(sqlite3.connect(self.data / "redflag.db")) as database, database:
            database.execute("UPDATE commands SET leased_until = datetime(leased_until, '-1 hour')")

    def send_and_forget(self, signed: Signed) -> socket.socket:
        """Send a request whose answer nobody will read."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)
        head = [f"{signed.method} {signed.url} HTTP/1.1", *(f"{k}: {v}" for k, v in signed.headers.items())]
        head.append(f"content-length: {len(signed.body)}")
        connection.sendall("\r\n".join([*head, "", ""]).encode() + signed.body)
        return connection


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """An empty place."""
    port = free_port()
    return Place(tmp_path / "data", port, Machine(now=now, authority=f"127.0.0.1:{port}"))


async def fetched(place: Place, **changes: Any) -> list[bytes]:
    """What a check-in brings."""
    async with place.client() as client:
        return await place.machine.fetch(client, **changes)


async def deliver(place: Place, statement: bytes) -> None:
    """Send a statement."""
    async with place.client() as client:
        answer = await place.machine.deliver(client, statement)
    assert answer.status_code == 200, answer.text


def history(place: Place, command_id: str) -> list[str]:
    """Kinds of the events of a command, the oldest first."""
    items = place.call("GET", "/events?limit=1000")["items"]
    kinds = [item["kind"] for item in items if item["data"].get("command") == command_id]
    return [kind.removeprefix("command.") for kind in reversed(kinds)]


async def test_a_server_killed_between_lease_and_answer_delivers_again(place: Place):
    """The lease is on disk and the answer never left: the command comes again, and is started once."""
    with place.serving() as process:
        await place.settle()
        first = place.order()
        connection = place.send_and_forget(place.machine.sign("/agent/check-in", place.machine.check_in_body()))
        place.until(first, "leased")
        process.kill()
        connection.close()
    place.end_leases()

    with place.serving():
        (wire,) = await fetched(place)
        command = open_command(wire, place.machine.command_keys).body
        assert (first, 2) == (command.cmd_id, command.seq)
        await deliver(place, place.machine.execute(wire))
        await deliver(place, place.machine.run(first))

        assert ["ordered", "leased", "leased", "accepted", "completed"] == history(place, first)
    assert ("completed", [first]) == (place.state(first), place.machine.starts)


async def test_a_server_killed_after_the_answer_learns_what_became_of_it(place: Place):
    """The machine has the command and carries it out while the server is down. It is not started again."""
    with place.serving() as process:
        await place.settle()
        first = place.order()
        (wire,) = await fetched(place)
        process.kill()
    acceptance = place.machine.execute(wire)
    place.end_leases()

    with place.serving():
        (again,) = await fetched(place)
        result = place.machine.run(first)
        assert result == place.machine.execute(again)
        for statement in (acceptance, result):
            await deliver(place, statement)

    assert ("completed", [first]) == (place.state(first), place.machine.starts)


@pytest.mark.parametrize("kind", ["accepted", pytest.param("completed", marks=pytest.mark.full)])
async def test_a_server_killed_before_it_said_that_it_has_a_statement_has_it_once(place: Place, kind: str):
    """The agent sends it again, as it must: the fact is the same."""
    with place.serving() as process:
        await place.settle()
        first = place.order()
        (wire,) = await fetched(place)
        statement = place.machine.execute(wire)
        if kind == "completed":
            statement = place.machine.run(first)
        body = StatementPost(v=1, statement=b64encode(statement))
        connection = place.send_and_forget(place.machine.sign("/agent/results", body))
        place.until(first, kind)
        process.kill()
        connection.close()

    with place.serving():
        await deliver(place, statement)

        assert 1 == history(place, first).count(kind)
    assert kind == place.state(first)


async def test_a_waiting_agent_gets_an_order_within_a_second(place: Place):
    """From the click to the machine: no check-in interval in between."""
    with place.serving():
        await place.settle()
        poll = asyncio.create_task(fetched(place, wait=WAIT))
        await asyncio.to_thread(_until_held, place)
        began = time.monotonic()
        first = await asyncio.to_thread(place.order)
        (wire,) = await poll
        took = time.monotonic() - began

    assert first == open_command(wire, place.machine.command_keys).body.cmd_id
    assert took < 1


async def test_a_connection_that_broke_gets_no_command(place: Place):
    """The agent's machine was switched off while it waited: the command stays for its return."""
    with place.serving():
        await place.settle()
        body = place.machine.check_in_body(wait=WAIT)
        connection = place.send_and_forget(place.machine.sign("/agent/check-in", body))
        await asyncio.to_thread(_until_held, place)
        connection.close()
        async with place.client() as client:  # while it answers these, the server sees the end of the other
            for _ in range(50):
                assert 200 == (await client.get(f"{API}/health/live")).status_code
        first = await asyncio.to_thread(place.order)
        assert "pending" == place.state(first)
        (wire,) = await fetched(place)

    command = open_command(wire, place.machine.command_keys).body
    assert (first, 1) == (command.cmd_id, command.seq)


async def test_waiting_agents_do_not_hold_up_the_end_of_the_server(place: Place):
    """Told to stop, it answers whoever waits, without a command, and ends."""
    with place.serving() as process:
        await place.settle()
        async with place.client() as client:
            poll = asyncio.create_task(place.machine.check_in(client, wait=WAIT))
            await asyncio.to_thread(_until_held, place)
            began = time.monotonic()
            code = await asyncio.to_thread(process.stop, signal.SIGTERM)
            answer = await poll
        took = time.monotonic() - began

    assert (0, 200, []) == (code, answer.status_code, answer.json()["commands"])
    assert took < 5


@pytest.mark.full
async def test_many_waiting_agents_leave_room_for_everybody_else(place: Place):
    """Eighty check-ins are held open, and operators are answered as if there were none."""
    with place.serving():
        await place.settle()
        text = redflag("server", "registration-token", "add", "many", "--seats", "80", "--data", str(place.data))
        token = parse_registration_token(text.strip().splitlines()[-1])
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        async with httpx.AsyncClient(base_url=place.url, timeout=DEADLINE, limits=limits) as client:
            machines = [Machine(now=now, authority=place.machine.authority) for _ in range(80)]
            for machine in machines:
                await machine.enrol(client, token)
            polls = [asyncio.create_task(machine.check_in(client, wait=WAIT)) for machine in machines]
            await asyncio.to_thread(_until_held, place, len(machines))
            began = time.monotonic()
            first = await asyncio.to_thread(place.order)
            took = time.monotonic() - began
            assert not any(poll.done() for poll in polls)
            for poll in polls:
                poll.cancel()
            await asyncio.gather(*polls, return_exceptions=True)

    assert ("pending", True) == (place.state(first), took < 2)


def _seen(place: Place) -> int:
    """How many agents have checked in."""
    with closing(sqlite3.connect(place.data / "redflag.db")) as database, database:
        ((count,),) = database.execute("SELECT count(*) FROM agents WHERE last_seen_at > registered_at").fetchall()
    return int(count)


def _until_held(place: Place, machines: int = 1) -> None:
    """Wait until the check-ins of the machines passed the gate: from then on they are held."""
    deadline = time.monotonic() + DEADLINE
    while _seen(place) < machines:
        assert time.monotonic() < deadline, "the check-ins never arrived"
