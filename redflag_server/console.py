"""What `redflag up` says on the console: a few aligned lines, the same facts again when they change."""

from typing import Any, Final

import attrs
from rich.console import Console
from rich.text import Text

from redflag_core.scanning import FACT_SCANNERS

STATES: Final = ("available", "kept_back", "held", "phased")


@attrs.define
class UpConsole:
    """
    Lines of `redflag up`.

    Args:
        console: Where they go.
    """

    console: Console
    _last: str = attrs.field(default="", init=False)

    def say(self, subject: str, text: str, style: str = "") -> None:
        """One line: a subject and what there is to say of it. The same line twice in a row is said once."""
        line = f"{subject}\0{text}"
        if line == self._last:
            return
        self._last = line
        self.console.print(Text.assemble((f"  {subject:<11}", "bold"), (text, style)), soft_wrap=True)

    def on_agent_event(self, event: dict[str, Any]) -> None:
        """Say what the local agent does. Events that are of no use on a console are passed over."""
        name = event.get("event")
        if event.get("scanner") in FACT_SCANNERS and event.get("status", "ok") == "ok":
            return
        if name == "registered":
            self.say("agent", "this machine is registered")
        elif name == "scan_started":
            self.say("agent", f"scanning {event.get('scanner')} ...")
        elif name == "scan_done":
            self.say("agent", scan_sentence(event), "green" if event.get("status", "ok") == "ok" else "red")
        elif name == "report_accepted":
            self.say("agent", f"{event.get('scanner')}: reported, see the dashboard")
        elif name == "error":
            self.say("agent", str(event.get("detail", "an error: see the log")), "yellow")
        elif name == "stopped":
            self.say("agent", f"ended by itself (exit code {event['code']}), starting again", "red")


def scan_sentence(event: dict[str, Any]) -> str:
    """What a scan found, in one sentence."""
    if event.get("status", "ok") != "ok":
        return f"{event.get('scanner')}: the scan failed: {event.get('error', 'see the log')}"
    by_state = event.get("by_state") or {}
    parts = [f"{by_state[state]} {state.replace('_', ' ')}" for state in STATES if by_state.get(state)]
    pending = ", ".join(parts) or "nothing pending"
    return f"{event.get('scanner')}: {event.get('packages', 0)} packages, {pending}"
