"""``redflag server run``: the server alone, in the foreground, for a service manager."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import rich_click as click

from redflag_core.errors import RedFlagError
from redflag_core.system import SystemClock, SystemEntropy
from redflag_server.accounts.setup import issue_setup_link
from redflag_server.app import create_app
from redflag_server.logs import LogFormat, configure
from redflag_server.serve import serve, stop_on_signals
from redflag_server.settings import (
    DEFAULT_PORT,
    Settings,
    default_data_directory,
    default_database,
    default_metrics_token,
)
from redflag_server.start import hold_place, open_runtime

F = TypeVar("F", bound=Callable[..., Any])


def listen_options(command: F) -> F:
    """The options that say where a server listens and how it is reached."""
    options = (
        click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="Data directory."),
        click.option(
            "--database",
            "postgresql",
            metavar="URL",
            help="postgresql://USER@HOST/NAME, also in REDFLAG_DATABASE. Without: SQLite in --data.",
        ),
        click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on."),
        click.option("--port", default=DEFAULT_PORT, show_default=True, type=int, help="Port to listen on."),
        click.option("--public-url", "public_urls", multiple=True, help="URL under which it is reached."),
        click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate chain (PEM)."),
        click.option("--tls-key", type=click.Path(path_type=Path), help="Private key (PEM)."),
        click.option("--behind-tls-proxy", is_flag=True, help="A proxy in front ends TLS."),
        click.option("--trusted-proxy", "trusted_proxies", multiple=True, help="Network of such a proxy."),
        click.option(
            "--keep-errors",
            "keep_errors_days",
            default=90,
            show_default=True,
            type=int,
            metavar="DAYS",
            help="Forget errors that were not seen for so long.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def settings_from(data: Path | None, options: dict[str, Any]) -> Settings:
    """Settings from the options of `listen_options`; raises `ConfigurationError`."""
    database = options.pop("postgresql") or default_database()
    options.setdefault("metrics_token", default_metrics_token())
    return Settings(data=(data or default_data_directory()).absolute(), postgresql=database, **options)


def end_with_sentence(error: RedFlagError) -> NoReturn:
    """Say in one line why there is no server, and end with status 1."""
    click.echo(f"redflag: {error.message}", err=True)
    sys.exit(1)


@click.command("run")
@listen_options
@click.option(
    "--log-format",
    type=click.Choice([style.value for style in LogFormat]),
    default="console",
    show_default=True,
    help="How a line of the log looks.",
)
@click.option("--access-log", is_flag=True, help="Log every request: route, status, time, agent.")
def run(data: Path | None, *, log_format: str, **options: Any) -> None:
    """Run the server in the foreground until SIGTERM or Ctrl-C."""
    configure(LogFormat(log_format))
    try:
        settings = settings_from(data, options)
        with hold_place(settings):
            asyncio.run(_run(settings))
    except RedFlagError as error:
        end_with_sentence(error)


async def _run(settings: Settings) -> None:
    runtime = await open_runtime(settings, SystemClock(), SystemEntropy())
    app = create_app(settings, clock=runtime.clock, entropy=runtime.entropy, runtime=runtime)
    link = await issue_setup_link(runtime)
    stop = asyncio.Event()

    def ready() -> None:
        stop_on_signals(stop)
        click.echo(f"RedFlag serves {settings.urls[0]}")
        if link is not None:
            click.echo(f"set up the first owner (works once, for 15 minutes): {link}")

    await serve(app, settings, stop=stop, ready=ready)
