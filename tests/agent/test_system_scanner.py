"""The system scanner on this machine, and on systems that hide or lack what this one shows."""

from datetime import UTC, datetime
from pathlib import Path

import attrs
import psutil
import pytest

from redflag_agent import host
from redflag_agent.reports import content_digest
from redflag_agent.scanners import SystemScanner
from redflag_agent.scanners.facts_text import show_facts
from redflag_agent.scanners.proc_files import cpu_model, is_guest, memory_limit
from redflag_core.errors import ScanError
from redflag_core.scanning import (
    Lifespan,
    Memory,
    ScanStatus,
    Swap,
    SystemFacts,
    facts_of,
    known_lifespan,
    open_facts,
    stated_lifespan,
)
from redflag_core.system import SystemClock
from redflag_core.testing import START, FrozenClock

GIB = 2**30
X86 = (
    "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel\t\t: 85\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu {}\n"
)
RASPBERRY = (
    "processor\t: 0\nBogoMIPS\t: 108.00\nCPU part\t: 0xd08\n\nSerial\t\t: 1000\nModel\t\t: Raspberry Pi 4\n"
)
POWER = "processor\t: 0\ncpu\t\t: POWER9, altivec supported\nclock\t\t: 2200.000000MHz\n"


async def facts_of_scan(**options):
    """What the scanner says of this machine, with changes."""
    report = await SystemScanner(clock=options.pop("clock", SystemClock()), **options).scan()
    return open_facts(SystemFacts, report.facts), report


def lines_of(path):
    """Lines of a file of the kernel."""
    return Path(path).read_text("utf-8").splitlines()


# --- this machine ---


async def test_this_machine_is_described():
    """Numbers are those of the kernel, read here another way."""
    facts, report = await facts_of_scan()

    meminfo = dict(line.split(":") for line in lines_of("/proc/meminfo"))
    kernel = {line.split()[0]: line.split()[1] for line in lines_of("/proc/stat")}
    assert (ScanStatus.OK, "system", "system", ()) == (
        report.status,
        report.scanner,
        report.manager,
        report.packages,
    )
    assert int(meminfo["MemTotal"].split()[0]) * 1024 == facts.memory.total
    assert int(kernel["btime"]) == facts.boot_time
    assert sum(line.startswith("processor\t") for line in lines_of("/proc/cpuinfo")) == facts.cpu.logical
    assert facts.processes > 0
    assert 3 == len(facts.load)


async def test_a_scan_of_nothing_new_is_nothing_to_tell(monkeypatch):
    """Uptime passes, programs come and go, memory moves a little: the report says the same."""
    values = iter([(6 * GIB, 0.12, 201), (6 * GIB + 2**20, 0.14, 203)])
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()._replace(total=GIB, used=GIB // 2)
    digests = set()
    for minutes in (0, 60):
        available, load, processes = next(values)
        monkeypatch.setattr(
            psutil, "virtual_memory", lambda a=available: memory._replace(total=8 * GIB, available=a)
        )
        monkeypatch.setattr(psutil, "getloadavg", lambda v=load: (v, v, v))
        monkeypatch.setattr(psutil, "pids", lambda n=processes: list(range(n)))
        monkeypatch.setattr(psutil, "swap_memory", lambda: swap)
        clock = FrozenClock(START)
        clock.advance(60.0 * minutes)
        _, report = await facts_of_scan(clock=clock)
        digests.add(content_digest(report))

    assert 1 == len(digests)


async def test_the_end_of_this_release_is_reported():
    """From the table, for the day of the scan."""
    clock = FrozenClock(datetime(2026, 1, 1, tzinfo=UTC))
    facts, _ = await facts_of_scan(clock=clock)

    release = host.operating_system()
    listed = known_lifespan(release.id, release.version, clock.now().date())
    assert (listed or stated_lifespan(host.support_end())) == facts.os_end_of_life


# --- what other systems show ---


@pytest.fixture
def bare_proc(tmp_path, monkeypatch):
    """A /proc with nothing in it."""
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    return tmp_path


async def test_what_cannot_be_read_is_absent_and_named(bare_proc):
    """A container that hides /proc: never a machine with 0 bytes and 0 processes."""
    facts, report = await facts_of_scan(proc=bare_proc)

    assert (None, None, None) == (facts.memory, facts.boot_time, facts.processes)
    assert {"memory", "boot_time", "processes"}.isdisjoint(report.facts)
    for what in ("the memory", "the boot time", "the processes"):
        assert f"{what} cannot be read" in report.warnings
    assert facts.load is not None


async def test_a_system_of_which_nothing_can_be_read_is_a_failed_scan(bare_proc, monkeypatch):
    """Not an empty machine."""
    for name in ("getloadavg", "cpu_count", "swap_memory"):
        monkeypatch.setattr(psutil, name, lambda *_a, **_k: (_ for _ in ()).throw(NotImplementedError))

    with pytest.raises(ScanError, match="nothing of this system can be read"):
        await SystemScanner(clock=SystemClock(), proc=bare_proc).scan()


async def test_a_kernel_that_tells_little_is_no_warning(bare_proc):
    """Nothing goes to standard error, as psutil would have it, of what a container's /proc/meminfo lacks."""
    (bare_proc / "meminfo").write_text(
        "MemTotal: 1048576 kB\nMemFree: 524288 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n"
    )

    facts, _ = await facts_of_scan(proc=bare_proc)

    assert (GIB, Swap(total=0, used=0)) == (facts.memory.total, facts.swap)


@pytest.mark.parametrize(
    "text, model, guest",
    [
        (X86.format("sse"), "Intel(R) Xeon(R)", False),
        (X86.format("sse hypervisor avx"), "Intel(R) Xeon(R)", True),
        (RASPBERRY, "Raspberry Pi 4", None),
        (POWER, "POWER9, altivec supported", None),
        ("processor\t: 0\nCPU part\t: 0xd0c\n", None, None),
        ("model name\t:\n", None, None),
        ("", None, None),
    ],
)
def test_the_processor_has_the_name_that_the_kernel_prints(text, model, guest):
    """Each architecture prints another form; where there is no name, there is none here."""
    assert (model, guest) == (cpu_model(text), is_guest(text))


@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("memory.max", "1073741824\n", GIB),
        ("memory.max", "max\n", None),
        ("memory.max", "", None),
        ("memory/memory.limit_in_bytes", "1073741824\n", GIB),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
        ("elsewhere", "5", None),
    ],
)
def test_a_container_shows_its_limit(tmp_path, name, text, expected):
    """Of either version of control groups; a limit above what there is, is none."""
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)

    assert expected == memory_limit(tmp_path, total=8 * GIB)


