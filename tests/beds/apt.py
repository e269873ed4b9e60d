"""
A throw-away apt root with updates waiting: real apt, real dpkg, repositories in a directory, half a second.

Nothing touches the machine's own packages. There is no chroot: dpkg runs maintainer scripts on the host, which
write below ``$DPKG_ROOT`` only. `AptBed.bin` has the tools pointed at the bed: call them by path, or put it first
in PATH. Works as root and as anybody else.

A test that only looks takes the fixture `shared_apt_bed`; one that changes something takes `apt_bed`. Both are
named in ``tests/agent/conftest.py``; elsewhere import them from here.
"""

import fcntl
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.helpers.needs import needs

needs_apt = needs("apt-get", "apt-cache", "apt-mark", "dpkg", "dpkg-query")

TOOLS = ("apt", "apt-get", "apt-cache", "apt-mark", "apt-config", "dpkg", "dpkg-query")
V1, V2, SECURITY = "1.0-1", "2.0-1", "1.0-1+deb12u1"
NATIVE, FOREIGN = "native", "foreign"
BUILT = 1_700_000_000

REBOOT_SCRIPT = """\
mkdir -p "$DPKG_ROOT/var/run"
echo "*** System restart required ***" > "$DPKG_ROOT/var/run/reboot-required"
echo rf-reboot >> "$DPKG_ROOT/var/run/reboot-required.pkgs"
"""


