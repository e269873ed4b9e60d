"""
The Windows reader, on functions that check what they are given as Microsoft documents them.

This is no Windows. Each function has its documented C types and is called through `ctypes`, with real pointers and
buffers; it notes every argument that the documentation does not allow, and answers as it says.
"""

import ctypes
import struct
import sys
import uuid
from ctypes import c_int, c_int32, c_uint32, c_void_p, c_wchar_p
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core.machine import MachineVerdict, RawMachine, compare, judge_boot, make_evidence
from redflag_core.machine_readers import this_machine
from redflag_core.machine_readers.smbios import MAX_TABLE_BYTES
from redflag_core.machine_readers.windows import (
    MAX_DESCRIPTOR_BYTES,
    MAX_EXTENTS,
    WindowsMachine,
    _disk_numbers,
    _serial,
)
from redflag_core.ports import MachineIdentity
from tests.helpers.smbios import TABLE, UUID_MIXED, UUID_PLAIN

GUID = "b08dfa60-83e7-567a-1921-a715000001fb"
CRYPTOGRAPHY, CONTROL = r"SOFTWARE\Microsoft\Cryptography", r"SYSTEM\CurrentControlSet\Control"
STARTED, SET_BY = 133_480_512_345_678_901, 36_000_000_000
INVALID_HANDLE = 2**64 - 1
QUERY_PROPERTY, DISK_EXTENTS = 0x002D1400, 0x00560000


def raw_smbios(table=TABLE, version=(3, 2), length=None):
    """`RawSMBIOSData`: one byte each of calling method, versions and revision, a DWORD of length, the table."""
    return struct.pack("<BBBBI", 0, *version, 0, len(table) if length is None else length) + table


def extents(*disks):
    """`VOLUME_DISK_EXTENTS`: a DWORD and padding, then DWORD, padding and two LARGE_INTEGERs for each."""
    return struct.pack("<II", len(disks), 0) + b"".join(
        struct.pack("<IIqq", disk, 0, 2**20, 2**40) for disk in disks
    )


def descriptor(serial=b"     S4EWNX0R\0", offset=None):
    """`STORAGE_DEVICE_DESCRIPTOR` with its strings behind it; its own size is 40."""
    strings = b"NVMe\0Samsung SSD 980\0" + b"1B4QFXO7\0"
    at = 40 + len(strings) if offset is None else offset
    whole = 40 + len(strings) + len(serial)
    head = struct.pack("<IIBBBBIIIIII", 40, whole, 0, 0, 0, 1, 40, 45, 61, at, 17, 0)
    return head.ljust(40, b"\0") + strings + serial


class Key:
    """An open registry key: it must be closed."""

    def __init__(self, values):
        self.values, self.is_open = values, False

    def __enter__(self):
        self.is_open = True
        return self

    def __exit__(self, *_):
        self.is_open = False


