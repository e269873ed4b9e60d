"""
What the owner of a machine allows, kept on the machine: no server can widen it.

The values are read from a file that only the owner can write. The decision is made here, from the values and from
what the machine did in the last day.
"""

import re
from collections.abc import Sequence
from datetime import datetime, time, timedelta
from typing import Any, Final

import attrs
from attrs import validators

from redflag_core.errors import LimitError
from redflag_core.freshness import unix
from redflag_core.patching.zones import is_zone, zone_of

STARTS_PER_DAY: Final = 20
"""Changes that are started in 24 hours when the owner says nothing: far more than patching needs, and a bound on
what a server that was taken over can do before somebody looks."""

DAY: Final = 86_400
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CLOCK: Final = re.compile("([01][0-9]|2[0-3]):([0-5][0-9])")
_MANAGERS: Final[Any] = validators.deep_iterable(
    validators.matches_re(r"[a-z][a-z0-9_]{0,31}"), validators.max_len(32)
)


@attrs.frozen(kw_only=True)
class LocalWindow:
    """
    A time of the week in which the machine may be changed.

    Attributes:
        days: Days on which it begins, of `DAYS`.
        start: ``HH:MM``, local.
        end: ``HH:MM``; at or before *start* it is on the next day.
        timezone: IANA name. The zone of the system has another meaning on each machine, and no name here.
    """

    days: tuple[str, ...] = attrs.field(
        default=DAYS, validator=validators.deep_iterable(validators.in_(DAYS), validators.min_len(1))
    )
    start: str = attrs.field(validator=validators.matches_re(_CLOCK))
    end: str = attrs.field(validator=validators.matches_re(_CLOCK))
    timezone: str = attrs.field(default="UTC", validator=is_zone)

    def is_open(self, now: datetime) -> bool:
        """Whether *now* (aware) is within the window, its end excluded, on the wall clock of its zone."""
        local = now.astimezone(zone_of(self.timezone))
        today, yesterday = DAYS[local.weekday()], DAYS[(local - timedelta(days=1)).weekday()]
        start, end, clock = time.fromisoformat(self.start), time.fromisoformat(self.end), local.time()
        if start < end:
            return today in self.days and start <= clock < end
        return (today in self.days and clock >= start) or (yesterday in self.days and clock < end)


@attrs.frozen(kw_only=True)
class Limits:
    """
    What the owner allows.

    Attributes:
        changes: Whether anything may be changed at all.
        starts_per_day: Changes started in any 24 hours.
        managers: Package managers that may be used; None for all.
        windows: When changes may start; empty for any time.
    """

    changes: bool = True
    starts_per_day: int = attrs.field(default=STARTS_PER_DAY, validator=[validators.ge(0), validators.le(10_000)])
    managers: tuple[str, ...] | None = attrs.field(default=None, validator=validators.optional(_MANAGERS))
    windows: tuple[LocalWindow, ...] = attrs.field(default=(), validator=validators.max_len(50))


WINDOW_RETRY: Final = 900
"""Seconds after which a command is tried again that came outside the windows: a window is rarely shorter."""


def check_limits(limits: Limits, *, manager: str, started: Sequence[int], now: datetime) -> None:
    """
    Refuse a change that the owner does not allow now.

    Args:
        limits: What the owner allows.
        manager: Package manager that would be used.
        started: Unix times at which changes were started, at least those of the last day.
        now: Current time, aware.

    Raises:
        LimitError: A limit holds; ``retry_after`` says when it may not any more.
    """
    if not limits.changes:
        raise LimitError("the owner of this machine allows no changes (limits.toml: changes = false)")
    if limits.managers is not None and manager not in limits.managers:
        raise LimitError(f"the owner of this machine does not allow {manager} (limits.toml: managers)")
    if limits.windows and not any(window.is_open(now) for window in limits.windows):
        raise LimitError("outside the windows of this machine (limits.toml)", retry_after=WINDOW_RETRY)
    recent = sorted(start for start in started if start > unix(now) - DAY)
    if len(recent) >= limits.starts_per_day:
        oldest = recent[len(recent) - limits.starts_per_day] if limits.starts_per_day else int(unix(now))
        raise LimitError(
            f"{limits.starts_per_day} changes were started within a day: that is the limit of this machine",
            retry_after=max(1, oldest + DAY - int(unix(now))),
        )
