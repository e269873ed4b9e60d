"""The one-shot runner: each step once, in a process that nothing ends, with the end on the disk."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from redflag_agent.executor import run_once
from redflag_agent.executor.runs import Ended, Run, Runs, choose_launcher, reap, systemd_scope
from redflag_agent.installers.model import STATUS_FD, Step
from redflag_agent.process import ENVIRONMENT
from tests.helpers.executors import PATIENCE

SHELL = "/bin/sh"


def shell(script, name="step", **options):
    """A step that runs a script."""
    return Step(
        name=name, argv=(SHELL, "-c", script), env={"PATH": "/usr/bin:/bin", "GREETING": "hello"}, **options
    )


@pytest.fixture
def run(tmp_path):
    """A run that is not prepared yet."""
    return Run(tmp_path / "runs" / "one", lambda _name: ())


def carried_out(run, *steps):
    """Prepare, spawn, wait for the end."""
    with run.prepared(steps) as lock:
        pid = run.spawn(lock)
    wait_for(run.is_over)
    wait_for(lambda: reap(pid))
    return run.ended()


def wait_for(condition):
    """Wait for another process."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def printed(run):
    """What the steps printed."""
    return run.output().tail.decode()


def test_steps_run_in_their_order_with_exactly_their_environment(run):
    """Nothing of the agent's: no variables, no input, no directory, no terminal."""
    steps = (
        shell("echo $GREETING; env | sort; read line || echo no input; pwd; test -t 1 || echo no terminal"),
        shell("echo second >&2", name="second"),
    )

    assert Ended(0, None) == carried_out(run, *steps)
    lines = printed(run).splitlines()
    assert "hello" == lines[0]
    assert ["no input", "/", "no terminal", "second"] == lines[-4:]
    of_the_shell = ("PWD=", "OLDPWD=", "SHLVL=", "_=")
    given = {line for line in lines[1:-4] if not line.startswith(of_the_shell)}
    assert {"GREETING=hello", "PATH=/usr/bin:/bin"} == given


def test_after_a_failure_only_what_puts_things_in_order_runs(run):
    """The first failure is the end that counts."""
    steps = (
        shell("exit 3", name="install"),
        shell("echo never", name="skipped"),
        shell("echo tidied; exit 4", name="mark", always=True),
    )

    assert Ended(3, "install") == carried_out(run, *steps)
    assert "tidied\n" == printed(run)
    recorded = json.loads((run.path / run_once.EXIT).read_text())
    assert [("install", 3), ("mark", 4)] == [(step["name"], step["status"]) for step in recorded["steps"]]


def test_a_step_that_is_ended_by_a_signal_has_its_number(run):
    """Negative, as everywhere."""
    assert Ended(-9, "step") == carried_out(run, shell("kill -9 $$"))


def test_a_program_that_is_not_there_is_a_failure_with_a_sentence(run):
    """As a shell would say it."""
    missing = Step(name="install", argv=("/nonexistent/apt-get",), env={})

    assert Ended(127, "install") == carried_out(run, missing)
    assert "/nonexistent/apt-get cannot be started" in printed(run)


def test_arguments_are_not_interpreted(run):
    """Blanks, quotes, wildcards, newlines and every byte but NUL."""
    words = ("a b", "'", '"', "*", "$HOME", "-n", "\n", "\udcff")
    step = Step(name="print", argv=("/usr/bin/printf", "[%s]", *words), env={})

    assert Ended(0, None) == carried_out(run, step)
    assert b"".join(b"[%b]" % word.encode("utf-8", "surrogateescape") for word in words) == run.output().tail


def test_each_step_has_an_empty_status_file_of_its_own(run):
    """What it writes there is not in the output; what the last one wrote can be read."""
    steps = (shell(f"echo one:10 >&{STATUS_FD}; echo two:20 >&3"), shell("printf 'three:30\nfour' >&3"))

    assert Ended(0, None) == carried_out(run, *steps)
    assert ("", "three:30\n") == (printed(run), run.status())


def test_steps_inherit_nothing_but_their_files(run):
    """No lock, no journal, no socket: a service that a script starts must not hold them for ever."""
    with Path(os.devnull).open() as secret, run.prepared([shell("ls -l /proc/self/fd | sed 's/.* //'")]) as lock:
        os.set_inheritable(secret.fileno(), False)
        pid = run.spawn(lock)
    wait_for(run.is_over)
    wait_for(lambda: reap(pid))

    names = {Path(line).name for line in printed(run).splitlines() if line.startswith("/")}
    assert {"null", run_once.OUTPUT, run_once.STATUS} == {each for each in names - {"fd"} if not each.isdigit()}


def test_what_a_script_leaves_running_does_not_keep_the_run_open(run):
    """A service that was restarted lives on; the change is over."""
    ended = carried_out(run, shell("sleep 30 & echo $!"))

    os.kill(int(printed(run)), signal.SIGKILL)
    assert Ended(0, None) == ended


def test_steps_can_be_ended_by_those_who_may(run):
    """The runner takes no notice of signals, but does not pass that on."""
    script = "kill -TERM $PPID; kill -HUP $PPID; kill -INT $PPID; sh -c 'kill -TERM $$; echo survived'; echo $?"

    assert Ended(0, None) == carried_out(run, shell(script))
    assert ["143"] == [line for line in printed(run).splitlines() if "Terminated" not in line]


