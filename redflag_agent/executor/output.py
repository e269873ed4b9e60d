"""What a package manager printed, made fit for a signed result and for a page."""

import re
from typing import Final

from redflag_core.messages import MAX_PROGRESS_LINE, MAX_PROGRESS_LINES
from redflag_core.scanning import clean_text
from redflag_core.statements import MAX_OUTPUT

TAIL_BYTES: Final = 4 * MAX_OUTPUT
"""Bytes at the end of an output that can matter: a character takes at most four."""

_ESCAPE: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]+[0-~]|[0-Z\\-~])?")
_PASSWORD: Final = re.compile(r"(?<=://)[^\s/@:]{0,200}:[^\s/@]{1,200}@")
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def clean_output(tail: bytes) -> str:
    """
    The end of an output as text: at most `MAX_OUTPUT` characters, without what only a terminal understands, and
    without passwords in addresses.

    Args:
        tail: Untrusted bytes, `TAIL_BYTES` or fewer.
    """
    text = _ESCAPE.sub("", tail.decode("utf-8", "replace"))
    text = "\n".join(map(_last_drawn, text.split("\n")))
    return _PASSWORD.sub("***@", _CONTROL.sub("\ufffd", text))[-MAX_OUTPUT:]


def _last_drawn(line: str) -> str:
    """What is left of a line that was drawn over."""
    return line.rstrip("\r").rpartition("\r")[2]


def last_lines(tail: bytes) -> tuple[str, ...]:
    """The last lines of an output, for people who watch."""
    lines = [line.expandtabs().rstrip() for line in clean_output(tail).split("\n")]
    kept = [line for line in lines if line][-MAX_PROGRESS_LINES:]
    return tuple(clean_text(line, max_len=MAX_PROGRESS_LINE) for line in kept)


def whole_lines(tail: bytes, *, complete: bool) -> str:
    """
    The whole lines of a status file.

    Args:
        tail: Its last bytes.
        complete: Whether they are all of it: otherwise the first line is cut and left out.
    """
    text = tail.decode("utf-8", "replace")
    if not complete:
        text = text.partition("\n")[2]
    return text[: text.rfind("\n") + 1]
