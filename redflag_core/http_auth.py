"""
Signed requests with any HTTP client, and in front of any ASGI or WSGI application.

No client and no framework is imported. `RequestAuth` signs on one side: a generator that any client, sync or
async, drives in a few lines. `RequestVerifier` judges on the other side, and `SignedAsgi` and `SignedWsgi` put it
in front of an application. The order is the protocol's: shape, time and signature are checked before a byte of the
body is taken, then the digest of the body, and last the nonce is claimed. What comes through is a
`VerifiedRequest`.

Sources: RFC 9421 in the profile of `redflag_core.signed_requests`; ASGI 3.0; PEP 3333.
"""

from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, MutableMapping, Sequence
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from io import BytesIO
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import quote

import attrs

from redflag_core.encoding import dump_json
from redflag_core.errors import MalformedError, StaleError, TooLargeError, UnknownKeyError, VerificationError
from redflag_core.freshness import TOLERANCE, check_window, claim_nonce, claim_nonce_sync, unix
from redflag_core.keys import SigningKey
from redflag_core.ports import Clock, Entropy, KeyRing, NonceStore, SyncNonceStore
from redflag_core.signed_requests import (
    ParsedRequest,
    Request,
    VerifiedRequest,
    new_nonce,
    parse_head,
    sign_request,
)

T = TypeVar("T")
Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
AsgiApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
WsgiApp: TypeAlias = Callable[[dict[str, Any], Any], Iterable[bytes]]

VERIFIED: Final = "redflag.verified"
"""Where an application finds the `VerifiedRequest`: in the ASGI scope, or in the WSGI environment."""

MAX_BODY: Final = 1024 * 1024
"""Bytes of a body that are taken unless told otherwise: it is held in memory until its digest is known."""

MIN_OFFSET: Final = 30
"""Seconds by which clocks must differ before the sender adjusts: a ``Date`` has whole seconds, and takes time."""

UNAUTHORIZED: Final = 401
_STATUS: Final[Mapping[type[VerificationError], int]] = {MalformedError: 400, TooLargeError: 413}
_PHRASES: Final = {400: "Bad Request", UNAUTHORIZED: "Unauthorized", 413: "Content Too Large"}

_RAW_TARGETS: Final = ("RAW_URI", "REQUEST_URI")
"""Where WSGI servers put the target as it was received (gunicorn, uWSGI, mod_wsgi): PEP 3333 names none."""

_PATH_SAFE: Final = "/:@!$&'()*+,;=-._~"
"""What stands in a path unquoted (RFC 3986, section 3.3), where a server has decoded it."""


# --- the sender --------------------------------------------------------------------------------------------------


@attrs.frozen
class Answer:
    """
    What the sender must know of an answer.

    Attributes:
        status: HTTP status.
        headers: Raw pairs of name and value. Untrusted.
    """

    status: int
    headers: Headers = ()


@attrs.define
class RequestAuth:
    """
    Signs requests to one server.

    Belongs to one thread or event loop, since it learns the server's time; one for each is cheap. After a fork
    each side learns by itself.

    Args:
        key: The sender's key.
        authority: The server's public name as configured, with the port unless it is the scheme's default.
        clock: The sender's wall time.
        entropy: Draws nonces.
        offset: Seconds that are added to the clock, learnt from the server. Only ``created`` is adjusted by it.
    """

    key: SigningKey
    authority: str
    clock: Clock
    entropy: Entropy
    offset: float = 0.0

    def flow(self, request: Request) -> Generator[Request, Answer, None]:
        """
        Sign a request, and sign it once more when the server says that the clock is wrong.

        Yields:
            The request with its signature; send it, and send the `Answer` back into the generator.
        """
        answer = yield self.sign(request)
        if answer.status == UNAUTHORIZED and self._learn(answer):
            yield self.sign(request)

    def sign(self, request: Request) -> Request:
        """The request with the headers of a fresh signature, without those of an earlier one."""
        unsigned = [pair for pair in request.headers if pair[0].lower() not in _SIGNING_HEADERS]
        bare = attrs.evolve(request, headers=unsigned)
        now = self.clock.now() + timedelta(seconds=self.offset)
        added = sign_request(bare, self.key, authority=self.authority, now=now, nonce=new_nonce(self.entropy))
        return attrs.evolve(bare, headers=(*unsigned, *added))

    def _learn(self, answer: Answer) -> bool:
        """Take over the server's time; whether that changes anything."""
        dates = [value for name, value in answer.headers if name.lower() == b"date"]
        try:
            date = parsedate_to_datetime(dates[0].decode("ascii"))
            offset = unix(date) - unix(self.clock.now())
        except (IndexError, ValueError):
            return False
        if abs(offset - self.offset) <= MIN_OFFSET:
            return False
        self.offset = offset
        return True


