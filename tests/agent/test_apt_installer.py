"""The APT installer on real apt and dpkg: what a plan says is what is installed, and nothing else ever is."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from redflag_agent import process
from redflag_agent.installers.apt import AptInstaller
from redflag_agent.installers.model import Installer, Planned, Step
from redflag_core.errors import CommandRefusedError, NeedsApprovalError, PlanDriftedError, ScanError
from redflag_core.patching import (
    ApprovalReason,
    Change,
    PackageTarget,
    Transaction,
    beyond_routine,
)
from redflag_core.scanning import PackageKey
from redflag_core.statements import PackageOutcome, PackageResult
from tests.beds.apt import FOREIGN, NATIVE, PACKAGES, SECURITY, V1, V2, AptBed, Deb, needs_apt, temporary_bed
from tests.helpers.needs import needs

pytestmark = [needs_apt, needs("gpg")]

NEVER = {
    "--allow-unauthenticated",
    "--allow-downgrades",
    "--allow-remove-essential",
    "--allow-change-held-packages",
    "--force-yes",
    "--purge",
    "--fix-broken",
    "-f",
}
HOLD_LOCK = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def installer_of(bed: AptBed, **options: Any) -> AptInstaller:
    """An installer of the bed."""
    return AptInstaller(**{"path_prefix": bed.bin, **options})


def target(name: str, available: str = V2, *, arch: str = "all", installed: str = V1) -> PackageTarget:
    """An order to bring a package to a version."""
    return PackageTarget(name=name, arch=arch, installed=installed, available=available)


async def plan(bed: AptBed, *targets: PackageTarget) -> Planned:
    """A plan for the bed."""
    return await installer_of(bed).plan(targets)


async def transaction(bed: AptBed, *targets: PackageTarget) -> Transaction:
    """A plan that can be carried out in part at least."""
    planned = (await plan(bed, *targets)).transaction
    assert planned is not None
    return planned


async def steps(bed: AptBed, *targets: PackageTarget) -> tuple[Step, ...]:
    """The steps of a plan."""
    return await installer_of(bed).steps(await transaction(bed, *targets))


def kinds(transaction: Transaction) -> dict[str, str]:
    """What happens to which package."""
    return {f"{change.name}:{change.arch}": str(change.kind) for change in transaction.changes}


def outcomes(results: Iterable[PackageResult]) -> dict[str, str]:
    """What became of each target."""
    return {result.name: str(result.outcome) for result in results}


@dataclass(frozen=True)
class Ran:
    """A step that was run."""

    name: str
    status: int
    output: str
    progress: str


def run(steps: Iterable[Step], directory: Path) -> list[Ran]:
    """Run steps as the executor's runner does: output and progress go to files, a failure skips all but always."""
    ran: list[Ran] = []
    for step in steps:
        if any(each.status for each in ran) and not step.always:
            continue
        output, progress = (directory / f"{step.name}.{kind}" for kind in ("output", "progress"))
        with output.open("wb") as file:
            argv = ["/bin/sh", "-c", 'exec 3>"$0"; exec "$@"', progress, *step.argv]
            done = subprocess.run(
                argv, env=dict(step.env), stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False
            )
        ran.append(Ran(step.name, done.returncode, output.read_text(), progress.read_text()))
    return ran


def installed(bed: AptBed) -> dict[str, str]:
    """Versions by name and architecture of what is whole, read without the code under test."""
    text = bed.run("dpkg-query", "-W", "-f", "${Package}:${Architecture} ${Version} ${db:Status-Status}\n").stdout
    words = [line.split() for line in text.splitlines()]
    return {name: version for name, version, status in words if status == "installed"}


