"""
Until when a release of an operating system gets security fixes, and how far away that is.

The dates are facts that the distributions publish, kept in one table. It holds what was public on `AS_OF`; later
dates in it are their plans of that day. A release that is not in it is not known, and neither is any release once
the table is older than `TABLE_DAYS`: an old RedFlag must not say something wrong with confidence.

Sources: for Debian and Ubuntu the Debian package distro-info-data, version 0.68, which follows the Debian Wiki
(DebianReleases, LTS) and the Ubuntu release cycle; for RHEL the "Red Hat Enterprise Linux Life Cycle"; for Rocky
Linux its "Release and Version Guide"; for AlmaLinux its release notes; for CentOS and Fedora their announcements.
A release without a row here may still state its end itself, as ``SUPPORT_END`` of os-release(5).
"""

import re
from collections.abc import Mapping
from datetime import date
from enum import StrEnum
from typing import Final

import attrs
from attrs import validators

from redflag_core._fields import line

AS_OF: Final = date(2025, 10, 18)
"""The day up to which the table knows what was published."""

TABLE_DAYS: Final = 3 * 365
"""Age, days, at which the table is not believed any more: about as long as a release has standard support."""

NOTICE_DAYS: Final = 90
"""Days before the end at which people are alarmed: a quarter to plan and do a release upgrade."""

MAX_SOURCE: Final = 64
"""Longest name of a source."""

_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}")


class SupportKind(StrEnum):
    """Who makes the last fixes that everybody gets: the distribution as usual, or its long-term project."""

    STANDARD = "standard"
    LONG_TERM = "long_term"


def _is_date(_instance: object, attribute: "attrs.Attribute[str]", value: str) -> None:
    if not _DATE.fullmatch(value):
        raise ValueError(f"{attribute.name} is no date")
    date.fromisoformat(value)


@attrs.frozen
class Lifespan:
    """
    Until when a release gets security fixes. Dates are ISO 8601 text and the last day, as they go on the wire.

    Attributes:
        source: Who says so.
        standard: End of standard support.
        long_term: End of the long-term support that every machine gets without asking; None where there is none.
        paid: End of what a subscription or contract adds; None when none is known.
    """

    source: str = attrs.field(validator=line(MAX_SOURCE))
    standard: str = attrs.field(validator=_is_date)
    long_term: str | None = attrs.field(default=None, validator=validators.optional(_is_date))
    paid: str | None = attrs.field(default=None, validator=validators.optional(_is_date))

    def on(self, today: date) -> "EndOfLife":
        """How far away the end is on *today*."""
        kind = SupportKind.STANDARD if self.long_term is None else SupportKind.LONG_TERM
        end = date.fromisoformat(self.long_term or self.standard)
        return EndOfLife(end, kind, (end - today).days, self)


@attrs.frozen
class EndOfLife:
    """
    The end of a release, seen from one day.

    Attributes:
        date: Last day on which a machine without a subscription gets fixes.
        kind: What ends on it.
        days_left: Days to it; negative when it is past.
        lifespan: The dates that it was made from.
    """

    date: date
    kind: SupportKind
    days_left: int
    lifespan: Lifespan

    @property
    def is_past(self) -> bool:
        """Whether the machine gets no fixes any more, unless somebody pays for them."""
        return self.days_left < 0

    @property
    def is_alarming(self) -> bool:
        """Whether somebody must act: it is past, or within `NOTICE_DAYS`."""
        return self.days_left <= NOTICE_DAYS


def end_of_life(os_id: str, version: str | None, today: date) -> EndOfLife | None:
    """
    The end of a release, from the table.

    Args:
        os_id: ``ID`` of os-release(5), such as ``debian``. Untrusted.
        version: ``VERSION_ID`` of os-release(5), such as ``12`` or ``9.4``; None where there is none, as in
            Debian's testing. Untrusted.
        today: The day to count from.

    Returns:
        None when it is not known.
    """
    found = known_lifespan(os_id, version, today)
    return None if found is None else found.on(today)