_SIGNING_HEADERS: Final = frozenset({b"content-digest", b"signature-input", b"signature"})


def send(flow: Generator[Request, Answer, None], transport: Callable[[Request], tuple[Answer, T]]) -> T:
    """
    Drive a flow with a client that blocks.

    Args:
        flow: `RequestAuth.flow` of a request.
        transport: Sends a request; what the flow must know of the answer, and the answer itself.

    Returns:
        The last answer.
    """
    request = next(flow)
    while True:
        answer, result = transport(request)
        try:
            request = flow.send(answer)
        except StopIteration:
            return result


async def send_async(
    flow: Generator[Request, Answer, None], transport: Callable[[Request], Awaitable[tuple[Answer, T]]]
) -> T:
    """`send` for a client that is awaited."""
    request = next(flow)
    while True:
        answer, result = await transport(request)
        try:
            request = flow.send(answer)
        except StopIteration:
            return result


# --- the receiver ------------------------------------------------------------------------------------------------


@attrs.frozen
class CheckedHead:
    """
    A request whose head is verified, and whose body has not been taken yet.

    Attributes:
        parsed: What was parsed.
        verified: The same without a body; its nonce is not claimed.
    """

    parsed: ParsedRequest
    verified: VerifiedRequest

    def with_body(self, body: bytes) -> VerifiedRequest:
        """
        The request with its body.

        Raises:
            SignatureError: The digest that was signed is not of this body.
        """
        self.parsed.with_body(body)
        return attrs.evolve(self.verified, body=body)


@attrs.frozen(kw_only=True)
class RequestVerifier:
    """
    Judges signed requests. Immutable: as safe to share between threads and over a fork as *keys* and *clock* are.

    Args:
        keys: Live keys of senders.
        authorities: The server's public names, in lower case, the main one first.
        clock: Wall time, for all replicas the same within seconds.
        with_token: Whether requests carry an access token, for the application to judge; else there must be none.
        prefix: Public path prefix that a proxy took away.
        tolerance: Seconds by which clocks may differ.
        max_body: Longest body, bytes.
    """

    keys: KeyRing
    authorities: Sequence[str]
    clock: Clock
    with_token: bool = False
    prefix: str = ""
    tolerance: int = TOLERANCE
    max_body: int = MAX_BODY

    def check_head(self, request: Request) -> CheckedHead:
        """
        Check shape, time and signature of a request, without its body.

        Args:
            request: Unverified; its body is not looked at.

        Raises:
            VerificationError: It must not be trusted. Any other exception is a bug.
        """
        parsed = parse_head(request, authorities=self.authorities, with_token=self.with_token, prefix=self.prefix)
        check_window(parsed.created, parsed.expires, now=self.clock.now(), tolerance=self.tolerance)
        key = self.keys.find(parsed.key_id)
        if key is None:
            raise UnknownKeyError("nobody here knows the key that signed this request")
        return CheckedHead(parsed, parsed.verify(key))

    async def admit(self, request: Request, nonces: NonceStore) -> VerifiedRequest:
        """
        Verify a whole request and claim its nonce.

        Args:
            request: Unverified.
            nonces: Where nonces are claimed.

        Raises:
            VerificationError: It must not be trusted, or was received before.
        """
        verified = self._whole(request)
        await claim_nonce(verified, nonces)
        return verified

    def admit_sync(self, request: Request, nonces: SyncNonceStore) -> VerifiedRequest:
        """`admit` with a store that blocks."""
        verified = self._whole(request)
        claim_nonce_sync(verified, nonces)
        return verified

    def _whole(self, request: Request) -> VerifiedRequest:
        head = self.check_head(request)
        self.check_size(len(request.body))
        return head.with_body(request.body)

    def check_size(self, size: int) -> None:
        """
        Refuse a body that is too long.

        Raises:
            TooLargeError: It has more than ``max_body`` bytes.
        """
        if size > self.max_body:
            raise TooLargeError(f"the body is larger than {self.max_body} bytes")


def problem(error: VerificationError, clock: Clock) -> tuple[int, Headers, bytes]:
    """
    The answer to a request that is refused: problem details (RFC 9457).

    Args:
        error: Why.
        clock: Its wall time goes with an error about time, so that the sender can adjust.

    Returns:
        Status, headers and body.
    """
    status = _STATUS.get(type(error), UNAUTHORIZED)
    document = {
        "type": "about:blank",
        "title": _PHRASES[status],
        "status": status,
        "code": error.code,
        "detail": error.message,
    }
    body = dump_json(document)
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))]
    if isinstance(error, StaleError):
        headers.append((b"date", format_datetime(clock.now(), usegmt=True).encode()))
    return status, headers, body


