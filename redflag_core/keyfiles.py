"""
Key and secret files: 0600, written whole or not at all, refused when anybody else could read them.

A key file is one JSON object. Version 1 holds the seed in clear (a server's or agent's own key, protected by
the file system) or sealed with a passphrase (an operator's key): argon2id, then XSalsa20-Poly1305.

There is no state but the file. Threads and processes may read and write one at once: who reads gets the old
content or the new one, and of several that make one file the first wins. All verbs block: on the disk, and on
argon2id for about a second.

Sources: RFC 9106 (argon2id), NaCl secretbox, both through PyNaCl.
"""

import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

import attrs
from nacl import pwhash, secret
from nacl.exceptions import CryptoError

from redflag_core import codec
from redflag_core.encoding import b64decode, b64encode, b64url_decode, b64url_encode
from redflag_core.errors import KeyFileError, MalformedError
from redflag_core.keys import KEY_TYPE, SEED_SIZE, SigningKey
from redflag_core.ports import Entropy

MAX_FILE_BYTES: Final = 4096
"""No key file comes near; a larger file is something else."""

MIN_SECRET_BYTES: Final = 32
"""256 bits: what HMAC-SHA256 is worth."""

MIN_DISTINCT_BYTES: Final = 8
"""Of 32 random bytes, fewer than 8 different ones come up once in more than 10^30 files: somebody typed it."""

OPS_LIMIT: Final = 3
MEMORY_LIMIT: Final = 256 * 1024 * 1024
"""Bytes. libsodium's "moderate" setting: about 0.7 s once, when an operator opens the key."""

MAX_OPS_LIMIT: Final = 16
MIN_MEMORY_LIMIT: Final = 8192
MAX_MEMORY_LIMIT: Final = 1024 * 1024 * 1024
"""Bounds for what a file may ask of us when it is opened."""

BOX_SIZE: Final = secret.SecretBox.NONCE_SIZE + secret.SecretBox.MACBYTES + SEED_SIZE


@attrs.frozen
class _Sealed:
    kdf: str
    ops: int
    memory: int
    salt: str
    box: str


@attrs.frozen
class _KeyFile:
    v: int
    key_type: str
    seed: str | None = attrs.field(default=None, repr=False)
    sealed: _Sealed | None = None


def write_key(
    path: Path, key: SigningKey, *, passphrase: bytes | None = None, entropy: Entropy | None = None
) -> None:
    """
    Write a new key file. An existing file is never replaced.

    Args:
        path: Where. The directory must exist.
        key: The key to keep.
        passphrase: Seals the seed. None leaves it in clear, for keys that must open without a person.
        entropy: Source of salt and nonce; needed with a passphrase.

    Raises:
        KeyFileError: The file exists already, or cannot be written.
    """
    if passphrase is None:
        content = _KeyFile(1, KEY_TYPE, seed=b64encode(key.seed))
    elif not passphrase or entropy is None:
        raise KeyFileError("sealing a key needs a passphrase that is not empty, and an entropy source")
    else:
        content = _KeyFile(1, KEY_TYPE, sealed=_seal(key.seed, passphrase, entropy))
    write_private(path, codec.dump(content) + b"\n", replace=False)


def read_key(path: Path, *, passphrase: bytes | None = None) -> SigningKey:
    """
    Open a key file.

    Args:
        path: The file.
        passphrase: Needed when the file is sealed.

    Raises:
        KeyFileError: Missing, readable by others, damaged, or sealed with another passphrase.
    """
    try:
        content = codec.parse(_KeyFile, read_private(path), max_bytes=MAX_FILE_BYTES)
        if content.v != 1 or content.key_type != KEY_TYPE:
            raise KeyFileError(f"{path}: version or key type is not known to this release")
        return SigningKey.from_seed(_seed_of(path, content, passphrase))
    except MalformedError:
        raise KeyFileError(f"{path} is damaged: restore it from a backup") from None


def is_sealed(path: Path) -> bool:
    """
    Whether a key file needs a passphrase.

    Raises:
        KeyFileError: Missing, readable by others, or damaged.
    """
    try:
        return codec.parse(_KeyFile, read_private(path), max_bytes=MAX_FILE_BYTES).sealed is not None
    except MalformedError:
        raise KeyFileError(f"{path} is damaged: restore it from a backup") from None


def write_secret(path: Path, entropy: Entropy) -> bytes:
    """
    Make a new secret of `MIN_SECRET_BYTES`, keep it in *path*, and return it.

    Raises:
        KeyFileError: The file exists already, or cannot be written.
    """
    value = entropy.token(MIN_SECRET_BYTES)
    write_private(path, b64url_encode(value).encode() + b"\n", replace=False)
    return value


