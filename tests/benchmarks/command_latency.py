"""From an order to its envelope on an agent that waits in a long-poll, over loopback HTTP and a real server."""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx

from redflag_core.enrolment import parse_registration_token
from tests.helpers.fleet import API, Machine
from tests.helpers.processes import free_port, redflag, server

MACHINES, ROUNDS = 50, 4
SETTLE = 0.05
"""Seconds that a check-in has to be held before something is ordered."""


def measure() -> Iterator[str]:
    """Milliseconds from sending the order, and from its answer, to the envelope: half and 95 of 100 are faster."""
    with tempfile.TemporaryDirectory() as directory:
        data, port = Path(directory) / "data", free_port()
        with server(data, port):
            sent, answered = asyncio.run(_measure(data, port))
    for name, times in (("order sent to envelope there", sent), ("order answered to envelope there", answered)):
        steps = statistics.quantiles(times, n=20)
        yield f"{name:<33} p50 {1000 * steps[9]:6.1f} ms, p95 {1000 * steps[18]:6.1f} ms ({len(times)} orders)"
    yield "(to reach: 5 ms p95 from commit to the last byte of the reply)"


async def _measure(data: Path, port: int) -> tuple[list[float], list[float]]:
    token = parse_registration_token(
        redflag("server", "registration-token", "add", "b", "--seats", str(MACHINES), "--data", str(data)).split()[
            -1
        ]
    )
    key = redflag("server", "api-key", "add", "b", "--scope", "*", "--data", str(data)).strip()
    sent: list[float] = []
    answered: list[float] = []
    base = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=base, timeout=60) as agent, httpx.AsyncClient(base_url=base) as people:
        people.headers["authorization"] = f"Bearer {key}"
        for _ in range(MACHINES):
            machine = Machine(now=lambda: datetime.now(UTC), authority=f"127.0.0.1:{port}")
            await machine.enrol(agent, token)
            await machine.learn_trust(agent)
            for number in range(ROUNDS):
                began, ordered, arrived = await _order(machine, agent, people, f"scanner_{number}")
                sent.append(arrived - began)
                answered.append(arrived - ordered)
    return sent, answered


async def _order(
    machine: Machine, agent: httpx.AsyncClient, people: httpx.AsyncClient, scanner: str
) -> tuple[float, float, float]:
    """When an order was sent, when it was answered, and when its envelope was there."""

    async def poll() -> tuple[float, bytes]:
        (wire,) = await machine.fetch(agent, wait=30)
        return time.perf_counter(), wire

    waiting = asyncio.create_task(poll())
    await asyncio.sleep(SETTLE)
    body = {"agent_id": machine.agent_id, "type": "scan.run", "reason": "measured", "scanner": scanner}
    began = time.perf_counter()
    (await people.post(f"{API}/commands", json=body)).raise_for_status()
    ordered = time.perf_counter()
    arrived, wire = await waiting
    (await machine.deliver(agent, machine.execute(wire))).raise_for_status()
    return began, ordered, arrived
