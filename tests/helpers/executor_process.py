"""
An executor in a process of its own, to be killed: ``python -m tests.helpers.executor_process PATH [WIRE ...]``.

It opens what is in PATH, executes each command in a file WIRE, works until nothing is left to do, and ends. On its
standard output it says ``working`` once it has executed everything. A directory of apt's tools in the environment
variable ``APT_BIN`` makes it patch with apt.
"""

import asyncio
import os
import sys
from pathlib import Path

from redflag_agent.installers.apt import AptInstaller
from redflag_core.testing import FrozenClock
from tests.helpers.executors import Issuer, bench


async def main(path: Path, wires: list[Path]) -> None:
    """Execute, work, end."""
    tools = os.environ.get("APT_BIN")
    installers = None if tools is None else [AptInstaller(path_prefix=Path(tools))]
    with bench(path, Issuer(FrozenClock()), installers=installers) as desk:
        for wire in wires:
            await desk.commander.execute(wire.read_bytes())
        print("working", flush=True)
        await desk.work_off()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), [Path(text) for text in sys.argv[2:]]))
