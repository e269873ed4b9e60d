"""
One change of this machine: simulated anew, compared with what was ordered, started once, waited for, looked at.

Until the start is claimed everything may be tried again; from then on nothing is. No clock ends a change, and no
guess is told: what became of the packages is what the package manager says afterwards.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import attrs

from redflag_agent.executor.authority import Timekeeper
from redflag_agent.executor.board import Board
from redflag_agent.executor.commander import OnError
from redflag_agent.executor.errors import (
    ExecutorError,
    InstallFailedError,
    InterruptedRunError,
    JournalError,
)
from redflag_agent.executor.journal import Entry, Journal, Page
from redflag_agent.executor.output import TAIL_BYTES, clean_output, last_lines
from redflag_agent.executor.runs import Ended, Run, Runs, reap
from redflag_agent.executor.voice import Ending, Why, failed
from redflag_agent.installers.model import Aftermath, Installer, Planned, Step
from redflag_agent.limits_file import read_limits
from redflag_agent.process import ProcessError
from redflag_agent.waiting import Sleep
from redflag_core import codec
from redflag_core.commands import UpgradeParams, check_start_by
from redflag_core.errors import (
    ClockError,
    CommandRefusedError,
    LimitError,
    RedFlagError,
    ScanError,
)
from redflag_core.freshness import unix
from redflag_core.messages import Phase
from redflag_core.patching import PackageTarget, Transaction, check_apply, check_limits
from redflag_core.statements import Outcome, PackageOutcome, is_installed

POLL: Final = 0.5
"""Seconds between two looks whether a change has ended."""

SHOW_EVERY: Final = 4
"""Polls between two looks at its output: people read no faster."""

LOCK_POLL: Final = 5.0
"""Seconds between two looks whether somebody else has finished changing packages."""

RECHECK: Final = 60
"""Seconds after which a held-back change is tried again: what its owner writes into the limits counts soon."""

MAX_REPAIRS: Final = 3
"""Repairs after one interruption: each may be interrupted itself, but not for ever."""

MAX_NAMED: Final = 20
"""Packages that a sentence names."""


class PostponedError(Exception):
    """
    A change cannot be planned or started now, and nothing was changed.

    Args:
        reason: What it waits for.
        seconds: When to try again.
    """

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.reason, self.seconds = reason, seconds


@attrs.define
class Upgrader:
    """
    Carries out changes.

    Args:
        journal: Where starts are claimed.
        time: The executor's time.
        limits: The owner's file.
        runs: Where run directories are.
        board: Shows what is done.
        on_error: Told of what somebody should look at.
        sleep: How to wait.
    """

    journal: Journal
    time: Timekeeper
    limits: Path
    runs: Runs
    board: Board
    on_error: OnError
    sleep: Sleep
    _children: list[int] = attrs.field(factory=list, init=False)

    async def start(self, entry: Entry, params: UpgradeParams, installer: Installer) -> Ending | None:
        """
        Start a change that was accepted.

        Args:
            entry: The command.
            params: What it orders.
            installer: The package manager.

        Returns:
            How it ended without being started. None when it was started, or cancelled meanwhile: the journal says
            which.

        Raises:
            PostponedError: It cannot be started now.
            RedFlagError: It was not and will not be started.
        """
        if self.was_begun(entry):
            at = self.time.stamp()
            with self.journal.page() as page:
                page.start(entry.cmd_id, at=at, change=None)
            return None
        with self.journal.page() as page:
            self._check_may_start(page, entry, params)
        planned = await self.plan(params.packages, installer)
        try:
            transaction = check_apply(planned.transaction, plan_hash=params.plan_hash, approved=entry.approved)
            steps = await installer.steps(transaction, approved=entry.approved)
        except CommandRefusedError as error:
            return failed(error, *planned.packages)
        await self._check_unlocked(installer)
        self._claim_and_spawn(entry, params, transaction, steps)
        return None

    def was_begun(self, entry: Entry) -> bool:
        """
        Whether a change ran of which the journal does not know.

        The journal was put back from a copy, or begun anew: what ran is told, and does not run again.
        """
        return self.runs.run(entry.cmd_id).was_begun()

    async def plan(self, targets: Sequence[PackageTarget], installer: Installer) -> Planned:
        """
        Find out what bringing *targets* to their versions would change now.

        Raises:
            PostponedError: Another process is changing packages.
            ScanError: The package manager cannot tell.
        """
        await self._check_unlocked(installer)
        try:
            return await installer.plan(targets)
        except ScanError:  # of a package manager that has begun meanwhile nobody can tell what it would do
            await self._check_unlocked(installer)
            raise

    async def wait(self, entry: Entry, installer: Installer | None) -> None:
        """
        Wait for the end of a change that was started, by whomever and whenever, however long it takes.

        Args:
            entry: The command, whose start was claimed.
            installer: Says how far it is, if it is still there.
        """
        await self._until_over(entry, self.runs.run(entry.cmd_id), installer)

    async def finish(self, entry: Entry, params: UpgradeParams, installer: Installer) -> Ending:
        """
        Look what became of a change that is over, and repair what an interruption left half done.

        Args:
            entry: The command.
            params: What it orders.
            installer: The package manager.

        Raises:
            JournalError: The start of a repair cannot be claimed: call again later.
        """
        run, repair = self.runs.run(entry.cmd_id), None
        try:
            if run.ended() is None:
                repair = await self._repair(entry, params, installer)
            after = await installer.look(params.packages)
        except JournalError:
            raise
        except RedFlagError as error:
            return self._ending(entry, run, repair, _blind(run, error))
        except Exception as error:  # a mistake here must not lose the result of a change that was made
            self.on_error("executor", error)
            return self._ending(entry, run, repair, _blind(run, ExecutorError("the executor made a mistake")))
        ending = self._ending(entry, run, repair, _why(run, after))
        return attrs.evolve(
            ending,
            packages=after.packages,
            reboot_required=after.reboot_required,
            reboot_by=after.reboot_by,
        )

    # --- before the start

    def _check_may_start(self, page: Page, entry: Entry, params: UpgradeParams) -> int:
        """The executor's time, when a change may be started by it."""
        try:
            now = self.time.on(page)
            check_start_by(entry.start_by or 0, now=now)
            limits = read_limits(self.limits)
            check_limits(limits, manager=params.manager, started=page.starts(), now=now)
        except (LimitError, ClockError) as error:
            retry_after = error.retry_after if isinstance(error, LimitError) else None
            raise PostponedError(error.message, min(retry_after or RECHECK, RECHECK)) from None
        return int(unix(now))

    async def _check_unlocked(self, installer: Installer) -> None:
        if await installer.is_locked():
            raise PostponedError("another process is changing packages", LOCK_POLL)

    def _claim_and_spawn(
        self, entry: Entry, params: UpgradeParams, transaction: Transaction, steps: Sequence[Step]
    ) -> None:
        """Claim the one start and spawn the runner, unless the command was cancelled meanwhile."""
        run = self.runs.run(entry.cmd_id)
        with ExitStack() as stack:
            try:
                lock = stack.enter_context(run.prepared(steps))
            except OSError as error:
                raise PostponedError(f"cannot write {run.path}: {error.strerror}", RECHECK) from None
            if self._claim(entry, params, transaction):
                self._spawn(run, lock)

    def _claim(self, entry: Entry, params: UpgradeParams, transaction: Transaction) -> bool:
        with self.journal.page() as page:
            at = self._check_may_start(page, entry, params)
            return page.start(entry.cmd_id, at=at, change=codec.dump(transaction))

    def _spawn(self, run: Run, lock: int) -> None:
        """Start the runner. When that fails nobody carries the run out, and `finish` finds it so."""
        try:
            self._children.append(run.spawn(lock))
        except OSError as error:
            self.on_error("executor", ProcessError(f"the runner cannot be started: {error.strerror}"))

    # --- after the start

    async def _until_over(self, entry: Entry, run: Run, installer: Installer | None) -> None:
        """Wait for the end of a run. It has no time limit, and nothing here ends it."""
        polls = 0
        while not self._is_over(run):
            if polls % SHOW_EVERY == 0:
                self._show(entry, run, installer)
            polls += 1
            await self.sleep(POLL)
        self._reap()

    def _is_over(self, run: Run) -> bool:
        self._reap()
        try:
            return run.is_over()
        except OSError as error:  # not knowing is no reason to go on
            self.on_error("executor", ExecutorError(f"cannot look at {run.path}: {error.strerror}"))
            return False

    def _reap(self) -> None:
        self._children = [pid for pid in self._children if not reap(pid)]

    def _show(self, entry: Entry, run: Run, installer: Installer | None) -> None:
        try:
            percent = None if installer is None else installer.percent(run.status())
            self.board.show(
                entry.cmd_id,
                Phase.RUNNING,
                run.doing(),
                percent=None if percent is None else min(max(percent, 0), 100),
                lines=last_lines(run.output().tail),
            )
        except Exception as error:  # what is only shown must not end the waiting
            self.on_error("executor", error)

    async def _until_unlocked(self, entry: Entry, installer: Installer) -> None:
        """A package manager that outlived its runner is not finished, and nothing that it holds can be judged."""
        while await installer.is_locked():
            self.board.show(entry.cmd_id, Phase.WAITING, "another process is changing packages")
            await self.sleep(LOCK_POLL)

    async def _repair(self, entry: Entry, params: UpgradeParams, installer: Installer) -> Run | None:
        """Finish what an interruption left half done or out of order; the repair that came to its end, or None."""
        number = entry.repairs
        while True:
            if number > 0:
                run = self.runs.repair(entry.cmd_id, number)
                await self._until_over(entry, run, installer)
                if run.ended() is not None:
                    return run
            await self._until_unlocked(entry, installer)
            steps = await self._repair_steps(entry, params, installer)
            if number >= MAX_REPAIRS or not steps:
                return None
            number += 1
            self._start_repair(entry, number, steps)

    async def _repair_steps(self, entry: Entry, params: UpgradeParams, installer: Installer) -> Sequence[Step]:
        """The package manager's repair where there is damage, and what was to be run whatever came before it."""
        damaged = (await installer.look(params.packages)).damaged
        repair = await installer.repair_steps() if damaged else ()
        run = self.runs.run(entry.cmd_id)
        return (*repair, *(step for step in run.steps() if step.always and run.was_begun()))

    def _start_repair(self, entry: Entry, number: int, steps: Sequence[Step]) -> None:
        run = self.runs.repair(entry.cmd_id, number)
        try:
            with run.prepared(steps) as lock:
                with self.journal.page() as page:
                    page.note_repair(entry.cmd_id, number)
                self._spawn(run, lock)
        except OSError as error:
            raise ExecutorError(f"cannot repair: cannot write {run.path}: {error.strerror}") from None

    # --- what is told

    def _ending(self, entry: Entry, run: Run, repair: Run | None, why: Why | None) -> Ending:
        ended, printed, change = run.ended(), run.output(), entry.change
        tail = printed.tail if repair is None else printed.tail + repair.output().tail
        return Ending(
            outcome=_outcome(ended, why),
            why=why,
            exit_status=None if ended is None else ended.status,
            output=clean_output(tail[-TAIL_BYTES:]),
            output_bytes=printed.size,
            transaction=None if change is None else codec.parse(Transaction, change, max_bytes=len(change)),
            repaired=repair is not None and not all(step.always for step in repair.steps()),
        )


