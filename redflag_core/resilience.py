"""
Retries and circuit breakers for calls that may fail: stamina and aiobreaker, each behind a thin safe wrapper.

- `Breaker` stops calling what keeps failing, and tries it again with one call at a time.
- `retry` repeats a call that failed, within a `RetryPolicy` and a `RetryBudget`.
- `full_jitter` spreads what many machines do at one interval.

Put the breaker inside the retry: ``retry(policy, lambda: breaker.call(fn), on=TransportError, ...)``. An open
circuit then ends the retries at once, unless ``on`` names `CircuitOpenError`.

`Breaker.call_sync` and `retry_sync` are the same for functions that block.

All times are seconds. Durations are measured with the monotonic clock, so setting the wall clock changes nothing.
Tasks, event loops and threads may share a breaker and a budget. After a fork each process makes its own: what one
learns the other does not, and a thread that is not in the child may hold the lock for ever.
"""

import asyncio
import logging
import math
import threading
from collections.abc import Awaitable, Callable
from datetime import datetime
from enum import Enum, StrEnum, auto
from typing import Final, TypeVar

import attrs

from redflag_core.errors import CircuitOpenError, PolicyError
from redflag_core.ports import Clock, Entropy

T = TypeVar("T")

log = logging.getLogger(__name__)
logging.getLogger("redflag_core").addHandler(logging.NullHandler())

MAX_DOUBLINGS: Final = 62
"""More doublings of a wait do not fit into a float's exact range, and no `RetryPolicy.wait_max` is so long."""

RETRY_PERCENT: Final = 10
"""Retries for each hundred calls: what a server that is down gets on top of its steady load."""

RETRY_RESERVE: Final = 3
"""Retries that a pause, or the start, leaves over: enough for one call of a lone agent to outlast a restart."""


