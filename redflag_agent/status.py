"""What ``redflag agent status`` shows: read from the data directory, without secrets and without the server."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import attrs

from redflag_agent.data_dir import DataDirectory
from redflag_agent.database import Database
from redflag_agent.executor.journal import Entry, Journal, Kept
from redflag_agent.limits_file import read_limits
from redflag_agent.outbox import LAST_CHECK_IN, Outbox, Refusal
from redflag_agent.state import AgentState, StateFile
from redflag_core import codec
from redflag_core.errors import LimitError
from redflag_core.scanning import FACT_SCANNERS

COMMANDS_SHOWN: Final = 10
"""Commands that are listed, the newest first: what fits on a page. The server has all of them."""

STATEMENTS_SHOWN: Final = 500
"""Undelivered statements that are listed: as many as there can be before the executor takes no more commands."""


def read_status(data: Path) -> dict[str, Any]:
    """
    The agent in *data* as JSON values; nothing is written.

    Raises:
        RedFlagError: A file cannot be read or is damaged.
    """
    directory = DataDirectory(data)
    commands, statements = _journal(directory.journal)
    return {
        **_registration(StateFile.open(directory.state).state),
        "data": str(data),
        "running": directory.is_locked(),
        "commands": commands,
        **_limits(directory.limits),
        **_outbox(directory.outbox, statements),
    }


def show_status(status: dict[str, Any], *, as_json: bool) -> str:
    """The text to print."""
    if as_json:
        return json.dumps(status, indent=2, sort_keys=True, ensure_ascii=False)
    lines = [
        f"registered: {status['agent_id'] or 'no'}",
        f"running: {'yes' if status['running'] else 'no'}",
        f"server: {', '.join(status['addresses']) or '-'}",
        f"status: {status['status'] or '-'}" + (f" ({status['detail']})" if status["detail"] else ""),
        f"last check-in: {_moment(status['last_check_in'])}",
        f"reports waiting: {', '.join(status['waiting']) or 'none'}",
        f"statements waiting: {len(status['statements']) or 'none'}",
        f"limits: {_show_limits(status)}",
    ]
    return "\n".join(
        [
            *lines,
            *(_show_refused(statement) for statement in status["statements"] if statement["refused"]),
            *(_show_command(command) for command in status["commands"]),
            *(_show_scan(scan) for scan in status["scans"]),
        ]
    )


def _registration(state: AgentState) -> dict[str, Any]:
    registration, pins = state.registration, state.pins
    return {
        "registered": registration is not None,
        "agent_id": registration.agent_id if registration else None,
        "organization": registration.organization if registration else None,
        "server": pins.server if pins else None,
        "root_fp": pins.root_fp if pins else None,
        "addresses": list(pins.addresses) if pins else [],
        "status": state.status,
        "detail": state.status_detail,
        "bundle_version": state.bundle_version,
        "epoch": state.bundle_epoch,
        "machine_id_replaced": state.replace_machine_id,
    }


def _journal(path: Path) -> tuple[list[dict[str, Any]], Sequence[Kept]]:
    """The last commands, and what the executor stated and the server has not got."""
    if not path.exists():
        return [], ()
    with Journal.open(path) as journal, journal.page() as page:
        commands = [_command(entry) for entry in page.latest(COMMANDS_SHOWN)]
        return commands, page.undelivered(STATEMENTS_SHOWN)


def _command(entry: Entry) -> dict[str, Any]:
    shown = ("cmd_id", "type", "state", "outcome", "code", "started_at", "ended_at")
    return {name: getattr(entry, name) for name in shown}


def _limits(path: Path) -> dict[str, Any]:
    """What the owner of this machine allows; why nothing is changed when their file is of no use."""
    try:
        return {"limits": codec.unstructure(read_limits(path)), "limits_error": None}
    except LimitError as error:
        return {"limits": None, "limits_error": error.message}


def _outbox(path: Path, statements: Sequence[Kept]) -> dict[str, Any]:
    if not path.exists():
        return {"last_check_in": None, "waiting": [], "statements": [], "scans": []}
    with Database.open(path) as database:
        outbox = Outbox(database)
        return {
            "last_check_in": outbox.noted(LAST_CHECK_IN),
            "waiting": list(outbox.pending()),
            "statements": [_statement(kept, outbox.refusal(kept.envelope)) for kept in statements],
            "scans": [attrs.asdict(run) for run in outbox.runs()],
        }


def _statement(kept: Kept, refusal: Refusal | None) -> dict[str, Any]:
    return {
        "cmd_id": kept.cmd_id,
        "refused": refusal.code if refusal else None,
        "refused_at": refusal.at if refusal else None,
    }


def _show_limits(status: dict[str, Any]) -> str:
    limits = status["limits"]
    if limits is None:
        return str(status["limits_error"])
    if not limits["changes"]:
        return "no changes"
    managers = "any package manager" if limits["managers"] is None else ", ".join(limits["managers"]) or "none"
    windows = f"in {len(limits['windows'])} windows" if limits["windows"] else "at any time"
    return f"{limits['starts_per_day']} changes a day with {managers}, {windows}"


def _show_refused(statement: dict[str, Any]) -> str:
    when = _moment(statement["refused_at"])
    return f"statement about {statement['cmd_id']}: the server refused it at {when} ({statement['refused']})"


def _show_command(command: dict[str, Any]) -> str:
    outcome = command["outcome"] or command["state"]
    why = f" ({command['code']})" if command["code"] else ""
    when = _moment(command["ended_at"] or command["started_at"]) if command["started_at"] else "not started"
    return f"command {command['type'] or '?'} {command['cmd_id']}: {outcome}{why}: {when}"


def _show_scan(scan: dict[str, Any]) -> str:
    states = ", ".join(f"{count} {state}" for state, count in sorted(scan["states"].items()))
    nothing = "done" if scan["scanner"] in FACT_SCANNERS else "nothing installed"
    outcome = states or nothing if scan["status"] == "ok" else f"failed: {scan['error']}"
    return f"scan {scan['scanner']}: {_moment(scan['taken_at'])}: {outcome}"


def _moment(seconds: int | None) -> str:
    return "never" if seconds is None else datetime.fromtimestamp(seconds, tz=UTC).isoformat()
