"""The Linux reader, on trees of files laid out as the kernel lays them out."""

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core.machine import RawMachine
from redflag_core.machine_readers.linux import MAX_STACKED_DEVICES, LinuxMachine, _root_mount
from redflag_core.ports import MachineIdentity

MACHINE_ID = "b08dfa6083e7567a1921a715000001fb"
BOOT_ID = "c5f1cbc1-0d3e-4d0c-9f5c-9d0f7a4a9f11"
PCI = "sys/devices/pci0000:00/0000:00:1f.2"


class Tree:
    """A file system root to fill; the verbs write what the kernel would show."""

    def __init__(self, root):
        self.root = root

    def file(self, path, content=""):
        """A file with *content*."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())

    def link(self, path, target):
        """A relative symbolic link from *path* to *target*, both from the root."""
        source = self.root / path
        source.parent.mkdir(parents=True, exist_ok=True)
        source.symlink_to(os.path.relpath(self.root / target, source.parent))

    def device(self, directory, number, *, below=(), **files):
        """A block device: its sysfs directory, the two links to it, and the devices *below* it."""
        for name, content in files.items():
            self.file(f"{directory}/{name.replace('__', '/')}", content)
        self.file(f"{directory}/dev", f"{number}\n")
        if "partition" not in files:
            (self.root / directory / "slaves").mkdir()
        self.link(f"sys/dev/block/{number}", directory)
        self.link(f"sys/class/block/{Path(directory).name}", directory)
        for other in below:
            self.link(f"{directory}/slaves/{Path(other).name}", other)
        return directory

    def partition(self, directory, number):
        """A partition: a directory within its disk's."""
        return self.device(directory, number, partition="2\n")

    def mount(self, number, source="/dev/root", *, point="/", kind="ext4"):
        """Append a line to the mount table."""
        mounts = self.root / "proc/self/mountinfo"
        before = mounts.read_text() if mounts.exists() else ""
        line = f"22 1 {number} / {point} rw,relatime shared:1 - {kind} {source} rw,errors=remount-ro\n"
        self.file("proc/self/mountinfo", before + line)

    def read(self):
        """What the reader makes of it."""
        return LinuxMachine(self.root).read()


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def sda(tree, serial="S4EWNX0R", number=0):
    """A SATA disk with one partition; the path of the disk."""
    name = "sd" + "abc"[number]
    disk = tree.device(f"{PCI}/ata{number + 1}/block/{name}", f"8:{16 * number}", device__wwid=f"naa.{serial}\n")
    tree.partition(f"{disk}/{name}2", f"8:{16 * number + 2}")
    return disk


# All together


def test_a_whole_machine_is_read(tree):
    """Every id of an ordinary machine is found."""
    tree.file("etc/machine-id", MACHINE_ID + "\n")
    tree.file("sys/class/dmi/id/product_uuid", "4C4C4544-0051-3010-8052-B4C04F564231\n")
    tree.file("sys/class/dmi/id/board_serial", "/7VN4ZW2/CN1296\n")
    tree.file("proc/sys/kernel/random/boot_id", BOOT_ID + "\n")
    sda(tree)
    tree.mount("8:2")

    assert tree.read() == RawMachine(
        machine_id=bytes.fromhex(MACHINE_ID),
        smbios_uuid="4C4C4544-0051-3010-8052-B4C04F564231",
        board_serial="/7VN4ZW2/CN1296",
        disk_serial="naa.S4EWNX0R",
        boot_id=BOOT_ID,
        container=False,
    )


def test_a_machine_that_shows_nothing_is_read(tree):
    """No DMI, no machine id, not even /proc: all is absent and nothing raises."""
    assert RawMachine() == tree.read()


def test_a_directory_in_the_place_of_every_file_is_absent(tree):
    """Whatever stands where an id should be, the reader does not raise."""
    for path in ("etc/machine-id", "sys/class/dmi/id/product_uuid", "proc/self/mountinfo", "proc/1/environ"):
        (tree.root / path).mkdir(parents=True)

    assert RawMachine() == tree.read()


def test_this_machine_is_read():
    """The reader fits its port and works on the machine that runs the tests, as whoever runs them."""
    reader: MachineIdentity = LinuxMachine()

    assert isinstance(reader.read(), RawMachine)


