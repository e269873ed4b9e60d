"""
Who is believed: the root chain, the trust bundle, and the keys that are live for a role.

The root signs the bundle, the bundle names the command, checkpoint and operator keys. An agent pins the
fingerprint of the first root at registration and follows the chain from there; it needs nothing else of the
server's word.
"""

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

import attrs

from redflag_core import codec
from redflag_core.envelope import parse_envelope, sign_envelope, verify_envelope
from redflag_core.errors import (
    ConfigurationError,
    ExpiredError,
    MalformedError,
    RollbackError,
    UnknownKeyError,
    WrongRecipientError,
)
from redflag_core.freshness import unix
from redflag_core.keys import SigningKey, VerifyKey
from redflag_core.messages import (
    BUNDLE_TYPE,
    MAX_BUNDLE_BYTES,
    MAX_SMALL_BODY,
    ROOT_TYPE,
    PublicKey,
    Role,
    RootDocument,
    TrustBundle,
    TrustedKey,
)

DAY: Final = 86_400
BUNDLE_LIFETIME: Final = 90 * DAY
"""Longest validity of a bundle, seconds: how long a stolen bundle key can be used where no news arrives."""

RENEW_BEFORE: Final = 30 * DAY
"""A bundle is renewed this many seconds before its end: a month of outages loses nothing."""

MAX_ROOTS: Final = 1000
"""Length of a root chain that is followed."""


@attrs.frozen
class Root:
    """
    The newest root of a verified chain.

    Attributes:
        n: Its number; 1 is the first.
        key: Its public key.
    """

    n: int
    key: VerifyKey


def first_root(server: str, key: SigningKey, *, now: datetime) -> bytes:
    """The envelope of root 1, signed by itself."""
    return sign_envelope(ROOT_TYPE, codec.dump(_root(server, 1, key, now)), key)


def next_root(server: str, current: Root, old: SigningKey, new: SigningKey, *, now: datetime) -> bytes:
    """
    The envelope of root n + 1, signed by n and by itself.

    Raises:
        UnknownKeyError: *old* is not the current root.
    """
    if old.verify_key != current.key:
        raise UnknownKeyError("only the current root key can name the next one")
    return sign_envelope(ROOT_TYPE, codec.dump(_root(server, current.n + 1, new, now)), old, new)


def verify_roots(documents: Sequence[bytes], *, server: str, root_fp: str) -> Root:
    """
    Follow a root chain from the pinned fingerprint to its end.

    Args:
        documents: Untrusted envelopes of root 1, 2, ... without a gap.
        server: The server id that the pin came with.
        root_fp: Fingerprint of root 1 (trusted: typed by an operator, or from the registration token).

    Returns:
        The newest root.

    Raises:
        VerificationError: The chain does not start at the pin, has a gap, or a link is not signed by both.
    """
    if not 0 < len(documents) <= MAX_ROOTS:
        raise MalformedError(f"a root chain has 1 to {MAX_ROOTS} documents")
    root: Root | None = None
    for n, wire in enumerate(documents, start=1):
        root = _verify_root(wire, n, server, root_fp, root)
    assert root is not None  # noqa: S101  (there is at least one document)
    return root


def new_bundle(
    server: str,
    keys: Iterable[TrustedKey],
    *,
    version: int,
    epoch: int,
    now: datetime,
    lifetime: int = BUNDLE_LIFETIME,
) -> TrustBundle:
    """
    A bundle that is valid from *now*.

    Args:
        server: Server id.
        keys: The keys to trust.
        version: Higher than every bundle before.
        epoch: Raised after a theft, never lowered.
        now: Current time, aware UTC.
        lifetime: Seconds of validity, at most `BUNDLE_LIFETIME`.
    """
    iat = int(unix(now))
    return TrustBundle(1, server, version, iat, epoch, iat + min(lifetime, BUNDLE_LIFETIME), tuple(keys))


def sign_bundle(bundle: TrustBundle, root: SigningKey) -> bytes:
    """
    The envelope of a bundle.

    Raises:
        ConfigurationError: It would be too large for anybody to accept.
    """
    wire = sign_envelope(BUNDLE_TYPE, codec.dump(bundle), root)
    if len(wire) > MAX_BUNDLE_BYTES:
        raise ConfigurationError("the trust bundle is too large: take out keys that have expired")
    return wire