class BreakerState(StrEnum):
    """What the next call meets."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@attrs.frozen(kw_only=True)
class BreakerPolicy:
    """
    When a circuit opens and for how long.

    Args:
        failure_threshold: Failures in a row that open it.
        reset_timeout: Seconds it stays open before one trial call is allowed.
        call_timeout: Seconds one call may take; a longer one is cancelled, and that is a failure.

    Raises:
        PolicyError: A value is not above 0.
    """

    failure_threshold: int = 5
    reset_timeout: float = 60.0
    call_timeout: float

    def __attrs_post_init__(self) -> None:
        timeouts = (self.reset_timeout, self.call_timeout)
        if self.failure_threshold < 1 or not all(0 < timeout < math.inf for timeout in timeouts):
            raise PolicyError("a breaker needs failure_threshold >= 1, reset_timeout > 0 and call_timeout > 0")


@attrs.frozen
class BreakerStatus:
    """
    A breaker as a dashboard shows it.

    Attributes:
        state: Closed, open, or half-open (a trial call is under way or due).
        failures: Failures in a row, ignored errors apart.
        opened_at: Wall time of the latest opening, aware UTC; None when closed.
        retry_after: Seconds until a trial call is due; 0 when closed, and when the next call is the trial.
    """

    state: BreakerState
    failures: int
    opened_at: datetime | None
    retry_after: float


class _Outcome(Enum):
    SUCCESS = auto()
    FAILURE = auto()
    IGNORED = auto()
    CANCELLED = auto()


class Breaker:
    """
    A circuit breaker: one verb, ``await breaker.call(async_function)``, and a readable `status`.

    - The timeout is inside: a call that exceeds it has failed, whatever *ignore* says.
    - An ignored error is no evidence: it neither counts nor resets the count.
    - Half-open, one trial runs at a time. A cancelled trial opens the circuit again.
    - Whatever ends after the state has changed is no evidence about the new state.

    Threads and event loops may share one. Make it after a fork.

    Args:
        name: What is guarded, for messages.
        policy: Threshold and timeouts.
        clock: Monotonic for time, wall for `BreakerStatus.opened_at`.
        ignore: Errors that say nothing about the health of what is guarded, such as a refused request.
    """

    def __init__(
        self, name: str, policy: BreakerPolicy, *, clock: Clock, ignore: tuple[type[Exception], ...] = ()
    ) -> None:
        from redflag_core._circuit import Circuit  # noqa: PLC0415  (import on first use)

        self.name = name
        self.policy = policy
        self._clock = clock
        self._ignore = ignore
        self._circuit = Circuit(policy.failure_threshold)
        self._epoch = 0
        self._opened_at: datetime | None = None
        self._due = 0.0
        self._on_trial = False
        self._lock = threading.Lock()

    @property
    def status(self) -> BreakerStatus:
        """The state now. Reading it changes nothing."""
        state = self._state
        refusing = self._on_trial or state is BreakerState.OPEN
        retry_after = max(0.0, self._due - self._clock.monotonic()) if refusing else 0.0
        return BreakerStatus(state, self._circuit.fail_counter, self._opened_at, retry_after)

    async def call(self, fn: Callable[[], Awaitable[T]]) -> T:
        """
        Await ``fn()`` unless the circuit is open.

        Args:
            fn: An async function without arguments.

        Returns:
            What *fn* returns.

        Raises:
            CircuitOpenError: The circuit is open, or its one trial call is under way; *fn* was not called.
            TimeoutError: *fn* took longer than ``call_timeout``.
            Exception: Whatever *fn* raised, itself, also when it is this failure that opens the circuit.
        """
        epoch = self._admit()
        deadline = asyncio.timeout(self.policy.call_timeout)
        try:
            async with deadline:
                result = await fn()
        except BaseException as error:
            self._report(epoch, self._outcome(error, timed_out=deadline.expired()))
            raise
        self._report(epoch, _Outcome.SUCCESS)
        return result

    def call_sync(self, fn: Callable[[], T]) -> T:
        """
        Call ``fn()``, a function that blocks, unless the circuit is open.

        Nobody can end a call that blocks: give *fn* a timeout of its own. One that took longer than
        ``call_timeout`` has failed, as far as the circuit is concerned; what it returned is returned all the same.

        Args:
            fn: A function without arguments.

        Returns:
            What *fn* returns.

        Raises:
            CircuitOpenError: The circuit is open, or its one trial call is under way; *fn* was not called.
            Exception: Whatever *fn* raised.
        """
        epoch, began = self._admit(), self._clock.monotonic()
        try:
            result = fn()
        except BaseException as error:
            self._report(epoch, self._outcome(error, timed_out=self._is_late(began)))
            raise
        self._report(epoch, _Outcome.FAILURE if self._is_late(began) else _Outcome.SUCCESS)
        return result

    def _is_late(self, began: float) -> bool:
        return self._clock.monotonic() - began > self.policy.call_timeout

    @property
    def _state(self) -> BreakerState:
        return BreakerState[self._circuit.state_name]

    def _admit(self) -> int:
        """The epoch of a call that may go ahead. No two calls take the one trial."""
        with self._lock:
            return self._admitted()

    def _admitted(self) -> int:
        if self._state is BreakerState.CLOSED:
            return self._epoch
        status = self.status
        if self._on_trial or (status.state is BreakerState.OPEN and status.retry_after > 0):
            raise CircuitOpenError(self._refusal(status), retry_after=status.retry_after)
        if status.state is BreakerState.OPEN:
            self._circuit.half_open()
        self._on_trial = True
        self._due = self._clock.monotonic() + self.policy.call_timeout
        return self._epoch

    def _refusal(self, status: BreakerStatus) -> str:
        if self._on_trial:
            return f"{self.name} was failing and one call tries it now; wait for its outcome"
        return f"{self.name} has failed {status.failures} times in a row; try again in {status.retry_after:.0f} s"

    def _outcome(self, error: BaseException, *, timed_out: bool) -> _Outcome:
        if not isinstance(error, Exception):
            return _Outcome.CANCELLED
        # Timed out comes first: TimeoutError is an OSError, which may well be ignored.
        return _Outcome.IGNORED if isinstance(error, self._ignore) and not timed_out else _Outcome.FAILURE

    def _report(self, epoch: int, outcome: _Outcome) -> None:
        with self._lock:
            if epoch == self._epoch:
                self._take_in(outcome)

    def _take_in(self, outcome: _Outcome) -> None:
        before, self._on_trial = self._state, False
        if outcome is _Outcome.SUCCESS:
            self._circuit.succeed()
        elif outcome is _Outcome.FAILURE:
            self._circuit.fail()
        elif outcome is _Outcome.CANCELLED and before is BreakerState.HALF_OPEN:
            self._circuit.open()
        if self._state is not before:
            self._changed()

    def _changed(self) -> None:
        # Half-open needs no epoch of its own: an open circuit admits nobody.
        self._epoch += 1
        if self._state is BreakerState.OPEN:
            self._opened_at = self._clock.now()
            self._due = self._clock.monotonic() + self.policy.reset_timeout
            log.warning("%s has failed and is not called for %g s", self.name, self.policy.reset_timeout)
        else:
            self._opened_at = None
            log.info("%s works again", self.name)


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """
    How often and how long to try.

    The wait before retry *n* is drawn from 0 to ``max(wait_jitter, min(wait_max, wait_initial * 2 ** (n - 1)))``:
    full jitter, so that machines which failed together do not come back together, not even at ``wait_max``.

    Args:
        attempts: Calls in all, the first one included.
        wait_initial: Seconds that the first retry is spread over.
        wait_max: Seconds that any retry is spread over at most.
        wait_jitter: Seconds that any retry is spread over at least, also after a server's Retry-After.
        timeout: Seconds from the start after which no further attempt begins.

    Raises:
        PolicyError: Not ``attempts >= 1``, ``0 <= wait_initial, wait_jitter <= wait_max`` and ``timeout > 0``.
    """

    attempts: int = 5
    wait_initial: float = 0.5
    wait_max: float = 60.0
    wait_jitter: float = 1.0
    timeout: float = 300.0

    def __attrs_post_init__(self) -> None:
        waits = (self.wait_initial, self.wait_jitter)
        sane = all(0 <= wait <= self.wait_max < math.inf for wait in waits) and 0 < self.timeout < math.inf
        if self.attempts < 1 or not sane:
            raise PolicyError(
                "a retry policy needs attempts >= 1, 0 <= wait_initial, wait_jitter <= wait_max and timeout > 0"
            )

    def delay(self, attempt: int, jitter: float) -> float:
        """
        Seconds to wait after a failed attempt.

        Args:
            attempt: Number of the attempt that failed, from 1.
            jitter: The draw, from 0 up to 1.
        """
        step = min(self.wait_max, self.wait_initial * 2.0 ** min(attempt - 1, MAX_DOUBLINGS))
        return full_jitter(max(step, self.wait_jitter), jitter)

    def delay_from_server(self, retry_after: float, jitter: float) -> float:
        """
        Seconds to wait when the server said how long: never less, and not all at the same moment.

        Args:
            retry_after: What the server asked for, seconds.
            jitter: The draw, from 0 up to 1.
        """
        return retry_after + full_jitter(self.wait_jitter, jitter)


class RetryBudget:
    """
    Caps what retries add to the load: a bucket into which calls pay and out of which retries are paid.

    Share one between all calls to one server. After *c* calls at most ``reserve + c * percent / 100`` retries
    were made. Threads and event loops may share one. Make it after a fork.

    Args:
        percent: Retries for each hundred calls.
        reserve: Retries in the full bucket, which it starts as.
    """

    def __init__(self, *, percent: int = RETRY_PERCENT, reserve: int = RETRY_RESERVE) -> None:
        # Hundredths of a retry, so that nothing is lost to rounding.
        self._percent = percent
        self._full = self._balance = reserve * 100
        self._lock = threading.Lock()

    @property
    def retries_left(self) -> int:
        """Retries that could be made now."""
        return self._balance // 100

    def deposit(self) -> None:
        """Pay in for one call."""
        with self._lock:
            self._balance = min(self._full, self._balance + self._percent)

    def withdraw(self) -> bool:
        """Take out one retry; False when there is none, and then do not retry."""
        with self._lock:
            if self._balance < 100:
                return False
            self._balance -= 100
            return True


async def retry(
    policy: RetryPolicy,
    fn: Callable[[], Awaitable[T]],
    *,
    on: type[Exception] | tuple[type[Exception], ...],
    budget: RetryBudget,
    clock: Clock,
    entropy: Entropy,
) -> T:
    """
    Await ``fn()``, again after some failures.

    An error with a ``retry_after`` (seconds) sets the wait. A wait that would exceed ``timeout`` is not begun.

    Args:
        policy: How often and how long.
        fn: An async function without arguments; called anew for each attempt, so it can sign each anew.
        on: Errors worth another attempt. No default: only the caller knows what repeating is safe for.
        budget: Shared by all calls to one server.
        clock: Its monotonic time measures ``policy.timeout``.
        entropy: Draws the jitter.

    Returns:
        What *fn* returns.

    Raises:
        Exception: The last error of *fn*, itself.
    """
    import stamina  # noqa: PLC0415  (import on first use)

    attempts = _Attempts(policy, on, budget, clock, entropy)

    async def next_attempt() -> T:
        attempts.begin()
        return await fn()

    budget.deposit()
    return await stamina.AsyncRetryingCaller(attempts=policy.attempts, timeout=None)(
        attempts.backoff, next_attempt
    )


def retry_sync(
    policy: RetryPolicy,
    fn: Callable[[], T],
    *,
    on: type[Exception] | tuple[type[Exception], ...],
    budget: RetryBudget,
    clock: Clock,
    entropy: Entropy,
) -> T:
    """`retry` for a function that blocks: the thread sleeps between attempts."""
    import stamina  # noqa: PLC0415  (import on first use)

    attempts = _Attempts(policy, on, budget, clock, entropy)

    def next_attempt() -> T:
        attempts.begin()
        return fn()

    budget.deposit()
    return stamina.RetryingCaller(attempts=policy.attempts, timeout=None)(attempts.backoff, next_attempt)


class _Attempts:
    """The attempts of one call, and whether there is another."""

    def __init__(
        self,
        policy: RetryPolicy,
        on: type[Exception] | tuple[type[Exception], ...],
        budget: RetryBudget,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._policy, self._on, self._budget = policy, on, budget
        self._clock, self._entropy = clock, entropy
        self._began = clock.monotonic()
        self._made = 0

    def begin(self) -> None:
        """Count the attempt that is made now."""
        self._made += 1

    def backoff(self, error: Exception) -> bool | float:
        """Seconds to wait before the next attempt, or False (stamina's backoff hook)."""
        if not isinstance(error, self._on) or self._made >= self._policy.attempts:
            return False
        wait = _wait(self._policy, self._made, error, random_fraction(self._entropy))
        in_time = self._clock.monotonic() - self._began + wait <= self._policy.timeout
        return wait if in_time and self._budget.withdraw() else False


def full_jitter(interval: float, fraction: float) -> float:
    """
    A moment within *interval*: what keeps a fleet that comes back at once from arriving at once.

    Args:
        interval: Seconds to spread over.
        fraction: The draw, from 0 up to 1, such as `random_fraction` gives.
    """
    return interval * fraction


def random_fraction(entropy: Entropy) -> float:
    """A draw from 0 up to, and without, 1: 53 random bits, all that a float can hold."""
    return (int.from_bytes(entropy.token(7), "big") >> 3) / 2**53


def _wait(policy: RetryPolicy, attempt: int, error: Exception, jitter: float) -> float:
    retry_after = getattr(error, "retry_after", None)
    if isinstance(retry_after, int | float) and 0 <= retry_after < math.inf:
        return policy.delay_from_server(retry_after, jitter)
    return policy.delay(attempt, jitter)
