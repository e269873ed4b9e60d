"""What the server answered when it did not simply say yes, as types with the server's own ``code``."""

from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final

from redflag_core.encoding import parse_json
from redflag_core.errors import MalformedError, RedFlagError
from redflag_core.freshness import unix
from redflag_core.scanning import clean_text

MAX_DETAIL: Final = 500
"""Longest sentence of the server that is shown or logged."""

MAX_RETRY_AFTER: Final = 3600.0
"""Seconds. Longest pause that a server may ask for: an agent must not be silenced for a day by one answer."""


class UnreachableError(RedFlagError):
    """No address of the server gave an answer that is one: network, TLS, proxy, or something else is there."""

    code = "server_unreachable"


class AnswerError(RedFlagError):
    """
    The server answered, and did not say yes.

    Attributes:
        status: HTTP status.
        problem: The server's stable code (RFC 9457 problem details), or ``http_<status>``.
        detail: The server's sentence, cleaned and bounded.
        retry_after: Seconds that the server asked for, None when it did not.
    """

    code = "server_answer"

    def __init__(self, status: int, problem: str, detail: str, retry_after: float | None = None) -> None:
        super().__init__(f"the server says: {detail} ({problem})")
        self.status = status
        self.problem = problem
        self.detail = detail
        self.retry_after = retry_after


class ServerRefusedError(AnswerError):
    """The server understood and refused (4xx): the same request will be refused again."""

    code = "server_refused"


class ThrottledError(ServerRefusedError):
    """Too many requests (429): later is fine."""

    code = "server_throttled"


class ServerFailedError(AnswerError):
    """The server cannot answer now (5xx)."""

    code = "server_failed"


def answer_error(status: int, body: bytes, *, retry_after: str | None, now: datetime) -> AnswerError:
    """
    The error for an answer that is not 2xx.

    Args:
        status: HTTP status.
        body: Untrusted body; problem+json or anything else.
        retry_after: The header, untrusted: seconds or an HTTP date (RFC 9110, section 10.2.3).
        now: Current time, for a date.
    """
    problem, detail = _problem(status, body)
    kind = ServerRefusedError if status < 500 else ServerFailedError
    if status == 429:
        kind = ThrottledError
    return kind(status, problem, detail, _seconds(retry_after, now))


def parse_date(text: str | None) -> datetime | None:
    """An HTTP date (RFC 9110, section 5.6.7) as aware UTC, or None."""
    try:
        moment = parsedate_to_datetime(text or "")
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def _problem(status: int, body: bytes) -> tuple[str, str]:
    try:
        document = parse_json(body, max_bytes=len(body))
    except MalformedError:
        document = None
    fields = document if isinstance(document, dict) else {}
    code, detail = fields.get("code"), fields.get("detail") or fields.get("title")
    return (
        clean_text(code, max_len=64) if isinstance(code, str) and code else f"http_{status}",
        clean_text(detail, max_len=MAX_DETAIL) if isinstance(detail, str) and detail else f"HTTP {status}",
    )


def _seconds(header: str | None, now: datetime) -> float | None:
    if header is None:
        return None
    if header.isascii() and header.isdigit():
        return min(float(header), MAX_RETRY_AFTER)
    moment = parse_date(header)
    return None if moment is None else min(max(unix(moment) - unix(now), 0.0), MAX_RETRY_AFTER)
