"""
Signed HTTP requests: RFC 9421 in exactly one profile.

One label (``rf``), one list of covered components in one order, one algorithm (ed25519), one tag. Whatever
differs is malformed: there is nothing to negotiate and so nothing to confuse. The digest of the body is of the
raw bytes as sent (RFC 9530).

The verifying side has three steps: `parse_request` (shape; no key needed), `freshness.check_window`, and
`ParsedRequest.verify`; `verify_request` does all three. None of them claims the nonce: `freshness.claim_nonce`
comes next, after the binding of key and agent is known.

Sources: RFC 9421 (sections 2.2, 2.3, 2.5, 3.1, 3.2), RFC 9530 (section 2).
"""

import hashlib
import hmac
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import attrs

from redflag_core.encoding import b64decode, b64encode, b64url_decode, b64url_encode
from redflag_core.errors import MalformedError, SignatureError
from redflag_core.freshness import TOLERANCE, check_window, unix
from redflag_core.keys import SigningKey, VerifyKey
from redflag_core.ports import Entropy

TAG: Final = "redflag-agent-v1"
LIFETIME: Final = 300
"""Seconds from ``created`` to ``expires``."""

NONCE_BYTES: Final = 16
MAX_HEADER_BYTES: Final = 8192
"""Longest single header read. The longest genuine one, the access token, has about 600 bytes."""

_BEFORE_DIGEST = ("@method", "@authority", "@path", "@query", "content-digest")
_SIGNATURE_INPUT = re.compile(
    r'rf=(?P<params>\((?P<components>"[a-z@-]+"(?: "[a-z@-]+")*)\)'
    r";created=(?P<created>[1-9][0-9]{0,11});expires=(?P<expires>[1-9][0-9]{0,11})"
    r';nonce="(?P<nonce>[A-Za-z0-9_-]{22})";keyid="(?P<keyid>[0-9a-f]{32})"'
    rf';alg="ed25519";tag="{TAG}")'
)
_SIGNATURE = re.compile(r"rf=:([A-Za-z0-9+/]{86}==):")
_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")
_BEARER = re.compile(r"Bearer [A-Za-z0-9._~+/-]+=*")
_METHOD = re.compile(r"[A-Z]{1,20}")
_ENCODING = re.compile(r"[a-z0-9-]{1,20}")
_TARGET = re.compile(r"[!-~]*")


@attrs.frozen
class Request:
    """
    An HTTP request as received or about to be sent: nothing in it is verified.

    Attributes:
        method: Upper-case method.
        path: Undecoded path, as on the request line.
        query: Undecoded query without the question mark; empty when absent.
        headers: Raw pairs of name and value (the form of ASGI).
        body: Raw body, before any content decoding.
    """

    method: str
    path: str
    query: str
    headers: Sequence[tuple[bytes, bytes]] = attrs.field(repr=False)
    body: bytes = attrs.field(default=b"", repr=False)

    def header(self, name: bytes) -> str | None:
        """
        The one value of a header, or None.

        Args:
            name: In lower case; the header's own case does not matter.

        Raises:
            MalformedError: It is there twice, or is too long, or not ASCII.
        """
        values = [value for key, value in self.headers if key.lower() == name]
        if not values:
            return None
        if len(values) > 1:
            raise MalformedError(f"the header {name.decode()} is there {len(values)} times")
        if len(values[0]) > MAX_HEADER_BYTES or not values[0].isascii():
            raise MalformedError(f"the header {name.decode()} is not short ASCII text")
        return values[0].decode("ascii")


