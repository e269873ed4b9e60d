"""
Signed envelopes (DSSE): bytes are signed as sent, and the payload type separates the domains.

The signature covers the pre-authentication encoding (PAE) of type and payload, so a signed result can never be
taken for a command, and nothing is re-serialised before it is checked.

Source: DSSE 1.0.2, protocol.md of the secure-systems-lab specification (PAE and envelope).
"""

from collections.abc import Mapping
from typing import Final

import attrs

from redflag_core import codec
from redflag_core.encoding import b64decode, b64encode, dump_json
from redflag_core.errors import MalformedError, UnknownKeyError
from redflag_core.keys import SigningKey, VerifyKey

MAX_ENVELOPE_BYTES: Final = 64 * 1024
"""The largest envelope of the protocol: a command, its parameters and its approval included."""

MAX_SIGNATURES: Final = 16
"""More than any threshold needs; bounds the work that a forger can cause."""


@attrs.frozen
class _WireSignature:
    keyid: str
    sig: str


@attrs.frozen
class _WireEnvelope:
    payload: str
    payloadType: str  # noqa: N815  (the name on the wire)
    signatures: tuple[_WireSignature, ...] = attrs.field(
        validator=[attrs.validators.min_len(1), attrs.validators.max_len(MAX_SIGNATURES)]
    )


@attrs.frozen
class Envelope:
    """
    An envelope as received: nothing in it is verified.

    Attributes:
        payload_type: What the sender says the payload is.
        payload: The payload bytes, as signed.
        signatures: Pairs of (key id, signature).
    """

    payload_type: str
    payload: bytes
    signatures: tuple[tuple[str, bytes], ...]


@attrs.frozen
class VerifiedPayload:
    """
    A payload whose signatures were verified.

    Attributes:
        payload: The bytes that were signed.
        key_ids: The keys that signed, each once.
    """

    payload: bytes
    key_ids: frozenset[str]


def pae(payload_type: str, payload: bytes) -> bytes:
    """The signing input: ``"DSSEv1" SP len(type) SP type SP len(payload) SP payload``, lengths in bytes."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign_envelope(payload_type: str, payload: bytes, *keys: SigningKey) -> bytes:
    """
    Sign *payload* as *payload_type* with each of *keys* (1 to `MAX_SIGNATURES`).

    Returns:
        The envelope as it goes on the wire.

    Raises:
        ValueError: No key, or too many: a bug of the caller.
    """
    if not 1 <= len(keys) <= MAX_SIGNATURES:
        raise ValueError(f"an envelope has 1 to {MAX_SIGNATURES} signatures")
    signing_input = pae(payload_type, payload)
    signatures = [{"keyid": key.key_id, "sig": b64encode(key.sign(signing_input))} for key in keys]
    return dump_json({"payload": b64encode(payload), "payloadType": payload_type, "signatures": signatures})


def parse_envelope(wire: bytes, *, max_bytes: int = MAX_ENVELOPE_BYTES) -> Envelope:
    """
    Take an envelope apart without believing it.

    Args:
        wire: Untrusted bytes.
        max_bytes: Longest envelope accepted.

    Raises:
        MalformedError: Not one strict envelope.
    """
    parsed = codec.parse(_WireEnvelope, wire, max_bytes=max_bytes)
    signatures = tuple((entry.keyid, b64decode(entry.sig)) for entry in parsed.signatures)
    return Envelope(parsed.payloadType, b64decode(parsed.payload), signatures)


def verify_envelope(
    wire: bytes,
    payload_type: str,
    keys: Mapping[str, VerifyKey],
    *,
    threshold: int = 1,
    max_bytes: int = MAX_ENVELOPE_BYTES,
) -> VerifiedPayload:
    """
    Verify an envelope and return the payload that may now be parsed.

    Signatures by unknown keys are passed over (an envelope may carry them for other readers); a signature that
    names a known key and does not verify refuses the whole envelope.

    Args:
        wire: Untrusted bytes.
        payload_type: The only type accepted. Types are never interchangeable.
        keys: Live keys by key id.
        threshold: How many different keys must have signed, at least 1.
        max_bytes: Longest envelope accepted.

    Raises:
        MalformedError: Not one strict envelope, or of another type.
        UnknownKeyError: Fewer than *threshold* known keys signed.
        SignatureError: A signature of a known key does not verify.
    """
    envelope = parse_envelope(wire, max_bytes=max_bytes)
    if envelope.payload_type != payload_type:
        raise MalformedError(f"the envelope is not of type {payload_type}")
    signing_input = pae(envelope.payload_type, envelope.payload)
    signed = set()
    for key_id, signature in envelope.signatures:
        key = keys.get(key_id)
        if key is not None:
            key.verify(signing_input, signature)
            signed.add(key.key_id)
    if len(signed) < max(threshold, 1):
        raise UnknownKeyError(f"{len(signed)} of the {max(threshold, 1)} signatures needed are by a known key")
    return VerifiedPayload(envelope.payload, frozenset(signed))
