"""The commands of the how-to for approving a removal, typed one after the other, remove and install."""

import json
import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import attrs
import httpx

from redflag_core.approval_files import dump_answer, parse_request
from redflag_core.approvals import new_approval, sign_approval
from redflag_core.encoding import b64decode, b64encode
from redflag_core.keys import SigningKey, VerifyKey
from redflag_core.statements import CommandAccepted, CommandResult, Outcome, open_statement
from redflag_core.system import SystemClock, SystemEntropy
from tests.beds.apt import V1, V2, AptBed, needs_apt
from tests.e2e.test_first_patch import Operator, installed, machine, operator
from tests.helpers.documents import blocks, read
from tests.helpers.needs import needs
from tests.helpers.processes import DEADLINE, REDFLAG, redflag

pytestmark = [needs_apt, needs("gpg"), needs("curl")]
__all__ = ["operator"]  # the fixture

HOW_TO = "docs/how-to/approve-a-removal.md"
PASSPHRASE = "four words do it"


@attrs.define
class Typist:
    """Somebody who types what the how-to shows, with what was found out on the way."""

    operator: Operator
    desk: Path
    found: dict[str, str] = attrs.field(factory=dict)

    def type(self, command: str, **answers: str) -> str:
        """
        Run one command at a real terminal; all that appeared on it.

        Args:
            command: As the page shows it.
            answers: What is typed when a line ends with these words.
        """
        text = command.replace("http://127.0.0.1:8750", self.operator.url)
        text = text.replace("/var/lib/redflag", str(self.operator.data))
        bin_directory = str(Path(REDFLAG).parent)
        environment = {"PATH": f"{bin_directory}:{os.environ['PATH']}", "TERM": "dumb", **self.found}
        leader, follower = pty.openpty()
        process = subprocess.Popen(
            ["bash", "-euc", text], stdin=follower, stdout=follower, stderr=follower,
            cwd=self.desk, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(follower)
        try:
            shown = converse(leader, {prompt.replace("_", " "): answer for prompt, answer in answers.items()})
        finally:
            os.close(leader)
        assert 0 == process.wait(DEADLINE), shown
        return shown

    def ask(self, command: str) -> Any:
        """Run one command; the document that it prints."""
        document = json.loads(self.type(command))
        assert "detail" not in document or "id" in document, document  # no problem
        return document


def converse(leader: int, answers: dict[str, str]) -> str:
    """Answer prompts until the other side closes the terminal; what appeared."""
    shown, waiting, deadline = "", dict(answers), time.monotonic() + DEADLINE
    while select.select([leader], [], [], max(deadline - time.monotonic(), 0))[0]:
        try:
            chunk = os.read(leader, 4096)
        except OSError:  # the other side is closed
            return shown
        if not chunk:
            return shown
        shown += chunk.decode().replace("\r\n", "\n")
        last = shown.rpartition("\n")[2]
        for prompt in [each for each in waiting if each in last and last.endswith(": ")]:
            os.write(leader, f"{waiting.pop(prompt)}\n".encode())
    raise AssertionError(f"not in time: {shown}")


def commands() -> list[str]:
    """Every command of the page, its lines joined, without those that only keep what was found out."""
    text = "".join(blocks(read(HOW_TO), "console")).replace("\\\n", "")
    lines = [line.removeprefix("$ ") for line in text.splitlines()]
    return [line for line in lines if not re.match(r"(KEY|PLAN)=", line)]


def noted_fingerprint(data: Path) -> str:
    """The root fingerprint that the machine pinned: what the operator noted."""
    fingerprint: str = json.loads(redflag("agent", "status", "--json", "--data", str(data)))["root_fp"]
    return fingerprint


def check_statements(operator: Operator, command: dict[str, Any]) -> CommandResult:
    """Verify with public keys only what the executor signed; how it ended."""
    key = VerifyKey(b64decode(command["executor_key"]))
    names = {"server": operator.server_id(), "agent_id": command["command"]["agent_id"]}
    signed = [open_statement(b64decode(item["envelope"]), key, **names) for item in command["statements"]]
    assert {CommandAccepted, CommandResult} == {type(statement) for statement in signed}
    (result,) = [statement for statement in signed if isinstance(statement, CommandResult)]
    return result


def test_the_how_to_removes_a_package(operator: Operator, tmp_path: Path, apt_bed: AptBed):
    """A key made, a plan exported, looked through, signed, brought back and installed; statements verified."""
    new_key, add_key, make_api_key, export, sign, bring, confirm, install, follow, revoke = commands()
    desk = tmp_path / "desk"
    desk.mkdir()
    typist = Typist(operator, desk)
    made = typist.type(new_key, New_passphrase=PASSPHRASE, Once_more=PASSPHRASE)
    typist.found["PUBLIC_KEY"] = re.search(r"Public key  (\S+)", made)[1]
    assert PASSPHRASE not in made
    assert "alice may approve" in typist.type(add_key)
    typist.found["KEY"] = re.search(r"rfk_\S+", typist.type(make_api_key))[0]

    with machine(operator, tmp_path / "agent", apt_bed):
        plan = operator.plan("rf-keptback")
        assert (["removal"], None) == (plan["beyond_routine"], plan["approval"])
        typist.found["PLAN"] = plan["id"]
        operator.post(f"plans/{plan['id']}/confirm", reason="nobody uses it")
        refused = operator.post(f"plans/{plan['id']}/install", status=409, reason="without a signature")
        assert "redflag approve" in refused["detail"]
        assert f"{V1} installed" == installed(apt_bed, "rf-victim")
        typist.type(export)
        fingerprint = noted_fingerprint(tmp_path / "agent")
        looked = typist.type(sign, Type_the_first=fingerprint[:8], Type_yes="yes", Passphrase_of=PASSPHRASE)
        assert "REMOVE     rf-victim" in looked
        assert f"Root fingerprint   {fingerprint}" in looked
        stored = typist.ask(bring)
        assert ("alice", 1, True) == (
            stored["approval"]["key_name"], stored["approval"]["commands"], stored["approval"]["live"],
        )  # fmt: skip
        assert "alice" == operator.one(f"plans/{plan['id']}")["approval"]["key_name"]
        assert "ready" == typist.ask(confirm)["state"]  # again: it stays so
        assert "installing" == typist.ask(install)["state"]
        (ordered,) = [item for item in typist.ask(follow)["items"] if item["type"] == "packages.upgrade"]
        command = operator.ended(ordered)

        assert "completed" == command["command"]["state"], command
        assert f"{V2} installed" == installed(apt_bed, "rf-keptback")
        assert "installed" not in installed(apt_bed, "rf-victim").split()
        assert "installed" == operator.package("rf-keptback")["state"]
        assert Outcome.COMPLETED is check_statements(operator, command).outcome
        assert "alice may not approve" in typist.type(revoke)


def approve_with(key: SigningKey, operator: Operator, plan: dict[str, Any]) -> None:
    """Export a plan, sign it, and bring the answer."""
    exported = httpx.get(
        f"{operator.url}/api/v1/approvals/request",
        params={"plan_id": plan["id"]},
        headers={"authorization": f"Bearer {operator._key}"},
    )
    request = parse_request(exported.content)
    approval = new_approval(
        request.leaves,
        approval_id=str(UUID(bytes=SystemEntropy().token(16), version=4)),
        root_fp=request.root_fp,
        organization=request.organization,
        now=SystemClock().now(),
    )
    operator.post("approvals", **json.loads(dump_answer(sign_approval(approval, key), request)))


def test_a_key_that_is_added_while_an_agent_runs_is_believed(operator: Operator, tmp_path: Path, apt_bed: AptBed):
    """The machine learns the key before it judges the order, and without a restart of anything."""
    key = SigningKey.from_seed(SystemEntropy().token(32))
    with machine(operator, tmp_path / "agent", apt_bed):
        plan = operator.plan("rf-keptback")
        operator.post(f"plans/{plan['id']}/confirm", reason="the victim may go")
        public = b64encode(key.verify_key.public_key)
        arguments = ("--name", "alice", "--organization", "Default", "--data", str(operator.data))
        redflag("server", "operator-key", "add", public, *arguments)
        approve_with(key, operator, plan)

        command = operator.ended(operator.install(plan))

        assert ("completed", None) == (command["command"]["state"], command["command"]["code"])
        assert "installed" not in installed(apt_bed, "rf-victim").split()
        assert Outcome.COMPLETED is check_statements(operator, command).outcome
