"""Breaker and retry: each promise that the two libraries do not keep by themselves, and those that they do."""

import asyncio
import functools
import logging
import subprocess
import sys
import time

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core.errors import CircuitOpenError, PolicyError
from redflag_core.resilience import (
    Breaker,
    BreakerPolicy,
    BreakerState,
    BreakerStatus,
    RetryBudget,
    RetryPolicy,
    full_jitter,
    random_fraction,
    retry,
)
from redflag_core.testing import START, FrozenClock, SeededEntropy
from tests.helpers.virtual_time import run_in_virtual_time

POLICY = BreakerPolicy(failure_threshold=3, reset_timeout=60, call_timeout=30)


class DownError(Exception):
    """What the guarded service raises when it is down."""


class RefusedError(Exception):
    """What the guarded service raises when it is well and says no."""


async def good():
    return "fine"


async def bad():
    raise DownError


async def refuse():
    raise RefusedError


class Gate:
    """A call that is under way until the test lets it end."""

    def __init__(self, error=None):
        self.started = 0
        self._error = error
        self._open = asyncio.Event()

    async def __call__(self):
        """Wait, then end as told."""
        self.started += 1
        await self._open.wait()
        if self._error:
            raise self._error
        return "fine"

    def open(self):
        """Let every waiting call end."""
        self._open.set()


def open_gate(error):
    """A call that fails at once with *error*."""
    gate = Gate(error)
    gate.open()
    return gate


@pytest.fixture
def clock():
    return FrozenClock()


@pytest.fixture
def breaker(clock):
    return Breaker("the service", POLICY, clock=clock, ignore=(RefusedError,))


async def fail(breaker, times=POLICY.failure_threshold):
    """Fail *times* in a row; at the threshold the circuit is then open."""
    for _ in range(times):
        with pytest.raises(DownError):
            await breaker.call(bad)


async def half_open(breaker, clock):
    """Open the circuit and let the reset timeout pass."""
    await fail(breaker)
    clock.advance(POLICY.reset_timeout)


async def start(coroutine):
    """Start a task and run it to its first wait."""
    task = asyncio.ensure_future(coroutine)
    await asyncio.sleep(0)
    return task


# The breaker in general


async def test_a_good_call_returns_its_result(breaker):
    """A closed circuit is transparent."""
    assert "fine" == await breaker.call(good)
    assert BreakerStatus(BreakerState.CLOSED, 0, None, 0.0) == breaker.status


async def test_failures_in_a_row_open_the_circuit(breaker, clock):
    """At the threshold, and not before, and then nothing is called."""
    await fail(breaker, POLICY.failure_threshold - 1)
    assert BreakerState.CLOSED is breaker.status.state

    await fail(breaker, 1)

    assert BreakerStatus(BreakerState.OPEN, 3, START, 60.0) == breaker.status
    gate = Gate()
    with pytest.raises(CircuitOpenError):
        await breaker.call(gate)
    assert 0 == gate.started


async def test_a_success_between_failures_resets_the_count(breaker):
    """Only failures in a row count."""
    await fail(breaker, 2)
    await breaker.call(good)

    await fail(breaker, 2)

    assert (BreakerState.CLOSED, 2) == (breaker.status.state, breaker.status.failures)


async def test_a_good_trial_closes_the_circuit(breaker, clock):
    """After the reset timeout one success is enough, and counting starts anew."""
    await half_open(breaker, clock)

    assert "fine" == await breaker.call(good)

    assert BreakerStatus(BreakerState.CLOSED, 0, None, 0.0) == breaker.status


async def test_a_bad_trial_opens_the_circuit_for_a_whole_reset_timeout(breaker, clock):
    """One failure is enough, and it is the service's own error."""
    await half_open(breaker, clock)

    with pytest.raises(DownError):
        await breaker.call(bad)

    assert BreakerStatus(BreakerState.OPEN, 4, clock.now(), 60.0) == breaker.status


