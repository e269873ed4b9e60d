"""The first patch over HTTP only, with real server, agent and apt: decided, planned, installed, proven."""

import asyncio
import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from redflag_core import codec
from redflag_core.commands import CommandType
from redflag_core.encoding import b64decode
from redflag_core.envelope import parse_envelope
from redflag_core.keys import VerifyKey
from redflag_core.messages import MAX_SMALL_BODY, TrustBundle
from redflag_core.statements import CommandAccepted, CommandResult, open_statement
from redflag_core.system import SystemClock, SystemEntropy
from redflag_server.commands.queue import NewCommand, order
from redflag_server.plans.follow import upgrade_params
from redflag_server.plans.tables import Plan
from redflag_server.settings import Settings
from redflag_server.start import open_runtime
from tests.beds.apt import V1, V2, AptBed, Deb, needs_apt
from tests.e2e.test_agent_process import Installation, agent_directory, run_agent
from tests.helpers.needs import needs
from tests.helpers.processes import DEADLINE, Child, free_port, server

pytestmark = [needs_apt, needs("gpg")]  # without signatures the machine refuses every version as not authenticated

LIVE = {"pending", "leased", "accepted", "running"}


class Operator(Installation):
    """Somebody who works with the API only."""

    def post(self, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
        """Do something; the answer's document."""
        self.get("events", limit=1)  # makes the key
        answer = httpx.post(
            f"{self.url}/api/v1/{path}", json=body, headers={"authorization": f"Bearer {self._key}"}
        )
        assert status == answer.status_code, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def one(self, path: str) -> dict[str, Any]:
        """One document."""
        self.get("events", limit=1)
        answer = httpx.get(f"{self.url}/api/v1/{path}", headers={"authorization": f"Bearer {self._key}"})
        assert 200 == answer.status_code, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def package(self, name: str) -> dict[str, Any]:
        """The package with exactly this name."""
        (found,) = [
            item for item in self.get("packages", name=name, include_current="true") if item["name"] == name
        ]
        return found

    def until(self, what: str, found: Any, within: float = DEADLINE) -> Any:
        """Look again and again until *found* says something, or the test fails."""
        deadline = time.monotonic() + within
        while True:
            answer = found()
            if answer:
                return answer
            assert time.monotonic() < deadline, f"not in time: {what}"
            select.select([], [], [], 0.05)

    def plan(self, name: str) -> dict[str, Any]:
        """Approve a package and have its machine plan the update; the plan."""
        package = self.package(name)
        self.post(f"packages/{package['id']}/approve", reason="tested on the bench")
        made = self.post("plans", status=201, package_ids=[package["id"]], reason="patch day")
        (item,) = made["items"]
        return self.until(
            f"plan of {name}", lambda: (plan := self.one(f"plans/{item['id']}"))["state"] != "planning" and plan
        )

    def install(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Order the installation of a plan; its command."""
        self.post(f"plans/{plan['id']}/install", reason="patch day")
        (command,) = self.get("commands", plan_id=plan["id"], type="packages.upgrade")
        return command

    def ended(self, command: dict[str, Any]) -> dict[str, Any]:
        """The command once it has ended."""
        return self.until(
            "end of a command",
            lambda: (now := self.one(f"commands/{command['id']}"))["command"]["state"] not in LIVE and now,
        )

    def server_id(self) -> str:
        """The server's id, from what it publishes."""
        wire = httpx.get(f"{self.url}/api/v1/trust/bundle").content
        return codec.parse(TrustBundle, parse_envelope(wire).payload, max_bytes=MAX_SMALL_BODY).server


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    """A server, and somebody who works with it."""
    made = Operator(tmp_path, free_port())
    with server(made.data, int(made.url.rpartition(":")[2])):
        yield made


@contextlib.contextmanager
def machine(operator: Operator, directory: Path, bed: AptBed) -> Iterator[Child]:
    """A machine whose first report has arrived."""
    with run_agent(agent_directory(directory, bed), operator.token()) as agent:
        agent.event("report_accepted", scanner="apt")
        yield agent


def installed(bed: AptBed, name: str) -> str:
    """Version and status as dpkg has them."""
    done = bed.run("dpkg-query", "-W", "-f", "${Version} ${db:Status-Status}", name, check=False)
    return done.stdout


def test_a_new_dependency_is_shown_confirmed_and_installed(operator: Operator, tmp_path: Path, apt_bed: AptBed):
    """Scan, approve, plan with its new dependency, confirm, install, and a result that the machine signed."""
    with machine(operator, tmp_path / "agent", apt_bed):
        plan = operator.plan("rf-newdep")
        changes = {change["name"]: change for change in plan["transaction"]["changes"]}
        assert ("needs_confirmation", "needs_confirmation") == (
            plan["state"],
            operator.package("rf-newdep")["state"],
        )
        assert {"rf-newdep", "rf-dep-new"} == set(changes)
        assert (None, V2) == (changes["rf-dep-new"]["before"], changes["rf-dep-new"]["after"])
        operator.post(f"plans/{plan['id']}/install", status=409, reason="too early")

        operator.post(f"plans/{plan['id']}/confirm", reason="it needs that")
        command = operator.ended(operator.install(plan))

        assert ("completed", "installed") == (command["command"]["state"], operator.package("rf-newdep")["state"])
        assert f"{V2} installed" == installed(apt_bed, "rf-newdep") == installed(apt_bed, "rf-dep-new")
        assert "rf-dep-new" in apt_bed.run("apt-mark", "showauto").stdout
        server_id, agent_id = operator.server_id(), command["command"]["agent_id"]
        key = VerifyKey(b64decode(command["executor_key"]))
        ends = {
            type(open_statement(b64decode(item["envelope"]), key, server=server_id, agent_id=agent_id))
            for item in command["statements"]
        }
        assert {CommandAccepted, CommandResult} == ends


def test_a_failing_postinst_is_failed_with_its_output(operator: Operator, tmp_path: Path, apt_bed: AptBed):
    """What the package manager said is in the result."""
    with machine(operator, tmp_path / "agent", apt_bed):
        command = operator.ended(operator.install(operator.plan("rf-badpost")))

        assert ("failed", "failed") == (command["command"]["state"], operator.package("rf-badpost")["state"])
        assert "rf-badpost: boom" in command["result"]["output"]
        assert command["result"]["exit_status"] == 100


def test_held_stays_held(operator: Operator, tmp_path: Path, apt_bed: AptBed):
    """What the machine's owner holds cannot be approved, and is left alone by everything else."""
    with machine(operator, tmp_path / "agent", apt_bed):
        held = operator.package("rf-held")
        refusal = operator.post(f"packages/{held['id']}/approve", status=409, reason="all of them")
        assert "held" in refusal["detail"]

        operator.ended(operator.install(operator.plan("rf-normal")))
        assert ("held", f"{V1} installed") == (operator.package("rf-held")["state"], installed(apt_bed, "rf-held"))


def test_a_drifted_plan_is_refused(operator: Operator, tmp_path: Path, apt_bed: AptBed):
    """A newer dependency came out after the plan: nothing is changed, the approval stays, the plan is void."""
    with machine(operator, tmp_path / "agent", apt_bed):
        plan = operator.plan("rf-newdep")
        operator.post(f"plans/{plan['id']}/confirm", reason="it needs that")
        apt_bed.publish(Deb("rf-dep-new", "3.0-1"))

        command = operator.ended(operator.install(plan))

        assert ("failed", "plan_drifted") == (command["command"]["state"], command["command"]["code"])
        assert "dropped" == operator.one(f"plans/{plan['id']}")["state"]
        assert "approved" == operator.package("rf-newdep")["state"]
        assert f"{V1} installed" == installed(apt_bed, "rf-newdep")


LOCK = """
import fcntl, sys
held = [open(path, "w") for path in sys.argv[1:]]
for file in held:
    fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_with_another_package_manager_at_work_the_agent_waits(operator: Operator, tmp_path: Path, apt_bed: AptBed):
    """Nothing is started while another process holds the lock; when it lets go, the installation succeeds."""
    locks = [str(apt_bed.admindir / name) for name in ("lock", "lock-frontend")]
    with machine(operator, tmp_path / "agent", apt_bed):
        plan = operator.plan("rf-normal")
        other = subprocess.Popen(
            [sys.executable, "-c", LOCK, *locks], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with other:
            assert other.stdout is not None
            assert "held\n" == other.stdout.readline()
            command = operator.install(plan)
            waiting = operator.until(
                "waiting for the lock",
                lambda: operator.one(f"commands/{command['id']}")["command"]["progress"],
            )
            assert "waiting" == waiting["phase"]
            assert f"{V1} installed" == installed(apt_bed, "rf-normal")
            assert other.stdin is not None
            other.stdin.close()

        assert "completed" == operator.ended(command)["command"]["state"]
        assert f"{V2} installed" == installed(apt_bed, "rf-normal")


async def order_past_the_check(data: Path, plan_id: str) -> None:
    """What a hacked server does: order what no operator approved, exactly as if one had."""
    runtime = await open_runtime(Settings(data=data), SystemClock(), SystemEntropy())
    async with runtime.database.write() as session:
        plan = await session.get_one(Plan, UUID(plan_id))
        new = NewCommand(
            agent_id=plan.agent_id,
            type=CommandType.PACKAGES_UPGRADE,
            params=upgrade_params(plan),
            reason="nobody approved this",
            plan_id=plan.id,
        )
        await order(session, "server", new, runtime.clock.now())
    await runtime.database.close()


def test_a_removal_is_refused_by_the_machine(operator: Operator, tmp_path: Path, apt_bed: AptBed):
    """The server orders no removal without an approval; ordered past its check, the executor refuses it."""
    with machine(operator, tmp_path / "agent", apt_bed):
        plan = operator.plan("rf-keptback")
        assert (["removal"], "needs_confirmation") == (plan["beyond_routine"], plan["state"])
        operator.post(f"plans/{plan['id']}/confirm", reason="the victim may go")
        refused = operator.post(f"plans/{plan['id']}/install", status=409, reason="patch day")
        assert "approvals/request" in refused["detail"]

        asyncio.run(order_past_the_check(operator.data, plan["id"]))
        agent_id = plan["agent_id"]
        operator.post("commands", agent_id=agent_id, type="agent.heartbeat", reason="to wake it")
        (ordered,) = operator.get("commands", plan_id=plan["id"], type="packages.upgrade")
        command = operator.ended(ordered)

        assert ("failed", "needs_approval") == (command["command"]["state"], command["command"]["code"])
        assert f"{V1} installed" == installed(apt_bed, "rf-victim") == installed(apt_bed, "rf-keptback")
        assert "approved" == operator.package("rf-keptback")["state"]


@pytest.fixture
def gate(apt_bed: AptBed) -> Iterator[Path]:
    """A package whose installation waits until somebody opens a gate, and counts how often it was run."""
    folder = apt_bed.directory / "gate"
    folder.mkdir()
    os.mkfifo(folder / "open")
    script = f"echo started >> {folder}/starts\nread line < {folder}/open\n"
    apt_bed.publish(Deb("rf-uptodate", V2, postinst=script))
    yield folder
    # A test that failed must not leave anybody waiting.
    opened = os.open(folder / "open", os.O_RDWR | os.O_NONBLOCK)
    os.write(opened, b"go\n")
    os.close(opened)


def test_killed_during_the_installation_it_is_started_once_and_the_truth_is_told(
    operator: Operator, tmp_path: Path, apt_bed: AptBed, gate: Path
):
    """Kill -9 of the agent while dpkg runs: dpkg goes on, the next agent waits for it and signs what happened."""
    data = agent_directory(tmp_path / "agent", apt_bed)
    with run_agent(data, operator.token()) as first:
        first.event("report_accepted", scanner="apt")
        command = operator.install(operator.plan("rf-uptodate"))
        operator.until("the start", (gate / "starts").exists)
        first.kill()
        with run_agent(data):
            operator.until(
                "running", lambda: operator.one(f"commands/{command['id']}")["command"]["state"] == "running"
            )
            with (gate / "open").open("w") as opened:
                opened.write("go\n")
            ended = operator.ended(command)
    assert ("completed", None) == (ended["command"]["state"], ended["command"]["code"])
    assert "started\n" == (gate / "starts").read_text()
    assert f"{V2} installed" == installed(apt_bed, "rf-uptodate")
    assert ["result"] == [item["kind"] for item in ended["statements"] if item["kind"] == "result"]
