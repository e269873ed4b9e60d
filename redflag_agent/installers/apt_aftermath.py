"""
What became of a change, from a fresh inventory. Pure.

The exit status of apt is not asked: what is installed is what dpkg says is installed.
"""

import re
from collections.abc import Sequence
from typing import Final

from redflag_agent.installers.apt_plan import Machine
from redflag_agent.installers.model import Aftermath
from redflag_agent.scanners.apt_output import Installed
from redflag_core.patching import PackageTarget
from redflag_core.scanning import MAX_NAME, clean_text
from redflag_core.statements import PackageOutcome, PackageResult

MAX_REBOOT_BY: Final = 100
"""Most packages named that ask for a reboot: what a result holds."""

DOWNLOAD_SHARE: Final = 40
"""Percent of a change that is fetching: about half of most of them, and the rest is never shown too early."""

_STATUS: Final = re.compile(r"(dlstatus|pmstatus|pmerror|pmconffile):[^:]*:([0-9]{1,3})(?:\.[0-9]*)?:.*")


def aftermath_of(
    targets: Sequence[PackageTarget], machine: Machine, *, unfinished: bool, reboot: Sequence[str] | None
) -> Aftermath:
    """
    What is true now.

    Args:
        targets: What was ordered.
        machine: The inventory now.
        unfinished: Whether dpkg's journal is not empty.
        reboot: Packages that asked for a reboot, None when there is no need for one.
    """
    damaged = [label for label, package in machine.labels.items() if package.status != "installed"]
    # dpkg's own journal may be all that is left to finish.
    damaged += ["dpkg"] if unfinished and not damaged else []
    names = dict.fromkeys(clean_text(name, max_len=MAX_NAME) for name in reboot or ())
    return Aftermath(
        packages=tuple(_result(target, machine) for target in targets),
        damaged=tuple(damaged),
        reboot_required=reboot is not None,
        reboot_by=tuple(names)[:MAX_REBOOT_BY],
    )


def _result(target: PackageTarget, machine: Machine) -> PackageResult:
    package = machine.find(target) or _in_other_architecture(target, machine)
    outcome, reason = _judge(target, package)
    version = None if package is None else clean_text(package.version, max_len=MAX_NAME)
    return PackageResult(name=target.name, arch=target.arch, outcome=outcome, installed=version, reason=reason)


def _in_other_architecture(target: PackageTarget, machine: Machine) -> Installed | None:
    """A package may go from the machine's architecture to ``all`` with its new version, or back."""
    own = (machine.native, "all")
    found = (machine.installed.get((target.name, arch)) for arch in own)
    return next(filter(None, found), None) if target.arch in own else None


def _judge(target: PackageTarget, package: Installed | None) -> tuple[PackageOutcome, str | None]:
    if package is None:
        return PackageOutcome.FAILED, "it is not installed any more"
    if package.status != "installed":
        return PackageOutcome.FAILED, f"dpkg has not finished with it: {package.status}"
    if package.version == target.available:
        return PackageOutcome.INSTALLED, None
    if package.version == target.installed:
        return PackageOutcome.UNCHANGED, None
    return PackageOutcome.FAILED, "neither the version before nor the one that was ordered is installed"


def percent_of(status: str) -> int | None:
    """
    How far a change is, from what ``APT::Status-Fd`` was given (README.progress-reporting of apt).

    Args:
        status: What was written so far, or its end. A line that is not complete yet is passed over.
    """
    lines = status.split("\n")[:-1]
    match = next(filter(None, map(_STATUS.fullmatch, reversed(lines))), None)
    if match is None:
        return None
    done = min(int(match[2]), 100)
    if match[1] == "dlstatus":
        return done * DOWNLOAD_SHARE // 100
    return DOWNLOAD_SHARE + done * (100 - DOWNLOAD_SHARE) // 100
