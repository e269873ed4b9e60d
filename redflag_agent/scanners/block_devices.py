"""
The disks that Linux sees, from sysfs: no device is opened.

Source: the kernel's Documentation/ABI on ``/sys/block``.
"""

import re
from pathlib import Path
from typing import Final

from redflag_core.encoding import MAX_INTEGER
from redflag_core.scanning import Disk, clean_text
from redflag_core.scanning.facts import MAX_PATH, MAX_TYPE

SECTOR: Final = 512
"""Bytes that sysfs counts sizes in, whatever the sectors of the disk are."""

MAX_ATTRIBUTE: Final = 4096
"""Most that is read of a file: a page, which is all that sysfs gives."""

_NO_DISK: Final = re.compile(r"(?:fd|sr)\d+|mmcblk\d+(?:boot|rpmb)\d*")
"""Floppy and optical drives, and the hidden parts of memory cards."""


def disks(sysfs: Path = Path("/sys")) -> list[Disk]:
    """
    The disks, in the order of their names: what has hardware behind it, so no loop device, RAID or volume.

    Args:
        sysfs: Where sysfs is mounted. A container may see none, or those of its host.
    """
    try:
        entries = sorted((sysfs / "block").iterdir())
    except OSError:
        return []
    found = [_disk(entry) for entry in entries if _is_disk(entry)]
    return [disk for disk in found if disk.size != 0]  # a card reader without a card


def _is_disk(entry: Path) -> bool:
    hidden = _text(entry / "hidden") == "1"  # one path of a disk that is reached by several
    return (entry / "device").exists() and not hidden and not _NO_DISK.fullmatch(entry.name)


def _disk(entry: Path) -> Disk:
    sectors, model = _number(entry / "size"), _text(entry / "device" / "model")
    rotational = _text(entry / "queue" / "rotational")
    return Disk(
        name=clean_text(entry.name, max_len=MAX_TYPE),
        size=None if sectors is None or sectors * SECTOR > MAX_INTEGER else sectors * SECTOR,
        rotational=None if rotational is None else rotational == "1",
        model=None if model is None else clean_text(model, max_len=MAX_PATH),
    )


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(MAX_ATTRIBUTE).decode(errors="replace").strip() or None
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.isascii() and text.isdigit() else None
