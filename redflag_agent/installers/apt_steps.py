"""
The programs that change the machine, with all of their arguments and all of their environment.

Pure. What is named here was simulated with the same arguments before. No argument gives apt leave to do what a
routine update may not do, unless exactly that is part of a transaction that an operator approved; what apt's
configuration may give is taken back.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from redflag_agent import process
from redflag_agent.installers.model import Step
from redflag_core.patching import Change, ChangeKind

LOCK_SECONDS: Final = 3
"""Seconds that apt waits for another package manager: they bridge the moment between our look at the locks and
apt's own. Longer, apt would start a change after the time by which it had to be started. apt gives up then, and
nothing was changed."""

KEEP_CONFFILES: Final = ("--force-confdef", "--force-confold")
"""For dpkg: take a new conffile only where nobody changed the old one, and never ask."""

EXACTLY: Final = (
    "--no-install-recommends",
    "-oAPT::Install-Suggests=false",
    "-oAPT::Get::AutomaticRemove=false",
    "-oAPT::Get::Fix-Broken=false",
    "-oAPT::Get::Fix-Missing=false",
    "-oAPT::Get::Download-Only=false",
)
"""For simulating and for installing: all that is strictly needed and nothing else, whatever is configured."""

_NEVER: Final = (
    "-oAPT::Get::AllowUnauthenticated=false",
    "-oAPT::Get::allow-remove-essential=false",
    "-oAPT::Get::allow-change-held-packages=false",
    "-oAPT::Get::Force-Yes=false",
)
"""For installing: what no approval can give leave for."""

_REMOVE: Final = "APT::Get::Remove"
_DOWNGRADE: Final = "APT::Get::allow-downgrades"
_LEAVES: Final = (_REMOVE, _DOWNGRADE)
"""Leave that apt takes for what is beyond routine, each by itself. ``Remove=false`` is ``--no-remove``."""

_QUIETLY: Final = {
    **process.ENVIRONMENT,
    # Some maintainer scripts expect it, and a service has none.
    "HOME": "/root",
    # Hooks of apt that show or ask: changes, bugs, services to restart. The second is for a needrestart
    # that does not know the first yet.
    "APT_LISTCHANGES_FRONTEND": "none",
    "APT_LISTBUGS_FRONTEND": "none",
    "NEEDRESTART_SUSPEND": "1",
    "NEEDRESTART_MODE": "l",
    # Settings that maintainer scripts keep with ucf instead of dpkg.
    "UCF_FORCE_CONFFOLD": "1",
}


def step_environment(env: Mapping[str, str]) -> dict[str, str]:
    """
    All that a step sees: nobody is asked anything, and nothing is inherited.

    Args:
        env: Where the tools are (`redflag_agent.scanners.apt_tools.environment`).
    """
    return {**_QUIETLY, **env}


def leave_for(changes: Sequence[Change]) -> frozenset[str]:
    """
    What apt needs leave for to make exactly these changes; nothing for a routine update.

    Args:
        changes: Of a transaction that was checked (`redflag_core.patching.check_apply`).
    """
    needed = {
        _REMOVE: any(change.kind is ChangeKind.REMOVE for change in changes),
        _DOWNGRADE: any(change.kind is ChangeKind.DOWNGRADE for change in changes),
    }
    return frozenset(name for name, is_needed in needed.items() if is_needed)


def install_step(
    program: str, specs: Sequence[str], env: Mapping[str, str], *, allow: AbstractSet[str] = frozenset()
) -> Step:
    """
    Bring packages to exact versions.

    Args:
        program: Absolute path of ``apt-get``.
        specs: Every package that changes, with its version, or with a ``-`` when it is to be removed.
        env: `step_environment`.
        allow: `leave_for` the changes.
    """
    leave = [f"-o{name}={str(name in allow).lower()}" for name in _LEAVES]
    dpkg = [f"-oDpkg::Options::={option}" for option in KEEP_CONFFILES]
    talk = ("-oDpkg::Use-Pty=0", "-oAPT::Status-Fd=3", f"-oDPkg::Lock::Timeout={LOCK_SECONDS}")
    return Step(
        name="install",
        argv=(program, "-y", "-q", *EXACTLY, *_NEVER, *leave, *dpkg, *talk, "install", *specs),
        env=env,
    )


def mark_step(program: str, labels: Sequence[str], env: Mapping[str, str]) -> Step:
    """
    Let packages be automatic that nobody asked for: naming them for their version made apt think somebody had.

    Args:
        program: Absolute path of ``apt-mark``.
        labels: New packages, and those that were automatic before.
        env: `step_environment`.
    """
    return Step(name="mark automatic", argv=(program, "auto", *labels), env=env, always=True)


def repair_step(program: str, options: Sequence[str], env: Mapping[str, str]) -> Step:
    """
    Finish what dpkg was interrupted in.

    ``apt-get -f install`` is not among the repairs: it chooses by itself what to install and what to remove, which
    nobody has seen in a plan.

    Args:
        program: Absolute path of ``dpkg``.
        options: What apt is configured to give to dpkg.
        env: `step_environment`.
    """
    return Step(name="repair", argv=(program, *options, *KEEP_CONFFILES, "--configure", "-a"), env=env)