@attrs.frozen
class ParsedRequest:
    """
    A request of the right shape whose signature is **not verified**.

    Attributes:
        key_id: Key id that the sender claims.
        created: Claimed creation time, unix seconds.
        expires: Claimed end, unix seconds.
        nonce: Claimed nonce, 22 characters.
        access_token: The bearer token, or None where the profile has none.
        content_digest: SHA-256 that the signature covers in place of the body, 32 bytes.
        body: Raw body of this digest; empty until `with_body` when only the head was parsed.
        signing_input: The signature base (RFC 9421, section 2.5).
        signature: 64 bytes.
    """

    key_id: str
    created: int
    expires: int
    nonce: str
    access_token: str | None = attrs.field(repr=False)
    content_digest: bytes
    body: bytes = attrs.field(repr=False)
    signing_input: bytes = attrs.field(repr=False)
    signature: bytes = attrs.field(repr=False)

    def with_body(self, body: bytes) -> "ParsedRequest":
        """
        The request with the body that arrived after its head.

        Args:
            body: Unverified raw body.

        Raises:
            SignatureError: The digest that is signed is not of this body.
        """
        if not hmac.compare_digest(self.content_digest, hashlib.sha256(body).digest()):
            raise SignatureError("the content digest is not of this body")
        return attrs.evolve(self, body=body)

    def verify(self, key: VerifyKey) -> "VerifiedRequest":
        """
        Check the signature with the key on record for `key_id`.

        Raises:
            SignatureError: The key is another one, or the signature does not verify.
        """
        if key.key_id != self.key_id:
            raise SignatureError("the request is signed by another key")
        key.verify(self.signing_input, self.signature)
        return VerifiedRequest(self.key_id, self.created, self.nonce, self.access_token, self.body)


@attrs.frozen
class VerifiedRequest:
    """A request whose signature was verified. Its nonce still has to be claimed."""

    key_id: str
    created: int
    nonce: str
    access_token: str | None = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)


def new_nonce(entropy: Entropy) -> str:
    """A fresh nonce: 16 random bytes in base64url, 22 characters."""
    return b64url_encode(entropy.token(NONCE_BYTES))


def sign_request(
    request: Request, key: SigningKey, *, authority: str, now: datetime, nonce: str
) -> tuple[tuple[bytes, bytes], ...]:
    """
    Sign a request that is about to be sent.

    Whether it carries an access token or a content encoding is read from its headers.

    Args:
        request: The request, with the path and query exactly as they go on the wire.
        key: The sender's key.
        authority: The server's public name as configured, with the port unless it is the scheme's default.
        now: The sender's time, aware UTC, corrected by the offset learnt from the server.
        nonce: A fresh one from `new_nonce`; never used twice.

    Returns:
        The headers to add: content-digest, signature-input, signature.

    Raises:
        MalformedError: A method, path, query or content encoding that the server would refuse.
    """
    _check_request_line(request)
    created = int(unix(now))
    digest = f"sha-256=:{b64encode(hashlib.sha256(request.body).digest())}:"
    components = _components(request)
    names = " ".join(f'"{name}"' for name in components)
    params = (
        f'({names});created={created};expires={created + LIFETIME};nonce="{nonce}"'
        f';keyid="{key.key_id}";alg="ed25519";tag="{TAG}"'
    )
    signature = key.sign(_signature_base(request, components, authority, digest, params))
    return (
        (b"content-digest", digest.encode()),
        (b"signature-input", f"rf={params}".encode()),
        (b"signature", f"rf=:{b64encode(signature)}:".encode()),
    )


def parse_request(
    request: Request, *, authorities: Sequence[str], with_token: bool, prefix: str = ""
) -> ParsedRequest:
    """
    Check the shape of a signed request and the digest of its body.

    Args:
        request: Unverified request, as received.
        authorities: The server's public names, in lower case, the main one first. The name signed must be the
            ``Host`` received if that is one of them, else the main one; forwarded headers are never read.
        with_token: True where an access token is required; False where there must not be one.
        prefix: Public path prefix that a proxy took away before the request came here.

    Returns:
        The request with its signature **unverified**.

    Raises:
        MalformedError: Any other shape than the one profile.
        SignatureError: The digest is not of this body.
    """
    head = parse_head(request, authorities=authorities, with_token=with_token, prefix=prefix)
    return head.with_body(request.body)


