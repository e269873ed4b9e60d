"""
The system scanner: processors, load, memory, boot time, and until when the release gets fixes. Facts only.

What cannot be read is absent and named in a warning. Loads, memory and the number of processes are rounded, and
the uptime is not told at all (it follows from the boot time): otherwise each scan would be news.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import attrs

from redflag_agent import host
from redflag_agent.scanners.proc_files import cpu_model, is_guest, memory_limit, read_cpuinfo
from redflag_core.errors import ScanError
from redflag_core.ports import Clock
from redflag_core.scanning import (
    SYSTEM,
    Cpu,
    Lifespan,
    Memory,
    ScanReport,
    ScanStatus,
    Swap,
    SystemFacts,
    facts_of,
    known_lifespan,
    rounded,
    stated_lifespan,
)

T = TypeVar("T")

MEMORY_STEPS: Final = 64
"""Memory is told to about one and a half percent: it never stands still."""

MAX_PROCESSES: Final = 2**22
"""Most processes that Linux can number; what their number is rounded against."""


@attrs.define(kw_only=True)
class SystemScanner:
    """
    `redflag_core.scanning.Scanner` for the machine itself.

    Args:
        clock: For times in the report, and to know what day it is.
        proc: Where procfs is mounted.
        cgroup: Where control groups are mounted.
    """

    name: ClassVar[str] = SYSTEM
    manager: ClassVar[str] = SYSTEM

    clock: Clock
    proc: Path = Path("/proc")
    cgroup: Path = Path("/sys/fs/cgroup")

    async def scan(self) -> ScanReport:
        """
        Look now.

        Raises:
            ScanError: Nothing can be read.
        """
        taken_at, started = self.clock.now(), self.clock.monotonic()
        facts, missing = self._facts()
        return ScanReport(
            scanner=self.name,
            manager=self.manager,
            taken_at=int(taken_at.timestamp()),
            duration_ms=int((self.clock.monotonic() - started) * 1000),
            status=ScanStatus.OK,
            warnings=tuple(f"{what} cannot be read" for what in missing),
            facts=facts_of(facts),
        )

    def _facts(self) -> tuple[SystemFacts, list[str]]:
        import psutil  # noqa: PLC0415  (most commands need none of it)

        reading = _Reading()
        cpuinfo = read_cpuinfo(self.proc)
        facts = SystemFacts(
            cpu=reading.of("the processors", lambda: _cpu(psutil, cpuinfo)),
            load=reading.of("the load", lambda: _load(psutil)),
            memory=reading.of("the memory", lambda: _memory(psutil, self.cgroup)),
            swap=reading.of("the swap space", lambda: _swap(psutil)),
            boot_time=reading.of("the boot time", lambda: int(psutil.boot_time())),
            processes=reading.of("the processes", lambda: rounded(len(psutil.pids()), MAX_PROCESSES)),
            virtual_machine=is_guest(cpuinfo),
        )
        if facts == SystemFacts():
            raise ScanError("nothing of this system can be read: is /proc mounted?")
        return attrs.evolve(facts, os_end_of_life=self._end_of_life()), reading.missing

    def _end_of_life(self) -> Lifespan | None:
        release, today = host.operating_system(), self.clock.now().date()
        return known_lifespan(release.id, release.version, today) or stated_lifespan(host.support_end())


@attrs.frozen
class _Reading:
    """Reads one thing after the other, and remembers which could not be read."""

    missing: list[str] = attrs.field(factory=list)

    def of(self, what: str, read: Callable[[], T | None]) -> T | None:
        """What *read* returns, or None."""
        try:
            with warnings.catch_warnings():  # psutil tells on standard error what a container does not show
                warnings.simplefilter("ignore")
                return read()
        except Exception:  # psutil raises whatever comes of a file that is missing, hidden or of another form
            self.missing.append(what)
            return None


def _cpu(psutil: Any, cpuinfo: str) -> Cpu | None:
    cpu = Cpu(model=cpu_model(cpuinfo), logical=psutil.cpu_count(), physical=psutil.cpu_count(logical=False))
    return None if cpu == Cpu() else cpu


def _load(psutil: Any) -> tuple[float, float, float]:
    one, five, fifteen = psutil.getloadavg()
    return round(one, 1), round(five, 1), round(fifteen, 1)


def _memory(psutil: Any, cgroup: Path) -> Memory:
    memory = psutil.virtual_memory()
    available = rounded(memory.available, memory.total, steps=MEMORY_STEPS)
    return Memory(total=memory.total, available=available, limit=memory_limit(cgroup, memory.total))


def _swap(psutil: Any) -> Swap:
    swap = psutil.swap_memory()
    return Swap(total=swap.total, used=rounded(swap.used, swap.total, steps=MEMORY_STEPS))