async def test_the_status_of_an_open_circuit_counts_down(breaker, clock):
    """A dashboard reads how long it takes; reading changes nothing."""
    await fail(breaker)
    clock.advance(59)
    assert (BreakerState.OPEN, 1.0) == (breaker.status.state, breaker.status.retry_after)

    clock.advance(10)

    assert BreakerStatus(BreakerState.OPEN, 3, START, 0.0) == breaker.status


async def test_the_status_during_a_trial_is_half_open(breaker, clock):
    """With the time of the opening, and when the trial ends at the latest."""
    await half_open(breaker, clock)
    gate = Gate()
    trial = await start(breaker.call(gate))

    assert BreakerStatus(BreakerState.HALF_OPEN, 3, START, 30.0) == breaker.status

    gate.open()
    await trial


async def test_the_message_of_an_open_circuit_says_what_to_do(breaker):
    """What is guarded, what happened, and when to come back."""
    await fail(breaker)

    with pytest.raises(CircuitOpenError, match="the service has failed 3 times in a row; try again in 60 s"):
        await breaker.call(good)


@pytest.mark.parametrize(
    "change",
    [
        {"failure_threshold": 0},
        {"reset_timeout": 0},
        {"call_timeout": 0},
        {"call_timeout": -1.0},
        {"reset_timeout": float("inf")},
        {"call_timeout": float("nan")},
    ],
)
def test_a_breaker_policy_without_meaning_is_refused(change):
    """A breaker that never opens, never tries, or waits for ever is a mistake."""
    with pytest.raises(PolicyError):
        attrs.evolve(POLICY, **change)


