"""
The one place that starts children.

For *queries*: programs that read and print. A query may be ended by the clock. A package manager that changes the
machine must never be: killed in the middle it leaves a half-installed system behind. Such a run does not belong
here; it writes to files, in a session of its own, and is waited for.

A child never goes through a shell, never inherits the environment, the terminal or the working directory of the
agent, and speaks English: what a parser reads must not depend on where somebody lives.
"""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, cast

import attrs

from redflag_core.errors import RedFlagError

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for, whatever the agent was started with."""

ENVIRONMENT: Final = {
    "DEBIAN_FRONTEND": "noninteractive",
    "LC_ALL": "C.UTF-8",  # wins over LANG and every LC_*; LANGUAGE, which would win over it, is not there
    "PATH": DEFAULT_PATH,
}
"""All that a child sees unless its caller adds to it."""

MAX_OUTPUT: Final = 16 * 1024 * 1024
"""Bytes kept of each stream: `apt-cache policy` of 20,000 packages prints 5 MiB."""

TERMINATION_GRACE: Final = 2.0
"""Seconds between asking a process group to end and ending it: enough to remove locks and temporary files."""

KILL_GRACE: Final = 5.0
"""Seconds to wait for a killed child: only one that hangs in the kernel takes longer, and nothing ends that."""

PIPE_GRACE: Final = 1.0
"""Seconds to wait for the rest of the output of a child that ended while a grandchild keeps its pipes open."""


class ProcessError(RedFlagError):
    """A child could not be started, or did not end in time."""

    code = "process_failed"


class ProcessTimeoutError(ProcessError):
    """A child was still running when its time was over, and was ended together with its process group."""

    code = "process_timeout"


@attrs.frozen
class Completed:
    """
    A child that ended by itself.

    Attributes:
        argv: What was started.
        returncode: Exit status, or the negative number of the signal that ended it.
        stdout: At most the allowed number of bytes.
        stderr: At most the allowed number of bytes.
        truncated: Whether one of the streams was longer: then a parser must not go on.
    """

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes
    truncated: bool


class _Output(asyncio.SubprocessProtocol):
    """Collects what a child prints, up to a bound for each stream, and reads on so that the child can end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, max_output: int) -> None:
        self.exited: asyncio.Future[None] = loop.create_future()
        self.drained: asyncio.Future[None] = loop.create_future()
        self.truncated = False
        self.streams = {1: bytearray(), 2: bytearray()}
        self._max_output = max_output

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        stream = self.streams[fd]
        room = self._max_output - len(stream)
        stream += data[:room]
        self.truncated = self.truncated or len(data) > room

    def process_exited(self) -> None:
        self.exited.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        self.drained.set_result(None)


async def run(
    argv: Sequence[str],
    *,
    timeout: float,  # noqa: ASYNC109  (it ends the child, not only the wait for it)
    env: Mapping[str, str] | None = None,
    max_output: int = MAX_OUTPUT,
    stdin: int = asyncio.subprocess.DEVNULL,
) -> Completed:
    """
    Run a query to its end.

    Args:
        argv: Program and arguments. Nothing in them is interpreted.
        timeout: Seconds until the child's process group is asked to end; `TERMINATION_GRACE` later it is killed.
            The same happens when the caller is cancelled.
        env: Added to `ENVIRONMENT`, or replacing parts of it.
        max_output: Bytes kept of each stream. What is beyond is read and thrown away.
        stdin: File descriptor of the input.

    Returns:
        The ended child, whatever its exit status.

    Raises:
        ProcessTimeoutError: It did not end in time.
        ProcessError: It could not be started.
    """
    transport, output = await _start(argv, {**ENVIRONMENT, **(env or {})}, max_output, stdin)
    try:
        await asyncio.wait([output.exited], timeout=timeout)
        if not output.exited.done():
            raise ProcessTimeoutError(f"{argv[0]} had no result after {timeout:g} seconds and was ended")
        await asyncio.wait([output.drained], timeout=PIPE_GRACE)
    finally:
        await _end_group(transport.get_pid(), output.exited)
        transport.close()
    return Completed(
        argv=tuple(argv),
        returncode=cast("int", transport.get_returncode()),  # known, because it has exited
        stdout=bytes(output.streams[1]),
        stderr=bytes(output.streams[2]),
        truncated=output.truncated,
    )


async def _start(
    argv: Sequence[str], env: Mapping[str, str], max_output: int, stdin: int
) -> tuple[asyncio.SubprocessTransport, _Output]:
    loop = asyncio.get_running_loop()
    try:
        return await loop.subprocess_exec(
            lambda: _Output(loop, max_output), *argv, stdin=stdin, env=env, cwd="/", start_new_session=True
        )
    except OSError as error:
        raise ProcessError(f"{argv[0]} cannot be started: {error.strerror}") from error
    except ValueError as error:
        raise ProcessError(
            f"{argv[0]!r} cannot be started: an argument holds what no argument may hold"
        ) from error


async def _end_group(pid: int, exited: "asyncio.Future[None]") -> None:
    """End a child that is still running, and all that it started and that did not leave its group."""
    if exited.done():
        return
    try:
        _signal_group(pid, signal.SIGTERM)
        await asyncio.wait([exited], timeout=TERMINATION_GRACE)
    finally:
        _signal_group(pid, signal.SIGKILL)
    await asyncio.wait([exited], timeout=KILL_GRACE)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
