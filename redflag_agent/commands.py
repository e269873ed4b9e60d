"""What the commands do, with the real clock, the real machine and the real scanners of this host."""

import asyncio
import json
import os
import signal
import stat
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from redflag_agent import host
from redflag_agent.data_dir import DataDirectory
from redflag_agent.progress import Tell, set_up_logging, tell_nobody, tell_stdout
from redflag_agent.scanners import AptScanner, StorageScanner, SystemScanner
from redflag_agent.scanners.facts_text import show_facts
from redflag_agent.scans import run_all, scanner_runs
from redflag_agent.settings import AgentSettings
from redflag_core import codec
from redflag_core.encoding import JsonValue
from redflag_core.enrolment import RegistrationToken
from redflag_core.errors import ConfigurationError
from redflag_core.scanning import FACT_SCANNERS, PENDING_STATES, Package, Scanner, ScanReport, ScanStatus
from redflag_core.system import SystemClock, SystemEntropy

if TYPE_CHECKING:
    from redflag_agent.agent import Surroundings
    from redflag_agent.installers.model import Installer


def register_agent(data: Path, settings: AgentSettings, token: RegistrationToken, *, anew: bool) -> str:
    """Register, and say as what."""
    from redflag_agent.agent import open_agent  # noqa: PLC0415  (scanning needs no HTTP)

    set_up_logging(settings.log_level)
    with open_agent(DataDirectory(data), settings, _surroundings(settings, tell_nobody)) as agent:
        asyncio.run(agent.register(token, anew=anew))
        registration = agent.state.state.registration
        status = agent.state.state.status
    return f"registered as {registration.agent_id if registration else '?'} ({status})"


def run_agent(
    data: Path, settings: AgentSettings, token: RegistrationToken | None, *, once: bool, progress_json: bool
) -> None:
    """Run until told to stop, or once."""
    from redflag_agent.agent import open_agent  # noqa: PLC0415  (scanning needs no HTTP)

    set_up_logging(settings.log_level)
    tell = tell_stdout if progress_json else tell_nobody
    with open_agent(DataDirectory(data), settings, _surroundings(settings, tell)) as agent:
        if once:
            asyncio.run(_until_stopped(lambda _stop: agent.run_once(token), patient=False))
        else:
            asyncio.run(_until_stopped(lambda stop: agent.run(stop, token), watch_reader=progress_json))


def scan_machine(settings: AgentSettings, scanners: Sequence[Scanner], *, as_json: bool) -> tuple[str, bool]:
    """
    Scan once without server or data directory.

    Args:
        settings: What people chose.
        scanners: What can be scanned here.
        as_json: Everything as JSON, or for people what is pending.

    Returns:
        What to print, and whether every scan succeeded.

    Raises:
        ConfigurationError: There is nothing to scan.
    """
    reports = asyncio.run(_scan(settings, scanners))
    cannot = (*host.missing_rights(), *_missing_packages(reports))
    succeeded = bool(reports) and all(report.status is ScanStatus.OK for report in reports)
    if as_json:
        document: dict[str, JsonValue] = {
            "hostname": host.hostname(),
            "os": codec.unstructure(host.operating_system()),
            "cannot": list(cannot),
            "scans": [codec.unstructure(report) for report in reports],
        }
        return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False), succeeded
    lines = [line for report in reports for line in _show(report)]
    return "\n".join([*lines, *(f"note: {sentence}" for sentence in cannot)]), succeeded


async def _scan(settings: AgentSettings, scanners: Sequence[Scanner]) -> tuple[ScanReport, ...]:
    runs = scanner_runs(scanners, settings.policy, clock=SystemClock(), on_error=lambda *_: None)
    if not runs:
        raise ConfigurationError("nothing to scan: the settings disable every scanner")
    return await run_all(runs)


