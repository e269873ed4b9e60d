"""
The format of a backup: one plain tar archive with fixed names in a fixed order. ``tar`` opens it without us.

We open it without `tarfile`: whoever made a file that we are given may have aimed at what that can do with links,
sparse files and extended headers. Every byte that is not content follows from the manifest, so it is made again
and must be the same; every content has its digest there. What is left is one spelling for each backup.

Order: ``manifest.json``, its digest as ``sha256sum`` writes it, the members that the manifest lists.
"""

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

import attrs
from attrs import validators

from redflag_core import codec
from redflag_core.encoding import parse_json
from redflag_core.errors import MalformedError, VerificationError
from redflag_core.keyfiles import MAX_FILE_BYTES

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
DIGEST: Final = "manifest.json.sha256"
DATABASE: Final = "redflag.db"
KEYS: Final = "keys"

NEEDED: Final = (f"{KEYS}/command.key", f"{KEYS}/checkpoint.key", DATABASE)
MEMBERS: Final = (
    f"{KEYS}/command.key",
    f"{KEYS}/checkpoint.key",
    f"{KEYS}/root.key",
    f"{KEYS}/agent-tokens.secret",
    f"{KEYS}/forms.secret",
    DATABASE,
)
"""Every name that a backup can hold, in its order. The root key may be kept elsewhere; secrets are made anew."""

MAX_MANIFEST_BYTES: Final = 16 * 1024
"""Six members with a digest each are 2 KiB."""

MAX_DATABASE_BYTES: Final = 2**40
"""1 TiB, far beyond what one SQLite writer can keep up with: a larger number is a damaged one."""

BLOCK: Final = 512
RECORD: Final = 20 * BLOCK
"""Archives end on a whole record, as every ``tar`` writes them."""

CHUNK: Final = 1024 * 1024
"""Bytes held in memory at once."""

_UUID: Final = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_OCTAL: Final = re.compile(rb"[0-7]{11}\0")


class BackupError(VerificationError):
    """A file that cannot be restored: no backup, damaged, cut short, incomplete, or of a newer release."""

    code = "bad_backup"


@attrs.frozen
class Member:
    """
    A file in a backup.

    Attributes:
        name: One of `MEMBERS`.
        size: Bytes.
        sha256: Digest of the content, 64 hex digits.
    """

    name: str = attrs.field(validator=validators.in_(MEMBERS))
    size: int = attrs.field(validator=validators.ge(0))
    sha256: str = attrs.field(validator=validators.matches_re("[0-9a-f]{64}"))

    @size.validator
    def _is_bounded(self, _attribute: object, value: int) -> None:
        if value > (MAX_DATABASE_BYTES if self.name == DATABASE else MAX_FILE_BYTES):
            raise MalformedError(f"{self.name} is too large")


@attrs.frozen(kw_only=True)
class Manifest:
    """
    What a backup says of itself.

    Attributes:
        v: `FORMAT`.
        server: Server id.
        root_fp: Fingerprint of the server's first root key.
        created_at: Unix seconds.
        revision: Schema of the database.
        release: The release that made the backup.
        members: Its files, in the order of `MEMBERS`.
    """

    v: int = attrs.field(default=FORMAT, validator=validators.in_((FORMAT,)))
    server: str = attrs.field(validator=validators.matches_re(_UUID))
    root_fp: str = attrs.field(validator=validators.matches_re("[0-9a-f]{64}"))
    created_at: int = attrs.field(validator=[validators.ge(0), validators.lt(8**11)])
    revision: str = attrs.field(validator=validators.matches_re("[0-9a-z_]{1,64}"))
    release: str = attrs.field(validator=validators.matches_re(r"[0-9A-Za-z.+-]{1,64}"))
    members: tuple[Member, ...] = attrs.field()

    @members.validator
    def _is_complete(self, _attribute: object, value: tuple[Member, ...]) -> None:
        names = [member.name for member in value]
        if names != [name for name in MEMBERS if name in names] or not set(NEEDED) <= set(names):
            raise MalformedError("the members are not those of a backup")

    @property
    def has_root_key(self) -> bool:
        """Whether the root key is in the backup."""
        return any(member.name == f"{KEYS}/root.key" for member in self.members)

    @property
    def size(self) -> int:
        """Bytes of all members together."""
        return sum(member.size for member in self.members)


@attrs.frozen
class Content:
    """
    What goes into a backup under a name.

    Attributes:
        member: Name, size and digest.
        file: The content, open at its beginning.
    """

    member: Member
    file: BinaryIO


def describe(name: str, file: BinaryIO) -> Content:
    """A content with its size and digest; *file* is read to its end and set to its beginning again."""
    digest, size = hashlib.sha256(), 0
    while chunk := file.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
    file.seek(0)
    return Content(Member(name, size, digest.hexdigest()), file)