def changed(before: dict[str, str], after: dict[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """What became of packages between two looks."""
    names = before.keys() | after.keys()
    return {n: (before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n)}


def marks(bed: AptBed, verb: str) -> set[str]:
    """What apt-mark shows."""
    return set(bed.run("apt-mark", verb).stdout.split())


@contextmanager
def traced(bed: AptBed) -> Iterator[list[list[str]]]:
    """All calls of the bed's tools, as the tools themselves see them, filled in at the end."""
    log, calls = bed.directory / "calls", []
    for path in bed.bin.iterdir():
        first, rest = path.read_text().split("\n", 1)
        record = "{ printf '%s\\037' \"${0##*/}\" \"$@\"; printf '\\036'; } >> "
        path.write_text(f"{first}\n{record}{log}\n{rest}")
    yield calls
    calls += [record.split("\x1f")[:-1] for record in log.read_text().split("\x1e")[:-1]]


def renamed(original: PackageTarget, **fields: str) -> PackageTarget:
    """A target that no parser would make, for what stands behind the parser."""
    for name, value in fields.items():
        object.__setattr__(original, name, value)
    return original


# --- plans ------------------------------------------------------------------------------------------------------


def test_the_installer_is_what_the_executor_expects(shared_apt_bed):
    """It has the protocol's shape and the name that commands use."""
    installer: Installer = installer_of(shared_apt_bed)

    assert "apt" == installer.manager


async def test_a_plan_has_all_that_is_known_of_a_change(shared_apt_bed):
    """Versions, architecture, origin, standing, and the sizes to the byte."""
    deb = shared_apt_bed.repo / "pool" / f"rf-secure_{SECURITY}_all.deb"

    planned = await plan(shared_apt_bed, target("rf-secure", SECURITY))

    origin = "Debian-Security:12/stable-security"
    change = Change(name="rf-secure", arch="all", before=V1, after=SECURITY, origin=origin)
    expected = Transaction(
        manager="apt",
        requested=(PackageKey("rf-secure", "all"),),
        changes=(change,),
        download_size=deb.stat().st_size,
        disk_size=0,
    )
    assert (expected, origin) == (planned.transaction, planned.transaction.changes[0].origin)
    assert (
        PackageResult(name="rf-secure", arch="all", outcome=PackageOutcome.PLANNED, installed=V1),
    ) == planned.packages
    assert frozenset() == beyond_routine(planned.transaction)


async def test_a_plan_is_what_apt_says_it_would_do(shared_apt_bed):
    """For everything that is pending at once, the changes are those of apt's own lines."""
    names = ("rf-secure", "rf-fixed", "rf-normal", "rf-newdep", "rf-keptback", "rf-conffile", "rf-local")
    wanted = [f"{name}={SECURITY if name == 'rf-secure' else V2}" for name in names]
    lines = shared_apt_bed.run("apt-get", "-s", "install", *wanted).stdout.splitlines()

    found = await transaction(
        shared_apt_bed, *(target(name, SECURITY if name == "rf-secure" else V2) for name in names)
    )

    words = [line.split() for line in lines if line.startswith(("Inst ", "Remv "))]
    expected = {
        word[1]: "remove" if word[0] == "Remv" else "upgrade" if word[2].startswith("[") else "install"
        for word in words
    }
    assert expected == {change.name: str(change.kind) for change in found.changes}
    assert {"upgrade", "install", "remove"} == set(expected.values())


@pytest.mark.parametrize(
    "order, outcome, version, reason",
    [
        (target("rf-held"), "held", V1, "held on this machine (apt-mark hold)"),
        (target("rf-held", installed="0.1"), "held", V1, "held on this machine (apt-mark hold)"),
        (target("rf-dep-new"), "stale", None, "is not installed under this name and architecture"),
        (target("rf-normal", arch="i386"), "stale", None, "is not installed under this name and architecture"),
        (target("rf-normal", installed="0.9-1"), "stale", V1, "version 1.0-1 is installed, not 0.9-1"),
        (target("rf-normal", V1), "stale", V1, "this version is installed already"),
        (target("rf-normal", "9.9"), "stale", V1, "version 9.9 is not in the repositories of this machine"),
        (
            target("rf-normal", "1.5-1"),
            "stale",
            V1,
            f"the version to install is {V2} by now, not 1.5-1: scan it again",
        ),
        (target("rf-phased"), "planned", V1, None),
    ],
)
async def test_a_target_that_cannot_be_changed_says_why(shared_apt_bed, order, outcome, version, reason):
    """Held, gone, changed meanwhile or not to be had: each has its own sentence."""
    (result,) = (await plan(shared_apt_bed, order)).packages

    assert (outcome, version, reason) == (result.outcome, result.installed, result.reason)


async def test_what_cannot_be_changed_does_not_stop_the_rest(shared_apt_bed):
    """A held and a stale target are told; the transaction is that of the others alone."""
    orders = (target("rf-held"), target("rf-local"), target("rf-normal", "9.9"))

    planned = await plan(shared_apt_bed, *orders)

    assert {"rf-held": "held", "rf-local": "planned", "rf-normal": "stale"} == outcomes(planned.packages)
    assert {"rf-local:all": "upgrade"} == kinds(planned.transaction)


async def test_without_anything_to_change_there_is_no_transaction(shared_apt_bed):
    """A plan of held and stale targets alone has none, and apt is not asked for one."""
    planned = await plan(shared_apt_bed, target("rf-held"), target("rf-gone"))

    assert (None, {"rf-held": "held", "rf-gone": "stale"}) == (planned.transaction, outcomes(planned.packages))


async def test_a_version_that_the_owners_preferences_refuse_is_not_to_be_had(apt_bed):
    """A pin of the machine's owner stands above the order of a server."""
    pin = "Package: rf-local\nPin: version 2.0-1\nPin-Priority: -1\n"
    (apt_bed.root / "etc/apt/preferences.d/pin").write_text(pin)

    (result,) = (await plan(apt_bed, target("rf-local"))).packages

    reason = "the preferences of apt on this machine do not want version 2.0-1"
    assert ("stale", reason) == (result.outcome, result.reason)


async def test_a_new_dependency_is_an_extra_change_of_a_routine_update(shared_apt_bed):
    """People see it, and it needs no approval: the package strictly needs it."""
    found = await transaction(shared_apt_bed, target("rf-newdep"))

    assert {"rf-dep-new:all": "install", "rf-newdep:all": "upgrade"} == kinds(found)
    assert ["rf-dep-new"] == [change.name for change in found.extra]
    assert (frozenset(), 1024) == (beyond_routine(found), found.disk_size)


async def test_a_removal_is_seen_and_beyond_routine(shared_apt_bed):
    """What conflicts with the new version is in the plan with its version."""
    found = await transaction(shared_apt_bed, target("rf-keptback"))

    (extra,) = found.extra
    assert Change(name="rf-victim", arch="all", before=V1) == extra
    assert {ApprovalReason.REMOVAL} == beyond_routine(found)


async def test_a_downgrade_is_seen_and_beyond_routine(apt_bed):
    """An older version is called a downgrade, by the order of dpkg and not of text."""
    apt_bed.publish(Deb("rf-local", "1:0.1-1", suite="stable"), Deb("rf-uptodate", "1.0~rc1-1"))
    prefer(apt_bed, "rf-uptodate", "1.0~rc1-1")

    found = await transaction(apt_bed, target("rf-uptodate", "1.0~rc1-1"), target("rf-local", "1:0.1-1"))

    assert {"rf-uptodate:all": "downgrade", "rf-local:all": "upgrade"} == kinds(found)
    assert {ApprovalReason.DOWNGRADE} == beyond_routine(found)


async def test_both_architectures_of_a_package_move_together(shared_apt_bed):
    """Only both can be changed: who ordered one sees the other as an extra change."""
    native, foreign = shared_apt_bed.native, shared_apt_bed.foreign

    found = await transaction(shared_apt_bed, target("rf-multi", arch=native))

    assert {f"rf-multi:{native}": "upgrade", f"rf-multi:{foreign}": "upgrade"} == kinds(found)
    assert [foreign] == [change.arch for change in found.extra]


def old(name: str, arch: str = "all", version: str = V1, **fields: str) -> Deb:
    """A package that is installed."""
    return Deb(name, version, arch=arch, fields=fields, installed=True)


def new(name: str, arch: str = "all", version: str = V2, **fields: str) -> Deb:
    """A package that is published."""
    return Deb(name, version, arch=arch, fields=fields)


async def test_a_package_that_changes_its_architecture_keeps_its_name_for_people(tmp_path):
    """From the machine's architecture to all and back: planned, installed and found again under the old key."""
    packages = (old("rf-a", NATIVE), new("rf-a"), old("rf-b"), new("rf-b", NATIVE))
    with temporary_bed(packages, signed=True) as bed:
        orders = (target("rf-a", arch=bed.native), target("rf-b"))
        planned = await transaction(bed, *orders)

        run(await installer_of(bed).steps(planned), tmp_path)

        assert {f"rf-a:{bed.native}": "upgrade", "rf-b:all": "upgrade"} == kinds(planned)
        assert {"rf-a:all": V2, f"rf-b:{bed.native}": V2} == installed(bed)
        after = await installer_of(bed).look(orders)
        assert {"rf-a": "installed", "rf-b": "installed"} == outcomes(after.packages)


async def test_only_what_is_strictly_needed_is_planned(apt_bed):
    """No recommended and no suggested packages, no removals of unneeded ones, whatever is configured."""
    apt_bed.configure(
        'APT::Install-Recommends "true"; APT::Install-Suggests "true"; APT::Get::AutomaticRemove "true";\n'
    )
    apt_bed.publish(
        Deb("rf-local", "3.0-1", fields={"Recommends": "rf-want", "Suggests": "rf-like", "Depends": "rf-need"}),
        *(Deb(name, V2) for name in ("rf-want", "rf-like", "rf-need")),
    )

    found = await transaction(apt_bed, target("rf-local", "3.0-1"))

    assert {"rf-local:all": "upgrade", "rf-need:all": "install"} == kinds(found)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"Depends": "rf-nowhere"}, "rf-local : Depends: rf-nowhere but it is not installable"),
        ({"Depends": "rf-held (>= 2)"}, "rf-local : Depends: rf-held (>= 2) but 1.0-1 is to be installed"),
    ],
    ids=["missing", "held"],
)
async def test_dependencies_that_cannot_be_met_are_told_in_apts_words(apt_bed, fields, words):
    """A plan that apt cannot make fails with what is missing; nothing held is changed for it."""
    apt_bed.publish(Deb("rf-local", "3.0-1", fields=fields))

    with pytest.raises(ScanError) as caught:
        await plan(apt_bed, target("rf-local", "3.0-1"))

    assert words in caught.value.message


