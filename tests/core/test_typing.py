"""The types of the library are right under two checkers, and both find what an embedder gets wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.documents import ROOT
from tests.helpers.needs import needs_package

GOOD, WRONG = ROOT / "tests/typing/good.py", ROOT / "tests/typing/wrong.py"


def mypy(path: Path, cache: Path) -> list[int]:
    """Lines in which mypy finds an error, as an embedder runs it: strict, without our settings."""
    # An editable installation is invisible to checkers; an ordinary one is not.
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    options = ("--strict", "--config-file=", "--output=json", "--follow-imports=silent", f"--cache-dir={cache}")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=cache,
        env=environment,
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return sorted({each["line"] for each in found if each["severity"] == "error"})


def pyright(path: Path, cache: Path) -> list[int]:
    """Lines in which pyright finds an error."""
    program = Path(sys.executable).with_name("basedpyright")
    settings = cache / "pyrightconfig.json"
    settings.write_text(
        json.dumps({"include": [str(path)], "typeCheckingMode": "standard", "extraPaths": [str(ROOT)]})
    )
    command = [str(program), "--outputjson", "--pythonpath", sys.executable, "--project", str(settings)]
    environment = {**os.environ, "HOME": str(cache)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = json.loads(done.stdout)["generalDiagnostics"]
    return sorted({each["range"]["start"]["line"] + 1 for each in found if each["severity"] == "error"})


CHECKERS = pytest.mark.parametrize("checker", [mypy, pytest.param(pyright, marks=needs_package("basedpyright"))])


@CHECKERS
def test_what_an_embedder_writes_has_the_types_it_should(checker, tmp_path: Path):
    """Verbs give what they say, and everything that is made for a port is one."""
    assert [] == checker(GOOD, tmp_path)


@CHECKERS
def test_what_an_embedder_gets_wrong_is_found(checker, tmp_path: Path):
    """Each wrong line and no other."""
    lines = WRONG.read_text("utf-8").splitlines()
    expected = [number for number, line in enumerate(lines, start=1) if line.endswith("# wrong")]

    assert expected == checker(WRONG, tmp_path)
