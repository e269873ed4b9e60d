"""What happens, told as it happens: to the log, and as JSON lines to whoever started the agent."""

import json
import logging
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

Tell: TypeAlias = Callable[..., None]
"""``tell(event, **facts)``: facts are JSON values and never secrets."""


def tell_nobody(event: str, **facts: Any) -> None:
    """Nobody listens."""


def tell_stdout(event: str, **facts: Any) -> None:
    """One JSON object a line to standard output, flushed. A reader that went away does not stop the agent."""
    try:
        print(json.dumps({"event": event, **facts}, sort_keys=True), flush=True)  # noqa: T201  (this is its purpose)
    except BrokenPipeError:
        sys.stdout = open("/dev/null", "w")  # noqa: PTH123, SIM115  (lives as long as the process)


def line(event: str, **facts: Any) -> str:
    """One log message: ``event key=value ...``, values with blanks in quotes."""
    return " ".join([event, *(f"{name}={_value(value)}" for name, value in facts.items() if value is not None)])


def _value(value: Any) -> str:
    text = str(value)
    plain = text.isprintable() and not set(text) & set(' "=')
    return text if plain and text else json.dumps(text, ensure_ascii=False)


def set_up_logging(level: str) -> None:
    """Lines of ``key=value`` to standard error, from the agent's own loggers only."""
    import stamina  # noqa: PLC0415  (the scan command needs none of it)

    # Left alone it would write to standard output wherever structlog is installed: that is the progress' place.
    stamina.instrumentation.set_on_retry_hooks(())
    handler = logging.StreamHandler()
    form = "time=%(asctime)s level=%(levelname)s logger=%(name)s event=%(message)s"
    handler.setFormatter(logging.Formatter(form, "%Y-%m-%dT%H:%M:%S%z"))
    root = logging.getLogger("redflag_agent")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(level.upper())
