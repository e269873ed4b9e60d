"""
What a server jumps over when its database comes back from a backup.

Such a database is behind the world: since it was made, commands were numbered and nonces were used that it does
not know. Nobody can tell it which, so it passes over all of them.
"""

from datetime import datetime

import attrs

from redflag_core.freshness import TOLERANCE, unix


@attrs.frozen
class ServerCounters:
    """
    What must never be lower than anything that was used.

    Attributes:
        gen: Generation of the server: the middle one of the order numbers (epoch, gen, seq), and what allows each
            agent's newer refresh chain to be adopted once.
        nonce_horizon: Unix seconds; nothing signed at or before it is accepted.
    """

    gen: int
    nonce_horizon: int


def after_restore(counters: ServerCounters, *, now: datetime) -> ServerCounters:
    """
    The counters with which a server goes on from a backup, or a standby when it takes over.

    The generation becomes the time, so that two restores of one backup differ, and at least one more than it was,
    so that a clock that was set back cannot lower it. The horizon is as far ahead as the sender of a request that
    was accepted before may have been: until it has passed, the server answers agents that it is not available.

    Args:
        counters: As the backup has them.
        now: Current time, aware UTC: not earlier than the last request that the lost server accepted.

    Returns:
        Counters that are in no way lower.
    """
    moment = int(unix(now))
    return ServerCounters(
        gen=max(counters.gen + 1, moment), nonce_horizon=max(counters.nonce_horizon, moment + TOLERANCE)
    )
