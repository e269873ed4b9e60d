"""Limits by address: coarse, in memory, before anybody is authenticated. Limits of agents are in the database."""

from typing import Final

import attrs

from redflag_core.ports import Clock
from redflag_core.rate_limit import RateLimitPolicy, step
from redflag_server.addresses import network_of
from redflag_server.problems import RateLimitedError

MAX_ADDRESSES: Final = 100_000
"""Addresses remembered at once; the one seen longest ago is forgotten first."""


@attrs.define
class AddressLimits:
    """One arrival time for each (class, address). For one process and event loop."""

    _clock: Clock
    _arrivals: dict[tuple[str, str], float] = attrs.field(factory=dict, init=False)

    def charge(self, name: str, address: str, policy: RateLimitPolicy) -> None:
        """
        Charge one request.

        Args:
            name: Class of requests; also the name in the ``RateLimit`` headers.
            address: Client address.
            policy: The limit.

        Raises:
            RateLimitedError: The limit holds.
        """
        key = (name, network_of(address))
        arrival, decision = step(self._arrivals.pop(key, None), self._clock.now().timestamp(), policy)
        self._arrivals[key] = arrival
        if len(self._arrivals) > MAX_ADDRESSES:
            self._arrivals.pop(next(iter(self._arrivals)))
        if not decision.allowed:
            raise RateLimitedError(decision, name)
