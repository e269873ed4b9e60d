"""
Asking file systems how full they are, without ever hanging with them.

A file system of a server that is gone does not fail: it makes whoever asks wait, for hours. So each is asked in a
thread of its own, which is left behind when there is no answer in time. It is not asked again while that thread
still waits, so that they do not pile up; the threads end with the process.
"""

import asyncio
import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeAlias

import attrs

from redflag_agent.scanners.mounts import Mount

ANSWER_TIMEOUT: Final = 5.0
"""Seconds to wait for a file system. A disk that has to start turning takes about three."""


@attrs.frozen
class Measure:
    """
    The numbers of a file system.

    Attributes:
        size: Bytes.
        used: Bytes in use.
        free: Bytes that users can still take.
        inodes: Number of inodes, None where the type has no fixed number.
        inodes_used: Inodes in use, None likewise.
    """

    size: int
    used: int
    free: int
    inodes: int | None = None
    inodes_used: int | None = None


Ask: TypeAlias = Callable[[str], Measure | None]
Answer: TypeAlias = "asyncio.Future[Measure | Exception | None]"


def mount_table() -> list[Mount]:
    """The mounts that this process sees, in their order."""
    import psutil  # noqa: PLC0415  (most commands need none of it)

    return [
        Mount(part.device, part.mountpoint, part.fstype, read_only="ro" in part.opts.split(","))
        for part in psutil.disk_partitions(all=True)
    ]


def measure(path: str) -> Measure | None:
    """
    Ask one file system. May take for ever.

    Args:
        path: Where it is mounted.

    Returns:
        None when it is a single file that is mounted, or something without a size.

    Raises:
        OSError: It cannot be asked.
    """
    import psutil  # noqa: PLC0415  (most commands need none of it)

    if not stat.S_ISDIR(os.stat(path).st_mode):  # noqa: PTH116  (a path of any bytes, as the kernel gave it)
        return None
    usage = psutil.disk_usage(path)
    return Measure(usage.total, usage.used, usage.free, *_inodes(path)) if usage.total else None


def _inodes(path: str) -> tuple[int, int] | tuple[None, None]:
    if not hasattr(os, "statvfs"):
        return None, None
    values = os.statvfs(path)
    return (values.f_files, values.f_files - values.f_ffree) if values.f_files else (None, None)


@attrs.define
class Asker:
    """
    Asks, and gives up in time. One for the life of a scanner.

    Args:
        ask: Blocking: `measure`.
        timeout: Seconds to wait for each answer.
    """

    ask: Ask = measure
    timeout: float = ANSWER_TIMEOUT
    _waiting: dict[str, threading.Thread] = attrs.field(factory=dict, init=False)

    async def __call__(self, path: str) -> Measure | None:
        """
        The numbers of the file system at *path*; see `measure`.

        Raises:
            TimeoutError: It does not answer, now or since an earlier call.
            OSError: It cannot be asked.
        """
        before = self._waiting.pop(path, None)
        if before is not None and before.is_alive():
            self._waiting[path] = before
            raise TimeoutError
        answer: Answer = asyncio.get_running_loop().create_future()
        thread = threading.Thread(target=_answer, args=(self.ask, path, answer), name="redflag-disk", daemon=True)
        thread.start()
        done, _ = await asyncio.wait({answer}, timeout=self.timeout)
        if not done:
            self._waiting[path] = thread
            raise TimeoutError
        outcome = answer.result()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def _answer(ask: Ask, path: str, answer: Answer) -> None:
    """Runs in the thread. Nobody may be there any more to hear the answer, so an error is a result like others."""
    try:
        outcome: Measure | Exception | None = ask(path)
    except Exception as error:
        outcome = error
    with suppress(RuntimeError):  # the loop is closed
        answer.get_loop().call_soon_threadsafe(answer.set_result, outcome)
