"""The storage scanner on this machine, and on mount tables, file systems and disks that this machine has not."""

import asyncio
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_agent.scanners import StorageScanner
from redflag_agent.scanners.block_devices import disks
from redflag_agent.scanners.facts_text import show_facts
from redflag_agent.scanners.filesystems import Asker, Measure, measure, mount_table
from redflag_agent.scanners.mounts import IMAGES, MEMORY, PSEUDO, Mount, data_mounts
from redflag_core.errors import ScanError
from redflag_core.scanning import Disk, ScanStatus, StorageFacts, open_facts
from redflag_core.scanning.facts import MAX_FILESYSTEMS, MAX_PATH
from redflag_core.system import SystemClock
from redflag_core.testing import FrozenClock

ROOT = Mount("/dev/sda1", "/", "ext4")
NAS = Mount("nas:/export", "/mnt/nas", "nfs4")
GIB = 2**30


def scanner_of(*mounts, ask=lambda path: Measure(100 * GIB, 40 * GIB, 60 * GIB), timeout=30.0, **options):
    """A scanner of a mount table; each file system answers what *ask* says."""
    options.setdefault("sysfs", Path("/nowhere"))
    asker = Asker(ask=ask, timeout=timeout)
    return StorageScanner(clock=FrozenClock(), mounts=lambda: mounts, ask=asker, **options)


async def scan(*mounts, **options):
    """What the scanner says of a mount table: its facts and warnings."""
    report = await scanner_of(*mounts, **options).scan()
    return open_facts(StorageFacts, report.facts), report.warnings


def failing(error):
    """A file system that cannot be asked."""

    def ask(_path):
        raise error

    return ask


# --- this machine ---


async def test_this_machine_is_measured():
    """Its root is there, with the numbers of statvfs(2), and every number fits the others."""
    report = await StorageScanner(clock=SystemClock()).scan()
    facts, (root, *_) = open_facts(StorageFacts, report.facts), open_facts(StorageFacts, report.facts).filesystems

    values = os.statvfs("/")
    assert (ScanStatus.OK, "storage", ()) == (report.status, report.scanner, report.packages)
    assert ("/", values.f_blocks * values.f_frsize) == (root.mount, root.size)
    assert abs(root.free - values.f_bavail * values.f_frsize) <= root.size // 512
    assert all(f.used + f.free <= f.size * 1.01 for f in facts.filesystems if f.problem is None)
    assert not {f.type for f in facts.filesystems} & (PSEUDO | MEMORY | IMAGES)


def test_the_mount_table_of_this_machine_is_that_of_the_kernel():
    """Every path of /proc/self/mounts, as escaped there."""
    table = Path("/proc/self/mounts").read_text("utf-8", errors="surrogateescape")
    expected = [line.split()[1].replace("\\040", " ") for line in table.splitlines()]

    assert expected == [mount.path for mount in mount_table()]


def test_a_file_that_is_mounted_is_no_file_system(tmp_path):
    """As containers mount /etc/hosts: it would show the host's disk under a strange name."""
    file = tmp_path / "hosts"
    file.touch()

    assert measure(str(file)) is None
    assert measure("/proc") is None
    assert measure(str(tmp_path)).size > 0


async def test_two_scans_of_a_quiet_machine_say_the_same():
    """What nobody would notice is no news, so nothing is reported again."""
    used = iter([40 * GIB, 40 * GIB + 4096])
    scanner = scanner_of(ROOT, ask=lambda _path: Measure(100 * GIB, next(used), 50 * GIB, 10**6, 5000))

    assert (await scanner.scan()).facts == (await scanner.scan()).facts


# --- which mounts ---


@pytest.mark.parametrize("kind", sorted(PSEUDO | MEMORY | IMAGES | {"overlay", "fuse.x.AppImage"}))
def test_what_nobody_can_clean_up_is_left_out(kind):
    """Pseudo file systems, memory, images that are full by nature, and layers of containers seen from the host."""
    assert [ROOT] == data_mounts([ROOT, Mount("/dev/loop3", "/snap/core/1", kind)])


@pytest.mark.parametrize(
    "kind", ["ext4", "xfs", "btrfs", "zfs", "vfat", "ntfs3", "fuseblk", "nfs4", "cifs", "fuse.sshfs"]
)
def test_what_holds_data_is_shown(kind):
    """Local, foreign and of other machines."""
    data = Mount("thing:/x", "/data", kind)

    assert [ROOT, data] == data_mounts([data, ROOT])


def test_the_root_of_a_container_is_its_own():
    """It is layers, and all that the container has."""
    root = Mount("overlay", "/", "overlay")

    assert [root] == data_mounts([root, Mount("proc", "/proc", "proc")])


