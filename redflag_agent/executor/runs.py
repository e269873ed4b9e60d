"""
Run directories: what was started, whether it still runs, and how it ended. They outlive the agent.

The agent locks the lock file, spawns the runner with it as standard input and lets go of it; the runner holds it
until it ends, however it ends. So a free lock means that nobody carries out this run, and that nobody will.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import attrs

from redflag_agent.executor import run_once
from redflag_agent.executor.output import TAIL_BYTES, whole_lines
from redflag_agent.installers.model import Step
from redflag_agent.process import ENVIRONMENT
from redflag_core.keyfiles import sync_directory

STATUS_BYTES: Final = 4096
"""Bytes at the end of a status file that are looked at: dozens of its lines."""

Launcher: TypeAlias = Callable[[str], Sequence[str]]
"""What comes before the runner's command line, for a run with this name."""


@attrs.frozen
class Ended:
    """
    A run that was carried out to its end.

    Attributes:
        status: Exit status of the first step that failed, negative for a signal; 0 when none did.
        step: Name of that step, None when none did.
    """

    status: int
    step: str | None


@attrs.frozen
class Output:
    """
    What a run printed.

    Attributes:
        tail: The last bytes.
        size: Length of all of it.
    """

    tail: bytes
    size: int


@attrs.frozen
class Run:
    """
    One run.

    Args:
        path: Its directory.
        launcher: See `Launcher`.
    """

    path: Path
    launcher: Launcher

    @contextmanager
    def prepared(self, steps: Sequence[Step]) -> Iterator[int]:
        """
        Write what is to be done, and hold the lock for the block: call `spawn` in it.

        Args:
            steps: What is to be done, in this order.

        Raises:
            OSError: The system refuses to write.
        """
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(mode=0o700)
        spec = {"v": 1, "steps": [{**attrs.asdict(step), "env": dict(step.env)} for step in steps]}
        _write(self.path / run_once.SPEC, json.dumps(spec).encode())
        lock = os.open(self.path / run_once.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _try_lock(lock)
            sync_directory(self.path)
            sync_directory(self.path.parent)
            yield lock
        finally:
            os.close(lock)

    def spawn(self, lock: int) -> int:
        """
        Start the runner, in a session of its own. Nothing here ends it.

        Args:
            lock: The lock that `prepared` holds; the runner gets it.

        Returns:
            Its process id, to be reaped by `reap`.

        Raises:
            OSError: It cannot be started: then it is not.
        """
        runner = (sys.executable, "-I", run_once.__file__, str(self.path.resolve()))
        argv = (*self.launcher(self.path.name), *runner)
        output = str(self.path / run_once.OUTPUT)
        files = [
            (os.POSIX_SPAWN_DUP2, lock, 0),
            (os.POSIX_SPAWN_OPEN, 1, output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        return os.posix_spawn(argv[0], argv, ENVIRONMENT, file_actions=files, setsid=True)

    def is_over(self) -> bool:
        """
        Whether nobody carries out this run any more, and nobody will.

        A step may outlive a runner that was killed: then the run is not over.
        """
        try:
            lock = os.open(self.path / run_once.LOCK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            return _try_lock(lock) and not self._step_lives()
        finally:
            os.close(lock)

    def was_begun(self) -> bool:
        """Whether a runner came as far as its first step. When not, nothing was changed."""
        return (self.path / run_once.BEGUN).exists()

    def ended(self) -> Ended | None:
        """How it ended; None when nobody recorded that."""
        value = _read_json(self.path / run_once.EXIT)
        try:
            failed = next((step for step in value["steps"] if step["status"] != 0), None)
            return Ended(0, None) if failed is None else Ended(int(failed["status"]), str(failed["name"]))
        except (KeyError, TypeError, ValueError):
            return None

    def steps(self) -> tuple[Step, ...]:
        """What it was to do; nothing when that cannot be read."""
        spec = _read_json(self.path / run_once.SPEC)
        try:
            return tuple(Step(**{**step, "argv": tuple(step["argv"])}) for step in spec["steps"])
        except (KeyError, TypeError):
            return ()

    def doing(self) -> str:
        """Name of the step that runs, or ran last."""
        spec, current = _read_json(self.path / run_once.SPEC), _read_json(self.path / run_once.CURRENT)
        try:
            return str(spec["steps"][current["index"]]["name"])
        except (IndexError, KeyError, TypeError):
            return "start"

    def output(self) -> Output:
        """What it has printed until now."""
        return _tail(self.path / run_once.OUTPUT, TAIL_BYTES)

    def status(self) -> str:
        """The last whole lines that the running step wrote to its status file."""
        status = _tail(self.path / run_once.STATUS, STATUS_BYTES)
        return whole_lines(status.tail, complete=status.size == len(status.tail))

    def _step_lives(self) -> bool:
        current = _read_json(self.path / run_once.CURRENT)
        if current is None:
            return False
        try:
            pid, boot, started = current["process"]
            return boot != "" and (boot, started) == run_once.process_identity(pid)
        except (KeyError, TypeError, ValueError):
            return False


@attrs.frozen
class Runs:
    """
    All runs of this machine.

    Args:
        path: Where their directories are.
        launcher: See `Launcher`.
    """

    path: Path
    launcher: Launcher

    def run(self, cmd_id: str) -> Run:
        """The run of a command."""
        return Run(self.path / cmd_id, self.launcher)

    def repair(self, cmd_id: str, number: int) -> Run:
        """A repair after the run of a command was interrupted."""
        return Run(self.path / f"{cmd_id}.repair{number}", self.launcher)

    def commands(self) -> Mapping[str, int]:
        """Commands that have directories here, and when each directory was last changed, unix seconds."""
        try:
            found = [(path.name.partition(".")[0], int(path.stat().st_mtime)) for path in self.path.iterdir()]
        except OSError:
            return {}
        return dict(sorted(found))

    def remove(self, cmd_id: str) -> None:
        """Remove the directories of a command, as far as the system lets us, unless one of them is in use."""
        paths = list(self.path.glob(f"{cmd_id}*"))
        if all(Run(path, self.launcher).is_over() for path in paths):
            for path in paths:
                shutil.rmtree(path, ignore_errors=True)


def systemd_scope(name: str) -> Sequence[str]:
    """Run as a unit of its own: stopping the agent's service does not end what is in it (systemd-run(1))."""
    return ("/usr/bin/systemd-run", "--scope", "--quiet", "--collect", f"--unit=redflag-run-{name}")


def choose_launcher() -> Launcher:
    """A scope of systemd's where it runs this machine and this is root; elsewhere the new session is enough."""
    if Path("/run/systemd/system").is_dir() and os.geteuid() == 0 and Path("/usr/bin/systemd-run").exists():
        return systemd_scope
    return lambda _name: ()


def reap(pid: int) -> bool:
    """Take notice of the end of a runner that this process started; whether it has ended."""
    try:
        return os.waitpid(pid, os.WNOHANG) != (0, 0)
    except ChildProcessError:
        return True


def _write(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(handle)


def _try_lock(handle: int) -> bool:
    import fcntl  # noqa: PLC0415  (not on Windows)

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_json(path: Path) -> Any:
    """What a runner wrote whole, None when it is not there."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _tail(path: Path, size: int) -> Output:
    try:
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - size))
            return Output(file.read(size), length)
    except OSError:
        return Output(b"", 0)