def read_secret(path: Path) -> bytes:
    """
    Read a secret made by `write_secret`, or one that an operator put there in the same form.

    Raises:
        KeyFileError: Missing, readable by others, damaged, shorter than `MIN_SECRET_BYTES`, or no random value.
    """
    try:
        value = b64url_decode(read_private(path).decode("ascii").strip())
    except (MalformedError, UnicodeDecodeError):
        raise KeyFileError(f"{path} is not base64url: delete it to have a new one made") from None
    if len(value) < MIN_SECRET_BYTES:
        raise KeyFileError(f"{path} is shorter than {MIN_SECRET_BYTES} bytes: delete it to have a new one made")
    if len(set(value)) < MIN_DISTINCT_BYTES:
        raise KeyFileError(f"{path} is not random: delete it to have a new one made")
    return value


def write_private(path: Path, data: bytes, *, replace: bool) -> None:
    """
    Write a file that only its owner can read, so that a crash leaves the old state or the new one.

    Temporary file, fsync, link or rename, fsync of the directory. The temporary file has a name of its own, so
    writers do not disturb each other; a crash may leave it behind, readable by the owner only.

    Args:
        path: Where. The directory must exist.
        data: The whole content.
        replace: False refuses an existing file.

    Raises:
        KeyFileError: The file exists already (with *replace* False), or the system refuses to write.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
        temporary = Path(name)
        try:
            _write_synced(handle, data)
            if replace:
                temporary.replace(path)
            else:
                os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)
    except FileExistsError:
        raise KeyFileError(f"{path} exists already and is never overwritten") from None
    except OSError as error:
        raise KeyFileError(f"cannot write {path}: {error.strerror}") from None


def read_private(path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """
    Read a file, refusing one that anybody but its owner can read.

    Args:
        path: The file.
        max_bytes: Longest content accepted.

    Raises:
        KeyFileError: Missing, a link, oversize, owned by another user or too open.
    """
    try:
        with open(path, "rb", opener=_open_itself) as file:  # Path.open takes no opener
            _refuse_open_to_others(path, os.fstat(file.fileno()))
            data = file.read(max_bytes + 1)
    except OSError as error:
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise KeyFileError(f"cannot read {path}: {reason}") from None
    if len(data) > max_bytes:
        raise KeyFileError(f"{path} is larger than {max_bytes} bytes: it is something else")
    return data


def sync_directory(path: Path) -> None:
    """Make renames and new names in *path* survive a power cut. Windows has no such call and needs none."""
    if os.name == "nt":  # pragma: no cover  (Windows)
        return
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_synced(handle: int, data: bytes) -> None:
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(handle)


def _open_itself(path: str, flags: int) -> int:
    """Open the file and not what a link points to, and do not wait for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def _refuse_open_to_others(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise KeyFileError(f"{path} is not a regular file")
    if os.name == "nt":  # pragma: no cover  (Windows keeps access lists, not modes)
        return
    if status.st_mode & 0o077:
        raise KeyFileError(f"{path} can be read by others: run chmod 600 on it, and replace the key if it leaked")
    if status.st_uid not in (os.geteuid(), 0):
        raise KeyFileError(f"{path} belongs to another user: run as that user, or chown it")


def _seal(seed: bytes, passphrase: bytes, entropy: Entropy) -> _Sealed:
    salt = entropy.token(pwhash.argon2id.SALTBYTES)
    box = secret.SecretBox(_derive(passphrase, salt, OPS_LIMIT, MEMORY_LIMIT))
    sealed = box.encrypt(seed, entropy.token(secret.SecretBox.NONCE_SIZE))
    return _Sealed("argon2id", OPS_LIMIT, MEMORY_LIMIT, b64encode(salt), b64encode(bytes(sealed)))


def _seed_of(path: Path, content: _KeyFile, passphrase: bytes | None) -> bytes:
    if content.seed is not None and content.sealed is None:
        return b64decode(content.seed)
    if content.sealed is None or content.seed is not None or content.sealed.kdf != "argon2id":
        raise MalformedError("neither clear nor sealed")
    if passphrase is None:
        raise KeyFileError(f"{path} is sealed: a passphrase is needed")
    return _unseal(path, content.sealed, passphrase)


def _unseal(path: Path, sealed: _Sealed, passphrase: bytes) -> bytes:
    if not (0 < sealed.ops <= MAX_OPS_LIMIT and MIN_MEMORY_LIMIT <= sealed.memory <= MAX_MEMORY_LIMIT):
        raise MalformedError("key derivation limits out of bounds")
    salt, box = b64decode(sealed.salt), b64decode(sealed.box)
    if len(salt) != pwhash.argon2id.SALTBYTES or len(box) != BOX_SIZE:
        raise MalformedError("salt or box of the wrong size")
    key = _derive(passphrase, salt, sealed.ops, sealed.memory)
    try:
        return secret.SecretBox(key).decrypt(box)
    except CryptoError:
        raise KeyFileError(f"{path} does not open with this passphrase") from None


def _derive(passphrase: bytes, salt: bytes, ops: int, memory: int) -> bytes:
    try:
        return pwhash.argon2id.kdf(secret.SecretBox.KEY_SIZE, passphrase, salt, opslimit=ops, memlimit=memory)
    except CryptoError:
        raise KeyFileError(f"sealing a key with a passphrase needs {memory >> 20} MiB of free memory") from None
