"""
What apt and dpkg print, as values.

Pure: texts in, values out. Every text is untrusted: a field may hold anything that somebody wrote into a package
or a repository. A line that cannot be understood is never skipped where skipping it would hide an update, and only
a newline ends a line (`str.splitlines` would let a repository's label begin one).

The formats are those of apt 2.0 and newer in the C locale. Sources: apt-get(8), apt-cache(8), dpkg-query(1). The
form of the ``Inst`` lines is documented only by ``pkgSimulate`` in apt's source.
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from typing import Final

import attrs

from redflag_core.errors import ScanError

FIELD: Final = "\x1f"
RECORD: Final = "\x1e"
"""Separators that dpkg and apt are asked to print: no sane field holds them, as it may a space or a bar."""

_INVENTORY_FIELDS: Final = (
    "Package",
    "Architecture",
    "Version",
    "db:Status-Want",
    "db:Status-Status",
    "source:Package",
    "source:Version",
)
INVENTORY_FORMAT: Final = FIELD.join(f"${{{field}}}" for field in _INVENTORY_FIELDS) + RECORD
TARGETS_FORMAT: Final = FIELD.join(
    f"$({field})" for field in ("SITE", "RELEASE", "LABEL", "VERSION", "SUITE", "CODENAME")
)
TRUST_FORMAT: Final = FIELD.join(("$(DESCRIPTION)", "$(TRUSTED)"))

DAMAGED: Final = frozenset({"half-installed", "unpacked", "half-configured"})
"""States of dpkg in which a package is on the machine and does not work."""

_INSTALLED: Final = DAMAGED | {"installed", "triggers-awaited", "triggers-pending"}
"""The rest is ``not-installed`` and ``config-files``: at most some settings are left of it."""

_INST = re.compile(r"Inst (\S+)(?: \[([^\]]+)\])? \((\S+) (.*)\[([^\]\s]+)\]\)")
_REMOVAL = re.compile(r"(?:Remv|Purg) (\S+)")
_VERSION = re.compile(r" (\*\*\*|   ) (\S+) (-?[0-9]{1,9})(?: \(phased ([0-9]{1,3})%\))?")
_SOURCE = re.compile(r" {6,}-?[0-9]+ (\S.*)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+.-]{0,199}(?::[A-Za-z0-9-]{1,32})?")
_ARCH = re.compile("[A-Za-z0-9-]{1,32}")
_SIZE = re.compile("[0-9]{1,15}")


@attrs.frozen
class Installed:
    """One package in dpkg's database that is on the machine, whole or damaged."""

    name: str
    arch: str
    version: str
    want: str
    status: str
    source: str
    source_version: str

    def label(self, native: str) -> str:
        """How apt calls it on a machine of architecture *native*: others than that carry their architecture."""
        return self.name if self.arch in (native, "all") else f"{self.name}:{self.arch}"


def parse_inventory(text: str) -> tuple[dict[tuple[str, str], Installed], int]:
    """
    Read the output of ``dpkg-query -W -f INVENTORY_FORMAT``.

    Returns:
        What is installed, by name and architecture, and the number of records that mean nothing.
    """
    installed: dict[tuple[str, str], Installed] = {}
    unreadable = 0
    for record in text.split(RECORD)[:-1]:
        fields = record.split(FIELD)
        if len(fields) != len(_INVENTORY_FIELDS):
            unreadable += 1
            continue
        package = Installed(*fields)
        if package.status not in _INSTALLED:
            continue
        if is_name(package.name) and _ARCH.fullmatch(package.arch) and package.version:
            installed[package.name, package.arch] = package
        else:
            unreadable += 1
    return installed, unreadable


def is_name(text: str) -> bool:
    """Whether *text* is the name of a package and nothing that apt could take for an option or a pattern."""
    return _NAME.fullmatch(text) is not None


