"""``redflag up``: one command, server and agent, and both gone at the end."""

import os
import re
import select
import signal
import time
from pathlib import Path
from typing import Any

import httpx

from tests.beds.apt import AptBed, needs_apt
from tests.e2e.test_agent_process import Installation, agent_directory, pending_by_apt
from tests.helpers.processes import REDFLAG, Child, child, free_port

pytestmark = needs_apt


def _data(tmp_path: Path, bed: AptBed) -> Path:
    """A data directory of `up` whose agent scans *bed*; private, or it would be refused."""
    data = tmp_path / "data"
    agent_directory(data / "agent", bed)
    data.chmod(0o700)
    return data


def _up(data: Path, port: int) -> Any:
    return child(REDFLAG, "up", "--data", str(data), "--port", str(port), "--no-browser")


def _agent_process(parent: Child) -> int:
    """A descriptor of the agent's process, which becomes readable when it ends."""
    children = Path(f"/proc/{parent.process.pid}/task/{parent.process.pid}/children").read_text(encoding="ascii")
    agents = [
        int(pid) for pid in children.split() if b"redflag_agent" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return os.pidfd_open(agents[0])


def _ended(descriptor: int) -> bool:
    readable, _, _ = select.select([descriptor], [], [], 30)
    os.close(descriptor)
    return bool(readable)


def test_up_shows_the_machine_and_ends_cleanly(tmp_path: Path, shared_apt_bed: AptBed):
    """Set-up link, sign-in page, this machine's packages; Ctrl-C ends both; the next start finds everything."""
    installation = Installation(tmp_path, free_port())
    installation.data = _data(tmp_path, shared_apt_bed)
    port = int(installation.url.rpartition(":")[2])
    with _up(installation.data, port) as first:
        link = re.search(r"http://\S+", first.until("set up"))
        first.until("reported")
        agent = _agent_process(first)
        setup = httpx.get(link[0])
        page = httpx.get(f"{installation.url}/", follow_redirects=True)
        listed = {package["name"]: package["state"] for package in installation.get("packages")}
        assert 0 == first.stop(signal.SIGINT), first.transcript()
        assert _ended(agent)
        assert "Traceback" not in first.transcript()
    assert (200, 200) == (setup.status_code, page.status_code)
    assert pending_by_apt(shared_apt_bed) == listed

    with _up(installation.data, port) as second:
        second.until("dashboard")
        httpx.get(f"{installation.url}/api/v1/health/ready").raise_for_status()
        second.until("packages")
        (machine,) = installation.get("agents")
        assert 0 == second.stop(signal.SIGTERM)
    assert "active" == machine["status"]


def test_the_agent_ends_when_up_is_killed(tmp_path: Path, shared_apt_bed: AptBed):
    """Kill -9 of the parent leaves no orphan that would hold the data directory."""
    with _up(_data(tmp_path, shared_apt_bed), free_port()) as process:
        process.until("reported")
        agent = _agent_process(process)

        process.kill()

        assert _ended(agent)


def test_an_agent_that_dies_is_started_again(tmp_path: Path, shared_apt_bed: AptBed):
    """The local agent is kept running, and the console says what happened."""
    with _up(_data(tmp_path, shared_apt_bed), free_port()) as process:
        process.until("reported")
        agent = _agent_process(process)

        signal.pidfd_send_signal(agent, signal.SIGKILL)

        process.until("starting again")
        process.until("packages")
        assert _ended(agent)


def test_up_on_another_port_finds_its_agent_again(tmp_path: Path, shared_apt_bed: AptBed):
    """The agent follows the server of this machine to a new port without registering again."""
    data = _data(tmp_path, shared_apt_bed)
    seen = []
    for port in (free_port(), free_port()):
        installation = Installation(tmp_path, port)
        installation.data = data
        with _up(installation.data, port) as process:
            process.until("packages")
            agent = _until_seen(installation, after=seen[-1]["last_seen_at"] if seen else "")
            seen.append(agent)
            assert 0 == process.stop(signal.SIGTERM), process.transcript()
    assert seen[0]["id"] == seen[1]["id"]


def _until_seen(installation: Installation, *, after: str) -> dict[str, Any]:
    """The one agent, once it was seen later than *after*."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        (agent,) = installation.get("agents")
        if agent["last_seen_at"] > after:
            return agent
    raise AssertionError("the agent did not come back")