def test_a_device_counts_once():
    """Bind mounts and subvolumes share what is free: the shortest path stands for them."""
    table = [Mount("/dev/sda1", "/var/lib/docker", "btrfs"), Mount("/dev/sda1", "/home", "btrfs"), ROOT]

    assert [ROOT] == data_mounts(table)


def test_mounts_that_share_a_meaningless_name_are_kept_apart():
    """Some FUSE file systems call each mount by the name of the program."""
    table = [Mount("s3fs", "/a", "fuse.s3fs"), Mount("s3fs", "/b", "fuse.s3fs")]

    assert table == data_mounts(table)


def test_what_is_mounted_over_something_hides_it():
    """The last line of a path is the one that is seen."""
    over = Mount("/dev/sdb1", "/data", "ext4")

    assert [over] == data_mounts([Mount("/dev/sda2", "/data", "xfs"), over])
    assert [] == data_mounts([over, Mount("tmpfs", "/data", "tmpfs")])


_MOUNTS = st.builds(
    Mount,
    st.sampled_from(["/dev/a", "/dev/b", "tmpfs", "x", ""]),
    st.sampled_from(["/", "/a", "/a/b", "C:\\"]),
    st.sampled_from(["ext4", "tmpfs", "overlay", ""]),
)


@given(st.lists(_MOUNTS))
def test_any_table_gives_each_device_and_path_once(table):
    """Whatever is mounted where."""
    chosen = data_mounts(table)

    assert len({mount.path for mount in chosen}) == len(chosen)
    assert set(chosen) <= set(table)
    named = [mount.device for mount in chosen if "/" in mount.device]
    assert len(set(named)) == len(named)


# --- file systems that are strange ---


async def test_one_that_does_not_answer_does_not_hold_up_the_others():
    """It is told as such; what answers is measured."""
    gone = threading.Event()
    try:
        facts, warnings = await scan(
            NAS, ROOT, timeout=0.05, ask=lambda path: gone.wait() if path == NAS.path else Measure(8, 4, 4)
        )
    finally:
        gone.set()

    root, nas = facts.filesystems
    assert (50, None) == (root.percent, root.problem)
    assert ("does not answer", None, None) == (nas.problem, nas.size, nas.percent)
    assert ("/mnt/nas (nas:/export) does not answer",) == warnings


async def test_one_that_does_not_answer_is_not_asked_again_until_it_does():
    """Otherwise a server that is gone for a month would leave a thread behind for each scan."""
    gone, asked, told = threading.Event(), [], asyncio.Event()
    loop = asyncio.get_running_loop()

    def ask(path):
        asked.append(path)
        gone.wait()
        loop.call_soon_threadsafe(told.set)
        return Measure(8, 4, 4)

    asker = Asker(ask=ask, timeout=0.05)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asker(NAS.path)
    assert [NAS.path] == asked
    (stuck,) = asker._waiting.values()
    gone.set()
    await told.wait()
    stuck.join()

    assert Measure(8, 4, 4) == await asker(NAS.path)


async def test_a_thread_that_is_late_hurts_nobody():
    """Its answer, or its failure, comes after the scan is over: it is dropped without a sound."""
    gone = threading.Event()
    heard = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: heard.append(context))
    asker = Asker(ask=lambda _path: failing(OSError(5, "late"))(gone.wait()), timeout=0.01)

    with pytest.raises(TimeoutError):
        await asker("/mnt")
    (stuck,) = asker._waiting.values()
    gone.set()
    await asyncio.to_thread(stuck.join)
    await asyncio.sleep(0)

    assert [] == heard


@pytest.mark.parametrize(
    "error, problem",
    [
        (PermissionError(13, "Permission denied"), "cannot be read: Permission denied"),
        (OSError(116, "Stale file handle"), "cannot be read: Stale file handle"),
        (TimeoutError(110, "Connection timed out"), "does not answer"),
    ],
)
async def test_one_that_cannot_be_asked_says_why(error, problem):
    """Its numbers are absent, never 0."""
    facts, warnings = await scan(NAS, ask=failing(error))

    (nas,) = facts.filesystems
    assert (problem, None, None, None) == (nas.problem, nas.size, nas.used, nas.inodes)
    assert problem in warnings[0]


async def test_one_that_is_gone_by_now_is_no_trouble():
    """Unmounted between reading the table and asking."""
    assert (StorageFacts(), ()) == await scan(NAS, ask=failing(FileNotFoundError(2, "gone")))


async def test_one_of_endless_size_says_that_it_has_none():
    """Object stores claim 16 exabytes: no reader of JSON keeps such a number, and it says nothing."""
    facts, _ = await scan(NAS, ask=lambda _path: Measure(2**64, 0, 2**64))

    assert ("has no size of its own", None) == (facts.filesystems[0].problem, facts.filesystems[0].size)