class Windows:
    """A Windows machine that can be set up, and the three things that the reader is given of it."""

    def __init__(self):
        self.problems = []
        self.registry = {CRYPTOGRAPHY: {"MachineGuid": GUID}, CONTROL: {}}
        self.firmware = raw_smbios()
        self.directory = r"C:\Windows"
        self.devices = {
            r"\\.\C:": (DISK_EXTENTS, b"", extents(0)),
            r"\\.\PhysicalDrive0": (QUERY_PROPERTY, bytes(12), descriptor()),
        }
        self.times = struct.pack("<qqqIIQQ", STARTED, STARTED + 10**9, 0, 0, 0, 0, 0)
        self.status, self.told_length = 0, 48
        self.handles, self.opened = {}, 0
        self.kernel32 = SimpleNamespace(
            GetSystemFirmwareTable=self._function(
                self._firmware_table, c_uint32, c_uint32, c_uint32, c_void_p, c_uint32
            ),
            GetSystemWindowsDirectoryW=self._function(self._windows_directory, c_uint32, c_void_p, c_uint32),
            CreateFileW=self._function(
                self._create_file, c_void_p, c_wchar_p, c_uint32, c_uint32, c_void_p, c_uint32, c_uint32, c_void_p
            ),
            DeviceIoControl=self._function(
                self._control,
                c_int,
                c_void_p,
                c_uint32,
                c_void_p,
                c_uint32,
                c_void_p,
                c_uint32,
                c_void_p,
                c_void_p,
            ),
            CloseHandle=self._function(self._close, c_int, c_void_p),
        )
        self.ntdll = SimpleNamespace(
            NtQuerySystemInformation=self._function(
                self._query_system, c_int32, c_int, c_void_p, c_uint32, c_void_p
            )
        )
        self.winreg = SimpleNamespace(
            HKEY_LOCAL_MACHINE=0x80000002,
            KEY_QUERY_VALUE=0x1,
            KEY_WOW64_64KEY=0x100,
            OpenKey=self._open_key,
            QueryValueEx=self._query_value,
        )

    def read(self):
        """What the reader makes of it, with nothing passed wrongly and nothing left open."""
        found = WindowsMachine(self.kernel32, self.ntdll, self.winreg).read()
        for library in (self.kernel32, self.ntdll):
            for name, function in vars(library).items():
                self.check(f"types of {name}", self._sizes(function) in (function.documented, None))
        self.check("all handles are closed", not self.handles)
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
        function.documented = [ctypes.sizeof(kind) for kind in (result, *arguments)]
        return function

    def _sizes(self, function):
        """Sizes of the types that the reader declared; None of a function that it did not use."""
        if function.argtypes is None:
            return None
        return [ctypes.sizeof(kind) for kind in (function.restype, *function.argtypes)]

    def _firmware_table(self, provider, table, buffer, size):
        self.check("the provider is RSMB and its only table 0", (provider, table) == (0x52534D42, 0))
        self.check("a buffer has a size, and no buffer none", (buffer is None) == (size == 0))
        if self.firmware is None:
            return 0
        if size >= len(self.firmware):
            ctypes.memmove(buffer, self.firmware, len(self.firmware))
        return len(self.firmware)

    def _windows_directory(self, buffer, size):
        self.check("MAX_PATH is what is recommended", size == 260)
        if len(self.directory) >= size:
            return len(self.directory) + 1
        text = ctypes.create_unicode_buffer(self.directory)
        ctypes.memmove(buffer, text, ctypes.sizeof(text))
        return len(self.directory)

    def _create_file(self, path, access, share, security, disposition, flags, template):
        self.check("no access is asked for", access == 0)
        self.check("others may read and write a disk", share == 0x3)
        self.check("a device is opened, never made", disposition == 3)
        self.check("nothing else is passed", (security, flags, template) == (None, 0, None))
        if path not in self.devices:
            return INVALID_HANDLE
        self.opened += 4
        self.handles[self.opened] = path
        return self.opened

    def _control(self, handle, code, question, question_size, answer, size, told, overlapped):
        self.check("the handle is open", handle in self.handles)
        expected, asked, known = self.devices[self.handles[handle]]
        self.check("the control code is that of the device", code == expected)
        self.check("the question is there or not", (question is None) == (question_size == 0))
        given = b"" if question is None else ctypes.string_at(question, question_size)
        self.check("the question is the documented one", given == asked)
        self.check("without OVERLAPPED, the length is told", told is not None and overlapped is None)
        if known is None or (code == DISK_EXTENTS and len(known) > size):
            return 0
        ctypes.memmove(answer, known, min(len(known), size))
        ctypes.memmove(told, struct.pack("<I", min(len(known), size)), 4)
        return 1

    def _close(self, handle):
        self.check("a handle is closed once", self.handles.pop(handle, None) is not None)
        return 1

    def _query_system(self, kind, buffer, size, told):
        self.check("SystemTimeOfDayInformation, of which longer is refused", (kind, size) == (3, 48))
        ctypes.memmove(buffer, self.times, size)
        ctypes.memmove(told, struct.pack("<I", self.told_length), 4)
        return self.status

    def _open_key(self, key, sub_key, reserved, access):
        self.check("the keys are of the machine", key == 0x80000002)
        self.check("only to look, in the 64-bit registry", (reserved, access) == (0, 0x101))
        if sub_key not in self.registry:
            raise FileNotFoundError(2, "The system cannot find the file specified")
        return Key(self.registry[sub_key])

    def _query_value(self, key, name):
        self.check("the key is open", key.is_open)
        if name not in key.values:
            raise FileNotFoundError(2, "The system cannot find the file specified")
        return key.values[name], 1


@pytest.fixture
def windows():
    return Windows()


# All together


def test_a_whole_machine_is_read(windows):
    """Every id of an ordinary machine is found, and every call is as documented."""
    assert (
        RawMachine(
            machine_id=uuid.UUID(GUID).bytes,
            smbios_uuid=UUID_MIXED,
            board_serial="/7VN4ZW2/CN1296",
            disk_serial="S4EWNX0R",
            boot_id=f"{STARTED:016x}",
            container=False,
        )
        == windows.read()
    )


