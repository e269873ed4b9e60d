"""The how-tos for embedding the server work as they stand: an agent registers and checks in through each host."""

import re
import sys
from pathlib import Path

import httpx
import pytest

from tests.helpers.documents import blocks, read
from tests.helpers.processes import REDFLAG, child, free_port, redflag

PAGES = ("litestar", "fastapi", "django")


def write_files(host: str, directory: Path, port: int) -> None:
    """Write what the page shows, each file under the name in its first line."""
    for block in blocks(read(f"docs/how-to/embed-the-server-in-{host}.md"), "python"):
        name = re.match(r"# (\w+\.py)\n", block)
        assert name, f"{host}: a block has no name"
        (directory / name[1]).write_text(block.replace("8000", str(port)))


@pytest.mark.parametrize(
    "host", [host if host == "litestar" else pytest.param(host, marks=pytest.mark.full) for host in PAGES]
)
def test_an_agent_registers_and_checks_in_through_the_host_of_the_page(host: str, tmp_path: Path):
    """The files of the page, granian, and `redflag agent`: it is in the fleet, and the host answers."""
    port = free_port()
    write_files(host, tmp_path, port)
    data, agent_data = str(tmp_path / "redflag-data"), str(tmp_path / "agent")
    (tmp_path / "agent").mkdir(mode=0o700)
    (tmp_path / "agent" / "agent.toml").write_text('[apt]\nrefresh = "off"\n')
    command = [sys.executable, "-m", "granian", "--interface", "asgi", "--port", str(port), "app:app"]
    with child("env", f"--chdir={tmp_path}", *command) as process:
        process.until("Started worker")
        home = httpx.get(f"http://127.0.0.1:{port}/")
        token = redflag("server", "registration-token", "add", "office", "--data", data).strip().splitlines()[-1]
        arguments = [REDFLAG, "agent", "run", "--data", agent_data, "--token-stdin", "--progress-json", "--once"]
        with child(*arguments, stdin=token) as agent:
            agent.wait()
            told = agent.transcript()
        key = redflag("server", "api-key", "add", "e2e", "--scope", "*", "--data", data).strip()
        answer = httpx.get(
            f"http://127.0.0.1:{port}/redflag/api/v1/agents", headers={"authorization": f"Bearer {key}"}
        )

    assert (200, {"machines": "/redflag/"}) == (home.status_code, home.json())
    assert 200 == answer.status_code, answer.text
    (machine,) = answer.json()["items"]
    assert machine["last_seen_at"] is not None, told
