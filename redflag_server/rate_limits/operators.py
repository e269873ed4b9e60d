"""
The limit of sessions and API keys: exact over all servers, without a write for each request.

A server takes a small block of requests from the credential's row, and lets them pass from memory. A block counts
only until the arrival time that it was charged up to: until then it makes no difference when in between a request
was charged, so all servers together let pass what the policy says and never more. What one server has left over
can be missing on another for that short time.

A refusal is remembered too: who keeps asking costs no statement until a request is earned.
"""

import asyncio
import logging
from collections import OrderedDict
from typing import Final
from uuid import UUID

import attrs
from sqlalchemy.exc import OperationalError

from redflag_core.ports import Clock
from redflag_core.rate_limit import CLOCK_STEP, EPSILON, RateLimitPolicy, decision_of
from redflag_server.db.engine import Database
from redflag_server.organizations.tables import INSTALLATION
from redflag_server.problems import RateLimitedError
from redflag_server.rate_limits.arrivals import take
from redflag_server.rate_limits.classes import RateClass
from redflag_server.rate_limits.policies import Policies
from redflag_server.rate_limits.tables import key_of

logger = logging.getLogger(__name__)

MAX_BLOCK: Final = 20
"""Requests taken at once: a script costs one write for twenty, and little is missing elsewhere meanwhile."""

BLOCKS_IN_BURST: Final = 10
"""A block is a small part of the burst, so that several servers find something left."""

MAX_REMEMBERED: Final = 10_000
"""Credentials remembered; the one used longest ago is forgotten, and what it has left of a block is lost."""


@attrs.define(eq=False)
class _Budget:
    """What one credential may do here without asking. ``arrival`` is what the database stored last."""

    lock: asyncio.Lock = attrs.field(factory=asyncio.Lock)
    policy: RateLimitPolicy | None = None
    left: int = 0
    arrival: float = 0.0


@attrs.define(eq=False)
class OperatorLimits:
    """
    Charges requests of people and scripts. Belongs to one event loop.

    Args:
        database: Where the credentials' rows are.
        clock: Wall time.
        policies: Which limit holds.
    """

    _database: Database
    _clock: Clock
    _policies: Policies
    _budgets: OrderedDict[str, _Budget] = attrs.field(factory=OrderedDict, init=False)

    async def charge(self, subject: str, organization_id: UUID | None) -> None:
        """
        Charge one request.

        A database that cannot be written lets it pass, and says so in the log: on a full disk people must still be
        able to look, and nothing can be changed anyway.

        Args:
            subject: Which credential.
            organization_id: The one organization that it sees, or None.

        Raises:
            RateLimitedError: The limit holds.
        """
        await self._policies.refresh()
        policy = self._policies.required(RateClass.OPERATOR, organization_id or INSTALLATION)
        budget = self._budget(subject)
        async with budget.lock:
            try:
                await self._charge(budget, subject, policy)
            except OperationalError:
                logger.warning("could not charge a request of an operator", exc_info=True)

    def _budget(self, subject: str) -> _Budget:
        budget = self._budgets.setdefault(subject, _Budget())
        self._budgets.move_to_end(subject)
        if len(self._budgets) > MAX_REMEMBERED:
            self._budgets.popitem(last=False)
        return budget

    async def _charge(self, budget: _Budget, subject: str, policy: RateLimitPolicy) -> None:
        now = self._clock.now().timestamp()
        if budget.policy != policy:
            budget.policy, budget.left, budget.arrival = policy, 0, 0.0
        if budget.left and now <= budget.arrival:
            budget.left -= 1
            return
        refused = decision_of(budget.arrival, now, policy, allowed=False)
        # Longer than that a wait cannot be: the clock was set back, and the database knows what then.
        if not EPSILON < refused.retry_after <= policy.interval + CLOCK_STEP:
            await self._take(budget, subject, policy)
            return
        raise RateLimitedError(refused, RateClass.OPERATOR)

    async def _take(self, budget: _Budget, subject: str, policy: RateLimitPolicy) -> None:
        """Take a block; near the limit, one request."""
        now, key = self._clock.now(), key_of(RateClass.OPERATOR, subject)
        count = max(1, min(MAX_BLOCK, policy.burst // BLOCKS_IN_BURST))
        async with self._database.write() as session:
            stored, decision = await take(session, key, policy, now, count=count)
            if not decision.allowed and count > 1:
                count = 1
                stored, decision = await take(session, key, policy, now)
        budget.arrival = stored
        if not decision.allowed:
            budget.left = 0
            raise RateLimitedError(decision, RateClass.OPERATOR)
        budget.left = count - 1
