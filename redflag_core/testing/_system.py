"""The clock and the entropy of a test: they move when told to, and repeat."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Final

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""Where a `FrozenClock` starts unless told otherwise."""


class FrozenClock:
    """
    A clock that moves when told to. `redflag_core.ports.Clock`.

    Any thread or event loop may read it; one of them moves it. After a fork each side moves its own.

    Args:
        now: Wall time it starts at, aware UTC.
    """

    def __init__(self, now: datetime = START) -> None:
        self._now = now
        self._monotonic = 1000.0

    def now(self) -> datetime:
        """The frozen wall time."""
        return self._now

    def monotonic(self) -> float:
        """The frozen monotonic time, seconds."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let *seconds* (0 or more) pass on both clocks."""
        if seconds < 0:
            raise ValueError("time passes forwards; use jump() for a wall clock that was set back")
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back by *seconds*; monotonic time does not notice."""
        self._now += timedelta(seconds=seconds)


class SeededEntropy:
    """
    Repeatable bytes. `redflag_core.ports.Entropy`. Never for production: anybody can compute them.

    For one thread, or its event loops: with several, who gets which bytes is no longer repeatable. After a fork
    both sides get the same bytes.

    Args:
        seed: Two with the same seed give the same bytes.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._count = 0

    def token(self, size: int) -> bytes:
        """The next *size* bytes."""
        self._count += 1
        return hashlib.shake_256(b"%d.%d" % (self._seed, self._count)).digest(size)
