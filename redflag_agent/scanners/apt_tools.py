"""
apt and dpkg of one root, asked through their command lines. Nothing here changes a package or takes a lock.

The scanner and the installer ask the same questions of the same root, so they share this.

``apt-get -s`` is a simulation whatever its other arguments are; each call of it here has the ``-s`` first. Only
`AptTools.update` writes: it fetches package lists, and takes the lock of the lists for that.
"""

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import attrs

from redflag_agent import process
from redflag_agent.scanners.apt_output import (
    INVENTORY_FORMAT,
    TARGETS_FORMAT,
    TRUST_FORMAT,
    Simulation,
    VersionTable,
    is_name,
    messages,
    parse_policy,
    parse_shell,
    parse_simulation,
    parse_sizes,
    parse_targets,
    parse_trust,
    unmet,
)
from redflag_core.errors import ScanError
from redflag_core.scanning import clean_text

_VERB = re.compile("[a-z][a-z-]*")

QUERY_TIMEOUT: Final = 120.0
"""Seconds for one query. The slowest takes 3 seconds on a small machine without apt's cache."""

ATTEMPTS: Final = 3
"""How often to read when packages change meanwhile."""

MAX_COMPLAINT: Final = 500
"""Longest text of a failed tool that is passed on: some lines, for people."""

_CONFIGURATION: Final = {
    "NATIVE": "APT::Architecture",
    "ROOT": "Dir/d",
    "LISTS": "Dir::State::lists/d",
    "STATUS": "Dir::State::status/f",
    "PKGCACHE": "Dir::Cache::pkgcache/f",
    "ARCHIVES": "Dir::Cache::archives/d",
}
_OPTIONAL: Final = {"PKGCACHE", "ARCHIVES"}
_YES, _NO = frozenset({"yes"}), frozenset({"no"})


def environment(config: Path | None, path_prefix: Path | None) -> dict[str, str]:
    """
    What the tools of one root see beside `process.ENVIRONMENT`.

    Args:
        config: Configuration file that apt reads first (``APT_CONFIG``): another root.
        path_prefix: Directory whose tools win over the system's.
    """
    path = process.DEFAULT_PATH if path_prefix is None else f"{path_prefix}:{process.DEFAULT_PATH}"
    return {"PATH": path} if config is None else {"PATH": path, "APT_CONFIG": str(config)}


def find_tool(name: str, env: Mapping[str, str]) -> str | None:
    """The absolute path of a tool, None when there is none."""
    return shutil.which(name, path=env["PATH"])


