"""
``redflag``: a dispatcher that knows no command of its own.

Each package brings its group through the entry-point group ``redflag.cli``; a group whose extra is not installed
answers with the line that installs it. Only the standard library is used here.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from redflag_core._version import __version__

GROUP: Final = "redflag.cli"

SUMMARIES: Final = {
    "up": "Server and agent on this machine, with one command",
    "server": "The server: run it, users, API keys",
    "agent": "The agent of a machine: register, run, scan, status",
    "keys": "Keys of people who approve: make one, show its public half",
    "approve": "Look through what a server asks to have approved, and sign it",
}
"""What the groups of this distribution are for; one of somebody else's is listed by its name."""

EXTRAS: Final = {"up": "server,agent"}
"""Which extra a group needs, where it is not called like the group."""

UNKNOWN_COMMAND: Final = 2
NOT_INSTALLED: Final = 3


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run ``redflag``.

    Args:
        argv: Arguments without the program name; None for those of the process.

    Returns:
        The exit code, when the command does not end the process itself.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name, *rest = arguments or ["--help"]
    groups = _groups()
    if name in ("-h", "--help", "help"):
        print(_help(sorted(groups)))
        return 0
    if name in ("-V", "--version", "version"):
        print(f"redflag {__version__}")
        return 0
    if name not in groups:
        print(f"redflag: there is no command {name!r}; redflag --help lists them", file=sys.stderr)
        return UNKNOWN_COMMAND
    return _run(name, groups[name], rest)


def _run(name: str, group: Any, arguments: list[str]) -> int:
    sys.argv = [f"redflag {name}", *arguments]
    try:
        command: Callable[[], int | None] = group.load()
        return command() or 0
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("redflag_"):
            raise
        extra = EXTRAS.get(name, name)
        print(f"redflag {name} needs more packages: pip install 'redflag-rmm[{extra}]'", file=sys.stderr)
        return NOT_INSTALLED


def _groups() -> dict[str, Any]:
    """The groups of the packages that are installed, by name. Nothing of them is imported yet."""
    from importlib.metadata import entry_points  # noqa: PLC0415  (only the command line needs it)

    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _help(names: Sequence[str]) -> str:
    rows = [(name, SUMMARIES.get(name, "")) for name in names] + [("version", "Print the version")]
    listing = "\n".join(f"  {name:<10}{summary}".rstrip() for name, summary in rows)
    title = f"redflag {__version__}: update management you can audit yourself"
    return f"{title}\n\nUsage: redflag COMMAND ...\n\n{listing}"