def test_a_machine_that_shows_nothing_is_read():
    """Where Windows refuses everything, all is absent and nothing raises."""
    nothing = Windows()
    nothing.registry, nothing.firmware, nothing.devices, nothing.status = {}, None, {}, -0x3FFFFFDE

    assert RawMachine() == nothing.read()


def test_libraries_without_the_functions_are_no_error():
    """A Windows that lacks a function has the ids of the others."""
    bare, whole = SimpleNamespace(), Windows()

    assert RawMachine(machine_id=uuid.UUID(GUID).bytes) == WindowsMachine(bare, bare, whole.winreg).read()


def test_the_reader_is_chosen_and_loads_the_libraries_of_windows(monkeypatch, windows):
    """On Windows, and only there, kernel32, ntdll and winreg are asked for."""
    libraries = {"kernel32": windows.kernel32, "ntdll": windows.ntdll}
    monkeypatch.setattr(ctypes, "WinDLL", libraries.__getitem__, raising=False)
    monkeypatch.setitem(sys.modules, "winreg", windows.winreg)

    reader: MachineIdentity = this_machine("win32")

    assert WindowsMachine(windows.kernel32, windows.ntdll, windows.winreg) == reader


# Registry


@pytest.mark.parametrize("spelling", [GUID, GUID.upper(), f"{{{GUID}}}"])
def test_the_spelling_of_the_machine_guid_does_not_matter(windows, spelling):
    """The id is its 16 bytes."""
    windows.registry[CRYPTOGRAPHY]["MachineGuid"] = spelling

    assert uuid.UUID(GUID).bytes == windows.read().machine_id


@pytest.mark.parametrize("value", ["", "none", GUID[:-1], 7, None, b"\x00" * 16])
def test_a_machine_guid_that_is_none_is_absent(windows, value):
    """Whatever somebody wrote there, the reader does not raise."""
    windows.registry[CRYPTOGRAPHY]["MachineGuid"] = value

    assert windows.read().machine_id is None


@pytest.mark.parametrize("value,expected", [(1, True), (2, True), ("x", False), (None, False)])
def test_the_inside_of_a_container_is_marked(windows, value, expected):
    """Windows says so in the registry of its containers."""
    windows.registry[CONTROL]["ContainerType"] = value

    assert expected is windows.read().container


# Firmware


def test_the_version_of_the_firmware_decides_about_the_byte_order(windows):
    """The header's major and minor version are handed to the parser."""
    windows.firmware = raw_smbios(version=(2, 5))

    assert UUID_PLAIN == windows.read().smbios_uuid


@pytest.mark.parametrize("length", [len(TABLE), 2**32 - 1])
def test_the_length_of_the_table_is_never_believed_beyond_the_buffer(windows, length):
    """A header that promises more than there is gives what there is."""
    windows.firmware = raw_smbios(length=length)

    assert UUID_MIXED == windows.read().smbios_uuid


def test_what_the_firmware_puts_behind_the_table_is_not_read(windows):
    """The length of the header counts."""
    windows.firmware = raw_smbios(length=10)

    assert (None, None) == (windows.read().smbios_uuid, windows.read().board_serial)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_firmware_table_shorter_than_its_header_is_absent(windows, size):
    """Half a header says nothing."""
    windows.firmware = raw_smbios()[:size]

    assert windows.read().smbios_uuid is None


@pytest.mark.parametrize("beyond,expected", [(0, UUID_MIXED), (1, None)])
def test_the_longest_firmware_table_is_read_and_none_beyond(windows, beyond, expected):
    """The bound on the table is inclusive; a longer one is absent, not cut."""
    windows.firmware = raw_smbios(TABLE.ljust(MAX_TABLE_BYTES + beyond, b"\0"))

    assert expected == windows.read().smbios_uuid


def test_a_firmware_table_that_grows_between_the_calls_is_absent(windows):
    """The second call may want a larger buffer than the first said."""
    sizes = iter([64])
    real = windows._firmware_table

    def growing(provider, table, buffer, size):
        return next(sizes, None) or real(provider, table, buffer, size)

    windows.kernel32.GetSystemFirmwareTable = windows._function(
        growing, c_uint32, c_uint32, c_uint32, c_void_p, c_uint32
    )

    assert windows.read().smbios_uuid is None


