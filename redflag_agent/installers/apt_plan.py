"""
From what apt and dpkg say to the exact transaction.

Pure. Every name and version passes `spec_of` or `judge` before it becomes part of a command line: `judge` compares
what a server ordered with the machine's own inventory and repositories, and `spec_of` refuses a spelling that apt
would take for something else.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import attrs

from redflag_agent.scanners.apt_output import (
    Installed,
    Offer,
    Planned,
    Simulation,
    VersionTable,
    is_name,
    parse_sizes,
)
from redflag_core.errors import MalformedError, ScanError
from redflag_core.patching import Change, PackageTarget, Transaction, check_name
from redflag_core.patching.plan import MAX_CHANGES
from redflag_core.scanning import MAX_NAME, MAX_TEXT, PackageKey, clean_text
from redflag_core.statements import PackageOutcome, PackageResult

_VERSION: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.+~:-]{0,253}[A-Za-z0-9.~])?")
"""A version that apt takes as it is: after a last ``-`` or ``+`` it would remove or install instead, and ``*``
stands for others."""

_KIB: Final = 1024


@attrs.frozen(kw_only=True)
class Machine:
    """
    What dpkg says is installed.

    Attributes:
        native: The machine's architecture.
        text: dpkg's answer itself: equal texts are the same inventory.
        installed: Packages by name and architecture.
        labels: The same packages by apt's label.
    """

    native: str
    text: str
    installed: Mapping[tuple[str, str], Installed]
    labels: Mapping[str, Installed]

    def find(self, target: PackageTarget) -> Installed | None:
        """The installed package that has exactly this name and architecture."""
        return self.installed.get((target.name, target.arch))

    def known(self, targets: Iterable[PackageTarget]) -> list[str]:
        """Labels of those targets that are installed."""
        found = filter(None, map(self.find, targets))
        return [package.label(self.native) for package in found]


# --- what was ordered -------------------------------------------------------------------------------------------


def judge(target: PackageTarget, machine: Machine, tables: Mapping[str, VersionTable]) -> PackageResult:
    """
    Decide whether a target can be brought to its version.

    Args:
        target: Untrusted.
        machine: The inventory now.
        tables: What the repositories have, by label.

    Returns:
        ``planned``, ``held``, or ``stale`` with the reason.
    """
    package = machine.find(target)
    if package is None:
        return _result(target, None, PackageOutcome.STALE, "is not installed under this name and architecture")
    if package.want == "hold":
        return _result(target, package, PackageOutcome.HELD, "held on this machine (apt-mark hold)")
    reason = _why_stale(target, package, tables.get(package.label(machine.native)))
    return _result(target, package, PackageOutcome.STALE if reason else PackageOutcome.PLANNED, reason)


def _result(
    target: PackageTarget, package: Installed | None, outcome: PackageOutcome, reason: str | None
) -> PackageResult:
    return PackageResult(
        name=target.name,
        arch=target.arch,
        outcome=outcome,
        installed=None if package is None else clean_text(package.version, max_len=MAX_NAME),
        reason=None if reason is None else clean_text(reason, max_len=MAX_TEXT),
    )


def _why_stale(target: PackageTarget, package: Installed, table: VersionTable | None) -> str | None:
    wanted = target.available
    if package.version != target.installed:
        return f"version {package.version} is installed, not {target.installed}"
    if wanted == package.version:
        return "this version is installed already"
    if not (_is_safe(target.name) and is_version(wanted)):
        return "apt would take this name or version for an order to do something else"
    offer = None if table is None else table.find(wanted)
    if table is None or offer is None:
        return f"version {wanted} is not in the repositories of this machine"
    if offer.priority < 0:
        return _unwanted(wanted)
    return None if wanted in (table.candidate, _available(table)) else _why_not_chosen(wanted, offer, table)


def _available(table: VersionTable) -> str:
    """The version that the scanner reports: the candidate, or what only phasing keeps from being it."""
    best = table.best()
    return table.candidate if best is None else best.version


def _why_not_chosen(wanted: str, offer: Offer, table: VersionTable) -> str:
    candidate = table.find(table.candidate)
    if candidate is not None and offer.priority < candidate.priority:
        return _unwanted(wanted)
    return f"the version to install is {_available(table)} by now, not {wanted}: scan it again"


def _unwanted(version: str) -> str:
    return f"the preferences of apt on this machine do not want version {version}"


def is_version(text: str) -> bool:
    """Whether *text* names one version to apt and nothing else."""
    return _VERSION.fullmatch(text) is not None


def _is_safe(name: str) -> bool:
    try:
        check_name(name)
    except MalformedError:
        return False
    return ":" not in name and is_name(name)


def spec_of(name: str, arch: str, version: str, native: str) -> str:
    """
    How exactly this version of this package is named to ``apt-get install``.

    Args:
        name: From the inventory or from apt.
        arch: Likewise. ``all`` belongs to the machine's own architecture.
        version: From a version table or from apt.
        native: The machine's architecture.

    Raises:
        ScanError: apt would take it for something else.
    """
    if not is_version(version):
        raise ScanError("apt speaks of a version that it cannot be given")
    return f"{label_of(name, arch, native)}={version}"


def removal_of(name: str, arch: str, native: str) -> str:
    """
    How ``apt-get install`` is told to remove exactly this package, keeping its settings.

    Raises:
        ScanError: apt would take it for something else.
    """
    return f"{label_of(name, arch, native)}-"


def label_of(name: str, arch: str, native: str) -> str:
    """
    How exactly this package is named to apt: always with an architecture, so that nothing has to be guessed.

    Raises:
        ScanError: apt would take it for something else.
    """
    label = f"{name}:{native if arch == 'all' else arch}"
    if not (_is_safe(name) and is_name(label)):
        raise ScanError("apt speaks of a package whose name it cannot be given")
    return label


# --- what would be changed --------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Evidence:
    """
    What is known of the versions that a simulation would bring.

    Attributes:
        tables: Versions by label.
        verified: Package lists whose signature apt has checked.
        older: Labels that would go to an older version.
        shown: Output of ``apt-cache show`` for all versions, before and after.
    """

    tables: Mapping[str, VersionTable]
    verified: frozenset[str]
    older: frozenset[str]
    shown: str


def transaction_of(
    requested: Sequence[tuple[PackageKey, str]], simulation: Simulation, machine: Machine, evidence: Evidence
) -> Transaction:
    """
    Everything that apt would change.

    Args:
        requested: Packages and the versions to which they shall be brought.
        simulation: What apt says it would do.
        machine: The inventory.
        evidence: What is known of the versions.

    Raises:
        ScanError: The simulation does not fit the inventory, or does not do what was asked for.
    """
    plans = (*simulation.upgrades.values(), *simulation.new.values())
    changes = [_brought(plan, machine, evidence) for plan in plans]
    changes += [_removed(label, machine) for label in simulation.removals]
    if len(changes) > MAX_CHANGES:
        raise ScanError(f"apt would change {len(changes)} packages, more than {MAX_CHANGES}: order less at once")
    after = {change.key: change.after for change in changes}
    if any(after.get(key) != version for key, version in requested):
        raise ScanError("apt would not bring every package to the version that was ordered")
    download, disk = _sizes(plans, simulation.removals, machine, evidence.shown)
    return Transaction(
        manager="apt",
        requested=tuple(key for key, _ in requested),
        changes=tuple(sorted(changes, key=lambda change: change.key)),
        download_size=download,
        disk_size=disk,
    )


def check_simulation(simulation: Simulation) -> None:
    """
    Refuse what a repository could have made up to be taken for an option of a tool that is asked about it next.

    Raises:
        ScanError: A name or version has a form that tools cannot be given.
    """
    plans = (*simulation.upgrades.values(), *simulation.new.values())
    if not all(is_name(plan.label) and is_version(plan.version) for plan in plans):
        raise ScanError("a repository has a package whose name or version cannot be given to apt")


def labels_of(simulation: Simulation) -> list[str]:
    """What a simulation would bring, by label."""
    return [*simulation.upgrades, *simulation.new]


def versions_of(simulation: Simulation, machine: Machine) -> list[tuple[str, str]]:
    """All versions that a simulation speaks of, before and after, with their labels."""
    plans = (*simulation.upgrades.values(), *simulation.new.values())
    after = [(plan.label, plan.version) for plan in plans]
    changed = (*simulation.upgrades, *simulation.removals)
    before = [(label, machine.labels[label].version) for label in changed if label in machine.labels]
    return after + before


def _brought(plan: Planned, machine: Machine, evidence: Evidence) -> Change:
    package = machine.labels.get(plan.label)
    if plan.installed != (None if package is None else package.version):
        raise ScanError(f"apt and dpkg do not agree about {plan.label}: packages are being changed")
    return Change(
        name=plan.label.partition(":")[0],
        # A package may change its architecture with its version: people know it by the one it has.
        arch=plan.arch if package is None else package.arch,
        before=plan.installed,
        after=plan.version,
        downgrade=plan.label in evidence.older,
        held=package is not None and package.want == "hold",
        authenticated=_is_authenticated(plan, evidence),
        origin=clean_text(plan.origin, max_len=MAX_TEXT) or None,
    )


def _is_authenticated(plan: Planned, evidence: Evidence) -> bool:
    # A version may be in several lists, and apt may fetch it from any: all must be signed.
    table = evidence.tables.get(plan.label)
    offer = None if table is None else table.find(plan.version)
    return offer is not None and bool(offer.sources) and evidence.verified.issuperset(offer.sources)


def _removed(label: str, machine: Machine) -> Change:
    package = machine.labels.get(label)
    if package is None:
        raise ScanError(f"apt would remove {label}, which dpkg does not list: packages are being changed")
    return Change(name=package.name, arch=package.arch, before=package.version, held=package.want == "hold")


def _sizes(
    plans: Sequence[Planned], removals: Sequence[str], machine: Machine, shown: str
) -> tuple[int | None, int | None]:
    """Bytes to download, and bytes that the disk would hold more; None where one size is not known."""
    after = [(plan.label.partition(":")[0], plan.version, plan.arch) for plan in plans]
    packages = [machine.labels[label] for label in (*removals, *(plan.label for plan in plans if plan.installed))]
    before = [(package.name, package.version, package.arch) for package in packages]
    on_disk = parse_sizes(shown, "Installed-Size")
    more, less = _sum(on_disk, after), _sum(on_disk, before)
    disk = None if more is None or less is None else (more - less) * _KIB
    return _sum(parse_sizes(shown), after), disk


def _sum(sizes: Mapping[tuple[str, str, str], int], keys: Sequence[tuple[str, str, str]]) -> int | None:
    return sum(sizes[key] for key in keys) if sizes.keys() >= set(keys) else None
