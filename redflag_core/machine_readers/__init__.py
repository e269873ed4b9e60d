"""
Readers of this machine's ids, one module for each operating system. They implement `ports.MachineIdentity`.

Those of Windows and macOS are imported on these systems only: they need libraries that others do not have.
"""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redflag_core.ports import MachineIdentity


def this_machine(platform: str = sys.platform) -> "MachineIdentity":
    """
    The reader of the machine that this runs on.

    Args:
        platform: As in `sys.platform`. Where it is neither Windows nor macOS, the files of Linux are looked for,
            and what has none of them shows no id.
    """
    if platform == "win32":
        from redflag_core.machine_readers.windows import WindowsMachine  # noqa: PLC0415  (only there)

        return WindowsMachine.load()
    if platform == "darwin":
        from redflag_core.machine_readers.macos import MacMachine  # noqa: PLC0415  (only there)

        return MacMachine.load()
    from redflag_core.machine_readers.linux import LinuxMachine  # noqa: PLC0415  (of no use elsewhere)

    return LinuxMachine()
