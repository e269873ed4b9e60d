"""The agent as a process against a real server: what it reports, copies elsewhere, kill -9 at any moment."""

import contextlib
import json
import random
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.beds.apt import AptBed, needs_apt
from tests.helpers.needs import needs, needs_root
from tests.helpers.processes import REDFLAG, Child, child, free_port, redflag, server

pytestmark = needs_apt


class Installation:
    """A running server, the means to look into it, and a directory for agents."""

    def __init__(self, directory: Path, port: int, public: int | None = None) -> None:
        self.data = directory / "server"
        self.url = f"http://127.0.0.1:{port}"
        self.public = f"http://127.0.0.1:{public or port}"

    def token(self) -> str:
        """Text of a registration token for one machine."""
        return (
            redflag("server", "registration-token", "add", "e2e", "--data", str(self.data))
            .strip()
            .splitlines()[-1]
        )

    def get(self, path: str, **query: Any) -> list[dict[str, Any]]:
        """All items of a list of the API."""
        if not hasattr(self, "_key"):
            key = redflag("server", "api-key", "add", "e2e", "--scope", "*", "--data", str(self.data))
            self._key = key.strip()
        answer = httpx.get(
            f"{self.url}/api/v1/{path}",
            params={"limit": 1000, **query},
            headers={"authorization": f"Bearer {self._key}"},
        )
        assert answer.status_code == 200, answer.text
        items: list[dict[str, Any]] = answer.json()["items"]
        return items

    def event_kinds(self) -> set[str]:
        """Kinds of all events."""
        return {event["kind"] for event in self.get("events")}


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    """A server that agents reach directly."""
    made = Installation(tmp_path, free_port())
    with server(made.data, int(made.url.rpartition(":")[2])):
        yield made


def agent_directory(directory: Path, bed: AptBed) -> Path:
    """A data directory whose agent looks at the bed instead of this machine's packages."""
    directory.mkdir(mode=0o700, parents=True)
    settings = f'[apt]\nconfig = "{bed.apt_config}"\npath_prefix = "{bed.bin}"\nrefresh = "off"\n'
    (directory / "agent.toml").write_text(settings, encoding="utf-8")
    return directory


def run_agent(
    data: Path, token: str = "", *arguments: str, **options: Any
) -> contextlib.AbstractContextManager[Child]:
    """``redflag agent run`` with its progress on standard output."""
    command = [REDFLAG, "agent", "run", "--data", str(data), "--token-stdin", "--progress-json", *arguments]
    return child(*command, stdin=token, **options)


def run_once(data: Path, token: str = "") -> None:
    """Scan, report and end."""
    with run_agent(data, token, "--once") as agent:
        assert 0 == agent.wait(), agent.transcript()


def pending_by_apt(bed: AptBed) -> dict[str, str]:
    """What apt itself says is pending, read apart from the scanner: installed packages on Inst lines."""

    def installed_on_inst_lines(verb: str) -> set[str]:
        text = bed.run("apt-get", "-s", verb).stdout
        return set(re.findall(r"^Inst (\S+) \[", text, re.MULTILINE))

    all_of_them, plain = installed_on_inst_lines("dist-upgrade"), installed_on_inst_lines("upgrade")
    states = {name.partition(":")[0]: "available" if name in plain else "kept_back" for name in all_of_them}
    held = {name.partition(":")[0]: "held" for name in bed.run("apt-mark", "showhold").stdout.split()}
    return {**states, **held, "rf-phased": "phased"}


@pytest.mark.parametrize("language", ["C", "de"])
def test_the_fleet_lists_exactly_what_the_bed_lacks(
    installation: Installation, tmp_path: Path, shared_apt_bed: AptBed, language: str
):
    """Over real processes, in C and German: pending packages are apt's own, each in its honest state."""
    locale = {"LANGUAGE": "de", "LC_ALL": "de_DE.UTF-8"} if language == "de" else {"LC_ALL": "C"}
    data = agent_directory(tmp_path / "agent", shared_apt_bed)

    with run_agent(data, installation.token(), "--once", environment=locale) as agent:
        assert 0 == agent.wait(), agent.transcript()

    listed = {package["name"]: package["state"] for package in installation.get("packages")}
    assert pending_by_apt(shared_apt_bed) == listed
    current = {package["name"] for package in installation.get("packages", state="current")}
    assert {"rf-uptodate", "rf-victim"} <= current


@needs_root()
@needs("unshare", "mount")
def test_a_copied_state_on_another_machine_is_refused(
    installation: Installation, tmp_path: Path, shared_apt_bed: AptBed
):
    """The whole directory on a machine with no equal component: refused, an event; the original goes on."""
    original = agent_directory(tmp_path / "original", shared_apt_bed)
    run_once(original, installation.token())
    copy = tmp_path / "copy"
    shutil.copytree(original, copy)
    copy.chmod(0o700)
    other_id = tmp_path / "machine-id"
    other_id.write_text("0123456789abcdef0123456789abcdef\n", encoding="ascii")
    script = (
        f'mount --bind "{other_id}" /etc/machine-id && mount -t tmpfs tmpfs /sys/dev/block && '
        'if [ -d /sys/class/dmi/id ]; then mount -t tmpfs tmpfs /sys/class/dmi/id; fi; exec "$@"'
    )

    with child(
        "unshare", "-m", "sh", "-c", script, "sh", REDFLAG, "agent", "run", "--once", "--data", str(copy)
    ) as thief:
        assert 0 != thief.wait(), thief.transcript()

    assert "agent.machine_mismatch" in installation.event_kinds()
    run_once(original)
    (agent,) = installation.get("agents")
    assert "active" == agent["status"]


