"""
Rate limits: a policy anybody can read, one arithmetic step, and the headers that tell the client.

The generic cell rate algorithm (GCRA, ITU-T I.371) keeps one number for each key: the theoretical arrival time
(TAT), when a client that keeps exactly to the rate would send next. There is no window to reset and no list of
requests to keep, and a store needs one conditional update. A TAT at or before *now* means the same as none at all.
"""

import math
import re
from enum import StrEnum
from typing import Final

import attrs

from redflag_core.encoding import check_storable
from redflag_core.errors import PolicyError

ACCEPTED_FORM: Final = 'write it as "60/minute burst 20", "5/10 minutes" or "100/hour"'

SCOPED_FORM: Final = (
    'write it as "60/minute per agent, burst 20" or "100/hour per key"; '
    "it can be per agent, address, organization or key"
)

MAX_COUNT: Final = 1_000_000
"""Most requests in a period or a burst; beyond it a limit protects nothing."""

MAX_PERIOD: Final = 366 * 86_400
"""Longest period, in seconds: a year. A client should live to see the end of it."""

MAX_PER_SECOND: Final = 1_000
"""Highest rate. Unix seconds as floats are exact to 0.24 microseconds, so one interval must be far longer."""

MAX_TEXT: Final = 64
"""Longest policy text read."""

CLOCK_STEP: Final = 60.0
"""
Seconds by which a stored TAT may be later than the policy can have made it. Beyond, the clock was set back or
the policy made smaller: then one request passes at once and the count goes on from *now*, so that no key stays
locked until an old clock is caught up with. Clocks of replicas differ by less.
"""

MAX_KEY_BYTES: Final = 1_024
"""Longest key of a store, in UTF-8: an index of PostgreSQL takes 2,700 bytes. Hash texts that may be longer."""

EPSILON: Final = 1e-5
"""Absorbs the rounding of float unix seconds: who waits for `retry_after` is not refused for a microsecond."""

_UNITS: Final = {"day": 86_400, "hour": 3_600, "minute": 60, "second": 1}
"""Largest first: `str` takes the first that divides the period."""

_POLICY: Final = re.compile(
    r"\s*([0-9]{1,7})\s*/\s*([0-9]{1,8})?\s*(second|minute|hour|day)s?"
    r"(?:\s+per\s+(agent|address|organization|key))?"
    r"(?:(?:\s+|\s*,\s*)burst\s+([0-9]{1,7}))?\s*"
)
_NAME: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


@attrs.frozen
class RateLimitPolicy:
    """
    A steady rate and how far a client may run ahead of it. ``parse(str(policy)) == policy``.

    Args:
        count: Requests in each period, at the steady rate.
        period_seconds: Length of the period.
        burst: Requests that may come at once after a pause.

    Raises:
        PolicyError: A number is out of its bounds.
    """

    count: int
    period_seconds: int
    burst: int

    def __attrs_post_init__(self) -> None:
        _within("count", self.count, MAX_COUNT)
        _within("period in seconds", self.period_seconds, MAX_PERIOD)
        _within("burst", self.burst, MAX_COUNT)
        if self.count > MAX_PER_SECOND * self.period_seconds:
            raise PolicyError(f"a rate limit allows at most {MAX_PER_SECOND} requests a second: {ACCEPTED_FORM}")

    @property
    def interval(self) -> float:
        """Seconds between two requests at the steady rate."""
        return self.period_seconds / self.count

    @property
    def rate(self) -> str:
        """The rate alone: ``60/minute``."""
        unit = next(name for name, seconds in _UNITS.items() if self.period_seconds % seconds == 0)
        number = self.period_seconds // _UNITS[unit]
        return f"{self.count}/{unit if number == 1 else f'{number} {unit}s'}"

    def __str__(self) -> str:
        return self.rate if self.burst == self.count else f"{self.rate} burst {self.burst}"


class Scope(StrEnum):
    """Of what each one has a limit of its own."""

    AGENT = "agent"
    """Each registered machine."""

    ADDRESS = "address"
    """Each client address: the only one that means something before anybody is authenticated."""

    ORGANIZATION = "organization"
    """Each organization, for all that belongs to it together."""

    KEY = "key"
    """Each API key or other credential."""


@attrs.frozen
class ScopedPolicy:
    """
    A limit, and of what each one has its own. ``parse_scoped(str(scoped)) == scoped``.

    Args:
        policy: The limit.
        scope: Of what each one has it; None where the place of the setting says it.
    """

    policy: RateLimitPolicy
    scope: Scope | None = None

    def key(self, subject: str) -> str:
        """
        The key of a store for *subject*: another one for each scope and rate, so that limits do not share a count.

        Args:
            subject: Id of the agent, address, organization or credential.
        """
        return f"{self.scope or 'each'}:{self.policy.rate}:{subject}"

    def __str__(self) -> str:
        if self.scope is None:
            return str(self.policy)
        burst = "" if self.policy.burst == self.policy.count else f", burst {self.policy.burst}"
        return f"{self.policy.rate} per {self.scope}{burst}"


