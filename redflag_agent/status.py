"""What ``redflag agent status`` shows: read from the data directory, without secrets and without the server."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs

from redflag_agent.data_dir import DataDirectory
from redflag_agent.database import Database
from redflag_agent.outbox import LAST_CHECK_IN, Outbox
from redflag_agent.state import AgentState, StateFile
from redflag_core.scanning import FACT_SCANNERS


def read_status(data: Path) -> dict[str, Any]:
    """
    The agent in *data* as JSON values; nothing is written.

    Raises:
        RedFlagError: A file cannot be read or is damaged.
    """
    directory = DataDirectory(data)
    return {
        **_registration(StateFile.open(directory.state).state),
        "data": str(data),
        "running": directory.is_locked(),
        **_outbox(directory.outbox),
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
    ]
    return "\n".join([*lines, *(_show_scan(scan) for scan in status["scans"])])


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


def _outbox(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"last_check_in": None, "waiting": [], "scans": []}
    with Database.open(path) as database:
        outbox = Outbox(database)
        return {
            "last_check_in": outbox.noted(LAST_CHECK_IN),
            "waiting": list(outbox.pending()),
            "scans": [attrs.asdict(run) for run in outbox.runs()],
        }


def _show_scan(scan: dict[str, Any]) -> str:
    states = ", ".join(f"{count} {state}" for state, count in sorted(scan["states"].items()))
    nothing = "done" if scan["scanner"] in FACT_SCANNERS else "nothing installed"
    outcome = states or nothing if scan["status"] == "ok" else f"failed: {scan['error']}"
    return f"scan {scan['scanner']}: {_moment(scan['taken_at'])}: {outcome}"


def _moment(seconds: int | None) -> str:
    return "never" if seconds is None else datetime.fromtimestamp(seconds, tz=UTC).isoformat()