async def test_equal_plans_have_equal_hashes_in_every_language(shared_apt_bed, monkeypatch):
    """A plan that is made again, in German, is the same plan; another one is not."""
    first = await transaction(shared_apt_bed, target("rf-newdep"), target("rf-local"))
    for name in ("LANG", "LC_ALL", "LANGUAGE"):
        monkeypatch.setenv(name, "de_DE.UTF-8")

    again = await transaction(shared_apt_bed, target("rf-local"), target("rf-newdep"))
    other = await transaction(shared_apt_bed, target("rf-newdep"))

    assert first.plan_hash == again.plan_hash != other.plan_hash


async def test_a_plan_needs_no_lock_and_changes_nothing(apt_bed):
    """While another package manager holds every lock, a plan is made; dpkg's database stays as it is."""
    status = (apt_bed.admindir / "status").read_bytes()

    with apt_bed.locked():
        found = await transaction(apt_bed, target("rf-newdep"))

    assert 2 == len(found.changes)
    assert status == (apt_bed.admindir / "status").read_bytes()


async def test_a_plan_waits_for_a_dpkg_that_is_in_the_middle(apt_bed):
    """With work left in dpkg's journal the inventory is not true: there is no plan, and the way out is told."""
    (apt_bed.admindir / "updates/0000").touch()

    with pytest.raises(ScanError, match="dpkg --configure -a"):
        await plan(apt_bed, target("rf-local"))


def meddled(bed: AptBed, script: str) -> None:
    """Let something happen each time before apt-cache shows a version table."""
    path = bed.bin / "apt-cache"
    first, rest = path.read_text().split("\n", 1)
    path.write_text(f"{first}\n{script}\n{rest}")


async def test_packages_that_change_meanwhile_are_planned_again(apt_bed):
    """When dpkg's database is another one after the plan, the plan is made anew."""
    status, once = apt_bed.admindir / "status", apt_bed.directory / "once"
    meddled(apt_bed, f"[ -e {once} ] || {{ touch {once}; sed -i '/^Package: rf-victim/,/^$/d' {status}; }}")

    found = await transaction(apt_bed, target("rf-keptback"))

    assert {"rf-keptback:all": "upgrade"} == kinds(found)


async def test_packages_that_never_stand_still_are_an_error(apt_bed):
    """A machine that another package manager keeps changing gets no plan."""
    status = apt_bed.admindir / "status"
    meddled(
        apt_bed,
        f"""printf 'Package: rf-x%s\\nStatus: install ok installed\\nArchitecture: all\\n\
Maintainer: x\\nDescription: x\\nVersion: 1\\n\\n' $$ >> {status}""",
    )

    with pytest.raises(ScanError, match="being changed"):
        await plan(apt_bed, target("rf-local"))


def simulating(bed: AptBed, script: str) -> None:
    """Let a filter change what a simulation prints."""
    path, said = bed.bin / "apt-get", bed.directory / "said"
    real = path.read_text().replace("exec ", "", 1).rstrip("\n")
    path.write_text(f'{real} > {said} || exit\nif [ "$1" = -s ]; then {script}; else cat; fi < {said}\n')


@pytest.mark.parametrize(
    "script, words",
    [
        ("sed '/^Inst/d'", "not bring every package to the version"),
        ("sed 's/(2.0-1 /(2.5-1 /'", "not bring every package to the version"),
        ("sed 's/ \\[1.0-1\\] / [1.1-1] /'", "apt and dpkg do not agree about rf-local"),
        ("{ cat; echo 'Remv rf-gone [1.0]'; }", "which dpkg does not list"),
        (
            "{ cat; seq 2000 | sed 's/.*/Inst x& (1 D:1\\/s [all])/'; }",
            "2001 packages, more than 2000: order less at once",
        ),
    ],
    ids=["nothing", "other-version", "other-installed", "other-removal", "too-much"],
)
async def test_a_simulation_that_is_not_what_was_ordered_is_no_plan(apt_bed, script, words):
    """What apt says is compared with the order and with dpkg, and has a bound."""
    simulating(apt_bed, script)

    with pytest.raises(ScanError, match=words):
        await plan(apt_bed, target("rf-local"))


async def test_a_tool_that_fails_ends_the_plan_with_its_words(apt_bed):
    """An apt that cannot answer is a failed plan."""
    (apt_bed.bin / "apt-get").write_text("#!/bin/sh\necho 'E: the disk is on fire' >&2\nexit 100\n")

    with pytest.raises(ScanError, match="the disk is on fire"):
        await plan(apt_bed, target("rf-local"))


async def test_a_machine_without_apt_has_no_plan(shared_apt_bed, monkeypatch):
    """Nothing can be planned, looked at or carried out, and each says so."""
    planned = await transaction(shared_apt_bed, target("rf-local"))
    monkeypatch.setattr(process, "DEFAULT_PATH", "/nowhere")
    installer = AptInstaller()

    for asked in (
        installer.plan([target("rf-local")]),
        installer.steps(planned),
        installer.look([]),
        installer.is_locked(),
        installer.repair_steps(),
    ):
        with pytest.raises(ScanError, match="cannot be started"):
            await asked


async def test_a_full_or_missing_temporary_directory_is_an_error_that_callers_expect(shared_apt_bed, monkeypatch):
    """Where nothing can be written down there is no plan, and the place is named."""
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")

    with pytest.raises(ScanError, match="cannot look at /nowhere"):
        await plan(shared_apt_bed, target("rf-local"))


async def test_a_missing_dpkg_is_named_by_the_repair(apt_bed, monkeypatch):
    """A step without a program is never made."""
    monkeypatch.setattr(process, "DEFAULT_PATH", "/nowhere")
    (apt_bed.bin / "dpkg").unlink()

    with pytest.raises(ScanError, match="there is no dpkg on this machine"):
        await installer_of(apt_bed).repair_steps()


# --- whose packages they are ------------------------------------------------------------------------------------

SIGNED = {"signed-by": "{key}"}
STRANGER = {"signed-by": "{stranger}"}


@pytest.mark.parametrize(
    "deb822, options, signatures, expected",
    [
        (False, SIGNED, True, True),
        (True, SIGNED, True, True),
        (False, {"trusted": "yes"}, False, False),
        (True, {"trusted": "yes"}, False, False),
        (False, {**SIGNED, "trusted": "yes"}, True, False),
        (True, {**SIGNED, "trusted": "yes"}, True, False),
        (False, {**STRANGER, "trusted": "yes"}, True, False),
        (True, {**STRANGER, "trusted": "yes"}, True, False),
        # Releases of apt differ in whether deb822 may say it: in lines all take it.
        (False, {"allow-insecure": "yes"}, False, False),
        (False, {**STRANGER, "allow-insecure": "yes"}, True, False),
        # The signature is there and was checked, though it need not have been.
        (False, {**SIGNED, "allow-insecure": "yes"}, True, True),
    ],
)
async def test_only_a_checked_signature_authenticates(apt_bed, deb822, options, signatures, expected):
    """What the sources call trusted or allow to be insecure is not authenticated, in either form of sources."""
    stranger = apt_bed.directory / "stranger.gpg"
    stranger.write_bytes(b"")
    if not signatures:
        for path in apt_bed.repo.glob("dists/*/InRelease"):
            path.unlink()
    options = {name: value.format(key=apt_bed.key, stranger=stranger) for name, value in options.items()}
    apt_bed.use_sources(options, deb822=deb822)

    found = await transaction(apt_bed, target("rf-newdep"))

    assert {expected} == {change.authenticated for change in found.changes}
    assert expected == (ApprovalReason.UNAUTHENTICATED not in beyond_routine(found))


