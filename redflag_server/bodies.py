"""Request bodies: read by the core's strict codec, described in OpenAPI from the same classes."""

from collections.abc import Generator
from typing import Any, Generic, TypeVar

from litestar.dto import AbstractDTO, DTOFieldDefinition
from litestar.openapi.spec import Reference, Schema
from litestar.typing import FieldDefinition

from redflag_core import codec
from redflag_core.messages import MAX_REPORT_BODY

T = TypeVar("T")


class Strict(AbstractDTO[T], Generic[T]):
    """
    ``dto=Strict[Body]``: an attrs class is parsed by `redflag_core.codec`.

    Unknown fields, duplicate keys, NaN and values of another type are refused with the path of the field. The
    size was bounded when the body was read; the bound here is the largest of any route.
    """

    model_type: Any

    def decode_bytes(self, value: bytes) -> Any:
        """Parse a body; raises `MalformedError`."""
        return codec.parse(self.model_type, value, max_bytes=MAX_REPORT_BODY)

    def decode_builtins(self, value: dict[str, Any]) -> Any:
        """Parse a body that the framework took apart already (it never does for JSON)."""
        return codec.structure(self.model_type, value)

    def data_to_encodable_type(self, data: Any) -> Any:
        """Answers are written by the framework."""
        return data

    @classmethod
    def create_for_field_definition(
        cls, field_definition: FieldDefinition, handler_id: str, backend_cls: Any = None
    ) -> None:
        """Nothing to prepare: there is no transfer model."""

    @classmethod
    def create_openapi_schema(
        cls,
        field_definition: FieldDefinition,
        handler_id: str,  # noqa: ARG003
        schema_creator: Any,
    ) -> Reference | Schema:
        """The schema of the class itself."""
        schema: Reference | Schema = schema_creator.for_field_definition(field_definition)
        return schema

    @classmethod
    def generate_field_definitions(
        cls,
        model_type: type[Any],  # noqa: ARG003
    ) -> Generator[DTOFieldDefinition, None, None]:
        """Not used: there is no transfer model."""
        yield from ()

    @classmethod
    def detect_nested_field(cls, field_definition: FieldDefinition) -> bool:  # noqa: ARG003
        """Not used: there is no transfer model."""
        return False