@dataclass(frozen=True)
class Deb:
    """A package to build. ``fields`` are for the control file, ``index`` for the package list only."""

    name: str
    version: str = V1
    suite: str = "stable"
    arch: str = "all"
    fields: dict[str, str] = field(default_factory=dict)
    index: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    postinst: str = ""
    installed: bool = False

    @property
    def filename(self) -> str:
        """Name of the file, where a colon of the version is written as dpkg writes it."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.arch}.deb"


def _old(name: str, **fields: str) -> Deb:
    return Deb(name, fields={key.replace("_", "-"): value for key, value in fields.items()}, installed=True)


PACKAGES = (
    _old("rf-secure"),
    Deb("rf-secure", SECURITY, "stable-security"),
    # The newest version is not from the security suite but contains the fix that is.
    _old("rf-fixed"),
    Deb("rf-fixed", SECURITY, "stable-security"),
    Deb("rf-fixed", V2),
    _old("rf-normal", Depends="rf-auto-later"),
    Deb("rf-normal", "1.5-1"),
    Deb("rf-normal", V2),
    # Kept back by `upgrade`: the one needs an addition, the other a removal.
    _old("rf-newdep"),
    Deb("rf-newdep", V2, fields={"Depends": "rf-dep-new (>= 2)"}),
    Deb("rf-dep-new", V2),
    _old("rf-keptback"),
    Deb("rf-keptback", V2, fields={"Conflicts": "rf-victim"}),
    _old("rf-victim"),
    _old("rf-held"),
    Deb("rf-held", V2, "stable-security"),
    _old("rf-held-current"),
    _old("rf-phased"),
    Deb("rf-phased", V2, index={"Phased-Update-Percentage": "0"}),
    replace(_old("rf-conffile"), files={"etc/rf-conffile.conf": "setting=1\n"}),
    Deb("rf-conffile", V2, files={"etc/rf-conffile.conf": "setting=2\n"}),
    _old("rf-badpost"),
    Deb("rf-badpost", V2, postinst='echo "rf-badpost: boom" >&2\nexit 1\n'),
    _old("rf-reboot"),
    Deb("rf-reboot", V2, "stable-security", postinst=REBOOT_SCRIPT),
    _old("rf-slow"),
    Deb("rf-slow", V2, postinst='sleep "${RF_SLOW_SECONDS:-5}"\n'),
    _old("rf-local"),
    Deb("rf-local", V2),
    _old("rf-auto-now"),
    _old("rf-auto-later"),
    _old("rf-uptodate", Source="rf-source (3:0.9-1)"),
    *(
        Deb("rf-multi", version, arch=arch, fields={"Multi-Arch": "same"}, installed=version == V1)
        for version in (V1, V2)
        for arch in (NATIVE, FOREIGN)
    ),
)
AUTOMATIC = ("rf-auto-now", "rf-auto-later")
HELD = ("rf-held", "rf-held-current")
SUITES = {"stable": ("Debian", "bookworm"), "stable-security": ("Debian-Security", "bookworm-security")}
GERMAN = {"rf-local": "Beschreibung mit Umlauten äöüß"}


class AptBed:
    """
    One apt root with its repositories.

    Make one with `build`. ``bin`` holds the tools, ``root`` what is installed, ``repo`` the repositories, and
    ``apt_config`` is the value for APT_CONFIG. ``key`` is what the repositories are signed with,
    if they are.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bin = directory / "bin"
        self.root = directory / "root"
        self.repo = directory / "repo"
        self.apt_config = directory / "apt.conf"
        self.lists = self.root / "var/lib/apt/lists"
        self.admindir = self.root / "var/lib/dpkg"
        self.native = _output("dpkg", "--print-architecture").strip()
        self.foreign = "armhf" if self.native == "i386" else "i386"
        self.key = directory / "key.gpg"
        self._debs: list[Deb] = []

    @classmethod
    def build(cls, directory: Path, packages: Iterable[Deb] = PACKAGES, *, signed: bool | None = None) -> "AptBed":
        """
        Make the root and the repositories, and install what is installed.

        Args:
            directory: Empty; the bed's own.
            packages: What is installed and published.
            signed: Whether the repositories are signed; None means: where there is gpg.
        """
        bed = cls(directory)
        bed._make_root()
        if signed if signed is not None else shutil.which("gpg") is not None:
            bed._make_key()
        bed._write_configuration()
        bed.publish(*packages)
        bed._install_first()
        return bed

    def copy(self, directory: Path) -> "AptBed":
        """The same bed in another, empty directory: a tenth of the time that building takes."""
        shutil.copytree(self.directory, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*cache.bin"))
        bed = AptBed(directory)
        bed._debs = list(self._debs)
        bed._write_configuration()
        # apt names its lists after where they are from.
        old, new = (str(place).replace("_", "%5f").replace("/", "_") for place in (self.repo, bed.repo))
        for path in bed.lists.glob(f"{old}_*"):
            path.rename(bed.lists / path.name.replace(old, new))
        return bed

    def publish(self, *packages: Deb, update: bool = True) -> None:
        """Build *packages*, add them to the repositories, and fetch the package lists unless told not to."""
        archs = {NATIVE: self.native, FOREIGN: self.foreign}
        pool = self.repo / "pool"
        for deb in (replace(deb, arch=archs.get(deb.arch, deb.arch)) for deb in packages):
            self._debs.append(deb)
            (pool / deb.filename).write_bytes(_build(deb))
        for suite in SUITES:
            self._index(suite)
        if update:
            self.run("apt-get", "-qq", "update")

    def run(self, tool: str, *arguments: str, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        """Run one of the bed's tools, in English unless *env* says otherwise."""
        return subprocess.run(
            [self.bin / tool, *arguments],
            env=self.environment(**env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=check,
        )

    def environment(self, **env: str) -> dict[str, str]:
        """An environment in which the bed's tools win."""
        path = f"{self.bin}:/usr/sbin:/usr/bin:/sbin:/bin"
        return {
            "PATH": path,
            "LC_ALL": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
            "RF_SLOW_SECONDS": "0",
            **env,
        }

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold all locks that apt and dpkg take, as another package manager would."""
        with ExitStack() as stack:
            for lock in (
                self.admindir / "lock",
                self.admindir / "lock-frontend",
                self.lists / "lock",
                self.root / "var/cache/apt/archives/lock",
            ):
                fcntl.lockf(stack.enter_context(lock.open("w")), fcntl.LOCK_EX)
            yield

    def use_sources(self, options: Mapping[str, str], *, deb822: bool = False, update: bool = True) -> None:
        """Name the repositories with other *options*, in lines or as deb822, and fetch the lists from nothing."""
        place = self.root / "etc/apt/sources.list"
        if deb822:
            place.unlink()
            place = self.root / "etc/apt/sources.list.d/bed.sources"
            fields = {
                "Types": "deb",
                "URIs": f"file:{self.repo}",
                "Suites": " ".join(SUITES),
                "Components": "main",
            }
            fields |= {name.title(): value for name, value in options.items()}
            place.write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))
        else:
            words = " ".join(f"{name}={value}" for name, value in options.items())
            place.write_text("".join(f"deb [{words}] file:{self.repo} {suite} main\n" for suite in SUITES))
        if update:
            for path in filter(Path.is_file, self.lists.iterdir()):
                path.unlink()
            self.run("apt-get", "-qq", "update")

    def configure(self, text: str) -> None:
        """Add to the configuration of apt."""
        with self.apt_config.open("a") as file:
            file.write(text)

    def _make_root(self) -> None:
        for below in (
            "root/etc/apt/apt.conf.d",
            "root/etc/apt/preferences.d",
            "root/etc/apt/sources.list.d",
            "root/etc/apt/trusted.gpg.d",
            "root/tmp",
            "root/var/cache/apt/archives/partial",
            "root/var/lib/apt/lists/partial",
            "root/var/lib/dpkg/info",
            "root/var/lib/dpkg/triggers",
            "root/var/lib/dpkg/updates",
            "root/var/log/apt",
            "root/var/run",
            "repo/pool",
            "bin",
        ):
            (self.directory / below).mkdir(parents=True)
        for name in ("status", "available"):
            (self.admindir / name).touch()
        (self.admindir / "arch").write_text(f"{self.native}\n{self.foreign}\n")

    def _write_configuration(self) -> None:
        option = f"signed-by={self.key}" if self.key.exists() else "trusted=yes"
        sources = "".join(f"deb [{option}] file:{self.repo} {suite} main\n" for suite in SUITES)
        (self.root / "etc/apt/sources.list").write_text(sources)
        dpkg = [f"--root={self.root}", "--force-script-chrootless", "--force-not-root", "--force-unsafe-io"]
        dpkg += ["--force-bad-path", f"--log={self.root}/var/log/dpkg.log"]
        options = " ".join(f'"{option}";' for option in dpkg)
        self.apt_config.write_text(f"""\
Dir "{self.root}/";
Dir::State::status "{self.admindir}/status";
Dir::Bin::methods "/usr/lib/apt/methods";
Dir::Bin::dpkg "/usr/bin/dpkg";
Dir::Log "{self.root}/var/log/apt";
APT::Sandbox::User "";
APT::Architectures {{ "{self.native}"; "{self.foreign}"; }};
APT::Machine-ID "00000000000000000000000000000001";
APT::Install-Recommends "false";
Acquire::Languages {{ "de"; "en"; }};
DPkg::Options {{ {options} }};
DPkg::Path "/usr/sbin:/usr/bin:/sbin:/bin";
""")
        commands = {
            "dpkg": f"/usr/bin/dpkg {' '.join(dpkg)}",
            "dpkg-query": f"/usr/bin/dpkg-query --admindir={self.admindir}",
        }
        for tool in TOOLS:
            command = commands.get(tool, f"/usr/bin/{tool}")
            (self.bin / tool).write_text(f'#!/bin/sh\nAPT_CONFIG="{self.apt_config}" exec {command} "$@"\n')
            (self.bin / tool).chmod(0o755)

    def _make_key(self) -> None:
        (self.directory / "gnupg").mkdir(mode=0o700)
        self._gpg("--passphrase", "", "--quick-gen-key", "Bed <bed@example.invalid>", "ed25519", "sign", "never")
        self._gpg("--output", str(self.key), "--export")

    def _gpg(self, *arguments: str) -> None:
        env = {**os.environ, "GNUPGHOME": str(self.directory / "gnupg")}
        subprocess.run(
            ["gpg", "--batch", "--quiet", "--yes", *arguments], env=env, check=True, capture_output=True
        )
        subprocess.run(["gpgconf", "--kill", "all"], env=env, check=True, capture_output=True)

    def _index(self, suite: str) -> None:
        label, codename = SUITES[suite]
        top = self.repo / "dists" / suite
        stanzas = dict.fromkeys((self.native, self.foreign), "")
        for deb in (deb for deb in self._debs if deb.suite == suite):
            for arch in stanzas if deb.arch == "all" else (deb.arch,):
                stanzas[arch] += _stanza(deb, self.repo / "pool" / deb.filename)
        files = {f"main/binary-{arch}/Packages": text for arch, text in stanzas.items()}
        files["main/i18n/Translation-de"] = "".join(
            f"Package: {name}\nDescription-md5: {_description_md5(name)}\nDescription-de: {text}\n Vom Bett.\n\n"
            for name, text in GERMAN.items()
        )
        sums = ""
        for name, text in files.items():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            for path, data in ((name, text.encode()), (f"{name}.gz", gzip.compress(text.encode(), mtime=BUILT))):
                (top / path).write_bytes(data)
                sums += f" {hashlib.sha256(data).hexdigest()} {len(data)} {path}\n"
        (top / "Release").write_text(
            f"Origin: Debian\nLabel: {label}\nSuite: {suite}\nCodename: {codename}\nVersion: 12\n"
            f"Date: {formatdate(usegmt=True)}\nArchitectures: {self.native} {self.foreign} all\n"
            f"Components: main\nDescription: repository of a test bed\nSHA256:\n{sums}"
        )
        if self.key.exists():
            self._gpg("--clearsign", "--output", str(top / "InRelease"), str(top / "Release"))

    def _install_first(self) -> None:
        self.run("dpkg", "-i", *(str(self.repo / "pool" / deb.filename) for deb in self._debs if deb.installed))
        names = {deb.name for deb in self._debs if deb.installed}
        for verb, marked in (("auto", names & set(AUTOMATIC)), ("hold", names & set(HELD))):
            if marked:
                self.run("apt-mark", verb, *marked)
        conffile = self.root / "etc/rf-conffile.conf"
        if conffile.exists():
            conffile.write_text("setting=1\n# changed by the admin\n")


def _output(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def _description(name: str) -> str:
    return f"{'package with a localized description' if name in GERMAN else f'test package {name}'}\n Of a bed.\n"


def _description_md5(name: str) -> str:
    return hashlib.md5(_description(name).encode(), usedforsecurity=False).hexdigest()


def _control(deb: Deb) -> str:
    fields = {
        "Package": deb.name,
        "Version": deb.version,
        "Architecture": deb.arch,
        "Maintainer": "Bed <bed@example.invalid>",
        "Section": "misc",
        "Priority": "optional",
        "Installed-Size": "1",
        **deb.fields,
        "Description": _description(deb.name).rstrip("\n"),
    }
    return "".join(f"{key}: {value}\n" for key, value in fields.items())


def _stanza(deb: Deb, path: Path) -> str:
    data = path.read_bytes()
    fields = {
        "Filename": f"pool/{deb.filename}",
        "Size": str(len(data)),
        "SHA256": hashlib.sha256(data).hexdigest(),
        "Description-md5": _description_md5(deb.name),
        **deb.index,
    }
    return _control(deb) + "".join(f"{key}: {value}\n" for key, value in fields.items()) + "\n"


def _build(deb: Deb) -> bytes:
    """The bytes of a .deb (deb(5)): an ar archive of two tar archives. `dpkg-deb` would take most of the time."""
    control = {"control": _control(deb)}
    if deb.postinst:
        control["postinst"] = f'#!/bin/sh\nset -e\n[ "$1" = configure ] || exit 0\n{deb.postinst}'
    if deb.files:
        control["conffiles"] = "".join(f"/{path}\n" for path in deb.files)
    data = {f"usr/share/rf/{deb.name}-{deb.arch}": f"{deb.name} {deb.version}\n", **deb.files}
    members = {"debian-binary": b"2.0\n", "control.tar": _tar(control), "data.tar": _tar(data)}
    return b"!<arch>\n" + b"".join(_ar_member(name, content) for name, content in members.items())


def _ar_member(name: str, content: bytes) -> bytes:
    header = f"{name:<16}{BUILT:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
    return header.encode() + content + b"\n" * (len(content) % 2)


def _tar(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        parents = {parent for path in files for parent in Path(path).parents}
        for directory in sorted(parents, key=lambda parent: parent.parts):
            tar.addfile(_member(f"./{directory}" if directory.parts else ".", tarfile.DIRTYPE, 0o755))
        for path, text in files.items():
            member = _member(f"./{path}", tarfile.REGTYPE, 0o755 if path == "postinst" else 0o644)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def _member(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.mtime = kind, mode, BUILT
    # dpkg gives the files to these: only root could give them to somebody else.
    member.uid, member.gid = os.getuid(), os.getgid()
    return member


@contextmanager
def _temporary_directory() -> Iterator[Path]:
    # Others must be able to read it: pytest's own temporary directories are closed to them.
    directory = Path(tempfile.mkdtemp(prefix="rf-apt-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def temporary_bed(packages: Iterable[Deb] = PACKAGES, *, signed: bool | None = None) -> Iterator[AptBed]:
    """A bed that is removed at the end."""
    with _temporary_directory() as directory:
        yield AptBed.build(directory, packages, signed=signed)


@pytest.fixture(scope="session")
def shared_apt_bed() -> Iterator[AptBed]:
    """A bed for looking only, one for each worker."""
    with temporary_bed() as bed:
        yield bed


@pytest.fixture
def apt_bed(shared_apt_bed: AptBed) -> Iterator[AptBed]:
    """A bed of the test's own."""
    with _temporary_directory() as directory:
        yield shared_apt_bed.copy(directory)
