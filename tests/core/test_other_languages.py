"""The known answers are enough to implement the protocol in another language: here is JavaScript, on Node."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.documents import ROOT
from tests.helpers.needs import needs
from tests.vectors.make import HERE

VERIFIER = ROOT / "tests/js/verify.mjs"

pytestmark = needs("node")


def verify(directory: Path) -> subprocess.CompletedProcess[str]:
    """Check a directory of known answers in JavaScript."""
    command = ["node", str(VERIFIER), str(directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_javascript_agrees_with_every_known_answer():
    """Keys, envelopes, trust, requests, commands, statements, trees, histories, approvals, machines, webhooks."""
    done = verify(HERE)

    assert 0 == done.returncode, done.stderr
    assert int(done.stdout) > 200


def test_it_uses_nothing_but_what_node_brings():
    """Somebody can read all of it."""
    imports = re.findall(r'from "([^"]+)"', VERIFIER.read_text("utf-8"))

    assert {"node:crypto", "node:fs", "node:path"} == set(imports)


SIGNED = "keys envelopes trust signed_requests commands statements approvals webhooks merkle audit"


@pytest.mark.parametrize("name", SIGNED.split())
def test_one_changed_character_is_noticed(tmp_path: Path, name: str):
    """The verifier is no rubber stamp: something that was signed, changed, differs."""
    for path in HERE.glob("*.json"):
        shutil.copy(path, tmp_path)
    path = tmp_path / f"{name}.json"
    text = path.read_text("utf-8")
    path.write_text(change_one(name, text), "utf-8")

    done = verify(tmp_path)

    assert 0 != done.returncode


def change_one(name: str, text: str) -> str:
    """The same answers with one thing in them that is not so."""
    value = json.loads(text)
    first = value if isinstance(value, dict) else value[0]
    if name == "keys":
        first["message"] = "00"
    elif name == "envelopes":
        first["payload"] = "00"
    elif name == "trust":
        first["epoch"] += 1
    elif name == "signed_requests":
        first["method"] = "PUT"
    elif name == "commands":
        first["params"] = "{}"
    elif name == "statements":
        first["statement"]["seq"] = 999
    elif name == "approvals":
        first["leaves"][0] += " "
    elif name == "audit":
        first["lines"][1] = first["lines"][1].replace("test.happened", "test.did_not")
    elif name == "webhooks":
        first["body"] = "00"
    else:
        first["leaves"][0] = "ff"
    return json.dumps(value)