def known_lifespan(os_id: str, version: str | None, today: date) -> Lifespan | None:
    """The dates of a release, from the table; arguments as for `end_of_life`."""
    if version is None or (today - AS_OF).days > TABLE_DAYS:
        return None
    releases = _TABLE.get(os_id, {})
    # A minor release of RHEL and its kind ends with its successor, which any update brings: the major one counts.
    return releases.get(version) or releases.get(version.partition(".")[0])


def stated_lifespan(support_end: str | None) -> Lifespan | None:
    """
    What a release says of itself.

    Args:
        support_end: ``SUPPORT_END`` of os-release(5), None when it has none. Untrusted.

    Returns:
        None when it is no date.
    """
    try:
        return None if support_end is None else Lifespan("os-release", support_end)
    except ValueError:
        return None


_DEBIAN, _UBUNTU, _RED_HAT, _ROCKY = "Debian", "Ubuntu", "Red Hat", "Rocky Linux"

# For each release: who says so; end of standard support, of long-term support for everybody, of paid support.
_TABLE: Final[Mapping[str, Mapping[str, Lifespan]]] = {
    "debian": {
        "8": Lifespan(_DEBIAN, "2018-06-17", "2020-06-30", "2025-06-30"),
        "9": Lifespan(_DEBIAN, "2020-07-18", "2022-06-30", "2027-06-30"),
        "10": Lifespan(_DEBIAN, "2022-09-10", "2024-06-30", "2029-06-30"),
        "11": Lifespan(_DEBIAN, "2024-08-14", "2026-08-31", "2031-06-30"),
        "12": Lifespan(_DEBIAN, "2026-07-11", "2028-06-30", "2033-06-30"),
        "13": Lifespan(_DEBIAN, "2028-08-09", "2030-06-30", "2035-06-30"),
    },
    "ubuntu": {
        "14.04": Lifespan(_UBUNTU, "2019-04-25", None, "2026-04-28"),
        "16.04": Lifespan(_UBUNTU, "2021-04-30", None, "2028-04-25"),
        "18.04": Lifespan(_UBUNTU, "2023-05-31", None, "2030-04-30"),
        "20.04": Lifespan(_UBUNTU, "2025-05-29", None, "2032-04-27"),
        "22.04": Lifespan(_UBUNTU, "2027-06-01", None, "2034-04-25"),
        "22.10": Lifespan(_UBUNTU, "2023-07-20"),
        "23.04": Lifespan(_UBUNTU, "2024-01-25"),
        "23.10": Lifespan(_UBUNTU, "2024-07-11"),
        "24.04": Lifespan(_UBUNTU, "2029-05-31", None, "2036-04-29"),
        "24.10": Lifespan(_UBUNTU, "2025-07-10"),
        "25.04": Lifespan(_UBUNTU, "2026-01-15"),
        "25.10": Lifespan(_UBUNTU, "2026-07-09"),
        "26.04": Lifespan(_UBUNTU, "2031-05-29", None, "2038-04-27"),
    },
    "rhel": {
        "7": Lifespan(_RED_HAT, "2024-06-30"),
        "8": Lifespan(_RED_HAT, "2029-05-31"),
        "9": Lifespan(_RED_HAT, "2032-05-31"),
        "10": Lifespan(_RED_HAT, "2035-05-31"),
    },
    "rocky": {
        "8": Lifespan(_ROCKY, "2029-05-31"),
        "9": Lifespan(_ROCKY, "2032-05-31"),
        "10": Lifespan(_ROCKY, "2035-05-31"),
    },
    "almalinux": {"9": Lifespan("AlmaLinux", "2032-05-31")},
    "centos": {"7": Lifespan("CentOS", "2024-06-30")},
    "fedora": {
        "38": Lifespan("Fedora", "2024-05-21"),
        "39": Lifespan("Fedora", "2024-11-26"),
        "40": Lifespan("Fedora", "2025-05-13"),
    },
}
