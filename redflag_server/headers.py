"""Security headers on every answer, errors included (OWASP ASVS 5.0, 3.4)."""

from collections.abc import Mapping
from typing import Final

from litestar.datastructures import MutableScopeHeaders
from litestar.types import Message, Scope

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

ALWAYS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

HSTS: Final = ("Strict-Transport-Security", "max-age=31536000; includeSubDomains")


class SecurityHeaders:
    """
    Litestar's ``before_send`` hook: sees every answer, also those to paths and methods that do not exist.

    Args:
        secure: Whether people arrive over TLS; then they are told to stay there.
    """

    def __init__(self, *, secure: bool) -> None:
        self._headers = {**ALWAYS, **(dict([HSTS]) if secure else {})}

    async def __call__(self, message: Message, _scope: Scope) -> None:
        """Add the headers to the start of the answer; nothing is cached unless the handler says so."""
        if message["type"] == "http.response.start":
            headers = MutableScopeHeaders.from_message(message)
            for name, value in self._headers.items():
                headers[name] = value
            headers.setdefault("Cache-Control", "no-store")
