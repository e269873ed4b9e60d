"""
Forms of our own pages: how they are read, and how it is known that a page of ours sent them.

A request that changes something with a cookie needs both a form token, which other sites cannot know, and the
browser's word that it comes from the same origin. Sources: OWASP ASVS 5.0 (3.5.1), W3C Fetch Metadata.
"""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from litestar import Request
from litestar.types import Scope

from redflag_core.encoding import b64url_encode
from redflag_core.errors import MalformedError
from redflag_server.problems import ForbiddenError
from redflag_server.settings import Settings

TOKEN_FIELD: Final = "form_token"  # noqa: S105  (a name)
TOKEN_HEADER: Final = "x-form-token"  # noqa: S105  (a name)
MEDIA_TYPE: Final = "application/x-www-form-urlencoded"
MAX_FORM_BYTES: Final = 16 * 1024
"""The longest form without choices holds a password of 1024 characters, each up to twelve bytes when encoded."""

MAX_CHOICES_BYTES: Final = 64 * 1024
"""A form in which every package of a page is ticked: 500 ids of 45 bytes, or 100 names of 400."""

CHOICE: Final = "chosen"
"""The one field that a form may hold several times: what somebody ticked."""

MAX_FIELDS: Final = 20
MAX_CHOICES: Final = 1_000
_DOMAIN: Final = b"redflag-form-v1\0"


def form_token(secret: bytes, session_digest: bytes) -> str:
    """
    The token of all forms of one session.

    Args:
        secret: The server's secret for forms.
        session_digest: Digest of the session's secret.
    """
    return b64url_encode(hmac.digest(secret, _DOMAIN + session_digest, hashlib.sha256))


def parse_form(body: bytes) -> dict[str, str]:
    """
    Read the fields of a form that are there once; what was ticked is read with `parse_choices`.

    Args:
        body: Untrusted, URL-encoded.

    Raises:
        MalformedError: Too long, not such a form, or a field that is there twice or holds U+0000.
    """
    pairs = [pair for pair in _pairs(body) if pair[0] != CHOICE]
    fields = dict(pairs)
    if len(fields) != len(pairs) or len(pairs) > MAX_FIELDS:
        raise MalformedError("a field is there twice, or there are too many")
    return fields


def parse_choices(body: bytes) -> list[str]:
    """
    What somebody ticked in a form, in its order, each once; bounds and refusals are those of `parse_form`.

    Args:
        body: Untrusted, URL-encoded.
    """
    return list(dict.fromkeys(value for name, value in _pairs(body) if name == CHOICE))


def _pairs(body: bytes) -> list[tuple[str, str]]:
    if len(body) > MAX_CHOICES_BYTES:
        raise MalformedError("the form is too long")
    try:
        text = body.decode("ascii")
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), errors="strict",
                          max_num_fields=MAX_FIELDS + MAX_CHOICES)  # fmt: skip
    except ValueError:
        raise MalformedError("this is not a form") from None
    if any("\0" in text for pair in pairs for text in pair):
        raise MalformedError("a field holds U+0000")
    return pairs


def check_same_origin(scope: Scope, settings: Settings) -> None:
    """
    Check that a page of this server sent the request.

    ``Sec-Fetch-Site`` is the browser's own word and no page can set it; ``Origin`` decides where it is missing.
    ``Origin: null`` (a sandboxed page, or one that hides its referrer) says nothing.

    Raises:
        ForbiddenError: Another site sent it, or nobody says who did.
    """
    headers = _headers(scope)
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None and site != "same-origin":
        raise ForbiddenError("this request comes from another site: use the pages of this server")
    if origin not in (None, "null") and origin not in _origins(headers, settings):
        raise ForbiddenError("this request comes from another site: use the pages of this server")
    if site is None and origin in (None, "null"):
        raise ForbiddenError("the browser does not say where this request comes from: use a current one")


async def check_form_token(request: Request[Any, Any, Any], expected: str) -> None:
    """
    Check that the request carries the session's form token, in a header or in the form.

    Raises:
        ForbiddenError: It does not.
        MalformedError: The form cannot be read.
    """
    presented = request.headers.get(TOKEN_HEADER)
    if presented is None and request.headers.get("content-type", "").split(";")[0].strip() == MEDIA_TYPE:
        presented = parse_form(await request.body()).get(TOKEN_FIELD)
    if not hmac.compare_digest((presented or "").encode(), expected.encode()):
        raise ForbiddenError("this form is not of your session any more: reload the page and try again")


def _headers(scope: Scope) -> Mapping[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _origins(headers: Mapping[str, str], settings: Settings) -> set[str]:
    public = {"{0.scheme}://{0.netloc}".format(urlsplit(url)) for url in settings.urls}
    scheme = "https" if settings.is_secure else "http"
    return {origin.lower() for origin in public} | {f"{scheme}://{headers.get('host', '').lower()}"}
