"""
Maintenance windows: what people say about when work may start on the machines of a site.

These values are the stored form too. What they mean on a clock is in `redflag_core.patching.occurrences`; the text
that people write is read in `redflag_core.patching.window_text`.
"""

import re
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from typing import Any, Final

import attrs
from attrs import validators

from redflag_core import codec
from redflag_core.patching.recurrence import MONTHS, Recurrence, ascending
from redflag_core.patching.zones import is_zone

WINDOW_VERSION: Final = 1
"""Version of the stored form."""

MAX_WINDOW_BYTES: Final = 16 * 1024
"""Largest stored form: `MAX_BLACKOUTS` take 5 KiB."""

MAX_BLACKOUTS: Final = 100
"""Most dates and ranges without work: the public holidays of five years."""

MAX_BLACKOUT: Final = timedelta(days=366)
"""Longest range without work, its last day included: what rests for longer has ended."""

MAX_MISSED: Final = 31 * 24 * 60
"""Longest time after a missed window, in minutes: by then the next month's has come."""

MAX_NOTICE: Final = 7 * 24 * 60
"""Longest notice, in minutes: a week. Nobody remembers more."""

MAX_POSTPONE: Final = 24 * 60
"""Longest postponement, in minutes: a window is no longer than that."""

MAX_POSTPONED: Final = 10
"""Most postponements: beyond, it is a window that nobody wants."""

_DAY: Final = timedelta(days=1)
_CLOCK: Final = re.compile("([01][0-9]|2[0-3]):([0-5][0-9])")
_SOME_DAY: Final = date(2000, 1, 1)


def _is_date(_instance: Any, attribute: "attrs.Attribute[Any]", value: str) -> None:
    try:
        known = date.fromisoformat(value)
    except ValueError:
        known = None
    # Python reads other forms of a date too: one date has one spelling.
    if known is None or known.isoformat() != value:
        raise ValueError(f"{attribute.name} is no date like 2026-12-24")


_IS_CLOCK: Final[Any] = validators.matches_re(_CLOCK)


def _minutes(most: int) -> Any:
    return validators.and_(validators.ge(0), validators.le(most))


@attrs.frozen(kw_only=True)
class Blackout:
    """
    Dates on which nothing starts.

    Attributes:
        first: ``YYYY-MM-DD``, local.
        last: Likewise, included.
    """

    first: str = attrs.field(validator=_is_date)
    last: str = attrs.field(validator=_is_date)

    def __attrs_post_init__(self) -> None:
        """A range goes forward."""
        if self.first > self.last:
            raise ValueError(f"{self.first}..{self.last} ends before it begins")
        if date.fromisoformat(self.last) - date.fromisoformat(self.first) >= MAX_BLACKOUT:
            raise ValueError(f"{self.first}..{self.last} is longer than a year: let the window end, with until")

    def __str__(self) -> str:
        return self.first if self.first == self.last else f"{self.first}..{self.last}"


@attrs.frozen(kw_only=True)
class Span:
    """
    A part of a day on a wall clock.

    Attributes:
        start: ``HH:MM``, local.
        end: ``HH:MM``; at or before *start* it is on the next day.
    """

    start: str = attrs.field(validator=_IS_CLOCK)
    end: str = attrs.field(validator=_IS_CLOCK)

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"


