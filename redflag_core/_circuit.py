"""
aiobreaker's state machine, and nothing else of it. Only `redflag_core.resilience` uses this, when first needed.

aiobreaker keeps the three states and counts failures in a row. Time, admission, the call itself and errors are the
`Breaker`'s: aiobreaker mixes ``utcnow()`` with ``now()``, admits everybody to a half-open circuit, and hides the
error of the call that trips it.
"""

from contextlib import suppress

from aiobreaker import CircuitBreaker, CircuitBreakerError, CircuitBreakerState


class Circuit(CircuitBreaker):  # type: ignore[misc]  # aiobreaker has no types
    """
    Closed, open or half-open, moved by `succeed`, `fail`, `open` and `half_open`.

    Args:
        failure_threshold: Failures in a row that open a closed circuit.
    """

    def __init__(self, failure_threshold: int) -> None:
        super().__init__(fail_max=failure_threshold)

    @property
    def state_name(self) -> str:
        """``CLOSED``, ``OPEN`` or ``HALF_OPEN``."""
        return str(self.current_state.name)

    def succeed(self) -> None:
        """Report a success: counts from zero again, and closes a half-open circuit."""
        self.call(lambda: None)

    def fail(self) -> None:
        """Report a failure: counts it, opens a half-open circuit, and at the threshold a closed one."""
        with suppress(_ReportedError, CircuitBreakerError):
            self.call(_report_failure)

    def open(self) -> None:
        """Open the circuit; the original reads the wall clock here, with a call that Python has deprecated."""
        self._state_storage.state = CircuitBreakerState.OPEN
        self.state = CircuitBreakerState.OPEN

    @property
    def opens_at(self) -> None:
        """Unknown here; the original computes it in the wrong time zone."""


class _ReportedError(Exception):
    """Stands for the caller's error, which must not be touched or wrapped."""


def _report_failure() -> None:
    raise _ReportedError
