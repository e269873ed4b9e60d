"""
The ids of a Linux machine, from files only: no command is run and no device is opened.

Sources: machine-id(5), proc_pid_mountinfo(5), and the kernel's Documentation/ABI on sysfs block devices and DMI.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from redflag_core.encoding import hex_decode
from redflag_core.errors import MalformedError
from redflag_core.machine import MACHINE_ID_SIZE, RawMachine

MAX_ID_BYTES: Final = 4096
"""Most that is read of a file with one id: a page, which is all that sysfs gives."""

MAX_MOUNTS_BYTES: Final = 16 * 2**20
"""Most that is read of the mount table: 100,000 mounts of a busy container host fit."""

MAX_STACKED_DEVICES: Final = 8
"""Deepest stack of block devices followed; file system on LVM on LUKS on RAID on a partition has five."""

_MACHINE_ID_FILES: Final = ("etc/machine-id", "var/lib/dbus/machine-id")

_BOARD_SERIALS: Final = ("sys/class/dmi/id/board_serial", "sys/firmware/devicetree/base/serial-number")
"""Boards without DMI, such as the Raspberry Pi, have their serial in the device tree."""

_DISK_SERIALS: Final = ("device/serial", "serial", "device/wwid", "wwid")
"""Under a disk's sysfs directory: of NVMe and MMC, of virtio, of SCSI and SATA, of the rest."""

_CONTAINER_MARKS: Final = ("run/.containerenv", ".dockerenv", "run/systemd/container")

_CONTAINER_VARIABLE: Final = re.compile(rb"(?:^|\0)container=[^\0]")
"""What a container's manager gives to the first process (systemd's Container Interface)."""


@attrs.frozen
class LinuxMachine:
    """
    `redflag_core.ports.MachineIdentity` of a Linux machine. Stateless: share it between threads and over a fork.

    It blocks for as long as the kernel takes to show a few small files.

    Args:
        root: Where the file system starts.
    """

    root: Path = Path("/")

    def read(self) -> RawMachine:
        """What can be read now. Without root, the SMBIOS UUID and the board serial are absent."""
        return RawMachine(
            machine_id=self._machine_id(),
            smbios_uuid=_text(self.root / "sys/class/dmi/id/product_uuid"),
            board_serial=_first_text(self.root / name for name in _BOARD_SERIALS),
            disk_serial=self._disk_serial(),
            boot_id=_text(self.root / "proc/sys/kernel/random/boot_id"),
            container=self._is_container(),
        )

    def _machine_id(self) -> bytes | None:
        for name in _MACHINE_ID_FILES:
            text = _text(self.root / name) or ""
            try:
                return hex_decode(text.lower(), MACHINE_ID_SIZE)
            except MalformedError:
                # Missing, or "uninitialized" as systemd writes it before the first boot is complete.
                continue
        return None

    def _is_container(self) -> bool:
        marked = any(_exists(self.root / name) for name in _CONTAINER_MARKS)
        return marked or bool(_CONTAINER_VARIABLE.search(_read(self.root / "proc/1/environ") or b""))

    def _disk_serial(self) -> str | None:
        """Of the disk under the root file system; with several (RAID), the first in order of the serials."""
        device = self._root_device()
        if device is None:
            return None
        serials = (
            _first_text(disk / name for name in _DISK_SERIALS) for disk in _disks(device, MAX_STACKED_DEVICES)
        )
        return min((serial for serial in serials if serial is not None), default=None)

    def _root_device(self) -> Path | None:
        """The sysfs directory of the block device that is mounted at ``/``."""
        mount = _root_mount(_read(self.root / "proc/self/mountinfo", MAX_MOUNTS_BYTES) or b"")
        if mount is None:
            return None
        number, source = mount
        candidates = [self.root / "sys/dev/block" / number]
        if source.startswith("/dev/"):
            # Btrfs shows a device number of its own; its source names the real device, through a link for LVM.
            name = _resolve(self.root / source[1:]).name
            candidates.append(self.root / "sys/class/block" / name)
        return next((_resolve(path) for path in candidates if _exists(path)), None)


def _root_mount(mountinfo: bytes) -> tuple[str, str] | None:
    """Device number and source of the last mount at ``/``: it covers those before it."""
    found = None
    for line in mountinfo.decode("utf-8", "replace").split("\n"):
        before, _, after = line.partition(" - ")
        fields, source = before.split(" "), after.split(" ")
        if len(fields) >= 6 and len(source) >= 2 and fields[4] == "/":
            found = fields[2], source[1]
    return found


def _disks(device: Path, depth: int) -> Iterator[Path]:
    """The physical disks under a block device, through partitions, LUKS, LVM and RAID."""
    if _exists(device / "partition"):
        device = device.parent
    below = _entries(device / "slaves")
    if not below:
        yield device
    elif depth > 0:
        for entry in below:
            yield from _disks(_resolve(entry), depth - 1)


def _first_text(paths: Iterator[Path]) -> str | None:
    """The first id that is there and not empty; the empty text when all that are there are empty."""
    found = [text for text in map(_text, paths) if text is not None]
    return next(filter(None, found), found[0] if found else None)


def _text(path: Path) -> str | None:
    data = _read(path)
    return None if data is None else data.decode("utf-8", "replace").strip("\0 \t\r\n")


def _read(path: Path, limit: int = MAX_ID_BYTES) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError:
        return None


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except OSError:
        return False
    return True


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


def _resolve(path: Path) -> Path:
    # Unlike `Path.resolve`, this takes a loop of links as it is on every Python.
    return Path(os.path.realpath(path))
