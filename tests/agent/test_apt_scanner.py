"""The APT scanner on real apt and dpkg: each package in its honest state, and a failure is never an empty list."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from redflag_agent import process
from redflag_agent.scanners import AptScanner
from redflag_agent.scanners.apt_output import FIELD, INVENTORY_FORMAT, RECORD
from redflag_core import codec
from redflag_core.errors import ScanError
from redflag_core.scanning import Package, PackageState, Scanner, ScanReport, ScanStatus, Severity, inventory_hash
from redflag_core.testing import FrozenClock
from tests.beds.apt import PACKAGES, SECURITY, V1, V2, AptBed, Deb, needs_apt, temporary_bed
from tests.helpers.needs import needs, needs_root

pytestmark = needs_apt

NOBODY = "65534"
PLACE = Path(__file__).resolve().parents[2]

GERMAN = {"LANGUAGE": "de", "LC_ALL": "de_DE.UTF-8", "LANG": "de_DE.UTF-8"}
LANGUAGES = [{"LC_ALL": "C"}, GERMAN]


def scanner_of(bed: AptBed, **options: Any) -> AptScanner:
    """A scanner of the bed that fetches no lists unless told to."""
    # A minute ahead: what the test does to files before the scan is then in the past.
    clock = FrozenClock(datetime.now(UTC) + timedelta(minutes=1))
    options = {"clock": clock, "refresh": False, "path_prefix": bed.bin, **options}
    return AptScanner(**options)


async def scan(bed: AptBed, **options: Any) -> ScanReport:
    """One scan of the bed."""
    return await scanner_of(bed, **options).scan()


def by_name(report: ScanReport) -> dict[str, Package]:
    """Packages by name, foreign ones with their architecture."""
    return {p.name if p.arch != "i386" else f"{p.name}:{p.arch}": p for p in report.packages}


def states(report: ScanReport) -> dict[str, str]:
    """State by name."""
    return {name: str(package.state) for name, package in by_name(report).items()}


def inst_lines(text: str) -> set[str]:
    """Names of already installed packages on Inst lines, read without the code under test."""
    words = [line.split() for line in text.splitlines() if line.startswith("Inst ")]
    return {line[1] for line in words if line[2].startswith("[")}


def replaced(bed: AptBed, directory: Path, tool: str, script: str) -> Path:
    """A directory like the bed's tools, with one of them replaced; ``$REAL`` is the one replaced."""
    directory.mkdir()
    for original in bed.bin.iterdir():
        (directory / original.name).symlink_to(original)
    (directory / tool).unlink()
    (directory / tool).write_text(f'#!/bin/sh\nREAL="{bed.bin / tool}"\n{script}\n')
    (directory / tool).chmod(0o755)
    return directory


def edit_status(bed: AptBed, name: str, old: str, new: str) -> None:
    """Change dpkg's record of a package."""
    path = bed.admindir / "status"
    stanzas = path.read_text().split("\n\n")
    path.write_text("\n\n".join(s.replace(old, new) if s.startswith(f"Package: {name}\n") else s for s in stanzas))


def make_old(bed: AptBed, hours: float) -> datetime:
    """Let the package lists look as if they were fetched some hours ago."""
    at = datetime.now(UTC) - timedelta(hours=hours)
    os.utime(bed.lists, (at.timestamp(), at.timestamp()))
    return at


@pytest.mark.parametrize("language", LANGUAGES, ids=["english", "german"])
async def test_each_package_is_in_its_honest_state(shared_apt_bed, monkeypatch, language):
    """Whatever language the agent was started in, every installed package has the state that is true of it."""
    for name, value in language.items():
        monkeypatch.setenv(name, value)

    report = await scan(shared_apt_bed)

    foreign = f"rf-multi:{shared_apt_bed.foreign}"
    assert {
        "rf-secure": "available",
        "rf-fixed": "available",
        "rf-normal": "available",
        "rf-newdep": "kept_back",
        "rf-keptback": "kept_back",
        "rf-victim": "current",
        "rf-held": "held",
        "rf-held-current": "held",
        "rf-phased": "phased",
        "rf-conffile": "available",
        "rf-badpost": "available",
        "rf-reboot": "available",
        "rf-slow": "available",
        "rf-local": "available",
        "rf-auto-now": "current",
        "rf-auto-later": "current",
        "rf-uptodate": "current",
        "rf-multi": "available",
        foreign: "available",
    } == states(report)
    assert (ScanStatus.OK, ()) == (report.status, report.warnings)


