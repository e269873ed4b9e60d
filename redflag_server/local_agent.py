"""The agent of this machine as a child process of `redflag up`: started, listened to, started again, ended."""

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from redflag_core.errors import RedFlagError
from redflag_core.ports import Clock
from redflag_core.system import SystemClock

logger = logging.getLogger(__name__)

STOP_SECONDS: Final = 8
"""How long the agent may take to end. It is only looking: nothing that it does must be finished."""

RESTART_SECONDS: Final = (1, 2, 5, 15, 60)
HEALTHY_SECONDS: Final = 60
"""An agent that ran for longer was well: when it ends, the pauses begin anew."""

MAX_LINE: Final = 1024 * 1024
"""Bytes. The longest event tells a scan with its 100 warnings of 1,000 characters."""


@attrs.define
class LocalAgent:
    """
    A child process that runs the agent.

    Args:
        data: The agent's data directory.
        servers: Where the server is now; it may have moved to another port since the agent registered.
        on_event: Called with each progress event, with ``{"event": "stopped", ...}`` when it ended by itself, and
            with ``{"event": "error", "detail": ...}`` when it could not be started.
        clock: Monotonic time, to tell how long it ran.
        sleep: How to wait, in seconds.
        command: The agent's program and its first arguments.
    """

    data: Path
    servers: Sequence[str]
    on_event: Callable[[dict[str, Any]], None]
    clock: Clock = attrs.field(factory=SystemClock)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    command: Sequence[str] = attrs.field(factory=lambda: (sys.executable, "-m", "redflag_agent"))
    _process: asyncio.subprocess.Process | None = attrs.field(default=None, init=False)

    async def keep_running(self, registration_token: Callable[[], Awaitable[str | None]]) -> None:
        """
        Run the agent until cancelled; start it again when it ends, ever more slowly.

        Args:
            registration_token: Awaited before each start; gives the token to register with, or None when the
                agent is registered already.
        """
        failures = 0
        while True:
            started = self.clock.monotonic()
            try:
                code = await self._run_once(await registration_token())
            except Exception as error:  # a start that fails in any way must not be the last one
                logger.debug("the agent could not be run", exc_info=error)
                self.on_event({"event": "error", "detail": f"cannot be started, trying again: {_reason(error)}"})
            else:
                if self.clock.monotonic() - started > HEALTHY_SECONDS:
                    failures = 0
                self.on_event({"event": "stopped", "code": code, "again_in_seconds": _pause(failures)})
            await self.sleep(_pause(failures))
            failures += 1

    async def _run_once(self, token: str | None) -> int:
        arguments = ["run", "--data", str(self.data), "--progress-json", "--token-stdin", "--log-level", "warning"]
        arguments += [word for url in self.servers for word in ("--server", url)]
        process = await asyncio.create_subprocess_exec(
            *self.command,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_LINE,
            start_new_session=True,  # Ctrl-C is for us: we end it in order
        )
        self._process = process
        try:
            assert process.stdin is not None  # noqa: S101  (PIPE)
            assert process.stdout is not None  # noqa: S101  (PIPE)
            process.stdin.write((token or "").encode())
            process.stdin.close()
            # When this process dies in any way the other pipe breaks, and the agent ends too.
            async for line in _lines(process.stdout):
                self._hear(line)
            return await process.wait()
        except (BrokenPipeError, ConnectionResetError):
            return await process.wait()
        finally:
            await asyncio.shield(self.stop())

    async def stop(self) -> None:
        """End the agent: ask, then insist."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _hear(self, line: bytes) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            logger.warning("the agent wrote a line that is no event")
            return
        if isinstance(event, dict):
            self.on_event(event)


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The lines of *stream*. Of one longer than its limit the end may come, which is no JSON and so no event."""
    while True:
        try:
            line = await stream.readline()
        except ValueError:
            logger.warning("the agent wrote a line of more than %d bytes", MAX_LINE)
            continue
        if not line:
            return
        yield line


def _pause(failures: int) -> int:
    return RESTART_SECONDS[min(failures, len(RESTART_SECONDS) - 1)]


def _reason(error: Exception) -> str:
    """A sentence only if it was written for people."""
    return error.message if isinstance(error, RedFlagError) else type(error).__name__