# 1: time zones


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Tokyo"])
async def test_the_wait_is_the_same_in_every_time_zone(monkeypatch, breaker, zone):
    """An open circuit says 60 s east and west of Greenwich."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        await fail(breaker)

        with pytest.raises(CircuitOpenError) as caught:
            await breaker.call(good)
    finally:
        monkeypatch.undo()
        time.tzset()

    assert 60.0 == caught.value.retry_after
    assert START == breaker.status.opened_at
    assert 0 == breaker.status.opened_at.utcoffset().total_seconds()


@pytest.mark.parametrize("seconds", [-86400, 86400])
async def test_a_wall_clock_that_is_set_changes_nothing(breaker, clock, seconds):
    """Neither a longer outage nor an early trial."""
    await fail(breaker)
    clock.jump(seconds)

    clock.advance(59)
    with pytest.raises(CircuitOpenError):
        await breaker.call(good)
    clock.advance(1)

    assert "fine" == await breaker.call(good)


# 2 and 3: one trial at a time


async def test_of_twenty_calls_at_a_half_open_circuit_one_is_made(breaker, clock):
    """The service that may be back is not hit by everybody at once."""
    await half_open(breaker, clock)
    gate = Gate()
    calls = [await start(breaker.call(gate)) for _ in range(20)]

    gate.open()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert 1 == gate.started
    assert "fine" == outcomes[0]
    assert [CircuitOpenError] * 19 == [type(outcome) for outcome in outcomes[1:]]


async def test_a_call_refused_during_a_trial_is_told_the_longest_wait(breaker, clock):
    """The trial is over after its timeout at the latest."""
    await half_open(breaker, clock)
    gate = Gate()
    trial = await start(breaker.call(gate))
    clock.advance(10)

    with pytest.raises(CircuitOpenError, match="one call tries it now") as caught:
        await breaker.call(good)

    assert 20.0 == caught.value.retry_after
    gate.open()
    await trial


async def test_a_cancelled_trial_opens_the_circuit_again(breaker, clock):
    """A client that goes away does not leave it half-open for ever."""
    await half_open(breaker, clock)
    trial = await start(breaker.call(Gate()))

    trial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trial

    assert BreakerStatus(BreakerState.OPEN, 3, clock.now(), 60.0) == breaker.status
    clock.advance(60)
    assert "fine" == await breaker.call(good)


async def test_a_trial_ended_by_the_interpreter_opens_the_circuit_again(breaker, clock):
    """Any end that is no answer counts as a cancelled trial."""
    await half_open(breaker, clock)

    async def interrupted():
        raise GeneratorExit

    with pytest.raises(GeneratorExit):
        await breaker.call(interrupted)

    assert BreakerState.OPEN is breaker.status.state


async def test_a_cancelled_call_of_a_closed_circuit_is_no_evidence(breaker):
    """Clients that go away do not open it, nor do they reset the count."""
    await fail(breaker, 2)
    for _ in range(5):
        call = await start(breaker.call(Gate()))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    assert (BreakerState.CLOSED, 2) == (breaker.status.state, breaker.status.failures)


# 4: late evidence


async def test_a_failure_from_before_the_trip_does_not_extend_the_outage(breaker, clock):
    """The call was under way when the circuit opened: it says nothing new."""
    gate = Gate(DownError())
    late = await start(breaker.call(gate))
    await fail(breaker)
    clock.advance(59)

    gate.open()
    with pytest.raises(DownError):
        await late

    assert BreakerStatus(BreakerState.OPEN, 3, START, 1.0) == breaker.status


async def test_a_success_from_before_the_trip_does_not_close_the_circuit(breaker):
    """Old good news is no news either."""
    gate = Gate()
    late = await start(breaker.call(gate))
    await fail(breaker)

    gate.open()

    assert "fine" == await late
    assert BreakerState.OPEN is breaker.status.state


async def test_a_failure_from_before_the_outage_does_not_count_after_it(breaker, clock):
    """A circuit that has recovered starts from zero."""
    gate = Gate(DownError())
    late = await start(breaker.call(gate))
    await half_open(breaker, clock)
    await breaker.call(good)

    gate.open()
    with pytest.raises(DownError):
        await late

    assert BreakerStatus(BreakerState.CLOSED, 0, None, 0.0) == breaker.status


async def test_a_call_from_before_the_outage_does_not_end_the_trial(breaker, clock):
    """Its end leaves the one trial the only one."""
    old, trial_gate = Gate(DownError()), Gate()
    late = await start(breaker.call(old))
    await half_open(breaker, clock)
    trial = await start(breaker.call(trial_gate))

    old.open()
    with pytest.raises(DownError):
        await late

    with pytest.raises(CircuitOpenError):
        await breaker.call(good)
    trial_gate.open()
    assert "fine" == await trial


# 5: the real error


async def test_the_call_that_trips_raises_its_own_error(breaker):
    """The very object, without a cause or context that the breaker added."""
    error = DownError("the real one")
    await fail(breaker, 2)

    with pytest.raises(DownError) as caught:
        await breaker.call(open_gate(error))

    assert caught.value is error
    assert BreakerState.OPEN is breaker.status.state
    assert (None, None) == (error.__cause__, error.__context__)


# 6 and 7: ignored errors


async def test_an_ignored_error_neither_counts_nor_resets(breaker):
    """A refusal says nothing about the health of the service."""
    await fail(breaker, 2)
    for _ in range(10):
        with pytest.raises(RefusedError):
            await breaker.call(refuse)
    assert (BreakerState.CLOSED, 2) == (breaker.status.state, breaker.status.failures)

    await fail(breaker, 1)

    assert BreakerState.OPEN is breaker.status.state


async def test_an_ignored_error_of_a_trial_frees_the_trial(breaker, clock):
    """No verdict: still half-open, and the next call is the trial."""
    await half_open(breaker, clock)
    with pytest.raises(RefusedError):
        await breaker.call(refuse)
    assert BreakerStatus(BreakerState.HALF_OPEN, 3, START, 0.0) == breaker.status

    assert "fine" == await breaker.call(good)

    assert BreakerState.CLOSED is breaker.status.state


async def test_an_ignored_class_with_its_own_metaclass_ignores_only_itself(clock):
    """`isinstance` decides, whatever the type of the type."""

    class Meta(type):
        """Any metaclass."""

    class OddError(Exception, metaclass=Meta):
        """An error whose class is no plain class."""

    breaker = Breaker("x", POLICY, clock=clock, ignore=(OddError,))

    await fail(breaker)

    assert BreakerState.OPEN is breaker.status.state


async def test_subclasses_of_an_ignored_error_are_ignored(clock):
    """As in an except clause."""
    breaker = Breaker("x", POLICY, clock=clock, ignore=(LookupError,))

    async def key_error():
        raise KeyError

    for _ in range(10):
        with pytest.raises(KeyError):
            await breaker.call(key_error)

    assert 0 == breaker.status.failures


# 8 and 9: what the wrapper does not offer


async def test_a_function_that_is_not_async_is_refused_aloud(breaker):
    """There is no way to guard nothing without noticing."""
    with pytest.raises(TypeError):
        await breaker.call(lambda: "not awaitable")


async def test_every_kind_of_async_callable_is_guarded(breaker):
    """Functions, what only wraps them, and objects."""
    for call in (bad, functools.partial(bad), open_gate(DownError())):
        with pytest.raises(DownError):
            await breaker.call(call)

    assert BreakerState.OPEN is breaker.status.state


async def test_a_breaker_has_no_listeners(breaker):
    """Nothing can be hooked in that could break a good call: one verb in two forms, and values to read."""
    assert {"call", "call_sync", "name", "policy", "status"} == {
        name for name in dir(breaker) if not name.startswith("_")
    }


async def test_aiobreaker_reads_no_clock(monkeypatch, breaker, clock):
    """Neither its naive nor its deprecated calls are reached, so no warning of them is either."""
    monkeypatch.delattr("aiobreaker.circuitbreaker.datetime")
    monkeypatch.delattr("aiobreaker.state.datetime")

    await half_open(breaker, clock)
    await fail(breaker, 1)
    clock.advance(60)
    await breaker.call(good)

    assert BreakerState.CLOSED is breaker.status.state


async def test_breakers_do_not_share_their_state(breaker, clock):
    """One broken scanner does not stop another."""
    other = Breaker("another", POLICY, clock=clock)

    await fail(breaker)

    assert "fine" == await other.call(good)


# The timeout


def test_a_call_that_takes_too_long_is_a_failure():
    """The timeout is inside the breaker, so hanging opens the circuit."""

    async def main(clock):
        breaker = Breaker("x", POLICY, clock=clock)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await breaker.call(Gate())
        return clock.time(), breaker.status

    seconds, status = run_in_virtual_time(main)

    assert 90.0 == seconds
    assert (BreakerState.OPEN, 3) == (status.state, status.failures)


def test_a_timeout_counts_although_its_kind_is_ignored():
    """TimeoutError is an OSError; who ignores that does not mean this."""

    async def main(clock):
        breaker = Breaker("x", POLICY, clock=clock, ignore=(OSError,))
        with pytest.raises(TimeoutError):
            await breaker.call(Gate())
        return breaker.status.failures

    assert 1 == run_in_virtual_time(main)


async def test_a_timeout_of_the_call_itself_is_an_error_like_any_other(clock):
    """A TimeoutError that the service reports is ignored when that is wanted."""
    breaker = Breaker("x", POLICY, clock=clock, ignore=(TimeoutError,))

    with pytest.raises(TimeoutError):
        await breaker.call(open_gate(TimeoutError()))

    assert 0 == breaker.status.failures


def test_a_trial_that_takes_too_long_opens_the_circuit_again():
    """A trial cannot hold the circuit half-open."""

    async def main(clock):
        breaker = Breaker("x", POLICY, clock=clock)
        await fail(breaker)
        await asyncio.sleep(60)
        with pytest.raises(TimeoutError):
            await breaker.call(Gate())
        return breaker.status

    status = run_in_virtual_time(main)

    assert (BreakerState.OPEN, 60.0) == (status.state, status.retry_after)


# The breaker against a model


@given(st.lists(st.sampled_from(["good", "bad", "ignored", "wait"]), max_size=60))
def test_the_breaker_behaves_as_the_textbook_says(events):
    """For any sequence of outcomes: closed until three failures in a row, then a trial for each 60 s."""

    async def main():
        clock = FrozenClock()
        breaker = Breaker("x", POLICY, clock=clock, ignore=(RefusedError,))
        calls = {"good": good, "bad": bad, "ignored": refuse}
        failures, waited = 0, True
        for event in events:
            if event == "wait":
                clock.advance(60)
                waited = True
                continue
            is_open = failures >= 3 and not waited
            try:
                await breaker.call(calls[event])
            except CircuitOpenError:
                assert is_open
                continue
            except (DownError, RefusedError):
                pass
            assert not is_open
            if event == "bad":
                failures, waited = failures + 1, failures + 1 < 3
            elif event == "good":
                failures, waited = 0, True
            assert failures == breaker.status.failures

    asyncio.run(main())


# Retry policy


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_a_delay_is_within_its_bounds(attempt, jitter):
    """However many attempts: never negative, never above the longest spread."""
    assert 0 <= RetryPolicy().delay(attempt, jitter) <= 60


def test_the_spread_of_a_delay_doubles_up_to_its_bound():
    """At least `wait_jitter`, at most `wait_max`."""
    policy = RetryPolicy(wait_initial=0.5, wait_jitter=1, wait_max=10)

    assert [1, 1, 2, 4, 8, 10, 10] == [policy.delay(attempt, 1.0) for attempt in range(1, 8)]


@given(st.integers(1, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_two_clients_never_wait_the_same_for_different_draws(attempt, one, other):
    """Also at `wait_max`, where adding jitter before the clamp would make all wait the same time."""
    first, second = RetryPolicy().delay(attempt, one), RetryPolicy().delay(attempt, other)

    assert (one < other) <= (first < second or other - one < 1e-300)


@pytest.mark.parametrize(
    "change",
    [
        {"attempts": 0},
        {"wait_initial": -1.0},
        {"wait_jitter": -1.0},
        {"wait_initial": 61.0},
        {"wait_jitter": 61.0},
        {"timeout": 0.0},
        {"wait_max": float("inf")},
        {"timeout": float("inf")},
        {"timeout": float("nan")},
    ],
)
def test_a_retry_policy_without_meaning_is_refused(change):
    """Nothing is retried for ever or after a negative time."""
    with pytest.raises(PolicyError):
        RetryPolicy(**change)


# Retry


class Service:
    """Fails some times in a row, and notes when it was called."""

    def __init__(self, clock, *errors):
        self.times = []
        self._clock = clock
        self._errors = list(errors)

    async def __call__(self):
        """One call."""
        self.times.append(self._clock.monotonic())
        if self._errors:
            raise self._errors.pop(0)
        return "fine"

    @property
    def waits(self):
        """Seconds between the calls."""
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]


@attrs.frozen
class ConstantEntropy:
    """Draws the same fraction each time: 0 for no jitter, 255 for nearly all of it."""

    byte: int

    def token(self, size):
        """*size* equal bytes."""
        return bytes([self.byte]) * size


NO_JITTER, ALL_JITTER = ConstantEntropy(0), ConstantEntropy(255)


class BusyError(Exception):
    """The service says when to come back."""

    def __init__(self, retry_after):
        super().__init__()
        self.retry_after = retry_after


def run_retry(*errors, policy=None, entropy=ALL_JITTER, budget=None, on=(DownError, BusyError)):
    """Retry a service that fails with *errors*; the result or the error, and the service."""
    policy = policy or RetryPolicy()
    budget = budget or RetryBudget(reserve=1000)

    async def main(clock):
        service = Service(clock, *errors)
        try:
            return await retry(policy, service, on=on, budget=budget, clock=clock, entropy=entropy), service
        except BaseException as error:
            return error, service

    return run_in_virtual_time(main)


def test_a_call_that_works_is_made_once():
    """No failure, no retry."""
    result, service = run_retry()

    assert ("fine", 1) == (result, len(service.times))


def test_a_call_that_fails_is_made_again_after_the_delay():
    """Until it works, after the waits of the policy."""
    result, service = run_retry(DownError(), DownError(), DownError())

    assert "fine" == result
    assert pytest.approx([1.0, 1.0, 2.0]) == service.waits


def test_the_last_error_escapes():
    """After the last attempt the caller gets what happened, itself."""
    errors = [DownError(number) for number in range(5)]

    result, service = run_retry(*errors)

    assert result is errors[-1]
    assert 5 == len(service.times)


def test_an_error_that_is_not_named_is_not_retried():
    """Only the caller knows what repeating is safe for."""
    error = RefusedError()

    result, service = run_retry(error)

    assert result is error
    assert 1 == len(service.times)


def test_one_class_may_be_named_alone():
    """A class or a tuple of classes, as in an except clause."""
    result, _ = run_retry(DownError(), on=DownError)

    assert "fine" == result


@pytest.mark.parametrize("error", [asyncio.CancelledError(), GeneratorExit()])
def test_an_interruption_is_never_retried(error):
    """A task that is cancelled ends."""
    result, service = run_retry(error, on=(Exception,))

    assert type(error) is type(result)
    assert 1 == len(service.times)


def test_a_wait_can_be_cancelled():
    """Ctrl-C does not wait for a back-off."""

    async def main(clock):
        service = Service(clock, DownError())
        call = asyncio.ensure_future(
            retry(RetryPolicy(), service, on=DownError, budget=RetryBudget(), clock=clock, entropy=ALL_JITTER)
        )
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return clock.time(), len(service.times)

    assert (0.1, 1) == run_in_virtual_time(main)


@pytest.mark.parametrize("retry_after", [30, 30.0])
def test_the_servers_retry_after_wins(retry_after):
    """What the server asks for is waited, not the policy's delay."""
    _, service = run_retry(BusyError(retry_after), entropy=NO_JITTER)

    assert [30.0] == service.waits


