"""
The one codec between frozen attrs classes and JSON: strict in, canonical out.

cattrs does the walking; this module takes its leniency away. Unknown fields are refused, ``"5"`` is not 5,
``true`` is not 1, and every failure is a `MalformedError` that names where it happened. A list or object is given
up at its first bad item: a hostile one may hold a million of them.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, get_args, get_origin

import attrs

from redflag_core.encoding import JsonValue, dump_json, parse_json
from redflag_core.errors import MalformedError

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")
Hook: TypeAlias = Callable[[Any, Any], Any]
HookFactory: TypeAlias = "Callable[[Any, Converter], Hook]"

MAX_MESSAGE: Final = 300
"""Characters of a failure's message: it names fields that the sender chose, and it is logged."""

_VALIDATOR = re.compile(r"(?:Length of )?'([a-zA-Z_]+)' must ")


def parse(cls: type[T], data: bytes, *, max_bytes: int) -> T:
    """
    Read one *cls* from JSON bytes.

    Args:
        cls: A frozen attrs class.
        data: Untrusted bytes.
        max_bytes: Longest document accepted.

    Raises:
        TooLargeError: More than *max_bytes*.
        MalformedError: Not strict JSON, an unknown or missing field, or a field of the wrong type or size.
    """
    return structure(cls, parse_json(data, max_bytes=max_bytes))


def structure(cls: type[T], value: JsonValue) -> T:
    """
    Make one *cls* from an untrusted JSON value.

    Args:
        cls: A frozen attrs class of texts, numbers, enums, ``tuple[T, ...]``, ``dict[str, T]`` and such classes.
        value: Untrusted, from `redflag_core.encoding.parse_json`.

    Raises:
        MalformedError: An unknown or missing field, or a field of the wrong type or size.
    """
    from cattrs import BaseValidationError, transform_error  # noqa: PLC0415  (import on first use)

    try:
        return _converter().structure(value, cls)
    except BaseValidationError as error:
        raise MalformedError(_sentence(transform_error(error, format_exception=_reason))) from None
    except TypeError:
        raise MalformedError(f"{cls.__name__} must be a JSON object") from None


def unstructure(value: Any) -> Any:
    """The JSON value of an attrs instance."""
    return _converter().unstructure(value)


def dump(value: Any) -> bytes:
    """The canonical JSON bytes of an attrs instance."""
    return dump_json(unstructure(value))


def _sentence(reasons: list[str]) -> str:
    """One short printable line: names of unknown fields in it are the sender's."""
    text = "; ".join(reasons)[:MAX_MESSAGE]
    return "".join(character if character.isprintable() else "?" for character in text)


def _reason(error: BaseException, kind: Any) -> str:
    """What was wrong, without the value: it may be secret."""
    from cattrs.v import format_exception  # noqa: PLC0415  (import on first use)

    if isinstance(error, MalformedError):
        return error.message
    if isinstance(error, ValueError) and kind is None:
        # The validators of attrs name the field first and quote the value later; other texts are our own.
        text = str(next(iter(error.args), "invalid"))
        quoted = _VALIDATOR.match(text)
        return f"{quoted[1]} is out of bounds" if quoted else text
    return format_exception(error, kind)


@functools.cache
def _converter() -> "Converter":
    from cattrs import Converter  # noqa: PLC0415  (import on first use)

    converter = Converter(forbid_extra_keys=True)
    # By class, not by predicate: cattrs asks its own coercing hooks of these classes first.
    converter.register_structure_hook(str, _text)
    converter.register_structure_hook(int, _exactly)
    converter.register_structure_hook(bool, _exactly)
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook_func(lambda cls: cls == JsonValue, lambda value, _cls: value)
    converter.register_structure_hook_factory(_is_tuple, _tuple_hook)
    converter.register_structure_hook_factory(_is_dict, _dict_hook)
    converter.register_structure_hook_factory(attrs.has, _class_hook)
    converter.register_unstructure_hook(StrEnum, lambda member: member.value)
    return converter


def _is_tuple(cls: Any) -> bool:
    return get_origin(cls) is tuple and get_args(cls)[1:] == (...,)


def _is_dict(cls: Any) -> bool:
    return get_origin(cls) is dict and get_args(cls)[0] is str


def _tuple_hook(cls: Any, converter: "Converter") -> Hook:
    kind = get_args(cls)[0]
    inner = converter.get_structure_hook(kind)

    def hook(value: Any, _cls: Any) -> tuple[Any, ...]:
        return tuple(_each(enumerate(_exactly(value, list)), inner, kind))

    return hook


def _dict_hook(cls: Any, converter: "Converter") -> Hook:
    kind = get_args(cls)[1]
    inner = converter.get_structure_hook(kind)

    def hook(value: Any, _cls: Any) -> dict[str, Any]:
        return dict(zip(value, _each(_exactly(value, dict).items(), inner, kind), strict=True))

    return hook


def _class_hook(cls: Any, converter: "Converter") -> Hook:
    from cattrs.gen import make_dict_structure_fn  # noqa: PLC0415  (import on first use)

    inner = make_dict_structure_fn(cls, converter)
    return lambda value, _cls: inner(_exactly(value, dict), cls)


def _each(items: Iterable[tuple[int | str, Any]], hook: Hook, kind: Any) -> Iterator[Any]:
    """Structure the items up to the first bad one, and say which that was in the way that cattrs understands."""
    from cattrs import IterableValidationError, IterableValidationNote  # noqa: PLC0415  (import on first use)

    for place, item in items:
        try:
            yield hook(item, kind)
        except Exception as error:
            error.add_note(IterableValidationNote("", place, kind))
            raise IterableValidationError("", [error], kind) from None


def _exactly(value: Any, cls: type[T]) -> T:
    if type(value) is not cls:
        raise TypeError
    return value


def _text(value: Any, cls: type[T]) -> T:
    """A text, or the member of a StrEnum: cattrs takes the hook of a class for its subclasses too."""
    return cls(_exactly(value, str))  # type: ignore[call-arg]


def _number(value: Any, _cls: type[float]) -> float:
    if type(value) not in (int, float):
        raise TypeError
    return float(value)
