"""
Rate limits over whole histories, against the plainest model: a list of what was let through.

The model says: a request passes exactly when no span of requests that ends with it has more than the burst and
what its time has earned. It knows no arrival times and no formula of GCRA. The numbers of most policies here are
powers of two, so that it and the stores have to agree to the last bit.
"""

import math
import tempfile
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from redflag_core.rate_limit import CLOCK_STEP, EPSILON, Decision, RateLimitPolicy
from redflag_core.stores.sqlite import SqliteRateLimitStore
from redflag_core.testing import START, MemoryRateLimitStore
from tests.helpers.coroutines import finished

EXACT = (
    RateLimitPolicy(60, 60, 20),
    RateLimitPolicy(4, 1, 3),
    RateLimitPolicy(1, 256, 2),
    RateLimitPolicy(1, 64, 1),
    RateLimitPolicy(8, 2, 1),
)
ROUNDED = (RateLimitPolicy(7, 3, 5), RateLimitPolicy(1000, 7, 30), RateLimitPolicy(3, 100, 1))
KEYS = st.sampled_from(("a", "b", "A", "each:60/minute:a", "\u00e4"))
EIGHTHS = st.integers(0, 8 * 64)
"""Pauses are whole eighths of a second, which are exact in a float of the present time."""

SLACK = Fraction(4 * EPSILON)
"""Seconds within which a store may round either way, where the interval is no exact number."""


class Memory:
    """The store of the fakes, for callers that block."""

    def __init__(self) -> None:
        self.store = MemoryRateLimitStore()

    def take(self, *arguments):
        return finished(self.store.take(*arguments))

    def purge(self, now: datetime):
        return finished(self.store.purge(now))

    def restart(self) -> None:
        """What is in memory has no file to be opened again."""

    def close(self) -> None:
        """Nothing is open."""


class Sqlite(SqliteRateLimitStore):
    """A store in a file of its own."""

    def __init__(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        super().__init__(Path(self.directory.name, "limits.db"))
        self.create()

    def restart(self) -> None:
        super().close()

    def close(self) -> None:
        super().close()
        self.directory.cleanup()


class Generous(Memory):
    """A store that is wrong: after a purge everybody has the full burst again."""

    def purge(self, now: datetime):
        self.store = MemoryRateLimitStore()


@attrs.define
class Model:
    """What was let through, in the order in which it was charged."""

    policy: RateLimitPolicy
    passed: list[Fraction] = attrs.field(factory=list)

    @property
    def interval(self) -> Fraction:
        return Fraction(self.policy.period_seconds, self.policy.count)

    def to_spare(self, now: Fraction) -> Fraction:
        """Seconds that a request at *now* may come too early and still pass; less than 0 is how much too early."""
        charged = [*self.passed, now]
        spans = ((now - began, len(charged) - index) for index, began in enumerate(charged))
        return min(elapsed + (self.policy.burst - number) * self.interval for elapsed, number in spans)


class Clients(RuleBasedStateMachine):
    """Some clients with one policy, over one store that is purged and opened again."""

    kind: type[Memory] | type[Sqlite]

    def __init__(self) -> None:
        super().__init__()
        self.store = self.kind()
        self.now = START
        self.models: dict[str, Model] = {}

    @initialize(policy=st.sampled_from(EXACT + ROUNDED))
    def choose(self, policy: RateLimitPolicy) -> None:
        self.policy = policy

    @rule(key=KEYS, number=st.integers(1, 25))
    def request(self, key: str, number: int) -> None:
        """A client asks some times at once."""
        for _ in range(number):
            self._take(key, self.now)

    @rule(key=KEYS, late=st.integers(0, int(CLOCK_STEP) * 8))
    def request_through_a_replica_that_is_behind(self, key: str, late: int) -> None:
        """Whose clock shows up to a minute less."""
        self._take(key, self.now - timedelta(seconds=late / 8))

    @rule(eighths=EIGHTHS)
    def wait(self, eighths: int) -> None:
        self.now += timedelta(seconds=eighths / 8)

    @rule(key=KEYS)
    def wait_as_long_as_told(self, key: str) -> None:
        """Who was refused comes back when it was told, and passes."""
        decision = self._take(key, self.now)
        if not decision.allowed:
            self.now += timedelta(seconds=math.ceil(decision.retry_after * 8) / 8)
            assert self._take(key, self.now).allowed

    @rule()
    def purge(self) -> None:
        """Who has the full burst again is forgotten, and notices nothing."""
        self.store.purge(self.now)

    @rule()
    def restart(self) -> None:
        """The process ends, and another one opens the store."""
        self.store.restart()

    def teardown(self) -> None:
        self.store.close()

    def _take(self, key: str, now: datetime) -> Decision:
        """Charge one request, and compare what the store says with the model."""
        model = self.models.setdefault(key, Model(self.policy))
        moment = Fraction(now.timestamp())
        decision, spare = self.store.take(key, self.policy, now), model.to_spare(moment)
        assert decision.allowed or model.passed, "the first request of a key was refused"
        if self.policy in EXACT:
            self._compare(decision, spare, model.interval)
        elif abs(spare) > SLACK:
            assert decision.allowed is (spare >= 0)
        if decision.allowed:
            model.passed.append(moment)
        return decision

    def _compare(self, decision: Decision, spare: Fraction, interval: Fraction) -> None:
        assert decision.allowed is (spare >= 0)
        if decision.allowed:
            assert decision.remaining == math.floor(spare / interval)
        else:
            assert decision.retry_after == -spare


class ClientsInMemory(Clients):
    """Over the fake."""

    kind = Memory


class ClientsOnDisk(Clients):
    """Over SQLite."""

    kind = Sqlite


class ClientsOfAGenerousStore(Clients):
    """Over a store that is wrong."""

    kind = Generous


TestClientsInMemory = ClientsInMemory.TestCase
TestClientsInMemory.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)

TestClientsOnDisk = ClientsOnDisk.TestCase
TestClientsOnDisk.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


@pytest.mark.full
class TestClientsOnDiskForLong(ClientsOnDisk.TestCase):
    """The same, far more often."""

    settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


def test_a_store_that_grants_too_much_is_found():
    """The machine is no rubber stamp: a fresh burst after a purge is seen."""
    clients = ClientsOfAGenerousStore()
    clients.choose(RateLimitPolicy(60, 60, 20))
    clients.request("a", 21)
    clients.purge()

    with pytest.raises(AssertionError):
        clients.request("a", 1)
