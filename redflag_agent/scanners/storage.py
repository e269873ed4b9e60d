"""
The storage scanner: file systems with how full they are, and disks. Facts only; it knows no packages.

Numbers are rounded before they are told (`redflag_core.scanning.rounded`), so that a machine on which nothing
happens has nothing to report. A file system that does not answer is told as such; it never holds up the scan.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Final

import attrs

from redflag_agent.scanners.block_devices import disks
from redflag_agent.scanners.filesystems import Asker, Measure, mount_table
from redflag_agent.scanners.mounts import Mount, data_mounts
from redflag_core.encoding import MAX_INTEGER, dump_json
from redflag_core.errors import ScanError
from redflag_core.ports import Clock
from redflag_core.scanning import (
    MAX_TEXT,
    STORAGE,
    Filesystem,
    ScanReport,
    ScanStatus,
    StorageFacts,
    clean_text,
    facts_of,
    rounded,
)
from redflag_core.scanning.facts import MAX_DISKS, MAX_FILESYSTEMS, MAX_PATH, MAX_TYPE
from redflag_core.scanning.model import MAX_FACTS_BYTES

SILENT: Final = "does not answer"


@attrs.define(kw_only=True)
class StorageScanner:
    """
    `redflag_core.scanning.Scanner` for disks and file systems.

    Not for concurrent scans; one after the other.

    Args:
        clock: For times in the report.
        mounts: Reads the mount table.
        ask: Asks a file system for its numbers.
        sysfs: Where sysfs is mounted.
    """

    name: ClassVar[str] = STORAGE
    manager: ClassVar[str] = STORAGE

    clock: Clock
    mounts: Callable[[], Sequence[Mount]] = mount_table
    ask: Asker = attrs.field(factory=Asker)
    sysfs: Path = Path("/sys")

    async def scan(self) -> ScanReport:
        """
        Look now.

        Raises:
            ScanError: The mount table cannot be read.
        """
        taken_at, started = self.clock.now(), self.clock.monotonic()
        mounts = data_mounts(self._mount_table())
        found = [await self._filesystem(mount) for mount in mounts[:MAX_FILESYSTEMS]]
        filesystems = tuple(filesystem for filesystem in found if filesystem is not None)
        seen = disks(self.sysfs)
        facts = _fit(StorageFacts(filesystems=filesystems, disks=tuple(seen[:MAX_DISKS])))
        left_out = len(mounts[MAX_FILESYSTEMS:]) + len(filesystems) - len(facts.filesystems)
        return ScanReport(
            scanner=self.name,
            manager=self.manager,
            taken_at=int(taken_at.timestamp()),
            duration_ms=int((self.clock.monotonic() - started) * 1000),
            status=ScanStatus.OK,
            warnings=_warnings(facts, left_out, len(seen) - len(facts.disks)),
            facts=facts_of(facts),
        )

    def _mount_table(self) -> Sequence[Mount]:
        try:
            return self.mounts()
        except OSError as error:
            raise ScanError(f"the mount table cannot be read: {error.strerror}") from error

    async def _filesystem(self, mount: Mount) -> Filesystem | None:
        """What is told of a mount; None when it is none of a whole file system, or gone by now."""
        try:
            measured = await self.ask(mount.path)
        except FileNotFoundError:
            return None
        except TimeoutError:
            return attrs.evolve(_named(mount), problem=SILENT)
        except OSError as error:
            problem = clean_text(f"cannot be read: {error.strerror}", max_len=MAX_PATH)
            return attrs.evolve(_named(mount), problem=problem)
        return None if measured is None else _measured(_named(mount), measured)


def _named(mount: Mount) -> Filesystem:
    return Filesystem(
        mount=clean_text(mount.path, max_len=MAX_PATH),
        device=clean_text(mount.device, max_len=MAX_PATH) or "none",
        type=clean_text(mount.type, max_len=MAX_TYPE) or "unknown",
        read_only=mount.read_only,
    )


def _measured(filesystem: Filesystem, measured: Measure) -> Filesystem:
    if measured.size > MAX_INTEGER:
        return attrs.evolve(filesystem, problem="has no size of its own")  # object stores claim an endless one
    known = attrs.evolve(
        filesystem,
        size=measured.size,
        used=rounded(measured.used, measured.size),
        free=rounded(measured.free, measured.size),
    )
    if measured.inodes is None or measured.inodes_used is None or measured.inodes > MAX_INTEGER:
        return known
    inodes_used = rounded(measured.inodes_used, measured.inodes)
    return attrs.evolve(known, inodes=measured.inodes, inodes_used=inodes_used)


def _fit(facts: StorageFacts) -> StorageFacts:
    """As much of *facts* as a report holds; how full something is says more than which disks there are."""
    while len(dump_json(facts_of(facts))) > MAX_FACTS_BYTES:
        if facts.disks:
            facts = attrs.evolve(facts, disks=facts.disks[:-1])
        else:
            facts = attrs.evolve(facts, filesystems=facts.filesystems[:-1])
    return facts


def _warnings(facts: StorageFacts, filesystems_left_out: int, disks_left_out: int) -> tuple[str, ...]:
    troubled = [each for each in facts.filesystems if each.problem is not None]
    counts = ((filesystems_left_out, "file systems"), (disks_left_out, "disks"))
    texts = [
        *(f"{each.mount} ({each.device}) {each.problem}" for each in troubled),
        *(
            f"{number} more {what} are left out: a report has no room for them"
            for number, what in counts
            if number
        ),
    ]
    return tuple(clean_text(text, max_len=MAX_TEXT) for text in texts)
