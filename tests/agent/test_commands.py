"""``redflag agent`` as people and service managers use it: processes, sockets, exit codes, sentences."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from redflag_agent.answers import ServerFailedError, UnreachableError
from redflag_agent.commands import scan_machine, usable_scanners
from redflag_agent.data_dir import DataDirectory
from redflag_agent.database import OutboxError
from redflag_agent.exits import exit_code
from redflag_agent.scanners import StorageScanner, SystemScanner
from redflag_agent.settings import AgentSettings
from redflag_agent.status import read_status, show_status
from redflag_core.commands import CommandType, ScanParams
from redflag_core.encoding import b64decode
from redflag_core.envelope import parse_envelope
from redflag_core.errors import CircuitOpenError, ConfigurationError, ExpiredError, KeyFileError
from redflag_core.scanning import PackageState, ScannerPolicy
from redflag_core.statements import RESULT_TYPE
from redflag_core.testing import FrozenClock
from tests.helpers.agents import FakeScanner, agent_parts, failed, new_id, package, running, scan_report
from tests.helpers.stub_server import LostAnswerError, StubServer, problem, serving
from tests.helpers.virtual_time import run_in_virtual_time

DONE, FAILED, MISCONFIGURED, NOT_REGISTERED, REFUSED, UNREACHABLE, IN_USE = range(7)
TIMEOUT = 30


class Directory:
    """A data directory, and the commands on it. Its agent has no scanner: real ones are tested elsewhere."""

    def __init__(self, path):
        self.path = path
        path.mkdir(mode=0o700)
        off = (f"[scanners.{name}]\nenabled = false\n" for name in ("apt", "storage", "system"))
        (path / "agent.toml").write_text("".join(off))

    def enable(self, name):
        """Let it scan all the same."""
        settings = self.path / "agent.toml"
        settings.write_text(settings.read_text().replace(f"[scanners.{name}]\nenabled = false\n", ""))

    def popen(self, *arguments, **options):
        """Start a command."""
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd()), "HOME": str(self.path)}
        environment |= options.pop("env", {})
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen(
            [sys.executable, "-m", "redflag_agent", *arguments, "--data", str(self.path)],
            text=True,
            env=environment,
            **pipes,
        )

    def run(self, *arguments, token="", **options):
        """Run a command to its end: exit code, output, errors."""
        with self.popen(*arguments, **options) as child:
            output, errors = child.communicate(token, timeout=TIMEOUT)
        return child.returncode, output, errors

    def status(self):
        """What ``status --json`` says."""
        _, output, _ = self.run("status", "--json")
        return json.loads(output)

    @contextmanager
    def running(self, token, *arguments):
        """An agent that runs beside the block, and its progress; killed at the end if it still runs."""
        with self.popen("run", "--token-stdin", "--progress-json", *arguments) as child:
            child.stdin.write(token)
            child.stdin.close()
            try:
                yield child
            finally:
                child.kill()


@pytest.fixture
def directory(tmp_path):
    """An empty data directory without scanners."""
    return Directory(tmp_path / "agent")


@pytest.fixture
def server():
    """A stub server on a loopback port, with the real time."""
    from redflag_core.system import SystemClock

    server = StubServer(SystemClock())
    with serving(server):
        yield server


def arrival(server, part):
    """An event that is set when a request with *part* in its path arrives."""
    event = threading.Event()
    server.script.append(lambda request: event.set() if part in request.path else None)
    return event


def test_register_and_status(directory, server):
    """Registered with a token from standard input; the status names the agent and holds no secret."""
    token = server.registration_token()

    code, output, errors = directory.run("register", "--token-stdin", token=token.text())

    assert (DONE, "") == (code, errors.replace(log_of(errors), ""))
    assert server.only_agent().agent_id in output
    status = directory.status()
    assert (True, "active", server.id) == (status["registered"], status["status"], status["server"])
    state = json.loads((directory.path / "state.json").read_text())
    assert state["refresh"]["current"] not in json.dumps(status) + output + errors
    assert token.secret not in json.dumps(status) + output + errors


@pytest.mark.parametrize("way", ["file", "environment"])
def test_a_token_may_come_from_a_file_or_the_environment(directory, server, way):
    """But not from the command line, which everybody can read."""
    text = server.registration_token().text()
    (directory.path / "token").write_text(text + "\n")
    options = ["--token-file", str(directory.path / "token")] if way == "file" else []
    env = {"REDFLAG_REGISTRATION_TOKEN": text} if way == "environment" else {}

    code, _, _ = directory.run("register", *options, env=env)

    assert (DONE, 1) == (code, len(server.agents))


def test_registering_twice_is_the_same_agent(directory, server):
    """No second record, no seat."""
    for _ in range(2):
        directory.run("register", "--token-stdin", token=server.registration_token().text())

    assert 1 == len(server.agents)


@pytest.mark.parametrize(
    "arguments, token, code, said",
    [
        (["register"], "", MISCONFIGURED, "give a registration token"),
        (["register", "--token-stdin"], "nonsense", REFUSED, "copy it whole"),
        (["register", "--token-file", "/nowhere"], "", MISCONFIGURED, "cannot read a registration token"),
        (["run"], "", NOT_REGISTERED, "not registered"),
        (["run", "--once"], "", NOT_REGISTERED, "not registered"),
        (["run", "--interval", "apt=1"], "", MISCONFIGURED, "SCANNER=SECONDS"),
        (["run", "--proxy", "nowhere"], "", MISCONFIGURED, "proxy"),
        (["run", "--tls-pin", "x"], "", MISCONFIGURED, "TLS pin"),
        (["scan"], "", MISCONFIGURED, "nothing to scan"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(directory, arguments, token, code, said):
    """On standard error, with its exit code, without a traceback."""
    got, output, errors = directory.run(*arguments, token=token)

    assert (code, "") == (got, output)
    assert said in re.sub(r"[\s│]+", " ", errors)
    assert "Traceback" not in errors


def test_a_refusal_is_the_servers_sentence(directory, server):
    """Exit code 4."""
    token = server.registration_token()
    server.tokens.clear()

    code, _, errors = directory.run("register", "--token-stdin", token=token.text())

    assert (REFUSED, True) == (code, "ask for a new token" in errors)


def test_a_wrong_root_is_refused(directory, server):
    """The server is not the one that the token names."""
    token = server.registration_token(root_fp="0" * 64)

    code, _, errors = directory.run("register", "--token-stdin", token=token.text())

    assert (REFUSED, True) == (code, "pinned" in errors)
    assert {} == server.agents


def test_two_agents_cannot_run_in_one_directory(directory):
    """Exit code 6."""
    with DataDirectory(directory.path).lock():
        code, _, errors = directory.run("run")

    assert (IN_USE, True) == (code, "another agent is using" in errors)


def test_a_damaged_state_is_one_sentence(directory):
    """Of every command that needs it."""
    (directory.path / "state.json").write_text("{")
    (directory.path / "state.json").chmod(0o600)

    for command in ("run", "status"):
        code, _, errors = directory.run(command)

        assert (MISCONFIGURED, True, False) == (code, "damaged" in errors, "Traceback" in errors)


def test_run_registers_tells_progress_and_ends_on_sigterm(directory, server):
    """As ``redflag up`` uses it: one JSON line for each event; SIGTERM ends it in order within five seconds."""
    checked_in = arrival(server, "check-in")
    with directory.running(server.registration_token().text()) as child:
        assert {"event": "registered", "agent_id": server_agent(child)} == {
            "event": "registered",
            "agent_id": server.only_agent().agent_id,
        }
        assert checked_in.wait(TIMEOUT)
        assert directory.status()["running"]
        child.send_signal(signal.SIGTERM)

        assert DONE == child.wait(5)
        assert "Traceback" not in child.stderr.read()
    assert not directory.status()["running"]


def test_the_agent_ends_when_nobody_reads_its_progress(directory, server):
    """Whoever started it is gone, however it went: no agent stays behind to hold the directory."""
    checked_in = arrival(server, "check-in")
    with directory.running(server.registration_token().text()) as child:
        assert checked_in.wait(TIMEOUT)
        child.stdout.close()

        assert DONE == child.wait(5)


def test_an_agent_that_is_killed_anywhere_goes_on_by_itself(directory, server):
    """Kill -9 while a registration and then token requests are under way: one agent, one chain, no quarantine."""
    token = server.registration_token().text()
    for part in ("/register", "/agent/token", "/agent/check-in"):
        with directory.running(token) as child:

            def kill(request, part=part, child=child):
                if part in request.path:
                    server.answer(request)
                    child.kill()
                    raise LostAnswerError

            server.script.append(kill)
            child.wait(TIMEOUT)
            server.script.clear()

    code, _, errors = directory.run("run", "--once", "--token-stdin", token=token)

    assert DONE == code, errors
    assert ("active", 1) == (server.only_agent().status, len(server.agents))
    assert 1 <= server.only_agent().chain.generation <= 3


def test_run_once_that_is_refused_says_so(directory, server):
    """Exit code 4, and nothing is lost: the next run delivers."""
    directory.run("register", "--token-stdin", token=server.registration_token().text())
    server.script.append(lambda _request: problem(400, "malformed"))
    assert REFUSED == directory.run("run", "--once")[0]

    server.script.clear()
    assert DONE == directory.run("run", "--once")[0]


@pytest.mark.parametrize(
    "error, code",
    [
        (UnreachableError("gone"), UNREACHABLE),
        (CircuitOpenError("open", retry_after=1.0), UNREACHABLE),
        (ServerFailedError(503, "unavailable", ""), REFUSED),
        (ExpiredError("old"), REFUSED),
        (KeyFileError("damaged"), MISCONFIGURED),
        (OutboxError("full"), FAILED),
    ],
)
def test_each_kind_of_failure_has_its_exit_code(error, code):
    """A script can tell who is to blame."""
    assert code == exit_code(error)


def test_the_command_line_says_where_the_server_is(directory, server):
    """An address given wins over the registration's, for this run."""
    directory.run("register", "--token-stdin", token=server.registration_token().text())
    with serving(server) as port:
        code, _, errors = directory.run("run", "--once", "--server", f"http://localhost:{port}")

    assert DONE == code, errors
    assert "127.0.0.1" in directory.status()["addresses"][0]


