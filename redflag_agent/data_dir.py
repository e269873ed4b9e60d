"""
The agent's data directory: who may read it, what is in it, and that one agent at a time uses it.

Layout: `agent.key` and `executor.key` (keys), `machine-id` (16 random bytes that stand in for a weak machine id),
`state.json` (registration, tokens), `trust.json` (roots and bundle), `outbox.db` (what the server has not accepted
yet), `executor.db` (journal of commands), `runs` (what was started), `agent.toml` and `limits.toml` (settings and
limits, written by people) and `agent.lock`.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from redflag_core.errors import ConfigurationError
from redflag_core.keyfiles import sync_directory


class DataDirectoryError(ConfigurationError):
    """The data directory cannot be used. The message says what to change."""

    code = "data_directory"


class InUseError(ConfigurationError):
    """Another agent process uses the data directory."""

    code = "in_use"


@attrs.frozen
class DataDirectory:
    """
    Where one agent keeps everything.

    Args:
        path: The directory.
    """

    path: Path

    @property
    def agent_key(self) -> Path:
        """Key of the network process."""
        return self.path / "agent.key"

    @property
    def executor_key(self) -> Path:
        """Key of the executor."""
        return self.path / "executor.key"

    @property
    def machine_id(self) -> Path:
        """Random replacement for a weak machine id."""
        return self.path / "machine-id"

    @property
    def state(self) -> Path:
        """Registration and tokens."""
        return self.path / "state.json"

    @property
    def trust(self) -> Path:
        """Root chain and trust bundle."""
        return self.path / "trust.json"

    @property
    def outbox(self) -> Path:
        """Reports and errors that the server has not accepted."""
        return self.path / "outbox.db"

    @property
    def journal(self) -> Path:
        """Which commands were accepted, started and ended."""
        return self.path / "executor.db"

    @property
    def runs(self) -> Path:
        """A directory for each change that was started."""
        return self.path / "runs"

    @property
    def limits(self) -> Path:
        """What the owner of this machine allows, written by people."""
        return self.path / "limits.toml"

    @property
    def settings(self) -> Path:
        """Settings, written by people."""
        return self.path / "agent.toml"

    def prepare(self) -> None:
        """
        Make the directory, readable by its owner only.

        Raises:
            DataDirectoryError: It cannot be made, belongs to somebody else, or is open to others.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not any(self.path.iterdir()):
                self.path.chmod(0o700)
            _refuse_open_to_others(self.path)
            sync_directory(self.path.parent)
        except OSError as error:
            raise DataDirectoryError(f"cannot use {self.path}: {error.strerror}") from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """
        Hold the directory for this process; the system lets go of it when the process ends, however it ends.

        Raises:
            InUseError: Another agent holds it.
            DataDirectoryError: The lock file cannot be written.
        """
        path = self._lock_file
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataDirectoryError(f"cannot write {path}: {error.strerror}") from None
        try:
            _take(handle, self.path)
            yield
        finally:
            os.close(handle)

    def is_locked(self) -> bool:
        """Whether an agent holds the directory. Looks without touching the lock (proc_locks(5))."""
        try:
            number = self._lock_file.stat().st_ino
            locks = Path("/proc/locks").read_text(encoding="ascii")
        except OSError:
            return False
        return bool(re.search(rf"FLOCK .*:{number} ", locks))

    @property
    def _lock_file(self) -> Path:
        return self.path / "agent.lock"


def default_data_directory() -> Path:
    """``/var/lib/redflag-agent`` for root, else a directory of the user's own."""
    if os.geteuid() == 0:
        return Path("/var/lib/redflag-agent")
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "redflag-agent"


def _refuse_open_to_others(path: Path) -> None:
    status = path.stat()
    if status.st_uid not in (os.geteuid(), 0):
        raise DataDirectoryError(f"{path} belongs to another user: run as that user, or chown it")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise DataDirectoryError(f"{path} can be read by others: run chmod 700 on it")


def _take(handle: int, path: Path) -> None:
    import fcntl  # noqa: PLC0415  (not on Windows)

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InUseError(f"another agent is using {path}: stop it first") from None
