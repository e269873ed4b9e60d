"""The agent at rest: memory and CPU of a real process that checked in, scanned and waits."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.beds.apt import AptBed
from tests.e2e.test_agent_process import Installation, agent_directory, run_agent
from tests.helpers.processes import free_port, server

SECONDS = 120
"""Two check-ins at the default pace."""


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
            agent.event("report_accepted", scanner="apt")
            before = _cpu_seconds(agent.process.pid)
            time.sleep(SECONDS)
            used = _cpu_seconds(agent.process.pid) - before
            status = Path(f"/proc/{agent.process.pid}/status").read_text(encoding="ascii")
    sizes = [line.split() for line in status.splitlines() if line.endswith("kB")]
    memory = {name.rstrip(":"): int(kib) / 1024 for name, kib, _ in sizes}
    yield f"resident {memory['VmRSS']:.1f} MiB, peak {memory['VmHWM']:.1f} MiB (to reach: 48 MiB)"
    yield f"CPU {100 * used / SECONDS:.3f} % of a core over {SECONDS} s with about two check-ins (to reach: 0.1 %)"


def _cpu_seconds(pid: int) -> float:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9
