"""Validators of wire fields, shared by the modules that hold wire forms."""

import re
from typing import Any, Final

import attrs
from attrs import validators

from redflag_core.encoding import MAX_INTEGER, b64decode, dump_json
from redflag_core.keys import VerifyKey

PROTOCOL_VERSION: Final = 1
PROTOCOL_VERSIONS: Final = (1,)
"""What this release speaks: its own version and, once there is one, the previous."""

UUID_FORM: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
"""The one spelling of ids (RFC 9562, section 4, in lower case)."""

MAX_MOMENT: Final = 253_402_300_799
"""The last second of the year 9999, unix: what every calendar and database can hold."""

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def line(limit: int) -> Any:
    """Validate one line that is not empty: a name, or a sentence for people."""
    return validators.and_(validators.min_len(1), validators.max_len(limit), _is_line)


def count(most: int = MAX_INTEGER) -> Any:
    """Validate a number that is not negative. One function and not two validators: commands have many of these."""

    def check(_instance: Any, attribute: "attrs.Attribute[Any]", value: int) -> None:
        if not 0 <= value <= most:
            raise ValueError(f"'{attribute.name}' must be 0 to {most}")

    return check


def small(limit: int) -> Any:
    """Validate that the JSON text of a value has at most *limit* bytes."""

    def check(_instance: Any, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        if len(dump_json(value)) > limit:
            raise ValueError(f"{attribute.name} take more than {limit} bytes")

    return check


def is_key(_instance: Any, _attribute: Any, value: str) -> None:
    """Validate a public key in base64."""
    VerifyKey(b64decode(value))


def is_base64(_instance: Any, _attribute: Any, value: str) -> None:
    """Validate canonical base64."""
    b64decode(value)


def each_once(name: str, key: Any) -> Any:
    """Validate that no two items of a sequence have the same *key*."""

    def check(_instance: Any, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        if len({key(item) for item in value}) != len(value):
            raise ValueError(f"{attribute.name}: {name} is named once")

    return check


def _is_line(_instance: Any, attribute: "attrs.Attribute[str]", value: str) -> None:
    if _CONTROL.search(value):
        raise ValueError(f"{attribute.name} holds a control character")


VERSION: Final[Any] = validators.in_(PROTOCOL_VERSIONS)
UUID: Final[Any] = validators.matches_re(UUID_FORM)
HASH: Final[Any] = validators.matches_re(r"[0-9a-f]{64}")
BINDING: Final[Any] = validators.matches_re(r"[0-9a-f]{32}")
MOMENT: Final[Any] = count(MAX_MOMENT)