@contextmanager
def as_nobody():
    """Without root's right to read everything, also when root runs the tests."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_what_only_root_may_read_is_absent_for_others():
    """Without root, firmware ids are absent; the rest is read."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        tree = Tree(Path(directory))
        tree.file("etc/machine-id", MACHINE_ID)
        tree.file("sys/class/dmi/id/product_uuid", "4C4C4544-0051-3010-8052-B4C04F564231\n")
        (tree.root / "sys/class/dmi/id/product_uuid").chmod(0o000)
        with as_nobody():
            raw = tree.read()

    assert RawMachine(machine_id=bytes.fromhex(MACHINE_ID)) == raw


# Machine id


@pytest.mark.parametrize("content", [MACHINE_ID, MACHINE_ID + "\n", MACHINE_ID.upper() + "\n"])
def test_the_machine_id_is_32_hex_digits(tree, content):
    """With or without the newline, in either case."""
    tree.file("etc/machine-id", content)

    assert bytes.fromhex(MACHINE_ID) == tree.read().machine_id


@pytest.mark.parametrize(
    "content", ["", "uninitialized\n", MACHINE_ID[:31], MACHINE_ID + "0", "x" * 32, b"\xff" * 40]
)
def test_a_file_without_a_machine_id_is_absent(tree, content):
    """An image that was not booted yet has no machine id; nor has a damaged file."""
    tree.file("etc/machine-id", content)

    assert tree.read().machine_id is None


@pytest.mark.parametrize("content", [None, "", "uninitialized\n"])
def test_the_machine_id_of_dbus_is_the_fallback(tree, content):
    """Without systemd, D-Bus keeps the machine id."""
    if content is not None:
        tree.file("etc/machine-id", content)
    tree.file("var/lib/dbus/machine-id", MACHINE_ID + "\n")

    assert bytes.fromhex(MACHINE_ID) == tree.read().machine_id


def test_the_machine_id_of_systemd_comes_first(tree):
    """Where both exist, /etc/machine-id is what systemd-id128 reads too."""
    tree.file("etc/machine-id", MACHINE_ID)
    tree.file("var/lib/dbus/machine-id", "0" * 32)

    assert bytes.fromhex(MACHINE_ID) == tree.read().machine_id


# Firmware


def test_an_empty_firmware_field_is_empty_and_not_absent(tree):
    """Empty is a weak id that is shown as such; unreadable is absent."""
    tree.file("sys/class/dmi/id/board_serial", " \n")

    assert "" == tree.read().board_serial


def test_a_board_without_dmi_has_its_serial_in_the_device_tree(tree):
    """A Raspberry Pi; the device tree ends its texts with NUL."""
    tree.file("sys/firmware/devicetree/base/serial-number", "10000000a3b1c2d4\0")

    raw = tree.read()

    assert "10000000a3b1c2d4" == raw.board_serial
    assert raw.smbios_uuid is None


def test_firmware_that_is_not_utf8_is_read(tree):
    """Damaged or foreign bytes are still an id."""
    tree.file("sys/class/dmi/id/board_serial", b"SN\xff1\n")

    assert "SN\ufffd1" == tree.read().board_serial


# The disk of the root file system


def test_the_serial_is_of_the_disk_with_the_root_file_system(tree):
    """Not of whichever disk comes first."""
    sda(tree, "FIRST", 0)
    sda(tree, "SECOND", 1)
    tree.mount("8:2", point="/srv")
    tree.mount("8:18")

    assert "naa.SECOND" == tree.read().disk_serial


def test_the_last_mount_at_the_root_counts(tree):
    """The initial RAM disk, or an earlier root, is covered by the later mount."""
    sda(tree)
    tree.mount("0:2", "rootfs", kind="rootfs")
    tree.mount("8:2")

    assert "naa.S4EWNX0R" == tree.read().disk_serial