@attrs.frozen(kw_only=True)
class AptTools:
    """
    The tools of one apt root. Make one with `open_tools`.

    Attributes:
        env: Environment of the tools.
        timeout: Seconds for each query.
        native: The machine's architecture.
        root: Where apt's files are below.
        lists: Directory of the package lists.
        admindir: Directory of dpkg's database.
        archives: Directory of downloaded packages, None where apt keeps none.
        cache: An empty directory of our own, which lives as long as this.
        options: For each call that opens apt's cache.
    """

    env: Mapping[str, str]
    timeout: float
    native: str
    root: Path
    lists: Path
    admindir: Path
    archives: Path | None
    cache: Path
    options: tuple[str, ...]

    async def inventory(self) -> str:
        """All that dpkg knows, for `parse_inventory`."""
        return await query(
            ["dpkg-query", f"--admindir={self.admindir}", "-W", "-f", INVENTORY_FORMAT], self.env, self.timeout
        )

    async def simulate(self, *arguments: str) -> tuple[Simulation, list[str]]:
        """What ``apt-get`` with these arguments would do, and its warnings."""
        # With a configured "yes" apt fails on a plan that would need more than a yes.
        argv = ["apt-get", "-s", "-q", "-oAPT::Get::Assume-Yes=false", *self.options, *arguments]
        done = await run_checked(argv, self.env, self.timeout)
        return parse_simulation(_text(done.stdout)), messages(_text(done.stderr), "W")

    async def simulate_alone(self, label: str, version: str) -> Simulation:
        """What upgrading only this package would do, with what it strictly needs."""
        simulation, _ = await self.simulate(
            "--no-install-recommends", "-oAPT::Get::AutomaticRemove=false", "install", f"{label}={version}"
        )
        return simulation

    async def version_tables(self, labels: Iterable[str]) -> dict[str, VersionTable]:
        """Versions that the repositories have, by label."""
        return parse_policy(await self._cached("apt-cache", "policy", *labels))

    async def automatic(self) -> frozenset[str]:
        """Labels of packages that are there only because others need them."""
        return frozenset((await self._cached("apt-mark", "showauto")).split())

    async def sizes(self, versions: Mapping[str, str]) -> dict[tuple[str, str, str], int]:
        """Download sizes of versions by label, those that are known."""
        return parse_sizes(await self.show(versions.items()))

    async def show(self, versions: Iterable[tuple[str, str]]) -> str:
        """What is known of versions of labels, for `parse_sizes`."""
        wanted = [f"{label}={version}" for label, version in versions if is_name(label)]
        if not wanted:
            return ""
        # Fails when one of many is not found, and prints the others all the same: sizes are a courtesy.
        done = await process.run(["apt-cache", "show", *self.options, *wanted], env=self.env, timeout=self.timeout)
        return _text(done.stdout)

    async def is_older(self, version: str, than: str) -> bool:
        """Whether *version* comes before *than* in the order of dpkg."""
        argv = ["dpkg", "--compare-versions", version, "lt", than]
        done = await process.run(argv, env=self.env, timeout=self.timeout)
        if done.returncode not in (0, 1):
            raise ScanError(f"`dpkg --compare-versions` failed: {_complaint(done)}")
        return done.returncode == 0

    async def dpkg_options(self) -> list[str]:
        """The options that apt is configured to give to dpkg."""
        dump = ["apt-config", "dump", "--no-empty", "--format", "%v%n", "DPkg::Options"]
        return [line for line in (await query(dump, self.env, self.timeout)).split("\n") if line]

    async def authenticated(self) -> frozenset[str]:
        """
        Package lists, as `version_tables` names them, that were signed and whose signature apt has checked.

        apt trusts a list for two reasons: it keeps a signed release file only when the signature was good, or its
        configuration says ``trusted``. What it still trusts when it sees no signature is not signed.
        """
        signed = await self._trusted(self.lists)
        unsigned = await self._trusted(_without_signatures(self.lists, self.cache / "unsigned"))
        return frozenset(name for name in signed if (signed[name], unsigned.get(name)) == (_YES, _NO))

    async def _trusted(self, lists: Path) -> dict[str, frozenset[str]]:
        option = f"-oDir::State::lists={lists}/"
        arguments = ["apt-get", "indextargets", option, "--format", TRUST_FORMAT, "Created-By: Packages"]
        return parse_trust(await query(arguments, self.env, self.timeout))

    async def _cached(self, program: str, verb: str, *arguments: str) -> str:
        return await query([program, verb, *self.options, *arguments], self.env, self.timeout)

    async def targets(self, *, present: bool) -> list[tuple[str, str, str]]:
        """Package lists (address, release, origin text) that are here, or that the sources name."""
        scope = () if present else ("--no-release-info",)
        arguments = ["apt-get", "indextargets", *scope, "--format", TARGETS_FORMAT, "Created-By: Packages"]
        return parse_targets(await query(arguments, self.env, self.timeout))

    async def version(self) -> str | None:
        """Version of apt."""
        words = (await query(["apt-get", "--version"], self.env, self.timeout)).split()
        return words[1] if len(words) > 1 else None

    def may_update(self) -> bool:
        """Whether this process may fetch package lists."""
        directory = next(path for path in (self.lists, *self.lists.parents) if path.exists())
        return os.access(directory, os.W_OK)

    async def update(self, timeout: float) -> str | None:  # noqa: ASYNC109  (passed on to the child)
        """
        Fetch the package lists. What is on the machine stays as it was when that fails.

        Returns:
            None, or why not all lists could be fetched.
        """
        # By itself apt-get ends with success when a list could not be fetched and an old one is there.
        arguments = ["apt-get", "-qq", "-oAPT::Update::Error-Mode=any", "update"]
        try:
            done = await process.run(arguments, env=self.env, timeout=timeout)
        except process.ProcessError as error:
            return error.message
        errors = _text(done.stderr)
        failed = [
            line for line in messages(errors, "W") if line.startswith(("Failed to fetch", "Some index files"))
        ]
        return _complaint(done) if done.returncode or failed else None

    def refreshed_at(self) -> datetime | None:
        """When the package lists were fetched last, as far as the disk tells; None when there are none."""
        if not any(self.lists.glob("*_Packages*")):
            return None
        # The lists carry the server's times, and `partial` changes with failed attempts too. The stamp is written
        # by the system's own timer; the directory changes when a list did.
        times = []
        for path in (self.lists, self.lists.parent / "periodic" / "update-success-stamp"):
            with suppress(OSError):
                times.append(path.stat().st_mtime)
        return datetime.fromtimestamp(max(times), UTC)

    def has_unfinished_work(self) -> bool:
        """Whether dpkg's journal is not empty: it is at work, or was interrupted."""
        with suppress(OSError):
            return any(path.name.isdigit() for path in (self.admindir / "updates").iterdir())
        return False

    def reboot_required_by(self) -> list[str] | None:
        """Packages that asked for a reboot, None when there is no need for one."""
        flag = self.root / "var/run/reboot-required"
        if not flag.exists():
            return None
        with suppress(OSError):
            return (flag.parent / "reboot-required.pkgs").read_text(errors="replace").split()
        return []


