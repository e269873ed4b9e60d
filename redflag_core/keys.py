"""
Ed25519 keys as values.

One verifier everywhere: libsodium through PyNaCl, which refuses small-order keys and malleable signatures.
Sources: RFC 8032; the key id is the protocol's (first 32 hex digits of SHA-256 over the raw public key).
"""

import hashlib
import hmac
import os
from typing import Any, Final

import attrs
from nacl import signing
from nacl.exceptions import CryptoError

from redflag_core.errors import MalformedError, SignatureError

KEY_TYPE: Final = "ed25519"
"""The value of ``key_type`` in records: room for another algorithm later, none now."""

SEED_SIZE: Final = 32
PUBLIC_KEY_SIZE: Final = 32
SIGNATURE_SIZE: Final = 64


def key_id(public_key: bytes) -> str:
    """First 32 hex digits of SHA-256 over the raw public key."""
    return fingerprint(public_key)[:32]


def fingerprint(public_key: bytes) -> str:
    """SHA-256 over the raw public key, 64 hex digits. The root's is what an operator compares by eye."""
    return hashlib.sha256(public_key).hexdigest()


@attrs.frozen(repr=False)
class VerifyKey:
    """
    A public key. Immutable, hashable, safe to share between threads and over a fork.

    Args:
        public_key: 32 raw bytes, untrusted. That they are a point of the curve shows when they verify something.

    Raises:
        MalformedError: Not 32 bytes.
    """

    public_key: bytes = attrs.field()

    @public_key.validator
    def _has_its_size(self, _attribute: Any, value: object) -> None:
        if not isinstance(value, bytes) or len(value) != PUBLIC_KEY_SIZE:
            raise MalformedError(f"an Ed25519 public key has {PUBLIC_KEY_SIZE} bytes")

    @property
    def key_id(self) -> str:
        """First 32 hex digits of SHA-256 over the raw key."""
        return key_id(self.public_key)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the raw key, 64 hex digits."""
        return fingerprint(self.public_key)

    def verify(self, message: bytes, signature: bytes) -> None:
        """
        Check *signature* over exactly the bytes of *message*.

        Args:
            message: Unverified bytes.
            signature: Unverified signature, 64 bytes.

        Raises:
            SignatureError: Any other length, or a signature that does not verify.
        """
        if len(signature) != SIGNATURE_SIZE:
            raise SignatureError(f"an Ed25519 signature has {SIGNATURE_SIZE} bytes")
        try:
            signing.VerifyKey(self.public_key).verify(message, signature)
        except CryptoError:
            raise SignatureError("the signature does not verify") from None

    def __repr__(self) -> str:
        return f"VerifyKey(key_id={self.key_id!r})"


@attrs.frozen(eq=False, repr=False)
class SigningKey:
    """
    A private key. Immutable; its text form never shows the seed.

    Make one with `generate` or `from_seed`. Safe to share between threads and over a fork.

    Attributes:
        verify_key: The public half.
    """

    _key: signing.SigningKey
    verify_key: VerifyKey = attrs.field(init=False)

    @verify_key.default
    def _public_half(self) -> VerifyKey:
        return VerifyKey(bytes(self._key.verify_key))

    @classmethod
    def generate(cls) -> "SigningKey":
        """A new key from the operating system's generator (the one place of this module that is not pure)."""
        return cls.from_seed(os.urandom(SEED_SIZE))

    @classmethod
    def from_seed(cls, seed: bytes) -> "SigningKey":
        """
        The key of a 32-byte seed (RFC 8032, section 5.1.5).

        Raises:
            MalformedError: Not 32 bytes.
        """
        if not isinstance(seed, bytes) or len(seed) != SEED_SIZE:
            raise MalformedError(f"an Ed25519 seed has {SEED_SIZE} bytes")
        return cls(signing.SigningKey(seed))

    @property
    def key_id(self) -> str:
        """Key id of the public half."""
        return self.verify_key.key_id

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes: only for `redflag_core.keyfiles`."""
        return bytes(self._key)

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature over *message*. Deterministic."""
        return self._key.sign(message).signature

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SigningKey) and hmac.compare_digest(self.seed, other.seed)

    def __hash__(self) -> int:
        return hash(self.verify_key)

    def __repr__(self) -> str:
        return f"SigningKey(key_id={self.key_id!r})"