@attrs.frozen
class Planned:
    """One ``Inst`` line: what apt would bring. ``installed`` is None for a package that is not there yet."""

    label: str
    installed: str | None
    version: str
    origin: str
    arch: str


@attrs.frozen
class Simulation:
    """What ``apt-get -s`` would do: what it would bring by label, and the labels of what it would remove."""

    upgrades: Mapping[str, Planned]
    new: Mapping[str, Planned]
    removals: tuple[str, ...]

    @property
    def additions(self) -> tuple[str, ...]:
        """Labels of the new packages."""
        return tuple(self.new)


def parse_simulation(text: str) -> Simulation:
    """
    Read the output of ``apt-get -s``.

    Raises:
        ScanError: An ``Inst`` line has an unknown form.
    """
    planned = {plan.label: plan for plan in map(_planned, _starting(text, "Inst "))}
    removed = [match[1] for line in text.split("\n") if (match := _REMOVAL.match(line))]
    return Simulation(
        upgrades={label: plan for label, plan in planned.items() if plan.installed is not None},
        new={label: plan for label, plan in planned.items() if plan.installed is None},
        removals=tuple(label for label in dict.fromkeys(removed) if label not in planned),
    )


def _planned(line: str) -> Planned:
    match = _INST.match(line)
    if match is None:
        raise ScanError("apt-get prints its plan in a form that this release does not know; please report it")
    return Planned(match[1], match[2], match[3], match[4].strip(), match[5])


def _starting(text: str, start: str) -> Iterator[str]:
    return (line for line in text.split("\n") if line.startswith(start))


@attrs.frozen
class Offer:
    """
    A version that some repository has.

    Attributes:
        version: Which.
        priority: How much apt's preferences want it; negative for never.
        phased: Share of all machines that get it now, percent; None for all.
        sources: The repositories as apt prints them.
    """

    version: str
    priority: int
    phased: int | None
    sources: tuple[str, ...]


@attrs.frozen
class VersionTable:
    """
    What ``apt-cache policy`` says of a package, newest first.

    Attributes:
        candidate: The version that apt would choose.
        newer: What is newer than the installed version.
        rest: The installed version and what is older.
    """

    candidate: str
    newer: tuple[Offer, ...]
    rest: tuple[Offer, ...]

    def find(self, version: str) -> Offer | None:
        """The offer of exactly this version."""
        return next((offer for offer in (*self.newer, *self.rest) if offer.version == version), None)

    def best(self) -> Offer | None:
        """
        The newest version that apt would choose, or would choose once its phasing includes this machine.

        Newer releases of apt take a phased version out of the choice, so the candidate alone does not tell.
        """
        chosen = next((offer for offer in self.newer if offer.version == self.candidate), None)
        return chosen or next((offer for offer in self.newer if offer.phased is not None), None)

    def up_to(self, version: str) -> tuple[Offer, ...]:
        """The offers that are newer than the installed version and not newer than *version*."""
        versions = [offer.version for offer in self.newer]
        return self.newer[versions.index(version) :] if version in versions else ()


def parse_policy(text: str) -> dict[str, VersionTable]:
    """Read the output of ``apt-cache policy``: version tables by label. The newest version comes first."""
    tables: dict[str, VersionTable] = {}
    for block in re.split(r"^(?=\S)", text, flags=re.MULTILINE):
        label, _, rest = block.partition("\n")
        if label.endswith(":"):
            tables[label[:-1]] = _version_table(rest.split("\n"))
    return tables


def _version_table(lines: Iterable[str]) -> VersionTable:
    candidate = ""
    newer: list[Offer] = []
    rest: list[Offer] = []
    offers = newer
    for line in lines:
        if line.startswith("  Candidate: "):
            candidate = line.partition(": ")[2]
        elif match := _VERSION.fullmatch(line):
            offers = rest if match[1] == "***" else offers
            offers.append(Offer(match[2], int(match[3]), int(match[4]) if match[4] else None, ()))
        elif offers and (match := _SOURCE.fullmatch(line)):
            offers[-1] = attrs.evolve(offers[-1], sources=(*offers[-1].sources, match[1]))
    return VersionTable(candidate, tuple(newer), tuple(rest))