@pytest.mark.parametrize("language", LANGUAGES, ids=["english", "german"])
async def test_pending_is_what_apt_would_do(shared_apt_bed, monkeypatch, language):
    """Available and kept back are exactly the installed packages on apt's Inst lines, read in either language."""
    for name, value in language.items():
        monkeypatch.setenv(name, value)
    full = inst_lines(shared_apt_bed.run("apt-get", "-s", "dist-upgrade", **language).stdout)
    careful = inst_lines(shared_apt_bed.run("apt-get", "-s", "upgrade", **language).stdout)

    found = states(await scan(shared_apt_bed))

    assert full == {name for name, state in found.items() if state in ("available", "kept_back")}
    assert full & careful == {name for name, state in found.items() if state == "available"}
    assert shared_apt_bed.run("apt-mark", "showhold").stdout.split() == sorted(
        name for name, state in found.items() if state == "held"
    )


async def test_the_report_does_not_depend_on_the_language(shared_apt_bed, monkeypatch):
    """The inventory of the same machine has the same hash in English and in German."""
    english = await scan(shared_apt_bed)
    for name, value in GERMAN.items():
        monkeypatch.setenv(name, value)

    german = await scan(shared_apt_bed)

    assert inventory_hash(english.packages) == inventory_hash(german.packages)


async def test_a_scanner_is_what_the_runner_expects(shared_apt_bed):
    """The scanner has the protocol's shape, and its report travels."""
    scanner: Scanner = scanner_of(shared_apt_bed)

    report = await scanner.scan()

    assert ("apt", "apt") == (scanner.name, scanner.manager) == (report.scanner, report.manager)
    assert report == codec.parse(ScanReport, codec.dump(report), max_bytes=100_000)


async def test_a_package_is_reported_with_all_that_is_known(shared_apt_bed):
    """Versions, size to the byte, origin and severity of an update."""
    deb = shared_apt_bed.repo / "pool" / f"rf-secure_{SECURITY}_all.deb"

    package = by_name(await scan(shared_apt_bed))["rf-secure"]

    assert (
        Package(
            name="rf-secure",
            arch="all",
            installed=V1,
            available=SECURITY,
            state=PackageState.AVAILABLE,
            severity=Severity.IMPORTANT,
            security=True,
            origin="Debian-Security:12/stable-security",
            source="rf-secure",
            source_version=V1,
            download_size=deb.stat().st_size,
        )
        == package
    )


async def test_security_is_seen_wherever_the_fix_is(shared_apt_bed):
    """From the security suite, held, or contained in a newer version from elsewhere; and nowhere else."""
    packages = (await scan(shared_apt_bed)).packages

    expected = {"rf-secure", "rf-fixed", "rf-held", "rf-reboot"}
    assert expected == {package.name for package in packages if package.security}
    assert expected == {package.name for package in packages if package.severity is Severity.IMPORTANT}


@pytest.mark.parametrize(
    "name, available, reason",
    [
        ("rf-newdep", V2, "needs new packages: rf-dep-new"),
        ("rf-keptback", V2, "would remove: rf-victim"),
        ("rf-held", V2, "held on this machine (apt-mark hold)"),
        ("rf-held-current", None, "held on this machine (apt-mark hold)"),
        ("rf-phased", V2, "phased: 0 % of machines get it now"),
        ("rf-normal", V2, None),
        ("rf-uptodate", None, None),
    ],
)
async def test_a_reason_says_what_is_in_the_way(shared_apt_bed, name, available, reason):
    """Each kept back package names its own additions and removals, not those of the others."""
    package = by_name(await scan(shared_apt_bed))[name]

    assert (available, reason) == (package.available, package.reason)


async def test_sources_and_automatic_installs_are_told(shared_apt_bed):
    """The source package is what trackers speak of; automatic is what only others need."""
    packages = by_name(await scan(shared_apt_bed))

    assert ("rf-source", "3:0.9-1") == (packages["rf-uptodate"].source, packages["rf-uptodate"].source_version)
    assert {"rf-auto-now", "rf-auto-later"} == {name for name, package in packages.items() if package.automatic}


