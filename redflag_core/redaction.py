"""
Remove secrets from texts and facts before they are stored, sent or shown.

Two kinds are found: what looks like a secret by itself (private keys, tokens, 32 random bytes in base64, passwords
in URLs), and what is called one (``password=...``, ``Authorization: ...``, ``{"api_key": ...}``). In doubt it is
removed: a public key looks like a seed. A secret that neither looks like one nor is called one cannot be found, so
do not put any into a message in the first place.

Every expression takes time in proportion to the text.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from redflag_core.encoding import JsonValue, dump_json, storable

REMOVED: Final = "[removed]"
"""What stands where a secret was."""

MAX_FACTS: Final = 50
"""Facts in one object, and items in one list: the bound of the facts of an error."""

MAX_FACTS_DEPTH: Final = 6
"""Deepest nesting of facts that is kept."""

MAX_FACT: Final = 2000
"""Characters of one text among facts, and of one name of a fact 100."""

_NAME: Final = (
    r"(?:pass(?:word|wd|phrase)|pwd|secret|token|api[_-]?key|(?:private|signing|access|encryption)[_-]?key|seed"
    r"|credential|cookie|session|authori[sz]ation|csrf|xsrf|otp)"
)
_DONE: Final = r"""\[removed\](?=[\s,;&)}\]"']|\Z)"""
_QUOTED: Final = r"""[bruf]{0,2}(?P<quote>["'])(?:\\.|(?!(?P=quote))[^\\])*+(?:(?P=quote)(?:\w+["']?)?|\Z)"""
_ESCAPED: Final = r"""\\+["'](?:[^"'\\]|\\(?!["'\\]))*+(?:\\+["']|["']|\Z)"""
_IS: Final = r"""\\*["']?\s{0,8}(?:=>|:=|==?|:)[^\S\n]{0,8}|\\*["']\s{0,8},\s{0,8}"""


def _compiled(*patterns: str, flags: int = 0) -> "tuple[re.Pattern[str], ...]":
    return tuple(re.compile(pattern, re.DOTALL | flags) for pattern in patterns)


_CALLED: Final = re.compile(_NAME, re.IGNORECASE)
_VALUES: Final = _compiled(
    # Headers whose whole value is one (RFC 9110, section 11.6; RFC 6265): to the end of the line.
    rf"(?P<kept>(?:authorization|cookie)[\w-]{{0,32}}(?:{_IS}))(?:{_DONE}|{_QUOTED}|{_ESCAPED}|[^\s\"'][^\r\n]*)",
    # A passphrase may have spaces.
    rf"(?P<kept>pass(?:word|wd|phrase)[\w-]{{0,32}}:[^\S\n]{{1,8}})(?:{_DONE}|{_QUOTED}|{_ESCAPED}|[^\s\"'][^\r\n]*)",
    # Whatever is called one: NAME=value, NAME: value, "NAME": "value", ("NAME", "value").
    rf"(?P<kept>{_NAME}[\w-]{{0,32}}(?:{_IS}))(?:{_DONE}|{_QUOTED}|{_ESCAPED}|[^\s\"']\S*)",
    flags=re.IGNORECASE,
)
_OPTION: Final = re.compile(
    rf"(?P<kept>(?<![\w-])--?(?P<name>\w[\w-]{{1,63}})[ \t]{{1,8}})(?:{_QUOTED}|[^\s-]\S*)", re.DOTALL
)
_WORD: Final = re.compile(r"\S+")
_USER: Final = re.compile(r"""://[^\s/@:\[\]]{0,256}:(?!\d{1,5}(?:[/?#"']|\Z))|://(?=[^\s/@:]{20,256}@)""")
_LOOKS: Final = _compiled(
    # A private key, whole or cut off (RFC 7468, section 2).
    r"-----BEGIN [A-Z0-9 ]{0,32}PRIVATE KEY[A-Z ]{0,8}-----.*?(?:-----END [A-Z0-9 ]{0,40}-----|\Z)",
    # Credentials of a header that is not named (RFC 6750, section 2.1; RFC 7617).
    r"(?P<kept>\b(?i:bearer|basic|negotiate|token)[ \t]{1,8})(?=\S{0,256}[\d_=.~+/]|\S{20})\S{8,}",
    # JSON Web Tokens (RFC 7519), our registration tokens and API keys, keys of well-known services.
    r"\beyJ[\w-]{5,}\.[\w-]{2,}(?:\.[\w-]*)*",
    r"\brf(?:reg1\.|k_)[\w-]+",
    r"\b(?:gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|sk_live_|sk-)[\w-]{16,}|\bAKIA[0-9A-Z]{16}\b",
)
_RANDOM: Final = re.compile(r"(?<![\w+/-])[\w+/-]{43}(?:[\w+/-]{43})?={0,2}(?![\w+/=-])", re.ASCII)
"""As long as 32 or 64 bytes in base64 or base64url: seeds, refresh and other secrets."""