@pytest.mark.parametrize("attribute", ["device__serial", "serial", "device__wwid", "wwid"])
def test_the_serial_is_where_its_driver_puts_it(tree, attribute):
    """NVMe and MMC, virtio, SCSI and the rest each have their place."""
    tree.device(f"{PCI}/virtio1/block/vda", "254:0", **{attribute: "S4EWNX0R\n"})
    tree.mount("254:0")

    assert "S4EWNX0R" == tree.read().disk_serial


def test_an_nvme_disk_has_its_serial_at_its_controller(tree):
    """The device link of a namespace leads to the controller; the serial is padded."""
    controller = f"{PCI}/nvme/nvme0"
    disk = tree.device(f"{controller}/nvme0n1", "259:0", wwid="eui.0025385b71b0a3c1\n")
    tree.file(f"{controller}/serial", "S5GXNX0T123456      \n")
    tree.link(f"{disk}/device", controller)
    tree.partition(f"{disk}/nvme0n1p2", "259:2")
    tree.mount("259:2")

    assert "S5GXNX0T123456" == tree.read().disk_serial


def test_an_empty_serial_gives_way_to_a_world_wide_id(tree):
    """The first that says something is taken."""
    tree.device(f"{PCI}/virtio1/block/vda", "254:0", serial="\n", device__wwid="naa.5000c500a1b2c3d4\n")
    tree.mount("254:0")

    assert "naa.5000c500a1b2c3d4" == tree.read().disk_serial


def test_a_disk_with_only_an_empty_serial_has_an_empty_one(tree):
    """So that it is shown as weak."""
    tree.device(f"{PCI}/virtio1/block/vda", "254:0", serial="\n")
    tree.mount("254:0")

    assert "" == tree.read().disk_serial


def test_a_disk_without_any_serial_is_absent(tree):
    """Some virtual disks have none."""
    tree.device(f"{PCI}/virtio1/block/vda", "254:0")
    tree.mount("254:0")

    assert tree.read().disk_serial is None


def test_a_disk_without_a_list_of_devices_below_is_the_disk(tree):
    """Some drivers register none."""
    disk = sda(tree)
    (tree.root / disk / "slaves").rmdir()
    tree.mount("8:2")

    assert "naa.S4EWNX0R" == tree.read().disk_serial


def test_lvm_on_luks_on_a_partition_leads_to_the_disk(tree):
    """A common laptop: file system on a volume, in an encrypted container, on a partition."""
    disk = sda(tree)
    luks = tree.device("sys/devices/virtual/block/dm-0", "253:0", below=[f"{disk}/sda2"])
    tree.device("sys/devices/virtual/block/dm-1", "253:1", below=[luks])
    tree.mount("253:1", "/dev/mapper/vg-root")

    assert "naa.S4EWNX0R" == tree.read().disk_serial


@pytest.mark.parametrize("serials", [("AAA", "BBB"), ("BBB", "AAA")])
def test_a_mirror_has_one_serial_whatever_the_disks_are_called(tree, serials):
    """The names sda and sdb may change places at each boot; the evidence may not."""
    disks = [sda(tree, serial, number) for number, serial in enumerate(serials)]
    tree.device("sys/devices/virtual/block/md0", "9:0", below=[f"{disk}/{disk[-3:]}2" for disk in disks])
    tree.partition("sys/devices/virtual/block/md0/md0p1", "259:1")
    tree.mount("259:1")

    assert "naa.AAA" == tree.read().disk_serial


def test_btrfs_is_found_by_its_source(tree):
    """Its device number is its own; the mount names the partition."""
    sda(tree)
    tree.file("dev/sda2")
    tree.mount("0:25", "/dev/sda2", kind="btrfs")

    assert "naa.S4EWNX0R" == tree.read().disk_serial


def test_a_source_that_is_a_link_is_followed(tree):
    """Names of volumes are links that udev makes."""
    disk = sda(tree)
    tree.device("sys/devices/virtual/block/dm-0", "253:0", below=[f"{disk}/sda2"])
    tree.file("dev/dm-0")
    tree.link("dev/mapper/vg-root", "dev/dm-0")
    tree.mount("0:25", "/dev/mapper/vg-root", kind="btrfs")

    assert "naa.S4EWNX0R" == tree.read().disk_serial


