"""Rate limits: what a policy text means, whom it lets pass, and what the client is told."""

import math
from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from redflag_core.errors import MalformedError, PolicyError, TooLargeError
from redflag_core.ports import RateLimitStore
from redflag_core.rate_limit import (
    ACCEPTED_FORM,
    CLOCK_STEP,
    MAX_COUNT,
    MAX_KEY_BYTES,
    MAX_PER_SECOND,
    MAX_PERIOD,
    MAX_TEXT,
    SCOPED_FORM,
    RateLimitPolicy,
    Scope,
    ScopedPolicy,
    check_key,
    decision_of,
    headers,
    parse,
    parse_scoped,
    step,
)
from redflag_core.testing import START, MemoryRateLimitStore, RateLimitStoreContract

NOW = 1_767_225_600.0
POLICY = RateLimitPolicy(count=60, period_seconds=60, burst=20)


@st.composite
def policies(draw):
    """Any policy that is accepted."""
    period = draw(st.integers(1, MAX_PERIOD) | st.sampled_from([1, 60, 600, 3600, 86400]))
    count = draw(st.integers(1, min(MAX_COUNT, MAX_PER_SECOND * period)) | st.integers(1, 100))
    return RateLimitPolicy(count, period, draw(st.integers(1, MAX_COUNT) | st.integers(1, 20)))


def run(policy, gaps, tat=None, now=NOW):
    """The decisions on requests that come after each of *gaps* seconds."""
    decisions = []
    for gap in gaps:
        now += gap
        tat, decision = step(tat, now, policy)
        decisions.append(decision)
    return decisions


# Policy text


@pytest.mark.parametrize(
    "text,count,period,burst",
    [
        ("60/minute burst 20", 60, 60, 20),
        ("5/10 minutes", 5, 600, 5),
        ("100/hour", 100, 3600, 100),
        ("1/second", 1, 1, 1),
        ("2/day burst 5", 2, 86400, 5),
        ("1/7 days", 1, 604800, 1),
    ],
)
def test_a_policy_reads_as_it_is_said(text, count, period, burst):
    """Requests, period, burst; without one the burst is the count."""
    assert RateLimitPolicy(count, period, burst) == parse(text)
    assert text == str(parse(text))


@pytest.mark.parametrize(
    "text,canonical",
    [
        ("  60 /  minute   burst   20 ", "60/minute burst 20"),
        ("60/Minute BURST 20", "60/minute burst 20"),
        ("60/1 minutes", "60/minute"),
        ("60/60 seconds", "60/minute"),
        ("5/90 seconds", "5/90 seconds"),
        ("5/10minutes", "5/10 minutes"),
        ("5/48 hours", "5/2 days"),
        ("007/hour burst 07", "7/hour"),
        ("60\t/\tminute\n", "60/minute"),
        ("60/minute, burst 20", "60/minute burst 20"),
        ("60/minute,burst 20", "60/minute burst 20"),
        ("60/minute ,  burst 60", "60/minute"),
    ],
)
def test_a_policy_has_one_canonical_text(text, canonical):
    """However it was typed, it is shown in one way."""
    assert canonical == str(parse(text))


@given(policies())
def test_a_policy_survives_its_text(policy):
    """Parsing what is printed gives the same policy."""
    assert policy == parse(str(policy))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "60",
        "60/",
        "/minute",
        "60/fortnight",
        "60/month",
        "60 per minute",
        "-60/minute",
        "6.5/minute",
        "60/minute burst",
        "60/minute burst -1",
        "60/minuteburst 20",
        "60/minute 20",
        "60/minute burst 20 burst 20",
        "60/minute, 5/second",
        "60/minute,",
        "60/minute,, burst 20",
        "60/minute, 20",
        "٦٠/minute",
        "60/-1 minutes",
        "99999999/minute",
        "60/minute" + " " * MAX_TEXT,
    ],
)
def test_another_text_is_refused_with_the_accepted_form(text):
    """The message shows what to write instead."""
    with pytest.raises(PolicyError) as caught:
        parse(text)

    assert ACCEPTED_FORM in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "0/minute",
        "60/0 minutes",
        "60/minute burst 0",
        "9999999/day",
        "60/367 days",
        "60/minute burst 9999999",
        "1001/second",
    ],
)
def test_a_number_out_of_bounds_is_refused_with_the_accepted_form(text):
    """Zero, or more than a limit can mean."""
    with pytest.raises(PolicyError) as caught:
        parse(text)

    assert ACCEPTED_FORM in caught.value.message


