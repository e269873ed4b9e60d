"""The one rule, checked: nothing impure in the core, no shell in another, and the check can fail."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT = Path(sys.executable).with_name("lint-imports")
RUFF = Path(sys.executable).with_name("ruff")


def _lint(tree: Path) -> subprocess.CompletedProcess[str]:
    # -P: the copied tree is linted, not the installed one.
    return subprocess.run(
        [str(LINT), "--no-cache"],
        check=False,
        cwd=tree,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{tree}:{tree / 'integrations'}", "PATH": "/usr/bin:/bin", "COLUMNS": "200"},
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the packages that a test may break."""
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("redflag_core", "redflag_server", "redflag_agent", "integrations"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold(tree: Path):
    """No forbidden import anywhere."""
    ended = _lint(tree)

    assert 0 == ended.returncode, ended.stdout + ended.stderr


@pytest.mark.parametrize(
    "module, statement",
    [
        ("redflag_core/envelope.py", "import socket"),
        ("redflag_core/trust.py", "import asyncio"),
        ("redflag_core/machine.py", "import os"),
        ("redflag_core/freshness.py", "import time"),
        ("redflag_core/rate_limit.py", "import sqlalchemy"),
        ("redflag_agent/state.py", "import redflag_server.settings"),
        ("redflag_server/settings.py", "import redflag_agent"),
        ("redflag_core/keys.py", "import redflag_server"),
    ],
)
def test_a_broken_contract_is_found(tree: Path, module: str, statement: str):
    """Each kind of forbidden import, written on purpose, fails the check."""
    path = tree / module
    path.write_text(path.read_text(encoding="utf-8") + f"\n{statement}\n", encoding="utf-8")

    assert 0 != _lint(tree).returncode


@pytest.mark.parametrize(
    "code",
    [
        "import datetime\nx = datetime.datetime.now()",
        "import secrets",
        "import uuid\nx = uuid.uuid4()",
        "import time",
    ],
)
def test_the_clock_and_chance_are_banned_by_name(tree: Path, code: str):
    """What import-linter cannot see, ruff refuses in the core."""
    (tree / "redflag_core" / "impure.py").write_text(f'"""Impure."""\n\n{code}\n', encoding="utf-8")

    ended = subprocess.run(
        [str(RUFF), "check", "--select", "TID251", "--no-cache", "redflag_core/impure.py"],
        check=False,
        cwd=tree,
        capture_output=True,
        text=True,
    )

    assert (1, True) == (ended.returncode, "TID251" in ended.stdout), ended.stdout + ended.stderr
