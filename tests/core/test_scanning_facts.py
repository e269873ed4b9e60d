"""Facts of storage and system: what is full, what is news, and what a machine may claim."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core.encoding import dump_json, parse_json
from redflag_core.errors import MalformedError
from redflag_core.scanning import (
    Cpu,
    Disk,
    Filesystem,
    Lifespan,
    Memory,
    StorageFacts,
    Swap,
    SystemFacts,
    facts_of,
    open_facts,
    percent_used,
    rounded,
)
from redflag_core.scanning.facts import MAX_FILESYSTEMS
from redflag_core.scanning.model import MAX_FACTS_BYTES

GIB = 2**30
SIZES = st.integers(0, 2**53 - 1)


def filesystem(**changes):
    """A root file system."""
    return Filesystem(**{"mount": "/", "device": "/dev/sda1", "type": "ext4", **changes})


@pytest.mark.parametrize(
    "expected, used, free",
    [(0, 0, 10), (1, 1, 1000), (50, 5, 5), (90, 9, 1), (90, 891, 100), (100, 1, 0), (None, 0, 0)],
)
def test_percent_is_that_of_df(expected, used, free):
    """Rounded up, of what users can have; of nothing there is none."""
    assert expected == percent_used(used, free)


@pytest.mark.parametrize(
    "expected, used, free, read_only",
    [(False, 89, 11, False), (True, 90, 10, False), (True, 100, 0, False), (False, 100, 0, True)],
)
def test_a_file_system_is_full_from_ninety_percent(expected, used, free, read_only):
    """An image that is full because it is made so is no alarm; inodes count like bytes."""
    by_bytes = filesystem(size=100, used=used, free=free, read_only=read_only)
    by_inodes = filesystem(inodes=100, inodes_used=used, read_only=read_only)

    assert (expected, False) == (by_bytes.is_full, by_bytes.is_out_of_inodes)
    assert (False, expected) == (by_inodes.is_full, by_inodes.is_out_of_inodes)


def test_what_is_not_known_is_not_full():
    """Nor empty."""
    silent = filesystem(problem="does not answer")

    assert (None, None, False, False) == (
        silent.percent,
        silent.inode_percent,
        silent.is_full,
        silent.is_out_of_inodes,
    )
    assert Memory(total=5).percent is None


def test_memory_in_use_is_what_is_not_available():
    """Caches are not in use."""
    assert 25 == Memory(total=8 * GIB, available=6 * GIB).percent


@given(SIZES, SIZES)
def test_rounding_stays_close(first, second):
    """Within a thousandth of the whole and a sixteenth of the value, and never more than the whole."""
    value, whole = sorted((first, second))

    told = rounded(value, whole)

    assert 0 <= told <= whole
    assert abs(told - value) <= max(1, min(whole // 1024, value // 16))


def test_a_small_change_is_no_news():
    """A log that grew by a megabyte does not make a new report; a hundred do."""
    size, used = 40 * GIB, 10 * GIB

    assert rounded(used, size) == rounded(used + 2**20, size)
    assert rounded(used, size) != rounded(used + 100 * 2**20, size)


def test_little_room_is_told_finely():
    """A gigabyte left of ten thousand is not told as nothing."""
    assert GIB == rounded(GIB, 10_000 * GIB)


FULL = SystemFacts(
    cpu=Cpu(model="AMD EPYC", logical=4, physical=2),
    load=(0.1, 1.0, 12.5),
    memory=Memory(total=8 * GIB, available=6 * GIB, limit=4 * GIB),
    swap=Swap(total=0, used=0),
    boot_time=1_767_225_600,
    processes=96,
    virtual_machine=True,
    os_end_of_life=Lifespan("Debian", "2026-07-11", "2028-06-30"),
)
STORED = StorageFacts(
    filesystems=(
        filesystem(size=100, used=5, free=90, inodes=10, inodes_used=1),
        filesystem(mount="/mnt/nas", device="nas:/a", type="nfs4", problem="does not answer"),
    ),
    disks=(Disk(name="sda", size=100, rotational=False, model="Disk"), Disk(name="sdb")),
)


@pytest.mark.parametrize("value", [FULL, STORED, SystemFacts(), StorageFacts()], ids=str)
def test_facts_survive_the_wire(value):
    """What a scanner says is what a reader opens."""
    wire = dump_json(facts_of(value))

    assert value == open_facts(type(value), parse_json(wire, max_bytes=MAX_FACTS_BYTES))


def test_what_could_not_be_read_is_absent():
    """Not null, and never 0."""
    assert {} == facts_of(SystemFacts())
    assert {"name": "sdb"} == facts_of(STORED)["disks"][1]
    assert {"mount", "device", "type", "read_only", "problem"} == set(facts_of(STORED)["filesystems"][1])


@pytest.mark.parametrize(
    "facts",
    [
        {"filesystems": "many"},
        {"filesystems": [{}]},
        {"filesystems": [{"mount": "/", "device": "x", "type": "y", "used": -1}]},
        {"filesystems": [{"mount": "/", "device": "x", "type": "y", "used": "5"}]},
        {"filesystems": [{"mount": "/", "device": "x", "type": "y", "used": 1.5}]},
        {"filesystems": [{"mount": "\n", "device": "x", "type": "y"}]},
        {"filesystems": [{"mount": "/", "device": "x", "type": "y", "read_only": 1}]},
        {"filesystems": [{"mount": "/", "device": "x", "type": "y"}] * (MAX_FILESYSTEMS + 1)},
        {"disks": [{"name": ""}]},
        {"unknown": 1},
        [],
        None,
    ],
    ids=str,
)
def test_storage_facts_of_another_shape_are_refused(facts):
    """They are the word of a machine."""
    with pytest.raises(MalformedError):
        open_facts(StorageFacts, facts)


@pytest.mark.parametrize(
    "facts",
    [
        {"load": [1.0, 2.0]},
        {"load": [1.0, 2.0, -1.0]},
        {"load": [1.0, 2.0, 1e300]},
        {"load": [True, 2.0, 1.0]},
        {"boot_time": 10**15},
        {"boot_time": 1.5},
        {"memory": {"available": 5}},
        {"swap": {"total": None, "used": 0}},
        {"cpu": {"model": "x" * 257}},
        {"virtual_machine": "yes"},
        {"os_end_of_life": {"standard": "soon", "source": "x"}},
        {"uptime": 5},
    ],
    ids=str,
)
def test_system_facts_of_another_shape_are_refused(facts):
    """They are the word of a machine."""
    with pytest.raises(MalformedError):
        open_facts(SystemFacts, facts)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**53) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
NAMED = st.dictionaries(
    st.sampled_from(["filesystems", "disks", "cpu", "load", "memory", "swap", "boot_time", "os_end_of_life"]), JSON
)


@given(JSON | NAMED)
def test_any_facts_are_opened_or_refused(facts):
    """Nothing else comes out of what a machine sends."""
    for cls in (StorageFacts, SystemFacts):
        try:
            open_facts(cls, facts)
        except MalformedError:
            continue
