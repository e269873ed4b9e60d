"""What went wrong, told three ways: to the log, to whoever started the agent, and to the server once it can be."""

import logging
import traceback

import attrs

from redflag_agent.answers import AnswerError
from redflag_agent.error_log import ErrorLog
from redflag_agent.pace import needs_operator
from redflag_agent.progress import Tell, line
from redflag_agent.state import StateFile
from redflag_core.errors import CircuitOpenError, RedFlagError

log = logging.getLogger(__name__)


@attrs.frozen
class Failures:
    """
    Where failures are told.

    Args:
        errors: Errors on their way to the server.
        state: Where the server's refusals are remembered.
        tell: Told what happens.
    """

    errors: ErrorLog
    state: StateFile
    tell: Tell

    def note(self, subsystem: str, error: Exception, *, wait: float | None = None) -> None:
        """
        Tell of an error. Whatever is wrong with the disk, this raises nothing.

        Args:
            subsystem: Where it happened.
            error: What happened.
            wait: Seconds until the next try, where there will be one.
        """
        log_failure(subsystem, error, wait=None if wait is None else round(wait))
        self.tell("error", **_facts(error))
        try:
            if not isinstance(error, CircuitOpenError):  # it only says that the failures before it were too many
                self.errors.record(subsystem, error)
            if needs_operator(error) and isinstance(error, AnswerError):
                self.state.update(status=error.problem, status_detail=error.detail)
        except RedFlagError as second:
            log_failure("outbox", second)


def log_failure(subsystem: str, error: Exception, **facts: object) -> None:
    """One line for the log; with the place of what nobody expected."""
    stack = None
    if not isinstance(error, RedFlagError):
        stack = "".join(traceback.format_tb(error.__traceback__))
    log.warning(line("failed", subsystem=subsystem, **_facts(error), **facts, stack=stack))


def _facts(error: Exception) -> dict[str, str]:
    """What may be told of an error: a sentence only if it was written for people."""
    if isinstance(error, RedFlagError):
        code = error.problem if isinstance(error, AnswerError) else error.code
        return {"code": code, "detail": error.message}
    return {"code": "unexpected", "detail": type(error).__name__}
