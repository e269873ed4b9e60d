"""
What the network process asks of the executor, and nothing else: bytes in, signed bytes out.

In this release both are in one process. The interface is made for two: the executor takes nothing of the network
process' word but which bytes arrived and which of its statements the server has.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Protocol, TypeAlias

import attrs

from redflag_core.messages import Progress

Rescan: TypeAlias = Callable[[str | None], Awaitable[None]]
"""Run one scanner now, or all with None, and keep the report for delivery; a `RedFlagError` when that failed."""

OnError: TypeAlias = Callable[[str, BaseException], None]
"""Told what went wrong, and in which subsystem: `redflag_agent.error_log.ErrorLog.record`."""


@attrs.frozen
class Undelivered:
    """
    A statement that the server has not got yet.

    Attributes:
        id: For `Commander.delivered`. Negative for a refusal that is not worth keeping over a restart.
        envelope: The signed bytes.
        cmd_id: The command that it is about, None when no believed key signed one.
    """

    id: int
    envelope: bytes
    cmd_id: str | None


class Commander(Protocol):
    """The executor, as the network process sees it."""

    @property
    def news(self) -> asyncio.Event:
        """Set when there is a new statement or new progress. Whoever waits for it clears it."""
        ...

    async def execute(self, envelope: bytes) -> bytes:
        """
        Judge a command, and journal it if it is accepted. The work is done by `work`.

        Args:
            envelope: Untrusted bytes, of any size.

        Returns:
            A signed statement: accepted, refused, or the result that is in the journal. It is among `statements`
            until it is delivered.
        """
        ...

    def statements(self, *, skip: Collection[int] = ()) -> Sequence[Undelivered]:
        """
        Some of what the server has not got yet, oldest first.

        Args:
            skip: Ids that are passed over: what the server refuses for good must not hide what comes after it.
        """
        ...

    def delivered(self, statement_id: int) -> None:
        """The server has this statement on its disk. Saying so again changes nothing."""
        ...

    def progress(self) -> Progress | None:
        """What the command being carried out does now; None when there is nothing new to say of it."""
        ...

    def busy(self) -> bool:
        """Whether a command was accepted and has not ended."""
        ...

    def heartbeat_until(self) -> float | None:
        """Monotonic time until which check-ins are to be fast, None when they are not."""
        ...

    async def work(self, stop: asyncio.Event) -> None:
        """
        Finish what an earlier process left, then carry out accepted commands until *stop* is set.

        A change that runs then goes on by itself; the next start waits for it and tells how it ended.
        """
        ...
