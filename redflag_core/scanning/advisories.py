"""
Advisories: what is known of a vulnerability, how severe it is said to be, and which packages it concerns.

Rules for the whole file:

- A severity is never invented: what nobody rated stays unknown, and of several ratings the worst holds.
- Versions are compared by the package manager that they belong to, through the port `VersionOrder`. Each one has
  an order of its own (epochs, tildes, letters), and none of them is the core's.
- What cannot be compared is not claimed: the version of a source package says nothing about that of a binary.

Source: CVE record format 5.1 (the form of an id); the scales of Red Hat, SUSE, Microsoft, Ubuntu, Debian, GitHub
and CVSS (the words).
"""

import re
from collections.abc import Iterable
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Protocol

import attrs
from attrs import validators

from redflag_core._fields import MOMENT, each_once, line
from redflag_core.errors import MalformedError
from redflag_core.scanning.cvss import base_score, severity_of_score
from redflag_core.scanning.model import CVE, MAX_CVES, MAX_NAME, Package, Severity

MAX_ID: Final = 64
"""Longest id of an advisory or name of its source: ``SUSE-SU-2024:0123-1`` has 19."""

MAX_FIXES: Final = 2_000
"""Most packages that one advisory fixes: those of a kernel have about 300 binary packages for each release."""

_CVE_ID: Final = re.compile(CVE, re.IGNORECASE | re.ASCII)

_WORDS: Final = MappingProxyType(
    {
        "negligible": Severity.LOW,
        "unimportant": Severity.LOW,
        "low": Severity.LOW,
        "moderate": Severity.MODERATE,
        "medium": Severity.MODERATE,
        "important": Severity.IMPORTANT,
        "high": Severity.IMPORTANT,
        "critical": Severity.CRITICAL,
    }
)
"""What vendors say. Not in it: None, Unspecified, Untriaged, and every word that nobody has defined."""


def is_cve(text: str) -> bool:
    """Whether *text* is the id of a CVE, in its one spelling: ``CVE-2024-3094``."""
    return re.fullmatch(CVE, text) is not None


def parse_cve(text: str) -> str:
    """
    The one spelling of a CVE's id.

    Args:
        text: Untrusted, in any case.

    Raises:
        MalformedError: It is none.
    """
    if not _CVE_ID.fullmatch(text):
        raise MalformedError("not the id of a CVE: it is CVE, a year, and four digits or more")
    return text.upper()


def cve_order(cve: str) -> tuple[int, int]:
    """What sorts CVEs as people expect: by year, then by number. *cve* is one that `is_cve`."""
    _, year, number = cve.split("-")
    return int(year), int(number)


def severity_of_word(word: str | None) -> Severity:
    """
    What a vendor's word means here. Unknown for a word that is not known, and for none.

    Args:
        word: As the vendor writes it, in any case. Untrusted.
    """
    return _WORDS.get((word or "").strip().casefold(), Severity.UNKNOWN)


def severity_of_vector(vector: str) -> Severity:
    """
    How severe a vector of CVSS 3 is, by its base score.

    Args:
        vector: Untrusted. One of version 4 is refused: give its score to `severity_of_score`.

    Raises:
        MalformedError: It is none of version 3.
    """
    return severity_of_score(base_score(vector))


def worst(severities: Iterable[Severity]) -> Severity:
    """The worst of several ratings; unknown when there is none."""
    return max(severities, key=lambda severity: severity.rank, default=Severity.UNKNOWN)


class VersionOrder(Protocol):
    """Port: how one package manager orders its versions."""

    def compare(self, one: str, other: str) -> int:
        """
        Which version is newer.

        Args:
            one: A version, as this manager writes it. Untrusted.
            other: Another one.

        Returns:
            Below 0 when *one* is older, 0 when they are equal in its order, above 0 when it is newer.

        Raises:
            ScanError: The manager does not take one of them for a version.
        """
        ...


@attrs.frozen(kw_only=True)
class Fix:
    """
    In which version one package is no longer vulnerable.

    Attributes:
        manager: Package manager, as in reports.
        name: Name of the package, as the manager spells it.
        source: Whether *name* and *version* are of the source package, as Debian's and Ubuntu's advisories say.
        release: Release of the distribution that this is about, such as ``bookworm``; None for all.
        version: First version without the vulnerability; None while there is none.
    """

    manager: str = attrs.field(validator=line(MAX_ID))
    name: str = attrs.field(validator=line(MAX_NAME))
    source: bool = False
    release: str | None = attrs.field(default=None, validator=validators.optional(line(MAX_ID)))
    version: str | None = attrs.field(default=None, validator=validators.optional(line(MAX_NAME)))


