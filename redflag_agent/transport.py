"""
Signed HTTP to the server: each attempt signed anew, answers bounded, failures as types.

From the outside in: `ServerClient.post` and `get` retry what is worth it (`redflag_core.resilience`, with a
budget), a breaker leaves a server alone that keeps failing, each attempt tries the addresses in order, and each
exchange signs with a fresh nonce. A clock that is off is learnt from the server's ``Date`` and only shifts
``created``.

A request that the server may hold open (a long-poll) has its own end: a connection that broke while it was held is
a `PollCutError`, which says that something on the way does not wait so long and nothing about the server.
"""

import gzip
import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

import attrs
import httpx2

from redflag_agent.address import Address
from redflag_agent.answers import (
    AnswerError,
    ServerFailedError,
    ServerRefusedError,
    ThrottledError,
    UnreachableError,
    answer_error,
    parse_date,
)
from redflag_agent.connection import timeout_with
from redflag_agent.progress import line
from redflag_agent.tls import LearntAuthorityError
from redflag_core import __version__
from redflag_core.errors import RedFlagError
from redflag_core.keys import SigningKey
from redflag_core.ports import Clock, Entropy
from redflag_core.resilience import Breaker, BreakerPolicy, BreakerState, RetryBudget, RetryPolicy, retry
from redflag_core.signed_requests import Request, new_nonce, sign_request

log = logging.getLogger(__name__)

API: Final = "/api/v1"

MAX_ANSWER: Final = 256 * 1024
"""Bytes. The largest answer is a trust bundle, or a check-in with a command and its approval."""

RETRIES: Final = RetryPolicy(attempts=3, wait_initial=1.0, wait_max=10.0, wait_jitter=1.0, timeout=30.0)
"""Short: longer waits are the runner's, which meanwhile does other things and can be stopped."""

BREAKER: Final = BreakerPolicy(failure_threshold=5, reset_timeout=60.0, call_timeout=300.0)
"""The timeout lets a full report of 16 MiB through a line of 0.5 Mbit/s."""

PACKED: Final = ("/agent/reports/", "/agent/results", "/agent/errors")
"""Where bodies can be large: there they are compressed, which the server takes nowhere else."""

WORTH_PACKING: Final = 2048
"""Bytes: a smaller body fits into few packets as it is."""

PACKING_LEVEL: Final = 6

HELD_AT_LEAST: Final = 2.0
"""Seconds after which a connection that breaks was held and then cut. One that breaks sooner was never held: a
server that is down or starting refuses within milliseconds."""

GATEWAY_TIMEOUTS: Final = frozenset({408, 502, 504, 524})
"""What proxies answer when they do not wait any longer."""


class PollCutError(RedFlagError):
    """A request that the server held open broke: somebody on the way does not wait so long."""

    code = "poll_cut"