@pytest.mark.parametrize(
    "name,most,others",
    [
        ("count", MAX_COUNT, {"period_seconds": MAX_PERIOD, "burst": 1}),
        ("period_seconds", MAX_PERIOD, {"count": 1, "burst": 1}),
        ("burst", MAX_COUNT, {"count": 1, "period_seconds": 1}),
    ],
)
def test_a_number_is_within_its_bounds(name, most, others):
    """They are inclusive, and the message says which number it was."""
    what = name.replace("_", " in ")
    for value in (1, most):
        assert value == getattr(RateLimitPolicy(**{name: value}, **others), name)
    for value in (0, most + 1):
        with pytest.raises(PolicyError, match=f"^the {what} of a rate limit is 1 to {most}:"):
            RateLimitPolicy(**{name: value}, **others)


def test_the_highest_rate_is_accepted():
    """A thousand a second, over any period."""
    assert ["1000/second", "2000/2 seconds"] == [str(parse(text)) for text in ("1000/second", "2000/2 seconds")]
    with pytest.raises(PolicyError, match="at most 1000 requests a second"):
        parse("2001/2 seconds")


def test_the_longest_text_is_read():
    """Blanks count too."""
    assert POLICY == parse("60/minute burst 20".ljust(MAX_TEXT))
    with pytest.raises(PolicyError, match="this is not a rate limit"):
        parse("60/minute burst 20".ljust(MAX_TEXT + 1))


@given(st.text() | st.text("0123456789/ minutehodaysbrc", max_size=30))
def test_any_text_is_a_policy_or_a_policy_error(text):
    """No input does anything else."""
    with suppress(PolicyError):
        assert isinstance(parse(text), RateLimitPolicy)


# Whose limit it is


@pytest.mark.parametrize(
    "text,count,period,burst,scope",
    [
        ("60/minute per agent, burst 20", 60, 60, 20, Scope.AGENT),
        ("6000/minute per address", 6000, 60, 6000, Scope.ADDRESS),
        ("5/10 minutes per organization", 5, 600, 5, Scope.ORGANIZATION),
        ("100/hour per key, burst 1", 100, 3600, 1, Scope.KEY),
        ("60/minute burst 20", 60, 60, 20, None),
        ("1/day", 1, 86400, 1, None),
    ],
)
def test_a_scoped_policy_reads_as_it_is_said(text, count, period, burst, scope):
    """The limit, and of what each one has its own."""
    assert ScopedPolicy(RateLimitPolicy(count, period, burst), scope) == parse_scoped(text)
    assert text == str(parse_scoped(text))


@pytest.mark.parametrize(
    "text,canonical",
    [
        ("60/minute per agent burst 20", "60/minute per agent, burst 20"),
        ("60 / 1 Minutes PER Agent , Burst 20", "60/minute per agent, burst 20"),
        ("60/minute per key, burst 60", "60/minute per key"),
        ("60/minute, burst 20", "60/minute burst 20"),
    ],
)
def test_a_scoped_policy_has_one_canonical_text(text, canonical):
    """However it was typed, it is shown in one way."""
    assert canonical == str(parse_scoped(text))


@given(policies(), st.sampled_from([None, *Scope]))
def test_a_scoped_policy_survives_its_text(policy, scope):
    """Parsing what is printed gives the same limit for the same ones, within the longest text that is read."""
    scoped = ScopedPolicy(policy, scope)

    assert scoped == parse_scoped(str(scoped))
    assert len(str(scoped)) <= MAX_TEXT


