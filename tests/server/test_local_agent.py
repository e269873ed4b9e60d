"""The local agent of `redflag up`: kept running whatever it does, and both ends of `up` ended together."""

import asyncio
import io
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from rich.console import Console

from redflag_core.errors import ConfigurationError
from redflag_core.testing import FrozenClock
from redflag_server.console import UpConsole
from redflag_server.local_agent import HEALTHY_SECONDS, MAX_LINE, LocalAgent
from redflag_server.up import EndedError, run_together


class EnoughError(Exception):
    """The agent was started as often as the test wants."""


@attrs.define
class Bench:
    """A local agent whose program the test wrote, and which waits in no time."""

    directory: Path
    clock: FrozenClock = attrs.field(factory=FrozenClock)
    events: list[dict[str, Any]] = attrs.field(factory=list)
    pauses: list[float] = attrs.field(factory=list)

    def agent(self, program: str, *, starts: int) -> LocalAgent:
        """An agent that runs *program*, until it was started *starts* times."""
        path = self.directory / "agent.py"
        path.write_text(program, encoding="utf-8")

        async def sleep(seconds: float) -> None:
            self.pauses.append(seconds)
            if len(self.pauses) == starts:
                raise EnoughError

        return LocalAgent(
            self.directory,
            ["http://127.0.0.1:1"],
            self.hear,
            clock=self.clock,
            sleep=sleep,
            command=(sys.executable, "-S", str(path)),
        )

    def hear(self, event: dict[str, Any]) -> None:
        """Remember an event; a program that says how long it ran has run that long."""
        self.events.append(event)
        self.clock.advance(event.get("ran_seconds", 0))

    def of(self, name: str) -> list[dict[str, Any]]:
        """The events of this name."""
        return [event for event in self.events if event["event"] == name]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A bench with nothing on it."""
    return Bench(tmp_path)


async def no_token() -> None:
    """The agent is registered already."""


def says(*lines: str) -> str:
    """A program that writes these expressions as lines."""
    return "\n".join(f"print({line}, flush=True)" for line in lines)


async def test_the_agent_is_told_the_token_and_where_the_server_is(bench: Bench):
    """The token goes through a pipe, never on the command line."""
    program = 'import json, sys; print(json.dumps({"event": "x", "in": sys.stdin.read(), "argv": sys.argv[1:]}))'

    async def token() -> str:
        return "the-token"

    with pytest.raises(EnoughError):
        await bench.agent(program, starts=1).keep_running(token)

    (heard,) = bench.of("x")
    assert "the-token" == heard["in"]
    assert "the-token" not in heard["argv"]
    assert ["--server", "http://127.0.0.1:1"] == heard["argv"][-2:]


async def test_an_agent_that_ends_is_started_again_ever_more_slowly(bench: Bench):
    """With its exit code told each time."""
    with pytest.raises(EnoughError):
        await bench.agent("raise SystemExit(7)", starts=6).keep_running(no_token)

    assert [1, 2, 5, 15, 60, 60] == bench.pauses
    assert [(7, pause) for pause in bench.pauses] == [
        (event["code"], event["again_in_seconds"]) for event in bench.of("stopped")
    ]


@pytest.mark.parametrize("seconds, pauses", [(HEALTHY_SECONDS, [1, 2, 5]), (HEALTHY_SECONDS + 1, [1, 1, 1])])
async def test_an_agent_that_ran_well_is_started_again_at_once(bench: Bench, seconds: int, pauses: list[float]):
    """Failures of long ago do not count."""
    program = says(f"""'{{"event": "x", "ran_seconds": {seconds}}}'""")

    with pytest.raises(EnoughError):
        await bench.agent(program, starts=3).keep_running(no_token)

    assert pauses == bench.pauses


async def test_a_long_event_is_heard(bench: Bench):
    """A scan may end with a hundred warnings of a thousand characters."""
    program = says("""'{"event": "scan_done", "warnings": ["' + '", "'.join(["w" * 1000] * 100) + '"]}'""")

    with pytest.raises(EnoughError):
        await bench.agent(program, starts=1).keep_running(no_token)

    assert [100] == [len(event["warnings"]) for event in bench.of("scan_done")]


@pytest.mark.parametrize("factor", [1, 3, 10])
async def test_a_line_that_is_too_long_is_passed_over(bench: Bench, factor: int):
    """What comes after it is heard, and the agent is not ended for it."""
    size = factor * MAX_LINE
    program = says(f"""'{{"event": "long", "x": "' + "x" * {size} + '"}}'""", """'{"event": "after"}'""")

    with pytest.raises(EnoughError):
        await bench.agent(program, starts=1).keep_running(no_token)

    assert ["after", "stopped"] == [event["event"] for event in bench.events]
    assert 0 == bench.events[-1]["code"]


@pytest.mark.parametrize(
    "error, words",
    [(RuntimeError("database is locked: secret"), "RuntimeError"), (ConfigurationError("do this"), "do this")],
)
async def test_a_token_that_cannot_be_given_is_asked_for_again(bench: Bench, error: Exception, words: str):
    """A locked database is a failed start, told without its text unless that is for people."""
    answers = [error, error, None]

    async def give() -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    with pytest.raises(EnoughError):
        await bench.agent("raise SystemExit(7)", starts=3).keep_running(give)

    assert ["error", "error", "stopped"] == [event["event"] for event in bench.events]
    assert f"cannot be started, trying again: {words}" == bench.events[0]["detail"]
    assert [1, 2, 5] == bench.pauses


async def test_a_program_that_cannot_be_run_is_tried_again(bench: Bench):
    """An installation under update has no program for a moment."""
    agent = bench.agent("", starts=2)
    agent.command = (str(bench.directory / "missing"),)

    with pytest.raises(EnoughError):
        await agent.keep_running(no_token)

    assert ["error", "error"] == [event["event"] for event in bench.events]


# --- both together ----------------------------------------------------------------------------------------------


@attrs.define
class Pair:
    """A server and an agent, as `up` runs them, and what the console says."""

    stop: asyncio.Event = attrs.field(factory=asyncio.Event)
    said: io.StringIO = attrs.field(factory=io.StringIO)
    ended: list[str] = attrs.field(factory=list)

    async def server(self, error: Exception | None = None) -> None:
        """Serve until told to stop, unless it fails."""
        if error is not None:
            raise error
        await self.stop.wait()
        self.ended.append("server")

    async def agent(self, error: Exception | None = None) -> None:
        """Run until cancelled, unless it fails."""
        if error is not None:
            raise error
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.append("agent")

    async def run(self, server: Any, agent: Any) -> None:
        """Run both together."""
        console = UpConsole(Console(file=self.said))
        async with asyncio.timeout(10):
            await run_together(asyncio.create_task(server), asyncio.create_task(agent), self.stop, console)


async def test_stop_ends_both():
    """And the console says that nothing is lost."""
    pair = Pair()
    asyncio.get_running_loop().call_soon(pair.stop.set)

    await pair.run(pair.server(), pair.agent())

    assert {"agent", "server"} == set(pair.ended)
    assert "everything is kept" in pair.said.getvalue()


@pytest.mark.parametrize(
    "error, sentence",
    [(RuntimeError("listener died"), "the server ended by itself"), (ConfigurationError("port is gone"), "port")],
)
async def test_a_server_that_died_ends_up_with_a_sentence(error: Exception, sentence: str):
    """Nobody waits for ever beside a server that is not there; the agent is ended too."""
    pair = Pair()

    with pytest.raises(EndedError, match=sentence) as ended:
        await pair.run(pair.server(error), pair.agent())

    assert "listener died" not in ended.value.message
    assert ["agent"] == pair.ended


async def test_a_server_that_ends_unasked_is_a_server_that_died():
    """Though it says nothing of why."""
    pair = Pair()

    async def leave() -> None:
        """End at once."""

    with pytest.raises(EndedError, match="the server ended by itself"):
        await pair.run(leave(), pair.agent())


async def test_a_supervisor_that_died_ends_the_server_in_order():
    """A bug is told, and not hidden behind a server that goes on without its agent."""
    pair = Pair()

    with pytest.raises(EndedError, match="the agent ended by itself"):
        await pair.run(pair.server(), pair.agent(ValueError("a bug")))

    assert ["server"] == pair.ended