def test_a_token_of_another_server_is_refused_when_registered(directory, server):
    """An agent does not change sides because of what it is started with."""
    directory.run("register", "--token-stdin", token=server.registration_token().text())
    stranger = server.registration_token(server="00000000-0000-0000-0000-000000000099")

    code, _, errors = directory.run("run", "--once", "--token-stdin", token=stranger.text())

    assert (MISCONFIGURED, True) == (code, "another server" in errors)


def test_a_token_of_the_same_server_brings_its_new_address(directory, server):
    """The server moved to another port: a new token is enough, no new registration."""
    directory.run("register", "--token-stdin", token=server.registration_token().text())
    with serving(server) as port:
        code, _, errors = directory.run("run", "--once", "--token-stdin", token=server.registration_token().text())

    assert DONE == code, errors
    assert [f"http://127.0.0.1:{port}"] == directory.status()["addresses"]
    assert 1 == len(server.agents)


def test_no_secret_is_in_log_or_progress(directory, server):
    """At the highest level, to the end of a run."""
    token = server.registration_token()

    code, output, errors = directory.run(
        "run", "--once", "--token-stdin", "--progress-json", "--log-level", "debug", token=token.text()
    )

    state = json.loads((directory.path / "state.json").read_text())
    secrets = [token.secret, token.text(), state["refresh"]["current"], state["access"]["token"]]
    assert DONE == code
    assert "checked_in" in errors
    assert [] == [secret for secret in secrets if secret in output + errors]


