"""
What the scanners of storage and system say, and how full is too full.

These facts travel as JSON in a report. A scanner makes them with `facts_of`; whoever shows them opens them with
`open_facts`, in one place, because they are the word of a machine. A value that could not be read is absent, never
0. Sizes are bytes, times unix seconds.
"""

from typing import Any, Final, TypeVar

import attrs
from attrs import validators

from redflag_core import codec
from redflag_core._fields import MOMENT, count, line
from redflag_core.encoding import JsonValue
from redflag_core.scanning.lifespan import Lifespan

Facts = TypeVar("Facts")

STORAGE: Final = "storage"
SYSTEM: Final = "system"

FACT_SCANNERS: Final = frozenset({STORAGE, SYSTEM})
"""Scanners that report facts and no packages: that one of them worked says nothing about updates."""

MAX_FILESYSTEMS: Final = 64
MAX_DISKS: Final = 64
"""Most disks, and most file systems, in a report: more than a page can show. A large server has about 30."""

MAX_PATH: Final = 256
"""Longest mount point, device or model: `PATH_MAX` is 4096, but nobody reads that."""

MAX_TYPE: Final = 64
"""Longest type of a file system or name of a disk."""

MAX_LOAD: Final = 1e6
"""Largest load average: above any real one, and short enough to show."""

FULL_PERCENT: Final = 90
"""Percent used, of bytes or of inodes, from which a file system counts as full: time is left to make room."""

STEPS: Final = 1024
"""A measured value is told to a thousandth of the whole: finer changes are no news."""


