"""
The macOS reader, on functions that check what they are given as Apple documents them.

This is no Mac. Each function has its documented C types and is called through `ctypes`, with real pointers and
buffers; objects of Core Foundation and I/O Kit are counted, and each must be released once.
"""

import ctypes
import struct
import uuid
from ctypes import c_bool, c_char_p, c_int, c_long, c_size_t, c_uint32, c_ulong, c_void_p
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core.machine import MachineVerdict, RawMachine, compare, make_evidence
from redflag_core.machine_readers import this_machine
from redflag_core.machine_readers.linux import LinuxMachine
from redflag_core.machine_readers.macos import MAX_TEXT_BYTES, MacMachine
from redflag_core.ports import MachineIdentity

HARDWARE = uuid.UUID("564d3e5a-1c2f-5f0a-9b0e-6c1f2a3b4c5d")
BOOT = "8A2D6C0E-6C8B-4A41-8D2A-5B8F4C1E9D70"
TEXT, NUMBER = 7, 22
UTF8 = 0x08000100
EXPERT = 0x1307
NO_MEMORY = 12


class Mac:
    """A Mac that can be set up, and the three libraries that the reader is given of it."""

    def __init__(self):
        self.problems = []
        self.host_uuid = HARDWARE.bytes
        self.kernel = {"kern.bootsessionuuid": BOOT.encode()}
        self.expert = EXPERT
        self.properties = {
            "IOPlatformUUID": (TEXT, str(HARDWARE).upper().encode()),
            "IOPlatformSerialNumber": (TEXT, b"C02XK1ZZJGH5"),
        }
        self.memory_left = True
        self.objects, self.entries = {}, []
        self.system = SimpleNamespace(
            gethostuuid=self._function(self._host_uuid, c_int, c_void_p, c_void_p),
            sysctlbyname=self._function(self._sysctl, c_int, c_char_p, c_void_p, c_void_p, c_void_p, c_size_t),
        )
        self.iokit = SimpleNamespace(
            IOServiceMatching=self._function(self._matching, c_void_p, c_char_p),
            IOServiceGetMatchingService=self._function(self._find, c_uint32, c_uint32, c_void_p),
            IORegistryEntryCreateCFProperty=self._function(
                self._property, c_void_p, c_uint32, c_void_p, c_void_p, c_uint32
            ),
            IOObjectRelease=self._function(self._release_entry, c_int, c_uint32),
        )
        self.foundation = SimpleNamespace(
            CFStringCreateWithCString=self._function(self._make_text, c_void_p, c_void_p, c_char_p, c_uint32),
            CFStringGetCString=self._function(self._copy_text, c_bool, c_void_p, c_void_p, c_long, c_uint32),
            CFStringGetTypeID=self._function(lambda: TEXT, c_ulong),
            CFGetTypeID=self._function(lambda value: self.objects[value][0], c_ulong, c_void_p),
            CFRelease=self._function(self._release, None, c_void_p),
        )

    def read(self):
        """What the reader makes of it, with nothing passed wrongly and nothing kept."""
        found = MacMachine(self.system, self.iokit, self.foundation).read()
        for library in (self.system, self.iokit, self.foundation):
            for name, function in vars(library).items():
                self.check(f"types of {name}", self._sizes(function) in (function.documented, None))
        self.check("every object is released", not self.objects)
        self.check("every entry of the registry is released", not self.entries)
        assert [] == self.problems
        return found

    def check(self, what, holds):
        """Note *what* unless it holds. An exception in a callback of C would be lost."""
        if not holds:
            self.problems.append(what)

    def _function(self, body, result, *arguments):
        def guarded(*given):
            try:
                return body(*given)
            except Exception as error:
                self.problems.append(repr(error))
                return 0

        function = ctypes.CFUNCTYPE(result, *arguments)(guarded)
        function.documented = [ctypes.sizeof(kind) if kind else 0 for kind in (result, *arguments)]
        return function

    def _sizes(self, function):
        """Sizes of the types that the reader declared; None of a function that it did not use."""
        if function.argtypes is None:
            return None
        return [ctypes.sizeof(kind) if kind else 0 for kind in (function.restype, *function.argtypes)]

    def _new(self, kind, value):
        reference = 0x6000_0000_1000 + 16 * len(self.objects)
        self.objects[reference] = (kind, value)
        return reference

    def _host_uuid(self, found, wait):
        self.check("the wait is one second", struct.unpack("<qq", ctypes.string_at(wait, 16)) == (1, 0))
        if self.host_uuid is None:
            return -1
        ctypes.memmove(found, self.host_uuid, 16)
        return 0

    def _sysctl(self, name, found, size, new, new_size):
        self.check("nothing is set", (new, new_size) == (None, 0))
        (room,) = struct.unpack("<Q", ctypes.string_at(size, 8))
        self.check("the size is that of the buffer", room == MAX_TEXT_BYTES)
        value = self.kernel.get(name.decode())
        if value is None or len(value) + 1 > room:
            return -1
        ctypes.memmove(found, value + b"\0", len(value) + 1)
        ctypes.memmove(size, struct.pack("<Q", len(value) + 1), 8)
        return 0

    def _matching(self, name):
        self.check("the entry is that of the machine", name == b"IOPlatformExpertDevice")
        return self._new("dictionary", name) if self.memory_left else None

    def _find(self, port, matching):
        self.check("the main port is 0", port == 0)
        # The search releases the dictionary that it is given.
        self.check("a dictionary is searched with", self.objects.pop(matching)[0] == "dictionary")
        if self.expert:
            self.entries.append(self.expert)
        return self.expert

    def _property(self, entry, key, allocator, options):
        self.check("the entry is open", entry in self.entries)
        self.check("defaults are passed", (allocator, options) == (None, 0))
        kind, name = self.objects[key]
        self.check("the key is a text", kind == TEXT)
        found = self.properties.get(name.decode())
        return found and self._new(*found)

    def _release_entry(self, entry):
        self.entries.remove(entry)
        return 0

    def _make_text(self, allocator, text, encoding):
        self.check("a text is made of UTF-8", (allocator, encoding) == (None, UTF8))
        return self._new(TEXT, text) if self.memory_left else None

    def _copy_text(self, value, buffer, size, encoding):
        kind, text = self.objects[value]
        self.check("only a text is read as one", kind == TEXT)
        self.check("the size is that of the buffer", (size, encoding) == (MAX_TEXT_BYTES, UTF8))
        if len(text) + 1 > size:
            return False
        ctypes.memmove(buffer, text + b"\0", len(text) + 1)
        return True

    def _release(self, value):
        self.check("an object is released once", self.objects.pop(value, None) is not None)


