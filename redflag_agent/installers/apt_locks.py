"""
Whether another process holds a lock of apt or dpkg.

The kernel is asked who would be in the way (``F_GETLK``); the lock itself is never taken. Taking it, even for a
moment, would make another package manager fail that comes at that moment and does not wait.
"""

import fcntl
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from redflag_agent.scanners.apt_tools import AptTools

_FLOCK: Final = struct.Struct("hhqqi0q")
"""``struct flock`` of fcntl(2): type, whence, start, length, process."""


def locks_of(tools: AptTools) -> Sequence[Path]:
    """The locks that a package manager holds while it changes the machine or fetches packages."""
    archives = [] if tools.archives is None else [tools.archives / "lock"]
    return [tools.admindir / "lock-frontend", tools.admindir / "lock", *archives]


def is_held(lock: Path) -> bool:
    """
    Whether another process holds a lock. One that may not be looked at counts as free.

    Args:
        lock: Its file; it need not exist.
    """
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        with lock.open("rb") as file:
            answer = fcntl.fcntl(file, fcntl.F_GETLK, question)
    except OSError:
        # Only root may look, and only root can change packages: apt itself waits for the lock in any case.
        return False
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
