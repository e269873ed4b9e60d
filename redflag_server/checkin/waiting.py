"""
Check-ins that are held open until there is something to do: who waits, and what ends the waiting.

One process, one event loop, no connection of the database: a held check-in costs memory only. Each agent waits
once; a second check-in of it ends the first, whose connection is most likely gone.
"""

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import attrs

MAX_WAITING: Final = 6_000
"""Check-ins held open at once: some 30 KiB each. An agent beyond it is answered at once, and comes back later."""

Timeout = Callable[[float], AbstractAsyncContextManager[Any]]


class Ended(StrEnum):
    """Why a held check-in is answered."""

    NEWS = "news"
    """Something about the agent changed: look again."""
    TIME = "time"
    SUPERSEDED = "superseded"
    """The agent checked in again."""
    CLOSING = "closing"
    """The server stops."""
    GONE = "gone"
    """The connection was closed: whoever asked does not get an answer any more."""


@attrs.define(eq=False)
class Poll:
    """
    One held check-in.

    Args:
        timeout: Ends a wait after so many seconds, like `asyncio.timeout`.
    """

    _timeout: Timeout
    _news: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _over: Ended | None = attrs.field(default=None, init=False)

    def wake(self) -> None:
        """There may be something to do."""
        self._news.set()

    def finish(self, why: Ended) -> None:
        """Answer it now, without anything to do."""
        self._over = self._over or why
        self._news.set()

    async def wait(self, seconds: float) -> Ended:
        """
        Wait until something happens.

        What happened since the last call, or since the check-in was entered, counts: nothing is missed between
        looking and waiting.

        Args:
            seconds: How long at most.
        """
        with contextlib.suppress(TimeoutError):
            async with self._timeout(seconds):
                await self._news.wait()
        if self._over is not None:
            return self._over
        woken = self._news.is_set()
        self._news.clear()
        return Ended.NEWS if woken else Ended.TIME


@attrs.define
class Waiting:
    """
    Who waits. Belongs to one event loop.

    Args:
        limit: Check-ins held open at once.
        timeout: Ends a wait after so many seconds, like `asyncio.timeout`.
    """

    limit: int = MAX_WAITING
    timeout: Timeout = asyncio.timeout
    _polls: dict[UUID, list[Poll]] = attrs.field(factory=dict, init=False)
    _held: int = attrs.field(default=0, init=False)
    _closed: bool = attrs.field(default=False, init=False)

    def __len__(self) -> int:
        return self._held

    def agents(self) -> list[UUID]:
        """Who waits."""
        return list(self._polls)

    def enter(self, agent_id: UUID) -> Poll | None:
        """
        Begin to listen. Done before looking for commands, so that none is missed between looking and waiting.

        Returns:
            None when the server stops, or when too many wait: then it is answered at once.
        """
        if self._closed or self._held >= self.limit:
            return None
        poll = Poll(self.timeout)
        self._polls.setdefault(agent_id, []).append(poll)
        self._held += 1
        return poll

    def supersede(self, agent_id: UUID, poll: Poll) -> None:
        """End the other check-ins of an agent, once this one passed the gate: a replay must not end them."""
        for other in self._polls.get(agent_id, ()):
            if other is not poll:
                other.finish(Ended.SUPERSEDED)

    def leave(self, agent_id: UUID, poll: Poll) -> None:
        """Stop waiting."""
        polls = self._polls[agent_id]
        polls.remove(poll)
        self._held -= 1
        if not polls:
            del self._polls[agent_id]

    def wake(self, agent_id: UUID) -> None:
        """Let the check-in of an agent, if it waits, look again."""
        for poll in self._polls.get(agent_id, ()):
            poll.wake()

    def close(self) -> None:
        """The server stops: answer everybody, and hold nothing any more."""
        self._closed = True
        for polls in self._polls.values():
            for poll in polls:
                poll.finish(Ended.CLOSING)