async def test_both_architectures_of_a_package_are_told_apart(shared_apt_bed):
    """A foreign architecture is a package of its own, with its own size."""
    multi = {p.arch: p for p in (await scan(shared_apt_bed)).packages if p.name == "rf-multi"}

    assert {shared_apt_bed.native, shared_apt_bed.foreign} == set(multi)
    assert {
        arch: (shared_apt_bed.repo / "pool" / f"rf-multi_{V2}_{arch}.deb").stat().st_size for arch in multi
    } == {arch: package.download_size for arch, package in multi.items()}


@pytest.mark.parametrize("how", ["config", "prefix", "both"])
async def test_another_root_is_named_by_config_or_tools(shared_apt_bed, how):
    """Configuration of apt alone leads dpkg to the same root; tools alone do too."""
    config = None if how == "prefix" else shared_apt_bed.apt_config
    prefix = None if how == "config" else shared_apt_bed.bin

    report = await scan(shared_apt_bed, apt_config=config, path_prefix=prefix)

    assert states(await scan(shared_apt_bed)) == states(report)


async def test_facts_say_what_was_used(shared_apt_bed):
    """Version of apt, age of the lists, number of holds and the need for a reboot."""
    version = shared_apt_bed.run("apt-get", "--version").stdout.split()[1]

    facts = (await scan(shared_apt_bed)).facts

    assert {
        "apt_version": version,
        "held": 2,
        "reboot_required": False,
        "reboot_required_by": [],
    }.items() <= facts.items()
    assert ("off", None) == (facts["refresh"], facts["refresh_error"])
    assert isinstance(facts["refreshed_at"], int)


async def test_a_scan_needs_no_lock(shared_apt_bed):
    """While another package manager holds every lock, a scan sees the same."""
    free = await scan(shared_apt_bed)

    with shared_apt_bed.locked():
        locked = await scan(shared_apt_bed)

    assert free.packages == locked.packages


async def test_a_machine_without_aptcache_is_scanned_all_the_same(apt_bed, tmp_path, monkeypatch):
    """Containers switch apt's cache off: the scanner lends its own, and leaves nothing behind."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = await scan(apt_bed)
    with apt_bed.apt_config.open("a") as file:
        file.write('Dir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\n')

    after = await scan(apt_bed)

    assert before.packages == after.packages
    assert [] == list(tmp_path.iterdir())


async def test_what_is_upgraded_is_current(apt_bed):
    """After a real upgrade with real dpkg the same packages are current, and the reboot they ask for is told."""
    wanted = ["rf-secure", "rf-newdep", "rf-reboot", "rf-multi", f"rf-multi:{apt_bed.foreign}"]
    apt_bed.run("apt-get", "-y", "install", *wanted)

    report = await scan(apt_bed)

    packages = by_name(report)
    assert {"current"} == {str(packages[name].state) for name in wanted}
    assert [SECURITY, V2] == [packages["rf-secure"].installed, packages["rf-newdep"].installed]
    assert "rf-dep-new" in packages
    assert (True, ["rf-reboot"]) == (report.facts["reboot_required"], report.facts["reboot_required_by"])


async def test_a_removed_package_that_left_settings_is_not_installed(apt_bed):
    """Settings of a removed package are not a package."""
    apt_bed.run("dpkg", "--remove", "rf-conffile")
    assert "rc " in apt_bed.run("dpkg-query", "-W", "-f", "${db:Status-Abbrev}", "rf-conffile").stdout

    assert "rf-conffile" not in by_name(await scan(apt_bed))


async def test_a_version_that_cannot_be_installed_is_not_called_current(apt_bed):
    """An update whose dependency nobody has is kept back, as apt says too, with that reason."""
    apt_bed.publish(Deb("rf-uptodate", V2, fields={"Depends": "rf-nowhere"}))
    assert "rf-uptodate" not in inst_lines(apt_bed.run("apt-get", "-s", "dist-upgrade").stdout)

    package = by_name(await scan(apt_bed))["rf-uptodate"]

    assert (PackageState.KEPT_BACK, V2) == (package.state, package.available)
    assert "apt cannot upgrade it now: its dependencies cannot be met" == package.reason


async def test_a_machine_that_lacks_nothing_is_all_current():
    """Nothing pending is an inventory of current packages."""
    with temporary_bed([Deb("rf-one", installed=True), Deb("rf-two", installed=True)]) as bed:
        report = await scan(bed)

    assert {"rf-one": "current", "rf-two": "current"} == states(report)


async def test_a_pinned_package_is_not_pending(apt_bed):
    """What the owner's preferences do not choose is no update."""
    (apt_bed.root / "etc/apt/preferences.d/pin").write_text(
        "Package: rf-normal\nPin: version 1.0-1\nPin-Priority: 999\n"
    )

    package = by_name(await scan(apt_bed))["rf-normal"]

    assert (PackageState.CURRENT, None) == (package.state, package.available)


