"""The commands of the how-to for installing an update, typed one after the other, install it."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import attrs

from tests.beds.apt import V2, AptBed, needs_apt
from tests.e2e.test_first_patch import Operator, installed, machine, operator
from tests.helpers.documents import blocks, read
from tests.helpers.needs import needs
from tests.helpers.processes import redflag

pytestmark = [needs_apt, needs("gpg"), needs("curl")]
__all__ = ["operator"]  # the fixture

HOW_TO = "docs/how-to/install-an-update.md"


@attrs.define
class Typist:
    """Somebody who types what the how-to shows, with the ids that were found out on the way."""

    operator: Operator
    found: dict[str, str]

    def type(self, command: str) -> Any:
        """Run one command; the document that it prints."""
        text = command.replace("http://127.0.0.1:8750", self.operator.url).replace("=openssl", "=rf-newdep")
        environment = {"PATH": os.environ["PATH"], **self.found}
        done = subprocess.run(["bash", "-euc", text], env=environment, capture_output=True, text=True, check=True)
        document = json.loads(done.stdout)
        assert "detail" not in document or "id" in document, document  # no problem
        return document


def commands() -> list[str]:
    """Every command of the page, its lines joined."""
    text = "".join(blocks(read(HOW_TO), "console")).replace("\\\n", "")
    return [line.removeprefix("$ ") for line in text.splitlines()]


def test_the_how_to_installs_an_update(operator: Operator, tmp_path: Path, apt_bed: AptBed):
    """Key, list, approve, decide, plan, look, confirm, install, look: each command works as it stands."""
    make_key, *steps = commands()
    data = ["--data", str(operator.data)]
    printed = redflag(*make_key.removeprefix("redflag ").replace("--data /var/lib/redflag", "").split(), *data)
    typist = Typist(operator, {"KEY": re.search(r"rfk_\S+", printed)[0]})
    steps = [step for step in steps if not re.match(r"(KEY|PACKAGE|AGENT|PLAN)=", step)]
    find, approve, decide, plan, look, confirm, install, follow, result = steps

    with machine(operator, tmp_path / "agent", apt_bed):
        (package,) = typist.type(find)["items"]
        typist.found |= {"PACKAGE": package["id"], "AGENT": package["agent_id"]}
        assert "approved" == typist.type(approve)["state"]
        assert 0 == typist.type(decide)["not_found"]
        (made,) = typist.type(plan)["items"]
        typist.found["PLAN"] = made["id"]
        operator.until("the plan", lambda: typist.type(look)["state"] != "planning")
        assert "ready" == typist.type(confirm)["state"]
        assert "installing" == typist.type(install)["state"]
        (command, *_) = [item for item in typist.type(follow)["items"] if item["type"] == "packages.upgrade"]
        operator.ended(command)

        assert "installed" == typist.type(result)["state"]
        assert f"{V2} installed" == installed(apt_bed, "rf-newdep")