_CVES: Final[Any] = validators.and_(
    validators.max_len(MAX_CVES),
    validators.deep_iterable(validators.matches_re(CVE)),
    each_once("a CVE", lambda cve: cve),
)
_FIXES: Final[Any] = validators.and_(
    validators.max_len(MAX_FIXES),
    each_once("a package of a release", lambda fix: (fix.manager, fix.name, fix.source, fix.release)),
)


@attrs.frozen(kw_only=True)
class Advisory:
    """
    What one source says about one or several vulnerabilities.

    Attributes:
        id: As its source numbers it: ``DSA-5648-1``, ``USN-6663-1``, ``RHSA-2024:1234``.
        source: Who says so, such as ``debian``.
        cves: The vulnerabilities, each once. An advisory may have none (yet).
        severity: As its source rates it; unknown when it does not.
        published: When it was first published, unix seconds; None when not known.
        fixes: The packages that it is about, each once for a release.
    """

    id: str = attrs.field(validator=line(MAX_ID))
    source: str = attrs.field(validator=line(MAX_ID))
    cves: tuple[str, ...] = attrs.field(default=(), validator=_CVES)
    severity: Severity = Severity.UNKNOWN
    published: int | None = attrs.field(default=None, validator=validators.optional(MOMENT))
    fixes: tuple[Fix, ...] = attrs.field(default=(), validator=_FIXES)


class Standing(StrEnum):
    """What an advisory means for an installed package."""

    NOT_CONCERNED = "not_concerned"
    AFFECTED = "affected"
    FIXED = "fixed"


@attrs.frozen
class Matcher:
    """
    Matches advisories with the packages of one machine and manager.

    Args:
        manager: Package manager, as in reports.
        release: Release of the machine's distribution, None when it is not known: then only fixes for all count.
        order: That manager's order of versions.
    """

    manager: str
    release: str | None
    order: VersionOrder

    def standing(self, advisory: Advisory, package: Package) -> Standing:
        """
        Whether a package has what an advisory warns of.

        Args:
            advisory: Untrusted, but of this shape.
            package: As a scanner reported it.

        Returns:
            Affected when one of its fixes is newer than what is installed, or not there yet; fixed when all that
            speak of it are installed.

        Raises:
            ScanError: A version is none.
        """
        fixes = self._fixes(advisory, package)
        if not fixes:
            return Standing.NOT_CONCERNED
        missing = any(self._lacks(_installed(fix, package), fix) for fix in fixes)
        return Standing.AFFECTED if missing else Standing.FIXED

    def is_closed_by_update(self, advisory: Advisory, package: Package) -> bool:
        """Whether a package is affected, and no longer is once its available version is installed."""
        return self.standing(advisory, package) is Standing.AFFECTED and not any(
            self._lacks(_available(fix, package), fix) for fix in self._fixes(advisory, package)
        )

    def rate(self, package: Package, advisories: Iterable[Advisory]) -> Package:
        """
        The package with what its update closes, and how severe it is to lack it.

        Args:
            package: As a scanner reported it. What it says itself is kept: CVEs are added, and the worst severity
                holds.
            advisories: Those that may be about it.

        Raises:
            ScanError: A version is none.
        """
        closed = [advisory for advisory in advisories if self.is_closed_by_update(advisory, package)]
        cves = {*package.cves, *(cve for advisory in closed for cve in advisory.cves)}
        return attrs.evolve(
            package,
            cves=tuple(sorted(cves, key=cve_order, reverse=True)[:MAX_CVES]),
            severity=worst((package.severity, *(advisory.severity for advisory in closed))),
        )

    def _fixes(self, advisory: Advisory, package: Package) -> list[Fix]:
        """Those about the package; where some are for this release, those for all do not count."""
        fixes = [fix for fix in advisory.fixes if self._concerns(fix, package)]
        return [fix for fix in fixes if fix.release is not None] or fixes

    def _concerns(self, fix: Fix, package: Package) -> bool:
        name = package.source if fix.source else package.name
        return (
            (fix.manager, fix.name) == (self.manager, name)
            and fix.release in (None, self.release)
            and _installed(fix, package) is not None
        )

    def _lacks(self, version: str | None, fix: Fix) -> bool:
        return version is None or fix.version is None or self.order.compare(version, fix.version) < 0


def _installed(fix: Fix, package: Package) -> str | None:
    return package.source_version if fix.source else package.installed


def _available(fix: Fix, package: Package) -> str | None:
    """The version that an update brings, of what *fix* counts in."""
    if fix.source and package.source_version != package.installed:
        # The source's version is only told of what is installed, and this binary does not follow it.
        return None
    return package.available