# Disk


def test_the_disk_is_that_of_windows(windows):
    """Windows may be on any drive, and that on any disk."""
    windows.directory = r"E:\WINNT"
    windows.devices = {
        r"\\.\E:": (DISK_EXTENTS, b"", extents(3)),
        r"\\.\PhysicalDrive3": (QUERY_PROPERTY, bytes(12), descriptor(b"THIRD\0")),
    }

    assert "THIRD" == windows.read().disk_serial


def test_of_several_disks_the_first_serial_counts(windows):
    """A spanned volume has one id, whatever the order of its pieces."""
    windows.devices[r"\\.\C:"] = (DISK_EXTENTS, b"", extents(1, 0, 1))
    windows.devices[r"\\.\PhysicalDrive1"] = (QUERY_PROPERTY, bytes(12), descriptor(b"A-FIRST\0"))

    assert "A-FIRST" == windows.read().disk_serial


def test_a_volume_of_disks_that_cannot_all_be_read_is_absent(windows):
    """Another disk's serial in its place would make another machine of it."""
    windows.devices[r"\\.\C:"] = (DISK_EXTENTS, b"", extents(0, 1))

    assert windows.read().disk_serial is None


@pytest.mark.parametrize("device", [r"\\.\C:", r"\\.\PhysicalDrive0"])
def test_a_device_that_does_not_answer_is_absent(windows, device):
    """A driver may refuse the question."""
    code, question, _ = windows.devices[device]
    windows.devices[device] = (code, question, None)

    assert windows.read().disk_serial is None


def test_a_windows_directory_that_cannot_be_told_is_absent(windows):
    """Without a drive there is no disk."""
    windows.directory = "C:" + "x" * 300

    assert windows.read().disk_serial is None


def test_a_null_handle_is_not_used(windows):
    """Neither of the two values that are no handle reaches a driver."""
    windows.kernel32.CreateFileW = windows._function(
        lambda *_: None, c_void_p, c_wchar_p, c_uint32, c_uint32, c_void_p, c_uint32, c_uint32, c_void_p
    )

    assert windows.read().disk_serial is None


@pytest.mark.parametrize("count,expected", [(MAX_EXTENTS, "S4EWNX0R"), (MAX_EXTENTS + 1, None)])
def test_a_volume_of_too_many_pieces_is_absent(windows, count, expected):
    """There is room for what a dynamic volume may have."""
    windows.devices[r"\\.\C:"] = (DISK_EXTENTS, b"", extents(*[0] * count))

    assert expected == windows.read().disk_serial


@pytest.mark.parametrize(
    "answer,expected",
    [
        (b"", set()),
        (b"\1\0\0\0\0\0\0", set()),
        (extents(), set()),
        (extents(5), {5}),
        (extents(5)[:-1], set()),
        (extents(5, 6)[:-1], {5}),
        (extents(5) + extents(6), {5}),
        (b"\xff\xff\xff\xff" + extents(5, 6)[4:], {5, 6}),
    ],
)
def test_only_whole_pieces_of_a_volume_are_counted(answer, expected):
    """Neither the count nor the length of the answer is believed alone."""
    assert expected == _disk_numbers(answer)


@pytest.mark.parametrize("offset", [0, 1, 24, len(descriptor()), 2**32 - 1])
def test_a_serial_that_is_nowhere_is_absent(offset):
    """An offset of zero means none; one within the header or beyond the end is a driver's mistake."""
    assert _serial(descriptor(offset=offset)) is None


def test_a_serial_may_start_right_behind_its_offset_and_end_with_the_answer():
    """The narrowest places that a driver may use."""
    assert "1" == _serial(bytes(24) + struct.pack("<I", 28) + b"1")
    assert _serial(bytes(24) + struct.pack("<I", 27) + b"1") is None
    assert _serial(bytes(24) + struct.pack("<I", 29) + b"1") is None


@pytest.mark.parametrize(
    "serial,expected",
    [
        (b"\0", ""),
        (b"        \0", ""),
        (b"0025_3858_01B5_7A1E.\0", "0025_3858_01B5_7A1E."),
        (b"NO-END", "NO-END"),
        (b"\xe9\0", "\ufffd"),
    ],
)
def test_a_serial_is_what_stands_before_the_nul(serial, expected):
    """Blanks go, bytes that are no text are marked, a missing end is the end of the answer."""
    assert expected == _serial(descriptor(serial))


