"""The server as a process: kill -9 under load loses nothing that was accepted, and it ends and starts cleanly."""

import asyncio
import random
import signal
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from redflag_core.enrolment import parse_registration_token
from redflag_core.scanning import PackageState
from tests.helpers.fleet import Machine, full_report, package
from tests.helpers.processes import REDFLAG, child, free_port, redflag, server


def _now() -> datetime:
    return datetime.now(UTC)


def _token(data: Path, seats: int) -> Any:
    text = redflag("server", "registration-token", "add", "load", "--seats", str(seats), "--data", str(data))
    return parse_registration_token(text.strip().splitlines()[-1])


async def _enrol(port: int, token: Any, count: int) -> list[Machine]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        machines = [Machine(now=_now, authority=f"127.0.0.1:{port}") for _ in range(count)]
        for machine in machines:
            await machine.enrol(client, token)
    return machines


async def _load_until_dead(port: int, machines: list[Machine], accepted: dict[str, set[str]]) -> None:
    """Each machine sends reports, one after the other, until the server is gone; what was accepted is noted."""

    async def one(machine: Machine) -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            for number in range(10_000):
                report = full_report([package(f"package-{number}", PackageState.AVAILABLE)])
                answer = await machine.report(client, report)
                if answer.status_code == 200:
                    accepted[machine.agent_id].add(report.report_id)
                else:
                    assert answer.status_code == 429, answer.text

    await asyncio.gather(*(one(machine) for machine in machines), return_exceptions=True)


@pytest.mark.parametrize("round_", range(2))
def test_kill_9_of_the_server_under_load_loses_nothing_accepted(tmp_path: Path, round_: int):
    """After kill -9 at a random moment every report that was answered 200 is there, and SQLite is intact."""
    _kill_rounds(tmp_path, rounds=2, seed=round_)


@pytest.mark.full
def test_kill_9_of_the_server_at_many_moments_loses_nothing_accepted(tmp_path: Path):
    """The same, twenty times on one database."""
    _kill_rounds(tmp_path, rounds=20, seed=99)


def _kill_rounds(data: Path, *, rounds: int, seed: int) -> None:
    rng, port = random.Random(seed), free_port()
    accepted: dict[str, set[str]] = {}
    machines: list[Machine] = []
    for _ in range(rounds):
        with server(data, port) as process:
            if not machines:
                machines = asyncio.run(_enrol(port, _token(data, 4), 4))
                accepted = {machine.agent_id: set() for machine in machines}
            asyncio.run(_load_and_kill(process, port, machines, accepted, after=rng.uniform(0.3, 1.2)))
    assert sum(map(len, accepted.values())) > rounds, "the load did not reach the server"
    with server(data, port) as process:
        assert 0 == process.stop()
    _check_database(data, accepted)


async def _load_and_kill(process: Any, port: int, machines: list[Machine], accepted: Any, *, after: float) -> None:
    load = asyncio.create_task(_load_until_dead(port, machines, accepted))
    asyncio.get_running_loop().call_later(after, process.kill)
    await load


def _check_database(data: Path, accepted: dict[str, set[str]]) -> None:
    from uuid import UUID

    with sqlite3.connect(data / "redflag.db") as database:
        assert [("ok",)] == database.execute("PRAGMA integrity_check").fetchall()
        assert [] == database.execute("PRAGMA foreign_key_check").fetchall()
        stored = {
            (UUID(bytes=agent), UUID(bytes=report))
            for agent, report in database.execute("SELECT agent_id, id FROM scan_reports")
        }
    database.close()
    missing = {(agent, report) for agent, reports in accepted.items() for report in reports} - {
        (str(agent), str(report)) for agent, report in stored
    }
    assert set() == missing


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_cleanly(tmp_path: Path, number: int):
    """SIGTERM and Ctrl-C end it with status 0 and no traceback."""
    with server(tmp_path, free_port()) as process:
        assert 0 == process.stop(number)
        assert "Traceback" not in process.transcript()


def test_the_second_start_is_quick_and_finds_everything(tmp_path: Path):
    """A restart answers in under five seconds, with the same identity."""
    port = free_port()
    with server(tmp_path, port) as process:
        before = httpx.get(f"http://127.0.0.1:{port}/api/v1/trust/root/1").content
        process.stop()
    started = time.monotonic()
    with server(tmp_path, port):
        took = time.monotonic() - started
        assert before == httpx.get(f"http://127.0.0.1:{port}/api/v1/trust/root/1").content
    assert took < 5


def test_a_second_server_on_the_same_directory_is_refused(tmp_path: Path):
    """SQLite belongs to one server: the second says so in one sentence."""
    with (
        server(tmp_path, free_port()),
        child(REDFLAG, "server", "run", "--data", str(tmp_path), "--port", str(free_port())) as second,
    ):
        assert 1 == second.wait()
        second.close()
        assert "another RedFlag server" in second.transcript()


def test_a_port_that_is_in_use_is_a_sentence(tmp_path: Path):
    """No traceback, and the way out."""
    port = free_port()
    with (
        server(tmp_path / "one", port),
        child(REDFLAG, "server", "run", "--data", str(tmp_path / "two"), "--port", str(port)) as second,
    ):
        assert 1 == second.wait()
        second.close()
        assert "--port" in second.transcript()
        assert "Traceback" not in second.transcript()