@pytest.mark.parametrize(
    "text",
    [
        "",
        "60/minute per",
        "60/minute per user",
        "60/minute per agents",
        "60/minute peragent",
        "60/minuteper agent",
        "60/minute, per agent",
        "60 per minute",
        "60/minute per agent per key",
        "60/minute burst 20 per agent",
        "60/minute per agent,",
        "60/minute per agent, 20",
        "60/minute per agentburst 20",
        "0/minute per agent",
        "60/minute per agent" + " " * MAX_TEXT,
    ],
)
def test_another_scoped_text_is_refused(text):
    """The set of scopes is closed: a limit for something that nobody counts would never hold."""
    with pytest.raises(PolicyError):
        parse_scoped(text)


def test_the_message_names_the_scopes():
    """Every one that there is."""
    with pytest.raises(PolicyError) as caught:
        parse_scoped("60/minute per user")

    assert SCOPED_FORM in caught.value.message
    assert all(scope in SCOPED_FORM for scope in Scope)


@pytest.mark.parametrize("scope", Scope)
def test_a_scope_is_refused_where_it_has_no_meaning(scope):
    """It is not dropped: all together would get what each was to have."""
    with pytest.raises(PolicyError, match=f"per {scope}"):
        parse(f"60/minute per {scope}")


@given(st.text() | st.text("0123456789/ minutehodaysbrc,pgkz", max_size=40))
def test_any_text_is_a_scoped_policy_or_a_policy_error(text):
    """No input does anything else."""
    with suppress(PolicyError):
        assert isinstance(parse_scoped(text), ScopedPolicy)


def test_limits_do_not_share_a_count():
    """Another scope, rate or subject is another key; the burst is not part of it, so it can be changed."""
    texts = ("10/second per agent", "1000/day per agent", "10/second per key", "10/second")
    keys = [parse_scoped(text).key(subject) for text in texts for subject in ("a", "b")]

    assert len(keys) == len(set(keys))
    assert "agent:10/second:a" == keys[0] == parse_scoped("10/second per agent, burst 3").key("a")
    assert "each:10/second:b" == keys[-1]
    assert ScopedPolicy(POLICY) == ScopedPolicy(POLICY, None)


# Keys of stores


