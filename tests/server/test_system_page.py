"""System and storage on the page of a machine: what is full, what ends, and facts that are a lie or a mess."""

import re
from datetime import UTC, datetime, timedelta

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_agent.scanners import StorageScanner, SystemScanner
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
)
from redflag_core.system import SystemClock
from redflag_core.testing import START
from redflag_server.agents.schema import DETAIL_EXAMPLE, ScannerItem
from redflag_server.dashboard.system_view import duration, see_system
from tests.helpers.fleet import full_report
from tests.helpers.operators import add_machine, add_scanner, first_place, make_user, sign_in

GB = 10**9
HOSTILE = "<script>alert('1')</script>\"'&{{7*7}}</td>\u202e"
SYSTEM = SystemFacts(
    cpu=Cpu(model="AMD EPYC", logical=4, physical=2),
    load=(0.5, 1.0, 12.5),
    memory=Memory(total=8 * GB, available=2 * GB, limit=4 * GB),
    swap=Swap(total=2 * GB, used=GB),
    boot_time=int((START - timedelta(days=3)).timestamp()),
    processes=1234,
    virtual_machine=True,
)


def filesystem(**changes):
    """A root file system with room."""
    values = {
        "mount": "/",
        "device": "/dev/sda1",
        "type": "ext4",
        "size": 100 * GB,
        "used": 40 * GB,
        "free": 60 * GB,
    }
    return Filesystem(**{**values, **changes})


@pytest.fixture
async def look(server):
    """A function that shows the page of a machine with these facts, as Alice sees it."""
    place = await first_place(server.runtime)
    await make_user(server.runtime)

    async def show(*, os=None, scanners=(), **facts):
        release = {"id": "debian", "name": "Debian", "version": "13", **(os or {})}
        agent = await add_machine(server.runtime, place, os=release)
        for name, said in facts.items():
            plain = said if isinstance(said, dict) else facts_of(said)
            await add_scanner(server.runtime, place, agent, name=name, manager=name, facts=plain)
        for changes in scanners:
            await add_scanner(server.runtime, place, agent, **changes)
        await sign_in(server.client)
        answer = await server.client.get(f"/machines/{agent}")
        assert 200 == answer.status_code, answer.text
        return answer.text

    return show


def words(page):
    """The text of the section, as one line."""
    section = re.search(r'<section aria-labelledby="system">.*?\n</section>', page, re.DOTALL)[0]
    return " ".join(re.sub(r"<[^>]+>", " ", section).split())


async def test_the_system_is_shown_in_words(look):
    """Numbers with their units; colour and bars say nothing that the words do not."""
    text = words(await look(system=SYSTEM))

    for expected in (
        "AMD EPYC 4 CPUs, 2 cores, virtual machine",
        "0.5 1.0 12.5",
        "75 % 8.0 GB, 2.0 GB available; this container may use 4.0 GB",
        "1.0 GB of 2.0 GB used",
        "about 1,234",
        "3 days ago had been up 3 days at the last scan",
    ):
        assert expected in text


async def test_file_systems_and_disks_are_shown_in_words(look):
    """How full, how much room, how many inodes; a bar beside it that screen readers pass over."""
    facts = StorageFacts(
        filesystems=(
            filesystem(inodes=1000, inodes_used=123),
            filesystem(
                mount="/mnt/nas",
                device="nas:/a",
                type="nfs4",
                problem="does not answer",
                size=None,
                used=None,
                free=None,
            ),
        ),
        disks=(Disk(name="sda", size=2000 * GB, rotational=True, model="ACME"), Disk(name="sdb")),
    )

    page = await look(storage=facts)

    text = words(page)
    assert "/ ext4 · /dev/sda1 40 % 60.0 GB of 100 GB 13 %" in text
    assert "/mnt/nas nfs4 · nas:/a does not answer \u2013 \u2013" in text
    assert "sda 2.0 TB ACME , rotational sdb" in text
    assert re.findall(r"<meter[^>]*>", page) == [
        f'<meter aria-hidden="true" min="0" max="100" low="89" high="89" optimum="0" value="{value}">'
        for value in (40, 13)
    ]
    assert "notice alarm" not in page


