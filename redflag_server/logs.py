"""
Structured logs: one line for each event, JSON or for people, with the id of the request that it happened in.

All modules log with the standard library; `configure` decides once, at the start of a process of ours, what
becomes of it. An embedded server configures nothing: logs are the host's.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from enum import StrEnum
from typing import Any, Final, TextIO

import structlog

SECRETS: Final = re.compile(
    r"(?i)(rfk_|rfreg1\.|\b(?:bearer|basic)\s+|\beyJ|://[^/\s:@]+:)[A-Za-z0-9+/_.~=%-]+|(?<=/setup/)[\w-]+"
)
"""API keys, registration tokens, credentials of HTTP, JSON Web Tokens, passwords in URLs, links of the setup."""

HIDDEN_NAMES: Final = re.compile(r"(?i)authorization|cookie|password|secret|token")
HIDDEN: Final = "[hidden]"


class LogFormat(StrEnum):
    """How a line looks."""

    CONSOLE = "console"
    JSON = "json"


def configure(style: LogFormat, *, stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """
    Let everything that is logged in this process go to *stream*.

    Args:
        style: How a line looks.
        stream: Standard error unless given.
        level: What is less than it is dropped.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter(style))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def formatter(style: LogFormat) -> logging.Formatter:
    """What makes lines of records."""
    last: Any = structlog.processors.JSONRenderer(sort_keys=True)
    if style is LogFormat.CONSOLE:
        last = structlog.dev.ConsoleRenderer(colors=False)
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _facts,
            structlog.processors.format_exc_info,
        ],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, hide_secrets, last],
    )


def hide_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Take out what looks like a secret, and what is named like one: the last guard, not the only one."""
    for name, value in event.items():
        if HIDDEN_NAMES.search(name):
            event[name] = HIDDEN
        elif isinstance(value, str):
            event[name] = SECRETS.sub(lambda found: (found[1] or "") + HIDDEN, value)
    return event


def _facts(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What a record has beside its text: ``extra={"facts": {...}}``."""
    record = event.get("_record")
    event.update(getattr(record, "facts", {}))
    return event