def percent_used(used: int, free: int) -> int | None:
    """
    How full it is, rounded up as df does; None of nothing.

    Args:
        used: What is taken.
        free: What can still be taken; what is reserved for root counts as neither.
    """
    whole = used + free
    return None if whole == 0 else -(-100 * used // whole)


def rounded(value: int, whole: int, *, steps: int = STEPS) -> int:
    """
    Round a measured value so that it changes only when a person would see it.

    Args:
        value: What was measured, in any unit.
        whole: What it is a part of, in the same unit.
        steps: The coarsest step is *whole* / *steps*; a small value is rounded to a sixteenth of itself.

    Returns:
        The nearest multiple of a power of two, at most *whole*.
    """
    finest = max(1, min(whole // steps, value // 16))
    step: int = 1 << (finest.bit_length() - 1)
    return min((value + step // 2) // step * step, whole)


_NUMBER: Final[Any] = validators.optional(count())
_LOAD: Final[Any] = validators.and_(
    validators.min_len(3),
    validators.max_len(3),
    validators.deep_iterable(validators.and_(validators.ge(0.0), validators.le(MAX_LOAD))),
)


@attrs.frozen(kw_only=True)
class Filesystem:
    """
    One file system.

    Attributes:
        mount: Where it is mounted.
        device: What is mounted: a device, or the share of a server.
        type: Such as ``ext4`` or ``nfs4``.
        read_only: Whether nothing can be written to it.
        problem: Why there are no numbers, for people; None when there are.
        size: Bytes.
        used: Bytes in use.
        free: Bytes that users can still take; less than *size* minus *used* where root has a reserve.
        inodes: Number of inodes; absent where the type has no fixed number.
        inodes_used: Inodes in use.
    """

    mount: str = attrs.field(validator=line(MAX_PATH))
    device: str = attrs.field(validator=line(MAX_PATH))
    type: str = attrs.field(validator=line(MAX_TYPE))
    read_only: bool = False
    problem: str | None = attrs.field(default=None, validator=validators.optional(line(MAX_PATH)))
    size: int | None = attrs.field(default=None, validator=_NUMBER)
    used: int | None = attrs.field(default=None, validator=_NUMBER)
    free: int | None = attrs.field(default=None, validator=_NUMBER)
    inodes: int | None = attrs.field(default=None, validator=_NUMBER)
    inodes_used: int | None = attrs.field(default=None, validator=_NUMBER)

    @property
    def percent(self) -> int | None:
        """Percent of its bytes in use, None when not known."""
        return None if self.used is None or self.free is None else percent_used(self.used, self.free)

    @property
    def inode_percent(self) -> int | None:
        """Percent of its inodes in use, None when not known or not limited."""
        if self.inodes is None or self.inodes_used is None:
            return None
        return percent_used(self.inodes_used, max(0, self.inodes - self.inodes_used))

    @property
    def is_full(self) -> bool:
        """Whether its bytes are at `FULL_PERCENT`. What cannot be written to is no alarm."""
        return not self.read_only and self.percent is not None and self.percent >= FULL_PERCENT

    @property
    def is_out_of_inodes(self) -> bool:
        """The same for its inodes."""
        share = self.inode_percent
        return not self.read_only and share is not None and share >= FULL_PERCENT


@attrs.frozen(kw_only=True)
class Disk:
    """
    One disk that this machine sees.

    Attributes:
        name: As the kernel names it.
        size: Bytes.
        rotational: Whether it turns, or says so: virtual disks often claim it.
        model: As the maker names it.
    """

    name: str = attrs.field(validator=line(MAX_TYPE))
    size: int | None = attrs.field(default=None, validator=_NUMBER)
    rotational: bool | None = None
    model: str | None = attrs.field(default=None, validator=validators.optional(line(MAX_PATH)))


@attrs.frozen(kw_only=True)
class StorageFacts:
    """
    What the storage scanner says.

    Attributes:
        filesystems: Those that hold data: no pseudo file systems, none in memory, no images, each device once.
        disks: Disks, without partitions and what is stacked on them.
    """

    filesystems: tuple[Filesystem, ...] = attrs.field(default=(), validator=validators.max_len(MAX_FILESYSTEMS))
    disks: tuple[Disk, ...] = attrs.field(default=(), validator=validators.max_len(MAX_DISKS))


@attrs.frozen(kw_only=True)
class Cpu:
    """
    The processors.

    Attributes:
        model: As the maker names it.
        logical: Number of CPUs that the kernel schedules on.
        physical: Number of cores.
    """

    model: str | None = attrs.field(default=None, validator=validators.optional(line(MAX_PATH)))
    logical: int | None = attrs.field(default=None, validator=_NUMBER)
    physical: int | None = attrs.field(default=None, validator=_NUMBER)


@attrs.frozen(kw_only=True)
class Memory:
    """
    The memory.

    Attributes:
        total: Bytes that the kernel has.
        available: Bytes that programs can take without swapping.
        limit: Bytes that this container may use, absent where it is not limited.
    """

    total: int = attrs.field(validator=count())
    available: int | None = attrs.field(default=None, validator=_NUMBER)
    limit: int | None = attrs.field(default=None, validator=_NUMBER)

    @property
    def percent(self) -> int | None:
        """Percent in use, None when not known."""
        if self.available is None:
            return None
        return percent_used(max(0, self.total - self.available), self.available)


@attrs.frozen(kw_only=True)
class Swap:
    """
    The swap space.

    Attributes:
        total: Bytes; 0 when there is none.
        used: Bytes in use.
    """

    total: int = attrs.field(validator=count())
    used: int = attrs.field(validator=count())


@attrs.frozen(kw_only=True)
class SystemFacts:
    """
    What the system scanner says. The uptime is not in it: it follows from the boot time and would always be news.

    Attributes:
        cpu: The processors.
        load: Load averages over 1, 5 and 15 minutes.
        memory: The memory.
        swap: The swap space.
        boot_time: When the kernel started.
        processes: About how many there are.
        virtual_machine: Whether the processor says that it is one of a guest.
        os_end_of_life: Until when the release gets fixes, as the agent knows it.
    """

    cpu: Cpu | None = None
    load: tuple[float, ...] | None = attrs.field(default=None, validator=validators.optional(_LOAD))
    memory: Memory | None = None
    swap: Swap | None = None
    boot_time: int | None = attrs.field(default=None, validator=validators.optional(MOMENT))
    processes: int | None = attrs.field(default=None, validator=_NUMBER)
    virtual_machine: bool | None = None
    os_end_of_life: Lifespan | None = None


def facts_of(value: StorageFacts | SystemFacts) -> dict[str, JsonValue]:
    """The facts of a report: what is not known is left out."""
    facts: dict[str, JsonValue] = _without_none(codec.unstructure(value))
    return facts


def open_facts(cls: type[Facts], facts: JsonValue) -> Facts:
    """
    Read the facts of a report.

    Args:
        cls: `StorageFacts` or `SystemFacts`.
        facts: Untrusted.

    Raises:
        MalformedError: They are not of that shape.
    """
    return codec.structure(cls, facts)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