@attrs.define
class ServerClient:
    """
    The server, as the agent's network process sees it.

    Args:
        addresses: Where the server is, tried in order; the one that answered last is tried first.
        http: The HTTP client. Its owner closes it.
        key: The agent key; signs every `post`.
        clock: Wall time for signatures, monotonic for the breaker.
        entropy: Draws nonces and jitter.
        retries: How often and how long one call tries.
    """

    addresses: Sequence[Address]
    http: httpx2.AsyncClient
    key: SigningKey
    clock: Clock
    entropy: Entropy
    retries: RetryPolicy = RETRIES
    offset: float = attrs.field(default=0.0, init=False)
    """Seconds that the server's clock is ahead of this one, as learnt from it."""
    breaker: Breaker = attrs.field(init=False)
    _budget: RetryBudget = attrs.field(factory=RetryBudget, init=False)
    _preferred: int = attrs.field(default=0, init=False)
    _packs: bool = attrs.field(default=True, init=False)

    def __attrs_post_init__(self) -> None:
        ignored = (ServerRefusedError, PollCutError)
        self.breaker = Breaker("the server", BREAKER, clock=self.clock, ignore=ignored)

    @property
    def may_hold(self) -> bool:
        """Whether a long request is wise: the one trial call of an open circuit would keep all others waiting."""
        return self.breaker.status.state is BreakerState.CLOSED

    async def post(
        self, path: str, body: bytes, *, access_token: str | None = None, hold: int = 0, once: bool = False
    ) -> bytes:
        """
        Send a signed request.

        Args:
            path: Below ``/api/v1``, with a leading slash.
            body: JSON.
            access_token: Needed except for registration and token requests, which must not have one.
            hold: Seconds for which the server may hold the request open before it answers.
            once: Whether a failure is not worth another attempt.

        Returns:
            The body of a 2xx answer, unverified.

        Raises:
            AnswerError: The server did not say yes.
            UnreachableError: No address answered.
            PollCutError: The connection broke while the server held the request.
            CircuitOpenError: It failed so often that it is left alone for a while.
        """
        headers = {"content-type": "application/json"}
        if access_token is not None:
            headers["authorization"] = f"Bearer {access_token}"
        attempt = _Attempt("POST", API + path, headers, body, hold)
        if self._packs and len(body) >= WORTH_PACKING and path.startswith(PACKED):
            try:
                return await self._call(attempt.packed(), once=once)
            except ServerRefusedError as error:
                if error.problem != "unsupported_encoding":
                    raise
                self._packs = False  # an older server, until this agent is started again
        return await self._call(attempt, once=once)

    async def get(self, path: str) -> bytes:
        """Fetch a public document, unsigned. Raises as `post` does."""
        return await self._call(_Attempt("GET", API + path, {}))

    async def _call(self, attempt: "_Attempt", *, once: bool = False) -> bytes:
        return await retry(
            attrs.evolve(self.retries, attempts=1) if once else self.retries,
            lambda: self._guarded(attempt),
            on=(UnreachableError, ServerFailedError, ThrottledError),
            budget=self._budget,
            clock=self.clock,
            entropy=self.entropy,
        )

    async def _guarded(self, attempt: "_Attempt") -> bytes:
        try:
            return await self.breaker.call(lambda: self._try_addresses(attempt))
        except TimeoutError:
            raise UnreachableError(f"the server took longer than {BREAKER.call_timeout:.0f} s") from None

    async def _try_addresses(self, attempt: "_Attempt") -> bytes:
        last: UnreachableError | ServerFailedError = UnreachableError("the server has no address")
        for step in range(len(self.addresses)):
            index = (self._preferred + step) % len(self.addresses)
            try:
                answer = await self._exchange(self.addresses[index], attempt)
            except (UnreachableError, ServerFailedError) as error:
                last = error
                continue
            self._preferred = index
            return answer
        raise last

    async def _exchange(self, address: Address, attempt: "_Attempt") -> bytes:
        """One exchange, and once more with the right time when the server says that the clock is off."""
        try:
            return await self._send(address, attempt)
        except _StaleError as stale:
            if attempt.signed and self._learn_offset(stale):
                return await self._send(address, attempt)
            raise

    def _learn_offset(self, stale: "_StaleError") -> bool:
        date = parse_date(stale.date)
        if date is None:
            return False
        self.offset = (date - self.clock.now()).total_seconds()
        log.warning(line("clock_off", seconds=round(self.offset), advice="set this machine's clock"))
        return True

    async def _send(self, address: Address, attempt: "_Attempt") -> bytes:
        began = self.clock.monotonic()
        try:
            return await self._send_plainly(address, attempt)
        except (UnreachableError, AnswerError) as error:
            held = self.clock.monotonic() - began
            if attempt.hold and held >= HELD_AT_LEAST and _is_cut(error):
                raise PollCutError(f"a request to {address} was cut off after {held:.0f} s") from None
            raise

    async def _send_plainly(self, address: Address, attempt: "_Attempt") -> bytes:
        try:
            return await self._read(self._request(address, attempt))
        except httpx2.HTTPError as error:
            if not _caused_by(error, LearntAuthorityError):
                raise _unreachable(address, error) from None
        try:
            return await self._read(self._request(address, attempt))
        except httpx2.HTTPError as error:
            raise _unreachable(address, error) from None

    def _request(self, address: Address, attempt: "_Attempt") -> httpx2.Request:
        headers = {
            **attempt.headers,
            "accept-encoding": "identity",
            "user-agent": f"redflag-agent/{__version__}",
        }
        url, timeout = address.url(attempt.path), timeout_with(attempt.hold).as_dict()
        request = httpx2.Request(
            attempt.method, url, headers=headers, content=attempt.body, extensions={"timeout": timeout}
        )
        if attempt.signed:
            request.headers.update(self._signature(address, request, attempt.body))
        return request

    def _signature(self, address: Address, request: httpx2.Request, body: bytes) -> Mapping[str, str]:
        path, _, query = request.url.raw_path.decode("ascii").partition("?")
        raw = [(name.lower(), value) for name, value in request.headers.raw]
        signed = sign_request(
            Request(request.method, path, query, raw, body),
            self.key,
            authority=address.authority,
            now=self.clock.now() + timedelta(seconds=self.offset),
            nonce=new_nonce(self.entropy),
        )
        return {name.decode(): value.decode() for name, value in signed}

    async def _read(self, request: httpx2.Request) -> bytes:
        response = await self.http.send(request, stream=True)
        try:
            body = await _bounded(response)
        finally:
            await response.aclose()
        if response.is_success:
            return body
        raise self._refusal(response, body)

    def _refusal(self, response: httpx2.Response, body: bytes) -> Exception:
        if 300 <= response.status_code < 400:
            return UnreachableError("the server address answers with a redirect: use the address it points to")
        error = answer_error(
            response.status_code, body, retry_after=response.headers.get("retry-after"), now=self.clock.now()
        )
        if error.status == 401 and error.problem == "stale":
            return _StaleError(error, response.headers.get("date"))
        return error


@attrs.frozen
class _Attempt:
    method: str
    path: str
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(default=b"", repr=False)
    hold: int = 0

    @property
    def signed(self) -> bool:
        return self.method != "GET"

    def packed(self) -> "_Attempt":
        headers = {**self.headers, "content-encoding": "gzip"}
        return attrs.evolve(self, headers=headers, body=gzip.compress(self.body, PACKING_LEVEL, mtime=0))


class _StaleError(ServerRefusedError):
    """The server says that this clock is off, and what time it is."""

    def __init__(self, answer: AnswerError, date: str | None) -> None:
        super().__init__(answer.status, answer.problem, answer.detail, answer.retry_after)
        self.date = date


class _BrokenError(UnreachableError):
    """The connection was there and gave no whole answer."""


_BROKEN: Final = (httpx2.ReadTimeout, httpx2.ReadError, httpx2.RemoteProtocolError)


async def _bounded(response: httpx2.Response) -> bytes:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise UnreachableError("the answer is compressed though that was not accepted: a proxy changes answers")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_ANSWER:
            raise UnreachableError(f"the answer is larger than {MAX_ANSWER} bytes: this is not the server")
    return bytes(body)


def _unreachable(address: Address, error: httpx2.HTTPError) -> UnreachableError:
    reason = str(error) or type(error).__name__
    kind = _BrokenError if isinstance(error, _BROKEN) else UnreachableError
    return kind(f"{address} cannot be reached: {reason}")


def _is_cut(error: UnreachableError | AnswerError) -> bool:
    return isinstance(error, _BrokenError) or getattr(error, "status", None) in GATEWAY_TIMEOUTS


def _caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or error.__context__
    return False
