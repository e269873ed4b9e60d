"""The how-tos for embedding work as they stand: their files, in a directory of their own, and nothing else."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.documents import blocks, read
from tests.helpers.plain_install import plain_environment
from tests.helpers.processes import child, free_port

_KEY = r"[0-9a-f]{32}"
_LIMITED = [
    *[rf'200 {{"from": ?"{_KEY}", ?"received": ?"all is well"}}'] * 3,
    r"429 .*",
]
PAGES = {
    "embed-in-fastapi": ("asgi", [*_LIMITED, "malformed"]),
    "embed-in-flask": ("wsgi", [*_LIMITED, r'400 {.*"code":"malformed".*}']),
    "embed-in-asgi-and-lambda": (
        None,
        [rf"200 {_KEY} sent all is well", '401 {.*"code":"replayed".*}', '400 {.*"code":"malformed".*}'],
    ),
    "receive-webhooks": ("wsgi", ["204", '401 {"code": ?"replayed"}', '401 {"code": ?"bad_signature"}']),
    "write-your-own-agent": (
        None,
        [
            r"scanned: True, inventory [0-9a-f]{8}",
            "refused: replayed",
            r"scanned: True, inventory [0-9a-f]{8}",
            "refused: rollback",
            r"refused: (bad_signature|malformed|unknown_key)",
        ],
    ),
}
"""What serves ``app.py``, and the lines that the client prints."""

NEEDS = {
    "embed-in-fastapi": ("fastapi", "httpx", "granian"),
    "embed-in-flask": ("flask", "granian"),
    "embed-in-asgi-and-lambda": ("mangum",),
    "receive-webhooks": ("flask", "granian"),
    "write-your-own-agent": (),
}
"""What a page needs beside the plain library."""


def write_files(page: str, directory: Path, port: int) -> None:
    """Write what the page shows, each file under the name in its first line."""
    for block in blocks(read(f"docs/how-to/{page}.md"), "python"):
        name = re.match(r"# (\w+\.py)\n", block)
        assert name, f"{page}: a block has no name"
        (directory / name[1]).write_text(block.replace("8000", str(port)))


@contextmanager
def serving(python: Path, kind: str | None, directory: Path, port: int) -> Iterator[None]:
    """The application of the page, if it needs a server."""
    if kind is None:
        yield
        return
    command = [str(python), "-m", "granian", "--interface", kind, "--port", str(port), "app:app"]
    with child("env", f"--chdir={directory}", *command) as process:
        process.until("Started worker")
        yield


def run_page(page: str, python: Path, directory: Path) -> list[str]:
    """Do what the page says; the lines that the client prints."""
    kind, port = PAGES[page][0], free_port()
    write_files(page, directory, port)
    run(python, "make_key.py", directory)
    with serving(python, kind, directory, port):
        return run(python, "client.py", directory).splitlines()


def run(python: Path, script: str, directory: Path) -> str:
    """What a script prints."""
    done = subprocess.run(
        [python, script], cwd=directory, capture_output=True, text=True, timeout=120, check=False
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout


def check_lines(page: str, lines: list[str]) -> None:
    """Each line is what the page promises."""
    expected = PAGES[page][1]
    assert len(expected) == len(lines), lines
    for pattern, line in zip(expected, lines, strict=True):
        assert re.fullmatch(pattern, line.strip()), (pattern, line)


@pytest.mark.parametrize("page", PAGES)
def test_the_how_to_works_as_it_stands(page: str, tmp_path: Path):
    """Its files, run in their order, print what it says."""
    for name in NEEDS[page]:
        assert importlib.util.find_spec(name), f"{name} is part of the extra dev"

    check_lines(page, run_page(page, Path(sys.executable), tmp_path))


@pytest.mark.full
@pytest.mark.parametrize("page", PAGES)
def test_the_how_to_works_with_the_plain_library_in_a_clean_environment(page: str, tmp_path: Path):
    """What `pip install redflag-rmm` brings, and what the page names: nothing of the server or the agent."""
    python = plain_environment(tmp_path, *NEEDS[page])
    files = tmp_path / "files"
    files.mkdir()

    check_lines(page, run_page(page, python, files))


@pytest.mark.parametrize("page", PAGES)
def test_the_how_tos_stand_on_stores_and_never_on_fakes(page: str):
    """What is in `redflag_core.testing` forgets everything when the process ends."""
    assert "redflag_core.testing" not in read(f"docs/how-to/{page}.md")