async def test_a_downgrade_is_called_one(apt_bed):
    """A pin above 1000 makes apt go back; that is pending as apt says, with the reason."""
    apt_bed.publish(Deb("rf-uptodate", "0.5-1"))
    pin = "Package: rf-uptodate\nPin: version 0.5-1\nPin-Priority: 1001\n"
    (apt_bed.root / "etc/apt/preferences.d/pin").write_text(pin)

    package = by_name(await scan(apt_bed))["rf-uptodate"]

    assert (PackageState.AVAILABLE, "0.5-1") == (package.state, package.available)
    assert "older than what is installed: apt's preferences ask for it" == package.reason


async def test_a_configured_yes_changes_nothing(apt_bed):
    """Where apt is told to say yes to all, a plan that removes something essential is still a plan."""
    edit_status(apt_bed, "rf-victim", "Section: misc", "Section: misc\nEssential: yes")
    with apt_bed.apt_config.open("a") as file:
        file.write('APT::Get::Assume-Yes "true";\n')

    package = by_name(await scan(apt_bed))["rf-newdep"]

    assert (PackageState.KEPT_BACK, "needs new packages: rf-dep-new") == (package.state, package.reason)


async def test_many_kept_back_packages_are_not_simulated_one_by_one():
    """Beyond some, the reason is that of the whole upgrade: a scan must not take minutes."""
    old = [Deb(f"rf-k{n:02}", installed=True) for n in range(10)]
    new = [Deb(deb.name, V2, fields={"Depends": f"rf-n{n:02}"}) for n, deb in enumerate(old)]
    needed = [Deb(f"rf-n{n:02}", V2) for n in range(10)]

    with temporary_bed([*old, *new, *needed]) as bed:
        report = await scan(bed)

    reasons = Counter((package.reason or "").partition(":")[0] for package in report.packages)
    assert {
        "needs new packages": 8,
        "only as part of a full upgrade, which needs new packages": 2,
    } == reasons


@needs_root()
@needs("setpriv")
async def test_without_root_the_same_is_seen_and_the_limit_is_told(shared_apt_bed):
    """A scan by somebody else sees the same packages, and says that it could not fetch lists and what to do."""
    code = (
        "import asyncio, os, sys; from pathlib import Path; from redflag_agent.scanners import AptScanner;"
        "from redflag_core import codec; from redflag_core.system import SystemClock; assert os.geteuid();"
        "scanner = AptScanner(clock=SystemClock(), path_prefix=Path(sys.argv[1]));"
        "sys.stdout.buffer.write(codec.dump(asyncio.run(scanner.scan())))"
    )
    python = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", sys.executable, "-c"]
    env = {"PYTHONPATH": str(PLACE)}
    if (await process.run([*python, "import redflag_agent"], env=env, timeout=60)).returncode:
        pytest.skip("nobody cannot read this checkout")

    done = await process.run([*python, code, str(shared_apt_bed.bin)], env=env, timeout=60)

    assert b"" == done.stderr
    report = codec.parse(ScanReport, done.stdout, max_bytes=100_000)
    assert (await scan(shared_apt_bed)).packages == report.packages
    assert ("package lists are 0 hours old; run as root to refresh",) == report.warnings
    assert "not_permitted" == report.facts["refresh"]


async def test_lists_that_are_old_are_fetched(apt_bed):
    """What was published since is seen, and the report says when the lists were fetched."""
    apt_bed.publish(Deb("rf-uptodate", V2), update=False)
    make_old(apt_bed, hours=7)
    scanner = scanner_of(apt_bed, refresh="auto")

    report = await scanner.scan()

    assert V2 == by_name(report)["rf-uptodate"].available
    assert ("done", int(scanner.clock.now().timestamp())) == (
        report.facts["refresh"],
        report.facts["refreshed_at"],
    )


