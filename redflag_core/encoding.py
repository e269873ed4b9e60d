"""
Strict base64 and JSON: one spelling for each value, or `MalformedError`.

The standard library's decoders are lenient where a security protocol must not be: ``b64decode`` skips junk and
accepts dangling bits, ``json`` keeps the last of two equal keys and reads NaN. Nothing of that passes here.

Sources: RFC 4648 (base64, sections 3.5, 4 and 5), RFC 8259 (JSON), RFC 7493 (I-JSON).
"""

import base64
import binascii
import json
import re
from typing import Any, Final, NoReturn, TypeAlias

from redflag_core.errors import MalformedError, TooLargeError

JsonValue: TypeAlias = bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"] | None

MAX_DEPTH: Final = 32
"""Deepest nesting that is read. The deepest document of the protocol has 6 levels."""

MAX_INTEGER: Final = 2**53 - 1
"""Largest magnitude of an integer that every JSON reader keeps exact (RFC 7493, section 2.2)."""

MAX_ITEMS: Final = 500_000
"""About the most values in a document. A report of 20,000 packages has 320,000; more would only burn CPU."""

_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]')
_SURROGATE_OR_NUL = re.compile("[\ud800-\udfff\x00]")


def b64encode(data: bytes) -> str:
    """Standard base64 with padding (RFC 4648, section 4)."""
    return base64.b64encode(data).decode("ascii")


def b64decode(text: str) -> bytes:
    """
    Decode standard base64, canonical spelling only.

    Args:
        text: Untrusted text.

    Raises:
        MalformedError: Junk, missing padding or non-zero trailing bits.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, TypeError):
        raise MalformedError("not base64") from None
    if b64encode(data) != text:
        raise MalformedError("not canonical base64")
    return data


def b64url_encode(data: bytes) -> str:
    """URL-safe base64 without padding (RFC 4648, section 5)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def b64url_decode(text: str) -> bytes:
    """
    Decode URL-safe base64 without padding, canonical spelling only.

    Args:
        text: Untrusted text.

    Raises:
        MalformedError: Junk, padding, or a last character that carries unused bits.
    """
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars="-_", validate=True)
    except (ValueError, TypeError):
        raise MalformedError("not base64url") from None
    if b64url_encode(data) != text:
        raise MalformedError("not canonical base64url")
    return data


def hex_decode(text: str, size: int) -> bytes:
    """
    Decode exactly *size* bytes of lower-case hex.

    Args:
        text: Untrusted text.
        size: Number of bytes expected.

    Raises:
        MalformedError: Another length, upper case, or junk.
    """
    if not isinstance(text, str) or len(text) != 2 * size or not re.fullmatch(r"[0-9a-f]*", text):
        raise MalformedError(f"not {2 * size} lower-case hex digits")
    return binascii.unhexlify(text)


def check_storable(text: str, what: str, *, max_bytes: int) -> None:
    """
    Check that any database can keep *text* as it is. What it means to a query language does not matter.

    Args:
        text: Untrusted text.
        what: What it is, for the message.
        max_bytes: Longest in UTF-8.

    Raises:
        MalformedError: It holds U+0000 or a lone surrogate.
        TooLargeError: It is longer.
    """
    if _SURROGATE_OR_NUL.search(text):
        raise MalformedError(f"{what} holds U+0000 or a lone surrogate")
    if len(text.encode()) > max_bytes:
        raise TooLargeError(f"{what} is longer than {max_bytes} bytes")


def storable(text: str) -> str:
    """Any text as any database can keep it: U+FFFD for U+0000 and for lone surrogates."""
    return _SURROGATE_OR_NUL.sub("\ufffd", text)


def dump_json(value: Any) -> bytes:
    """
    One byte string for each value: sorted keys, no spaces, UTF-8, no NaN.

    The verifying side never relies on this form: it checks bytes as sent. It makes digests of our own
    records repeatable.
    """
    return _ENCODER.encode(value).encode("utf-8")


def parse_json(data: bytes, *, max_bytes: int) -> JsonValue:
    """
    Read one JSON document strictly.

    Args:
        data: Untrusted bytes.
        max_bytes: Longest document accepted.

    Returns:
        The value. Every string in it can be stored by any database (no U+0000, no lone surrogate), every
        number is finite and every integer exact in double precision.

    Raises:
        TooLargeError: More than *max_bytes*.
        MalformedError: Anything else than one strict document: invalid UTF-8, a byte order mark, duplicate
            keys, NaN or infinity, nesting deeper than `MAX_DEPTH`, trailing bytes.
    """
    if len(data) > max_bytes:
        raise TooLargeError(f"the document is larger than {max_bytes} bytes")
    opened = data.count(b"[") + data.count(b"{")
    if data.count(b",") + opened > MAX_ITEMS:
        raise MalformedError(f"the document has more than {MAX_ITEMS} items")
    if opened > MAX_DEPTH:  # fewer cannot be nested deeper
        _refuse_deep(data)
    try:
        text = data.decode("utf-8")
        value: JsonValue = _DECODER.decode(text)
    except MalformedError:
        raise
    except ValueError:
        raise MalformedError("not a JSON document in UTF-8") from None
    if "\\u" in text:  # unescaped, neither gets past the decoders
        _refuse_unstorable(value)
    return value


def _refuse_deep(data: bytes) -> None:
    """Bound the nesting before the recursive parser sees it."""
    depth = 0
    for match in _BRACKETS.finditer(data):
        if match[0] in {b"[", b"{"}:
            depth += 1
            if depth > MAX_DEPTH:
                raise MalformedError(f"nested deeper than {MAX_DEPTH} levels")
        elif match[0] in {b"]", b"}"}:
            depth -= 1


def _object(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise MalformedError("an object has the same key twice")
    return result


def _refuse_constant(_name: str) -> NoReturn:
    raise MalformedError("NaN and Infinity are not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0.0:
        raise MalformedError("a number is too large")
    return value


def _exact(text: str) -> int:
    if len(text) > len(str(-MAX_INTEGER)) or abs(value := int(text)) > MAX_INTEGER:
        raise MalformedError("an integer is too large")
    return value


_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_exact
)
"""One of each for all: making one costs more than most documents. The standard library shares its own as well."""


def _refuse_unstorable(value: JsonValue) -> None:
    if isinstance(value, str):
        if _SURROGATE_OR_NUL.search(value):
            raise MalformedError("a text holds U+0000 or a lone surrogate")
    elif isinstance(value, list):
        for item in value:
            _refuse_unstorable(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_unstorable(key)
            _refuse_unstorable(item)
