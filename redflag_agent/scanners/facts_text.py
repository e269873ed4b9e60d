"""Facts of storage and system in lines for people, as ``redflag agent scan`` prints them."""

from collections.abc import Iterator
from datetime import UTC, datetime

from redflag_core.scanning import (
    STORAGE,
    Disk,
    EndOfLife,
    Filesystem,
    ScanReport,
    StorageFacts,
    SupportKind,
    SystemFacts,
    open_facts,
)


def show_facts(report: ScanReport) -> list[str]:
    """Lines for a successful report of one of the scanners that report facts."""
    if report.scanner == STORAGE:
        lines = list(_storage(open_facts(StorageFacts, report.facts)))
    else:
        today = datetime.fromtimestamp(report.taken_at, tz=UTC)
        lines = list(_system(open_facts(SystemFacts, report.facts), today))
    return [
        f"{report.scanner}:",
        *(f"  {line}" for line in lines),
        *(f"warning: {text}" for text in report.warnings),
    ]


def _storage(facts: StorageFacts) -> Iterator[str]:
    yield from (_filesystem(filesystem) for filesystem in facts.filesystems)
    yield from (_disk(disk) for disk in facts.disks)


def _filesystem(filesystem: Filesystem) -> str:
    place = f"{filesystem.mount}  {filesystem.type} on {filesystem.device}"
    if filesystem.problem is not None:
        return f"{place}: {filesystem.problem}"
    marks = ["read-only"] if filesystem.read_only else []
    marks += ["FULL"] if filesystem.is_full else []
    marks += ["OUT OF INODES"] if filesystem.is_out_of_inodes else []
    inodes = "" if filesystem.inode_percent is None else f", {filesystem.inode_percent} % of its inodes"
    free = "" if filesystem.free is None else f", {_size(filesystem.free)} free"
    used = "?" if filesystem.percent is None else filesystem.percent
    return f"{place}: {used} % used{free}{inodes}" + "".join(f", {mark}" for mark in marks)


def _disk(disk: Disk) -> str:
    facts = [
        "" if disk.size is None else _size(disk.size),
        "rotational" if disk.rotational else "",
        disk.model or "",
    ]
    return f"disk {disk.name}: {', '.join(filter(None, facts)) or 'nothing known'}"


def _system(facts: SystemFacts, today: datetime) -> Iterator[str]:
    if facts.cpu is not None:
        cores = "" if facts.cpu.physical is None else f", {facts.cpu.physical} cores"
        yield f"processor: {facts.cpu.model or 'not known'}, {facts.cpu.logical or '?'} CPUs{cores}"
    if facts.load is not None:
        yield f"load: {' '.join(f'{load:.1f}' for load in facts.load)}"
    if facts.memory is not None:
        used = "" if facts.memory.percent is None else f", {facts.memory.percent} % used"
        limit = "" if facts.memory.limit is None else f"; this container may use {_size(facts.memory.limit)}"
        yield f"memory: {_size(facts.memory.total)}{used}{limit}"
    if facts.swap is not None and facts.swap.total:
        yield f"swap: {_size(facts.swap.used)} of {_size(facts.swap.total)} used"
    if facts.boot_time is not None:
        yield f"started: {datetime.fromtimestamp(facts.boot_time, tz=UTC).isoformat()}"
    yield f"support: {_support(None if facts.os_end_of_life is None else facts.os_end_of_life.on(today.date()))}"


def _support(end: EndOfLife | None) -> str:
    if end is None:
        return "how long this release gets fixes is not known"
    kind = "long-term support" if end.kind is SupportKind.LONG_TERM else "standard support"
    paid = "" if end.lifespan.paid is None else f"; with a subscription until {end.lifespan.paid}"
    if end.is_past:
        return f"ENDED: {kind} ended on {end.date}{paid}"
    return f"{kind} until {end.date}, {end.days_left} days left{paid}"


def _size(number: int) -> str:
    amount = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