@pytest.fixture
def mac():
    return Mac()


def test_a_whole_machine_is_read(mac):
    """Every id of a Mac is found, every call is as documented, and nothing is kept."""
    assert (
        RawMachine(
            machine_id=HARDWARE.bytes,
            smbios_uuid=str(HARDWARE).upper(),
            board_serial="C02XK1ZZJGH5",
            boot_id=BOOT,
        )
        == mac.read()
    )


def test_a_mac_that_shows_nothing_is_read(mac):
    """Where macOS refuses everything, as in a sandbox, all is absent and nothing raises."""
    mac.host_uuid, mac.kernel, mac.expert = None, {}, 0

    assert RawMachine() == mac.read()


def test_libraries_without_the_functions_are_no_error():
    """A system that lacks a function has no id of it."""
    bare = SimpleNamespace()

    assert RawMachine() == MacMachine(bare, bare, bare).read()


@pytest.mark.parametrize(
    "name,field", [("IOPlatformUUID", "smbios_uuid"), ("IOPlatformSerialNumber", "board_serial")]
)
@pytest.mark.parametrize("value", [None, (NUMBER, b"7"), (TEXT, b"x" * MAX_TEXT_BYTES)])
def test_a_property_that_is_missing_no_text_or_too_long_is_absent(mac, name, field, value):
    """One of them does not take the other along."""
    mac.properties[name] = value
    found = mac.read()

    assert getattr(found, field) is None
    assert {"smbios_uuid", "board_serial"} - {field} == {
        other for other in ("smbios_uuid", "board_serial") if getattr(found, other) is not None
    }


def test_the_longest_text_is_read(mac):
    """A text and its NUL may fill the buffer."""
    mac.properties["IOPlatformSerialNumber"] = (TEXT, b"x" * (MAX_TEXT_BYTES - 1))
    mac.kernel["kern.bootsessionuuid"] = b"y" * (MAX_TEXT_BYTES - 1)

    assert ("x" * 255, "y" * 255) == (mac.read().board_serial, mac.read().boot_id)


