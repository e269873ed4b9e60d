"""Run the application in this process: one event loop, one worker, the embedded default."""

import asyncio
import logging
import resource
import signal
import socket
from collections.abc import Callable
from typing import Any, Final

from granian.constants import Interfaces, SSLProtocols
from granian.log import LogLevels
from granian.server.embed import Server
from litestar import Litestar

from redflag_core.errors import ConfigurationError
from redflag_server.settings import Settings

logger = logging.getLogger(__name__)

BACKLOG: Final = 1024
"""Connections that wait to be accepted: a fleet that comes back after an outage arrives at once."""

CONNECTIONS: Final = 16_384
"""Connections at once, idle ones included: that is what the listener counts. An agent has up to two, one of them
held open by its check-in; whoever comes beyond waits to be accepted."""

OTHER_FILES: Final = 512
"""Files that are none of these connections: the database, keys, logs."""

START_SECONDS: Final = 30
DRAIN_SECONDS: Final = 10
"""How long requests that are under way may take when the server is told to stop."""


async def serve(
    app: Litestar, settings: Settings, *, stop: asyncio.Event, ready: Callable[[], None] = lambda: None
) -> None:
    """
    Serve *app* until *stop* is set.

    Args:
        app: The application.
        settings: Where to listen.
        stop: Ends it; requests that are under way are finished.
        ready: Called once when the listener answers.

    Raises:
        ConfigurationError: The address cannot be listened on.
    """
    check_address(settings)
    connections = _connections(CONNECTIONS)
    server = Server(
        app,
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        websockets=False,
        backlog=BACKLOG,
        backpressure=connections,
        log_level=LogLevels.error,
        ssl_cert=settings.tls_cert,
        ssl_key=settings.tls_key,
        ssl_protocol_min=SSLProtocols.tls12,
    )
    logging.getLogger("_granian").setLevel(logging.ERROR)
    task = asyncio.create_task(server.serve())
    try:
        await _until_listening(settings, task)
        _keep_room(app, connections)
        ready()
        ended = asyncio.create_task(stop.wait())
        await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
    finally:
        _end_held_requests(app)
        server.stop()  # type: ignore[no-untyped-call]
        await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), DRAIN_SECONDS)


def _connections(wanted: int) -> int:
    """Let this process have as many open files as it needs, and the system allows; the connections that remain."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_FILES
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    files = needed if soft == resource.RLIM_INFINITY else min(soft, needed)
    return max(files - OTHER_FILES, files // 2)


def _keep_room(app: Litestar, connections: int) -> None:
    """Requests that are held open may take half of the connections: the other half is for all that is short."""
    waiting = app.state.runtime.waiting
    waiting.limit = min(waiting.limit, connections // 2)


def _end_held_requests(app: Litestar) -> None:
    """Requests that wait for something to happen are answered now: else the end would wait for them."""
    runtime: Any = app.state.get("runtime")
    if runtime is not None:
        runtime.waiting.close()


def stop_on_signals(stop: asyncio.Event) -> None:
    """Let SIGINT and SIGTERM set *stop*. Call it once the server runs: it installs handlers of its own."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)


def check_address(settings: Settings) -> None:
    """
    Prove that the address is free.

    Raises:
        ConfigurationError: It is not.
    """
    try:
        infos = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = infos[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {settings.host}:{settings.port} ({error.strerror}): "
            "stop what uses it, or choose another --port"
        ) from None


async def _until_listening(settings: Settings, task: "asyncio.Task[None]") -> None:
    """Wait until a connection is accepted, or the server gave up."""
    deadline = asyncio.get_running_loop().time() + START_SECONDS
    while asyncio.get_running_loop().time() < deadline and not task.done():
        try:
            _, writer = await asyncio.open_connection(settings.host, settings.port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            return
    raise ConfigurationError("the server did not start: see the log above")
