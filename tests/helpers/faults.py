"""
Break the N-th system call of a child: what a crash, a full disk or a dying one would do at that moment.

Needs strace (`tests.helpers.needs.needs("strace")`). A kill comes before the call takes effect, so the next call
stands for "killed after it". The page cache stays: the order of the calls says what a power cut would leave.
"""

import re
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

CALLS: Final = "write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,ftruncate"
"""The calls that change what is on the disk."""

FAULTS: Final = {"kill": "signal=SIGKILL", "ENOSPC": "error=ENOSPC", "EIO": "error=EIO"}


Done: TypeAlias = subprocess.CompletedProcess[str]


class Point(NamedTuple):
    """The *n*-th use of one system call."""

    call: str
    n: int


def trace(command: Sequence[str], *, follow: bool = True) -> list[Point]:
    """
    The changing calls of *command*, which must succeed, in their order.

    Args:
        command: What to run.
        follow: Whether those of its children count too.
    """
    fast = ["-f", "--seccomp-bpf"] if follow else []
    log = _strace(command, *fast, "-e", f"trace={CALLS}", check=True)[1]
    return points_of(log)


def points_of(log: str) -> list[Point]:
    """The changing calls in what strace wrote."""
    seen: Counter[str] = Counter()
    points = []
    for call in re.findall(r"^(?:\d+ +)?(\w+)\(", log, re.MULTILINE):
        seen[call] += 1
        points.append(Point(call, seen[call]))
    return points


def inject(point: Point, fault: str) -> list[str]:
    """Options of strace that break a call."""
    return ["-e", f"trace={point.call}", "-e", f"inject={point.call}:{FAULTS[fault]}:when={point.n}"]


def run_broken(command: Sequence[str], point: Point, fault: str, *, follow: bool = True) -> Done:
    """Run *command* with *fault* at *point*, and make sure that it was hit."""
    # Four times as fast, but strace then forgets to send injected signals.
    fast = ["-f"] if fault == "kill" else ["-f", "--seccomp-bpf"]
    done, log = _strace(command, *(fast if follow else []), *inject(point, fault))
    if "(INJECTED)" not in log and done.returncode != -signal.SIGKILL:
        raise AssertionError(f"{point} was never reached")
    return done


def _strace(command: Sequence[str], *options: str, check: bool = False) -> tuple[Done, str]:
    with tempfile.NamedTemporaryFile("r", suffix=".strace") as log:
        arguments = ["strace", "-qq", "-o", log.name, *options, "--", *command]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=check)
        return done, log.read()