def test_a_fleet_told_the_same_retry_after_does_not_come_back_at_once():
    """Never earlier than asked, and spread over `wait_jitter` after it."""
    waits = [run_retry(BusyError(30), entropy=SeededEntropy(seed))[1].waits[0] for seed in range(50)]

    assert 30 <= min(waits) < max(waits) < 31
    assert 50 == len(set(waits))


@pytest.mark.parametrize("retry_after", [None, -1, float("nan"), float("inf"), "30"])
def test_a_retry_after_without_meaning_is_not_waited(retry_after):
    """Then the policy's delay is."""
    _, service = run_retry(BusyError(retry_after))

    assert pytest.approx([1.0]) == service.waits


def test_a_wait_beyond_the_timeout_is_not_begun():
    """A server that says "in a day" gets its error to the caller now, who can plan."""
    error = BusyError(86400)

    result, service = run_retry(error)

    assert result is error
    assert [0.0] == service.times


def test_no_attempt_begins_after_the_timeout():
    """However many attempts are left."""
    policy = RetryPolicy(attempts=1000, timeout=100)

    result, service = run_retry(*[DownError()] * 1000, policy=policy)

    assert isinstance(result, DownError)
    assert 100 >= service.times[-1] > 40


def test_a_policy_of_one_attempt_never_retries():
    """And takes nothing from the budget."""
    budget = RetryBudget()

    _, service = run_retry(DownError(), policy=RetryPolicy(attempts=1), budget=budget)

    assert 1 == len(service.times)
    assert 3 == budget.retries_left


