"""
The executor's work: accepted commands are carried out in their order, one at a time, each started once.

Nothing here needs an orderly end. What happened is in the journal and in the run directories, so a worker that is
cancelled, killed or cut off leaves the same behind: a command that was accepted was not started and will not be,
one that was started is waited for, and what nobody saw end is looked at. A start is claimed in the journal before
anything is spawned, and a command whose start is claimed is never started again.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

import attrs

from redflag_agent.executor.board import Board
from redflag_agent.executor.commander import OnError, Rescan
from redflag_agent.executor.errors import (
    ExecutorError,
    InterruptedRunError,
    JournalError,
    NothingToDoError,
    NotStartedError,
)
from redflag_agent.executor.journal import DAY, Entry, Page, State
from redflag_agent.executor.upgrade import PostponedError, Upgrader
from redflag_agent.executor.voice import Ending, Voice, Why, completed, failed
from redflag_agent.installers.model import Installer
from redflag_agent.waiting import pause
from redflag_core.commands import (
    Params,
    PlanParams,
    ScanParams,
    UpgradeParams,
    check_start_by,
    parse_params,
)
from redflag_core.errors import RedFlagError, UnknownCommandError
from redflag_core.freshness import unix
from redflag_core.messages import Phase
from redflag_core.ports import Clock
from redflag_core.statements import Outcome

JOURNAL_PAUSE: Final = 10.0
"""Seconds before the journal is tried again: somebody has to make room."""

TIDY_SECONDS: Final = 3_600.0
"""Seconds between two looks for what need not be kept any longer."""

RUNS_KEPT: Final = 7 * DAY
"""Seconds for which the directory of a run is kept after its end: long enough for a person to look at it."""

MAX_RUNS: Final = 100
"""Directories kept at most of runs whose results the server has."""


@attrs.define
class Worker:
    """
    Carries out accepted commands.

    Args:
        upgrader: Carries out changes.
        voice: Signs results.
        installers: Package managers by name.
        rescan: Scans now.
        board: Shows what is done.
        clock: Monotonic time, for what waits.
        on_error: Told of what somebody should look at.
        wake: Set when a command was accepted or cancelled.
        news: Set when there is a result.
    """

    upgrader: Upgrader
    voice: Voice
    installers: Mapping[str, Installer]
    rescan: Rescan
    board: Board
    clock: Clock
    on_error: OnError
    wake: asyncio.Event
    news: asyncio.Event
    _due: dict[str, float] = attrs.field(factory=dict, init=False)
    _recovered: bool = attrs.field(default=False, init=False)

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            try:
                await self._turn()
            except Exception as error:  # a full disk or a mistake must not end the executor
                self.on_error("executor", error)
                await self.upgrader.sleep(JOURNAL_PAUSE)

    async def _turn(self) -> None:
        self.wake.clear()
        if not self._recovered:
            self._give_up_unstarted()
            self._recovered = True
        entry = self._next()
        if entry is None:
            self._tidy()
            await pause(self._idle_seconds(), self.wake, sleep=self.upgrader.sleep)
        else:
            await self._carry_out(entry)

    def _give_up_unstarted(self) -> None:
        """
        End what an earlier process accepted and did not start.

        It is told and not made up for: the server knows what else has changed since, and orders it again.
        """
        why = NotStartedError("the agent was restarted before this was started: nothing was changed")
        at = self.upgrader.time.stamp()
        with self.upgrader.journal.page() as page:
            for entry in page.open_entries():
                unstarted = entry.state is State.ACCEPTED and not self.upgrader.was_begun(entry)
                if unstarted and entry.number <= self.upgrader.journal.found:
                    self._record(page, entry.cmd_id, failed(why), at)

    def _next(self) -> Entry | None:
        """
        The next command: one whose start was claimed, else the first that is due.

        Changes by one package manager keep their order, so one that waits holds up those behind it. Plans and
        scans pass them by, and each other.
        """
        now = self.clock.monotonic()
        waiting: set[str] = set()
        with self.upgrader.journal.page() as page:
            entries = page.open_entries()
        self._due = {entry.cmd_id: self._due[entry.cmd_id] for entry in entries if entry.cmd_id in self._due}
        for entry in entries:
            if entry.state is State.STARTING:
                return entry
        for entry in entries:
            params = _params(entry)
            queue = params.manager if isinstance(params, UpgradeParams) else entry.cmd_id
            if queue in waiting:
                continue
            if self._due.get(entry.cmd_id, now) <= now:
                return entry
            waiting.add(queue)
        return None

    def _idle_seconds(self) -> float:
        """Until when nothing is due, if nothing arrives."""
        now = self.clock.monotonic()
        return max(0.0, min(self._due.values(), default=now + TIDY_SECONDS) - now)

    async def _carry_out(self, entry: Entry) -> None:
        if entry.state is State.STARTING:
            # Whatever goes wrong here, it is tried again: what was started has an end, and no other is told.
            await self._end(entry, await self._what_became(entry))
            return
        try:
            ending = await self._begin(entry)
        except PostponedError as wait:
            self._due[entry.cmd_id] = self.clock.monotonic() + wait.seconds
            self.board.show(entry.cmd_id, Phase.WAITING, wait.reason)
            return
        except JournalError:
            raise
        except RedFlagError as error:
            ending = failed(error)
        except Exception as error:  # a mistake here must not keep the commands behind this one
            self.on_error("executor", error)
            ending = failed(ExecutorError("the executor made a mistake: it is among this machine's errors"))
        if ending is not None:
            await self._end(entry, ending)

    async def _begin(self, entry: Entry) -> Ending | None:
        """Do what was ordered, or start it; None when its end is still to come, or it was cancelled meanwhile."""
        params = _params(entry)
        if isinstance(params, UpgradeParams):
            return await self.upgrader.start(entry, params, self._installer(params.manager))
        if isinstance(params, PlanParams):
            return await self._plan(entry, params)
        if not self._claim(entry):
            return None
        if isinstance(params, ScanParams):
            await self.rescan(params.scanner)
            return completed()
        raise UnknownCommandError("this release does not carry out what an earlier one accepted")

    def _claim(self, entry: Entry) -> bool:
        with self.upgrader.journal.page() as page:
            now = self.upgrader.time.on(page)
            check_start_by(entry.start_by or 0, now=now)
            return page.start(entry.cmd_id, at=int(unix(now)), change=None)

    async def _plan(self, entry: Entry, params: PlanParams) -> Ending | None:
        """Claimed when it is made: until then it can be postponed, and a restart loses nothing."""
        check_start_by(entry.start_by or 0, now=self.upgrader.time.now())
        planned = await self.upgrader.plan(params.packages, self._installer(params.manager))
        if not self._claim(entry):
            return None
        if planned.transaction is None:
            return failed(NothingToDoError("nothing of this can be changed now"), *planned.packages)
        return Ending(outcome=Outcome.COMPLETED, transaction=planned.transaction, packages=planned.packages)

    async def _what_became(self, entry: Entry) -> Ending:
        """How something ended whose start was claimed, by this process or an earlier one."""
        if entry.change is None and not self.upgrader.was_begun(entry):
            why = InterruptedRunError("the agent was restarted while it did this: nothing was changed")
            return Ending(outcome=Outcome.INTERRUPTED, why=Why.of(why))
        params = _params(entry)
        installer = self.installers.get(params.manager) if isinstance(params, UpgradeParams) else None
        await self.upgrader.wait(entry, installer)
        if installer is None or not isinstance(params, UpgradeParams):
            return failed(ExecutorError("this agent does not patch with that manager any more: nobody looked"))
        return await self.upgrader.finish(entry, params, installer)

    def _installer(self, manager: str) -> Installer:
        installer = self.installers.get(manager)
        if installer is None:
            raise ExecutorError(f"this agent does not patch with {manager} any more")
        return installer

    # --- the end

    async def _end(self, entry: Entry, ending: Ending) -> None:
        """Sign and keep how a command ended, however long that takes: a result is never lost."""
        while True:
            try:
                at = self.upgrader.time.stamp()
                with self.upgrader.journal.page() as page:
                    self._record(page, entry.cmd_id, ending, at)
                break
            except JournalError as error:
                self.on_error("executor", error)
                await self.upgrader.sleep(JOURNAL_PAUSE)
        self.board.clear(entry.cmd_id)
        self.news.set()
        if isinstance(_params(entry), UpgradeParams):
            await self._rescan()

    def _record(self, page: Page, cmd_id: str, ending: Ending, at: int) -> None:
        entry = page.find(cmd_id)
        if entry is not None:
            envelope, result = self.voice.result(entry, ending, at=at)
            page.end(cmd_id, envelope, outcome=result.outcome, code=result.code, at=at)

    async def _rescan(self) -> None:
        """Let the server see what a change has changed; its result is signed already."""
        try:
            await self.rescan(None)
        except Exception as error:
            self.on_error("executor", error)

    # --- housekeeping

    def _tidy(self) -> None:
        """Forget the details of what was delivered long ago, and remove run directories that nobody needs."""
        now, runs = self.upgrader.time.stamp(), self.upgrader.runs
        with self.upgrader.journal.page() as page:
            page.forget_details(now)
            settled = page.settled(runs.commands())
        for place, (cmd_id, ended_at) in enumerate(sorted(settled.items(), key=lambda item: -item[1])):
            if place >= MAX_RUNS or ended_at < now - RUNS_KEPT:
                runs.remove(cmd_id)


def _params(entry: Entry) -> Params | None:
    """What a command orders; None when this release does not know it any more."""
    try:
        return parse_params(entry.type or "", entry.params or b"")
    except UnknownCommandError:
        return None
