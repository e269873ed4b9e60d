"""
The APT installer: plans with a simulation, and says how exactly that plan is carried out.

It asks apt and dpkg and starts no change. A name or version from a server is compared with the machine's own
inventory and repositories first (`redflag_agent.installers.apt_plan`). What a transaction is allowed to be is
decided by `redflag_core.patching.check_apply`.
"""

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar, Final

import attrs

from redflag_agent import process
from redflag_agent.installers.apt_aftermath import aftermath_of, percent_of
from redflag_agent.installers.apt_locks import is_held, locks_of
from redflag_agent.installers.apt_plan import (
    Evidence,
    Machine,
    check_simulation,
    judge,
    label_of,
    labels_of,
    removal_of,
    spec_of,
    transaction_of,
    versions_of,
)
from redflag_agent.installers.apt_steps import (
    EXACTLY,
    install_step,
    leave_for,
    mark_step,
    repair_step,
    step_environment,
)
from redflag_agent.installers.model import Aftermath, Planned, Step
from redflag_agent.scanners.apt_output import Simulation, VersionTable, parse_inventory
from redflag_agent.scanners.apt_tools import (
    ATTEMPTS,
    QUERY_TIMEOUT,
    AptTools,
    environment,
    find_tool,
    open_tools,
)
from redflag_core.errors import PlanDriftedError, ScanError
from redflag_core.patching import Change, PackageTarget, Transaction, check_apply
from redflag_core.scanning import PackageKey
from redflag_core.statements import PackageOutcome

SHOW_ALL: Final = ("--allow-downgrades", "--allow-change-held-packages", "--allow-remove-essential")
"""For simulating: what is beyond routine shall be seen in a plan, and not end in an obscure failure."""

UNFINISHED: Final = "dpkg is running, or was interrupted; if it is not running, run `dpkg --configure -a` as root"
MOVING: Final = "packages are being changed by another package manager: order it again later"


@attrs.frozen(kw_only=True)
class AptInstaller:
    """
    `redflag_agent.installers.model.Installer` for apt.

    Args:
        apt_config: Configuration file that apt reads first (``APT_CONFIG``): another root.
        path_prefix: Directory whose tools win over the system's.
        timeout: Seconds for each query.
    """

    manager: ClassVar[str] = "apt"

    apt_config: Path | None = None
    path_prefix: Path | None = None
    timeout: float = QUERY_TIMEOUT

    async def plan(self, targets: Sequence[PackageTarget]) -> Planned:
        """See `Installer.plan`."""
        async with self._tools() as tools:
            if tools.has_unfinished_work():
                raise ScanError(UNFINISHED)
            for _ in range(ATTEMPTS):
                machine = await _machine(tools)
                planned = await _plan(tools, machine, targets)
                if machine.text == await tools.inventory():
                    return planned
        raise ScanError(MOVING)

    async def steps(self, transaction: Transaction, *, approved: bool = False) -> tuple[Step, ...]:
        """
        See `Installer.steps`.

        The command is simulated once more with every package and version named, and has to do the same.

        Raises:
            NeedsApprovalError: The transaction is beyond routine, and not approved.
            PlanDriftedError: The command would do something else by now.
            ScanError: apt or dpkg cannot tell.
        """
        check_apply(transaction, plan_hash=transaction.plan_hash, approved=approved)
        async with self._tools() as tools:
            machine = await _machine(tools)
            if any(change.before != _version(change, machine) for change in transaction.changes):
                raise PlanDriftedError("other versions are installed than when this was planned")
            specs = [_spec(change, tools.native) for change in transaction.changes]
            again = await _simulate(tools, machine, _requested(transaction), specs)
            check_apply(again, plan_hash=transaction.plan_hash, approved=approved)
            return await self._steps(tools, machine, transaction.changes, specs)

    async def _steps(
        self, tools: AptTools, machine: Machine, changes: Sequence[Change], specs: Sequence[str]
    ) -> tuple[Step, ...]:
        env = step_environment(tools.env)
        install = install_step(_program("apt-get", tools), specs, env, allow=leave_for(changes))
        marked = await tools.automatic()
        labels = [
            label_of(change.name, change.arch, tools.native)
            for change in changes
            if change.after is not None and (change.before is None or _label(change, machine) in marked)
        ]
        return (install, mark_step(_program("apt-mark", tools), labels, env)) if labels else (install,)

    async def repair_steps(self) -> tuple[Step, ...]:
        """See `Installer.repair_steps`."""
        async with self._tools() as tools:
            options = await tools.dpkg_options()
            return (repair_step(_program("dpkg", tools), options, step_environment(tools.env)),)

    async def look(self, targets: Sequence[PackageTarget]) -> Aftermath:
        """See `Installer.look`."""
        async with self._tools() as tools:
            return aftermath_of(
                targets,
                await _machine(tools),
                unfinished=tools.has_unfinished_work(),
                reboot=tools.reboot_required_by(),
            )

    async def is_locked(self) -> bool:
        """
        See `Installer.is_locked`.

        Raises:
            ScanError: apt does not say where its locks are.
        """
        async with self._tools() as tools:
            return any(map(is_held, locks_of(tools)))

    def percent(self, status: str) -> int | None:
        """See `Installer.percent`."""
        return percent_of(status)

    @asynccontextmanager
    async def _tools(self) -> AsyncIterator[AptTools]:
        env = environment(self.apt_config, self.path_prefix)
        try:
            with tempfile.TemporaryDirectory(prefix="redflag-apt-") as cache:
                yield await open_tools(env, timeout=self.timeout, cache=Path(cache))
        except process.ProcessError as error:
            raise ScanError(error.message) from error
        except OSError as error:
            raise ScanError(f"cannot look at {error.filename}: {error.strerror}") from error


