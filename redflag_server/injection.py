"""How handlers get what they need."""

from typing import TypeAlias, TypeVar

from litestar.di import NamedDependency
from litestar.params import SkipValidation

T = TypeVar("T")

Injected: TypeAlias = SkipValidation[NamedDependency[T]]
"""A dependency, by the parameter's name; it is made by us, so the framework need not validate it again."""

Parsed: TypeAlias = SkipValidation[T]
"""A body that `redflag_server.bodies.Strict` parsed, so the framework need not validate it again."""
