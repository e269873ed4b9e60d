"""
What the page of a machine shows of its system and storage.

Facts are the word of a machine. They are opened here and nowhere else; what is not of their shape is not shown,
and said to be so.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import ClassVar, TypeVar

import attrs

from redflag_core.errors import MalformedError
from redflag_core.scanning import (
    FULL_PERCENT,
    STORAGE,
    SYSTEM,
    EndOfLife,
    Filesystem,
    StorageFacts,
    SystemFacts,
    end_of_life,
    open_facts,
)
from redflag_server.agents.schema import AgentDetail, ScannerItem

T = TypeVar("T")


@attrs.frozen
class SystemView:
    """
    System and storage of a machine.

    Attributes:
        system: What is known of the system, None when nothing is.
        storage: What is known of the storage, None when nothing is.
        unreadable: Scanners whose facts are not of their shape.
        end: Until when its release gets fixes, None when that is not known.
        seen_at: When the system was looked at last.
    """

    system: SystemFacts | None
    storage: StorageFacts | None
    unreadable: tuple[str, ...]
    end: EndOfLife | None
    seen_at: datetime | None

    bound: ClassVar[int] = FULL_PERCENT
    """Percent from which something is full."""

    @property
    def full(self) -> list[Filesystem]:
        """File systems that run out of bytes or of inodes."""
        filesystems = () if self.storage is None else self.storage.filesystems
        return [each for each in filesystems if each.is_full or each.is_out_of_inodes]

    @property
    def booted_at(self) -> datetime | None:
        """When the kernel started."""
        if self.system is None or self.system.boot_time is None:
            return None
        return datetime.fromtimestamp(self.system.boot_time, tz=UTC)

    @property
    def uptime(self) -> str | None:
        """How long it had been running when it was looked at last; None when its clocks disagree."""
        if self.booted_at is None or self.seen_at is None or self.seen_at < self.booted_at:
            return None
        return duration(self.seen_at - self.booted_at)


def see_system(detail: AgentDetail, now: datetime) -> SystemView:
    """
    What to show of a machine.

    Args:
        detail: The machine, with the facts of its scanners.
        now: The time to count days from.
    """
    scanners = {scanner.name: scanner for scanner in detail.scanners}
    unreadable: list[str] = []
    system = _open(SystemFacts, scanners.get(SYSTEM), unreadable)
    storage = _open(StorageFacts, scanners.get(STORAGE), unreadable)
    seen_at = scanners[SYSTEM].succeeded_at if SYSTEM in scanners else None
    return SystemView(system, storage, tuple(unreadable), _end(detail.agent.os, system, now), seen_at)


def duration(length: timedelta) -> str:
    """A length of time, roughly."""
    minutes = int(length.total_seconds()) // 60
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // 1440} days"


def _open(cls: type[T], scanner: ScannerItem | None, unreadable: list[str]) -> T | None:
    if scanner is None or not scanner.facts:  # a failed scan has none
        return None
    try:
        return open_facts(cls, scanner.facts)
    except MalformedError:
        unreadable.append(scanner.name)
        return None


def _end(release: Mapping[str, str | None], system: SystemFacts | None, now: datetime) -> EndOfLife | None:
    """This server's own table first: servers are brought up to date before agents."""
    known = end_of_life(release.get("id") or "", release.get("version"), now.date())
    if known is not None or system is None or system.os_end_of_life is None:
        return known
    return system.os_end_of_life.on(now.date())
