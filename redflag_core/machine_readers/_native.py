"""Calling the functions of a system library, for the readers of systems that have no files to read."""

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def declared(library: Any, name: str, result: Any, *arguments: Any) -> Any:
    """
    A function of a library with its C types. Without them, handles and pointers are cut off to 32 bits.

    Args:
        library: As `ctypes` loaded it.
        name: Name of the function.
        result: Type of what it returns, None for void.
        arguments: Types of its arguments.

    Raises:
        AttributeError: The library does not have it.
    """
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
    return function


def absent_if_unreadable(read: Callable[[], T]) -> T | None:
    """What *read* finds; None when the system refuses, does not have it, or has something else in its place."""
    try:
        return read()
    except (OSError, AttributeError, TypeError, ValueError):
        return None
