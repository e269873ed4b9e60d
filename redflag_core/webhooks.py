"""
Standard Webhooks: notifications that the receiver can check, for the side that sends and the side that receives.

The signature is over ``{id}.{timestamp}.{raw body}``: by HMAC-SHA256 with a shared secret (``v1``), or by Ed25519
(``v1a``), where a receiver that is robbed gives away nothing. Prefer the second. Several signatures in one header
and several keys at the receiver let either side change its key without losing a message: the sender signs with the
old and the new one until the receiver knows the new one.

The rule of this file: what arrives is checked in the order shape, time, signature; what a secret made is compared
in constant time; whatever is wrong is a `VerificationError`.

Source: the Standard Webhooks specification, version 1. It leaves open what is inside ``whsk_``: here the 32-byte
seed is written, and both that and the 64 bytes of seed and public key are read.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, Protocol, TypeAlias

import attrs

from redflag_core.encoding import JsonValue, b64decode, b64encode, dump_json, parse_json
from redflag_core.errors import MalformedError, SignatureError, TooLargeError
from redflag_core.freshness import TOLERANCE, check_window, unix
from redflag_core.keys import SEED_SIZE, SIGNATURE_SIZE, SigningKey, VerifyKey, key_id
from redflag_core.ports import Entropy

ID_HEADER: Final = "webhook-id"
TIMESTAMP_HEADER: Final = "webhook-timestamp"
SIGNATURE_HEADER: Final = "webhook-signature"

SECRET_BYTES: Final = 32
"""Size of a new shared secret: that of the hash."""

MIN_SECRET: Final = 24
MAX_SECRET: Final = 64
"""Sizes of a shared secret, bytes, that the specification allows."""

MAX_BODY: Final = 1_048_576
"""Longest body unless told otherwise. The specification asks senders for less than 20 kB."""

MAX_ID: Final = 256
"""Longest message id. Those in use have about 30 characters."""

MAX_SIGNATURES: Final = 8
"""Most signatures in one message: two algorithms, old and new key, and as many to spare."""

MAX_KEYS: Final = 8
"""Most keys that one message is checked with: signatures times keys is what a forger makes a receiver compute."""

MAX_TYPE: Final = 128
"""Longest type of an event."""

_SECRET, _PRIVATE, _PUBLIC = "whsec_", "whsk_", "whpk_"
_MAX_HEADER: Final = 2048
"""Longest header read: `MAX_SIGNATURES` of the longer kind have 800 characters."""

_MAX_KEY_TEXT: Final = 128
_ID = re.compile(rf"[!-\-/-~]{{1,{MAX_ID}}}")  # printable ASCII without the full stop, which separates
_TIMESTAMP = re.compile(r"[1-9][0-9]{0,11}")
_SIGNATURE = re.compile(r"([a-z0-9]{1,8}),([A-Za-z0-9+/=]{1,512})")
_TYPE = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")
_SIZES: Final = {"v1": hashlib.sha256().digest_size, "v1a": SIGNATURE_SIZE}


class Headers(Protocol):
    """The headers of a request as frameworks give them: dicts, and multi-dicts that list a repeated name twice."""

    def items(self) -> Iterable[tuple[str, str]]:
        """Pairs of name and value; the case of names does not matter."""
        ...


@attrs.frozen(eq=False, repr=False)
class WebhookSecret:
    """
    A secret that sender and receiver share (``whsec_``). Immutable; its text form never shows it.

    Args:
        secret: 24 to 64 random bytes.

    Raises:
        MalformedError: Another size.
    """

    secret: bytes = attrs.field()

    @secret.validator
    def _has_a_size(self, _attribute: Any, value: object) -> None:
        if not isinstance(value, bytes) or not MIN_SECRET <= len(value) <= MAX_SECRET:
            raise MalformedError(f"the secret of a webhook has {MIN_SECRET} to {MAX_SECRET} bytes")

    @classmethod
    def generate(cls, entropy: Entropy) -> "WebhookSecret":
        """A new secret. Use another one for each receiver."""
        return cls(entropy.token(SECRET_BYTES))

    @property
    def key_id(self) -> str:
        """Which secret this is, in a form that can be shown: 32 hex digits that do not lead back to it."""
        return key_id(b"webhook secret\x00" + self.secret)

    def mac(self, signing_input: bytes) -> bytes:
        """HMAC-SHA256 over *signing_input*."""
        return hmac.digest(self.secret, signing_input, "sha256")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WebhookSecret) and hmac.compare_digest(self.secret, other.secret)

    def __hash__(self) -> int:
        return hash(self.key_id)

    def __repr__(self) -> str:
        return f"WebhookSecret(key_id={self.key_id!r})"


WebhookKey: TypeAlias = WebhookSecret | SigningKey | VerifyKey
"""What has a text form: a shared secret, or either half of an Ed25519 pair."""


@attrs.frozen
class VerifiedWebhook:
    """
    A message whose signature was verified. It can be claimed (`redflag_core.freshness.claim_nonce`).

    Claiming refuses a second copy of one attempt. A sender that tries again sends the same `id` with a new time:
    who must not do a thing twice remembers the id together with what was done.

    Attributes:
        id: Id of the message, the same in every attempt.
        created: Time of this attempt, unix seconds.
        key_id: Id of the key whose signature was found: shows when an old key is no longer used.
        body: Raw body.
    """

    id: str
    created: int
    key_id: str
    body: bytes = attrs.field(repr=False)

    @property
    def nonce(self) -> str:
        """The id, as what is claimed."""
        return self.id

    def payload(self) -> JsonValue:
        """
        The body as JSON, read strictly.

        Raises:
            MalformedError: It is none, or one that `redflag_core.encoding.parse_json` refuses.
        """
        return parse_json(self.body, max_bytes=len(self.body))


def parse_webhook_key(text: str) -> WebhookKey:
    """
    Read a key as it is written in settings: ``whsec_``, ``whsk_`` or ``whpk_`` and base64.

    Args:
        text: Untrusted text. Messages never repeat it.

    Raises:
        MalformedError: Another form or size, or a private key beside a public key that is not its own.
    """
    if not isinstance(text, str) or len(text) > _MAX_KEY_TEXT:
        raise MalformedError("not the key of a webhook")
    prefix = text[: text.find("_") + 1]
    if prefix not in (_SECRET, _PRIVATE, _PUBLIC):
        raise MalformedError("the key of a webhook starts with whsec_, whsk_ or whpk_")
    raw = b64decode(text.removeprefix(prefix))
    if prefix == _SECRET:
        return WebhookSecret(raw)
    return VerifyKey(raw) if prefix == _PUBLIC else _private(raw)


def format_webhook_key(key: WebhookKey) -> str:
    """
    The text of a key, which `parse_webhook_key` reads. That of a `VerifyKey` is the only one that is not secret.

    Args:
        key: The key.
    """
    if isinstance(key, WebhookSecret):
        return _SECRET + b64encode(key.secret)
    if isinstance(key, SigningKey):
        return _PRIVATE + b64encode(key.seed)
    return _PUBLIC + b64encode(key.public_key)


def sign_webhook(
    body: bytes,
    key: WebhookSecret | SigningKey,
    *others: WebhookSecret | SigningKey,
    message_id: str,
    now: datetime,
) -> dict[str, str]:
    """
    Sign one attempt to deliver a message.

    Args:
        body: The body exactly as it goes on the wire.
        key: The receiver's secret, or our private key.
        others: Further keys that the receiver may still, or already, know.
        message_id: The same in every attempt. Without a full stop.
        now: Time of this attempt, aware UTC.

    Returns:
        The three headers to add.

    Raises:
        MalformedError: An id that no receiver accepts, or more keys than `MAX_SIGNATURES`.
        TooLargeError: A body longer than `MAX_BODY`.
    """
    if not _ID.fullmatch(message_id):
        raise MalformedError(f"the id of a webhook is 1 to {MAX_ID} printable characters without a full stop")
    if len(others) >= MAX_SIGNATURES:
        raise MalformedError(f"a webhook has at most {MAX_SIGNATURES} signatures")
    _check_size(body, MAX_BODY)
    timestamp = str(int(unix(now)))
    signing_input = _signing_input(message_id, timestamp, body)
    return {
        ID_HEADER: message_id,
        TIMESTAMP_HEADER: timestamp,
        SIGNATURE_HEADER: " ".join(_sign(each, signing_input) for each in (key, *others)),
    }


def verify_webhook(
    headers: Headers,
    body: bytes,
    keys: Sequence[WebhookSecret | VerifyKey],
    *,
    now: datetime,
    tolerance: int = TOLERANCE,
    max_bytes: int = MAX_BODY,
) -> VerifiedWebhook:
    """
    Verify a message as a framework hands it over, and return the trusted part of it.

    One signature by one key is enough. Signatures of versions that are not known are ignored, as the specification
    says. Does no I/O and claims nothing: call `redflag_core.freshness.claim_nonce` next where a replay would hurt.

    Args:
        headers: Unverified headers of the request.
        body: Unverified raw body, before any decoding.
        keys: The keys on record for this sender, at most `MAX_KEYS`: one, or the old and the new one.
        now: Current time, aware UTC. Compared once.
        tolerance: Largest allowed clock difference in seconds, either direction, inclusive.
        max_bytes: Longest body accepted.

    Raises:
        VerificationError: The message must not be trusted. Any other exception is a bug: of the caller, when it
            gives more than `MAX_KEYS` keys or a naive *now* (`ValueError`).
    """
    if len(keys) > MAX_KEYS:
        raise ValueError(f"a message is checked with at most {MAX_KEYS} keys")
    _check_size(body, max_bytes)
    message_id = _header(headers, ID_HEADER, _ID)
    timestamp = _header(headers, TIMESTAMP_HEADER, _TIMESTAMP)
    signatures = _parse_signatures(_header(headers, SIGNATURE_HEADER))
    created = int(timestamp)
    check_window(created, created + tolerance, now=now, tolerance=tolerance)
    signing_input = _signing_input(message_id, timestamp, body)
    signer = _signer(keys, signatures, signing_input)
    return VerifiedWebhook(message_id, created, signer, body)


def webhook_body(kind: str, data: JsonValue, *, at: datetime) -> bytes:
    """
    A body in the form that the specification recommends: ``{"type": ..., "timestamp": ..., "data": ...}``.

    Args:
        kind: What happened, the type of the message: words of letters, digits and ``_``, joined by full stops.
        data: About what.
        at: When it happened, aware UTC: not when it is sent.

    Raises:
        MalformedError: *kind* has another form.
    """
    if len(kind) > MAX_TYPE or not _TYPE.fullmatch(kind):
        raise MalformedError("the type of a webhook is words of letters, digits and _, joined by full stops")
    moment = datetime.fromtimestamp(unix(at), UTC)
    return dump_json({"type": kind, "timestamp": moment.isoformat().replace("+00:00", "Z"), "data": data})


def _private(raw: bytes) -> SigningKey:
    key = SigningKey.from_seed(raw[:SEED_SIZE])
    if raw[SEED_SIZE:] not in (b"", key.verify_key.public_key):
        raise MalformedError(f"whsk_ holds a seed of {SEED_SIZE} bytes, alone or with its public key")
    return key


def _check_size(body: bytes, max_bytes: int) -> None:
    if len(body) > max_bytes:
        raise TooLargeError(f"the body of this webhook is larger than {max_bytes} bytes")


def _signing_input(message_id: str, timestamp: str, body: bytes) -> bytes:
    return f"{message_id}.{timestamp}.".encode() + body


def _sign(key: WebhookSecret | SigningKey, signing_input: bytes) -> str:
    if isinstance(key, WebhookSecret):
        return "v1," + b64encode(key.mac(signing_input))
    return "v1a," + b64encode(key.sign(signing_input))


def _header(headers: Headers, name: str, form: re.Pattern[str] | None = None) -> str:
    values = [value for key, value in headers.items() if key.lower() == name]
    if len(values) != 1:
        raise MalformedError(f"the header {name} is there {len(values)} times, not once")
    [value] = values
    if len(value) > _MAX_HEADER or (form is not None and not form.fullmatch(value)):
        raise MalformedError(f"the header {name} does not have its form")
    return value


def _parse_signatures(text: str) -> list[tuple[str, bytes]]:
    words = text.split(" ")
    if len(words) > MAX_SIGNATURES:
        raise MalformedError(f"a webhook has at most {MAX_SIGNATURES} signatures")
    found = [match.groups() for word in words if (match := _SIGNATURE.fullmatch(word))]
    if len(found) != len(words):
        raise MalformedError(f"the header {SIGNATURE_HEADER} is not versions and signatures, separated by blanks")
    known = [(version, b64decode(encoded)) for version, encoded in found if version in _SIZES]
    if any(len(signature) != _SIZES[version] for version, signature in known):
        raise MalformedError("a signature of this webhook does not have its length")
    return known


def _signer(
    keys: Sequence[WebhookSecret | VerifyKey], signatures: Sequence[tuple[str, bytes]], signing_input: bytes
) -> str:
    """The id of the first key that made one of *signatures*. Every key is tried."""
    by_version = {version: [signature for name, signature in signatures if name == version] for version in _SIZES}
    signers = [
        key.key_id
        for key in keys
        if (
            _any_mac(key, signing_input, by_version["v1"])
            if isinstance(key, WebhookSecret)
            else _any_verifies(key, signing_input, by_version["v1a"])
        )
    ]
    if not signers:
        raise SignatureError("no signature of this webhook is by a key on record: compare the keys of both sides")
    return signers[0]


def _any_mac(key: WebhookSecret, signing_input: bytes, macs: Sequence[bytes]) -> bool:
    expected = key.mac(signing_input)
    return any(hmac.compare_digest(expected, mac) for mac in macs)


def _any_verifies(key: VerifyKey, signing_input: bytes, signatures: Sequence[bytes]) -> bool:
    for signature in signatures:
        with suppress(SignatureError):
            key.verify(signing_input, signature)
            return True
    return False
