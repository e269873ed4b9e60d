"""A real server and a real browser in front of it: for what only a browser can prove."""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

from redflag_core.system import SystemClock, SystemEntropy
from redflag_server.app import create_app
from redflag_server.runtime import Runtime
from redflag_server.serve import serve
from redflag_server.settings import Settings
from redflag_server.start import open_runtime

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

REPORT_VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy violated: ${event.violatedDirective} ${event.blockedURI}`));
"""


@attrs.define
class Site:
    """
    A listening server.

    Attributes:
        url: Where it listens.
        runtime: What it holds.
    """

    url: str
    runtime: Runtime


@attrs.define(slots=False)  # the driver puts a mark of its own on listeners
class Window:
    """
    A page in a browser of its own.

    Attributes:
        page: The page.
        complaints: Errors in its console, uncaught errors and violations of the policy.
    """

    page: Page
    complaints: list[str] = attrs.field(factory=list)

    def hear(self, message: ConsoleMessage) -> None:
        """Remember what the console complains of."""
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)


@asynccontextmanager
async def listening(data: Path) -> AsyncIterator[Site]:
    """A server that listens on a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = Settings(data=data, port=port)
    runtime = await open_runtime(settings, SystemClock(), SystemEntropy())
    app = create_app(settings, clock=runtime.clock, entropy=runtime.entropy, run_jobs=False, runtime=runtime)
    stop, ready = asyncio.Event(), asyncio.Event()
    server = asyncio.create_task(serve(app, settings, stop=stop, ready=ready.set))
    try:
        await asyncio.wait_for(ready.wait(), 30)
        yield Site(f"http://127.0.0.1:{port}", runtime)
    finally:
        stop.set()
        await server


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """The Chromium of this machine, without a window and with nothing kept from before."""
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def window(browser: Browser, **options: Any) -> AsyncIterator[Window]:
    """A new window that remembers what its console complains of."""
    context = await browser.new_context(**options)
    await context.add_init_script(REPORT_VIOLATIONS)
    opened = Window(await context.new_page())
    opened.page.on("console", opened.hear)
    opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    try:
        yield opened
    finally:
        await context.close()
