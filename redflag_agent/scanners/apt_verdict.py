"""
From what apt and dpkg say to one honest state for each package.

Pure. The order of the rules matters: what the machine's owner holds comes first, then what apt would do, then
what apt leaves out although it is newer.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import attrs

from redflag_agent.scanners.apt_output import (
    DAMAGED,
    Installed,
    Offer,
    Repositories,
    Simulation,
    VersionTable,
    is_security,
)
from redflag_core.scanning import MAX_NAME, MAX_TEXT, Package, PackageState, Severity, clean_text

MAX_NAMED: Final = 20
"""Most packages named in one reason, warning or fact."""

REPAIR: Final = "run `dpkg --configure -a` as root"


@attrs.frozen(kw_only=True)
class Reading:
    """
    What was read from apt and dpkg between two looks at dpkg's database that were the same.

    Attributes:
        installed: All installed packages, by apt's label.
        unreadable: Number of records of dpkg that mean nothing.
        full: What ``dist-upgrade`` would do.
        careful: What ``upgrade`` would do: the same without additions and removals.
        tables: Versions that the repositories have, by label.
        repositories: Where versions come from.
        automatic: Labels of packages that only others need.
        native: The machine's architecture.
        warnings: What apt itself warns of.
    """

    installed: Mapping[str, Installed]
    unreadable: int
    full: Simulation
    careful: Simulation
    tables: Mapping[str, VersionTable]
    repositories: Repositories
    automatic: frozenset[str]
    native: str
    warnings: tuple[str, ...]


@attrs.frozen
class Verdict:
    """Where a package stands."""

    state: PackageState
    available: str | None = None
    reason: str | None = None
    origin: str | None = None


def judge(label: str, reading: Reading, reasons: Mapping[str, str]) -> Verdict:
    """
    Decide where an installed package stands.

    Args:
        label: Its apt label.
        reading: What was read.
        reasons: Why packages are kept back, by label.
    """
    package = reading.installed[label]
    plan = reading.full.upgrades.get(label)
    best = reading.tables[label].best() if label in reading.tables else None
    if package.want == "hold":
        return _offered(PackageState.HELD, best, "held on this machine (apt-mark hold)", reading)
    if plan is not None and label in reading.careful.upgrades:
        newer = label not in reading.tables or reading.tables[label].up_to(plan.version)
        downgrade = None if newer else "older than what is installed: apt's preferences ask for it"
        return Verdict(PackageState.AVAILABLE, plan.version, downgrade, plan.origin)
    if plan is not None:
        return Verdict(PackageState.KEPT_BACK, plan.version, reasons.get(label), plan.origin)
    if best is None:
        return Verdict(PackageState.CURRENT)
    if best.phased is not None:
        return _offered(PackageState.PHASED, best, f"phased: {best.phased} % of machines get it now", reading)
    # dist-upgrade leaves it out as well: something it needs is missing or conflicts. Current would be a lie.
    return _offered(
        PackageState.KEPT_BACK, best, "apt cannot upgrade it now: its dependencies cannot be met", reading
    )


def _offered(state: PackageState, best: Offer | None, reason: str, reading: Reading) -> Verdict:
    if best is None:
        return Verdict(state, None, reason)
    origins = dict.fromkeys(map(reading.repositories.origin, best.sources))
    return Verdict(state, best.version, reason, ", ".join(origins))


def package_of(
    label: str, verdict: Verdict, reading: Reading, sizes: Mapping[tuple[str, str, str], int]
) -> Package:
    """The package as it is reported, with every text cut and cleaned to what a report may hold."""
    package = reading.installed[label]
    security = _is_security(label, verdict, reading)
    reason = verdict.reason
    if package.status in DAMAGED:
        reason = "; ".join(filter(None, (f"{package.status}: {REPAIR}", reason)))
    return Package(
        name=package.name,
        arch=package.arch,
        installed=_word(package.version),
        available=_word(verdict.available),
        state=verdict.state,
        # apt knows where an update comes from, not how bad the bugs are that it closes: a security repository says
        # "important" by publishing it at all, and of the others nothing is known. Advisories can say it better.
        severity=Severity.IMPORTANT if security else Severity.UNKNOWN,
        reason=_line(reason),
        security=security,
        origin=_line(verdict.origin),
        source=_word(package.source),
        source_version=_word(package.source_version),
        download_size=_size(package, verdict, reading, sizes),
        automatic=label in reading.automatic,
    )


def _is_security(label: str, verdict: Verdict, reading: Reading) -> bool:
    if verdict.available is None:
        return False
    # The newest version is often from another suite than the security fix below it, which it contains.
    table = reading.tables.get(label)
    offers = table.up_to(verdict.available) if table else ()
    origins = (reading.repositories.origin(source) for offer in offers for source in offer.sources)
    return is_security(verdict.origin or "") or any(map(is_security, origins))


def _size(
    package: Installed, verdict: Verdict, reading: Reading, sizes: Mapping[tuple[str, str, str], int]
) -> int | None:
    # A package may change its architecture with an upgrade, from the machine's to "all" or back.
    keys = ((package.name, verdict.available or "", arch) for arch in (package.arch, "all", reading.native))
    return next((sizes[key] for key in keys if key in sizes), None)


def extras(simulation: Simulation) -> str:
    """What a simulated upgrade brings along, for people."""
    parts = []
    if simulation.additions:
        parts.append(f"needs new packages: {name_some(simulation.additions)}")
    if simulation.removals:
        parts.append(f"would remove: {name_some(simulation.removals)}")
    return "; ".join(parts) or "needs other packages upgraded with it"


def name_some(labels: Iterable[str]) -> str:
    """The first `MAX_NAMED` names, and how many more there are."""
    names = list(labels)
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _word(text: str | None) -> str | None:
    return clean_text(text, max_len=MAX_NAME) if text else None


def _line(text: str | None) -> str | None:
    return clean_text(text, max_len=MAX_TEXT) if text else None