def test_status_before_anything_is_there(tmp_path):
    """Not registered is exit code 3, and nothing is made."""
    directory = Directory(tmp_path / "agent")

    assert NOT_REGISTERED == directory.run("status")[0]
    assert ["agent.toml"] == [path.name for path in directory.path.iterdir()]


async def test_status_shows_the_last_scans(tmp_path):
    """What was found and what waits, from the outbox."""
    async with agent_parts(tmp_path / "agent") as parts:
        parts.outbox.record_scan(scan_report(package("a", available="2")), report_id=new_id(1))
    status = read_status(tmp_path / "agent")

    assert (["apt"], {"available": 1}) == (status["waiting"], status["scans"][0]["states"])
    assert "1 available" in show_status(status, as_json=False)


async def test_status_does_not_call_a_scanner_of_facts_empty(tmp_path):
    """It has no packages by nature, not because nothing is installed."""
    async with agent_parts(tmp_path / "agent") as parts:
        parts.outbox.record_scan(scan_report(scanner="storage"), report_id=new_id(1))
    shown = show_status(read_status(tmp_path / "agent"), as_json=False)

    assert re.search(r"^scan storage: \S+: done$", shown, re.MULTILINE)


def test_status_shows_commands_statements_and_limits(tmp_path):
    """What was ordered and how it ended, what the server refused to take, and what the owner allows."""

    async def main(clock):
        server = StubServer(clock)
        server.pace = 5
        refused = problem(409, "command_conflict")
        async with agent_parts(tmp_path / "agent", server, installers=()) as parts:
            await parts.register()
            cmd_id = server.order(ScanParams(), CommandType.SCAN_RUN)
            server.script.append(lambda request: refused if "/results" in request.path else None)
            async with running(parts.runner()):
                await asyncio.sleep(30)
        return cmd_id

    cmd_id = run_in_virtual_time(main)
    (tmp_path / "agent" / "limits.toml").write_text('starts_per_day = 3\nmanagers = ["apt"]\n')
    status = read_status(tmp_path / "agent")
    text = show_status(status, as_json=False)

    (command,) = status["commands"]
    assert (cmd_id, "scan.run", "done", "completed") == tuple(
        command[name] for name in ("cmd_id", "type", "state", "outcome")
    )
    assert {"command_conflict"} == {statement["refused"] for statement in status["statements"]}
    assert re.search(rf"^command scan.run {cmd_id}: completed: 2026-", text, re.MULTILINE)
    assert f"statement about {cmd_id}: the server refused it at 2026-01-01T00:00:" in text
    assert "limits: 3 changes a day with apt, at any time" in text
    assert json.loads(show_status(status, as_json=True)) == status


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "20 changes a day with any package manager, at any time"),
        ("changes = false", "no changes"),
        ('[[windows]]\nstart = "22:00"\nend = "04:00"', "20 changes a day with any package manager, in 1 windows"),
        ("starts_per_day = -1", "nothing is changed on this machine"),
    ],
)
def test_status_says_what_the_owner_allows(tmp_path, text, said):
    """And that nothing is changed when their file is of no use."""
    (tmp_path / "limits.toml").write_text(text)

    assert f"limits: {said}" in show_status(read_status(tmp_path), as_json=False)


