"""
CPU of one check-in, server and database, against a floor without database (same run).

The floor is a Litestar handler that verifies one Ed25519 signature. Both are served by the same HTTP server in a
process of its own; requests are signed before the clock starts, and whoever sends them is not counted.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import attrs
from litestar import Litestar, post
from litestar.datastructures import State
from sqlalchemy import insert, select
from uuid_utils.compat import uuid7

from redflag_core import codec
from redflag_core.enrolment import REFRESH_SECONDS, AgentStatus, secret_digest
from redflag_core.keys import SigningKey
from redflag_core.messages import ScannerState
from redflag_core.scanning import ScanStatus
from redflag_core.system import SystemClock, SystemEntropy
from redflag_server.agents import access_tokens
from redflag_server.agents.tables import Agent
from redflag_server.app import create_app
from redflag_server.checkin.waiting import Waiting
from redflag_server.db import migrate
from redflag_server.db.engine import Database
from redflag_server.organizations.tables import INSTALLATION, Site
from redflag_server.packages.tables import Scanner
from redflag_server.runtime import Runtime
from redflag_server.serve import serve, stop_on_signals
from redflag_server.settings import Settings
from redflag_server.start import open_runtime
from tests.beds.postgres import running_server
from tests.helpers.fleet import Machine, Signed
from tests.helpers.server import NO_LIMIT

AGENTS = 400
ROUNDS = 5
"""Check-ins of each agent: fewer than its rate limit lets pass at once."""

TICKS = os.sysconf("SC_CLK_TCK")
SCANNERS = ("apt", "storage", "system", "docker")
EMPTY = "0" * 64


def measure(*, agents: int = AGENTS) -> Iterator[str]:
    """Milliseconds of CPU for each, and the ratios."""
    floors = {connections: _floor(connections) for connections in (1, 32)}
    for connections, floor in floors.items():
        yield f"floor, {connections:2} connections: {1000 * floor:.3f} ms"
    for name in ("SQLite", "PostgreSQL"):
        with _database(name) as (url, processes):
            for connections, cost in _check_ins(url, processes, agents).items():
                ratio = sum(cost) / floors[connections]
                yield (
                    f"check-in, {name}, {connections:2} connections: server {1000 * cost[0]:.3f} ms, "
                    f"database {1000 * cost[1]:.3f} ms, {ratio:.2f} x the floor"
                )


@contextlib.contextmanager
def _database(name: str) -> Iterator[tuple[str | None, "Processes"]]:
    if name == "SQLite":
        yield None, Processes(None)
        return
    with running_server() as server:
        address = server.new_database()
        pid = int((server._folder / "data" / "postmaster.pid").read_text().split()[0])
        yield address, Processes(pid)


@attrs.frozen
class Processes:
    """A process and its children, or none."""

    pid: int | None

    def seconds(self) -> float:
        """CPU that they have used, those that ended included."""
        if self.pid is None:
            return 0.0
        children = [
            int(path.name)
            for path in Path("/proc").glob("[0-9]*")
            if path.name != str(self.pid) and _field(path, 4) == self.pid
        ]
        return sum(_used(Path(f"/proc/{pid}"), ended=pid == self.pid) for pid in (self.pid, *children))


def _field(process: Path, number: int) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[number - 3])
    except OSError:
        return -1


def _used(process: Path, *, ended: bool) -> float:
    fields = (14, 15, 16, 17) if ended else (14, 15)
    return sum(max(_field(process, field), 0) for field in fields) / TICKS


# --- what is measured ---


def _floor(connections: int) -> float:
    machine = _machine("127.0.0.1:1")
    requests = [_raw(machine.sign("/floor", b"x" * 1600, with_token=False))] * 2000
    with _served("floor") as (port, process):
        return _cost(port, process, Processes(None), requests, connections)[0]


def _check_ins(url: str | None, database: Processes, agents: int) -> dict[int, tuple[float, float]]:
    costs = {}
    with tempfile.TemporaryDirectory() as directory:
        port = _free_port()
        authority = f"127.0.0.1:{port}"
        fleet = asyncio.run(_fleet(Path(directory), url, authority, agents))
        with _served("redflag", directory, str(port), url or "") as (_, process):
            for connections in (1, 32):
                rounds = [
                    _raw(machine.sign("/agent/check-in", machine.check_in_body(_scans())))
                    for _ in range(ROUNDS)
                    for machine in fleet
                ]
                costs[connections] = _cost(port, process, database, rounds, connections)
    return costs


def _cost(
    port: int, process: Processes, database: Processes, requests: Sequence[bytes], connections: int
) -> tuple[float, float]:
    """Seconds of CPU for each request: server, database."""
    warm, measured = requests[: len(requests) // 5], requests[len(requests) // 5 :]
    asyncio.run(_send_all(port, warm, connections))
    before = process.seconds(), database.seconds()
    began = time.perf_counter()
    asyncio.run(_send_all(port, measured, connections))
    rate = len(measured) / (time.perf_counter() - began)
    print(f"    ({rate:.0f} requests/s)", file=sys.stderr)
    return (process.seconds() - before[0]) / len(measured), (database.seconds() - before[1]) / len(measured)


async def _send_all(port: int, requests: Sequence[bytes], connections: int) -> None:
    waiting = iter(requests)

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for request in waiting:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(length)
            assert head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201")), (head, body)
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(one() for _ in range(connections)))


def _raw(signed: Signed) -> bytes:
    lines = [f"{signed.method} {signed.url} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in signed.headers.items()]
    lines += [f"content-length: {len(signed.body)}", "", ""]
    return "\r\n".join(lines).encode() + signed.body


# --- the fleet ---


def _machine(authority: str) -> Machine:
    return Machine(now=SystemClock().now, authority=authority)


def _scans() -> list[ScannerState]:
    return [ScannerState(name, ScanStatus.OK, EMPTY, 1_700_000_000) for name in SCANNERS]


async def _fleet(data: Path, url: str | None, authority: str, count: int) -> list[Machine]:
    """Machines that are registered, straight into the database: one over HTTP, the others are copies of it."""
    settings = Settings(data=data, postgresql=url, public_urls=(f"http://{authority}",))
    if url is not None:
        database = Database(url)
        await migrate.upgrade(database)
        await database.close()
    runtime = await open_runtime(settings, SystemClock(), SystemEntropy())
    try:
        return await _enrol(runtime, authority, count)
    finally:
        await runtime.database.close()


async def _enrol(runtime: Runtime, authority: str, count: int) -> list[Machine]:
    async with runtime.database.write() as session:
        site = (await session.scalars(select(Site).where(Site.organization_id != INSTALLATION).limit(1))).one()
        machines = [_known_machine(runtime, authority) for _ in range(count)]
        rows = [_agent_row(machine, site, runtime.clock.now()) for machine in machines]
        scanners = [_scanner_row(row, name) for row in rows for name in SCANNERS]
        await session.execute(insert(Agent), rows)
        for start in range(0, len(scanners), 1000):
            await session.execute(insert(Scanner), scanners[start : start + 1000])
    return machines


def _known_machine(runtime: Runtime, authority: str) -> Machine:
    machine = Machine(now=runtime.clock.now, authority=authority, server=runtime.server, agent_id=str(uuid7()))
    claims = access_tokens.AccessClaims(
        UUID(machine.agent_id), machine.key.key_id, 1, 0, machine.evidence().digest
    )
    machine.access_token = access_tokens.issue(
        claims,
        secret=runtime.keys.agent_tokens,
        server=runtime.server,
        now=runtime.clock.now(),
        entropy=runtime.entropy,
    )
    return machine


def _agent_row(machine: Machine, site: Site, now: datetime) -> dict[str, Any]:
    evidence = machine.evidence()
    return {
        "id": UUID(machine.agent_id),
        "organization_id": site.organization_id,
        "site_id": site.id,
        "hostname": "machine",
        "os": {"family": "linux", "id": "debian", "name": "Debian GNU/Linux 12 (bookworm)", "version": "12"},
        "agent_version": "0.1.0",
        "protocol": [1],
        "status": AgentStatus.ACTIVE,
        "status_reason": "registered",
        "status_at": now,
        "registered_at": now,
        "key_type": "ed25519",
        "key_id": machine.key.key_id,
        "public_key": machine.key.verify_key.public_key,
        "executor_key_id": machine.executor.key_id,
        "executor_key": machine.executor.verify_key.public_key,
        "token_version": 1,
        "machine_binding": evidence.binding,
        "evidence": codec.unstructure(evidence),
        "evidence_digest": evidence.digest,
        "last_match_at": now,
        "boot_id": machine.boot_id,
        "first_refresh_hash": secret_digest(machine.secret),
        "first_evidence_digest": evidence.digest,
        "refresh_current": secret_digest(machine.secret),
        "refresh_expires_at": int(now.timestamp()) + REFRESH_SECONDS,
        "epoch": 1,
        "last_seen_at": now,
        "last_address": "127.0.0.1",
    }


def _scanner_row(agent: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {
        "id": uuid7(),
        "organization_id": agent["organization_id"],
        "agent_id": agent["id"],
        "name": name,
        "manager": name,
        "status": ScanStatus.OK,
        "warnings": [],
        "facts": {},
        "duration_ms": 1000,
        "taken_at": agent["registered_at"],
        "succeeded_at": agent["registered_at"],
        "inventory_hash": EMPTY,
    }


# --- processes ---


@contextlib.contextmanager
def _served(what: str, *arguments: str) -> Iterator[tuple[int, Processes]]:
    """A server in a process of its own: the floor, or the application on a data directory."""
    port = int(arguments[1]) if what == "redflag" else _free_port()
    command = [sys.executable, "-m", "tests.benchmarks.check_in", what, str(port), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield port, Processes(process.pid)
        finally:
            process.terminate()


def _serve(what: str, port: int, data: str, url: str) -> None:
    """What the process does."""
    with tempfile.TemporaryDirectory() as directory:
        authority = f"http://127.0.0.1:{port}"
        settings = Settings(
            data=Path(data or directory),
            port=port,
            public_urls=(authority,),
            postgresql=url or None,
            address_limit=NO_LIMIT,
        )
        app = (
            _floor_app() if what == "floor" else create_app(settings, clock=SystemClock(), entropy=SystemEntropy())
        )
        asyncio.run(_run(app, settings))


async def _run(app: Litestar, settings: Settings) -> None:
    stop = asyncio.Event()

    def ready() -> None:
        stop_on_signals(stop)
        print("ready", flush=True)

    await serve(app, settings, stop=stop, ready=ready)


def _floor_app() -> Litestar:
    key = SigningKey.generate()
    signature = key.sign(b"x" * 600)

    @post("/api/v1/floor")
    async def handler(body: bytes) -> dict[str, int]:
        key.verify_key.verify(b"x" * 600, signature)
        return {"v": len(body)}

    runtime = type("Idle", (), {"waiting": Waiting()})()
    return Litestar([handler], logging_config=None, state=State({"runtime": runtime}))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _serve(sys.argv[1], int(sys.argv[2]), *(sys.argv[3:4] or [""]), *(sys.argv[5:6] or [""]))
    else:
        for line in measure():
            print(line)
