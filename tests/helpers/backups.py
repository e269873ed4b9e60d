"""Backups under test: made, restored, taken apart and put together wrongly."""

import hashlib
import io
import json
import stat
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from redflag_core.encoding import dump_json
from redflag_core.ports import Clock
from redflag_core.system import SystemEntropy
from redflag_server.backup.archive import DIGEST, MANIFEST
from redflag_server.backup.create import Backup, back_up_to_file
from redflag_server.backup.restore import Restored, restore

ACTOR = "cli:test"


def back_up(data: Path, target: Path, clock: Clock, *, overwrite: bool = False) -> Path:
    """Make a backup, and say where it is."""
    make(data, target, clock, overwrite=overwrite)
    return target


def make(data: Path, target: Path, clock: Clock, *, overwrite: bool = False) -> Backup:
    """Make a backup."""
    return back_up_to_file(data, target, overwrite=overwrite, now=clock.now())


async def restore_from(file: Path, data: Path, clock: Clock, *, replace: bool = True) -> Restored:
    """Restore a backup into a directory."""
    with file.open("rb") as source:
        return await restore(source, data, replace=replace, clock=clock, entropy=SystemEntropy(), actor=ACTOR)


def contents(file: Path) -> dict[str, bytes]:
    """What ``tar`` finds in a backup, in its order."""
    with tarfile.open(file, "r:") as opened:
        return {member.name: opened.extractfile(member).read() for member in opened}  # type: ignore[union-attr]


def pack(entries: Iterable[tuple[str, bytes]], at: int) -> bytes:
    """A tar archive as Python's own module writes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.GNU_FORMAT) as archive:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(data), at, 0o600
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def rebuild(file: Path, target: Path, parts: Mapping[str, bytes | None] | None = None, **changes: Any) -> Path:
    """
    Write a well-formed archive that is the backup in *file* but for what is given.

    Args:
        file: A genuine backup.
        target: Where the other one goes.
        parts: Contents that differ; None leaves one out.
        changes: Fields of the manifest that differ.
    """
    found = contents(file)
    manifest = json.loads(found.pop(MANIFEST))
    del found[DIGEST]
    kept = [(name, data) for name, data in {**found, **(parts or {})}.items() if data is not None]
    manifest["members"] = [
        {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in kept
    ]
    text = dump_json({**manifest, **changes})
    line = f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n".encode()
    target.write_bytes(pack([(MANIFEST, text), (DIGEST, line), *kept], manifest["created_at"]))
    return target


def tree(directory: Path) -> dict[str, tuple[str, bytes]]:
    """Every file and directory below a directory, with its mode and content."""
    found = {}
    for path in sorted(directory.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(directory))] = (stat.filemode(path.lstat().st_mode), content)
    return found