async def test_a_signature_that_is_no_longer_asked_for_does_not_count(apt_bed):
    """Lists that were verified once authenticate nothing after the owner wrote ``trusted`` beside them."""
    apt_bed.use_sources({"trusted": "yes"}, update=False)

    (change,) = (await transaction(apt_bed, target("rf-local"))).changes

    assert not change.authenticated


async def test_a_detached_signature_authenticates_too(apt_bed):
    """Some repositories have their signature in a file of its own."""
    for path in apt_bed.repo.glob("dists/*/InRelease"):
        path.unlink()
        release = path.with_name("Release")
        apt_bed._gpg("--armor", "--detach-sign", "--output", f"{release}.gpg", str(release))
    apt_bed.use_sources({"signed-by": str(apt_bed.key)})

    (change,) = (await transaction(apt_bed, target("rf-local"))).changes

    assert [] == list(apt_bed.lists.glob("*InRelease"))
    assert change.authenticated


async def test_compressed_lists_are_authenticated_too(apt_bed):
    """Containers keep the lists compressed."""
    apt_bed.configure('Acquire::GzipIndexes "true";\n')
    apt_bed.use_sources({"signed-by": str(apt_bed.key)})

    (change,) = (await transaction(apt_bed, target("rf-local"))).changes

    assert {False} == {path.name.endswith("_Packages") for path in apt_bed.lists.glob("*_Packages*")}
    assert change.authenticated


async def test_a_version_that_a_signed_and_an_unsigned_list_have_is_not_authenticated(apt_bed):
    """It may be fetched from either."""
    lines = [
        f"deb [signed-by={apt_bed.key}] file:{apt_bed.repo} stable main",
        f"deb [trusted=yes] file:{apt_bed.repo} stable-security main",
    ]
    apt_bed.publish(Deb("rf-local", "3.0-1"), Deb("rf-local", "3.0-1", "stable-security"), Deb("rf-slow", "3.0-1"))
    (apt_bed.root / "etc/apt/sources.list").write_text("\n".join(lines) + "\n")
    apt_bed.run("apt-get", "-qq", "update")

    found = await transaction(apt_bed, target("rf-local", "3.0-1"), target("rf-slow", "3.0-1"))

    assert {"rf-local": False, "rf-slow": True} == {change.name: change.authenticated for change in found.changes}


# --- steps ------------------------------------------------------------------------------------------------------


async def test_the_command_names_every_change_exactly(shared_apt_bed, monkeypatch):
    """An absolute program, each package with architecture and version, and an environment of its own."""
    monkeypatch.setenv("RF_SECRET", "1")
    native, foreign = shared_apt_bed.native, shared_apt_bed.foreign

    install, mark = await steps(shared_apt_bed, target("rf-newdep"), target("rf-multi", arch=native))

    expected = {
        f"rf-dep-new:{native}={V2}",
        f"rf-newdep:{native}={V2}",
        f"rf-multi:{native}={V2}",
        f"rf-multi:{foreign}={V2}",
    }
    assert str(shared_apt_bed.bin / "apt-get") == install.argv[0]
    assert expected == set(install.argv[install.argv.index("install") + 1 :])
    assert {"-oAPT::Get::Remove=false", "--no-install-recommends", "-y", "-q"} <= set(install.argv)
    assert set() == NEVER & set(install.argv)
    assert (f"{shared_apt_bed.bin}/apt-mark", "auto", f"rf-dep-new:{native}") == mark.argv
    assert ((False, True), install.env) == ((install.always, mark.always), mark.env)
    hooks = {"APT_LISTCHANGES_FRONTEND", "APT_LISTBUGS_FRONTEND", "NEEDRESTART_SUSPEND", "NEEDRESTART_MODE"}
    assert {"DEBIAN_FRONTEND", "LC_ALL", "PATH", "HOME", "UCF_FORCE_CONFFOLD"} | hooks == set(install.env)
    assert install.env["PATH"].startswith(f"{shared_apt_bed.bin}:")


async def test_another_root_is_named_by_configuration_alone(apt_bed, tmp_path):
    """With the system's tools and the bed's configuration, the steps change the bed."""
    installer = installer_of(apt_bed, path_prefix=None, apt_config=apt_bed.apt_config)
    planned = await installer.plan([target("rf-newdep")])

    ran = run(await installer.steps(planned.transaction), tmp_path)

    assert [0, 0] == [each.status for each in ran]
    assert V2 == installed(apt_bed)["rf-newdep:all"]
    assert "rf-dep-new" in marks(apt_bed, "showauto")


async def test_what_was_planned_is_what_is_installed(apt_bed, tmp_path):
    """New dependency, both architectures, security suite: the machine afterwards differs by the plan exactly."""
    orders = (target("rf-newdep"), target("rf-secure", SECURITY), target("rf-multi", arch=apt_bed.native))
    planned, before = await transaction(apt_bed, *orders), installed(apt_bed)

    ran = run(await installer_of(apt_bed).steps(planned), tmp_path)

    assert [0, 0] == [each.status for each in ran]
    assert {f"{c.name}:{c.arch}": (c.before, c.after) for c in planned.changes} == changed(
        before, installed(apt_bed)
    )
    after = await installer_of(apt_bed).look(orders)
    assert {"installed"} == {str(result.outcome) for result in after.packages}
    assert ((), False, ()) == (after.damaged, after.reboot_required, after.reboot_by)


async def test_the_exact_version_is_installed_though_a_newer_one_came_meanwhile(apt_bed, tmp_path):
    """What people saw in the plan is installed, not what was published after it."""
    made = await steps(apt_bed, target("rf-local"))
    apt_bed.publish(Deb("rf-local", "3.0-1"))

    (ran,) = run(made, tmp_path)

    assert (0, V2) == (ran.status, installed(apt_bed)["rf-local:all"])
    assert {"rf-local": "planned"} == outcomes(
        (await plan(apt_bed, target("rf-local", "3.0-1", installed=V2))).packages
    )


async def test_an_older_one_of_two_updates_is_not_planned(apt_bed):
    """A server cannot keep a machine on a version that its repositories have replaced: it has to plan again."""
    apt_bed.publish(Deb("rf-local", "3.0-1"))

    planned = await plan(apt_bed, target("rf-local"))

    (result,) = planned.packages
    reason = f"the version to install is 3.0-1 by now, not {V2}: scan it again"
    assert (None, "stale", reason) == (planned.transaction, result.outcome, result.reason)


async def test_a_foreign_package_is_installed_in_its_architecture(tmp_path):
    """The architecture of the order decides, not the machine's."""
    with temporary_bed((old("rf-f", FOREIGN), new("rf-f", FOREIGN), new("rf-f", NATIVE)), signed=True) as bed:
        (ran,) = run(await steps(bed, target("rf-f", arch=bed.foreign)), tmp_path)

        assert (0, {f"rf-f:{bed.foreign}": V2}) == (ran.status, installed(bed))


