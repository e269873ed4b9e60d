"""The loop that delivers: woken by news, patient after a failure."""

import asyncio

import attrs

from redflag_agent.contact import Contact
from redflag_agent.delivery import Delivery
from redflag_agent.executor.commander import Commander
from redflag_agent.failures import Failures
from redflag_agent.pace import pause_after
from redflag_agent.waiting import Sleep, pause
from redflag_core.ports import Entropy
from redflag_core.resilience import random_fraction


@attrs.define
class Sending:
    """
    Delivers when there is something to deliver.

    Args:
        delivery: What is delivered, and how.
        commander: Has news.
        contact: Has news too.
        failures: Where failures are told.
        entropy: Draws jitter.
        sleep: How to wait.
    """

    delivery: Delivery
    commander: Commander
    contact: Contact
    failures: Failures
    entropy: Entropy
    sleep: Sleep
    _failed: int = attrs.field(default=0, init=False)

    async def loop(self, stop: asyncio.Event) -> None:
        """Deliver until *stop* is set."""
        while not stop.is_set():
            self.contact.news.clear()
            self.commander.news.clear()
            wait, succeeded = await self.turn()
            # News do not cut the pause after a failure short: that would undo the spreading.
            news = (self.contact.news, self.commander.news) if succeeded else ()
            await pause(wait, stop, *news, sleep=self.sleep)

    async def turn(self) -> tuple[float, bool]:
        """Deliver once, whatever comes of it; seconds to wait at most, and whether it succeeded."""
        try:
            wait = await self.delivery.send()
        except Exception as error:  # a failure of any kind must not end the agent
            self._failed += 1
            wait = pause_after(error, failures=self._failed, fraction=random_fraction(self.entropy))
            self.failures.note("server", error, wait=wait)
            return wait, False
        self._failed = 0
        return wait, True
