"""
The APT scanner: every installed package of a Debian or Ubuntu machine, each in an honest state.

Pending is exactly what ``apt-get dist-upgrade`` would change, asked from apt itself, plus what apt leaves out:
held, phased and kept back packages. Nothing is locked and nothing is changed, except that the package lists are
fetched when that is due and allowed. It works without root; then the lists are as old as they are, and the report
says so.
"""

import tempfile
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Final, Literal

import attrs

from redflag_agent import process
from redflag_agent.scanners.apt_output import DAMAGED, Repositories, is_name, parse_inventory
from redflag_agent.scanners.apt_tools import (
    ATTEMPTS,
    QUERY_TIMEOUT,
    AptTools,
    environment,
    find_tool,
    open_tools,
)
from redflag_agent.scanners.apt_verdict import MAX_NAMED, REPAIR, Reading, extras, judge, name_some, package_of
from redflag_core.encoding import JsonValue
from redflag_core.errors import ScanError
from redflag_core.ports import Clock
from redflag_core.scanning import (
    MAX_NAME,
    MAX_PACKAGES,
    MAX_TEXT,
    MAX_WARNINGS,
    Package,
    ScanReport,
    ScanStatus,
    clean_text,
)

REFRESH_AFTER: Final = 6 * 3_600.0
"""Age of the package lists, seconds, at which they are fetched again: a security update is seen within a shift."""

REFRESH_TIMEOUT: Final = 600.0
"""Seconds for ``apt-get update``: full lists over a slow line. Ending it is safe: it changes no package."""

MAX_EXPLAINED: Final = 8
"""Most kept back packages that are simulated one by one: each costs about a second, and there are rarely three."""


@attrs.frozen
class Refresh:
    """What became of the package lists: ``done``, ``fresh``, ``failed``, ``not_permitted`` or ``off``."""

    outcome: str
    error: str | None = None


@attrs.define(kw_only=True)
class AptScanner:
    """
    `redflag_core.scanning.Scanner` for apt.

    Not for concurrent scans; one after the other.

    Args:
        clock: For times in the report and the age of the package lists.
        apt_config: Configuration file that apt reads first (``APT_CONFIG``): another root.
        path_prefix: Directory whose tools win over the system's.
        refresh: Whether to fetch package lists: always, never, or when they are older than *refresh_after*. Where
            this process may not, it scans with the lists that are there and says so.
        refresh_after: Seconds.
        timeout: Seconds for each query.
        refresh_timeout: Seconds for fetching the package lists.
    """

    name: ClassVar[str] = "apt"
    manager: ClassVar[str] = "apt"

    clock: Clock
    apt_config: Path | None = None
    path_prefix: Path | None = None
    refresh: bool | Literal["auto"] = "auto"
    refresh_after: float = REFRESH_AFTER
    timeout: float = QUERY_TIMEOUT
    refresh_timeout: float = REFRESH_TIMEOUT
    _refreshed_at: datetime | None = attrs.field(default=None, init=False)

    def is_usable(self) -> bool:
        """Whether this machine has apt and dpkg."""
        env = self._environment()
        return all(find_tool(tool, env) for tool in ("apt-get", "apt-cache", "apt-mark", "dpkg-query"))

    async def scan(self) -> ScanReport:
        """
        Look now.

        Raises:
            ScanError: apt or dpkg cannot tell: broken dependencies, no package lists, a tool that fails or hangs.
        """
        taken_at, started = self.clock.now(), self.clock.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix="redflag-apt-") as cache:
                tools = await open_tools(self._environment(), timeout=self.timeout, cache=Path(cache))
                refresh = await self._refresh(tools)
                repositories, missing = await _sources(tools, refresh)
                reading = await _read(tools, repositories)
                packages = await _packages(tools, reading)
                version = await tools.version()
        except process.ProcessError as error:
            raise ScanError(error.message) from error
        warnings = [*self._refresh_warnings(tools, refresh), *missing, *_warnings(tools, reading)]
        return ScanReport(
            scanner=self.name,
            manager=self.manager,
            taken_at=int(taken_at.timestamp()),
            duration_ms=int((self.clock.monotonic() - started) * 1000),
            status=ScanStatus.OK,
            warnings=tuple(clean_text(text, max_len=MAX_TEXT) for text in warnings[:MAX_WARNINGS]),
            packages=packages,
            facts={"apt_version": version, **self._list_facts(tools, refresh), **_facts(tools, reading)},
        )

    def _environment(self) -> dict[str, str]:
        return environment(self.apt_config, self.path_prefix)

    async def _refresh(self, tools: AptTools) -> Refresh:
        if self.refresh is False:
            return Refresh("off")
        if not tools.may_update():
            return Refresh("not_permitted")
        age = self._list_age(tools)
        if self.refresh == "auto" and age is not None and age < self.refresh_after:
            return Refresh("fresh")
        error = await tools.update(self.refresh_timeout)
        if error is not None:
            return Refresh("failed", error)
        self._refreshed_at = self.clock.now()
        return Refresh("done")

    def _lists_at(self, tools: AptTools) -> datetime | None:
        # An update that found nothing new leaves no trace on the disk.
        seen = tools.refreshed_at()
        return max(filter(None, (seen, self._refreshed_at)), default=None) if seen else None

    def _list_age(self, tools: AptTools) -> float | None:
        at = self._lists_at(tools)
        return None if at is None else max(0.0, (self.clock.now() - at).total_seconds())

    def _refresh_warnings(self, tools: AptTools, refresh: Refresh) -> list[str]:
        age = self._list_age(tools)
        lists = f"package lists are {'of unknown age' if age is None else f'{age / 3600:.0f} hours old'}"
        if refresh.outcome == "not_permitted":
            return [f"{lists}; run as root to refresh"]
        if refresh.outcome == "failed":
            return [f"{lists}, because apt-get update failed: {refresh.error}"]
        return []

    def _list_facts(self, tools: AptTools, refresh: Refresh) -> dict[str, JsonValue]:
        at = self._lists_at(tools)
        return {
            "refresh": refresh.outcome,
            "refresh_error": refresh.error,
            "refreshed_at": None if at is None else int(at.timestamp()),
        }