@pytest.mark.parametrize(
    "changes, full",
    [
        ({"used": 89 * GB, "free": 11 * GB}, False),
        ({"used": 90 * GB, "free": 10 * GB}, True),
        ({"inodes": 100, "inodes_used": 90}, True),
        ({"used": 100 * GB, "free": 0, "read_only": True}, False),
    ],
    ids=str,
)
async def test_a_full_file_system_is_an_alarm(look, changes, full):
    """On top of the section and in its row; an image that is full by nature is none."""
    page = await look(storage=StorageFacts(filesystems=(filesystem(mount="/data", **changes),)))

    assert full == ("1 file system is full : /data" in words(page))
    assert full == ('<span class="badge alarm">full</span>' in page)
    (bar, *_) = re.findall(r'<meter[^>]* low="(\d+)"[^>]* value="(\d+)"', page)[-1:]
    assert full == (int(bar[1]) > int(bar[0]))


@pytest.mark.parametrize(
    "release, days, expected",
    [
        (("debian", "13"), 0, "long-term until 2030-06-30 1,641 days left, says Debian"),
        (("ubuntu", "25.04"), 0, "Support standard until 2026-01-15 14 days left, says Ubuntu"),
        (("ubuntu", "25.04"), 0, "This system soon gets no fixes any more : standard support ends on 2026-01-15"),
        (("ubuntu", "25.04"), 15, "This system gets no fixes any more : standard support ended on 2026-01-15."),
        (("ubuntu", "25.04"), 15, "standard ended 2026-01-15 1 day ago"),
        (
            ("ubuntu", "20.04"),
            0,
            "support ended on 2025-05-29; with a subscription there are fixes until 2032-04-27.",
        ),
        (("linuxmint", "22"), 0, "Support not known"),
        (("debian", None), 0, "Support not known"),
    ],
)
async def test_the_end_of_a_release_is_shown_and_alarms_in_time(server, look, release, days, expected):
    """Counted on the day of the look; what nobody knows is said to be so."""
    server.clock.advance(86_400.0 * days)

    assert expected in words(await look(os=dict(zip(("id", "version"), release, strict=True))))


async def test_the_agent_may_know_a_release_that_the_server_does_not(look):
    """As a release says of itself; the server's own table wins, since it is updated first."""
    said = SystemFacts(os_end_of_life=Lifespan("os-release", "2026-01-31"))

    unlisted = words(await look(os={"id": "amzn", "version": "2023"}, system=said))
    listed = words(await look(system=said))

    assert "standard until 2026-01-31 30 days left, says os-release" in unlisted
    assert "long-term until 2030-06-30" in listed


async def test_what_was_not_reported_is_not_known(look):
    """Before the first scan, and after one that failed: never 0 %, never empty disks."""
    failed = [
        {"name": name, "status": "failed", "error": "broken", "succeeded_at": None}
        for name in ("system", "storage")
    ]

    for page in (await look(), await look(scanners=failed)):
        text = words(page)
        assert "Nothing is known of its disks" in text
        assert not re.search(r"\d %|Memory|0 B", text)


async def test_facts_without_numbers_are_no_zeros(look):
    """A file system or memory of which little could be read."""
    text = words(
        await look(
            system=SystemFacts(memory=Memory(total=8 * GB), cpu=Cpu(), swap=Swap(total=0, used=0)),
            storage=StorageFacts(
                filesystems=(filesystem(size=None, used=None, free=None),), disks=(Disk(name="sda"),)
            ),
        )
    )

    assert "Memory not known 8.0 GB" in text
    assert "Processor not known" in text
    assert "Swap none" in text
    assert not re.search(r"\d %", text)


async def test_texts_of_the_machine_are_only_text(look):
    """Escaped, and kept apart from the direction of the text around them."""
    page = await look(
        system=SystemFacts(cpu=Cpu(model=HOSTILE), os_end_of_life=Lifespan(HOSTILE[:64], "2030-01-01")),
        storage=StorageFacts(
            filesystems=(filesystem(mount=HOSTILE, device=HOSTILE, type=HOSTILE[:50], problem=HOSTILE),),
            disks=(Disk(name=HOSTILE[:50], model=HOSTILE),),
        ),
        os={"id": "unknown"},
    )

    assert "<script>alert" not in page
    assert "{{7*7}}" in page
    shown = [part for part in re.split(r"<bdi>.*?</bdi>", page, flags=re.DOTALL) if "\u202e" in part]
    assert [] == shown


