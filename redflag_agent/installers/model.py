"""
What the executor needs of a package manager: values and one protocol.

An installer asks the package manager and says how to change it; it never starts a change itself. A change is a
list of steps: the executor has them run by a process of their own that nothing ends.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import attrs

from redflag_core.patching import PackageTarget, Transaction
from redflag_core.statements import PackageResult

STATUS_FD: Final = 3
"""File descriptor that every step inherits: a file of its own, empty at its start, for saying how far it is (apt:
``-o APT::Status-Fd=3``). Standard output and error go to the output, standard input is empty."""


@attrs.frozen(kw_only=True)
class Step:
    """
    One program to run.

    Attributes:
        name: What it does, for people: ``install``, ``mark automatic``, ``repair``.
        argv: Program (absolute path) and arguments. Nothing in them is interpreted.
        env: All of its environment.
        always: Whether it runs though an earlier step failed: it puts something back in order.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    always: bool = False


@attrs.frozen(kw_only=True)
class Planned:
    """
    What bringing targets to their versions would change now.

    Attributes:
        transaction: The exact transaction for the targets that can be changed; None when there are none.
        packages: A result for each target: planned, held or stale.
    """

    transaction: Transaction | None
    packages: tuple[PackageResult, ...]


@attrs.frozen(kw_only=True)
class Aftermath:
    """
    What is true after a change, or after one that was interrupted.

    Attributes:
        packages: A result for each target: installed, unchanged or failed.
        damaged: Names of packages that the package manager has not finished with: a repair may help.
        reboot_required: Whether the machine asks for a reboot.
        reboot_by: Packages that ask for it.
    """

    packages: tuple[PackageResult, ...]
    damaged: tuple[str, ...]
    reboot_required: bool
    reboot_by: tuple[str, ...]


class Installer(Protocol):
    """One package manager, as the executor uses it."""

    @property
    def manager(self) -> str:
        """Its name in parameters of commands."""
        ...

    async def plan(self, targets: Sequence[PackageTarget]) -> Planned:
        """
        Simulate bringing *targets* to their versions. Changes nothing and takes no lock.

        Args:
            targets: Verified to come from the server, otherwise untrusted: each is compared with the machine's own
                inventory before its name becomes part of a command line.

        Raises:
            ScanError: The package manager cannot tell.
        """
        ...

    async def steps(self, transaction: Transaction, *, approved: bool = False) -> tuple[Step, ...]:
        """
        How to carry out exactly this transaction, which `plan` returned.

        Args:
            transaction: What is to be done, and nothing else.
            approved: Whether an operator's verified approval covers it: it may go beyond a routine update.
        """
        ...

    async def repair_steps(self) -> tuple[Step, ...]:
        """How to finish what an interrupted change left half done."""
        ...

    async def look(self, targets: Sequence[PackageTarget]) -> Aftermath:
        """
        Look at what became of *targets*.

        Raises:
            ScanError: The package manager cannot tell.
        """
        ...

    async def is_locked(self) -> bool:
        """Whether another process is changing packages now. Looks without keeping any lock."""
        ...

    def percent(self, status: str) -> int | None:
        """
        How far a change is, in percent; None when that cannot be told.

        Args:
            status: The last whole lines that the running step wrote to `STATUS_FD`.
        """
        ...
