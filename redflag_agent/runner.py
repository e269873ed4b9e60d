"""
What runs in an agent: the loops beside each other, from the start to an orderly end.

Scanners at their own pace, one loop that asks the server, one that delivers, and the commander at its work.
Nothing here decides; a loop that ends with a bug ends the others, and whoever started the agent sees the bug.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

import attrs

from redflag_agent.check_in import CheckIns
from redflag_agent.delivery import Delivery
from redflag_agent.executor.commander import Commander
from redflag_agent.failures import Failures
from redflag_agent.orders import hand_over
from redflag_agent.polling import Polling
from redflag_agent.scanning import Scanning
from redflag_agent.sending import Sending

GRACE: Final = 3.0
"""Seconds for the request under way when the agent is told to stop; with ending the children it is below 5."""


@attrs.define
class Runner:
    """
    What runs until it is told to stop.

    Args:
        scanning: The scanners.
        check_ins: Asks the server.
        delivery: Brings it what it has not got.
        polling: The loop that asks.
        sending: The loop that delivers.
        commander: Carries commands out.
        failures: Where failures are told.
    """

    scanning: Scanning
    check_ins: CheckIns
    delivery: Delivery
    polling: Polling
    sending: Sending
    commander: Commander
    failures: Failures

    async def run(self, stop: asyncio.Event) -> None:
        """
        Run every loop until *stop* is set; then end within seconds, children included.

        Raises:
            Exception: A bug ended one of the loops, and with it the others.
        """
        scans = [_begin(self.scanning.loop(name, stop), stop) for name in self.scanning.scans]
        others = [
            _begin(loop, stop)
            for loop in (self.polling.loop(stop), self.sending.loop(stop), self.commander.work(stop))
        ]
        try:
            await stop.wait()
        finally:
            for task in scans:
                task.cancel()
            await asyncio.wait(others, timeout=GRACE)
            for task in others:
                task.cancel()
            ends = await asyncio.gather(*scans, *others, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def run_once(self) -> None:
        """
        Scan everything once, check in, carry out what is ordered, and deliver all of it.

        Raises:
            RedFlagError: It could not be delivered; what was found and done is kept for the next time.
        """
        await self.scanning.scan_all()
        try:
            answer = await self.check_ins.check_in()
            await hand_over(answer.commands, self.commander, self.failures)
            await self.delivery.send()
            if self.commander.busy():
                await self._finish()
                # What was done has changed what there is to see.
                await self.scanning.scan_all()
            await self.delivery.send()
        except Exception as error:
            self.failures.note("server", error)
            raise

    async def _finish(self) -> None:
        """Let the commander work until nothing that it accepted is left."""
        stop = asyncio.Event()
        work = asyncio.ensure_future(self.commander.work(stop))
        try:
            while self.commander.busy() and not work.done():
                self.commander.news.clear()
                if self.commander.busy():
                    await _first(work, self.commander.news.wait())
            stop.set()
            await work
        finally:
            work.cancel()


def _begin(loop: Coroutine[Any, Any, None], stop: asyncio.Event) -> "asyncio.Task[None]":
    task = asyncio.ensure_future(loop)
    task.add_done_callback(lambda ended: stop.set() if _failed(ended) else None)
    return task


async def _first(task: "asyncio.Future[None]", other: Coroutine[Any, Any, Any]) -> None:
    """Wait for one of the two; the second is given up then."""
    waiting = asyncio.ensure_future(other)
    try:
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


def _failed(task: "asyncio.Task[None]") -> bool:
    return not task.cancelled() and task.exception() is not None
