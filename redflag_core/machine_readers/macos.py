"""
The ids of a Mac, from the kernel and the I/O Registry: no command is run.

It was written from the vendor's documentation and has not been run on macOS: the tests call it with functions that
check what they are given, as that documentation says.

A Mac has no documented id of the installation. Its machine id is that of the hardware: a Mac that is set up anew
stays the same machine, and one with another logic board becomes another. The disk is a part of that board, and has
no id of its own here.

Sources: gethostuuid(2), sysctl(3), and Apple's reference of IOKit and Core Foundation.
"""

import contextlib
import ctypes
from collections.abc import Iterator
from ctypes import c_bool, c_char_p, c_int, c_long, c_size_t, c_uint32, c_ulong, c_void_p
from typing import Any, Final

import attrs

from redflag_core.machine import MACHINE_ID_SIZE, RawMachine
from redflag_core.machine_readers._native import absent_if_unreadable, declared

MAX_TEXT_BYTES: Final = 256
"""Longest id that is read, with its NUL: a UUID has 36 characters, a serial number at most 20."""

WAIT_SECONDS: Final = 1
"""Longest wait for the host's UUID, as in the manual's example. It is there since early in the boot."""

_IOKIT: Final = "/System/Library/Frameworks/IOKit.framework/IOKit"
_CORE_FOUNDATION: Final = "/System/Library/Frameworks/CoreFoundation.framework/CoreFoundation"
_SYSTEM: Final = "/usr/lib/libSystem.B.dylib"

_EXPERT: Final = b"IOPlatformExpertDevice"
"""The entry of the I/O Registry that stands for the machine itself."""

_MAIN_PORT: Final = 0
"""``kIOMainPortDefault``."""

_UTF8: Final = 0x0800_0100
"""``kCFStringEncodingUTF8``."""


class _Timespec(ctypes.Structure):
    """``struct timespec``: both fields are as wide as a pointer."""

    _fields_ = (("seconds", c_long), ("nanoseconds", c_long))


@attrs.frozen
class MacMachine:
    """
    `redflag_core.ports.MachineIdentity` of a Mac. Stateless: share it between threads.

    Read before a fork, or start a new program: Core Foundation is not made for a child that goes on without one.

    Args:
        system: The library ``libSystem``.
        iokit: The framework IOKit.
        foundation: The framework Core Foundation.
    """

    system: Any
    iokit: Any
    foundation: Any

    @classmethod
    def load(cls) -> "MacMachine":
        """The reader of this machine, which must run macOS."""
        return cls(*map(ctypes.CDLL, (_SYSTEM, _IOKIT, _CORE_FOUNDATION)))

    def read(self) -> RawMachine:
        """What can be read now."""
        return RawMachine(
            machine_id=absent_if_unreadable(self._host_uuid),
            smbios_uuid=absent_if_unreadable(lambda: self._platform("IOPlatformUUID")),
            board_serial=absent_if_unreadable(lambda: self._platform("IOPlatformSerialNumber")),
            boot_id=absent_if_unreadable(lambda: self._kernel_text("kern.bootsessionuuid")),
        )

    def _host_uuid(self) -> bytes | None:
        get = declared(self.system, "gethostuuid", c_int, c_void_p, c_void_p)
        found, wait = ctypes.create_string_buffer(MACHINE_ID_SIZE), _Timespec(WAIT_SECONDS, 0)
        return None if get(found, ctypes.byref(wait)) else found.raw

    def _kernel_text(self, name: str) -> str | None:
        """A text that the kernel states. The id of the boot session is drawn at each boot, and outlasts sleep."""
        get = declared(self.system, "sysctlbyname", c_int, c_char_p, c_void_p, c_void_p, c_void_p, c_size_t)
        found, size = ctypes.create_string_buffer(MAX_TEXT_BYTES), c_size_t(MAX_TEXT_BYTES)
        failed = get(name.encode(), found, ctypes.byref(size), None, 0)
        return None if failed else found.value.decode("utf-8", "replace") or None

    def _platform(self, name: str) -> str | None:
        """A text that the machine's own entry of the I/O Registry has under *name*."""
        create = declared(
            self.iokit, "IORegistryEntryCreateCFProperty", c_void_p, c_uint32, c_void_p, c_void_p, c_uint32
        )
        with self._expert() as expert, self._text(name) as key:
            value = create(expert, key, None, 0)
        if not value:
            return None
        with self._released(value):
            return self._read_text(value)

    @contextlib.contextmanager
    def _expert(self) -> Iterator[int]:
        matching = declared(self.iokit, "IOServiceMatching", c_void_p, c_char_p)
        find = declared(self.iokit, "IOServiceGetMatchingService", c_uint32, c_uint32, c_void_p)
        release = declared(self.iokit, "IOObjectRelease", c_int, c_uint32)
        wanted = matching(_EXPERT)
        # The search takes the dictionary over: it is not released here.
        entry = find(_MAIN_PORT, wanted) if wanted else 0
        if not entry:
            raise OSError("the I/O Registry has no entry of the machine")
        try:
            yield entry
        finally:
            release(entry)

    @contextlib.contextmanager
    def _text(self, text: str) -> Iterator[int]:
        create = declared(self.foundation, "CFStringCreateWithCString", c_void_p, c_void_p, c_char_p, c_uint32)
        made = create(None, text.encode(), _UTF8)
        if not made:
            raise OSError("no memory for a text")
        with self._released(made):
            yield made

    @contextlib.contextmanager
    def _released(self, reference: int) -> Iterator[None]:
        release = declared(self.foundation, "CFRelease", None, c_void_p)
        try:
            yield
        finally:
            release(reference)

    def _read_text(self, value: int) -> str | None:
        type_of = declared(self.foundation, "CFGetTypeID", c_ulong, c_void_p)
        type_of_texts = declared(self.foundation, "CFStringGetTypeID", c_ulong)
        copy = declared(self.foundation, "CFStringGetCString", c_bool, c_void_p, c_void_p, c_long, c_uint32)
        found = ctypes.create_string_buffer(MAX_TEXT_BYTES)
        # Reading the text of what is none would end the process.
        if type_of(value) != type_of_texts() or not copy(value, found, MAX_TEXT_BYTES, _UTF8):
            return None
        return found.value.decode("utf-8", "replace")
