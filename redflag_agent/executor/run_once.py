"""
The one-shot runner: carries out the steps of one run directory, in a process that outlives the agent.

Rules of this file. Only the standard library, and nothing imported late: what it changes may be the very files
that it would import. It never times out and never ends a step. It writes to files, never to a pipe, so nobody has
to listen. The lock comes in as standard input, locked by the agent before this process was there: there is no
moment at which a run was started and its lock is free.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

SPEC, LOCK, BEGUN, OUTPUT, STATUS, CURRENT, EXIT = (
    "spec.json",
    "lock",
    "begun",
    "output",
    "status",
    "current.json",
    "exit.json",
)
"""
Files of a run directory: what to do, the lock, that it was begun, what was printed, what the running step says of
how far it is, which process that is, and how each step ended.
"""

STATUS_FD: Final = 3
"""See `redflag_agent.installers.model.STATUS_FD`."""

NOT_STARTED: Final = 127
"""Status of a step whose program could not be started, as of a shell."""

WRITE_ATTEMPTS: Final = 60
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0
"""A full disk is waited out for five minutes, then the end stays unrecorded: the agent looks what became of it."""

Sleep = Callable[[float], None]


def main(directory: Path, *, sleep: Sleep = time.sleep) -> int:
    """
    Carry out the steps in *directory*, once.

    Args:
        directory: The run directory, made by the agent.
        sleep: How to wait for room on the disk.

    Returns:
        The exit status of this process: 0 when every step that was due was run, whatever came of them.
    """
    _survive()
    if not _hold(directory / LOCK) or not _begin(directory / BEGUN):
        return 1
    os.chdir("/")
    os.umask(0o022)  # what maintainer scripts expect, whatever the agent was started with
    steps = json.loads((directory / SPEC).read_text(encoding="utf-8"))["steps"]
    ends = {"v": 1, "steps": _run_all(directory, steps)}
    return 0 if _insist(lambda: _write_whole(directory / EXIT, ends), sleep) else 1


def _hold(path: Path) -> bool:
    """Keep the lock that came in as standard input from the steps; False when this process was not given it."""
    import fcntl  # noqa: PLC0415  (not on Windows; no step has run yet)

    given, expected = os.fstat(0), path.stat()
    if (given.st_dev, given.st_ino) != (expected.st_dev, expected.st_ino):
        return False
    lock = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, STATUS_FD + 1)
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(nothing, 0)
    os.close(nothing)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _begin(path: Path) -> bool:
    """Whether this is the first process that carries out this run. There is no second one, whatever happens."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    os.close(handle)
    _sync_directory(path.parent)
    return True


def _survive() -> None:
    # Handlers that do nothing, not SIG_IGN: programs inherit what is ignored, and a service that a maintainer
    # script starts could not be stopped any more.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: None)


def _run_all(directory: Path, steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    ends: list[dict[str, Any]] = []
    failed = False
    for index, step in enumerate(steps):
        if failed and not step["always"]:
            continue
        status = _run(directory, index, step)
        failed = failed or status != 0
        ends.append({"name": step["name"], "status": status})
    return ends


def _run(directory: Path, index: int, step: dict[str, Any]) -> int:
    _open_status(directory / STATUS)
    try:
        child = subprocess.Popen(  # noqa: S603  (an argument list from the agent's own directory)
            step["argv"], env=step["env"], stdin=subprocess.DEVNULL, pass_fds=(STATUS_FD,)
        )
    except (OSError, ValueError) as error:
        _say(f"{step['argv'][0]} cannot be started: {error}")
        return NOT_STARTED
    running = {"v": 1, "index": index, "process": [child.pid, *process_identity(child.pid)]}
    # It runs, whether that is noted or not. Only a process of this boot reads it, so no disk has to have it.
    _try(lambda: _write_whole(directory / CURRENT, running, sync=False))
    status = child.wait()
    _try(lambda: os.fsync(1))
    return status


def process_identity(pid: int) -> tuple[str, int]:
    """
    What tells a process from every other that has or had its id: the boot, and when in it the process was started.

    Args:
        pid: Process id.

    Returns:
        Boot id and ticks since boot (proc_pid_stat(5)); ``("", 0)`` when there is no such process, or its end was
        only not taken notice of.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
    except OSError:
        return "", 0
    fields = text.rpartition(")")[2].split()
    return ("", 0) if fields[0] in "ZX" else (boot.strip(), int(fields[19]))


def _open_status(path: Path) -> None:
    """Give the next step an empty status file; on a full disk, one that leads nowhere."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, 0o600)
    except OSError:
        handle = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    if handle != STATUS_FD:
        os.dup2(handle, STATUS_FD)
        os.close(handle)


def _write_whole(path: Path, value: dict[str, Any], *, sync: bool = True) -> None:
    temporary = path.with_suffix(".new")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        if sync:
            os.fsync(handle)
    temporary.replace(path)
    if sync:
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _insist(write: Callable[[], None], sleep: Sleep) -> bool:
    """Whether *write* succeeded at last."""
    pause = FIRST_PAUSE
    for _ in range(WRITE_ATTEMPTS):
        if _try(write):
            return True
        sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
    return False


def _try(write: Callable[[], None]) -> bool:
    try:
        write()
    except OSError as error:
        _say(f"cannot record what is done here: {error}")
        return False
    return True


def _say(text: str) -> None:
    """Add a line to the output, if it can be written to."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode("utf-8", "replace"))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