async def test_lists_that_are_fresh_are_left_alone(apt_bed):
    """Mirrors are not asked more often than needed."""
    apt_bed.publish(Deb("rf-uptodate", V2), update=False)
    at = make_old(apt_bed, hours=5)

    report = await scan(apt_bed, refresh="auto")

    assert by_name(report)["rf-uptodate"].available is None
    assert ("fresh", int(at.timestamp())) == (report.facts["refresh"], report.facts["refreshed_at"])


async def test_an_update_without_news_counts_as_one(apt_bed):
    """When nothing was new on the server the lists are fresh all the same, until they are old again."""
    make_old(apt_bed, hours=7)
    clock = FrozenClock(datetime.now(UTC))
    scanner = scanner_of(apt_bed, refresh="auto", clock=clock)

    outcomes = []
    for _ in range(3):
        outcomes.append((await scanner.scan()).facts["refresh"])
        clock.advance(3.5 * 3600)

    assert ["done", "fresh", "done"] == outcomes


async def test_the_systems_own_timer_counts(apt_bed):
    """A stamp of the system's daily update says that the lists are fresh."""
    make_old(apt_bed, hours=30)
    stamp = apt_bed.root / "var/lib/apt/periodic/update-success-stamp"
    stamp.parent.mkdir()
    stamp.touch()

    assert "fresh" == (await scan(apt_bed, refresh="auto")).facts["refresh"]


async def test_a_refresh_that_fails_is_told_and_the_scan_goes_on(apt_bed):
    """With a repository gone, the old lists are used, and warning and facts give apt's reason and their age."""
    make_old(apt_bed, hours=9)
    (apt_bed.repo / "dists/stable-security").rename(apt_bed.repo / "gone")
    before = await scan(apt_bed)

    report = await scan(apt_bed, refresh=True)

    assert before.packages == report.packages
    assert "failed" == report.facts["refresh"]
    assert "no longer has a Release file" in str(report.facts["refresh_error"])
    assert any(
        warning.startswith("package lists are 9 hours old, because apt-get update failed: The repository")
        for warning in report.warnings
    )


@needs("gpg")
async def test_a_repository_that_does_not_verify_is_a_failed_refresh(apt_bed):
    """Where apt itself calls it a success: lists that could not be refreshed are not fresh."""
    release = apt_bed.repo / "dists/stable/InRelease"
    release.write_text(release.read_text().replace("bookworm", "bookwurm"))

    report = await scan(apt_bed, refresh=True)

    assert "failed" == report.facts["refresh"]
    assert "signature" in str(report.facts["refresh_error"])


async def test_a_refresh_that_finds_the_lists_locked_is_told(apt_bed):
    """Another apt at work is a reason like any other, and does not stop the scan."""
    with apt_bed.locked():
        report = await scan(apt_bed, refresh=True)

    assert "Could not get lock" in str(report.facts["refresh_error"])
    assert "available" == states(report)["rf-normal"]


async def test_a_refresh_that_hangs_is_ended(apt_bed, tmp_path):
    """A mirror that does not answer costs its timeout and no more."""
    tools = replaced(
        apt_bed, tmp_path / "bin", "apt-get", 'case "$*" in *update) exec sleep 1000;; esac; exec "$REAL" "$@"'
    )

    report = await scan(apt_bed, path_prefix=tools, refresh=True, refresh_timeout=0.3)

    assert "apt-get had no result after 0.3 seconds and was ended" == report.facts["refresh_error"]
    assert "available" == states(report)["rf-normal"]


async def test_missing_lists_are_fetched_however_new_their_directory_is(apt_bed):
    """An image without lists is brought up to date by the first scan that may."""
    shutil.rmtree(apt_bed.lists)

    report = await scan(apt_bed, refresh="auto")

    assert ("done", "available") == (report.facts["refresh"], states(report)["rf-normal"])


@pytest.mark.parametrize("empty", [False, True])
async def test_without_lists_nothing_is_called_current(apt_bed, empty):
    """Asked directly, apt says that nothing is pending; a scan that cannot know says so."""
    shutil.rmtree(apt_bed.lists)
    if empty:
        (apt_bed.lists / "partial").mkdir(parents=True)
    assert "0 upgraded" in apt_bed.run("apt-get", "-s", "dist-upgrade").stdout

    with pytest.raises(ScanError, match="there are no package lists"):
        await scan(apt_bed)


async def test_without_lists_a_failed_refresh_is_the_reason(apt_bed):
    """The error says why the lists could not be fetched."""
    shutil.rmtree(apt_bed.lists)
    shutil.rmtree(apt_bed.repo / "dists")

    with pytest.raises(ScanError, match=r"no package lists: .*\(which failed: The repository"):
        await scan(apt_bed, refresh="auto")


