"""Reading our own documentation: pages, links, tables and the commands that it shows."""

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]

PAGES: Final = tuple(
    path.relative_to(ROOT)
    for path in (
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
        *sorted(ROOT.glob("redflag_*/README.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    )
)

_LINK: Final = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
_SPAN: Final = re.compile(r"`([^`\n]+)`")
_BLOCK: Final = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def read(page: Path | str) -> str:
    """The text of a page of the repository."""
    return (ROOT / page).read_text("utf-8")


def links(text: str) -> list[str]:
    """Targets of links within the repository, without their anchors."""
    targets = (target.partition("#")[0] for target in _LINK.findall(text))
    return [target for target in targets if target and "://" not in target]


def spans(text: str) -> list[str]:
    """Code within lines."""
    return _SPAN.findall(_BLOCK.sub("", text))


def blocks(text: str, language: str) -> list[str]:
    """Code blocks of a language."""
    return [body for name, body in _BLOCK.findall(text) if name == language]


def table(text: str, *titles: str) -> list[tuple[str, ...]]:
    """
    The cells of every table that starts with these columns, without back-ticks around a whole cell.

    Raises:
        AssertionError: There is none.
    """
    lines, rows, inside, found = text.splitlines(), [], False, False
    for line in lines:
        cells = tuple(_cell(cell) for cell in line.strip().strip("|").split(" | ")) if line.startswith("|") else ()
        if cells[: len(titles)] == titles:
            inside = found = True
        elif not cells:
            inside = False
        elif inside and not set(line) <= set("|- "):
            rows.append(cells)
    assert found, f"there is no table with the columns {titles}"
    return rows


def commands(text: str) -> Iterator[list[str]]:
    """The words after ``redflag`` of every command that a console block shows."""
    for block in blocks(text, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            for words in _simple_commands(line):
                if words and words[0].rpartition("/")[2] == "redflag":
                    yield words[1:]


def _simple_commands(line: str) -> Iterator[list[str]]:
    text = re.sub(r"^ *[$#] |[A-Z]+=\$\(|\)$", "", line)
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|<>")
    lexer.whitespace_split, lexer.commenters = True, ""
    for separates, part in itertools.groupby(lexer, key=lambda word: not set(word) - set("|<>")):
        words = list(part)
        if not separates:
            yield words[3:] if words[:2] == ["sudo", "-u"] else words


def _cell(text: str) -> str:
    inner = text.strip().strip("|").strip()
    return inner[1:-1] if re.fullmatch(r"`[^`]+`", inner) else inner
