"""How long to wait after a round that failed."""

from typing import Final

from redflag_agent.answers import AnswerError, ServerRefusedError
from redflag_core.errors import CircuitOpenError
from redflag_core.resilience import full_jitter

FIRST_PAUSE: Final = 60.0
"""Seconds that the first pause is spread over: the interval of check-ins."""

LONGEST_PAUSE: Final = 900.0
"""Seconds that any pause is spread over at most, and the pause of an agent that an operator must look at."""

SHORTEST_PAUSE: Final = 1.0
"""Seconds. However the draw falls, a failing agent never spins."""

MAX_DOUBLINGS: Final = 10


def needs_operator(error: Exception) -> bool:
    """
    Whether only a person can help: quarantined, revoked, another machine, waiting for approval, or not known.

    Asking again soon changes nothing, so such an agent asks seldom.
    """
    if not isinstance(error, ServerRefusedError):
        return False
    return error.status == 403 or error.problem in ("unknown_key", "refresh_fork")


def pause_after(error: Exception, *, failures: int, fraction: float) -> float:
    """
    Seconds until the next try.

    Args:
        error: Why the round failed.
        failures: Rounds that failed in a row, this one included.
        fraction: The draw, from 0 up to 1.
    """
    if needs_operator(error):
        return LONGEST_PAUSE * 0.75 + full_jitter(LONGEST_PAUSE * 0.5, fraction)
    ceiling = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures - 1, MAX_DOUBLINGS))
    asked = error.retry_after if isinstance(error, AnswerError | CircuitOpenError) else None
    return max(SHORTEST_PAUSE, (asked or 0.0) + full_jitter(ceiling, fraction))
