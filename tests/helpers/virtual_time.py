"""An event loop on which waiting takes no time: its clock jumps to the next timer when nothing is left to do."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TypeVar

from redflag_core.testing import START

T = TypeVar("T")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Also a `redflag_core.ports.Clock`, which shows the same time as the loop's timers keep."""

    def __init__(self) -> None:
        self._seconds = 0.0
        super().__init__(_JumpingSelector(self._jump))

    def time(self) -> float:
        """The loop's own clock."""
        return self._seconds

    def monotonic(self) -> float:
        """The same."""
        return self._seconds

    def now(self) -> datetime:
        """Wall time that passes with it."""
        return START + timedelta(seconds=self._seconds)

    def _jump(self, seconds: float) -> None:
        self._seconds += seconds


class _JumpingSelector(selectors.DefaultSelector):  # type: ignore[valid-type, misc]
    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everything waits and nothing will happen")
        self._jump(timeout)
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        return ready


def run_in_virtual_time(main: Callable[[VirtualTimeLoop], Awaitable[T]]) -> T:
    """Run ``main(clock)`` to its end on a loop of its own."""

    async def start() -> T:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        return await main(loop)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(start())