@attrs.frozen(kw_only=True)
class Window:
    """
    A maintenance window, and its stored form. ``parse_window(str(window)) == window``.

    Attributes:
        v: Version of the stored form.
        recurrence: On which dates it begins.
        span: From when to when.
        timezone: IANA name: that of the site.
        last_start: ``HH:MM``: from then on nothing starts, though the window is still open.
        reboot: When machines may be started anew, from the first such time at or after the start of the window;
            None for within the window.
        valid_from: First date, ``YYYY-MM-DD``; None for always.
        valid_until: Last date, included; None for ever.
        blackouts: Dates on which nothing starts, in order. An occurrence that belongs to one does not take place;
            one that reaches into one ends there for what has not started.
        run_if_missed: Minutes after its end in which a run that was missed may still start.
        notice: Minutes before its start at which people at the machine are told.
        postpone_times: How often these may put it off.
        postpone: By how many minutes, each time.
    """

    v: int = attrs.field(default=WINDOW_VERSION, validator=validators.in_((WINDOW_VERSION,)))
    recurrence: Recurrence
    span: Span
    timezone: str = attrs.field(validator=is_zone)
    last_start: str | None = attrs.field(default=None, validator=validators.optional(_IS_CLOCK))
    reboot: Span | None = None
    valid_from: str | None = attrs.field(default=None, validator=validators.optional(_is_date))
    valid_until: str | None = attrs.field(default=None, validator=validators.optional(_is_date))
    blackouts: tuple[Blackout, ...] = attrs.field(
        default=(), validator=[validators.max_len(MAX_BLACKOUTS), ascending(lambda each: (each.first, each.last))]
    )
    run_if_missed: int = attrs.field(default=0, validator=_minutes(MAX_MISSED))
    notice: int = attrs.field(default=0, validator=_minutes(MAX_NOTICE))
    postpone_times: int = attrs.field(default=0, validator=_minutes(MAX_POSTPONED))
    postpone: int = attrs.field(default=0, validator=_minutes(MAX_POSTPONE))

    def __attrs_post_init__(self) -> None:
        """What is said of a window fits into it."""
        begin = reading_on(_SOME_DAY, self.span.start)
        if self.last_start and not later_reading(begin, self.last_start) < later_reading(begin, self.span.end):
            raise ValueError(f"last start {self.last_start} is not within {self.span}")
        if self.valid_from and self.valid_until and self.valid_from > self.valid_until:
            raise ValueError("it ends before it begins: valid until is before valid from")
        if bool(self.postpone_times) != bool(self.postpone):
            raise ValueError("say both how often it can be postponed and for how long")

    @property
    def rule(self) -> str:
        """What occurrences belong to, beside their date. Changing the end or a notice makes no new ones."""
        return f"{self.recurrence} {self.span.start} {self.timezone}"

    def __str__(self) -> str:
        parts = [f"{self.recurrence} {self.span} {self.timezone}"]
        if self.recurrence.months:
            parts.append(f"in {', '.join(MONTHS[month - 1] for month in self.recurrence.months)}")
        texts = {"last start": self.last_start, "reboot": self.reboot}
        texts |= {"from": self.valid_from, "until": self.valid_until}
        parts += [f"{name} {text}" for name, text in texts.items() if text is not None]
        if self.blackouts:
            parts.append(f"except {', '.join(map(str, self.blackouts))}")
        lengths = {"if missed": self.run_if_missed, "notice": self.notice}
        parts += [f"{name} {duration(minutes)}" for name, minutes in lengths.items() if minutes]
        if self.postpone:
            parts.append(f"postpone {self.postpone_times} times {duration(self.postpone)}")
        return "; ".join(parts)


UNITS: Final[Mapping[str, int]] = {"day": 24 * 60, "hour": 60, "minute": 1}
"""Minutes in each. Largest first: `duration` takes the first that divides it."""


def duration(minutes: int) -> str:
    """*minutes* for people: ``2 hours``."""
    unit = next(name for name, length in UNITS.items() if minutes % length == 0)
    number = minutes // UNITS[unit]
    return f"{number} {unit}{'' if number == 1 else 's'}"


def dump_window(window: Window) -> bytes:
    """The stored form: canonical JSON with its version."""
    return codec.dump(window)


def load_window(data: bytes) -> Window:
    """
    Read the stored form.

    Args:
        data: Untrusted.

    Raises:
        MalformedError: It is none, or of another version.
    """
    return codec.parse(Window, data, max_bytes=MAX_WINDOW_BYTES)


def is_blacked_out(window: Window, day: date) -> bool:
    """Whether *day* is a date on which nothing starts."""
    text = day.isoformat()
    return any(blackout.first <= text <= blackout.last for blackout in window.blackouts)


def reading_on(day: date, clock: str) -> datetime:
    """What a wall clock shows at *clock* on *day*."""
    return datetime.combine(day, time.fromisoformat(clock))


def later_reading(begin: datetime, clock: str) -> datetime:
    """The first time after *begin* at which a wall clock shows *clock*, if nobody sets it."""
    reading = reading_on(begin.date(), clock)
    return reading if reading > begin else reading + _DAY