async def test_the_owners_settings_stay(apt_bed, tmp_path):
    """A changed conffile is kept without a question, and the new one lies beside it."""
    conffile = apt_bed.root / "etc/rf-conffile.conf"

    (ran,) = run(await steps(apt_bed, target("rf-conffile")), tmp_path)

    assert (0, V2) == (ran.status, installed(apt_bed)["rf-conffile:all"])
    assert "setting=1\n# changed by the admin\n" == conffile.read_text()
    assert "setting=2\n" == conffile.with_name("rf-conffile.conf.dpkg-dist").read_text()


async def test_automatic_and_chosen_packages_stay_what_they_are(tmp_path):
    """An update makes no package look chosen, and none look unneeded."""
    packages = (
        old("rf-auto-now"),
        new("rf-auto-now"),
        old("rf-auto-later"),
        new("rf-auto-later"),
        old("rf-top", Depends="rf-auto-later, rf-chosen"),
        new("rf-top", Depends="rf-auto-later (>= 2), rf-chosen (>= 2), rf-fresh"),
        old("rf-chosen"),
        new("rf-chosen"),
        new("rf-fresh"),
    )
    with temporary_bed(packages, signed=True) as bed:
        before = marks(bed, "showauto")

        ran = run(await steps(bed, target("rf-top"), target("rf-auto-now")), tmp_path)

        assert ([0, 0], {V2}) == ([each.status for each in ran], set(installed(bed).values()))
        assert {"rf-auto-now", "rf-auto-later"} == before
        assert before | {"rf-fresh"} == marks(bed, "showauto")


async def test_a_failing_package_is_told_and_the_rest_is_put_in_order(apt_bed, tmp_path):
    """The status and the package's own words are kept, and the automatic marks are set all the same."""
    orders = (target("rf-badpost"), target("rf-newdep"))

    install, mark = run(await steps(apt_bed, *orders), tmp_path)

    assert (100, 0) == (install.status, mark.status)
    assert "rf-badpost: boom" in install.output
    assert "rf-dep-new" in marks(apt_bed, "showauto")
    after = await installer_of(apt_bed).look(orders)
    bad, good = after.packages
    assert ("failed", V2, "dpkg has not finished with it: half-configured") == (
        bad.outcome,
        bad.installed,
        bad.reason,
    )
    assert ("installed", ("rf-badpost",)) == (good.outcome, after.damaged)


async def test_a_repair_finishes_what_was_left_half_done(apt_bed, tmp_path):
    """It keeps the owner's settings as an update does, and what cannot be repaired says so again."""
    postinst = 'if [ ! -e "$DPKG_ROOT/mended" ]; then echo "not yet" >&2; exit 1; fi\n'
    apt_bed.publish(Deb("rf-conffile", "3.0-1", files={"etc/rf-conffile.conf": "setting=3\n"}, postinst=postinst))
    order, installer = target("rf-conffile", "3.0-1"), installer_of(apt_bed)
    (broken,) = run(await steps(apt_bed, order), tmp_path)

    (useless,) = run(await installer.repair_steps(), tmp_path)
    (apt_bed.root / "mended").touch()
    (useful,) = run(await installer.repair_steps(), tmp_path)

    assert (100, 1, 0) == (broken.status, useless.status, useful.status)
    assert "not yet" in useless.output
    after = await installer.look([order])
    assert ({"rf-conffile": "installed"}, ()) == (outcomes(after.packages), after.damaged)
    assert "changed by the admin" in (apt_bed.root / "etc/rf-conffile.conf").read_text()


async def test_a_package_that_was_damaged_before_is_no_change_and_is_named_afterwards(apt_bed, tmp_path):
    """An update of another package does all it should; apt tries the damaged one again and fails because of it."""
    run(await steps(apt_bed, target("rf-badpost")), tmp_path)
    order = target("rf-local")
    planned = await transaction(apt_bed, order)

    (ran,) = run(await installer_of(apt_bed).steps(planned), tmp_path)

    after = await installer_of(apt_bed).look([order])
    assert ({"rf-local:all": "upgrade"}, 100) == (kinds(planned), ran.status)
    assert ({"rf-local": "installed"}, ("rf-badpost",)) == (outcomes(after.packages), after.damaged)


async def test_a_package_that_cannot_be_mended_ends_the_plan_in_apts_words(apt_bed):
    """While a package has to be installed anew and its file is nowhere, apt plans nothing at all."""
    status = apt_bed.admindir / "status"
    text = status.read_text()
    start = text.index("Package: rf-uptodate\n")
    end = text.index("\n\n", start)
    record = (
        text[start:end].replace("install ok installed", "install reinstreq half-installed").replace(V1, "9.9-1")
    )
    status.write_text(text[:start] + record + text[end:])

    with pytest.raises(ScanError, match="rf-uptodate needs to be reinstalled"):
        await plan(apt_bed, target("rf-local"))


async def test_a_repair_is_dpkgs_own_and_removes_nothing(shared_apt_bed):
    """One absolute program that configures what is unpacked; apt is not asked to find a solution."""
    (step,) = await installer_of(shared_apt_bed).repair_steps()

    assert str(shared_apt_bed.bin / "dpkg") == step.argv[0]
    assert ("--force-confdef", "--force-confold", "--configure", "-a") == step.argv[-4:]


@pytest.mark.parametrize("configured", [False, True], ids=["default", "configured"])
async def test_apt_itself_refuses_what_a_plan_would_never_order(apt_bed, tmp_path, configured):
    """Given such a package by hand, the command with our arguments fails, though apt is configured to say yes."""
    (install,) = await steps(apt_bed, target("rf-local"))
    before = installed(apt_bed)
    apt_bed.publish(Deb("rf-uptodate", "0.9-1"))
    if configured:
        words = ("allow-downgrades", "allow-change-held-packages", "allow-remove-essential", "Force-Yes", "Remove")
        apt_bed.configure("".join(f'APT::Get::{word} "true";\n' for word in words))

    refused = {}
    for spec in (f"rf-keptback={V2}", f"rf-held={V2}", "rf-uptodate=0.9-1"):
        by_hand = replace_argv(install, (*install.argv[:-1], spec))
        (ran,) = run([by_hand], tmp_path)
        refused[spec] = (ran.status, ran.output.splitlines()[-1])

    yes = "and -y was used without"
    assert {
        f"rf-keptback={V2}": (100, "E: Packages need to be removed but remove is disabled."),
        f"rf-held={V2}": (100, f"E: Held packages were changed {yes} --allow-change-held-packages."),
        "rf-uptodate=0.9-1": (100, f"E: Packages were downgraded {yes} --allow-downgrades."),
    } == refused
    assert before == installed(apt_bed)


async def test_apt_that_is_configured_to_download_only_installs(apt_bed, tmp_path):
    """All of the plan is carried out, or nothing."""
    apt_bed.configure('APT::Get::Download-Only "true";\n')

    (ran,) = run(await steps(apt_bed, target("rf-local")), tmp_path)

    assert (0, V2) == (ran.status, installed(apt_bed)["rf-local:all"])


async def test_a_package_that_cannot_be_fetched_is_not_left_out(apt_bed, tmp_path):
    """Though apt is configured to go on without it: half of a plan is not what people saw."""
    apt_bed.configure('APT::Get::Fix-Missing "true";\n')
    made, before = await steps(apt_bed, target("rf-local"), target("rf-normal")), installed(apt_bed)
    (apt_bed.repo / "pool" / f"rf-local_{V2}_all.deb").unlink()

    (ran, *_) = run(made, tmp_path)

    assert (100, before) == (ran.status, installed(apt_bed))


