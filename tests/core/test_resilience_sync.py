"""Breaker and retry for functions that block: the same promises, also among threads."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core.errors import CircuitOpenError
from redflag_core.resilience import Breaker, BreakerPolicy, BreakerState, RetryBudget, RetryPolicy, retry_sync
from redflag_core.testing import START, FrozenClock, SeededEntropy

POLICY = BreakerPolicy(failure_threshold=3, reset_timeout=60, call_timeout=30)


class DownError(Exception):
    """What the guarded service raises when it is down."""


class RefusedError(Exception):
    """What the guarded service raises when it is well and says no."""


class BusyError(Exception):
    """The service says when to come back."""

    retry_after = 7


def raising(error):
    """A function that raises this."""

    def function():
        raise error

    return function


@pytest.fixture
def clock():
    """Time that moves when told to."""
    return FrozenClock()


@pytest.fixture
def breaker(clock):
    """A closed circuit."""
    return Breaker("the service", POLICY, clock=clock, ignore=(RefusedError,))


def fail(breaker, times=POLICY.failure_threshold):
    """Fail *times* in a row."""
    for _ in range(times):
        with pytest.raises(DownError):
            breaker.call_sync(raising(DownError()))


def test_failures_in_a_row_open_the_circuit_and_a_good_trial_closes_it(breaker, clock):
    """As for functions that are awaited; the two forms share one circuit."""
    fail(breaker)
    with pytest.raises(CircuitOpenError) as refused:
        breaker.call_sync(lambda: pytest.fail("it was called"))
    clock.advance(60)

    assert 60.0 == refused.value.retry_after
    assert "fine" == breaker.call_sync(lambda: "fine")
    assert BreakerState.CLOSED is breaker.status.state


async def test_a_circuit_that_one_form_opened_is_open_for_the_other(breaker):
    """It is one service, however it is called."""

    async def good():
        return "fine"

    fail(breaker)

    with pytest.raises(CircuitOpenError):
        await breaker.call(good)


def test_an_ignored_error_neither_counts_nor_resets(breaker):
    """It escapes, and says nothing."""
    fail(breaker, times=2)
    with pytest.raises(RefusedError):
        breaker.call_sync(raising(RefusedError()))

    assert (2, BreakerState.CLOSED) == (breaker.status.failures, breaker.status.state)


@pytest.mark.parametrize("seconds, failures", [(30, 0), (31, 1)])
def test_a_call_that_took_too_long_has_failed_and_returns_what_it_returned(breaker, clock, seconds, failures):
    """Nobody can end it, and what it did may matter."""

    def slow():
        clock.advance(seconds)
        return "late"

    assert "late" == breaker.call_sync(slow)
    assert failures == breaker.status.failures


def test_a_late_ignored_error_is_a_failure(breaker, clock):
    """A refusal that took longer than any answer may is no sign of health."""

    def slow():
        clock.advance(31)
        raise RefusedError

    with pytest.raises(RefusedError):
        breaker.call_sync(slow)

    assert 1 == breaker.status.failures


def test_an_interrupted_trial_opens_the_circuit_again(breaker, clock):
    """Whoever pressed the key learnt nothing of the service."""
    fail(breaker)
    clock.advance(60)
    with pytest.raises(KeyboardInterrupt):
        breaker.call_sync(raising(KeyboardInterrupt()))

    assert (BreakerState.OPEN, 60.0) == (breaker.status.state, breaker.status.retry_after)


def test_of_twenty_threads_at_a_half_open_circuit_one_makes_the_call(breaker, clock):
    """The others are refused while it is under way."""
    fail(breaker)
    clock.advance(60)
    line_up, may_end = threading.Barrier(20), threading.Event()
    refused, made = [], []

    def trial():
        made.append(1)
        assert may_end.wait(30)
        return "fine"

    def attempt(_number):
        line_up.wait(30)
        try:
            breaker.call_sync(trial)
        except CircuitOpenError:
            refused.append(1)
            if len(refused) == 19:
                may_end.set()

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(attempt, range(20)))

    assert (1, 19) == (len(made), len(refused))
    assert BreakerState.CLOSED is breaker.status.state


def test_threads_lose_no_failure(clock):
    """The circuit opens at exactly its threshold, whoever counts at the same time."""
    breaker = Breaker("x", BreakerPolicy(failure_threshold=400, call_timeout=30), clock=clock)
    line_up = threading.Barrier(8)

    def some(_number):
        line_up.wait(30)
        fail(breaker, times=50)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(some, range(8)))

    assert (400, BreakerState.OPEN) == (breaker.status.failures, breaker.status.state)


def test_threads_never_overdraw_a_budget():
    """What was paid in is paid out once."""
    budget, line_up = RetryBudget(reserve=100), threading.Barrier(8)

    def some(_number):
        line_up.wait(30)
        return sum(budget.withdraw() for _ in range(50))

    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(some, range(8)))

    assert 100 == sum(taken)
    assert 0 == budget.retries_left


# --- retry -------------------------------------------------------------------------------------------------------


@pytest.fixture
def waits(clock, monkeypatch):
    """The waits of a thread, which take no time but that of the clock."""
    made = []

    def sleep(seconds):
        made.append(seconds)
        clock.advance(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    return made


def retried(clock, *errors, policy=None, budget=None, on=(DownError, BusyError)):
    """Retry a service that fails with *errors*, then works; what came of it, and how often it was called."""
    remaining, calls = list(errors), []

    def service():
        calls.append(1)
        if remaining:
            raise remaining.pop(0)
        return "fine"

    options = {"on": on, "budget": budget or RetryBudget(reserve=1000), "clock": clock, "entropy": SeededEntropy()}
    try:
        return retry_sync(policy or RetryPolicy(), service, **options), len(calls)
    except Exception as error:
        return error, len(calls)


def test_a_call_that_fails_is_made_again_until_it_works(clock, waits):
    """After waits within the policy."""
    assert ("fine", 3) == retried(clock, DownError(), DownError())
    assert 2 == len(waits)
    assert all(0 <= wait <= 1.0 for wait in waits)


def test_the_last_error_escapes_itself(clock, waits):
    """After the last attempt."""
    errors = [DownError(number) for number in range(5)]

    assert (errors[-1], 5) == retried(clock, *errors)
    assert 4 == len(waits)


def test_an_error_that_is_not_named_is_not_retried(clock, waits):
    """Only the caller knows what repeating is safe for."""
    error = RefusedError()

    assert (error, 1) == retried(clock, error)
    assert [] == waits


def test_the_servers_retry_after_wins(clock, waits):
    """Never less than it asked for."""
    assert ("fine", 2) == retried(clock, BusyError())
    assert 7 <= waits[0] <= 8


def test_a_wait_beyond_the_timeout_is_not_begun(clock, waits):
    """The error comes at once instead."""
    error = BusyError()

    assert (error, 1) == retried(clock, error, policy=RetryPolicy(timeout=5))
    assert [] == waits


def test_an_empty_budget_lets_the_error_through(clock, waits):
    """A server that is down gets no more than its share."""
    error = DownError()

    assert (error, 1) == retried(clock, error, budget=RetryBudget(reserve=0))
    assert [] == waits


@pytest.mark.usefixtures("waits")
def test_an_open_circuit_ends_the_retries(breaker, clock):
    """The breaker is inside the retry."""
    budget = RetryBudget(reserve=1000)

    with pytest.raises(CircuitOpenError):
        retry_sync(
            RetryPolicy(attempts=10),
            lambda: breaker.call_sync(raising(DownError())),
            on=DownError,
            budget=budget,
            clock=clock,
            entropy=SeededEntropy(),
        )

    assert 3 == breaker.status.failures


@given(st.lists(st.sampled_from(["good", "bad", "ignored", "wait"]), max_size=60))
def test_both_forms_of_a_breaker_behave_alike(events):
    """For any sequence of outcomes, call for call."""
    import asyncio

    clock = FrozenClock()
    awaited, blocking = (Breaker("x", POLICY, clock=clock, ignore=(RefusedError,)) for _ in range(2))
    errors = {"bad": DownError(), "ignored": RefusedError()}

    async def main():
        for event in events:
            if event == "wait":
                clock.advance(60)
                continue
            outcomes = []
            for call in (awaited.call, blocking.call_sync):
                error = errors.get(event)

                async def good(error=error):
                    if error:
                        raise error

                function = good if call == awaited.call else (raising(error) if error else lambda: None)
                try:
                    result = call(function)
                    if result is not None:
                        await result
                    outcomes.append(None)
                except Exception as caught:
                    outcomes.append(type(caught))
            assert outcomes[0] == outcomes[1]
            assert awaited.status == blocking.status

    asyncio.run(main())
    assert START <= clock.now()
