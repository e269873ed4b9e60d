"""What psutil does not say of a Linux machine, from files only: the processor's name, a guest, a memory limit."""

import re
from pathlib import Path
from typing import Final

from redflag_core.scanning import clean_text
from redflag_core.scanning.facts import MAX_PATH

MAX_CPUINFO: Final = 64 * 1024
"""Most that is read of cpuinfo: the first processor has about 2 KiB, and the others are like it."""

MAX_LIMIT: Final = 64
"""Most that is read of a limit: a number, or "max"."""

_MODEL: Final = re.compile(r"^(?:model name|Model|cpu model|cpu)\s*:[ \t]*(\S.*)$", re.MULTILINE)
"""As x86, boards with a device tree, MIPS and POWER call it; Arm servers do not tell."""

_FLAGS: Final = re.compile(r"^flags\s*:(.*)$", re.MULTILINE)

_LIMITS: Final = ("memory.max", "memory/memory.limit_in_bytes")
"""Of the root of this process' control groups, versions 2 and 1. On a host the first does not exist."""


def cpu_model(cpuinfo: str) -> str | None:
    """Name of the first processor in the text of ``/proc/cpuinfo``."""
    found = _MODEL.search(cpuinfo)
    return None if found is None else clean_text(found[1].strip(), max_len=MAX_PATH)


def is_guest(cpuinfo: str) -> bool | None:
    """Whether the processor says that a hypervisor runs it; None where it has no such flag (all but x86)."""
    found = _FLAGS.search(cpuinfo)
    return None if found is None else "hypervisor" in found[1].split()


def read_cpuinfo(proc: Path) -> str:
    """The beginning of ``/proc/cpuinfo``; empty when it cannot be read."""
    return _read(proc / "cpuinfo", MAX_CPUINFO)


def memory_limit(cgroup: Path, total: int) -> int | None:
    """
    Bytes of memory that this container may use.

    Args:
        cgroup: Where control groups are mounted.
        total: Bytes that the kernel has: a limit above it is none.
    """
    for name in _LIMITS:
        text = _read(cgroup / name, MAX_LIMIT).strip()
        if text.isascii() and text.isdigit() and int(text) < total:
            return int(text)
    return None


def _read(path: Path, most: int) -> str:
    try:
        with path.open("rb") as file:
            return file.read(most).decode(errors="replace")
    except OSError:
        return ""