def redact(text: str) -> str:
    """
    Remove secrets from a text.

    Args:
        text: Untrusted text of any length. Cut it after this, not before: half a secret is not recognised.

    Returns:
        The text, with `REMOVED` for each secret. A text without secrets is unchanged.
    """
    text = _LOOKS[0].sub(REMOVED, text)
    if is_called_secret(text):
        for pattern in _VALUES:
            text = pattern.sub(_removed, text)
        text = _OPTION.sub(_option, text)
    if "://" in text:
        text = _WORD.sub(_url, text)
    for pattern in _LOOKS[1:]:
        text = pattern.sub(_removed, text)
    return _RANDOM.sub(_random, text)


def is_called_secret(name: str) -> bool:
    """Whether a fact, field or header of this name is taken for a secret, whatever its value."""
    return _CALLED.search(name) is not None


def redact_facts(facts: Mapping[str, Any], *, max_bytes: int) -> dict[str, JsonValue]:
    """
    Remove secrets from facts, by the names of facts and by what their texts look like, and bound them.

    Args:
        facts: Untrusted. What JSON does not know is kept as its type's name.
        max_bytes: Longest JSON text of the result. What is beyond it, or `MAX_FACTS`, is left out, last first.

    Returns:
        New facts that any database can keep.
    """
    kept: dict[str, JsonValue] = {}
    room = max_bytes - len(dump_json({}))
    for name, value in list(facts.items())[:MAX_FACTS]:
        key, fact = _fact_name(name), _fact(name, value, MAX_FACTS_DEPTH)
        room -= len(dump_json({key: fact})) - 1
        if room < 0:
            break
        kept[key] = fact
    return kept


def _removed(match: "re.Match[str]") -> str:
    return (match["kept"] if "kept" in match.re.groupindex else "") + REMOVED


def _option(match: "re.Match[str]") -> str:
    return _removed(match) if is_called_secret(match["name"]) else match[0]


def _url(match: "re.Match[str]") -> str:
    """User and password (RFC 3986, section 3.2.1), also with characters that should be escaped there."""
    word = match[0]
    start, end = _USER.search(word), word.rfind("@")
    return word if start is None or start.end() > end else word[: start.end()] + REMOVED + word[end:]


def _random(match: "re.Match[str]") -> str:
    text = match[0]
    return text if text == text.lower() or text == text.upper() else REMOVED


def _fact_name(name: object) -> str:
    return storable(redact(str(name)))[:100]


def _fact(name: object, value: Any, depth: int) -> JsonValue:
    if is_called_secret(str(name)) and value is not None and not isinstance(value, bool):
        return REMOVED
    if depth == 0:
        return "[too deep]"
    if isinstance(value, Mapping):
        return {_fact_name(key): _fact(key, item, depth - 1) for key, item in list(value.items())[:MAX_FACTS]}
    if isinstance(value, (list, tuple)):
        return [_fact("", item, depth - 1) for item in value[:MAX_FACTS]]
    return _scalar(value)


def _scalar(value: Any) -> JsonValue:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return storable(redact(value))[:MAX_FACT]
    if isinstance(value, (int, float)) and abs(value) <= 2**53:
        return value
    return type(value).__name__
