"""The agent at rest: memory and CPU of a real process that checked in, scanned and waits."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.beds.apt import AptBed
from tests.e2e.test_agent_process import Installation, agent_directory, run_agent
from tests.helpers.processes import free_port, server

SECONDS = 60


def measure() -> Iterator[str]:
    """Resident memory after a scan, and CPU over a minute without one."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        bed = AptBed.build(place / "bed")
        installation = Installation(place, free_port())
        data = agent_directory(place / "agent", bed)
        with (
            server(installation.data, int(installation.url.rpartition(":")[2])),
            run_agent(data, installation.token()) as agent,
        ):
            agent.event("report_accepted")
            before = _cpu_seconds(agent.process.pid)
            time.sleep(SECONDS)
            used = _cpu_seconds(agent.process.pid) - before
            status = Path(f"/proc/{agent.process.pid}/status").read_text(encoding="ascii")
    memory = {
        line.split(":")[0]: int(line.split()[1]) / 1024 for line in status.splitlines() if line.endswith("kB")
    }
    yield f"resident {memory['VmRSS']:.1f} MiB, peak {memory['VmHWM']:.1f} MiB (to reach: 48 MiB)"
    yield f"CPU {100 * used / SECONDS:.3f} % of a core over {SECONDS} s of check-ins (to reach: 0.1 %)"


def _cpu_seconds(pid: int) -> float:
    import os

    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