def verify_bundle(
    wire: bytes, root: VerifyKey, *, server: str, now: datetime, held_version: int = 0
) -> TrustBundle:
    """
    Verify a trust bundle that may replace the one held.

    A newer bundle is accepted though the held one expired; the held one itself passes again. One issued in the
    future passes too: the root signed it, so it is this machine's clock that is behind.

    Args:
        wire: Untrusted bytes.
        root: The newest verified root.
        server: Server id pinned at registration.
        now: Current time, aware UTC.
        held_version: Version of the bundle held, 0 for none.

    Raises:
        WrongRecipientError: A bundle of another server.
        RollbackError: Older than the one held.
        ExpiredError: Past its end, or valid for longer than allowed.
        VerificationError: Not signed by the root, or malformed.
    """
    verified = verify_envelope(wire, BUNDLE_TYPE, {root.key_id: root}, max_bytes=MAX_BUNDLE_BYTES)
    bundle = codec.parse(TrustBundle, verified.payload, max_bytes=MAX_BUNDLE_BYTES)
    if bundle.server != server:
        raise WrongRecipientError("the trust bundle is of another server")
    if bundle.version < held_version:
        raise RollbackError(f"trust bundle {bundle.version} is older than the one held ({held_version})")
    if not bundle.iat <= bundle.not_after <= bundle.iat + BUNDLE_LIFETIME:
        raise ExpiredError("the trust bundle claims a longer validity than is allowed")
    check_bundle_end(bundle, now=now)
    return bundle


def check_bundle_end(bundle: TrustBundle, *, now: datetime) -> None:
    """
    Refuse a bundle that is past its end. Checked when it arrives, and again whenever somebody relies on it.

    Args:
        bundle: Verified bundle.
        now: Current time, aware UTC.

    Raises:
        ExpiredError: It is.
    """
    if unix(now) > bundle.not_after:
        raise ExpiredError("the trust bundle is past its end: the server must renew it")


def bundle_digest(wire: bytes) -> str:
    """SHA-256 of a bundle's envelope, 64 hex digits: what check-in answers carry."""
    return hashlib.sha256(wire).hexdigest()


def renewal_due(bundle: TrustBundle, *, now: datetime) -> bool:
    """Whether it is time to issue the next bundle."""
    return unix(now) >= bundle.not_after - RENEW_BEFORE


def live_keys(
    bundle: TrustBundle, role: Role, *, now: datetime, organization: str | None = None
) -> dict[str, VerifyKey]:
    """
    The keys that may sign as *role* at *now*, by key id.

    Args:
        bundle: Verified bundle.
        role: What is to be signed.
        now: Current time, aware UTC.
        organization: For operator keys: the organization they must speak for.
    """
    moment = unix(now)
    return {
        key.key_id: key
        for entry in bundle.keys
        if entry.role is role
        and entry.not_before <= moment <= entry.not_after
        and (role is not Role.OPERATOR or organization in entry.organizations)
        for key in (entry.open(),)
    }


def signs_commands(bundle: TrustBundle, key_id: str, *, now: datetime) -> bool:
    """
    Whether an executor that holds *bundle* believes commands of this key.

    Args:
        bundle: The current bundle.
        key_id: Key id of a command key.
        now: Current time, aware UTC.
    """
    return unix(now) <= bundle.not_after and key_id in live_keys(bundle, Role.COMMAND, now=now)


def _root(server: str, n: int, key: SigningKey, now: datetime) -> RootDocument:
    return RootDocument(1, server, n, int(unix(now)), PublicKey.of(key))


def _verify_root(wire: bytes, n: int, server: str, root_fp: str, before: Root | None) -> Root:
    document = _peek_root(wire)
    key = document.key.open()
    signers = {key.key_id: key}
    if before is None and key.fingerprint != root_fp:
        raise UnknownKeyError("the first root key is not the one pinned at registration")
    if before is not None:
        if before.key.key_id in signers:
            raise MalformedError("a root must not follow itself")
        signers[before.key.key_id] = before.key
    verify_envelope(wire, ROOT_TYPE, signers, threshold=len(signers))
    if document.server != server or document.n != n:
        raise WrongRecipientError("the root document is of another server or out of order")
    return Root(n, key)


def _peek_root(wire: bytes) -> RootDocument:
    """Read the key that a root document announces, before it is verified with that same key."""
    return codec.parse(RootDocument, parse_envelope(wire).payload, max_bytes=MAX_SMALL_BODY)