async def _sources(tools: AptTools, refresh: Refresh) -> tuple[Repositories, list[str]]:
    """
    Find the sources whose package list is here, and say which have none.

    Raises:
        ScanError: None has: apt would answer that nothing is pending.
    """
    present = {(site, release): origin for site, release, origin in await tools.targets(present=True)}
    if not present:
        why = f" (which failed: {refresh.error})" if refresh.error else ""
        raise ScanError(f"there are no package lists: check the sources and run `apt-get update` as root{why}")
    named = dict.fromkeys((site, release) for site, release, _ in await tools.targets(present=False))
    missing = [
        f"no package list of {site} {release}: updates from there are not seen"
        for site, release in named
        if (site, release) not in present
    ]
    return Repositories(present), missing


async def _read(tools: AptTools, repositories: Repositories) -> Reading:
    """Read until dpkg's database was the same before and after."""
    for _ in range(ATTEMPTS):
        before = await tools.inventory()
        reading = await _read_once(tools, repositories, before)
        if _agree(reading) and before == await tools.inventory():
            return reading
    raise ScanError(f"packages are being changed by another package manager; if none is running, {REPAIR}")


async def _read_once(tools: AptTools, repositories: Repositories, inventory: str) -> Reading:
    found, unreadable = parse_inventory(inventory)
    if not found:
        raise ScanError(
            f"dpkg lists no installed package in {tools.admindir}: its database is empty or unreadable"
        )
    if len(found) > MAX_PACKAGES:
        raise ScanError(f"{len(found)} packages are installed, more than the {MAX_PACKAGES} that a report holds")
    installed = {package.label(tools.native): package for package in found.values()}
    full, warnings = await tools.simulate("dist-upgrade")
    careful, _ = await tools.simulate("upgrade")
    return Reading(
        installed=installed,
        unreadable=unreadable,
        full=full,
        careful=careful,
        tables=await tools.version_tables(installed),
        repositories=repositories,
        automatic=await tools.automatic(),
        native=tools.native,
        warnings=tuple(warnings),
    )


def _agree(reading: Reading) -> bool:
    """Whether apt speaks of the packages that dpkg lists, in the same versions."""
    return all(
        label in reading.installed and reading.installed[label].version == plan.installed
        for label, plan in reading.full.upgrades.items()
    )


async def _packages(tools: AptTools, reading: Reading) -> tuple[Package, ...]:
    reasons = await _explain(tools, reading)
    verdicts = {label: judge(label, reading, reasons) for label in reading.installed}
    sizes = await tools.sizes({label: v.available for label, v in verdicts.items() if v.available is not None})
    return tuple(package_of(label, verdict, reading, sizes) for label, verdict in verdicts.items())


async def _explain(tools: AptTools, reading: Reading) -> dict[str, str]:
    """Say of each package that only ``dist-upgrade`` takes what it would bring along, by simulating it alone."""
    kept_back = [plan for label, plan in reading.full.upgrades.items() if label not in reading.careful.upgrades]
    whole = extras(reading.full)
    reasons = {plan.label: f"only as part of a full upgrade, which {whole}" for plan in kept_back}
    for plan in filter(lambda plan: is_name(plan.label), kept_back[:MAX_EXPLAINED]):
        try:
            reasons[plan.label] = extras(await tools.simulate_alone(plan.label, plan.version))
        except ScanError as error:
            reasons[plan.label] = f"not by itself ({error.message}); a full upgrade {whole}"
    return reasons


def _warnings(tools: AptTools, reading: Reading) -> list[str]:
    found = list(reading.warnings)
    damaged = [label for label, package in reading.installed.items() if package.status in DAMAGED]
    if damaged:
        found.append(f"dpkg has not finished with {name_some(damaged)}; {REPAIR}")
    if tools.has_unfinished_work():
        found.append(
            f"dpkg has unfinished work: it is running, or was interrupted; if it is not running, {REPAIR}"
        )
    if reading.unreadable:
        found.append(f"{reading.unreadable} records of dpkg's database cannot be read and are left out")
    return found


def _facts(tools: AptTools, reading: Reading) -> dict[str, JsonValue]:
    reboot = tools.reboot_required_by()
    return {
        "held": sum(package.want == "hold" for package in reading.installed.values()),
        "reboot_required": reboot is not None,
        "reboot_required_by": [clean_text(name, max_len=MAX_NAME) for name in (reboot or [])[:MAX_NAMED]],
    }
