"""
A small real package manager, for tests of the executor: files, a lock, and shell scripts that change them.

A version is a file in ``installed`` or ``available``. An installation holds the lock, leaves a mark in ``half``
while it works on a package, and adds a line to ``starts``. It stops at every package that is named in ``gates``
until that file is gone, fails at one in ``broken``, and ends itself with a signal at one in ``fatal``.
"""

import fcntl
import os
from pathlib import Path
from typing import Any, ClassVar

import attrs

from redflag_agent.installers.model import Aftermath, Planned, Step
from redflag_core.errors import ScanError
from redflag_core.patching import Change, PackageTarget, Transaction
from redflag_core.scanning import PackageKey
from redflag_core.statements import PackageOutcome, PackageResult

ARCH = "all"
ENV = {"PATH": "/usr/bin:/bin"}

INSTALL = """\
cd "$1" || exit 9
shift
exec 9>>lock
flock 9
echo "$@" >>starts
for pair in "$@"; do
    name=${pair%%=*}
    : >half/"$name"
    echo "unpacking $name"
    echo "at:$name:50" >&3
    if [ -e gates/"$name" ]; then
        : >reached/"$name"
        while [ -e gates/"$name" ]; do sleep 0.02; done
    fi
    if [ -e broken/"$name" ]; then echo "$name: boom" >&2; exit 7; fi
    if [ -e fatal/"$name" ]; then kill -9 $$; fi
    echo "${pair#*=}" >installed/"$name"
    rm half/"$name"
done
"""

REPAIR = """\
cd "$1" || exit 9
exec 9>>lock
flock 9
echo repair >>repairs
for path in half/*; do
    name=${path#half/}
    if [ -e gates/"$name" ]; then
        : >reached/"$name"
        while [ -e gates/"$name" ]; do sleep 0.02; done
    fi
    cp available/"$name" installed/"$name"
    rm "$path"
    echo "finished $name"
done
"""

DIRECTORIES = ("installed", "available", "half", "gates", "reached", "broken", "fatal", "held", "removes")


@attrs.define
class ShellInstaller:
    """`redflag_agent.installers.model.Installer` for the directory *root*."""

    manager: ClassVar[str] = "shell"

    root: Path
    plans: int = 0
    blind: bool = False
    locks_seen: int = 0
    intruder: Any = None
    """Opened, it is another package manager that begins with the next plan, and ends when it is closed."""

    @classmethod
    def build(cls, root: Path, **packages: tuple[str, str]) -> "ShellInstaller":
        """A root with these packages: installed and available version of each."""
        for name in DIRECTORIES:
            (root / name).mkdir(parents=True)
        (root / "install.sh").write_text(INSTALL)
        (root / "repair.sh").write_text(REPAIR)
        made = cls(root)
        for name, (installed, available) in packages.items():
            made.put(name, installed, available)
        return made

    # --- what tests do and see

    def put(self, name: str, installed: str, available: str) -> None:
        """Install one version of a package, and offer another."""
        (self.root / "installed" / name).write_text(f"{installed}\n")
        (self.root / "available" / name).write_text(f"{available}\n")

    def mark(self, what: str, name: str) -> Path:
        """Mark a package: ``gates``, ``broken``, ``fatal``, ``held``, ``removes``."""
        path = self.root / what / name
        path.touch()
        return path

    def installed(self, name: str) -> str:
        """The version that is installed."""
        return (self.root / "installed" / name).read_text().strip()

    def starts(self) -> list[str]:
        """What was started, each time."""
        return _lines(self.root / "starts")

    def repairs(self) -> int:
        """How many repairs were started."""
        return len(_lines(self.root / "repairs"))

    def target(self, name: str) -> PackageTarget:
        """Bring a package from what is installed to what is available."""
        available = (self.root / "available" / name).read_text().strip()
        return PackageTarget(name=name, arch=ARCH, installed=self.installed(name), available=available)

    # --- the protocol

    async def plan(self, targets):
        """See `Installer.plan`."""
        self.plans += 1
        if self.intruder is not None and not self.intruder.closed:
            fcntl.flock(self.intruder, fcntl.LOCK_EX)
            raise ScanError("another package manager is at work")
        if self.blind:
            raise ScanError("the shell cannot tell")
        packages = tuple(map(self._judge, targets))
        wanted = [each for each, result in zip(targets, packages, strict=True) if result.outcome == "planned"]
        if not wanted:
            return Planned(transaction=None, packages=packages)
        changes = [
            Change(
                name=each.name,
                arch=ARCH,
                before=each.installed,
                after=each.available,
                held=(self.root / "held" / each.name).exists(),
                origin="shell",
            )
            for each in wanted
        ]
        changes += [
            Change(name=path.name, arch=ARCH, before="1", after=None)
            for path in sorted((self.root / "removes").iterdir())
        ]
        requested = tuple(each.key for each in wanted)
        transaction = Transaction(manager=self.manager, requested=requested, changes=tuple(changes))
        return Planned(transaction=transaction, packages=packages)

    async def steps(self, transaction, *, approved=False):
        """See `Installer.steps`."""
        pairs = [f"{change.name}={change.after}" for change in transaction.changes if change.after is not None]
        argv = ("/bin/sh", str(self.root / "install.sh"), str(self.root), *pairs)
        return (Step(name="install", argv=argv, env=ENV),)

    async def repair_steps(self):
        """See `Installer.repair_steps`."""
        return (Step(name="repair", argv=("/bin/sh", str(self.root / "repair.sh"), str(self.root)), env=ENV),)

    async def look(self, targets):
        """See `Installer.look`."""
        if self.blind:
            raise ScanError("the shell cannot tell")
        damaged = tuple(sorted(path.name for path in (self.root / "half").iterdir()))
        packages = tuple(self._became(target, damaged) for target in targets)
        return Aftermath(packages=packages, damaged=damaged, reboot_required=False, reboot_by=())

    async def is_locked(self):
        """See `Installer.is_locked`."""
        handle = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.locks_seen += 1
            return True
        finally:
            os.close(handle)
        return False

    def percent(self, status):
        """See `Installer.percent`."""
        return int(status.splitlines()[-1].split(":")[2]) if status else None

    def _judge(self, target):
        now = self.installed(target.name) if (self.root / "installed" / target.name).exists() else None
        fits = now == target.installed != target.available == self._available(target.name)
        outcome = PackageOutcome.PLANNED if fits else PackageOutcome.STALE
        return PackageResult(name=target.name, arch=ARCH, outcome=outcome, installed=now)

    def _became(self, target, damaged):
        now = self.installed(target.name)
        outcome = PackageOutcome.UNCHANGED if now == target.installed else PackageOutcome.INSTALLED
        if target.name in damaged:
            outcome = PackageOutcome.FAILED
        return PackageResult(name=target.name, arch=ARCH, outcome=outcome, installed=now)

    def _available(self, name):
        path = self.root / "available" / name
        return path.read_text().strip() if path.exists() else None


def key_of(name: str) -> PackageKey:
    """What identifies a package."""
    return PackageKey(name, ARCH)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
