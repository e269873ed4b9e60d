"""
The ids of a Windows machine, from the registry, the firmware table and the system drive: no command is run.

It was written from the vendor's documentation and has not been run on Windows: the tests call it with functions
that check what they are given, as that documentation says.

Rules for the whole file:

- Sizes of C types are spelled out (``c_uint32``): `ctypes.wintypes` has others where the tests run.
- No right is asked for beyond looking: registry keys are opened for queries, devices with no access at all.

Sources: Microsoft's reference of the functions and structures that are named here; for the layout of
``SYSTEM_TIMEOFDAY_INFORMATION``, which the SDK has as bytes only, Microsoft's public symbol files.
"""

import contextlib
import ctypes
import struct
import uuid
from collections.abc import Iterator
from ctypes import c_char_p, c_int, c_int32, c_uint32, c_void_p, c_wchar_p
from typing import Any, Final

import attrs

from redflag_core.machine import RawMachine
from redflag_core.machine_readers._native import absent_if_unreadable, declared
from redflag_core.machine_readers.smbios import MAX_TABLE_BYTES, SmbiosIds, parse_smbios

MAX_PATH_CHARACTERS: Final = 260
"""``MAX_PATH``, with the NUL: the Windows directory is never longer."""

MAX_DESCRIPTOR_BYTES: Final = 4096
"""Largest description of a disk that is read; most have about 200 bytes."""

MAX_EXTENTS: Final = 32
"""Most pieces of a volume that are looked at: a dynamic volume has at most 32 disks."""

_CRYPTOGRAPHY: Final = r"SOFTWARE\Microsoft\Cryptography"
_CONTROL: Final = r"SYSTEM\CurrentControlSet\Control"

_RAW_SMBIOS: Final = int.from_bytes(b"RSMB", "big")
"""Provider of the table, as the multi-character constant ``'RSMB'`` of C."""

_RAW_HEADER: Final = struct.Struct("<BBBBI")
"""``RawSMBIOSData`` before its table: calling method, major and minor version, DMI revision, length of that."""

_INVALID_HANDLE: Final = c_void_p(-1).value
_SHARE_READ_WRITE: Final = 0x1 | 0x2
_OPEN_EXISTING: Final = 3

_VOLUME_GET_DISK_EXTENTS: Final = 0x0056_0000
_STORAGE_QUERY_PROPERTY: Final = 0x002D_1400
"""``CTL_CODE(type, function, METHOD_BUFFERED, FILE_ANY_ACCESS)`` of types 0x56 and 0x2D, functions 0 and 0x500."""

_DEVICE_QUERY: Final = struct.pack("<III", 0, 0, 0)
"""``STORAGE_PROPERTY_QUERY``: StorageDeviceProperty, PropertyStandardQuery, and a byte that is padded to four."""

_EXTENTS_HEADER: Final = struct.Struct("<I4x")
_EXTENT: Final = struct.Struct("<I4xqq")
"""``DISK_EXTENT``: number of the disk, start and length of the piece; 64-bit fields are aligned."""

_SERIAL_OFFSET: Final = 24
"""Where ``STORAGE_DEVICE_DESCRIPTOR.SerialNumberOffset`` is."""

_TIME_OF_DAY: Final = 3
_TIMES: Final = struct.Struct("<qqqIIQQ")
"""``SYSTEM_TIMEOFDAY_INFORMATION``: boot time, now, time zone, its id, reserved, bias of boot and of sleep."""


