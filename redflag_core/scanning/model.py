"""
What a scanner says: packages, each in an honest state, and the report that carries them.

These classes are the wire form too. Every bound is checked when a value is made, so a report that was parsed is a
report that can be stored. A scanner only *observes*; what people decided about a package is not in here.
"""

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Final, Protocol, TypeAlias

import attrs
from attrs import validators

from redflag_core.encoding import MAX_INTEGER, JsonValue, dump_json
from redflag_core.errors import CircuitOpenError, RedFlagError

MAX_NAME: Final = 256
"""Longest name or version. The longest name in Debian has 80 characters, in winget about 120."""

MAX_ARCH: Final = 32
"""Longest architecture: `kfreebsd-amd64` and `linux/arm64/v8` fit twice."""

MAX_TEXT: Final = 1_000
"""Longest reason, origin or warning: a paragraph, not a log."""

MAX_ERROR: Final = 2_000
"""Longest error: the last lines of a package manager."""

MAX_CVES: Final = 500
"""Most CVEs of one package. A kernel update has had about 300."""

MAX_PACKAGES: Final = 20_000
"""Most packages in a report: three times a full desktop with its development files."""

MAX_WARNINGS: Final = 100
"""Most warnings in a report: what nobody would read to the end."""

MAX_FACTS: Final = 64
"""Most facts in a report: a scanner has about ten."""

MAX_FACTS_BYTES: Final = 32 * 1024
"""Largest JSON text of all facts together: they are shown on a page and kept with every report."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MISLEADING = re.compile("[\x00-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060\u2066-\u2069\ud800-\udfff\ufeff]")
"""Besides control characters those that turn text around or cannot be seen: a name must read as what it is."""

CVE: Final = "CVE-[0-9]{4}-[0-9]{4,19}"
"""Form of the id of a CVE (CVE record format, ``cveId``)."""

_SCANNER = re.compile("[a-z][a-z0-9_]{0,31}")


class PackageState(StrEnum):
    """Where a package stands. A scanner says only the first five; the rest is decided or done elsewhere."""

    CURRENT = "current"
    AVAILABLE = "available"
    HELD = "held"
    KEPT_BACK = "kept_back"
    PHASED = "phased"
    APPROVED = "approved"
    DEFERRED = "deferred"
    EXCLUDED = "excluded"
    PLANNING = "planning"
    NEEDS_CONFIRMATION = "needs_confirmation"
    INSTALLING = "installing"
    REBOOT_PENDING = "reboot_pending"
    INSTALLED = "installed"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    NOT_APPLICABLE = "not_applicable"
    UNKNOWN = "unknown"


PENDING_STATES: Final = frozenset(
    {PackageState.AVAILABLE, PackageState.HELD, PackageState.KEPT_BACK, PackageState.PHASED}
)
"""What a scanner says of a package that something newer may exist for."""

SCANNED_STATES: Final = PENDING_STATES | {PackageState.CURRENT}
"""The only states a report may hold: an agent cannot claim that somebody approved something."""


class Severity(StrEnum):
    """How bad it is to lack an update, least first. Compare by `rank`: the values are words."""

    UNKNOWN = "unknown"
    LOW = "low"
    MODERATE = "moderate"
    IMPORTANT = "important"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for unknown up to 4 for critical."""
        return list(Severity).index(self)


class ScanStatus(StrEnum):
    """Whether a scan could tell what the machine has. ``open`` is a failed one that was not even tried."""

    OK = "ok"
    FAILED = "failed"
    OPEN = "open"


def clean_text(text: str, *, max_len: int) -> str:
    """
    Make *text* from a package manager fit for storage and display.

    Args:
        text: Untrusted text, of any length.
        max_len: Longest result, in characters.

    Returns:
        The text with each control character, line separator, lone surrogate and character that would turn text
        around or hide in it as U+FFFD, cut with an ellipsis.
    """
    clean = _MISLEADING.sub("\ufffd", text[: max_len + 1])
    return clean if len(clean) <= max_len else clean[: max_len - 1] + "…"


Attribute: TypeAlias = "attrs.Attribute[Any]"


def _no_control(_instance: object, attribute: Attribute, value: str) -> None:
    if _CONTROL.search(value):
        raise ValueError(f"{attribute.name} holds a control character")


def _scanned(_instance: object, attribute: Attribute, value: PackageState) -> None:
    if value not in SCANNED_STATES:
        raise ValueError(f"{attribute.name} is not one that a scanner can see")


def _line(max_len: int) -> Any:
    """Validate one line that is not empty."""
    return validators.and_(validators.min_len(1), validators.max_len(max_len), _no_control)


def _count() -> Any:
    """Validate a number that is not negative and exact in every JSON reader."""
    return validators.and_(validators.ge(0), validators.le(MAX_INTEGER))


@attrs.frozen(order=True)
class PackageKey:
    """
    Which package of a machine's manager is meant.

    Attributes:
        name: As the manager spells it.
        arch: Architecture; ``any`` where the manager has none.
    """

    name: str = attrs.field(validator=_line(MAX_NAME))
    arch: str = attrs.field(validator=_line(MAX_ARCH))