def test_a_long_description_of_a_disk_is_cut(windows):
    """What a driver says beyond the buffer is not read, and a serial in there is absent."""
    code, question, _ = windows.devices[r"\\.\PhysicalDrive0"]
    long = descriptor(offset=MAX_DESCRIPTOR_BYTES).ljust(MAX_DESCRIPTOR_BYTES, b"x") + b"BEHIND\0"
    windows.devices[r"\\.\PhysicalDrive0"] = (code, question, long)

    assert windows.read().disk_serial is None


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_answer_of_a_driver_gives_a_serial_or_nothing(volume, disk):
    """Whatever a driver writes, nothing raises."""
    windows = Windows()
    windows.devices[r"\\.\C:"] = (DISK_EXTENTS, b"", volume)
    windows.devices[r"\\.\PhysicalDrive0"] = (QUERY_PROPERTY, bytes(12), disk)

    found = windows.read().disk_serial

    assert found is None or isinstance(found, str)


# Boot


def times(boot_time, bias):
    """What the kernel says when its boot time was moved by *bias* in all."""
    return struct.pack("<qqqIIQQ", boot_time, 7, 0, 0, 0, bias % 2**64, 5)


@pytest.mark.parametrize("moved", [0, SET_BY, -SET_BY])
def test_setting_the_clock_does_not_change_the_boot_id(windows, moved):
    """The kernel moves the boot time and notes by how much."""
    windows.times = times(STARTED + moved, moved)

    assert f"{STARTED:016x}" == windows.read().boot_id


def test_another_start_has_another_boot_id(windows):
    """A start a tenth of a microsecond later is another one."""
    windows.times = times(STARTED + 1, 0)

    assert f"{STARTED:016x}" != windows.read().boot_id


@pytest.mark.parametrize(
    "boot_time,status,length", [(0, 0, 48), (STARTED, 1, 48), (STARTED, -1, 48), (STARTED, 0, 32)]
)
def test_a_boot_time_that_is_not_told_is_absent(windows, boot_time, status, length):
    """A refusal, a shorter structure and no time at all say nothing about the boot."""
    windows.times, windows.status, windows.told_length = times(boot_time, 0), status, length

    assert windows.read().boot_id is None


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**64 - 1))
def test_any_boot_time_makes_an_id_that_travels(boot_time, bias):
    """Whatever the clock of the firmware was, the id has 16 hex digits."""
    windows = Windows()
    windows.times = times(boot_time, bias)

    found = windows.read().boot_id

    assert found is None or 16 == len(found)


# What it means


def evidence(windows, **changes):
    return make_evidence(windows.read(), replacement=bytes(range(1, 17)), **changes)


def test_two_machines_of_one_image_share_only_the_machine_guid():
    """The second one is told to replace it, and is then another machine."""
    one, other = Windows(), Windows()
    other.firmware = raw_smbios(TABLE.replace(bytes(range(0x10, 0x20)), bytes(range(0x20, 0x30))))
    other.devices[r"\\.\PhysicalDrive0"] = (QUERY_PROPERTY, bytes(12), descriptor(b"OTHER\0"))

    assert evidence(one).machine_id == evidence(other).machine_id
    replaced = evidence(other, replace_machine_id=True)
    assert ("machine_id",) == replaced.weak
    assert MachineVerdict.HARDWARE_CHANGED == compare(evidence(one), replaced)


def test_a_clone_of_a_running_machine_is_seen_by_its_boots():
    """Two copies of a virtual machine share every id, and start at different times."""
    one, other = Windows(), Windows()
    other.times = times(STARTED + 600_000_000, 0)
    first, second = one.read().boot_id, other.read().boot_id

    assert MachineVerdict.MATCH == compare(evidence(one), evidence(other))
    assert "rebooted" == judge_boot(first, None, second)
    assert "clone" == judge_boot(second, first, first)


def test_the_placeholders_of_a_virtual_machine_are_weak():
    """What a hypervisor gives to every guest is dropped and named."""
    guest = Windows()
    guest.firmware = raw_smbios(TABLE.replace(b"/7VN4ZW2/CN1296", b"None"))
    guest.devices[r"\\.\PhysicalDrive0"] = (QUERY_PROPERTY, bytes(12), descriptor(b"VMware NVME_0000\0"))

    assert ("board_serial", "disk_serial") == evidence(guest).weak