def parse_head(
    request: Request, *, authorities: Sequence[str], with_token: bool, prefix: str = ""
) -> ParsedRequest:
    """
    Check the shape of a signed request before its body is read: the body is signed through its digest.

    A server can so refuse a stranger without taking a body from it. Call `ParsedRequest.with_body` next.

    Args:
        request: Unverified request, as received; its body is not looked at.
        authorities: See `parse_request`.
        with_token: See `parse_request`.
        prefix: See `parse_request`.

    Returns:
        The request without a body, its signature **unverified**.

    Raises:
        MalformedError: Any other shape than the one profile.
    """
    _check_request_line(request)
    match = _required(request, b"signature-input", _SIGNATURE_INPUT)
    signature = _required(request, b"signature", _SIGNATURE)
    digest = _required(request, b"content-digest", _DIGEST)
    components = _components(request)
    if match["components"] != " ".join(f'"{name}"' for name in components):
        raise MalformedError("the signature does not cover exactly the components of the profile")
    if int(match["expires"]) - int(match["created"]) != LIFETIME:
        raise MalformedError(f"the signature must expire {LIFETIME} seconds after its creation")
    b64url_decode(match["nonce"])
    moved = attrs.evolve(request, path=prefix + request.path)
    base = _signature_base(moved, components, _authority(request, authorities), digest[0], match["params"])
    return ParsedRequest(
        key_id=match["keyid"],
        created=int(match["created"]),
        expires=int(match["expires"]),
        nonce=match["nonce"],
        access_token=_access_token(request, with_token=with_token),
        content_digest=b64decode(digest[1]),
        body=b"",
        signing_input=base,
        signature=b64decode(signature[1]),
    )


def verify_request(
    request: Request,
    key: VerifyKey,
    *,
    authorities: Sequence[str],
    now: datetime,
    with_token: bool = True,
    prefix: str = "",
    tolerance: int = TOLERANCE,
) -> VerifiedRequest:
    """
    Verify *request* against *key* and return the trusted part of it.

    Does no I/O and claims no nonce: call `redflag_core.freshness.claim_nonce` next.

    Args:
        request: Unverified request, as received.
        key: Verify key on record for the sender.
        authorities: See `parse_request`.
        now: Current time, aware UTC. Compared once.
        with_token: See `parse_request`.
        prefix: See `parse_request`.
        tolerance: Largest allowed clock difference in seconds, either direction, inclusive.

    Raises:
        VerificationError: The request must not be trusted. Any other exception is a bug.
    """
    parsed = parse_request(request, authorities=authorities, with_token=with_token, prefix=prefix)
    check_window(parsed.created, parsed.expires, now=now, tolerance=tolerance)
    return parsed.verify(key)


def _check_request_line(request: Request) -> None:
    if not _METHOD.fullmatch(request.method) or not _TARGET.fullmatch(request.path + request.query):
        raise MalformedError("the request line is not of HTTP")


def _components(request: Request) -> tuple[str, ...]:
    names: tuple[str, ...] = _BEFORE_DIGEST
    encoding = request.header(b"content-encoding")
    if encoding is not None:
        if not _ENCODING.fullmatch(encoding):
            raise MalformedError("the header content-encoding must name one encoding")
        names += ("content-encoding",)
    if request.header(b"authorization") is not None:
        names += ("authorization",)
    return names


def _signature_base(
    request: Request, components: tuple[str, ...], authority: str, digest: str, params: str
) -> bytes:
    values = {
        "@method": request.method,
        "@authority": authority.lower(),
        "@path": request.path or "/",
        "@query": f"?{request.query}",
        "content-digest": digest,
    }
    lines = [
        f'"{name}": {values[name] if name in values else (request.header(name.encode()) or "").strip()}'
        for name in components
    ]
    return "\n".join([*lines, f'"@signature-params": {params}']).encode()


def _required(request: Request, name: bytes, pattern: re.Pattern[str]) -> re.Match[str]:
    match = pattern.fullmatch(request.header(name) or "")
    if match is None:
        raise MalformedError(f"the header {name.decode()} is missing or not of the profile {TAG}")
    return match


def _access_token(request: Request, *, with_token: bool) -> str | None:
    value = request.header(b"authorization")
    if not with_token:
        if value is not None:
            raise MalformedError("there must be no authorization header here")
        return None
    if value is None or not _BEARER.fullmatch(value):
        raise MalformedError("the authorization header must be a bearer token")
    return value.removeprefix("Bearer ")


def _authority(request: Request, authorities: Sequence[str]) -> str:
    host = (request.header(b"host") or "").lower()
    return host if host in authorities else authorities[0]
