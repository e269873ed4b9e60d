"""Disks and system of this machine, over a real agent and a real server, to the API."""

from pathlib import Path
from typing import Any

import httpx

from redflag_core.scanning import StorageFacts, SystemFacts, open_facts
from tests.e2e.test_agent_process import Installation, run_agent
from tests.helpers.processes import free_port, redflag, server

OFF = "[scanners.apt]\nenabled = false\n"


def _detail(installation: Installation, key: str) -> dict[str, Any]:
    (machine,) = installation.get("agents")
    url = f"{installation.url}/api/v1/agents/{machine['id']}"
    answer: dict[str, Any] = httpx.get(url, headers={"authorization": f"Bearer {key}"}).json()
    return answer


def test_an_agent_reports_how_its_machine_is(tmp_path: Path):
    """Its root file system and its memory are there, and nobody calls it up to date for that."""
    installation = Installation(tmp_path, free_port())
    data = tmp_path / "agent"
    data.mkdir(mode=0o700)
    (data / "agent.toml").write_text(OFF, encoding="utf-8")
    with server(installation.data, int(installation.url.rpartition(":")[2])):
        with run_agent(data, installation.token(), "--once") as agent:
            assert 0 == agent.wait(), agent.transcript()
        key = redflag(
            "server", "api-key", "add", "facts", "--scope", "*", "--data", str(installation.data)
        ).strip()
        detail = _detail(installation, key)

    facts = {scanner["name"]: scanner["facts"] for scanner in detail["scanners"]}
    storage, system = open_facts(StorageFacts, facts["storage"]), open_facts(SystemFacts, facts["system"])
    assert "/" == storage.filesystems[0].mount
    assert system.memory is not None
    assert system.memory.total > 0
    assert (None, {}, 0) == (
        detail["agent"]["scanned_at"],
        detail["agent"]["packages"],
        detail["agent"]["failing_scanners"],
    )
