"""The executor in the agent's own process."""

import asyncio
import logging
from collections.abc import Awaitable, Collection, Sequence
from contextlib import suppress
from typing import Final

from redflag_agent.data_dir import DataDirectory
from redflag_agent.executor.authority import Documents, Timekeeper
from redflag_agent.executor.board import Board
from redflag_agent.executor.commander import OnError, Rescan, Undelivered
from redflag_agent.executor.identity import Executor
from redflag_agent.executor.judge import Answer, Judge
from redflag_agent.executor.runs import Launcher, Runs, choose_launcher
from redflag_agent.executor.upgrade import Upgrader
from redflag_agent.executor.voice import Voice
from redflag_agent.executor.work import Worker
from redflag_agent.installers.model import Installer
from redflag_agent.progress import line
from redflag_agent.state import StateFile
from redflag_agent.waiting import Sleep
from redflag_core.commands import HeartbeatParams
from redflag_core.errors import RedFlagError
from redflag_core.messages import Progress

log = logging.getLogger(__name__)

MAX_STATEMENTS: Final = 10
"""Kept statements that are shown at once: each may have a megabyte. What was delivered makes room for the next."""

MAX_PASSING: Final = 50
"""Refusals that say "not now" and are in memory only. The newest of each command counts; the oldest go first."""


class LocalCommander:
    """
    `Commander` in the same process.

    Args:
        directory: Where journal, runs and limits are.
        state: Which agent of which server this is.
        executor: Its key, and the open journal.
        held: The trust documents that the network process holds.
        installers: The package managers that can be used here.
        rescan: Scans now.
        on_error: Told of what somebody should look at.
        sleep: How to wait.
        launcher: What comes before the command line of a runner; found out unless given.
    """

    def __init__(
        self,
        directory: DataDirectory,
        state: StateFile,
        executor: Executor,
        *,
        held: Documents,
        installers: Collection[Installer],
        rescan: Rescan,
        on_error: OnError,
        sleep: Sleep,
        launcher: Launcher | None = None,
    ) -> None:
        self.news = asyncio.Event()
        self._journal = executor.journal
        self._clock = executor.clock
        self._on_error = on_error
        self._passing: dict[str, Undelivered] = {}
        self._passed = 0
        self._heartbeat_until: float | None = None
        self._wake = asyncio.Event()
        self._board = Board(executor.clock, self.news)
        voice, time = Voice(executor, state), Timekeeper(executor.clock, executor.journal)
        managers = {installer.manager: installer for installer in installers}
        self._judge = Judge(
            executor=executor,
            state=state,
            held=held,
            journal=executor.journal,
            time=time,
            voice=voice,
            limits=directory.limits,
            managers=frozenset(managers),
            on_error=self._note,
        )
        upgrader = Upgrader(
            journal=executor.journal,
            time=time,
            limits=directory.limits,
            runs=Runs(directory.runs, launcher or choose_launcher()),
            board=self._board,
            on_error=self._note,
            sleep=sleep,
        )
        self._worker = Worker(
            upgrader=upgrader,
            voice=voice,
            installers=managers,
            rescan=rescan,
            board=self._board,
            clock=executor.clock,
            on_error=self._note,
            wake=self._wake,
            news=self.news,
        )

    async def execute(self, envelope: bytes) -> bytes:
        """See `Commander.execute`."""
        answer = self._judge.judge(envelope)
        if not answer.kept:
            self._pass(answer)
        if isinstance(answer.params, HeartbeatParams):
            self._heartbeat_until = self._clock.monotonic() + answer.params.seconds
        self._wake.set()
        self.news.set()
        return answer.envelope

    def statements(self, *, skip: Collection[int] = ()) -> Sequence[Undelivered]:
        """See `Commander.statements`."""
        with self._journal.page() as page:
            kept = page.undelivered(MAX_STATEMENTS, skip=skip)
        passing = [each for each in self._passing.values() if each.id not in skip]
        return [*(Undelivered(each.id, each.envelope, each.cmd_id) for each in kept), *passing]

    def delivered(self, statement_id: int) -> None:
        """See `Commander.delivered`."""
        self._passing = {key: each for key, each in self._passing.items() if each.id != statement_id}
        if statement_id > 0:
            with self._journal.page() as page:
                page.deliver(statement_id)

    def progress(self) -> Progress | None:
        """See `Commander.progress`."""
        return self._board.take()

    def busy(self) -> bool:
        """See `Commander.busy`."""
        with self._journal.page() as page:
            return bool(page.open_entries())

    def heartbeat_until(self) -> float | None:
        """See `Commander.heartbeat_until`."""
        until = self._heartbeat_until
        return until if until is not None and until > self._clock.monotonic() else None

    async def work(self, stop: asyncio.Event) -> None:
        """See `Commander.work`."""
        await _until(self._worker.run(), stop)

    def _pass(self, answer: Answer) -> None:
        key = answer.what.cmd_id or answer.what.body
        self._passing.pop(key, None)
        self._passed += 1
        self._passing[key] = Undelivered(-self._passed, answer.envelope, answer.what.cmd_id)
        while len(self._passing) > MAX_PASSING:
            del self._passing[next(iter(self._passing))]

    def _note(self, subsystem: str, error: BaseException) -> None:
        """Tell an error, and go on though it cannot be kept: what is done here matters more."""
        log.warning(line("executor_failed", error=str(error)), exc_info=not isinstance(error, RedFlagError))
        with suppress(RedFlagError):
            self._on_error(subsystem, error)


async def _until(work: Awaitable[None], stop: asyncio.Event) -> None:
    """Work until *stop* is set; what the work raises is raised."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working