async def test_what_is_broken_is_not_mended_by_the_way(apt_bed):
    """Though apt is configured to: its solution is nobody's order, and what is broken is told."""
    apt_bed.configure('APT::Get::Fix-Broken "true";\n')
    apt_bed.publish(Deb("rf-needy", fields={"Depends": "rf-dep-new"}))
    package = apt_bed.repo / "pool" / f"rf-needy_{V1}_all.deb"
    apt_bed.run("dpkg", "--force-depends", "-i", str(package))

    with pytest.raises(ScanError, match="rf-needy"):
        await plan(apt_bed, target("rf-local"))


def replace_argv(step: Step, argv: tuple[str, ...]) -> Step:
    """The step with other arguments."""
    return Step(name=step.name, argv=argv, env=step.env)


async def test_packages_that_lost_their_signature_meanwhile_are_not_installed(apt_bed, tmp_path):
    """Between the plan and its start somebody serves unsigned lists: apt refuses, though configured to accept."""
    made = await steps(apt_bed, target("rf-local"))
    for path in apt_bed.repo.glob("dists/*/InRelease"):
        path.unlink()
    apt_bed.use_sources({"allow-insecure": "yes"})
    apt_bed.configure('APT::Get::AllowUnauthenticated "true"; APT::Get::Force-Yes "true";\n')

    (ran,) = run(made, tmp_path)

    assert (100, V1) == (ran.status, installed(apt_bed)["rf-local:all"])
    assert "There were unauthenticated packages" in ran.output


async def test_a_package_that_is_held_between_plan_and_start_is_left_alone(apt_bed, tmp_path):
    """The owner's last word counts, until the very moment."""
    made = await steps(apt_bed, target("rf-local"))
    apt_bed.run("apt-mark", "hold", "rf-local")

    (ran,) = run(made, tmp_path)

    assert (100, V1) == (ran.status, installed(apt_bed)["rf-local:all"])


async def test_held_packages_stay_held(apt_bed, tmp_path):
    """An update of others changes neither a hold nor what is held."""
    before = marks(apt_bed, "showhold")

    run(await steps(apt_bed, target("rf-local")), tmp_path)

    assert ({"rf-held", "rf-held-current"}, V1) == (before, installed(apt_bed)["rf-held:all"])
    assert before == marks(apt_bed, "showhold")


async def test_hooks_of_apt_are_told_to_keep_still(apt_bed, tmp_path):
    """needrestart, apt-listchanges and apt-listbugs read these: none restarts, shows or asks."""
    seen = apt_bed.directory / "seen"
    apt_bed.configure(f'DPkg::Post-Invoke {{ "env > {seen}"; }};\n')

    run(await steps(apt_bed, target("rf-local")), tmp_path)

    env = dict(line.split("=", 1) for line in seen.read_text().splitlines())
    expected = {
        "DEBIAN_FRONTEND": "noninteractive",
        "NEEDRESTART_SUSPEND": "1",
        "NEEDRESTART_MODE": "l",
        "APT_LISTCHANGES_FRONTEND": "none",
        "APT_LISTBUGS_FRONTEND": "none",
        "UCF_FORCE_CONFFOLD": "1",
    }
    assert expected.items() <= env.items()


def prefer(bed: AptBed, name: str, version: str) -> None:
    """Let the owner's preferences ask for a version, even an older one."""
    pin = f"Package: {name}\nPin: version {version}\nPin-Priority: 1001\n"
    (bed.root / "etc/apt/preferences.d/pin").write_text(pin)


def held(transaction: Transaction) -> Transaction:
    """The transaction, of a package that the owner holds."""
    (change,) = transaction.changes
    fields = {"name": change.name, "arch": change.arch, "before": change.before, "after": change.after}
    return Transaction(manager="apt", requested=transaction.requested, changes=(Change(**fields, held=True),))


async def test_there_are_no_steps_beyond_routine(apt_bed):
    """Removals, downgrades, held and unauthenticated packages: no command line is even made for them."""
    apt_bed.publish(Deb("rf-uptodate", "0.9-1"))
    prefer(apt_bed, "rf-uptodate", "0.9-1")
    installer = installer_of(apt_bed)
    beyond = {
        "removal": await transaction(apt_bed, target("rf-keptback")),
        "downgrade": await transaction(apt_bed, target("rf-uptodate", "0.9-1")),
        "held": held(await transaction(apt_bed, target("rf-local"))),
    }
    apt_bed.use_sources({"trusted": "yes"})
    beyond["unauthenticated"] = await transaction(apt_bed, target("rf-local"))

    refused = {}
    for reason, planned in beyond.items():
        with pytest.raises(NeedsApprovalError) as caught:
            await installer.steps(planned)
        refused[reason] = caught.value.message

    assert {reason: f"this change needs an operator's signed approval: {reason}" for reason in beyond} == refused


async def approved_steps(bed: AptBed, planned: Transaction) -> tuple[Step, ...]:
    """The steps of a transaction that an operator approved."""
    return await installer_of(bed).steps(planned, approved=True)


def leave(step: Step) -> dict[str, str]:
    """What a step gives apt leave for, beyond what it is always told."""
    given = dict(each[2:].split("=", 1) for each in step.argv if each.startswith("-oAPT::Get::"))
    names = ("APT::Get::Remove", "APT::Get::allow-downgrades")
    return {name.removeprefix("APT::Get::"): given[name] for name in names}


async def test_an_approved_removal_happens_and_nothing_else(apt_bed, tmp_path):
    """The package in the way is named for removal; its settings stay, and apt gets leave for nothing more."""
    planned, before = await transaction(apt_bed, target("rf-keptback")), installed(apt_bed)
    steps_made = await approved_steps(apt_bed, planned)

    ran = run(steps_made, tmp_path)

    assert all(each.status == 0 for each in ran)
    assert {f"{c.name}:{c.arch}": (c.before, c.after) for c in planned.changes} == changed(
        before, installed(apt_bed)
    )
    assert "remove" in kinds(planned).values()
    assert {"Remove": "true", "allow-downgrades": "false"} == leave(steps_made[0])


async def test_an_approved_removal_happens_though_apt_is_configured_never_to_remove(apt_bed, tmp_path):
    """What the owner wrote for routine work does not turn an agreed change into another one."""
    planned = await transaction(apt_bed, target("rf-keptback"))
    apt_bed.configure('APT::Get::Remove "false";\n')

    try:
        ran = run(await approved_steps(apt_bed, planned), tmp_path)
    except (PlanDriftedError, ScanError):
        return  # the simulation obeys the same configuration: then nothing happens, and it is said

    assert all(each.status == 0 for each in ran)


async def test_an_approved_downgrade_happens(apt_bed, tmp_path):
    """Only that package goes back, to the version that was planned."""
    apt_bed.publish(Deb("rf-uptodate", "0.9-1"))
    prefer(apt_bed, "rf-uptodate", "0.9-1")
    planned, before = await transaction(apt_bed, target("rf-uptodate", "0.9-1")), installed(apt_bed)
    steps_made = await approved_steps(apt_bed, planned)

    run(steps_made, tmp_path)

    assert {"rf-uptodate:all": (before["rf-uptodate:all"], "0.9-1")} == changed(before, installed(apt_bed))
    assert {"Remove": "false", "allow-downgrades": "true"} == leave(steps_made[0])


