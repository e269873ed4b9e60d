"""Waiting that can be ended early, with the sleep injected: no test waits for real."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

Sleep: TypeAlias = Callable[[float], Awaitable[None]]
"""`asyncio.sleep`, or a test's."""


async def pause(seconds: float, *events: asyncio.Event, sleep: Sleep) -> None:
    """
    Wait for *seconds*, or until one of *events* is set.

    Args:
        seconds: How long at most.
        events: What ends the wait early.
        sleep: How to wait.
    """
    waits = [asyncio.ensure_future(sleep(seconds)), *(asyncio.ensure_future(event.wait()) for event in events)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