@pytest.mark.parametrize(
    "release, expected",
    [
        ({"ID": "debian", "VERSION_ID": "12"}, ("Debian", "2026-07-11")),
        ({"ID": "amzn", "VERSION_ID": "2023", "SUPPORT_END": "2029-06-30"}, ("os-release", "2029-06-30")),
        ({"ID": "rocky", "VERSION_ID": "9.4", "SUPPORT_END": "2032-05-31"}, ("Rocky Linux", "2032-05-31")),
        ({"ID": "debian"}, None),
        ({"ID": "arch", "SUPPORT_END": "never"}, None),
    ],
)
async def test_a_release_that_is_not_in_the_table_may_say_its_end(monkeypatch, release, expected):
    """Else it is not known."""
    monkeypatch.setattr("platform.freedesktop_os_release", lambda: release)

    facts, _ = await facts_of_scan(clock=FrozenClock(datetime(2026, 1, 1, tzinfo=UTC)))

    end = facts.os_end_of_life
    assert expected == (None if end is None else (end.source, end.standard))


# --- for people ---


async def test_people_read_how_the_machine_is():
    """In words; the days that are left are counted from the day of the scan."""
    _, report = await facts_of_scan(clock=FrozenClock(datetime(2026, 1, 1, tzinfo=UTC)))
    known = SystemFacts(
        memory=Memory(total=8 * 10**9, available=6 * 10**9, limit=10**9),
        swap=Swap(total=2 * 10**9, used=10**9),
        load=(0.5, 0.25, 12.0),
        boot_time=1_767_225_600,
        os_end_of_life=Lifespan("Ubuntu", "2025-05-29", None, "2032-04-27"),
    )

    lines = show_facts(attrs.evolve(report, facts=facts_of(known), warnings=("the processors cannot be read",)))

    assert [
        "system:",
        "  load: 0.5 0.2 12.0",
        "  memory: 8 GB, 25 % used; this container may use 1 GB",
        "  swap: 1 GB of 2 GB used",
        "  started: 2026-01-01T00:00:00+00:00",
        "  support: ENDED: standard support ended on 2025-05-29; with a subscription until 2032-04-27",
        "warning: the processors cannot be read",
    ] == lines


@pytest.mark.parametrize(
    "end, expected",
    [
        (None, "how long this release gets fixes is not known"),
        (Lifespan("Debian", "2025-08-01", "2026-01-11"), "long-term support until 2026-01-11, 10 days left"),
        (Lifespan("x", "2026-01-11"), "standard support until 2026-01-11, 10 days left"),
    ],
)
async def test_people_read_how_long_the_release_lives(end, expected):
    """Or that nobody knows."""
    _, report = await facts_of_scan(clock=FrozenClock(datetime(2026, 1, 1, tzinfo=UTC)))

    lines = show_facts(attrs.evolve(report, facts=facts_of(SystemFacts(os_end_of_life=end)), warnings=()))

    assert ["system:", f"  support: {expected}"] == lines