async def test_without_sources_nothing_is_called_current(apt_bed):
    """A machine that names no repository cannot know what it lacks."""
    (apt_bed.root / "etc/apt/sources.list").write_text("")

    with pytest.raises(ScanError, match="check the sources"):
        await scan(apt_bed)


async def test_one_missing_list_is_told(apt_bed):
    """A source that was never fetched is named: its updates are not seen."""
    (apt_bed.root / "etc/apt/sources.list.d/new.list").write_text(
        "deb [trusted=yes] https://new.example.invalid sid main\n"
    )

    report = await scan(apt_bed)

    assert (
        "no package list of https://new.example.invalid sid: updates from there are not seen",
    ) == report.warnings
    assert "available" == states(report)["rf-normal"]


async def test_a_half_configured_package_is_told(apt_bed):
    """After a failed postinst the report warns, says how to mend it, and marks the package."""
    assert 0 != apt_bed.run("apt-get", "-y", "install", "rf-badpost", check=False).returncode

    report = await scan(apt_bed)

    assert "half-configured: run `dpkg --configure -a` as root" == by_name(report)["rf-badpost"].reason
    assert ("dpkg has not finished with rf-badpost; run `dpkg --configure -a` as root",) == report.warnings


async def test_a_half_installed_package_with_an_update_is_told_with_both(apt_bed):
    """Damage and update of a package do not hide each other."""
    edit_status(apt_bed, "rf-secure", "install ok installed", "install reinstreq half-installed")

    package = by_name(await scan(apt_bed))["rf-secure"]

    assert (PackageState.AVAILABLE, SECURITY) == (package.state, package.available)
    assert "half-installed: run `dpkg --configure -a` as root" == package.reason


async def test_broken_dependencies_end_the_scan_with_apts_advice(apt_bed):
    """Where apt cannot plan, nothing is known, and the error says what to run."""
    apt_bed.run("dpkg", "--force-depends", "--remove", "rf-auto-later")

    with pytest.raises(
        ScanError, match=r"apt-get .*dist-upgrade` failed: Unmet dependencies\. .*apt --fix-broken"
    ):
        await scan(apt_bed)


async def test_a_package_to_be_reinstalled_from_nowhere_ends_the_scan(apt_bed):
    """Where apt refuses to plan anything, there is no report."""
    edit_status(apt_bed, "rf-local", "install ok installed", "install reinstreq half-installed")
    edit_status(apt_bed, "rf-local", V1, "9.9-1")

    with pytest.raises(ScanError, match="rf-local needs to be reinstalled"):
        await scan(apt_bed)


async def test_unfinished_work_of_dpkg_is_told(apt_bed):
    """A journal that dpkg left behind means that it runs or was interrupted."""
    (apt_bed.admindir / "updates/0000").touch()

    report = await scan(apt_bed)

    assert ["dpkg has unfinished work"] == [warning.partition(":")[0] for warning in report.warnings]
    assert "dpkg --configure -a" in report.warnings[0]


async def test_an_empty_database_of_dpkg_is_an_error(apt_bed):
    """No machine has no package: an empty answer is never an inventory."""
    (apt_bed.admindir / "status").write_text("")

    with pytest.raises(ScanError, match="lists no installed package"):
        await scan(apt_bed)


async def test_a_damaged_database_of_dpkg_is_an_error(apt_bed):
    """What the tools say about the damaged file is in the error."""
    (apt_bed.admindir / "status").write_text("Package rf\x00\n")

    with pytest.raises(ScanError, match=r"failed: .*status"):
        await scan(apt_bed)


@pytest.mark.parametrize("tool", ["apt-config", "apt-get", "apt-cache", "apt-mark", "dpkg-query"])
async def test_a_tool_that_fails_ends_the_scan_with_its_words(shared_apt_bed, tmp_path, tool):
    """Any tool's failure is an error that names it and repeats what it said."""
    tools = replaced(shared_apt_bed, tmp_path / "bin", tool, "echo 'E: the disk is on fire' >&2; exit 100")

    with pytest.raises(ScanError, match=rf"`{tool}.*` failed: the disk is on fire"):
        await scan(shared_apt_bed, path_prefix=tools)


