"""Children of the agent: a clean start, a bounded output, and an end in any case."""

import asyncio
import errno
import fcntl
import os
import sys
from pathlib import Path

import pytest

from redflag_agent import process
from redflag_agent.process import ENVIRONMENT, ProcessError, ProcessTimeoutError, run

WAIT = 30.0
"""Seconds that nothing here takes."""

LOCK_AND_HANG = 'exec 9>"$0"; flock 9; sleep 1000 & sleep 1000'
"""Two processes that hold a lock until the last of them is gone."""


async def until_released(path: Path) -> None:
    """Wait for the lock on *path*: for the end of everything that was started with it."""
    with path.open("a") as file:
        await asyncio.wait_for(asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX), WAIT)


async def test_a_child_is_told_by_status_and_both_streams():
    """Exit status, output and complaints come back apart."""
    done = await run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=WAIT)

    assert (3, b"out\n", b"err\n", False) == (done.returncode, done.stdout, done.stderr, done.truncated)
    assert ("sh", "-c", "echo out; echo err >&2; exit 3") == done.argv


async def test_a_child_that_a_signal_ends_is_told_apart():
    """The negative signal number is the status of a child that did not end by itself."""
    done = await run(["sh", "-c", "kill -9 $$"], timeout=WAIT)

    assert -9 == done.returncode


async def test_a_child_sees_nothing_of_the_agents_environment(monkeypatch):
    """Language, secrets and proxies of the agent stay with the agent."""
    for name in ("LANGUAGE", "LC_ALL", "LANG", "LC_MESSAGES"):
        monkeypatch.setenv(name, "de_DE.UTF-8")
    monkeypatch.setenv("REDFLAG_SECRET", "s3cret")
    monkeypatch.setenv("PATH", "/nowhere:" + os.environ["PATH"])

    done = await run(["env"], timeout=WAIT)

    assert sorted(f"{name}={value}" for name, value in ENVIRONMENT.items()) == sorted(
        done.stdout.decode().splitlines()
    )


async def test_a_caller_adds_to_the_environment_and_may_replace_the_path(tmp_path):
    """The PATH that a caller gives decides which program is started."""
    tool = tmp_path / "rf-tool"
    tool.write_text('#!/bin/sh\necho "$MORE $LC_ALL"\n')
    tool.chmod(0o755)

    done = await run(["rf-tool"], timeout=WAIT, env={"MORE": "yes", "PATH": f"{tmp_path}:/bin"})

    assert b"yes C.UTF-8\n" == done.stdout


async def test_a_child_starts_in_a_session_and_directory_of_its_own():
    """A Ctrl-C in the agent's terminal does not reach a child, and no directory is kept busy."""
    code = "import os; print(os.getsid(0) == os.getpid() == os.getpgid(0), os.getcwd())"

    done = await run([sys.executable, "-c", code], timeout=WAIT)

    assert b"True /\n" == done.stdout


async def test_a_child_has_no_input():
    """A program that asks something gets an end of file and does not wait."""
    done = await run(["cat"], timeout=WAIT)

    assert (0, b"") == (done.returncode, done.stdout)


async def test_nothing_in_the_arguments_is_interpreted():
    """There is no shell: what looks like a command is an argument."""
    argument = "$(id) `id` ; id && id * ~ '\" \\ \n -n"

    done = await run(["printf", "%s", argument], timeout=WAIT)

    assert argument.encode() == done.stdout


@pytest.mark.parametrize("stream", [1, 2])
async def test_output_beyond_the_bound_is_thrown_away(stream):
    """A flood on either stream costs no memory, does not block the child, and is told."""
    done = await run(
        ["sh", "-c", f"head -c 300000 /dev/zero >&{stream}; echo end >&{stream}"], timeout=WAIT, max_output=1000
    )

    assert (0, True) == (done.returncode, done.truncated)
    assert 1000 == len(done.stdout) + len(done.stderr)


async def test_output_of_exactly_the_bound_is_whole():
    """The bound is inclusive."""
    done = await run(["head", "-c", "1000", "/dev/zero"], timeout=WAIT, max_output=1000)

    assert (1000, False) == (len(done.stdout), done.truncated)


async def test_a_timeout_ends_the_child_and_all_it_started(tmp_path):
    """No process of the group is left when the time is over."""
    with pytest.raises(ProcessTimeoutError, match=r"sh had no result after 0\.3 seconds"):
        await run(["sh", "-c", LOCK_AND_HANG, str(tmp_path / "lock")], timeout=0.3)

    await until_released(tmp_path / "lock")


async def test_a_child_that_does_not_listen_is_killed(tmp_path, monkeypatch):
    """A child that ignores the request to end is ended by force."""
    monkeypatch.setattr(process, "TERMINATION_GRACE", 0.1)

    with pytest.raises(ProcessTimeoutError):
        await run(["sh", "-c", f"trap '' TERM; {LOCK_AND_HANG}", str(tmp_path / "lock")], timeout=0.3)

    await until_released(tmp_path / "lock")


async def test_a_cancelled_caller_leaves_no_child(tmp_path):
    """Stopping the agent stops its queries."""
    task = asyncio.create_task(run(["sh", "-c", LOCK_AND_HANG, str(tmp_path / "lock")], timeout=WAIT))
    await asyncio.wait([task], timeout=0.3)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    await until_released(tmp_path / "lock")


async def test_a_grandchild_that_keeps_the_pipe_does_not_keep_the_agent(monkeypatch):
    """A daemon that a hook starts cannot make a query that has ended look as if it hung."""
    monkeypatch.setattr(process, "PIPE_GRACE", 0.1)

    done = await asyncio.wait_for(run(["sh", "-c", "sleep 5 & echo done"], timeout=4), 3)

    assert (0, b"done\n") == (done.returncode, done.stdout)


@pytest.mark.parametrize(
    "argv, reason",
    [
        (["rf-no-such-program"], os.strerror(errno.ENOENT)),
        (["/etc/passwd"], os.strerror(errno.EACCES)),
        (["echo", "x" * 200_000], os.strerror(errno.E2BIG)),
        (["echo", "a\0b"], "an argument holds what no argument may hold"),
        (["echo", "a\ud800"], "an argument holds what no argument may hold"),
    ],
)
async def test_a_child_that_cannot_be_started_is_an_expected_failure(argv, reason):
    """Missing programs and impossible arguments have the same error, which says why."""
    with pytest.raises(ProcessError, match=reason):
        await run(argv, timeout=WAIT)


async def test_many_children_run_at_the_same_time():
    """Children do not wait for each other and do not mix their output."""
    ran = await asyncio.gather(*(run(["echo", str(number)], timeout=WAIT) for number in range(20)))

    assert [f"{number}\n".encode() for number in range(20)] == [done.stdout for done in ran]