def test_the_runner_is_in_a_session_of_its_own(run):
    """Whatever happens to the agent's group or terminal does not reach it."""
    with run.prepared([shell("sleep 0.2; ps -o sid= -p $PPID")]) as lock:
        pid = run.spawn(lock)
    assert pid == os.getsid(pid) != os.getsid(0)
    wait_for(run.is_over)
    wait_for(lambda: reap(pid))

    assert str(pid) == printed(run).strip()


def test_scripts_find_the_usual_mask(run):
    """Files that they make can be read, whatever the agent's own mask is."""
    old = os.umask(0o077)
    try:
        assert Ended(0, None) == carried_out(run, shell("umask"))
    finally:
        os.umask(old)
    assert "0022\n" == printed(run)
    assert {0o600} == {path.stat().st_mode & 0o777 for path in run.path.iterdir()}


def test_a_run_is_never_carried_out_twice(run):
    """Not even when somebody starts the runner again with the lock in its hand."""
    carried_out(run, shell("echo once"))
    with (run.path / run_once.LOCK).open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([sys.executable, run_once.__file__, str(run.path)], stdin=lock, check=False)

    assert (1, "once\n") == (done.returncode, printed(run))


def test_a_runner_without_the_lock_does_nothing(run):
    """Neither without one in its hand nor while another holds it."""
    command = [sys.executable, run_once.__file__, str(run.path)]
    with run.prepared([shell("echo never")]):
        alone = subprocess.run(command, stdin=subprocess.DEVNULL, check=False)
        with (run.path / run_once.LOCK).open("r+") as second:
            beside = subprocess.run(command, stdin=second, check=False)

    assert (1, 1) == (alone.returncode, beside.returncode)
    assert not run.was_begun()
    assert run.ended() is None


def test_the_lock_is_held_from_before_the_start_to_the_end(run):
    """There is no moment at which a started run looks as if nobody carried it out."""
    with run.prepared([shell("sleep 0.3")]) as lock:
        assert not run.is_over()
        pid = run.spawn(lock)
        assert not run.is_over()
    assert not run.is_over()
    wait_for(run.is_over)
    wait_for(lambda: reap(pid))

    assert Ended(0, None) == run.ended()


def test_preparing_leaves_everything_on_the_disk_and_nothing_running(run):
    """What was left of an attempt that was given up is replaced."""
    for text in ("echo one", "echo two"):
        with run.prepared([shell(text)]):
            pass

    assert run.is_over()
    assert (None, "start", "", False) == (run.ended(), run.doing(), run.status(), run.was_begun())
    spec = json.loads((run.path / run_once.SPEC).read_text())
    assert [[SHELL, "-c", "echo two"]] == [step["argv"] for step in spec["steps"]]


def test_a_full_disk_at_the_end_is_waited_out(tmp_path, monkeypatch, capfd):
    """The end is recorded as soon as there is room; after minutes it stays unrecorded, and the agent looks."""
    waits = []

    def write():
        raise OSError(28, "No space left on device")

    assert not run_once._insist(write, waits.append)
    assert 240 < sum(waits) < 300
    assert "No space left" in capfd.readouterr().err
    assert run_once._insist(lambda: None, waits.append)


def test_directories_go_together_with_their_repairs(tmp_path):
    """A command's run and what repaired it."""
    runs = Runs(tmp_path / "runs", lambda _name: ())
    assert {} == runs.commands()
    for each in (runs.run("a"), runs.repair("a", 1), runs.repair("a", 2), runs.run("b")):
        with each.prepared([shell("true")]):
            pass

    assert {"a", "b"} == set(runs.commands())
    assert abs(runs.commands()["a"] - time.time()) < PATIENCE
    with runs.repair("a", 3).prepared([shell("true")]):
        runs.remove("a")
        assert {"a", "b"} == set(runs.commands())
    runs.remove("a")

    assert {"b"} == set(runs.commands())


def test_under_systemd_a_run_is_a_unit_of_its_own(run):
    """Stopping the agent's service ends what is in the agent's unit, and this is not."""
    assert (
        "/usr/bin/systemd-run",
        "--scope",
        "--quiet",
        "--collect",
        "--unit=redflag-run-0190b5a4.repair1",
    ) == systemd_scope("0190b5a4.repair1")
    expected = ("systemd-run",) if Path("/run/systemd/system").is_dir() and os.geteuid() == 0 else ()
    assert expected == tuple(Path(word).name for word in choose_launcher()("x")[:1])


def test_the_launcher_comes_before_the_runner(tmp_path):
    """And hands the lock, the output and the end on."""
    run = Run(tmp_path / "runs" / "one", lambda name: ("/usr/bin/env", f"NAME={name}"))

    assert Ended(0, None) == carried_out(run, shell("cat /proc/$PPID/environ"))
    assert {f"{name}={value}" for name, value in ENVIRONMENT.items()} | {"NAME=one"} == {
        *printed(run).strip("\0").split("\0")
    }


def test_a_run_directory_that_is_gone_is_over():
    """Nobody will carry it out."""
    assert Run(Path("/nonexistent/run"), lambda _name: ()).is_over()