def test_an_agent_killed_before_it_delivered_a_result_delivers_it_after_the_restart(directory, server):
    """Kill -9 of the process: the result is the one that was signed before, and it is recorded once."""
    token = server.registration_token().text()
    directory.enable("system")
    server.pace, sent = 1, []
    with directory.running(token) as child:
        read_line(child, "registered")
        cmd_id = server.order(ScanParams("system"), CommandType.SCAN_RUN)

        def kill(request):
            if "/results" not in request.path:
                return
            wire = b64decode(json.loads(request.body)["statement"])
            if parse_envelope(wire).payload_type == RESULT_TYPE:
                sent.append(wire)
                child.kill()
                raise LostAnswerError

        server.script.append(kill)
        child.wait(TIMEOUT)
        server.script.clear()

    code, _, errors = directory.run("run", "--once")

    assert DONE == code, errors
    assert "completed" == server.only_agent().results()[cmd_id].outcome
    assert sent == [
        wire for wire in server.only_agent().envelopes if parse_envelope(wire).payload_type == RESULT_TYPE
    ]
    assert [] == directory.status()["statements"]


def test_run_once_carries_out_what_was_ordered(directory, server):
    """And the server has the result when the command ends."""
    directory.enable("system")
    directory.run("register", "--token-stdin", token=server.registration_token().text())
    cmd_id = server.order(ScanParams("system"), CommandType.SCAN_RUN)

    code, _, errors = directory.run("run", "--once")

    assert DONE == code, errors
    assert "completed" == server.only_agent().results()[cmd_id].outcome
    assert [0] == [check_in.wait for check_in in server.only_agent().check_ins]