@attrs.frozen(kw_only=True)
class Package:
    """
    One package as a scanner sees it.

    Attributes:
        name: As the manager spells it.
        arch: Architecture of what is installed; ``any`` where the manager has none.
        installed: Installed version, None when nothing of it is installed.
        available: Version that the manager would install, None when that is the installed one.
        state: One of `SCANNED_STATES`.
        severity: Of lacking *available*.
        reason: Why it is held, kept back, phased or damaged, for people.
        security: Whether a version after the installed one, up to *available*, came from a security repository.
        origin: Repository of *available*, as the manager names it.
        source: Source package, when the manager knows one: what security trackers speak of.
        source_version: Version of the source package that is installed.
        download_size: Bytes to fetch for *available*, when known.
        automatic: Whether it is there only because another package needs it.
        cves: Known vulnerabilities that *available* closes.
    """

    name: str = attrs.field(validator=_line(MAX_NAME))
    arch: str = attrs.field(validator=_line(MAX_ARCH))
    installed: str | None = attrs.field(default=None, validator=validators.optional(_line(MAX_NAME)))
    available: str | None = attrs.field(default=None, validator=validators.optional(_line(MAX_NAME)))
    state: PackageState = attrs.field(validator=_scanned)
    severity: Severity = Severity.UNKNOWN
    reason: str | None = attrs.field(default=None, validator=validators.optional(_line(MAX_TEXT)))
    security: bool = False
    origin: str | None = attrs.field(default=None, validator=validators.optional(_line(MAX_TEXT)))
    source: str | None = attrs.field(default=None, validator=validators.optional(_line(MAX_NAME)))
    source_version: str | None = attrs.field(default=None, validator=validators.optional(_line(MAX_NAME)))
    download_size: int | None = attrs.field(default=None, validator=validators.optional(_count()))
    automatic: bool = False
    cves: tuple[str, ...] = attrs.field(
        default=(),
        validator=validators.deep_iterable(validators.matches_re(CVE), validators.max_len(MAX_CVES)),
    )

    @property
    def key(self) -> PackageKey:
        """What identifies it within its machine and manager."""
        return PackageKey(self.name, self.arch)


def index_packages(packages: Iterable[Package]) -> dict[PackageKey, Package]:
    """
    Packages by key.

    Raises:
        ValueError: Two packages have the same key.
    """
    by_key: dict[PackageKey, Package] = {}
    for package in packages:
        if package.key in by_key:
            raise ValueError(f"{package.name} ({package.arch}) is listed twice")
        by_key[package.key] = package
    return by_key


def _unique(_instance: object, _attribute: Attribute, value: tuple[Package, ...]) -> None:
    index_packages(value)


def _small(_instance: object, attribute: Attribute, value: dict[str, JsonValue]) -> None:
    if len(dump_json(value)) > MAX_FACTS_BYTES:
        raise ValueError(f"{attribute.name} take more than {MAX_FACTS_BYTES} bytes")


@attrs.frozen(kw_only=True)
class ScanReport:
    """
    The outcome of one scan: the full inventory, or why there is none.

    A failed scan has an error and no package; an empty list of a scan that went well means "nothing is installed".
    The two can never be mistaken for each other.

    Attributes:
        scanner: Name of the scanner.
        manager: Package manager it speaks for.
        taken_at: When it started, unix seconds.
        duration_ms: How long it took, milliseconds.
        status: Whether it succeeded; ``open`` when it was not run because its circuit is open.
        error: Why it failed, for people; None exactly when it succeeded.
        warnings: What it could not do or should be looked at, for people.
        packages: Every installed package, each key once.
        facts: What else it saw. Not part of the inventory hash.
    """

    scanner: str = attrs.field(validator=validators.matches_re(_SCANNER))
    manager: str = attrs.field(validator=validators.matches_re(_SCANNER))
    taken_at: int = attrs.field(validator=_count())
    duration_ms: int = attrs.field(validator=_count())
    status: ScanStatus
    error: str | None = attrs.field(default=None, validator=validators.optional(_line(MAX_ERROR)))
    warnings: tuple[str, ...] = attrs.field(
        default=(), validator=validators.deep_iterable(_line(MAX_TEXT), validators.max_len(MAX_WARNINGS))
    )
    packages: tuple[Package, ...] = attrs.field(
        default=(), validator=validators.and_(validators.max_len(MAX_PACKAGES), _unique)
    )
    facts: dict[str, JsonValue] = attrs.field(
        factory=dict, validator=validators.and_(validators.max_len(MAX_FACTS), _small)
    )

    def __attrs_post_init__(self) -> None:
        failed = self.status is not ScanStatus.OK
        if failed != (self.error is not None):
            raise ValueError("error is given exactly when the scan failed")
        if failed and self.packages:
            raise ValueError("a failed scan knows no packages")


def failed_report(error: Exception, *, scanner: str, manager: str, taken_at: int, duration_ms: int) -> ScanReport:
    """
    Report of a scan that ended with *error*, so that its packages become `unknown`.

    A `CircuitOpenError` gives the status ``open``, everything else ``failed``.

    Args:
        error: What ended it. Only a `RedFlagError` speaks for itself; of anything else the type is told, since
            its text was not written for people and may hold anything.
        scanner: Name of the scanner.
        manager: Package manager it speaks for.
        taken_at: When it started, unix seconds.
        duration_ms: How long it took, milliseconds.
    """
    text = error.message if isinstance(error, RedFlagError) else ""
    return ScanReport(
        scanner=scanner,
        manager=manager,
        taken_at=taken_at,
        duration_ms=duration_ms,
        status=ScanStatus.OPEN if isinstance(error, CircuitOpenError) else ScanStatus.FAILED,
        error=clean_text(text or f"unexpected {type(error).__name__}", max_len=MAX_ERROR),
    )


class Scanner(Protocol):
    """Finds out what one package manager has and lacks. Changes nothing on the machine."""

    @property
    def name(self) -> str:
        """Name of the scanner, unique on the machine."""
        ...

    @property
    def manager(self) -> str:
        """Package manager it speaks for."""
        ...

    async def scan(self) -> ScanReport:
        """
        Look now.

        Returns:
            A report with status ok.

        Raises:
            ScanError: It cannot tell what the machine has. Turn it into a report with `failed_report`.
        """
        ...
