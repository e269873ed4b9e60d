"""
Room for large bodies: how many are read and handled at once, of all agents and of one.

All of a body is in memory until it is handled. A request that waits for room counts as one of its agent: no agent
fills the room, or the queue in front of it, alone.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID

import attrs

from redflag_server.problems import UnavailableError

LARGE_BODIES: Final = 64
"""Reports and results handled at once: they have up to 16 MiB each, and all of it is in memory."""

LARGE_BODIES_OF_ONE: Final = 2
"""Of these, of one agent: it sends one after the other, and a second when the connection of the first was lost."""


@attrs.define(eq=False)
class Room:
    """The room of one server. For one process and event loop."""

    _free: asyncio.Semaphore = attrs.field(factory=lambda: asyncio.Semaphore(LARGE_BODIES), init=False)
    _taken: Counter[UUID] = attrs.field(factory=Counter, init=False)

    @asynccontextmanager
    async def taken_by(self, agent_id: UUID) -> AsyncIterator[None]:
        """
        Take room for one body of an agent, as soon as there is some, until it is handled.

        Args:
            agent_id: The agent; it has passed the gate, or its signature alone would keep others out.

        Raises:
            UnavailableError: Enough bodies of this agent are on their way already.
        """
        if self._taken[agent_id] >= LARGE_BODIES_OF_ONE:
            raise UnavailableError(
                f"{LARGE_BODIES_OF_ONE} large bodies of this agent are on their way: send one after the other"
            )
        self._taken[agent_id] += 1
        try:
            async with self._free:
                yield
        finally:
            self._taken[agent_id] -= 1
            if not self._taken[agent_id]:  # what is not taken is not remembered
                del self._taken[agent_id]