def archive(manifest: Manifest, contents: Sequence[Content]) -> Iterator[bytes]:
    """
    The bytes of a backup, in pieces.

    Args:
        manifest: What it says of itself.
        contents: Its files, in the order of the manifest.
    """
    text, total = codec.dump(manifest), 0
    files = [
        (MANIFEST, len(text), io.BytesIO(text)),
        (DIGEST, len(_digest_line(text)), io.BytesIO(_digest_line(text))),
        *((content.member.name, content.member.size, content.file) for content in contents),
    ]
    for name, size, file in files:
        yield _header(name, size, manifest.created_at)
        yield from iter(lambda file=file: file.read(CHUNK), b"")  # type: ignore[misc]
        yield bytes(_padding(size))
        total += BLOCK + size + _padding(size)
    yield bytes(_end(total))


def read_archive(file: BinaryIO, folder: Path | None = None) -> Manifest:
    """
    Verify a backup from its first byte to its last.

    Args:
        file: Untrusted, open at its beginning.
        folder: An empty directory that gets the members, 0600 and on the disk; None to verify only. What is in it
            after a refusal must not be used.

    Returns:
        What it says of itself; its members have the digests that it lists.

    Raises:
        BackupError: Not exactly a backup of a release up to this one.
        OSError: A member cannot be written.
    """
    reader = _Reader(file)
    manifest = reader.manifest()
    if folder is not None:
        (folder / KEYS).mkdir(mode=0o700)
    for member in manifest.members:
        _store(None if folder is None else folder / member.name, reader.content(member, manifest.created_at))
    reader.end()
    return manifest


@attrs.define
class _Reader:
    """Takes a backup apart, in order."""

    file: BinaryIO
    total: int = 0

    def manifest(self) -> Manifest:
        """The manifest, which says what follows."""
        text, at = self._first()
        _refuse_newer(text)
        line = _digest_line(text)
        self._expect(_header(DIGEST, len(line), at), line, bytes(_padding(len(line))))
        try:
            manifest = codec.parse(Manifest, text, max_bytes=MAX_MANIFEST_BYTES)
        except MalformedError as error:
            raise BackupError(f"the backup cannot be used: its manifest is wrong ({error.message})") from None
        if manifest.created_at != at or codec.dump(manifest) != text:
            _damaged(MANIFEST)
        return manifest

    def content(self, member: Member, at: int) -> Iterator[bytes]:
        """The content of the next member, in pieces; only after the last one it is known to be genuine."""
        self._expect(_header(member.name, member.size, at))
        digest, left = hashlib.sha256(), member.size
        while left:
            chunk = self._take(min(left, CHUNK))
            digest.update(chunk)
            left -= len(chunk)
            yield chunk
        if digest.hexdigest() != member.sha256:
            _damaged(member.name)
        self._expect(bytes(_padding(member.size)))

    def end(self) -> None:
        """Nothing but the end may follow."""
        self._expect(bytes(_end(self.total)))
        if self.file.read(1):
            raise BackupError("the backup is damaged: something follows its end")

    def _first(self) -> tuple[bytes, int]:
        """Bytes of the manifest, and the time in its header: all that does not follow from something before."""
        block = self.file.read(BLOCK)
        size, at = (
            int(field[:11], 8) if _OCTAL.fullmatch(field) else -1 for field in (block[124:136], block[136:148])
        )
        if not 0 < size <= MAX_MANIFEST_BYTES or at < 0 or block != _header(MANIFEST, size, at):
            raise BackupError(
                "this is not a backup of RedFlag, or it is damaged; decrypt or decompress it first if it is"
            )
        self.total += BLOCK
        text = self._take(size)
        self._expect(bytes(_padding(size)))
        return text, at

    def _expect(self, *pieces: bytes) -> None:
        for piece in pieces:
            if self._take(len(piece)) != piece:
                _damaged("its structure")

    def _take(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) != count:
            raise BackupError("the backup is cut short: copy it again, or use another one")
        self.total += count
        return data


def _store(path: Path | None, chunks: Iterator[bytes]) -> None:
    """Write a member, or only read it through."""
    if path is None:
        for _ in chunks:
            pass
        return
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.writelines(chunks)
        out.flush()
        os.fsync(out.fileno())


def _refuse_newer(text: bytes) -> None:
    """A newer format may look different in every other way: say so, not that it is damaged."""
    try:
        document = parse_json(text, max_bytes=MAX_MANIFEST_BYTES)
    except MalformedError:
        _damaged(MANIFEST)
    version = document.get("v") if isinstance(document, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise BackupError(
            f"the backup has format {version}, of a newer release: install that release to restore it"
        )


def _damaged(what: str) -> NoReturn:
    raise BackupError(f"the backup is damaged ({what}): copy it again, or use another one")


def _header(name: str, size: int, at: int) -> bytes:
    """The header of a member as GNU tar writes it: the one form that holds a size beyond eight GiB."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, at, 0o600
    return info.tobuf(tarfile.GNU_FORMAT)


def _digest_line(text: bytes) -> bytes:
    return f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n".encode()


def _padding(size: int) -> int:
    return -size % BLOCK


def _end(total: int) -> int:
    """Zeros that end an archive of *total* bytes: two blocks, and up to a whole record."""
    return 2 * BLOCK + -(total + 2 * BLOCK) % RECORD
