"""
``redflag agent``: register, run, scan, status, version.

Heavy modules are imported inside the commands: `scan` needs no HTTP, and help needs nothing.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, ParamSpec, TypeVar

import rich_click as click

from redflag_core import RedFlagError, __version__

if TYPE_CHECKING:
    from redflag_agent.settings import AgentSettings
    from redflag_core.enrolment import RegistrationToken

P = ParamSpec("P")
R = TypeVar("R")

TOKEN_VARIABLE: Final = "REDFLAG_REGISTRATION_TOKEN"  # noqa: S105  (the name of a variable)
MAX_TOKEN_BYTES: Final = 8192

EXIT_CODES: Final = """
Exit codes: 0 done, 1 failed, 2 usage or settings or data directory, 3 not registered, 4 the server refused, 5 the
server cannot be reached, 6 another agent is using the data directory.
"""


@click.group(help="The agent on this machine.", epilog=EXIT_CODES)
def main() -> None:
    """Group of the agent's commands."""


def sentences(command: Callable[P, R]) -> Callable[P, R]:
    """Expected failures end a command with one sentence and their exit code."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except RedFlagError as error:
            _end(error)

    return wrapped


def data_option(command: Callable[P, R]) -> Callable[P, R]:
    """``--data``."""
    return click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        help="Data directory. Default: /var/lib/redflag-agent for root, else in the home directory.",
    )(command)


def connection_options(command: Callable[P, R]) -> Callable[P, R]:
    """How to reach the server, and the registration token. Each wins over agent.toml in the data directory."""
    options = (
        click.option("--server", "servers", multiple=True, help="Address that replaces those of the token."),
        click.option("--proxy", help="http://HOST:PORT, https://HOST:PORT, or environment."),
        click.option("--ca-file", help="Certificate authorities (PEM) that replace the system's."),
        click.option("--tls-pin", help="sha256:HEX (server key) or ca-sha256:HEX (authority)."),
        click.option("--token-file", type=click.Path(path_type=Path), help="File with the registration token."),
        click.option("--token-stdin", is_flag=True, help="Read the registration token from standard input."),
        click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"])),
    )
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@data_option
@connection_options
@click.option("--new-identity", is_flag=True, help="Discard keys and record first: it was deleted or revoked.")
@sentences
def register(
    data: Path | None, token_file: Path | None, *, token_stdin: bool, new_identity: bool, **chosen: Any
) -> None:
    """Register this machine with a server. The token may also be in REDFLAG_REGISTRATION_TOKEN."""
    from redflag_agent.commands import register_agent  # noqa: PLC0415  (see the module)

    token = _read_token(token_file, from_stdin=token_stdin)
    if token is None:
        raise click.UsageError(f"give a registration token: --token-stdin, --token-file or {TOKEN_VARIABLE}")
    click.echo(register_agent(_data(data), _settings(data, chosen), token, anew=new_identity))


@main.command()
@data_option
@connection_options
@click.option("--interval", "intervals", multiple=True, help="SCANNER=SECONDS, such as apt=3600.")
@click.option("--once", is_flag=True, help="Scan and report once, then end.")
@click.option("--progress-json", is_flag=True, help="One JSON line for each event on standard output.")
@sentences
def run(
    data: Path | None,
    token_file: Path | None,
    *,
    token_stdin: bool,
    intervals: tuple[str, ...],
    once: bool,
    progress_json: bool,
    **chosen: Any,
) -> None:
    """Scan and report until told to stop. Registers first when a token is given and there is no record yet."""
    from redflag_agent.commands import run_agent  # noqa: PLC0415  (see the module)
    from redflag_agent.settings import parse_interval, with_intervals  # noqa: PLC0415

    settings = with_intervals(_settings(data, chosen), dict(map(parse_interval, intervals)))
    token = _read_token(token_file, from_stdin=token_stdin)
    run_agent(_data(data), settings, token, once=once, progress_json=progress_json)


@main.command()
@data_option
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@sentences
def scan(data: Path | None, as_json: bool) -> None:
    """Show what this machine lacks. Needs no server, no registration and no root."""
    from redflag_agent.commands import scan_machine, usable_scanners  # noqa: PLC0415  (see the module)

    settings = _settings(data, {})
    text, succeeded = scan_machine(settings, usable_scanners(settings), as_json=as_json)
    click.echo(text)
    sys.exit(0 if succeeded else 1)


@main.command()
@data_option
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@sentences
def status(data: Path | None, as_json: bool) -> None:
    """Show the registration, the last contact with the server, and the last scans."""
    from redflag_agent.status import read_status, show_status  # noqa: PLC0415  (see the module)

    found = read_status(_data(data))
    click.echo(show_status(found, as_json=as_json))
    sys.exit(0 if found["registered"] else 3)


@main.command()
def version() -> None:
    """Print the version."""
    click.echo(f"redflag-agent {__version__}")


def _data(data: Path | None) -> Path:
    from redflag_agent.data_dir import default_data_directory  # noqa: PLC0415  (see the module)

    return data if data is not None else default_data_directory()


def _settings(data: Path | None, chosen: dict[str, Any]) -> "AgentSettings":
    from redflag_agent.data_dir import DataDirectory  # noqa: PLC0415  (see the module)
    from redflag_agent.settings import load_settings  # noqa: PLC0415

    return load_settings(DataDirectory(_data(data)).settings, chosen)


def _read_token(path: Path | None, *, from_stdin: bool) -> "RegistrationToken | None":
    """The token given, if any. Never from the command line: everybody can read a process list."""
    from redflag_core.enrolment import parse_registration_token  # noqa: PLC0415  (see the module)

    try:
        if from_stdin:
            text = sys.stdin.read(MAX_TOKEN_BYTES)
        elif path is not None:
            text = path.read_text(encoding="utf-8")[:MAX_TOKEN_BYTES]
        else:
            text = os.environ.get(TOKEN_VARIABLE, "")
    except (OSError, UnicodeDecodeError):
        raise click.UsageError(f"cannot read a registration token from {path or 'standard input'}") from None
    return parse_registration_token(text) if text.strip() else None


def _end(error: RedFlagError) -> NoReturn:
    from redflag_agent.exits import exit_code  # noqa: PLC0415  (see the module)

    click.echo(f"redflag agent: {error.message}", err=True)
    sys.exit(exit_code(error))