def test_run_once_that_is_refused_is_shown_by_status(directory, server):
    """With the server's code and sentence."""
    directory.run("register", "--token-stdin", token=server.registration_token().text())
    server.only_agent().status = "quarantined"

    assert REFUSED == directory.run("run", "--once")[0]

    status = directory.status()
    assert ("agent_quarantined", "an operator must look at it") == (status["status"], status["detail"])


def test_scan_shows_what_is_pending():
    """For people: each pending package with its versions, and what could not be done."""
    held = package("b", available="2.0", state=PackageState.HELD)
    scanner = FakeScanner((package("a"), held), warnings=("the lists are old",))

    text, succeeded = scan_machine(AgentSettings(), [scanner], as_json=False)

    assert succeeded
    assert "apt: 2 packages: 1 current, 1 held" in text
    assert re.search(r"held +b:amd64 +1\.0-1 -> 2\.0", text)
    assert "the lists are old" in text


def test_scan_as_json_holds_everything():
    """Every package, also the current ones."""
    text, _ = scan_machine(AgentSettings(), [FakeScanner((package("a"),))], as_json=True)

    document = json.loads(text)
    assert ["a"] == [found["name"] for found in document["scans"][0]["packages"]]
    assert {"hostname", "os", "cannot", "scans"} == set(document)


def test_a_machine_without_a_package_manager_is_told_so():
    """Disks and memory are shown; that nobody looked for updates is said, never left to be thought."""
    scanners = [scanner(clock=FrozenClock()) for scanner in (StorageScanner, SystemScanner)]

    text, succeeded = scan_machine(AgentSettings(), scanners, as_json=False)
    document = json.loads(scan_machine(AgentSettings(), scanners, as_json=True)[0])

    assert succeeded
    assert re.search(r"^storage:$.*^system:$.*^note: no packages were scanned", text, re.MULTILINE | re.DOTALL)
    assert "no packages were scanned" in document["cannot"][-1]
    assert ["storage", "system"] == [scan["scanner"] for scan in document["scans"]]


def test_packages_and_facts_are_shown_together():
    """Nothing is missing then."""
    text, _ = scan_machine(AgentSettings(), [FakeScanner(), SystemScanner(clock=FrozenClock())], as_json=False)

    assert "apt: 0 packages: none" in text
    assert "system:" in text
    assert "no packages were scanned" not in text


def test_every_scanner_of_this_machine_can_be_disabled():
    """By its name in the settings, and what remains is scanned."""
    names = [scanner.name for scanner in usable_scanners(AgentSettings())]
    off = {name: ScannerPolicy(enabled=False) for name in names if name != "system"}

    text, _ = scan_machine(AgentSettings(scanners=off), usable_scanners(AgentSettings()), as_json=True)

    assert {"storage", "system"} <= set(names)
    assert ["system"] == [scan["scanner"] for scan in json.loads(text)["scans"]]


def test_a_scan_that_fails_says_so():
    """Never "nothing found"."""
    text, succeeded = scan_machine(AgentSettings(), [FakeScanner(failure=failed("locked"))], as_json=False)

    assert (False, True) == (succeeded, "failed: locked" in text)


def test_nothing_to_scan_is_a_sentence():
    """A machine without a known package manager, or one whose scanner is disabled."""
    off = AgentSettings(scanners={"apt": ScannerPolicy(enabled=False)})
    for settings, scanners in ((AgentSettings(), []), (off, [FakeScanner()])):
        with pytest.raises(ConfigurationError, match="nothing to scan"):
            scan_machine(settings, scanners, as_json=False)


def read_line(child, part):
    """The next line of progress that holds *part*."""
    while part not in (text := child.stdout.readline()):
        assert text, child.stderr.read()
    return text


def server_agent(child):
    """The agent id in the first line of progress."""
    return json.loads(child.stdout.readline())["agent_id"]


def log_of(errors):
    """The lines of the log in what came on standard error."""
    return "".join(line for line in errors.splitlines(keepends=True) if line.startswith("time="))
