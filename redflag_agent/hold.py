"""
For how long the server is asked to hold a check-in open, when something on the way may not wait so long.

Proxies cut a connection on which nothing happens, and each has its own idea of when. A cut halves the time, down
to not holding at all; after an hour without one it is doubled again. So a proxy that always cuts costs one
check-in an hour.
"""

from typing import Final

import attrs

from redflag_core.messages import MAX_WAIT_SECONDS

SHORTEST_HOLD: Final = 5
"""Seconds. Where not even that is possible, holding is given up: it would only be more requests."""

LONGER_AFTER: Final = 3600.0
"""Seconds without a cut after which a longer time is tried."""


@attrs.frozen
class Hold:
    """
    How long, and since when.

    Attributes:
        seconds: How long the server is asked to hold a check-in, 0 for not at all.
        since: Monotonic time at which that was chosen.
    """

    seconds: int = MAX_WAIT_SECONDS
    since: float = 0.0

    def after_cut(self, now: float) -> "Hold":
        """A check-in was cut off while it was held."""
        if self.seconds <= SHORTEST_HOLD:
            return Hold(0, now)
        return Hold(max(SHORTEST_HOLD, self.seconds // 2), now)

    def after_answer(self, now: float) -> "Hold":
        """A check-in was answered."""
        if self.seconds == MAX_WAIT_SECONDS or now - self.since < LONGER_AFTER:
            return self
        return Hold(min(MAX_WAIT_SECONDS, max(SHORTEST_HOLD, self.seconds * 2)), now)