@attrs.frozen
class WindowsMachine:
    """
    `redflag_core.ports.MachineIdentity` of a Windows machine. Stateless: share it between threads.

    Nothing here needs an administrator. A Windows installation that was imaged without sysprep has the MachineGuid
    of its image: the server finds the second agent that shows it, and orders a replacement.

    Args:
        kernel32: The library of that name.
        ntdll: The library of that name.
        winreg: The module of that name.
    """

    kernel32: Any
    ntdll: Any
    winreg: Any

    @classmethod
    def load(cls) -> "WindowsMachine":
        """The reader of this machine, which must run Windows."""
        import winreg  # noqa: PLC0415  (is only there on Windows)

        load: Any = vars(ctypes)["WinDLL"]  # the same
        return cls(load("kernel32"), load("ntdll"), winreg)

    def read(self) -> RawMachine:
        """What can be read now."""
        firmware = absent_if_unreadable(self._smbios) or SmbiosIds()
        return RawMachine(
            machine_id=absent_if_unreadable(self._machine_guid),
            smbios_uuid=firmware.uuid,
            board_serial=firmware.board_serial,
            disk_serial=absent_if_unreadable(self._disk_serial),
            boot_id=absent_if_unreadable(self._boot_id),
            container=absent_if_unreadable(self._container_type) is not None,
        )

    def _machine_guid(self) -> bytes:
        return uuid.UUID(self._registry_value(_CRYPTOGRAPHY, "MachineGuid")).bytes

    def _container_type(self) -> int:
        """Windows sets it inside its containers only."""
        return int(self._registry_value(_CONTROL, "ContainerType"))

    def _registry_value(self, key: str, name: str) -> Any:
        # A 32-bit Python would otherwise be shown a key of its own.
        access = self.winreg.KEY_QUERY_VALUE | self.winreg.KEY_WOW64_64KEY
        with self.winreg.OpenKey(self.winreg.HKEY_LOCAL_MACHINE, key, 0, access) as opened:
            return self.winreg.QueryValueEx(opened, name)[0]

    def _smbios(self) -> SmbiosIds | None:
        read = declared(self.kernel32, "GetSystemFirmwareTable", c_uint32, c_uint32, c_uint32, c_void_p, c_uint32)
        size = min(read(_RAW_SMBIOS, 0, None, 0), _RAW_HEADER.size + MAX_TABLE_BYTES)
        if size < _RAW_HEADER.size:
            return None
        buffer = ctypes.create_string_buffer(size)
        # More than the buffer holds is the size that it should have: the table is too long, or grew.
        if not _RAW_HEADER.size <= read(_RAW_SMBIOS, 0, buffer, size) <= size:
            return None
        _, major, minor, _, length = _RAW_HEADER.unpack_from(buffer)
        return parse_smbios(buffer.raw[_RAW_HEADER.size :][:length], version=(major, minor))

    def _disk_serial(self) -> str | None:
        """Of the disk that Windows is on; of several (a spanned volume) the first in order of the serials."""
        extents = self._ask_device(
            rf"\\.\{self._system_drive()}",
            _VOLUME_GET_DISK_EXTENTS,
            b"",
            _EXTENTS_HEADER.size + MAX_EXTENTS * _EXTENT.size,
        )
        described = (
            self._ask_device(
                rf"\\.\PhysicalDrive{disk}", _STORAGE_QUERY_PROPERTY, _DEVICE_QUERY, MAX_DESCRIPTOR_BYTES
            )
            for disk in sorted(_disk_numbers(extents))
        )
        return min((serial for serial in map(_serial, described) if serial is not None), default=None)

    def _system_drive(self) -> str:
        """Such as ``C:``."""
        get = declared(self.kernel32, "GetSystemWindowsDirectoryW", c_uint32, c_wchar_p, c_uint32)
        buffer = ctypes.create_unicode_buffer(MAX_PATH_CHARACTERS)
        get(buffer, MAX_PATH_CHARACTERS)
        return buffer.value[:2]

    def _ask_device(self, path: str, code: int, question: bytes, size: int) -> bytes:
        """What the driver of a device answers, at most *size* bytes; nothing when it does not."""
        ask = declared(
            self.kernel32, "DeviceIoControl", c_int, c_void_p, c_uint32, c_char_p, c_uint32, c_void_p, c_uint32,
            c_void_p, c_void_p,
        )  # fmt: skip
        answer, used = ctypes.create_string_buffer(size), c_uint32()
        with self._device(path) as handle:
            told = ask(handle, code, question or None, len(question), answer, size, ctypes.byref(used), None)
        return answer.raw[: used.value] if told else b""

    @contextlib.contextmanager
    def _device(self, path: str) -> Iterator[int]:
        create = declared(
            self.kernel32, "CreateFileW", c_void_p, c_wchar_p, c_uint32, c_uint32, c_void_p, c_uint32, c_uint32,
            c_void_p,
        )  # fmt: skip
        close = declared(self.kernel32, "CloseHandle", c_int, c_void_p)
        handle = create(path, 0, _SHARE_READ_WRITE, None, _OPEN_EXISTING, 0, None)
        if handle in (None, _INVALID_HANDLE):
            raise OSError(f"{path} cannot be opened")
        try:
            yield handle
        finally:
            close(handle)

    def _boot_id(self) -> str | None:
        """
        When the kernel started, by the clock of that moment, in steps of 100 nanoseconds.

        Windows has no id of a boot. It moves the boot time whenever the clock is set, and notes by how much it
        ever did: the difference is what the kernel noted as it started. It stays through sleep, hibernation and
        fast startup, in which the kernel does not start anew, and is another one after the next start. What goes
        for one elsewhere is none: the boot environment's ``BootIdentifier`` names an entry of the boot menu, and
        the prefetcher's counter falls back with a restored registry.
        """
        query = declared(self.ntdll, "NtQuerySystemInformation", c_int32, c_int, c_void_p, c_uint32, c_void_p)
        buffer, used = ctypes.create_string_buffer(_TIMES.size), c_uint32()
        status = query(_TIME_OF_DAY, buffer, _TIMES.size, ctypes.byref(used))
        if status != 0 or used.value != _TIMES.size:
            return None
        boot_time, _, _, _, _, bias, _ = _TIMES.unpack(buffer)
        return f"{(boot_time - bias) % 2**64:016x}" if boot_time else None


def _disk_numbers(extents: bytes) -> set[int]:
    """The disks in a ``VOLUME_DISK_EXTENTS``."""
    if len(extents) < _EXTENTS_HEADER.size:
        return set()
    (count,) = _EXTENTS_HEADER.unpack_from(extents)
    whole = (len(extents) - _EXTENTS_HEADER.size) // _EXTENT.size
    starts = (_EXTENTS_HEADER.size + number * _EXTENT.size for number in range(min(count, whole)))
    return {_EXTENT.unpack_from(extents, start)[0] for start in starts}


def _serial(descriptor: bytes) -> str | None:
    """The serial number in a ``STORAGE_DEVICE_DESCRIPTOR``; an offset of 0 stands for none."""
    (offset,) = struct.unpack_from("<I", descriptor.ljust(_SERIAL_OFFSET + 4, b"\0"), _SERIAL_OFFSET)
    if not _SERIAL_OFFSET + 4 <= offset < len(descriptor):
        return None
    return descriptor[offset:].partition(b"\0")[0].decode("utf-8", "replace").strip()
