"""
Replay protection over whole histories: what was accepted once is never accepted again.

The machine that receives has a clock that may be wrong in either direction, and right again. The senders are
honest: their clocks are within the tolerance. An attacker holds every message that was ever signed, and sends it
again whenever it may help. Nonces are purged, restores happen, and the store is closed and opened again.

One thing is excluded on purpose, since no store can know it: a purge on a clock that is behind. The horizon that
it finds may then look like one of a clock that was ahead (`redflag_core.freshness.next_horizon`).
"""

import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from redflag_core.errors import ReplayError, StaleError
from redflag_core.freshness import RETENTION, TOLERANCE, check_window, claim_nonce_sync
from redflag_core.stores.sqlite import SqliteNonceStore
from redflag_core.testing import START, MemoryNonceStore
from tests.helpers.coroutines import finished

LIFETIME = 300
SOME = st.integers(0, 2**16)
SKEW = st.sampled_from((-TOLERANCE, 0, TOLERANCE)) | st.integers(-TOLERANCE, TOLERANCE)
PAUSES = st.sampled_from((1, 30, TOLERANCE - 1, TOLERANCE, TOLERANCE + 1, RETENTION, RETENTION + 1, 5_000))
ERRORS = st.sampled_from((-86_400, -RETENTION - 1, -TOLERANCE, -1, 1, TOLERANCE, RETENTION + 1, 86_400))


@attrs.frozen
class Message:
    """What a sender signed. `redflag_core.freshness.Claimable`."""

    key_id: str
    nonce: str
    created: int


class Memory:
    """The store of the fakes, for callers that block."""

    def __init__(self) -> None:
        self.store = MemoryNonceStore()

    def claim(self, *claim):
        return finished(self.store.claim(*claim))

    def purge(self, now: datetime):
        return finished(self.store.purge(now))

    def forget(self, horizon: int):
        return finished(self.store.forget(horizon))

    def restart(self) -> None:
        """What is in memory has no file to be opened again."""

    def close(self) -> None:
        """Nothing is open."""


