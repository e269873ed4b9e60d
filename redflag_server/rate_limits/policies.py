"""
Which policy holds: the organization's, else the installation's, else the built-in one.

What is set is remembered for `FRESH_SECONDS`, so that no check-in asks the database for it. This process sees its
own changes at once.
"""

import asyncio
import logging
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from redflag_core.ports import Clock
from redflag_core.rate_limit import RateLimitPolicy, parse_scoped
from redflag_server.db.engine import Database
from redflag_server.organizations.tables import INSTALLATION
from redflag_server.rate_limits.classes import PROTECTIONS, RateClass, default_of
from redflag_server.rate_limits.tables import RateLimit
from redflag_server.settings import Settings

logger = logging.getLogger(__name__)

FRESH_SECONDS: Final = 5.0
"""How long a change on another server may go unnoticed."""


class Source(StrEnum):
    """Where a policy comes from."""

    ORGANIZATION = "organization"
    INSTALLATION = "installation"
    BUILT_IN = "built-in"


@attrs.define(eq=False)
class Policies:
    """
    The policies that hold here. Belongs to one event loop.

    Args:
        database: Where they are set.
        clock: Its monotonic time says how old they are.
        settings: Has the built-in ones.
    """

    _database: Database
    _clock: Clock
    _settings: Settings
    _set: Mapping[tuple[UUID, str], RateLimitPolicy] | None = attrs.field(default=None, init=False)
    _fresh_until: float = attrs.field(default=0.0, init=False)
    _lock: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False)

    async def refresh(self) -> None:
        """
        Read what is set, unless that was done lately. Before a request is judged.

        Raises:
            OperationalError: The database does not answer, and never did. Later, what was read last holds on.
        """
        if not self._is_fresh():
            async with self._lock:
                if not self._is_fresh():
                    await self._read_if_possible()

    async def reload(self) -> None:
        """Read what is set, now: after a change. A reading that is under way began before it and is waited for."""
        async with self._lock:
            await self._read_if_possible()

    def in_force(
        self, name: RateClass, organization_id: UUID = INSTALLATION
    ) -> tuple[RateLimitPolicy | None, Source]:
        """The policy of a class for an organization, None for no limit of its own; and where it comes from."""
        known = self._set or {}
        for owner, source in ((organization_id, Source.ORGANIZATION), (INSTALLATION, Source.INSTALLATION)):
            policy = known.get((owner, name))
            if policy is not None:
                return policy, Source.INSTALLATION if owner == INSTALLATION else source
        return default_of(self._settings, name), Source.BUILT_IN

    def optional(self, name: RateClass, organization_id: UUID = INSTALLATION) -> RateLimitPolicy | None:
        """The policy of a class for an organization; None for no limit of its own."""
        return self.in_force(name, organization_id)[0]

    def required(self, name: RateClass, organization_id: UUID = INSTALLATION) -> RateLimitPolicy:
        """The policy of a class that always has one: its protection names a setting."""
        policy = self.optional(name, organization_id)
        if policy is None:
            raise LookupError(f"{name} has no limit of its own: {PROTECTIONS[name].what}")
        return policy

    def _is_fresh(self) -> bool:
        return self._set is not None and self._clock.monotonic() < self._fresh_until

    async def _read_if_possible(self) -> None:
        try:
            await self._read()
        except OperationalError:
            if self._set is None:
                raise
            self._fresh_until = self._clock.monotonic() + FRESH_SECONDS
            logger.warning("could not read the rate limits: those that were read last hold on", exc_info=True)

    async def _read(self) -> None:
        began = self._clock.monotonic()
        columns: Any = (RateLimit.organization_id, RateLimit.rate_class, RateLimit.policy)
        async with self._database.read() as session:
            rows = (await session.execute(select(*columns))).all()
        self._set = {(owner, name): parse_scoped(text).policy for owner, name, text in rows}
        self._fresh_until = began + FRESH_SECONDS