def _missing_packages(reports: Sequence[ScanReport]) -> tuple[str, ...]:
    if any(report.scanner not in FACT_SCANNERS for report in reports):
        return ()
    return ("no packages were scanned: this machine has no apt, or the settings disable its scanner",)


def usable_scanners(settings: AgentSettings) -> tuple[Scanner, ...]:
    """The scanners whose package manager this machine has, and those of the machine itself."""
    apt = settings.apt
    scanner = AptScanner(
        clock=SystemClock(),
        apt_config=Path(apt.config) if apt.config else None,
        path_prefix=Path(apt.path_prefix) if apt.path_prefix else None,
        refresh=False if apt.refresh == "off" else "auto",
    )
    machine: tuple[Scanner, ...] = (StorageScanner(clock=SystemClock()), SystemScanner(clock=SystemClock()))
    return (scanner, *machine) if scanner.is_usable() else machine


def usable_installers(settings: AgentSettings) -> "tuple[Installer, ...]":
    """The package managers of this machine that this release can change packages with."""
    from redflag_agent.installers.apt import AptInstaller  # noqa: PLC0415  (scanning changes nothing)

    apt = settings.apt
    config, prefix = (Path(path) if path else None for path in (apt.config, apt.path_prefix))
    has_apt = AptScanner(clock=SystemClock(), apt_config=config, path_prefix=prefix).is_usable()
    return (AptInstaller(apt_config=config, path_prefix=prefix),) if has_apt else ()


def _show(report: ScanReport) -> list[str]:
    if report.status is not ScanStatus.OK:
        return [f"{report.scanner}: failed: {report.error}"]
    if report.scanner in FACT_SCANNERS:
        return show_facts(report)
    states = Counter(package.state.value for package in report.packages)
    summary = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    pending = [package for package in report.packages if package.state in PENDING_STATES]
    return [
        f"{report.scanner}: {len(report.packages)} packages: {summary or 'none'}",
        *(_show_package(package) for package in pending),
        *(f"warning: {text}" for text in report.warnings),
    ]


def _show_package(package: Package) -> str:
    marks = ["security"] if package.security else []
    reason = [package.reason] if package.reason else []
    extras = f"  ({'; '.join(marks + reason)})" if marks or reason else ""
    versions = f"{package.installed} -> {package.available or '?'}"
    return f"  {package.state.value:<10} {package.name}:{package.arch}  {versions}{extras}"


def _surroundings(settings: AgentSettings, tell: Tell) -> "Surroundings":
    from redflag_agent.agent import Surroundings  # noqa: PLC0415  (scanning needs no HTTP)
    from redflag_core.machine_readers import this_machine  # noqa: PLC0415  (the same)

    return Surroundings(
        clock=SystemClock(),
        entropy=SystemEntropy(),
        machine=this_machine(),
        scanners=usable_scanners(settings),
        installers=usable_installers(settings),
        sleep=asyncio.sleep,
        tell=tell,
    )


async def _until_stopped(
    work: Callable[[asyncio.Event], Awaitable[None]], *, patient: bool = True, watch_reader: bool = False
) -> None:
    """
    Await *work*, and tell it when to stop: on SIGTERM, on SIGINT, or when nobody reads the progress any more.

    Args:
        work: Given the event that is set then.
        patient: Whether *work* heeds the event; if not, it is cancelled.
        watch_reader: Whether whoever reads standard output is the owner of this process, and its end the end.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    task = asyncio.ensure_future(work(stop))

    def end() -> None:
        stop.set()
        if not patient:
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    if watch_reader and stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode):
        _when_reader_leaves(loop, end)
    try:
        await task
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None  # told to stop before it was done: not a success


def _when_reader_leaves(loop: asyncio.AbstractEventLoop, end: Callable[[], None]) -> None:
    """The write end of a pipe becomes "readable" when its read end is closed (poll(2), POLLERR)."""
    pipe = sys.stdout.fileno()

    def left() -> None:
        loop.remove_reader(pipe)
        end()

    loop.add_reader(pipe, left)