def parse_sizes(text: str, field: str = "Size") -> dict[tuple[str, str, str], int]:
    """
    Read the output of ``apt-cache show``: sizes by name, version and architecture.

    Args:
        text: The output.
        field: ``Size`` for bytes to download, ``Installed-Size`` for KiB on the disk.
    """
    sizes: dict[tuple[str, str, str], int] = {}
    for stanza in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.split("\n") if ": " in line and line[0] != " ")
        size = fields.get(field, "")
        if _SIZE.fullmatch(size):
            key = (fields.get("Package", ""), fields.get("Version", ""), fields.get("Architecture", ""))
            sizes[key] = int(size)
    return sizes


@attrs.frozen
class Repositories:
    """
    Package lists of the machine's sources.

    Attributes:
        origins: Origin text by address and release, of each source whose list is here.
    """

    origins: Mapping[tuple[str, str], str]

    def origin(self, source: str) -> str:
        """The origin of a line of a version table, in the form that ``Inst`` lines have."""
        site, _, rest = source.partition(" ")
        place = rest.partition(" ")[0]
        # What follows the release is the component, which may hold slashes, as the release may.
        while place:
            if (site, place) in self.origins:
                return self.origins[site, place]
            place = place.rpartition("/")[0]
        return source


def parse_targets(text: str) -> list[tuple[str, str, str]]:
    """Read the output of ``apt-get indextargets --format TARGETS_FORMAT``: address, release and origin text."""
    targets = []
    for line in text.split("\n"):
        fields = ["" if field.startswith("$(") else field for field in line.split(FIELD)]
        if len(fields) == TARGETS_FORMAT.count(FIELD) + 1:
            site, release, label, version, suite, codename = fields
            place = "/".join(filter(None, (version, suite or codename)))
            targets.append((site, release, ":".join(filter(None, (label or site, place)))))
    return targets


def parse_trust(text: str) -> dict[str, frozenset[str]]:
    """Read the output of ``apt-get indextargets --format TRUST_FORMAT``: what apt says of each list's trust."""
    trust: dict[str, frozenset[str]] = {}
    for line in text.split("\n"):
        name, separator, trusted = line.rpartition(FIELD)
        if separator:
            trust[name] = trust.get(name, frozenset()) | {trusted}
    return trust


def is_security(origin: str) -> bool:
    """
    Whether one of the repositories in an origin text publishes security updates.

    Debian's has the label ``Debian-Security``; Ubuntu's, the ESM ones and Debian's since 11 have a suite that ends
    in ``-security``. Decides how an update is shown, never whether it is trusted.
    """
    return any(part.startswith("Debian-Security:") or part.endswith("-security") for part in origin.split(", "))


def parse_shell(text: str) -> dict[str, str]:
    """
    Read the output of ``apt-config shell``: values by name.

    Raises:
        ScanError: It is not what a shell would read.
    """
    assignments = (line.partition("=") for line in text.split("\n") if line)
    try:
        return {name: "".join(shlex.split(value)) for name, _, value in assignments}
    except ValueError:
        raise ScanError("apt-config prints its values in a form that this release does not know") from None


def unmet(text: str) -> list[str]:
    """What ``apt-get`` says of dependencies that cannot be met, one line each: which package needs what."""
    _, _, rest = text.partition("The following packages have unmet dependencies:\n")
    lines = takewhile(lambda line: line.startswith(" "), rest.split("\n"))
    return [" ".join(line.split()) for line in lines]


def messages(text: str, severity: str) -> list[str]:
    """What apt complains about: each line of *severity* (``E`` or ``W``) once, without the letter."""
    return list(dict.fromkeys(line[2:].strip() for line in _starting(text, f"{severity}:")))