async def test_a_file_system_without_a_fixed_number_of_inodes_has_none():
    """Absent, so that nobody takes it for "no inode left"."""
    facts, _ = await scan(ROOT)

    assert (None, None) == (facts.filesystems[0].inodes, facts.filesystems[0].inode_percent)


async def test_names_from_the_disk_are_made_fit_for_a_page():
    """A mount point may have any bytes but the slash."""
    odd = Mount("/dev/disk/by-label/\x1b[31m", "/media/\udcff\n" + "x" * 5000, "ext4")

    facts, _ = await scan(odd)

    (shown,) = facts.filesystems
    assert (True, MAX_PATH) == (shown.mount.isprintable(), len(shown.mount))
    assert shown.device.isprintable()


async def test_more_than_a_report_holds_is_counted():
    """The least deep are kept, and the warning says how many are not there."""
    table = [Mount(f"/dev/sd{n}", f"/data/{n:03}", "ext4") for n in range(MAX_FILESYSTEMS + 6)]

    facts, warnings = await scan(*table, ROOT)

    assert MAX_FILESYSTEMS == len(facts.filesystems)
    assert ("/", "/data/000") == tuple(f.mount for f in facts.filesystems[:2])
    assert ("7 more file systems are left out: a report has no room for them",) == warnings


async def test_long_names_are_counted_too():
    """What does not fit into the bytes of a report is left out, never the report refused."""
    table = [Mount(f"/dev/{n}", f"/{n:02}" + "\U0001f6a9" * 4000, "ext4") for n in range(MAX_FILESYSTEMS)]

    facts, warnings = await scan(*table)

    left_out = MAX_FILESYSTEMS - len(facts.filesystems)
    assert 0 < left_out < MAX_FILESYSTEMS
    assert (f"{left_out} more file systems are left out: a report has no room for them",) == warnings


async def test_a_mount_table_that_cannot_be_read_is_a_failed_scan():
    """Not a machine without disks."""
    scanner = StorageScanner(
        clock=FrozenClock(), mounts=lambda: failing(PermissionError(13, "Permission denied"))("")
    )

    with pytest.raises(ScanError, match="mount table cannot be read: Permission denied"):
        await scanner.scan()


# --- disks ---


def block_device(sysfs, name, *, hardware=True, **files):
    """A block device of a made-up sysfs."""
    entry = sysfs / "block" / name
    (entry / "queue").mkdir(parents=True)
    if hardware:
        (entry / "device").mkdir()
    for path, text in files.items():
        (entry / path.replace("__", "/")).write_text(f"{text}\n")


def test_disks_are_what_has_hardware_behind_it(tmp_path):
    """Partitions, loop devices, RAID, volumes, optical drives, empty card readers and hidden parts are none."""
    block_device(tmp_path, "sda", size=2000, queue__rotational=1, device__model="ACME  Disk 9000 ")
    block_device(tmp_path, "nvme0n1", size=4000, queue__rotational=0, hidden=0)
    block_device(tmp_path, "nvme0c0n1", size=4000, hidden=1)
    block_device(tmp_path, "sdb", size=0)
    block_device(tmp_path, "sr0", size=9)
    block_device(tmp_path, "mmcblk0boot0", size=9)
    for name in ("loop0", "md0", "dm-0", "ram0", "zram0"):
        block_device(tmp_path, name, hardware=False, size=9)

    assert [
        Disk(name="nvme0n1", size=4000 * 512, rotational=False),
        Disk(name="sda", size=2000 * 512, rotational=True, model="ACME  Disk 9000"),
    ] == disks(tmp_path)


@pytest.mark.parametrize("text", ["", "-5", "many", "٣", "9" * 30])
def test_what_cannot_be_read_of_a_disk_is_absent(tmp_path, text):
    """Never 0."""
    block_device(tmp_path, "sda", size=text)

    assert [Disk(name="sda")] == disks(tmp_path)


def test_a_machine_without_sysfs_has_no_disks_to_show(tmp_path):
    """A container may hide it."""
    assert [] == disks(tmp_path)


# --- for people ---


async def test_people_read_what_is_full_and_what_is_silent():
    """In words: percent, room, and what is wrong."""
    answers = {"/": Measure(1000, 950, 50, 100, 95), "/mnt/nas": TimeoutError()}

    def ask(path):
        answer = answers[path]
        return answer if isinstance(answer, Measure) else failing(answer)(path)

    lines = show_facts(await scanner_of(ROOT, NAS, ask=ask).scan())

    assert [
        "storage:",
        "  /  ext4 on /dev/sda1: 95 % used, 50 B free, 95 % of its inodes, FULL, OUT OF INODES",
        "  /mnt/nas  nfs4 on nas:/export: does not answer",
        "warning: /mnt/nas (nas:/export) does not answer",
    ] == lines