@pytest.mark.parametrize(
    "facts",
    [
        {"filesystems": "everything"},
        {"filesystems": [{"mount": "/", "device": "x", "type": "y", "used": -1}]},
        {"filesystems": [{"mount": {"a": []}, "device": "x", "type": "y"}]},
        {"filesystems": [{}] * 60},
        {"<script>": 1},
        {"disks": [{"name": "sda", "size": 1e300}]},
    ],
    ids=str,
)
async def test_facts_of_another_shape_are_said_to_be_unreadable(look, facts):
    """Never an error page, and nothing of them is shown."""
    page = await look(storage=facts, system=SYSTEM)

    assert "What this machine says of its storage is not readable" in words(page)
    assert "AMD EPYC" in page
    assert "<script>" not in page


async def test_a_moment_at_the_end_of_time_is_shown(look):
    """The largest boot time that fits is a date, if an odd one."""
    page = await look(system=SystemFacts(boot_time=253_402_300_799))

    assert "9999-12-31" in page
    assert "had been up" not in page


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**53) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FACTS = st.dictionaries(
    st.sampled_from(["filesystems", "disks", "cpu", "load", "memory", "boot_time", "os_end_of_life", "x"]), JSON
)


@given(FACTS, FACTS, st.sampled_from(["debian", "amzn", ""]), st.none() | st.text(max_size=5))
def test_any_facts_give_a_view(system, storage, os_id, version):
    """Whatever a machine sends: it is opened, or named as unreadable."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    scanners = [
        ScannerItem(name, name, "ok", None, [], facts, 1, at, at)
        for name, facts in (("system", system), ("storage", storage))
    ]
    agent = attrs.evolve(DETAIL_EXAMPLE.agent, os={"id": os_id, "version": version})

    view = see_system(attrs.evolve(DETAIL_EXAMPLE, agent=agent, scanners=scanners), at)

    assert set(view.unreadable) <= {"system", "storage"}
    assert ("system" in view.unreadable) <= (view.system is None)


async def test_a_machine_whose_packages_nobody_scanned_is_not_up_to_date(server, look):
    """That its disks were looked at says nothing about updates."""
    page = await look(system=SYSTEM, storage=StorageFacts())
    fleet = (await server.client.get("/")).text

    assert "up to date" not in page + fleet
    assert "not scanned yet" in page
    assert "not scanned yet" in fleet
    assert "The scans found no packages" not in page


async def test_what_the_scanners_of_this_machine_say_is_shown(server):
    """From the real scan over the real report to the page."""
    await make_user(server.runtime)
    await sign_in(server.client)
    machine = await server.agent()
    for scanner in (StorageScanner(clock=SystemClock()), SystemScanner(clock=SystemClock())):
        scan = await scanner.scan()
        report = full_report([], manager=scan.manager, facts=scan.facts, warnings=scan.warnings)
        assert (await machine.report(server.client, report, scanner=scan.scanner)).json()["accepted"]

    text = words((await server.client.get(f"/machines/{machine.agent_id}")).text)

    assert re.search(r"File systems .* / \S+ · \S+ \d+ % ", text)
    assert re.search(r"Memory \d+ % [\d.]+ [GT]B", text)
    assert "not readable" not in text


@pytest.mark.parametrize(
    "expected, length",
    [
        ("0 min", timedelta(seconds=59)),
        ("119 min", timedelta(minutes=119)),
        ("2 h", timedelta(minutes=120)),
        ("47 h", timedelta(hours=47)),
        ("2 days", timedelta(hours=48)),
        ("400 days", timedelta(days=400)),
    ],
)
def test_durations_are_said_as_people_say_them(expected, length):
    """Roughly, in the unit that fits."""
    assert expected == duration(length)
