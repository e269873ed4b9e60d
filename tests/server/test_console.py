"""What `redflag up` says on the console of what its agent does."""

import io

import pytest
from rich.console import Console

from redflag_server.console import UpConsole


def said(*events):
    """The console after these events."""
    output = io.StringIO()
    console = UpConsole(Console(file=output, width=200))
    for event in events:
        console.on_agent_event(event)
    return output.getvalue()


@pytest.mark.parametrize("scanner", ["storage", "system"])
def test_a_look_at_the_machine_is_no_line(scanner):
    """It happens every hour and has no packages: "0 packages, nothing pending" would be wrong and a nuisance."""
    events = [{"event": name, "scanner": scanner} for name in ("scan_started", "scan_done", "report_accepted")]

    assert "" == said(*events)


@pytest.mark.parametrize("scanner", ["apt", "storage"])
def test_a_failed_scan_is_a_line(scanner):
    """Of whatever scanner."""
    event = {"event": "scan_done", "scanner": scanner, "status": "failed", "error": "it is broken"}

    assert f"{scanner}: the scan failed: it is broken" in said(event)


def test_a_scan_of_packages_is_a_line():
    """With what is pending."""
    event = {"event": "scan_done", "scanner": "apt", "packages": 9, "by_state": {"kept_back": 2, "current": 7}}

    assert "apt: 9 packages, 2 kept back" in said(event)