def test_a_copy_on_the_same_machine_quarantines_both(
    installation: Installation, tmp_path: Path, shared_apt_bed: AptBed
):
    """A copied refresh secret used by two: whoever refreshes second is found out, and both are cut off."""
    original = agent_directory(tmp_path / "original", shared_apt_bed)
    run_once(original, installation.token())
    copy = tmp_path / "copy"
    shutil.copytree(original, copy)
    copy.chmod(0o700)
    for directory in (original, copy):
        forget_access_token(directory)

    run_once(original)
    with run_agent(copy, "", "--once") as second:
        assert 0 != second.wait(), second.transcript()

    (agent,) = installation.get("agents")
    assert "quarantined" == agent["status"]
    with run_agent(original, "", "--once") as first:
        assert 0 != first.wait(), first.transcript()


def forget_access_token(data: Path) -> None:
    """As after a day: the access token is gone, the refresh secret is needed."""
    path = data / "state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    text = json.dumps({**state, "access": None} if "access" in state else {**state, "access_token": None})
    path.write_text(text, encoding="utf-8")


class KillingProxy:
    """
    Stands between agent and server, and kills the agent when the answer to a token request comes back.

    Args:
        port: Where it listens.
        target: The server's port.
    """

    def __init__(self, port: int, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", port))
        self.victim: Child | None = None
        self.killed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                inner, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(inner,), daemon=True).start()

    def _serve(self, inner: socket.socket) -> None:
        with inner, socket.create_connection(("127.0.0.1", self._target)) as outer, contextlib.suppress(OSError):
            wants_token = threading.Event()
            back = threading.Thread(target=self._back, args=(outer, inner, wants_token), daemon=True)
            back.start()
            while data := inner.recv(65_536):
                if b"POST /api/v1/agent/token" in data:
                    wants_token.set()
                outer.sendall(data)

    def _back(self, outer: socket.socket, inner: socket.socket, wants_token: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := outer.recv(65_536):
                if wants_token.is_set() and self.victim is not None and not self.killed.is_set():
                    self.victim.kill()
                    self.killed.set()
                    return
                inner.sendall(data)

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()


def test_an_agent_killed_before_it_stored_its_token_recovers_by_itself(tmp_path: Path, shared_apt_bed: AptBed):
    """Kill -9 between the server's answer and its storage: the next start goes on, nobody is quarantined."""
    inside, outside = free_port(), free_port()
    installation = Installation(tmp_path, inside, outside)
    data = agent_directory(tmp_path / "agent", shared_apt_bed)
    with server(installation.data, inside, "--public-url", installation.public):
        proxy = KillingProxy(outside, inside)
        with run_agent(data, installation.token()) as agent:
            proxy.victim = agent
            assert proxy.killed.wait(60), agent.transcript()
        run_once(data)
        forget_access_token(data)
        run_once(data)
        proxy.close()
        (found,) = installation.get("agents")
        kinds = installation.event_kinds()

    assert "active" == found["status"]
    assert not kinds & {"agent.quarantined", "agent.refresh_adopted"}


def _kill_agent_at_random(installation: Installation, data: Path, *, rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    token = installation.token()
    for _ in range(rounds):
        with run_agent(data, token) as agent:
            with contextlib.suppress(subprocess.TimeoutExpired):
                agent.process.wait(rng.uniform(0.2, 2.5))
            agent.kill()
    run_once(data, token)
    (found,) = installation.get("agents")
    assert "active" == found["status"]
    assert "agent.quarantined" not in installation.event_kinds()


def test_kill_9_of_the_agent_at_random_moments_loses_nothing(
    installation: Installation, tmp_path: Path, shared_apt_bed: AptBed
):
    """However often it is killed, it stays one agent, goes on by itself, and its inventory arrives whole."""
    data = agent_directory(tmp_path / "agent", shared_apt_bed)

    _kill_agent_at_random(installation, data, rounds=5, seed=1)

    listed = {package["name"]: package["state"] for package in installation.get("packages")}
    assert pending_by_apt(shared_apt_bed) == listed


@pytest.mark.full
def test_kill_9_of_the_agent_at_many_moments_loses_nothing(
    installation: Installation, tmp_path: Path, shared_apt_bed: AptBed
):
    """The same, forty times."""
    data = agent_directory(tmp_path / "agent", shared_apt_bed)

    _kill_agent_at_random(installation, data, rounds=40, seed=2)
