"""Real processes of RedFlag under test: started, listened to, killed."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

REDFLAG = str(Path(sys.executable).with_name("redflag"))
DEADLINE = 60.0
"""Seconds that anything awaited here may take on a loaded machine before the test fails."""


def free_port() -> int:
    """A loopback port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Child:
    """
    A process whose lines can be awaited. Its whole group is ended with the test.

    Args:
        arguments: Command line.
        stdin: Text it is given.
        environment: Variables on top of this process' own.
    """

    def __init__(self, *arguments: str, stdin: str = "", environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "300", **(environment or {})},
        )
        assert self.process.stdin is not None
        self.process.stdin.write(stdin)
        self.process.stdin.close()
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.lines, True), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr, self.errors, False), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any, lines: list[str], queued: bool) -> None:
        for line in stream:
            lines.append(line.rstrip("\n"))
            if queued:
                self._queue.put(line.rstrip("\n"))
        if queued:
            self._queue.put(None)

    def until(self, text: str, *, timeout: float = DEADLINE) -> str:
        """The next line of standard output that holds *text*."""
        while True:
            try:
                line = self._queue.get(timeout=timeout)
            except queue.Empty:
                raise AssertionError(f"no line with {text!r} in time\n{self.transcript()}") from None
            if line is None:
                raise AssertionError(f"ended without a line with {text!r}\n{self.transcript()}")
            if text in line:
                return line

    def event(self, name: str, **facts: Any) -> dict[str, Any]:
        """The next progress event with this name and these facts."""
        while True:
            found: dict[str, Any] = json.loads(self.until(f'"event": "{name}"'))
            if all(found.get(key) == value for key, value in facts.items()):
                return found

    def kill(self) -> None:
        """Kill -9, of the process itself only."""
        self.process.kill()
        self.process.wait(DEADLINE)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end, and wait for its exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(DEADLINE)

    def close(self) -> None:
        """End it and everything that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(DEADLINE)
        for reader in self._readers:
            reader.join(DEADLINE)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def transcript(self) -> str:
        """What it said, for a failing test."""
        return "\n".join(["stdout:", *self.lines, "stderr:", *self.errors])


@contextmanager
def child(*arguments: str, **options: Any) -> Iterator[Child]:
    """A process that ends with the block, whatever happens."""
    started = Child(*arguments, **options)
    try:
        yield started
    finally:
        started.close()


def redflag(*arguments: str, stdin: str = "", check: bool = True) -> str:
    """Run a ``redflag`` command to its end; its standard output."""
    command = [REDFLAG, *arguments]
    ended = subprocess.run(command, check=False, input=stdin, capture_output=True, text=True, timeout=DEADLINE)
    assert not check or ended.returncode == 0, ended.stderr
    return ended.stdout


@contextmanager
def server(data: Path, port: int, *arguments: str) -> Iterator[Child]:
    """``redflag server run`` that answers when the block begins."""
    with child(REDFLAG, "server", "run", "--data", str(data), "--port", str(port), *arguments) as process:
        process.until("RedFlag serves")
        yield process