def test_the_last_attempt_takes_nothing_from_the_budget():
    """Only a retry that is made is paid for."""
    budget = RetryBudget(percent=0, reserve=10)

    run_retry(*[DownError()] * 5, budget=budget)

    assert 6 == budget.retries_left


def test_an_open_circuit_ends_the_retries():
    """The breaker inside: an open circuit is not hammered."""

    async def main(clock):
        service = Service(clock, *[DownError()] * 100)
        breaker = Breaker("x", POLICY, clock=clock)
        with pytest.raises(CircuitOpenError):
            await retry(
                RetryPolicy(attempts=10),
                lambda: breaker.call(service),
                on=DownError,
                budget=RetryBudget(reserve=100),
                clock=clock,
                entropy=ALL_JITTER,
            )
        return len(service.times)

    assert POLICY.failure_threshold == run_in_virtual_time(main)


# The budget


def test_an_empty_budget_lets_the_error_through():
    """No token, no retry."""
    error = DownError()

    result, service = run_retry(error, budget=RetryBudget(percent=0, reserve=0))

    assert result is error
    assert 1 == len(service.times)


def test_a_server_that_is_down_gets_ten_percent_more():
    """A thousand calls that all fail: the reserve, and one retry for each ten calls."""
    budget = RetryBudget()

    attempts = sum(len(run_retry(*[DownError()] * 5, budget=budget)[1].times) for _ in range(1000))

    assert 1100 <= attempts <= 1000 + 1000 * 10 // 100 + 3