async def test_a_tool_that_fails_without_a_word_is_told_by_its_status(shared_apt_bed, tmp_path):
    """Silence is no success."""
    tools = replaced(shared_apt_bed, tmp_path / "bin", "dpkg-query", "exit 7")

    with pytest.raises(ScanError, match="`dpkg-query` failed: exit status 7"):
        await scan(shared_apt_bed, path_prefix=tools)


@pytest.mark.parametrize("tool", ["apt-config", "apt-get", "apt-cache", "apt-mark", "dpkg-query"])
async def test_a_tool_that_hangs_ends_the_scan(shared_apt_bed, tmp_path, tool):
    """A query that does not answer costs its timeout and is an error."""
    tools = replaced(shared_apt_bed, tmp_path / "bin", tool, "exec sleep 1000")

    with pytest.raises(ScanError, match=f"{tool} had no result after 0.5 seconds"):
        await scan(shared_apt_bed, path_prefix=tools, timeout=0.5)


async def test_a_tool_that_floods_ends_the_scan(shared_apt_bed, tmp_path):
    """Half an answer is not parsed."""
    flood = f'"$REAL" "$@"; head -c {process.MAX_OUTPUT} /dev/zero'
    tools = replaced(shared_apt_bed, tmp_path / "bin", "dpkg-query", flood)

    with pytest.raises(ScanError, match="printed more than"):
        await scan(shared_apt_bed, path_prefix=tools)


async def test_a_machine_without_apt_is_an_error(shared_apt_bed, monkeypatch):
    """Nothing to ask is no answer; whether there is something to ask can be seen before."""
    assert scanner_of(shared_apt_bed).is_usable()
    monkeypatch.setattr(process, "DEFAULT_PATH", "/nonexistent")
    scanner = scanner_of(shared_apt_bed, path_prefix=None)
    assert not scanner.is_usable()

    with pytest.raises(ScanError, match="apt-config cannot be started"):
        await scanner.scan()


async def test_an_apt_without_configuration_is_an_error(shared_apt_bed, tmp_path):
    """A root that apt does not name is not guessed."""
    tools = replaced(shared_apt_bed, tmp_path / "bin", "apt-config", "echo \"NATIVE='amd64'\"")

    with pytest.raises(ScanError, match="apt-config does not know"):
        await scan(shared_apt_bed, path_prefix=tools)


async def test_packages_that_change_meanwhile_are_read_again(apt_bed, tmp_path):
    """A report never mixes two moments: here somebody holds a package in the middle of the first reading."""
    done = tmp_path / "done"
    once = f'[ -e {done} ] || {{ touch {done}; "$REAL" hold rf-normal >/dev/null; }}; exec "$REAL" "$@"'
    tools = replaced(apt_bed, tmp_path / "bin", "apt-mark", once)

    assert "held" == states(await scan(apt_bed, path_prefix=tools))["rf-normal"]


async def test_packages_that_never_stand_still_are_an_error(apt_bed, tmp_path):
    """While another package manager is at work there is no one inventory to report."""
    flip = '"$REAL" unhold rf-normal | grep -q Canceled || "$REAL" hold rf-normal >/dev/null; exec "$REAL" "$@"'
    tools = replaced(apt_bed, tmp_path / "bin", "apt-mark", flip)

    with pytest.raises(ScanError, match="being changed by another package manager"):
        await scan(apt_bed, path_prefix=tools)


def hostile(records: Iterable[tuple[str, ...]], text_dir: Path) -> str:
    """A dpkg-query that answers with the real packages and these records."""
    path = text_dir / "records"
    path.write_bytes("".join(FIELD.join(record) + RECORD for record in records).encode("utf-8", "surrogateescape"))
    return f'"$REAL" "$@"; cat {path}'


async def test_hostile_fields_do_not_break_a_scan(shared_apt_bed, tmp_path):
    """Names that are options, control characters, broken text and absurd lengths: told, cleaned or cut."""
    strange = (
        "rf-strange",
        "all",
        "1" * 5000,
        "install",
        "installed",
        "a\x1b[2Jb\ud8ff".encode("utf-8", "replace").decode(),
        "\x00",
    )
    records = [
        ("-oAPT::Update::Pre-Invoke::=touch /tmp/owned", "all", "1", "install", "installed", "x", "1"),
        ("bash-=1 *", "all", "1", "install", "installed", "x", "1"),
        ("only", "three", "fields"),
        strange,
    ]
    tools = replaced(shared_apt_bed, tmp_path / "bin", "dpkg-query", hostile(records, tmp_path))

    report = await scan(shared_apt_bed, path_prefix=tools)

    package = by_name(report)["rf-strange"]
    assert "a\ufffd[2Jb?" == package.source
    assert 256 == len(package.installed or "")
    assert ("3 records of dpkg's database cannot be read and are left out",) == report.warnings
    assert "available" == states(report)["rf-normal"]
    assert report == codec.parse(ScanReport, codec.dump(report), max_bytes=100_000)