# --- ASGI --------------------------------------------------------------------------------------------------------


def request_from_asgi(scope: Mapping[str, Any], body: bytes = b"") -> Request:
    """
    A request as an ASGI server received it.

    Args:
        scope: Of type ``http``. Without ``raw_path`` the path is quoted anew, and one that was quoted in another
            way does not verify.
        body: Raw body.
    """
    raw = scope.get("raw_path")
    # Some servers put the query into raw_path as well.
    path = quote(scope["path"], safe=_PATH_SAFE).encode() if raw is None else raw.split(b"?", 1)[0]
    query = scope.get("query_string", b"")
    return Request(scope["method"], path.decode("latin-1"), query.decode("latin-1"), scope["headers"], body)


@attrs.frozen
class SignedAsgi:
    """
    Lets only verified requests through to an ASGI application, which finds them in ``scope[VERIFIED]``.

    Start-up and shut-down pass. A WebSocket has no signature here and is closed. Immutable: as safe to share
    between threads, event loops and over a fork as what it is given.

    Args:
        app: The application.
        verifier: Judges requests.
        nonces: Where nonces are claimed.
    """

    app: AsgiApp
    verifier: RequestVerifier
    nonces: NonceStore

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        try:
            head = self.verifier.check_head(request_from_asgi(scope))
            verified = head.with_body(await self._body(receive))
            await claim_nonce(verified, self.nonces)
        except VerificationError as error:
            status, headers, text = problem(error, self.verifier.clock)
            await send({"type": "http.response.start", "status": status, "headers": list(headers)})
            await send({"type": "http.response.body", "body": text})
            return
        await self.app({**scope, VERIFIED: verified}, _replay(verified.body, receive), send)

    async def _body(self, receive: Any) -> bytes:
        chunks, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise MalformedError("the body ended early")
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            self.verifier.check_size(size)
            more = message.get("more_body", False)
        return b"".join(chunks)


def _replay(body: bytes, receive: Any) -> Any:
    """What an application receives: the body that was read, then whatever comes."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Any:
        return messages.pop() if messages else await receive()

    return replayed


# --- WSGI --------------------------------------------------------------------------------------------------------


def request_from_wsgi(environ: Mapping[str, Any], body: bytes = b"") -> Request:
    """
    A request as a WSGI server received it.

    Args:
        environ: The environment (PEP 3333). Where the server does not give the target as it was received, the path
            is quoted anew, and one that was quoted in another way does not verify.
        body: Raw body.
    """
    headers = [
        (name.removeprefix("HTTP_").replace("_", "-").lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in environ.items()
        if name.startswith("HTTP_") or (name in ("CONTENT_TYPE", "CONTENT_LENGTH") and value)
    ]
    return Request(environ["REQUEST_METHOD"], _wsgi_path(environ), environ.get("QUERY_STRING", ""), headers, body)


def _wsgi_path(environ: Mapping[str, Any]) -> str:
    for name in _RAW_TARGETS:
        target = str(environ.get(name, ""))
        if target.startswith("/"):
            return target.split("?", 1)[0]
    decoded = f"{environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}"
    return quote(decoded.encode("latin-1"), safe=_PATH_SAFE)


@attrs.frozen
class SignedWsgi:
    """
    Lets only verified requests through to a WSGI application, which finds them in ``environ[VERIFIED]``.

    Immutable: as safe to share between threads and over a fork as what it is given.

    Args:
        app: The application.
        verifier: Judges requests.
        nonces: Where nonces are claimed; shared by threads and processes, so a store that is safe for these.
    """

    app: WsgiApp
    verifier: RequestVerifier
    nonces: SyncNonceStore

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Serve one request."""
        try:
            head = self.verifier.check_head(request_from_wsgi(environ))
            verified = head.with_body(self._body(environ))
            claim_nonce_sync(verified, self.nonces)
        except VerificationError as error:
            status, headers, text = problem(error, self.verifier.clock)
            named = [(name.decode().title(), value.decode()) for name, value in headers]
            start_response(f"{status} {_PHRASES[status]}", named)
            return [text]
        return self.app({**environ, VERIFIED: verified, "wsgi.input": BytesIO(verified.body)}, start_response)

    def _body(self, environ: Mapping[str, Any]) -> bytes:
        text = environ.get("CONTENT_LENGTH") or "0"
        if not (text.isascii() and text.isdecimal()):
            raise MalformedError("the header content-length is no number")
        self.verifier.check_size(int(text))
        body: bytes = environ["wsgi.input"].read(int(text))
        return body
