"""
May this start now? One answer from windows, freezes and orders to install now, with a sentence for people.

A freeze stands above everything. An order to install now stands above windows and their blackouts, and has a
reason and a name. Otherwise a window must say yes: where there is none, nothing starts by itself.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

import attrs

from redflag_core._fields import line
from redflag_core.patching.occurrences import (
    Due,
    Occurrence,
    Postponed,
    Run,
    current,
    due,
    following,
    has_run,
    is_put_off,
)
from redflag_core.patching.recurrence import MONTHS, Weekday
from redflag_core.patching.windows import Window, duration, is_blacked_out
from redflag_core.patching.zones import aware, wall, zone_of

MAX_REASON: Final = 500
"""Longest reason: a few sentences, shown wherever something waits for it."""

MAX_WHO: Final = 200
"""Longest name of who decided."""


class FreezeScope(StrEnum):
    """What a freeze covers."""

    GLOBAL = "global"
    ORGANIZATION = "organization"


@attrs.frozen(kw_only=True)
class Freeze:
    """
    Nothing starts until somebody lifts it.

    Attributes:
        scope: What it covers.
        by: Who ordered it.
        reason: Why, for people.
    """

    scope: FreezeScope
    by: str = attrs.field(validator=line(MAX_WHO))
    reason: str = attrs.field(validator=line(MAX_REASON))


@attrs.frozen(kw_only=True)
class InstallNow:
    """
    An order to start outside windows.

    Attributes:
        by: Who ordered it.
        reason: Why it cannot wait, for people. There is no order without one.
    """

    by: str = attrs.field(validator=line(MAX_WHO))
    reason: str = attrs.field(validator=line(MAX_REASON))

    def __attrs_post_init__(self) -> None:
        """Blanks are no reason."""
        if not self.reason.strip():
            raise ValueError("say why it cannot wait for a window")


class StartCode(StrEnum):
    """Why something may start, or may not."""

    WINDOW = "window"
    MISSED_WINDOW = "missed_window"
    INSTALL_NOW = "install_now"
    FROZEN = "frozen"
    NO_WINDOW = "no_window"
    RUN_ALREADY = "run_already"
    POSTPONED = "postponed"
    TOO_LATE = "too_late"
    BLACKOUT = "blackout"
    CLOSED = "closed"


@attrs.frozen(kw_only=True)
class WindowRecord:
    """
    What is on record of a window for one machine.

    Attributes:
        last_run: The last run that was started in it; None for none.
        postponed: What people put off last; None for nothing.
    """

    last_run: Run | None = None
    postponed: Postponed | None = None


@attrs.frozen(kw_only=True)
class StartDecision:
    """
    The answer.

    Attributes:
        allowed: Whether it may start now.
        code: Why, for machines.
        why: Why, a sentence for people.
        window: The window that answered, when one did.
        occurrence: What it runs for: store its run before starting anything. None for an order to install now.
        opens_at: When the next window opens, aware UTC, if it may not start now; None when nobody knows.
    """

    allowed: bool
    code: StartCode
    why: str
    window: Window | None = None
    occurrence: Occurrence | None = None
    opens_at: datetime | None = None


def may_start(
    windows: Mapping[Window, WindowRecord],
    *,
    at: datetime,
    freezes: Sequence[Freeze] = (),
    install_now: InstallNow | None = None,
) -> StartDecision:
    """
    Whether a run may start now, and if not, when and why.

    It answers for the one run of each occurrence. What belongs to a run that was started already asks
    `redflag_core.patching.occurrences.current` instead.

    Args:
        windows: Each window that applies, with what is on record of it.
        at: Current time, aware.
        freezes: The freezes that hold for this machine, of its organization and global.
        install_now: An order that somebody gave for this machine, if any.
    """
    at = aware(at)
    if freezes:
        return _frozen(freezes)
    if install_now is not None:
        why = f"{install_now.by} ordered to install now, outside windows: {install_now.reason}"
        return StartDecision(allowed=True, code=StartCode.INSTALL_NOW, why=why)
    if not windows:
        why = "there is no maintenance window: add one, or order to install now"
        return StartDecision(allowed=False, code=StartCode.NO_WINDOW, why=why)
    asked = ((window, due(window, at, record.last_run, record.postponed)) for window, record in windows.items())
    found = [(window, run) for window, run in asked if run is not None]
    if found:
        return _due(*min(found, key=lambda each: (each[1].missed, each[1].occurrence.start)))
    return _put_off(windows, at) or _wait(windows, at)


def _frozen(freezes: Sequence[Freeze]) -> StartDecision:
    freeze = min(freezes, key=lambda each: each.scope is not FreezeScope.GLOBAL)
    where = "everywhere" if freeze.scope is FreezeScope.GLOBAL else "in this organization"
    why = f"{freeze.by} stopped all starts {where}, until it is lifted: {freeze.reason}"
    return StartDecision(allowed=False, code=StartCode.FROZEN, why=why)


def _due(window: Window, run: Due) -> StartDecision:
    occurrence, code = run.occurrence, StartCode.MISSED_WINDOW if run.missed else StartCode.WINDOW
    what = f"the window {window.recurrence} {window.span} of {occurrence.date}"
    end = _local(occurrence.starts_until, window)
    why = f"{what} is open: starts are allowed until {end}"
    if run.missed:
        why = f"{what} was missed, and a missed run may start within {duration(window.run_if_missed)}"
    return StartDecision(allowed=True, code=code, why=why, window=window, occurrence=occurrence)


def _put_off(windows: Mapping[Window, WindowRecord], at: datetime) -> StartDecision | None:
    """The answer where only people at the machine hold a run back."""
    for window, record in windows.items():
        here, off = current(window, at), record.postponed
        if here is None or off is None or has_run(here, record.last_run, at) or not is_put_off(here, off, at):
            continue
        why = f"people at the machine put it off until {_local(off.until, window)}"
        code, until = StartCode.POSTPONED, aware(off.until)
        return StartDecision(allowed=False, code=code, why=why, window=window, opens_at=until)
    return None


def _wait(windows: Collection[Window], at: datetime) -> StartDecision:
    comes = [(window, coming) for window in windows if (coming := following(window, at)) is not None]
    window, coming = min(comes, key=lambda each: each[1].start, default=(None, None))
    opens_at = None if coming is None else coming.start
    then = "no window opens any more: add one, or order to install now"
    if window is not None and coming is not None:
        then = f"the next window, {window.recurrence} {window.span}, opens on {_local(coming.start, window)}"
    code, now = _why_not_now(windows, at)
    return StartDecision(allowed=False, code=code, why=f"{now}; {then}", window=window, opens_at=opens_at)


def _why_not_now(windows: Collection[Window], at: datetime) -> tuple[StartCode, str]:
    is_open = [(window, here) for window in windows if (here := current(window, at)) is not None]
    if any(at < here.starts_until for _, here in is_open):
        return StartCode.RUN_ALREADY, "the window is open, and its run was started already"
    for window, here in is_open:
        since = _local(here.starts_until, window)
        return StartCode.TOO_LATE, f"the window is open, but nothing starts since {since}"
    for window in windows:
        today = wall(at, zone_of(window.timezone)).date()
        if is_blacked_out(window, today):
            return StartCode.BLACKOUT, f"nothing starts on {today} in the window {window.recurrence} {window.span}"
    return StartCode.CLOSED, "no window is open"


def _local(at: datetime, window: Window) -> str:
    """A time as people at the site read it. Names of days are ours: those of the system depend on its settings."""
    there = wall(at, zone_of(window.timezone))
    day = list(Weekday)[there.weekday()].capitalize()
    return f"{day} {there.day} {MONTHS[there.month - 1]} {there.year} at {there:%H:%M} ({window.timezone})"


# --- people at the machine --------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Postponement:
    """
    The answer to somebody who wants to put a run off.

    Attributes:
        allowed: Whether it is put off.
        why: A sentence for people.
        postponed: What to store; None when it is not put off.
    """

    allowed: bool
    why: str
    postponed: Postponed | None = None


def may_postpone(
    window: Window, occurrence: Occurrence, *, at: datetime, before: Postponed | None = None
) -> Postponement:
    """
    Whether people at a machine may put its run off once more.

    Each time counts from now, or from the start of the window while that is to come. It is refused where the run
    would have to start after its window's last start: postponing never makes a window longer.

    Args:
        window: The window.
        occurrence: Its occurrence, of which no run was started.
        at: Current time, aware.
        before: What people put off last; None for nothing.
    """
    times = before.times if before is not None and before.key == occurrence.key else 0
    until = max(aware(at), occurrence.start) + timedelta(minutes=window.postpone)
    if not window.postpone_times:
        return Postponement(allowed=False, why="this window cannot be postponed")
    if times >= window.postpone_times:
        often = "once" if window.postpone_times == 1 else f"{window.postpone_times} times"
        return Postponement(allowed=False, why=f"it was postponed {often}, as often as it can be")
    if until >= occurrence.starts_until:
        last = _local(occurrence.starts_until, window)
        return Postponement(allowed=False, why=f"it must start before {last}: later is not possible")
    left = window.postpone_times - times - 1
    why = f"it starts on {_local(until, window)}, and can be postponed {left} more time{'' if left == 1 else 's'}"
    postponed = Postponed(key=occurrence.key, times=times + 1, until=until)
    return Postponement(allowed=True, why=why, postponed=postponed)