async def test_more_packages_than_a_report_holds_are_an_error(shared_apt_bed, tmp_path):
    """A report is never cut silently."""
    records = [(f"p{n}", "all", "1", "install", "installed", "p", "1") for n in range(20_001)]
    tools = replaced(shared_apt_bed, tmp_path / "bin", "dpkg-query", hostile(records, tmp_path))

    with pytest.raises(ScanError, match="more than the 20000 that a report holds"):
        await scan(shared_apt_bed, path_prefix=tools)


async def test_an_upgrade_that_cannot_be_simulated_alone_has_a_reason_too(shared_apt_bed, tmp_path):
    """When apt refuses to plan one package by itself, the reason gives its words and those of the whole."""
    script = 'case "$*" in *install*) echo "E: not alone" >&2; exit 100;; esac; exec "$REAL" "$@"'
    tools = replaced(shared_apt_bed, tmp_path / "bin", "apt-get", script)

    reason = by_name(await scan(shared_apt_bed, path_prefix=tools))["rf-newdep"].reason or ""

    assert "not alone" in reason
    assert "a full upgrade needs new packages: rf-dep-new; would remove: rf-victim" in reason


async def test_warnings_of_apt_are_passed_on(shared_apt_bed, tmp_path):
    """What apt complains about while it plans is in the report."""
    script = 'echo "W: the moon is full" >&2; exec "$REAL" "$@"'
    tools = replaced(shared_apt_bed, tmp_path / "bin", "apt-get", script)

    assert ("the moon is full",) == (await scan(shared_apt_bed, path_prefix=tools)).warnings


async def test_unsigned_repositories_are_scanned_too():
    """A scan tells what apt would do; whether that is authenticated is decided where it is done."""
    with temporary_bed(signed=False) as bed:
        report = await scan(bed)

    assert len({deb.name for deb in PACKAGES if deb.installed}) + 1 == len(report.packages)


@pytest.mark.skipif(not Path("/usr/bin/apt-get").exists(), reason="this machine has no apt")
async def test_the_machine_itself_is_told_as_apt_tells_it():
    """On this machine: pending is exactly what apt's Inst lines name, the inventory exactly what dpkg lists."""
    plan, listed, again, report = "", "1", "2", None
    while listed != again:  # until nobody installs something meanwhile
        plan, listed = await output("apt-get", "-s", "dist-upgrade"), await dpkg_list()
        try:
            report = await AptScanner(clock=FrozenClock(), refresh=False).scan()
        except ScanError as error:
            pytest.skip(f"apt of this machine cannot tell: {error}")
        again = await dpkg_list()
    native = (await output("dpkg", "--print-architecture")).strip()

    assert report is not None
    pending = [p for p in report.packages if p.state in (PackageState.AVAILABLE, PackageState.KEPT_BACK)]
    assert inst_lines(plan) == {p.name if p.arch in (native, "all") else f"{p.name}:{p.arch}" for p in pending}
    assert all(p.available and p.download_size and p.origin for p in pending)
    assert sorted(listed.splitlines()) == sorted(f"{p.name}:{p.arch} {p.installed}" for p in report.packages)


async def output(*argv: str) -> str:
    """What a tool of this machine prints."""
    return (await process.run(argv, timeout=60)).stdout.decode()


async def dpkg_list() -> str:
    """All packages of this machine that are installed, whole or damaged."""
    lines = await output("dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}:${Architecture} ${Version}\n")
    absent = ("not-installed", "config-files")
    return "\n".join(line.partition(" ")[2] for line in lines.splitlines() if not line.startswith(absent))


def test_the_inventory_is_asked_with_separators_that_no_field_has():
    """A space or a bar in a field cannot move the fields behind it."""
    assert INVENTORY_FORMAT.endswith(RECORD)
    assert 6 == INVENTORY_FORMAT.count(FIELD)