async def test_no_approval_allows_what_nobody_signed_or_the_owner_holds(apt_bed):
    """No operator can vouch for an unsigned package, or take back the owner's word."""
    on_hold = held(await transaction(apt_bed, target("rf-local")))
    apt_bed.use_sources({"trusted": "yes"})
    unsigned = await transaction(apt_bed, target("rf-local"))

    for planned, reason in ((on_hold, "held"), (unsigned, "unauthenticated")):
        with pytest.raises(CommandRefusedError, match=f"only a change on the machine itself: {reason}"):
            await approved_steps(apt_bed, planned)


async def test_an_approved_plan_that_is_not_true_any_more_has_no_steps(apt_bed):
    """The package that was to go has another version by now."""
    planned = await transaction(apt_bed, target("rf-keptback"))
    (gone,) = [change for change in planned.changes if change.after is None]
    apt_bed.run("dpkg", "--purge", "--force-depends", gone.name)

    with pytest.raises((PlanDriftedError, ScanError)):
        await approved_steps(apt_bed, planned)


@pytest.mark.parametrize("what", ["dependency", "version", "hold"])
async def test_a_plan_that_is_not_true_any_more_has_no_steps(apt_bed, what):
    """The command is simulated as it would be run, and has to do what was planned."""
    planned = await transaction(apt_bed, target("rf-local"))
    if what == "dependency":
        (lists,) = apt_bed.lists.glob(f"*_stable_main_binary-{apt_bed.native}_Packages")
        entry = f"Package: rf-local\nVersion: {V2}\n"
        assert entry in lists.read_text()
        lists.write_text(lists.read_text().replace(entry, f"{entry}Depends: rf-dep-new\n"))
    elif what == "version":
        apt_bed.run("dpkg", "-i", str(apt_bed.repo / "pool" / f"rf-local_{V2}_all.deb"))
    else:
        apt_bed.run("apt-mark", "hold", "rf-local")

    with pytest.raises(PlanDriftedError):
        await installer_of(apt_bed).steps(planned)


async def test_progress_is_read_from_what_apt_writes(apt_bed, tmp_path):
    """From fetching to installed it grows, whatever part of the file has been written."""
    installer = installer_of(apt_bed)
    (ran,) = run(await steps(apt_bed, target("rf-local"), target("rf-conffile")), tmp_path)
    ends = range(len(ran.progress) + 1)

    seen = [installer.percent(ran.progress[:end]) for end in ends]

    known = [percent for percent in seen if percent is not None]
    assert known == sorted(known)
    assert (None, True) == (seen[0], known[0] < 40 < 90 < known[-1] <= 100)


@pytest.mark.parametrize(
    "status, expected",
    [
        ("", None),
        ("pmstatus:rf:12.5:half a li", None),
        ("nonsense\n", None),
        ("pmstatus:rf:12.5:Installing rf\n", 47),
        ("dlstatus:1:50.0000:Retrieving file 1 of 2\n", 20),
        ("dlstatus:2:100:Retrieving file 2 of 2\npmstatus:dpkg-exec:0.0000:Running dpkg\n", 40),
        ("pmstatus:rf:100.0000:Installed rf (amd64)\n", 100),
        ("pmstatus:rf:50:x\npmerror:/var/cache/rf_1%3a2_all.deb:60.0:no space: left\n", 76),
        ("pmstatus:rf:999.0:x\n", 100),
        ("pmstatus:rf:20.0:x\nmedia-change: disc:cdrom:insert\n", 52),
    ],
)
def test_percents_are_those_of_the_last_whole_line(status, expected):
    """Fetching is the first part, dpkg the rest; a line that says nothing is passed over."""
    assert expected == AptInstaller().percent(status)


# --- locks ------------------------------------------------------------------------------------------------------


