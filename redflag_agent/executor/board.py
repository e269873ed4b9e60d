"""What the command being carried out does now, for people who watch. Lost without harm."""

import asyncio

import attrs

from redflag_core.freshness import unix
from redflag_core.messages import Phase, Progress
from redflag_core.ports import Clock
from redflag_core.scanning import MAX_TEXT, clean_text


class Board:
    """
    The latest progress. Only what is new is shown, and nobody sees the same twice.

    Args:
        clock: Its time numbers the progress: an agent that was restarted goes on above what it told before.
        news: Set when there is something new.
    """

    def __init__(self, clock: Clock, news: asyncio.Event) -> None:
        self._number = int(unix(clock.now()) * 1000)
        self._news = news
        self._shown: Progress | None = None
        self._fresh = False

    def show(
        self, cmd_id: str, phase: Phase, doing: str, *, percent: int | None = None, lines: tuple[str, ...] = ()
    ) -> None:
        """
        Show what a command does.

        Args:
            cmd_id: The command.
            phase: Whether it waits or runs.
            doing: What it waits for or does.
            percent: How far it is.
            lines: What the package manager printed last.
        """
        progress = Progress(
            v=1,
            cmd_id=cmd_id,
            number=self._number,
            phase=phase,
            doing=clean_text(doing, max_len=MAX_TEXT) or phase.value,
            percent=percent,
            lines=lines,
        )
        if progress == self._shown:
            return
        self._number += 1
        self._shown = attrs.evolve(progress, number=self._number)
        self._fresh = True
        self._news.set()

    def take(self) -> Progress | None:
        """What is new since this was last asked, None when nothing is."""
        if not self._fresh:
            return None
        self._fresh = False
        return self._shown

    def clear(self, cmd_id: str) -> None:
        """Nothing more is to be said of a command: its result says it."""
        if self._shown is not None and self._shown.cmd_id == cmd_id:
            self._shown, self._fresh = None, False