class Sqlite(SqliteNonceStore):
    """A store in a file of its own."""

    def __init__(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        super().__init__(Path(self.directory.name, "nonces.db"))
        self.create()

    def restart(self) -> None:
        super().close()

    def close(self) -> None:
        super().close()
        self.directory.cleanup()


class Broken(Memory):
    """A store that purges without remembering up to where: what it forgot, it takes again."""

    def purge(self, now: datetime):
        self.store = MemoryNonceStore()


class Receiver(RuleBasedStateMachine):
    """One receiver, its honest senders, and somebody who recorded everything."""

    kind: type[Memory] | type[Sqlite]

    def __init__(self) -> None:
        super().__init__()
        self.store = self.kind()
        self.now = START
        self.error = 0
        self.horizon = 0
        self.messages: list[Message] = []
        self.accepted: set[Message] = set()

    @property
    def clock(self) -> datetime:
        """What the receiver takes for the time."""
        return self.now + timedelta(seconds=self.error)

    @property
    def seconds(self) -> int:
        return int(self.clock.timestamp())

    @rule(skew=SKEW, sender=st.sampled_from("ab"))
    def sign(self, skew: int, sender: str) -> None:
        """An honest sender signs a message, and it is still on its way."""
        created = int(self.now.timestamp()) + skew
        self.messages.append(Message(sender, f"{len(self.messages)}", created))

    @rule(skew=SKEW, which=SOME)
    @precondition(lambda self: self.messages)
    def sign_with_an_old_nonce(self, skew: int, which: int) -> None:
        """A sender with a poor generator draws a nonce again: at another time it is another message."""
        earlier = self.messages[which % len(self.messages)]
        self.messages.append(attrs.evolve(earlier, created=int(self.now.timestamp()) + skew))

    @rule(which=SOME)
    @precondition(lambda self: self.messages)
    def deliver(self, which: int) -> None:
        """A message arrives: for the first time, or again."""
        self._receive(self.messages[which % len(self.messages)])

    @rule()
    @precondition(lambda self: self.accepted)
    def replay_what_was_accepted(self) -> None:
        """Everything that was ever accepted is sent once more."""
        for message in sorted(self.accepted, key=attrs.astuple):
            self._receive(message)

    @rule(seconds=PAUSES)
    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(error=ERRORS)
    def set_the_clock_wrong(self, error: int) -> None:
        self.error = error

    @rule()
    def set_the_clock_right(self) -> None:
        self.error = 0

    @rule()
    @precondition(lambda self: self.error >= 0)
    def purge(self) -> None:
        """Nonces that no message can use any more are forgotten."""
        self.store.purge(self.clock)
        was_ahead = self.horizon > self.seconds + RETENTION
        kept = self.seconds - RETENTION - 1
        self.horizon = self.seconds + TOLERANCE if was_ahead else max(self.horizon, kept)

    @rule()
    def purge_far_ahead_and_again_when_right(self) -> None:
        """The clock jumped a day ahead, a purge forgot everything, and somebody set the clock."""
        for self.error in (86_400, 0):
            self.purge()

    @rule()
    @precondition(lambda self: self.error == 0)
    def restore(self) -> None:
        """After a restore nobody knows what was claimed: everything signed until now is refused."""
        self.horizon = max(self.horizon, self.seconds + TOLERANCE)
        self.store.forget(self.horizon)

    @rule()
    def restart(self) -> None:
        """The process ends, and another one opens the store."""
        self.store.restart()

    @invariant()
    def a_new_message_passes_when_nothing_is_wrong(self) -> None:
        """Protection is no excuse to refuse: after the horizon, what is fresh and first is taken."""
        if self.error == 0 and self.horizon < self.seconds:
            fresh = Message("a", f"fresh {self.seconds} {len(self.accepted)}", self.seconds)
            self.messages.append(fresh)
            self._receive(fresh)
            assert fresh in self.accepted

    def teardown(self) -> None:
        self.store.close()

    def _receive(self, message: Message) -> None:
        """Take in a message as a server does, and compare with what must become of it."""
        try:
            check_window(message.created, message.created + LIFETIME, now=self.clock)
            claim_nonce_sync(message, self.store)
        except StaleError:
            return
        except ReplayError:
            assert message in self.accepted or message.created <= self.horizon
        else:
            assert message not in self.accepted, f"{message} was accepted twice"
            assert message.created > self.horizon, f"{message} is of a time that was forgotten"
            self.accepted.add(message)


class ReceiverInMemory(Receiver):
    """Over the fake."""

    kind = Memory


class ReceiverOnDisk(Receiver):
    """Over SQLite."""

    kind = Sqlite


class ReceiverWithABrokenStore(Receiver):
    """Over a store that is wrong."""

    kind = Broken


TestReceiverInMemory = ReceiverInMemory.TestCase
TestReceiverInMemory.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)

TestReceiverOnDisk = ReceiverOnDisk.TestCase
TestReceiverOnDisk.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)


@pytest.mark.full
class TestReceiverOnDiskForLong(ReceiverOnDisk.TestCase):
    """The same, far more often."""

    settings = settings(max_examples=200, stateful_step_count=80, deadline=None)


def test_a_store_that_forgets_too_much_is_found():
    """The machine is no rubber stamp: a purge without a horizon lets a replay through, and it is seen."""
    receiver = ReceiverWithABrokenStore()
    receiver.sign(0, "a")
    receiver.deliver(0)
    receiver.purge()

    with pytest.raises(AssertionError, match="accepted twice"):
        receiver.replay_what_was_accepted()


def test_a_purge_on_a_clock_that_is_behind_may_take_the_horizon_back():
    """What the machine excludes is real: a right horizon looks like one of a clock that was ahead."""
    receiver = ReceiverInMemory()
    receiver.sign(0, "a")
    receiver.deliver(0)
    receiver.wait(RETENTION + 1)
    receiver.purge()
    receiver.error = -2 * RETENTION - TOLERANCE - 10
    receiver.store.purge(receiver.clock)
    receiver.error = -RETENTION - 1

    with pytest.raises(AssertionError, match="accepted twice"):
        receiver.replay_what_was_accepted()