@given(st.lists(st.booleans(), max_size=300), st.integers(0, 100), st.integers(0, 5))
def test_retries_never_exceed_the_budget(events, percent, reserve):
    """In any order of calls and retries, from any moment on: the reserve and the percentage, no more."""
    budget = RetryBudget(percent=percent, reserve=reserve)
    calls = retries = 0
    for is_call in events:
        if is_call:
            budget.deposit()
            calls += 1
        else:
            retries += budget.withdraw()
        assert retries * 100 <= reserve * 100 + calls * percent


def test_a_pause_saves_up_no_more_than_the_reserve():
    """A quiet night does not turn into a storm of retries."""
    budget = RetryBudget(percent=10, reserve=3)
    for _ in range(10_000):
        budget.deposit()

    assert [True, True, True, False] == [budget.withdraw() for _ in range(4)]


# Jitter


def test_full_jitter_spreads_over_the_whole_interval():
    """From the first moment to the last."""
    assert [0.0, 30.0, 60.0] == [full_jitter(60.0, fraction) for fraction in (0.0, 0.5, 1.0)]


def test_a_fleet_that_comes_back_is_spread_evenly():
    """Ten thousand agents over ten seconds: no second gets much more than its tenth."""
    entropy = SeededEntropy()
    arrivals = [int(full_jitter(10, random_fraction(entropy))) for _ in range(10_000)]

    assert set(range(10)) == set(arrivals)
    assert max(arrivals.count(second) for second in range(10)) < 1150


def test_a_random_fraction_is_below_one():
    """From 0 up to the last float before 1."""
    assert 0.0 == random_fraction(NO_JITTER)
    assert 1 - 2**-53 == random_fraction(ALL_JITTER)


# Cost


def test_importing_resilience_loads_neither_library():
    """They are loaded by the first breaker and the first retry."""
    code = "import sys, redflag_core.resilience; print({'aiobreaker', 'stamina', 'tenacity'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)

    assert "set()" == run.stdout.strip()


async def test_the_log_says_when_a_circuit_opens_and_closes(caplog, breaker, clock):
    """Under the module's own logger, once for each change; nothing is printed where nobody set logging up."""
    caplog.set_level(logging.INFO, logger="redflag_core")

    await half_open(breaker, clock)
    await breaker.call(good)

    said = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    assert [
        ("redflag_core.resilience", "WARNING", "the service has failed and is not called for 60 s"),
        ("redflag_core.resilience", "INFO", "the service works again"),
    ] == said
    assert any(isinstance(each, logging.NullHandler) for each in logging.getLogger("redflag_core").handlers)