def _outcome(ended: Ended | None, why: Why | None) -> Outcome:
    if ended is None:
        return Outcome.INTERRUPTED
    return Outcome.COMPLETED if why is None else Outcome.FAILED


def _why(run: Run, after: Aftermath) -> Why | None:
    """Why a change did not complete; None when it did."""
    ended = run.ended()
    if ended is not None and is_installed(after.packages, damaged=after.damaged):
        return None
    found = _found(after)
    if ended is None:
        began = "was started and nobody saw its end" if run.was_begun() else "was about to be started"
        return Why.because(InterruptedRunError.code, f"this {began}; {found}")
    end = "the package manager ended" if ended.step is None else f"{ended.step} ended with status {ended.status}"
    return Why.because(InstallFailedError.code, f"{end}; {found}")


def _found(after: Aftermath) -> str:
    missing = [each.name for each in after.packages if each.outcome is not PackageOutcome.INSTALLED]
    found = f"not installed: {_names(missing)}" if missing else "what was ordered is installed"
    return f"{found}; not finished: {_names(after.damaged)}" if after.damaged else found


def _blind(run: Run, error: RedFlagError) -> Why:
    """Why it is not known what became of a change."""
    ended = run.ended()
    if ended is None:
        text = f"nobody saw the end of this, nor what became of the packages: {error.message}"
        return Why.because(InterruptedRunError.code, text)
    text = f"it ended with status {ended.status}; what became of the packages is not known: {error.message}"
    return Why.because(error.code, text)


def _names(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