def test_a_blank_serial_is_empty_and_not_absent(mac):
    """A virtual machine without a serial has a placeholder there, which is weak."""
    mac.properties["IOPlatformSerialNumber"] = (TEXT, b"")

    assert mac.read().board_serial == ""


def test_without_memory_all_of_the_registry_is_absent(mac):
    """No dictionary and no text can be made: nothing is asked for with a null pointer."""
    mac.memory_left = False

    assert RawMachine(machine_id=HARDWARE.bytes, boot_id=BOOT) == mac.read()


def test_without_memory_for_the_key_the_entry_is_still_released(mac):
    """The dictionary could be made and the text could not."""
    mac.foundation.CFStringCreateWithCString = mac._function(
        lambda *_: None, c_void_p, c_void_p, c_char_p, c_uint32
    )

    assert mac.read().smbios_uuid is None


def test_an_empty_boot_session_is_absent(mac):
    """Two boots without an id must not look like one."""
    mac.kernel["kern.bootsessionuuid"] = b""

    assert mac.read().boot_id is None


@given(st.binary(max_size=300).filter(lambda raw: b"\0" not in raw))
def test_any_bytes_in_the_place_of_an_id_are_text_or_absent(raw):
    """What is no UTF-8 is marked, not refused."""
    mac = Mac()
    mac.properties["IOPlatformSerialNumber"] = (TEXT, raw)
    mac.kernel["kern.bootsessionuuid"] = raw
    found = mac.read()

    expected = raw.decode("utf-8", "replace") if len(raw) < MAX_TEXT_BYTES else None
    assert expected == found.board_serial
    assert (expected or None) == found.boot_id


def test_the_reader_is_chosen_and_loads_the_libraries_of_macos(monkeypatch):
    """On macOS, and only there, libSystem, I/O Kit and Core Foundation are loaded from where they are."""
    monkeypatch.setattr(ctypes, "CDLL", lambda path: path)
    frameworks = "/System/Library/Frameworks"

    reader: MachineIdentity = this_machine("darwin")

    assert (
        MacMachine(
            "/usr/lib/libSystem.B.dylib",
            f"{frameworks}/IOKit.framework/IOKit",
            f"{frameworks}/CoreFoundation.framework/CoreFoundation",
        )
        == reader
    )


@pytest.mark.parametrize("platform", ["linux", "freebsd14", "cygwin"])
def test_everywhere_else_the_files_of_linux_are_read(platform):
    """A system that nobody wrote a reader for shows what it has of these files, which is mostly nothing."""
    assert LinuxMachine() == this_machine(platform)


def test_this_machine_is_read():
    """The reader that is chosen here works here."""
    assert LinuxMachine() == this_machine()
    assert isinstance(this_machine().read(), RawMachine)


# What it means


def evidence(mac):
    return make_evidence(mac.read(), replacement=bytes(range(1, 17)))


def test_a_mac_that_is_set_up_anew_is_the_same_machine(mac):
    """All of its ids are those of the hardware."""
    again = Mac()
    again.kernel["kern.bootsessionuuid"] = b"9B2D6C0E-6C8B-4A41-8D2A-5B8F4C1E9D70"

    assert evidence(mac) == evidence(again)


def test_a_mac_with_another_logic_board_is_another_machine(mac):
    """The hardware UUID and the serial are of the board."""
    other = Mac()
    other.host_uuid = uuid.UUID(int=HARDWARE.int + 1).bytes
    other.properties = {
        "IOPlatformUUID": (TEXT, str(uuid.UUID(int=HARDWARE.int + 1)).encode()),
        "IOPlatformSerialNumber": (TEXT, b"C02XK1ZZJGH6"),
    }

    assert MachineVerdict.HARDWARE_CHANGED == compare(evidence(mac), evidence(other))


def test_a_virtual_mac_without_ids_of_its_own_is_weak(mac):
    """Zeros and placeholders of a hypervisor are dropped, replaced and named."""
    mac.host_uuid = bytes(16)
    mac.properties = {
        "IOPlatformUUID": (TEXT, b"00000000-0000-0000-0000-000000000000"),
        "IOPlatformSerialNumber": (TEXT, b"0"),
    }

    assert ("machine_id", "smbios_uuid", "board_serial") == evidence(mac).weak