@attrs.frozen
class Decision:
    """
    The answer to one request.

    Attributes:
        allowed: Whether to serve it.
        remaining: Requests that would be allowed at this moment.
        retry_after: Seconds until a request is allowed; 0 when this one was.
        reset_after: Seconds until the full burst is there again.
        policy: The policy that decided.
    """

    allowed: bool
    remaining: int
    retry_after: float
    reset_after: float
    policy: RateLimitPolicy


def parse(text: str) -> RateLimitPolicy:
    """
    Read a policy such as ``60/minute burst 20``.

    Args:
        text: What an operator wrote. Blanks and case do not matter; a comma may stand before ``burst``; without it
            the burst is the count.

    Raises:
        PolicyError: Anything else; the message shows the accepted form. A scope too: dropping it would give all
            together what each was to have.
    """
    scoped = _parse(text, ACCEPTED_FORM)
    if scoped.scope is not None:
        raise PolicyError(f'"per {scoped.scope}" has no meaning for this rate limit: {ACCEPTED_FORM}')
    return scoped.policy


def parse_scoped(text: str) -> ScopedPolicy:
    """
    Read a policy that may say whose it is: ``60/minute per agent, burst 20``.

    Args:
        text: What an operator wrote. Everything that `parse` reads, and a `Scope` behind the period.

    Raises:
        PolicyError: Anything else; the message shows the accepted form.
    """
    return _parse(text, SCOPED_FORM)


def check_key(key: str) -> None:
    """
    Check that every store can keep *key*. Stores do this first, so that they all refuse the same keys.

    Args:
        key: Untrusted text. Its bytes matter only as such: there is nothing to escape.

    Raises:
        MalformedError: It holds U+0000 or a lone surrogate, which databases refuse.
        TooLargeError: It is longer than `MAX_KEY_BYTES`.
    """
    check_storable(key, "the key of a rate limit", max_bytes=MAX_KEY_BYTES)


def step(tat: float | None, now: float, policy: RateLimitPolicy) -> tuple[float, Decision]:
    """
    Charge one request. A store runs this, or the same arithmetic in SQL, atomically for each key.

    Args:
        tat: The stored time for the key, unix seconds; None for a new key.
        now: Unix seconds, of one clock for all replicas.
        policy: The limit.

    Returns:
        The time to store, and the decision. A refused request leaves the stored time as it is, so hammering does
        not prolong the wait. The first request of a key is never refused.
    """
    interval, capacity = policy.interval, policy.burst * policy.interval
    base = now if tat is None else max(tat, now)
    if base > now + capacity + CLOCK_STEP:
        base = now + capacity - interval
    after = base + interval
    allowed = after - now - capacity <= EPSILON
    stored = after if allowed else base
    return stored, decision_of(stored, now, policy, allowed=allowed)


def decision_of(stored: float, now: float, policy: RateLimitPolicy, *, allowed: bool) -> Decision:
    """
    What `step` decides, from what it stored: for a store that does the arithmetic in SQL.

    Args:
        stored: The time that was stored, unix seconds.
        now: Unix seconds, as they were for the step.
        policy: The limit.
        allowed: Whether the request was.
    """
    interval, capacity = policy.interval, policy.burst * policy.interval
    if not allowed:
        return Decision(False, 0, stored + interval - now - capacity, stored - now, policy)
    remaining = math.floor((capacity - (stored - now) + EPSILON) / interval)
    return Decision(True, remaining, 0.0, stored - now, policy)


def headers(decision: Decision, name: str) -> dict[str, str]:
    """
    What to tell the client (draft-ietf-httpapi-ratelimit-headers-11, RFC 9110 section 10.2.3).

    ``t`` is the time within which no more than ``r`` requests pass: until the next one is earned. So Retry-After,
    sent with a refusal, is never earlier than the end of that time (section 6 of the draft).

    Args:
        decision: The decision on this request.
        name: Which policy this is, to the client.

    Raises:
        PolicyError: *name* is not 1 to 64 of letters, digits and ``_ . : -``.
    """
    if not _NAME.fullmatch(name):
        raise PolicyError("the name of a rate limit is 1 to 64 letters, digits, '_', '.', ':' or '-'")
    policy = decision.policy
    earned = decision.reset_after - (policy.burst - decision.remaining - 1) * policy.interval
    seconds = max(1, math.ceil(earned - EPSILON))
    result = {
        "RateLimit-Policy": f'"{name}";q={policy.count};w={policy.period_seconds}',
        "RateLimit": f'"{name}";r={decision.remaining};t={seconds}',
    }
    return result if decision.allowed else result | {"Retry-After": str(seconds)}


def _parse(text: str, form: str) -> ScopedPolicy:
    match = _POLICY.fullmatch(text.lower()) if len(text) <= MAX_TEXT else None
    if match is None:
        raise PolicyError(f"this is not a rate limit: {form}")
    count, number, unit, scope, burst = match.groups()
    policy = RateLimitPolicy(int(count), int(number or 1) * _UNITS[unit], int(burst or count))
    return ScopedPolicy(policy, Scope(scope) if scope else None)


def _within(what: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise PolicyError(f"the {what} of a rate limit is 1 to {most}: {ACCEPTED_FORM}")