@pytest.mark.parametrize("source,kind", [("overlay", "overlay"), ("rpool/ROOT", "zfs"), ("/dev/gone", "btrfs")])
def test_a_root_without_a_block_device_has_no_serial(tree, source, kind):
    """A container's overlay, a ZFS pool, a device that is not there."""
    sda(tree)
    tree.mount("0:25", source, kind=kind)

    assert tree.read().disk_serial is None


def test_a_loop_of_devices_ends(tree):
    """The kernel has no such loop; the reader does not rely on it."""
    tree.device("sys/devices/virtual/block/dm-0", "253:0")
    tree.link("sys/devices/virtual/block/dm-0/slaves/dm-0", "sys/devices/virtual/block/dm-0")
    tree.mount("253:0")

    assert tree.read().disk_serial is None


def test_a_loop_of_links_ends(tree):
    """On every Python, resolving it does not raise."""
    tree.link("dev/a", "dev/b")
    tree.link("dev/b", "dev/a")
    tree.mount("0:25", "/dev/a", kind="btrfs")

    assert tree.read().disk_serial is None


@pytest.mark.parametrize("layers,found", [(MAX_STACKED_DEVICES, True), (MAX_STACKED_DEVICES + 1, False)])
def test_a_stack_is_followed_to_its_bound(tree, layers, found):
    """As deep as anybody builds, and no deeper."""
    below = f"{sda(tree)}/sda2"
    for number in range(layers):
        below = tree.device(f"sys/devices/virtual/block/dm-{number}", f"253:{number}", below=[below])
    tree.mount(f"253:{layers - 1}")

    assert found == (tree.read().disk_serial is not None)


def test_optional_fields_of_a_mount_may_be_many_or_none():
    """Between the options and the hyphen stand none or more."""
    bare = b"22 1 8:2 / / rw - ext4 /dev/sda2 rw\n"
    shared = b"22 1 8:2 / / rw shared:1 master:7 propagate_from:2 - ext4 /dev/sda2 rw\n"

    assert ("8:2", "/dev/sda2") == _root_mount(bare) == _root_mount(shared)


def test_a_mount_with_odd_characters_is_one_line():
    """The kernel escapes blanks and newlines, not other line separators, as in the name of this subvolume."""
    line = "22 1 0:25 /@\u2028\x85 / rw - btrfs /dev/sda2 rw\n"

    assert ("0:25", "/dev/sda2") == _root_mount(line.encode())


@given(
    st.binary() | st.lists(st.sampled_from([b"22 ", b"8:2", b" / ", b"/ ", b"rw ", b" - ", b"\n"])).map(b"".join)
)
def test_any_mount_table_is_read_without_an_error(mountinfo):
    """A line that is cut or strange is passed over."""
    found = _root_mount(mountinfo)

    assert found is None or [str, str] == [type(part) for part in found]


# Container


@pytest.mark.parametrize("mark", ["run/.containerenv", ".dockerenv", "run/systemd/container"])
def test_a_container_is_known_by_its_mark(tree, mark):
    """Podman, Docker and systemd each leave a file, which may be empty."""
    tree.file(mark)

    assert tree.read().container


@pytest.mark.parametrize("environ", ["container=lxc\0HOME=/root\0", "HOME=/root\0container=systemd-nspawn\0"])
def test_a_container_is_known_by_the_environment_of_its_first_process(tree, environ):
    """The Container Interface of systemd."""
    tree.file("proc/1/environ", environ)

    assert tree.read().container


@pytest.mark.parametrize("environ", ["", "container=\0", "mycontainer=x\0", "HOME=/root\0PATH=/container=1\0"])
def test_a_machine_is_no_container_for_a_similar_word(tree, environ):
    """Only the variable itself counts, with a value."""
    tree.file("proc/1/environ", environ)

    assert not tree.read().container


def test_the_readers_of_other_systems_are_not_imported():
    """Choosing the reader of this machine loads neither theirs nor what they need."""
    code = (
        "import sys; from redflag_core.machine_readers import this_machine; this_machine();"
        "print([name for name in ('ctypes', 'winreg', 'redflag_core.machine_readers.windows',"
        " 'redflag_core.machine_readers.macos') if name in sys.modules])"
    )

    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    ).stdout

    assert "[]" == printed.strip()