async def open_tools(env: Mapping[str, str], *, timeout: float, cache: Path) -> AptTools:  # noqa: ASYNC109  (passed on)
    """
    Find out where apt keeps its files.

    Args:
        env: Added to the environment of the tools.
        timeout: Seconds for each query.
        cache: An empty directory that lives as long as the result.

    Raises:
        ScanError: apt's configuration cannot be read.
        ProcessError: There is no apt.
    """
    names = [word for pair in _CONFIGURATION.items() for word in pair]
    values = parse_shell(await query(["apt-config", "shell", *names], env, timeout))
    missing = _CONFIGURATION.keys() - _OPTIONAL - {name for name, value in values.items() if value}
    if missing:
        raise ScanError(f"apt-config does not know {_CONFIGURATION[min(missing)]}")
    return AptTools(
        env=env,
        timeout=timeout,
        native=values["NATIVE"],
        root=Path(values["ROOT"]),
        lists=Path(values["LISTS"]),
        admindir=Path(values["STATUS"]).parent,
        archives=Path(values["ARCHIVES"]) if values.get("ARCHIVES") else None,
        cache=cache,
        options=_cache_options(values.get("PKGCACHE", ""), cache),
    )


def _cache_options(configured: str, own: Path) -> tuple[str, ...]:
    # Containers switch apt's cache off. Without one each of our calls would spend seconds on making its own.
    if configured and Path(configured).exists():
        return ()
    return (f"-oDir::Cache::pkgcache={own}/pkgcache.bin",)


def _without_signatures(lists: Path, place: Path) -> Path:
    """The package lists once more, as if none of them had been signed."""
    place.mkdir(exist_ok=True)
    for path in lists.iterdir():
        name = path.name.removesuffix("InRelease") + "Release" if path.name.endswith("_InRelease") else path.name
        link = place / name
        if path.is_file() and not name.endswith("_Release.gpg") and not link.is_symlink():
            link.symlink_to(path)
    return place


async def query(argv: list[str], env: Mapping[str, str], timeout: float) -> str:  # noqa: ASYNC109  (passed on)
    """What a tool prints; see `run_checked`."""
    return _text((await run_checked(argv, env, timeout)).stdout)


async def run_checked(
    argv: list[str],
    env: Mapping[str, str],
    timeout: float,  # noqa: ASYNC109  (passed on to the child)
) -> process.Completed:
    """
    Run a tool that must succeed.

    Raises:
        ScanError: It failed, with what it says about it, or printed more than can be read.
        ProcessError: It could not be started or did not end.
    """
    done = await process.run(argv, env=env, timeout=timeout)
    verb = next((word for word in argv[1:] if _VERB.fullmatch(word)), "")
    what = f"{argv[0]} {verb}".rstrip()
    if done.returncode:
        raise ScanError(f"`{what}` failed: {_complaint(done)}")
    if done.truncated:
        raise ScanError(f"`{what}` printed more than {process.MAX_OUTPUT} bytes")
    return done


def _complaint(done: process.Completed) -> str:
    errors = _text(done.stderr)
    lines = messages(errors, "E") + messages(errors, "W") or errors.strip().splitlines()[-1:]
    lines += unmet(_text(done.stdout))
    return clean_text("; ".join(lines) or f"exit status {done.returncode}", max_len=MAX_COMPLAINT)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
