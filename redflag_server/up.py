"""
``redflag up``: server and local agent on this machine with one command, until Ctrl-C.

Everything is in one data directory: the server's database and keys, and the agent's own directory ``agent``.
"""

import asyncio
import logging
import os
import sys
import webbrowser
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import rich_click as click
from rich.console import Console

from redflag_core import __version__
from redflag_core.errors import RedFlagError
from redflag_core.system import SystemClock, SystemEntropy
from redflag_server.accounts.setup import issue_setup_link
from redflag_server.agents.registration_tokens import create_registration_token
from redflag_server.agents.schema import NewToken
from redflag_server.app import create_app
from redflag_server.console import UpConsole
from redflag_server.db.scope import whole_installation
from redflag_server.local_agent import LocalAgent
from redflag_server.run import end_with_sentence, listen_options, settings_from
from redflag_server.runtime import Runtime
from redflag_server.serve import serve, stop_on_signals
from redflag_server.settings import Settings
from redflag_server.start import hold_place, open_runtime

logger = logging.getLogger(__name__)

NOT_REGISTERED: Final = 3
"""Exit code of ``redflag agent status``."""

TOKEN_SECONDS: Final = 600
"""Validity of the registration token that the local agent is handed: it registers within seconds."""


class EndedError(RedFlagError):
    """What should run until it is told to stop ended by itself."""

    code = "ended"


@click.command()
@listen_options
@click.option("--no-browser", is_flag=True, help="Do not open the dashboard in a browser.")
def main(data: Path | None, *, no_browser: bool, **options: Any) -> None:
    """Run the server and an agent for this machine. Ctrl-C ends both; the next start finds everything."""
    try:
        settings = settings_from(data, options)
        with hold_place(settings):
            asyncio.run(_up(settings, UpConsole(Console(highlight=False)), open_browser=not no_browser))
    except RedFlagError as error:
        end_with_sentence(error)


async def _up(settings: Settings, console: UpConsole, *, open_browser: bool) -> None:
    console.say("RedFlag", __version__)
    runtime = await open_runtime(settings, SystemClock(), SystemEntropy())
    app = create_app(settings, clock=runtime.clock, entropy=runtime.entropy, runtime=runtime)
    stop, listening = asyncio.Event(), asyncio.Event()
    server = asyncio.create_task(serve(app, settings, stop=stop, ready=listening.set))
    await _until(listening, server)
    if server.done():
        await server
        raise EndedError(_ended("server", server))
    stop_on_signals(stop)
    await _say_where(runtime, console, open_browser=open_browser)
    agent = LocalAgent(settings.data / "agent", settings.urls, console.on_agent_event)
    running = asyncio.create_task(agent.keep_running(_token_giver(runtime, agent.data)))
    await run_together(server, running, stop, console)


async def run_together(
    server: "asyncio.Task[None]", agent: "asyncio.Task[None]", stop: asyncio.Event, console: UpConsole
) -> None:
    """
    Wait until *stop* is set, then end both. When one of them ended by itself, end the other.

    Args:
        server: Serves until *stop* is set.
        agent: Runs until cancelled.
        stop: Set by a signal, or here.
        console: Where to say it.

    Raises:
        EndedError: One of them ended by itself.
    """
    await _until(stop, server, agent)
    reason = None
    if not stop.is_set():
        reason = _ended("server", server) if server.done() else _ended("agent", agent)
    console.say("stopping", "the agent, then the server ...")
    agent.cancel()
    await asyncio.gather(agent, return_exceptions=True)
    stop.set()
    await asyncio.gather(server, return_exceptions=True)
    if reason is not None:
        raise EndedError(reason)
    await server
    console.say("stopped", "everything is kept; start again with the same command")


async def _until(event: asyncio.Event, *tasks: "asyncio.Task[None]") -> None:
    """Wait until *event* is set or one of *tasks* ended."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


def _ended(what: str, task: "asyncio.Task[None]") -> str:
    """A sentence on a task that ended by itself; what is for developers goes to the log."""
    error = None if task.cancelled() else task.exception()
    if isinstance(error, RedFlagError):
        return error.message
    logger.error("the %s ended by itself", what, exc_info=error)
    return f"the {what} ended by itself: everything is kept; start again with the same command"


async def _say_where(runtime: Runtime, console: UpConsole, *, open_browser: bool) -> None:
    url = runtime.settings.urls[0]
    link = await issue_setup_link(runtime)
    console.say("dashboard", url, "underline")
    console.say("data", str(runtime.settings.data))
    if link is not None:
        console.say("set up", f"{link}  (works once, for 15 minutes)", "bold green")
    console.say("end", "Ctrl-C")
    if open_browser and _has_desktop():
        await asyncio.to_thread(webbrowser.open, link or url)


def _token_giver(runtime: Runtime, agent_data: Path) -> Callable[[], Awaitable[str | None]]:
    async def give() -> str | None:
        """A registration token for one seat, if this machine's agent has no record yet."""
        if await _is_registered(agent_data):
            return None
        order = NewToken(label="this machine (redflag up)", seats=1, expires_in_seconds=TOKEN_SECONDS)
        _, token = await create_registration_token(runtime, whole_installation("server"), order)
        return token.text()

    return give


async def _is_registered(agent_data: Path) -> bool:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "redflag_agent",
        "status",
        "--json",
        "--data",
        str(agent_data),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    return await process.wait() != NOT_REGISTERED


def _has_desktop() -> bool:
    """Whether there is somebody in front of a screen."""
    return sys.stdout.isatty() and bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
