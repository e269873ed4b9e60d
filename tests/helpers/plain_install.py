"""Virtual environments with our distribution as others get it: built from a copy, without this checkout."""

import shutil
import subprocess
import venv
from pathlib import Path

from tests.helpers.documents import ROOT

_PARTS = ("redflag_core", "redflag_server", "redflag_agent", "integrations")
_FILES = ("pyproject.toml", "README.md", "LICENSE")
_NOT_OURS = shutil.ignore_patterns("__pycache__", "*.pyc")


def plain_environment(directory: Path, *packages: str) -> Path:
    """
    A new environment with the plain library and these packages.

    Args:
        directory: Empty; the environment and the copy are made in it.
        packages: More to install, by name.

    Returns:
        Its Python.
    """
    source, environment = directory / "source", directory / "venv"
    source.mkdir()
    for name in _PARTS:
        shutil.copytree(ROOT / name, source / name, ignore=_NOT_OURS)
    for name in _FILES:
        shutil.copy(ROOT / name, source)
    venv.create(environment, with_pip=True)
    python = environment / "bin/python"
    pip = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-c",
        ROOT / "constraints.txt",
    ]
    subprocess.run([*pip, source, *packages], check=True, timeout=600)
    return python
