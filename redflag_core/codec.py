"""
The one codec between frozen attrs classes and JSON: strict in, canonical out.

cattrs does the walking; this module takes its leniency away. Unknown fields are refused, ``"5"`` is not 5,
``true`` is not 1, and every failure is a `MalformedError` that names where it happened.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, get_origin

import attrs

from redflag_core.encoding import JsonValue, dump_json, parse_json
from redflag_core.errors import MalformedError

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")
Hook: TypeAlias = Callable[[Any, Any], Any]
HookFactory: TypeAlias = "Callable[[Any, Converter], Hook]"


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

    Raises:
        MalformedError: An unknown or missing field, or a field of the wrong type or size.
    """
    from cattrs import BaseValidationError, transform_error  # noqa: PLC0415  (import on first use)

    try:
        return _converter().structure(value, cls)
    except BaseValidationError as error:
        raise MalformedError(_sentence(transform_error(error))) from None
    except MalformedError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError):
        raise MalformedError(f"this is not a {cls.__name__}") from None


def unstructure(value: Any) -> Any:
    """The JSON value of an attrs instance."""
    return _converter().unstructure(value)


def dump(value: Any) -> bytes:
    """The canonical JSON bytes of an attrs instance."""
    return dump_json(unstructure(value))


def _sentence(errors: list[str]) -> str:
    """The first errors, without the values: they may be secret."""
    return "; ".join(errors[:5])


@functools.cache
def _converter() -> "Converter":
    from cattrs import Converter, cols  # noqa: PLC0415  (import on first use)

    converter = Converter(forbid_extra_keys=True, detailed_validation=True)
    converter.register_structure_hook_func(lambda cls: cls in (str, int, bool), _exactly)
    converter.register_structure_hook_func(lambda cls: cls is float, _number)
    converter.register_structure_hook_func(lambda cls: cls == JsonValue, lambda value, _cls: value)
    converter.register_structure_hook_factory(_is_tuple, _guarded(list, cols.homogenous_tuple_structure_factory))
    converter.register_structure_hook_factory(_is_dict, _guarded(dict, cols.mapping_structure_factory))
    converter.register_structure_hook_factory(attrs.has, _guarded(dict, _attrs_structure_factory))
    return converter


def _is_tuple(cls: Any) -> bool:
    return get_origin(cls) is tuple


def _is_dict(cls: Any) -> bool:
    return get_origin(cls) is dict


def _attrs_structure_factory(cls: Any, converter: "Converter") -> "Hook":
    from cattrs.gen import make_dict_structure_fn  # noqa: PLC0415  (import on first use)

    return make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True)


def _guarded(kind: type, factory: "HookFactory") -> "HookFactory":
    """Let the hooks of *factory* see a JSON value of exactly this *kind* only: they would walk a text too."""

    def guarded(cls: Any, converter: "Converter") -> "Hook":
        inner = factory(cls, converter)

        def hook(value: Any, _cls: Any) -> Any:
            if type(value) is not kind:
                raise TypeError(kind)
            return inner(value, cls)

        return hook

    return guarded


def _exactly(value: Any, cls: type[T]) -> T:
    if type(value) is not cls:
        raise TypeError(cls)
    return value


def _number(value: Any, _cls: type[float]) -> float:
    if type(value) not in (int, float):
        raise TypeError(float)
    return float(value)
