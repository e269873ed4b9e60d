"""
Errors that are kept for people: bounded, without secrets, and the same one recognised when it comes again.

Two errors are the same when subsystem, type, the fixed part of the message and the places in the code are. What
differs from one time to the next does not count: numbers, ids, addresses, temporary names, line numbers.
"""

import hashlib
import re
import traceback
from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs

from redflag_core._fields import UUID_FORM
from redflag_core.encoding import dump_json, storable
from redflag_core.errors import RedFlagError
from redflag_core.messages import MAX_CONTEXT_BYTES, ClientError
from redflag_core.redaction import redact, redact_facts
from redflag_core.scanning.model import clean_text

MAX_SUBSYSTEM: Final = 64
MAX_TYPE: Final = 128
MAX_MESSAGE: Final = 2000
MAX_STACK: Final = 16_000
"""Characters of a traceback. Of a longer one the end is kept: there it happened."""

MAX_FRAMES: Final = 200
"""Places in the code that are compared, the innermost ones."""

_PYTHON_FRAME: Final = re.compile(r'^\s*File "(?P<file>[^"\n]+)", line \d+, in (?P<function>.+)$', re.MULTILINE)
_PATH_PARTS: Final = 3
"""Of a file name, the last parts are compared: where it is installed differs."""

_VARIABLE: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), word)
    for pattern, word in (
        (UUID_FORM, "<id>"),
        (r"(/(?:var/)?tmp/|/dev/shm/|/run/user/\d+/)[^/\s:,;'\"()]+", r"\1<temporary>"),
        (r"\[?(?<![\w:])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![\w:])\]?", "<address>"),
        (r"\b(?:0x)?(?=[a-f]{0,64}\d)[0-9a-f]{8,}\b", "<hex>"),
        (r"\d+(?:[.,:]\d+)*", "<number>"),
    )
)


@attrs.frozen
class ErrorKind:
    """
    Errors that are the same.

    Attributes:
        fingerprint: SHA-256 in hex of what makes them the same.
        sample: The last of them, without secrets.
        count: How many.
        first_seen: When first, unix seconds.
        last_seen: When last, unix seconds.
    """

    fingerprint: str
    sample: ClientError
    count: int
    first_seen: int
    last_seen: int


def error_report(
    subsystem: str,
    kind: str,
    message: str,
    *,
    at: int,
    stack: str | None = None,
    context: Mapping[str, Any] | None = None,
) -> ClientError:
    """
    An error to keep or send: secrets are removed, and whatever is too long is cut.

    Args:
        subsystem: Where it happened, ``scanner.apt``.
        kind: Its type: a stable name.
        message: What is to be said of it; any text.
        at: When, unix seconds.
        stack: Its traceback, if that tells more.
        context: Further facts.
    """
    return ClientError(
        _line(subsystem, MAX_SUBSYSTEM),
        _line(kind, MAX_TYPE),
        _line(message, MAX_MESSAGE),
        count=1,
        first_seen=at,
        last_seen=at,
        stack=None if stack is None else storable(redact(stack))[-MAX_STACK:] or None,
        context=redact_facts(context or {}, max_bytes=MAX_CONTEXT_BYTES),
    )


def cleaned(error: ClientError) -> ClientError:
    """
    The same error without secrets, whatever its sender did.

    Args:
        error: Untrusted.
    """
    report = error_report(
        error.subsystem, error.type, error.message, at=error.last_seen, stack=error.stack, context=error.context
    )
    return attrs.evolve(report, count=error.count, first_seen=min(error.first_seen, error.last_seen))


def kinds_of(errors: Iterable[ClientError]) -> list[ErrorKind]:
    """
    Clean errors, and count the ones that are the same.

    Args:
        errors: Untrusted; the later ones are the newer ones.

    Returns:
        Each kind once, in the order of fingerprints: whoever stores them locks rows in the same order.
    """
    kinds: dict[str, ErrorKind] = {}
    for error in map(cleaned, errors):
        same = fingerprint(error)
        new = ErrorKind(same, error, error.count, error.first_seen, error.last_seen)
        kinds[same] = merged(kinds[same], new) if same in kinds else new
    return [kinds[same] for same in sorted(kinds)]


def merged(older: ErrorKind, newer: ErrorKind) -> ErrorKind:
    """Two counts of one kind as one."""
    return attrs.evolve(
        newer,
        count=older.count + newer.count,
        first_seen=min(older.first_seen, newer.first_seen),
        last_seen=max(older.last_seen, newer.last_seen),
    )


def fingerprint(error: ClientError) -> str:
    """
    What makes two errors the same, as SHA-256 in hex.

    Args:
        error: An error without secrets: see `cleaned`.
    """
    parts = [error.subsystem, error.type, fixed_part(error.message), _frames(error.stack or "")]
    return hashlib.sha256(dump_json(parts)).hexdigest()


def fixed_part(message: str) -> str:
    """A message with a word such as ``<number>`` for everything that differs from one time to the next."""
    for pattern, word in _VARIABLE:
        message = pattern.sub(word, message)
    return message


def type_of(error: BaseException) -> str:
    """The stable name of an error: the code of an expected one, the class of any other."""
    return error.code if isinstance(error, RedFlagError) else type(error).__name__


def stack_of(error: BaseException) -> str | None:
    """Where an error happened: files, lines and code, without any values."""
    return "".join(traceback.format_tb(error.__traceback__)) or None


def _line(text: str, limit: int) -> str:
    return clean_text(redact(text), max_len=limit).strip() or "unknown"


def _frames(stack: str) -> list[str]:
    """File and function of each frame of Python; of another kind of stack, the fixed part of each line."""
    frames = [f"{_short(match['file'])}:{match['function']}" for match in _PYTHON_FRAME.finditer(stack)]
    lines = frames or [fixed_part(line.strip()) for line in stack.splitlines() if line.strip()]
    return lines[-MAX_FRAMES:]


def _short(file: str) -> str:
    return "/".join(file.replace("\\", "/").split("/")[-_PATH_PARTS:])