@contextmanager
def held_by_another(lock: Path) -> Iterator[None]:
    """Another process holds a lock."""
    argv = [sys.executable, "-c", HOLD_LOCK, str(lock)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield
        process.stdin.close()


@pytest.mark.parametrize("lock", ["lib/dpkg/lock-frontend", "lib/dpkg/lock", "cache/apt/archives/lock"])
async def test_a_lock_of_another_process_is_seen_while_it_is_held(apt_bed, lock):
    """dpkg's, its frontend's and that of the downloads; free before and after, and not taken by asking."""
    installer, path = installer_of(apt_bed), apt_bed.root / "var" / lock

    before = await installer.is_locked()
    with held_by_another(path):
        meanwhile = await installer.is_locked()

    assert (False, True, False) == (before, meanwhile, await installer.is_locked())


@contextmanager
def in_the_middle(step: Step, go: Path) -> Iterator[subprocess.Popen[str]]:
    """The step has come to the script that says "reached" and waits for *go*; it goes on at the end."""
    argv = ["/bin/sh", "-c", 'exec 3>/dev/null; exec "$@"', "sh", *step.argv]
    # Open for both, a fifo never blocks.
    with (
        go.open("r+b", buffering=0) as gate,
        subprocess.Popen(
            argv, env=dict(step.env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as apt,
    ):
        try:
            assert any("reached" in line for line in iter(apt.stdout.readline, ""))
            yield apt
        finally:
            gate.write(b"x\n")
            apt.stdout.read()


async def test_an_apt_that_works_is_seen(apt_bed):
    """From the middle of a package's installation until its end."""
    go = apt_bed.directory / "go"
    os.mkfifo(go)
    apt_bed.publish(Deb("rf-local", "3.0-1", postinst=f"echo reached\nread _ < {go}\n"))
    installer = installer_of(apt_bed)
    (step,) = await steps(apt_bed, target("rf-local", "3.0-1"))

    with in_the_middle(step, go) as apt:
        meanwhile = await installer.is_locked()

    assert (True, 0, False) == (meanwhile, apt.returncode, await installer.is_locked())
    assert "3.0-1" == installed(apt_bed)["rf-local:all"]


async def test_a_lock_that_does_not_exist_yet_is_free(apt_bed):
    """A fresh machine has no lock files, and looking makes none."""
    locks = [apt_bed.admindir / "lock", apt_bed.admindir / "lock-frontend"]
    for path in locks:
        path.unlink(missing_ok=True)

    locked = await installer_of(apt_bed).is_locked()

    assert (False, [False, False]) == (locked, [path.exists() for path in locks])


# --- afterwards -------------------------------------------------------------------------------------------------


async def test_what_is_not_done_is_unchanged(shared_apt_bed):
    """A package in the version before is what it was, not a failure."""
    (result,) = (await installer_of(shared_apt_bed).look([target("rf-local")])).packages

    assert ("unchanged", V1, None) == (result.outcome, result.installed, result.reason)


async def test_another_version_and_none_are_failures(shared_apt_bed):
    """Whatever came between is told with the version that is there now."""
    orders = [target("rf-local", "4.0", installed="3.0"), target("rf-gone")]

    other, gone = (await installer_of(shared_apt_bed).look(orders)).packages

    reason = "neither the version before nor the one that was ordered is installed"
    assert ("failed", V1, reason) == (other.outcome, other.installed, other.reason)
    assert ("failed", None, "it is not installed any more") == (gone.outcome, gone.installed, gone.reason)


async def test_a_package_that_is_only_unpacked_is_damaged(apt_bed):
    """At the right version is not enough: dpkg has to have finished."""
    apt_bed.run("dpkg", "--unpack", str(apt_bed.repo / "pool" / f"rf-local_{V2}_all.deb"))

    after = await installer_of(apt_bed).look([target("rf-local")])

    (result,) = after.packages
    assert ("failed", V2, "dpkg has not finished with it: unpacked") == (
        result.outcome,
        result.installed,
        result.reason,
    )
    assert ("rf-local",) == after.damaged


async def test_an_interrupted_dpkg_is_damage_and_a_repair_ends_it(apt_bed, tmp_path):
    """A journal that nobody finished stops every update: it is told as dpkg's own, and the repair empties it."""
    entry = (apt_bed.admindir / "status").read_text().partition("\n\n")[0] + "\n"
    (apt_bed.admindir / "updates/0000").write_text(entry)
    installer = installer_of(apt_bed)

    interrupted = await installer.look([])
    (repair,) = run(await installer.repair_steps(), tmp_path)

    assert (("dpkg",), 0, ()) == (interrupted.damaged, repair.status, (await installer.look([])).damaged)


async def test_a_reboot_is_told_with_who_asks_for_it(apt_bed, tmp_path):
    """The flag and the names are those that packages leave."""
    order = target("rf-reboot")
    before = await installer_of(apt_bed).look([order])

    run(await steps(apt_bed, order), tmp_path)

    after = await installer_of(apt_bed).look([order])
    assert (False, ()) == (before.reboot_required, before.reboot_by)
    assert (True, ("rf-reboot",)) == (after.reboot_required, after.reboot_by)


# --- hostile orders ---------------------------------------------------------------------------------------------

NAMES = [
    "rf-victim-",
    "rf-victim+",
    "-oAPT::Update::Pre-Invoke::=touch /tmp/x",
    "-oDPkg::Pre-Invoke::=touch /tmp/x",
    "--allow-unauthenticated",
    "rf-victim=1.0-1",
    "rf-local/stable-security",
    "rf-*",
    "rf-loca?",
    "rf.local",
    "^rf",
    "rf-local rf-victim-",
    "./rf-evil.deb",
    "/tmp/rf-evil.deb",
    "rf-evil.deb",
    "https://example.invalid/rf-evil.deb",
    "rf-local;touch /tmp/x",
    "$(touch /tmp/x)",
    "rf-local\nrf-victim",
    "rf-local:amd64",
    "update_all",
    "",
]
VERSIONS = [
    "2.0-1-",
    "2.0-1+",
    "2.0*",
    "*",
    "stable",
    "/stable/",
    "2.0-1 rf-victim-",
    "-oDPkg::Pre-Invoke::=touch /tmp/x",
    "2.0-1;touch /tmp/x",
    "$(touch /tmp/x)",
    "2.0-1/stable",
]


async def test_a_hostile_name_never_becomes_part_of_a_command_line(apt_bed):
    """Whatever a server calls a package: no tool is ever started with it, and nothing is planned."""
    with traced(apt_bed) as calls:
        results = [
            (await plan(apt_bed, renamed(target("rf-local"), name=n))) for n in NAMES if n and "\n" not in n
        ]
        for name in NAMES:
            with pytest.raises(ValueError, match="name of a package") if is_refused(name) else nothing():
                target(name)

    assert {(None, "stale")} == {(result.transaction, result.packages[0].outcome) for result in results}
    words = {word for call in calls for word in call}
    assert "dpkg-query" in words
    assert set() == {word for word in words for name in NAMES if name and name in word}


@contextmanager
def nothing() -> Iterator[None]:
    """Expect nothing."""
    yield


def is_refused(name: str) -> bool:
    """Whether the form of a name alone is enough to refuse it: the others are just not installed."""
    return name not in ("rf-victim+", "rf.local", "rf-local:amd64", "update_all")


async def test_a_hostile_version_never_becomes_part_of_a_command_line(apt_bed):
    """Only a version that a repository has, to the letter, is ever given to apt."""
    with traced(apt_bed) as calls:
        results = [await plan(apt_bed, target("rf-local", version)) for version in VERSIONS]

    assert {(None, "stale")} == {(result.transaction, result.packages[0].outcome) for result in results}
    words = {word for call in calls for word in call}
    assert "policy" in words
    assert set() == {word for word in words if "=" in word and word.startswith("rf-")}
    assert set() == {word for word in words for version in VERSIONS if len(version) > 1 and version in word}


async def test_a_version_whose_end_apt_would_take_for_an_order_is_refused(apt_bed):
    """A repository may have such a version; ``name=1+`` and ``name=1-`` mean other things once it is gone."""
    apt_bed.publish(Deb("rf-local", "3.0+"))

    (result,) = (await plan(apt_bed, target("rf-local", "3.0+"))).packages

    assert ("stale", "apt would take this name or version for an order to do something else") == (
        result.outcome,
        result.reason,
    )


@pytest.mark.parametrize(
    "line",
    [
        "Inst -oDPkg::Pre-Invoke::=x (2.0 Debian:12/stable [all])",
        "Inst rf-dep-new (--pre-invoke=x Debian:12/stable [all])",
        "Inst rf-dep-new (2.0- Debian:12/stable [all])",
        "Inst rf-dep-new=1 (2.0 Debian:12/stable [all])",
    ],
)
async def test_a_hostile_repository_cannot_name_an_option(apt_bed, line):
    """What a package list may call a dependency is looked at before a tool is asked about it."""
    path = apt_bed.bin / "apt-get"
    real = path.read_text().replace("exec ", "", 1)
    path.write_text(f'{real}[ "$1" != -s ] || echo "{line}"\n')

    with traced(apt_bed) as calls, pytest.raises(ScanError, match="name or version cannot be given to apt"):
        await plan(apt_bed, target("rf-local"))

    words = {word for call in calls for word in call}
    assert f"rf-local:{apt_bed.native}={V2}" in words
    assert set() == words & {line.split()[1], line.split()[2].removeprefix("(")} - {"rf-dep-new"}


async def test_tools_receive_only_what_the_machine_knows(apt_bed, tmp_path):
    """In a whole update the tools get names and versions of the inventory and the repositories, nothing else."""
    orders = (
        target("rf-newdep"),
        target("rf-multi", arch=apt_bed.native),
        renamed(target("rf-slow"), name="bash-"),
    )
    with traced(apt_bed) as calls:
        planned = await plan(apt_bed, *orders)
        made = await installer_of(apt_bed).steps(planned.transaction)
        run(made, tmp_path)
        await installer_of(apt_bed).look(orders)

    known = {deb.name for deb in PACKAGES}
    specs = [word for call in calls for word in call if word.startswith("rf-")]
    assert specs
    assert set() == {spec for spec in specs if spec.partition("=")[0].partition(":")[0] not in known}
    assert set() == {spec.partition("=")[2] for spec in specs} - {"", V1, V2}
    assert [list(step.argv[1:]) for step in made] == [
        call[1:] for call in calls if call[1:2] in (["-y"], ["auto"])
    ]
    assert {"-s", "-y", "indextargets"} == {call[1] for call in calls if call[0] == "apt-get"}
    assert "bash-" not in {word for call in calls for word in call}
