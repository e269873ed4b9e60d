"""
The loop that asks the server what there is to do.

A check-in is held open by the server until there is a command or the time is over. It is plain, so answered at
once, after a start, after a failure, while the circuit is not closed, and for an agent that gets no commands: then
what counts is an answer, and nothing else has to wait for it. One that can be held follows soon.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import attrs

from redflag_agent.check_in import CheckIns, pace
from redflag_agent.contact import Contact
from redflag_agent.executor.commander import Commander
from redflag_agent.failures import Failures
from redflag_agent.hold import Hold
from redflag_agent.orders import hand_over
from redflag_agent.pace import pause_after
from redflag_agent.progress import line
from redflag_agent.transport import PollCutError
from redflag_agent.waiting import Sleep, pause
from redflag_core.enrolment import Access
from redflag_core.messages import CheckInAnswer
from redflag_core.ports import Clock, Entropy
from redflag_core.resilience import full_jitter, random_fraction

T = TypeVar("T")
log = logging.getLogger(__name__)

CUT_PAUSE: Final = 15.0
"""Seconds that the check-ins after a cut are spread over: a proxy that starts again cuts a whole fleet at once."""

SHORTEST_PAUSE: Final = 1.0
"""Seconds. However the draw falls, one check-in never follows another at once."""

FOLLOW_UP: Final = 2.0
"""Seconds that the first check-in which can be held is spread over, after the plain one that showed that."""

HEARTBEAT_PAUSE: Final = 3.0
"""Seconds between check-ins at most while somebody watches this agent."""


@attrs.define
class Polling:
    """
    Asks, and hands over what comes.

    Args:
        check_ins: How to ask.
        commander: Who carries commands out.
        contact: How this agent stands.
        failures: Where failures are told.
        clock: Monotonic time.
        entropy: Draws jitter.
        sleep: How to wait.
    """

    check_ins: CheckIns
    commander: Commander
    contact: Contact
    failures: Failures
    clock: Clock
    entropy: Entropy
    sleep: Sleep
    _hold: Hold = attrs.field(factory=Hold, init=False)
    _steady: bool = attrs.field(default=False, init=False)
    """Whether the last check-in was answered."""
    _failed: int = attrs.field(default=0, init=False)

    async def loop(self, stop: asyncio.Event) -> None:
        """Ask until *stop* is set. A check-in that is held then is given up at once."""
        while not stop.is_set():
            await pause(await self.turn(stop), stop, sleep=self.sleep)

    async def turn(self, stop: asyncio.Event) -> float:
        """One check-in, whatever comes of it; seconds until the next."""
        hold = self._hold.seconds if self._may_hold() else 0
        try:
            answer = await self._check_in(stop, hold)
        except PollCutError as cut:
            return self._after_cut(cut)
        except Exception as error:  # a round that fails in any way must not end the agent
            return self._after_failure(error)
        if answer is None:
            return 0.0
        self._steady, self._failed = True, 0
        self._hold = self._hold.after_answer(self.clock.monotonic())
        await hand_over(answer.commands, self.commander, self.failures)
        return self._pause_after(answer, held=hold > 0)

    async def _check_in(self, stop: asyncio.Event, hold: int) -> CheckInAnswer | None:
        asked = self.check_ins.check_in(hold=hold)
        return await _unless(stop, asked) if hold else await asked

    def _may_hold(self) -> bool:
        settled = self._steady and self.check_ins.tokens.client.may_hold
        return settled and self._hold.seconds > 0 and self.contact.allows(Access.COMMANDS)

    def _pause_after(self, answer: CheckInAnswer, *, held: bool) -> float:
        if not held and self._may_hold():
            return SHORTEST_PAUSE + full_jitter(FOLLOW_UP, random_fraction(self.entropy))
        until = self.commander.heartbeat_until()
        watched = until is not None and self.clock.monotonic() < until
        return min(pace(answer), HEARTBEAT_PAUSE) if watched else pace(answer)

    def _after_cut(self, cut: PollCutError) -> float:
        self._steady = False
        self._hold = self._hold.after_cut(self.clock.monotonic())
        log.info(line("poll_cut", detail=cut.message, hold=self._hold.seconds))
        return max(SHORTEST_PAUSE, full_jitter(CUT_PAUSE, random_fraction(self.entropy)))

    def _after_failure(self, error: Exception) -> float:
        self._steady = False
        self._failed += 1
        self.contact.lost()
        wait = pause_after(error, failures=self._failed, fraction=random_fraction(self.entropy))
        self.failures.note("server", error, wait=wait)
        return wait


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What *work* gives; None when *stop* comes first, and then it is cancelled."""
    doing, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([doing, stopped], return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        stopped.cancel()
        doing.cancel()
        await asyncio.wait([doing])
