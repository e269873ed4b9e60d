"""The server's keys and secrets: files of the data directory, made at first start, 0600, never in the database."""

import os
from pathlib import Path

import attrs

from redflag_core.errors import KeyFileError
from redflag_core.keyfiles import read_key, read_secret, write_key, write_secret
from redflag_core.keys import SigningKey
from redflag_core.ports import Entropy


@attrs.frozen
class KeyStore:
    """
    What the server signs and authenticates with.

    Attributes:
        command: Signs commands.
        checkpoint: Signs checkpoints of the audit log.
        root: Signs the trust bundle; None where it is kept off the server.
        agent_tokens: HMAC secret of agents' access tokens.
        forms: HMAC secret of form tokens (CSRF).
    """

    command: SigningKey
    checkpoint: SigningKey
    root: SigningKey | None
    agent_tokens: bytes = attrs.field(repr=False)
    forms: bytes = attrs.field(repr=False)


def open_keystore(data: Path, entropy: Entropy, *, first_start: bool) -> KeyStore:
    """
    Open the keys, making at first start those that are missing.

    Args:
        data: The server's data directory.
        entropy: Randomness for new keys.
        first_start: Whether the database is new. Later, a missing key is an error: agents believe the old one.

    Raises:
        KeyFileError: A file is missing, open to others, damaged or weak.
    """
    folder = data / "keys"
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    return KeyStore(
        command=_key(folder / "command.key", entropy, first_start),
        checkpoint=_key(folder / "checkpoint.key", entropy, first_start),
        root=_root(folder / "root.key", entropy, first_start),
        agent_tokens=_secret(folder / "agent-tokens.secret", entropy),
        forms=_secret(folder / "forms.secret", entropy),
    )


def _key(path: Path, entropy: Entropy, first_start: bool) -> SigningKey:
    if first_start and not os.path.lexists(path):
        write_key(path, SigningKey.from_seed(entropy.token(32)))
    elif not os.path.lexists(path):
        raise KeyFileError(f"{path} is missing: restore it from a backup; agents believe no other key")
    return read_key(path)


def _root(path: Path, entropy: Entropy, first_start: bool) -> SigningKey | None:
    """The root may be taken off the server after the first start; then the bundle is renewed by hand."""
    if not first_start and not os.path.lexists(path):
        return None
    return _key(path, entropy, first_start)


def _secret(path: Path, entropy: Entropy) -> bytes:
    """A secret that is gone is made anew: tokens signed with the old one end, nothing else is lost."""
    return read_secret(path) if os.path.lexists(path) else write_secret(path, entropy)