def _program(name: str, tools: AptTools) -> str:
    path = find_tool(name, tools.env)
    if path is None:
        raise ScanError(f"there is no {name} on this machine")
    return path


async def _machine(tools: AptTools) -> Machine:
    text = await tools.inventory()
    installed, _ = parse_inventory(text)
    labels = {package.label(tools.native): package for package in installed.values()}
    return Machine(native=tools.native, text=text, installed=installed, labels=labels)


async def _plan(tools: AptTools, machine: Machine, targets: Sequence[PackageTarget]) -> Planned:
    tables = await _tables(tools, machine.known(targets))
    results = tuple(judge(target, machine, tables) for target in targets)
    wanted = [
        target for target, result in zip(targets, results, strict=True) if result.outcome is PackageOutcome.PLANNED
    ]
    if not wanted:
        return Planned(transaction=None, packages=results)
    specs = [spec_of(target.name, target.arch, target.available, tools.native) for target in wanted]
    requested = [(target.key, target.available) for target in wanted]
    return Planned(transaction=await _simulate(tools, machine, requested, specs), packages=results)


async def _simulate(
    tools: AptTools, machine: Machine, requested: Sequence[tuple[PackageKey, str]], specs: Sequence[str]
) -> Transaction:
    """What ``apt-get install`` with *specs* would do."""
    simulation, _ = await tools.simulate(*SHOW_ALL, *EXACTLY, "install", *specs)
    check_simulation(simulation)
    try:
        return transaction_of(requested, simulation, machine, await _evidence(tools, machine, simulation))
    except ValueError:
        raise ScanError("apt speaks of a package that cannot be described: please report it") from None


async def _evidence(tools: AptTools, machine: Machine, simulation: Simulation) -> Evidence:
    upgrades = simulation.upgrades.values()
    return Evidence(
        tables=await _tables(tools, labels_of(simulation)),
        verified=await tools.authenticated(),
        older=frozenset(
            [plan.label for plan in upgrades if await tools.is_older(plan.version, plan.installed or "")]
        ),
        shown=await tools.show(versions_of(simulation, machine)),
    )


async def _tables(tools: AptTools, labels: Sequence[str]) -> dict[str, VersionTable]:
    return await tools.version_tables(labels) if labels else {}


def _requested(transaction: Transaction) -> list[tuple[PackageKey, str]]:
    after = {change.key: change.after or "" for change in transaction.changes}
    return [(key, after.get(key, "")) for key in transaction.requested]


def _spec(change: Change, native: str) -> str:
    if change.after is None:
        return removal_of(change.name, change.arch, native)
    return spec_of(change.name, change.arch, change.after, native)


def _version(change: Change, machine: Machine) -> str | None:
    package = machine.installed.get((change.name, change.arch))
    return None if package is None else package.version


def _label(change: Change, machine: Machine) -> str | None:
    package = machine.installed.get((change.name, change.arch))
    return None if package is None else package.label(machine.native)