@pytest.mark.parametrize(
    "key", ["", "a", "'; DROP TABLE x; --", "ä" * (MAX_KEY_BYTES // 2), "\x01\u202e\U0001f525"]
)
def test_any_storable_text_is_a_key(key):
    """What looks like a command is a text."""
    check_key(key)


@pytest.mark.parametrize(
    "key,error",
    [
        ("a\x00b", MalformedError),
        ("\ud800", MalformedError),
        ("x\udfff", MalformedError),
        ("a" * (MAX_KEY_BYTES + 1), TooLargeError),
        ("ä" * (MAX_KEY_BYTES // 2) + "a", TooLargeError),
    ],
)
def test_a_key_that_some_store_cannot_keep_is_refused_by_all(key, error):
    """Clearly, and before any database sees it."""
    with pytest.raises(error, match=r"^the key of a rate limit "):
        check_key(key)


# The step


@given(policies(), st.floats(0, 4e9))
def test_the_first_request_of_a_key_is_never_refused(policy, now):
    """Whatever the policy, a client that was never seen gets an answer."""
    assert step(None, now, policy)[1].allowed


def test_a_burst_passes_and_the_next_is_told_when():
    """Twenty at once, then one each second."""
    decisions = run(POLICY, [0] * 22)

    assert [True] * 20 + [False] * 2 == [decision.allowed for decision in decisions]
    assert [*range(19, -1, -1), 0, 0] == [decision.remaining for decision in decisions]
    assert [0.0] * 20 + [1.0] * 2 == [decision.retry_after for decision in decisions]
    assert [20.0, 20.0] == [decision.reset_after for decision in decisions[20:]]


def test_the_steady_rate_is_never_refused():
    """A client that keeps to the rate may do so for ever."""
    assert all(decision.allowed for decision in run(RateLimitPolicy(60, 60, 1), [1.0] * 1000))


def test_a_refused_request_does_not_change_the_stored_time():
    """Hammering does not prolong the wait."""
    tat = NOW + 20

    assert (tat, False) == (step(tat, NOW, POLICY)[0], step(tat, NOW, POLICY)[1].allowed)


def test_a_pause_gives_back_no_more_than_the_burst():
    """A client that was away for a year has no more than the full burst."""
    assert 19 == run(POLICY, [0] * 20 + [365 * 86400.0])[-1].remaining


def test_a_burst_of_one_allows_one():
    """The strictest policy: one, then a wait."""
    decisions = run(RateLimitPolicy(1, 60, 1), [0, 59.9, 0.1])

    assert [True, False, True] == [decision.allowed for decision in decisions]


@given(policies(), st.lists(st.floats(0, 5), min_size=1, max_size=60))
def test_no_pattern_of_requests_gets_more_than_burst_and_rate(policy, gaps):
    """In any time, at most the burst and what the rate earns meanwhile."""
    allowed = sum(decision.allowed for decision in run(policy, gaps))

    assert allowed <= policy.burst + sum(gaps[1:]) / policy.interval + 1e-3 / policy.interval + 1e-6


@given(policies(), st.lists(st.floats(0, 5), min_size=1, max_size=40))
def test_who_waits_as_told_is_allowed(policy, gaps):
    """After `retry_after` the next request passes, whatever came before."""
    tat, now = None, NOW
    for gap in gaps:
        now += gap
        tat, decision = step(tat, now, policy)

    assert step(tat, now + decision.retry_after, policy)[1].allowed or decision.allowed


@given(policies().filter(lambda policy: policy.burst <= 40), st.lists(st.floats(0, 5), min_size=1, max_size=20))
def test_remaining_is_how_many_pass_at_once(policy, gaps):
    """The number that a client is told is the number that it gets."""
    tat, now = None, NOW
    for gap in gaps:
        now += gap
        tat, decision = step(tat, now, policy)
    passed = [item.allowed for item in run(policy, [0] * (decision.remaining + 1), tat, now)]

    assert [True] * decision.remaining + [False] == passed


@given(policies(), st.lists(st.floats(0, 5), min_size=1, max_size=20))
def test_after_the_reset_the_burst_is_full(policy, gaps):
    """`reset_after` is when a client is as good as new."""
    tat, now = None, NOW
    for gap in gaps:
        now += gap
        tat, decision = step(tat, now, policy)
    assume(policy.interval > 1e-2)

    assert step(None, now, policy)[1].remaining == step(tat, now + decision.reset_after, policy)[1].remaining


@given(policies(), st.lists(st.floats(0, 5), min_size=1, max_size=40))
def test_the_decision_follows_from_what_was_stored(policy, gaps):
    """A store that does the arithmetic elsewhere says the same to the last bit."""
    tat, now = None, NOW
    for gap in gaps:
        now += gap
        tat, decision = step(tat, now, policy)

        assert decision == decision_of(tat, now, policy, allowed=decision.allowed)


# Clocks and changed policies


def test_a_small_difference_of_clocks_grants_nothing():
    """A replica that is a few seconds behind does not give a fresh burst."""
    tat = step(NOW + 19, NOW, POLICY)[0]

    assert not step(tat, NOW - 5, POLICY)[1].allowed


@pytest.mark.parametrize("set_back", [3600.0, 365 * 86400.0])
def test_a_clock_that_was_set_back_does_not_lock_a_key(set_back):
    """One request passes at once, the next after one interval: not after the old time is reached again."""
    decisions = run(POLICY, [0, 0, 1.0], tat=NOW + 20, now=NOW - set_back)

    assert [True, False, True] == [decision.allowed for decision in decisions]


def test_what_a_clock_step_may_have_made_is_waited_off():
    """To the second; only what is later than that is not believed."""
    latest = NOW + POLICY.burst + CLOCK_STEP

    assert (latest, False) == (step(latest, NOW, POLICY)[0], step(latest, NOW, POLICY)[1].allowed)
    assert step(latest + 0.25, NOW, POLICY)[1].allowed


def test_a_smaller_policy_does_not_lock_a_key():
    """What was charged under a large burst is not waited off under a small one."""
    generous, strict = RateLimitPolicy(10, 60, 1000), RateLimitPolicy(10, 60, 1)
    tat = None
    for _ in range(1000):
        tat, _ = step(tat, NOW, generous)

    assert [True, False, True] == [decision.allowed for decision in run(strict, [0, 0, 6.0], tat)]


@given(policies(), st.floats(0, 4e9))
def test_no_stored_time_makes_a_wait_longer_than_an_interval_and_a_clock_step(policy, tat):
    """Whatever a store holds, a key is served again soon."""
    assert step(tat, NOW, policy)[1].retry_after <= policy.interval + CLOCK_STEP + 1e-3


# Headers


def test_an_allowed_request_is_told_its_policy_and_what_is_left():
    """The fields of the IETF draft, and no Retry-After."""
    [decision] = run(POLICY, [0])

    assert {
        "RateLimit-Policy": '"agent";q=60;w=60',
        "RateLimit": '"agent";r=19;t=1',
    } == headers(decision, "agent")


def test_the_next_request_is_earned_after_one_interval():
    """However many are left."""
    decisions = run(RateLimitPolicy(5, 600, 5), [0, 0, 0.5])

    assert ['"x";r=4;t=120', '"x";r=3;t=120', '"x";r=2;t=120'] == [
        headers(decision, "x")["RateLimit"] for decision in decisions
    ]


def test_a_refused_request_is_told_when_to_come_back():
    """Retry-After in whole seconds, equal to the end of the effective window."""
    decision = run(RateLimitPolicy(5, 600, 5), [0] * 5 + [0.5])[-1]

    assert {
        "RateLimit-Policy": '"login";q=5;w=600',
        "RateLimit": '"login";r=0;t=120',
        "Retry-After": "120",
    } == headers(decision, "login")


@given(policies(), st.lists(st.floats(0, 5), min_size=1, max_size=40))
def test_the_headers_hold_for_a_client_that_believes_them(policy, gaps):
    """Retry-After is a positive integer after which a request passes, and `t` never promises more than `r`."""
    tat, now = None, NOW
    for gap in gaps:
        now += gap
        tat, decision = step(tat, now, policy)
    fields = headers(decision, "x")

    seconds = int(fields["RateLimit"].rpartition("t=")[2])
    assert 1 <= seconds <= math.ceil(policy.interval) + 1
    if not decision.allowed:
        assert str(seconds) == fields["Retry-After"]
        assert step(tat, now + seconds, policy)[1].allowed


@pytest.mark.parametrize("name", ["", 'a"b', "a\r\nSet-Cookie: x", "a b", "ä", "x" * 65])
def test_a_name_that_could_break_the_header_is_refused(name):
    """The name goes into a quoted string: only characters that need no escape."""
    [decision] = run(POLICY, [0])

    with pytest.raises(PolicyError):
        headers(decision, name)


# The store


class TestMemoryRateLimitStore(RateLimitStoreContract):
    """The public fake keeps the contract."""

    @pytest.fixture
    def store(self) -> RateLimitStore:
        return MemoryRateLimitStore()


async def test_the_memory_store_is_bounded_and_keeps_who_is_refused():
    """Many keys do not fill the memory, and do not wash out the key that is at its limit."""
    store = MemoryRateLimitStore(max_keys=10)
    for _ in range(20):
        await store.take("greedy", POLICY, START)

    for number in range(1000):
        await store.take(f"key {number}", POLICY, START + timedelta(microseconds=number))

    assert not (await store.take("greedy", POLICY, START)).allowed
    assert 10 == len(store._tats)
