"""What every table has in common."""

from typing import Any
from uuid import UUID

from advanced_alchemy.base import AdvancedDeclarativeBase, CommonTableAttributes
from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import TypeEngine
from uuid_utils.compat import uuid7

SHORT = String(128)
NAME = String(256)


def in_order(length: int) -> TypeEngine[str]:
    """The type of text that lists are sorted by: in the order of its code points, however PostgreSQL sorts."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


class Base(CommonTableAttributes, AdvancedDeclarativeBase):
    """A table. Its types (UUID, aware UTC datetimes, JSON) are Advanced Alchemy's on both databases."""

    __abstract__ = True


class Identified(Base):
    """A table whose rows have a time-ordered id (UUIDv7, RFC 9562): the key of keyset pagination."""

    __abstract__ = True

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7, sort_order=-10)


class Tenant(Identified):
    """A table whose rows belong to an organization. Operators reach it through `db.scope.scoped` only."""

    __abstract__ = True

    organization_id: Mapped[UUID] = mapped_column(
        ForeignKey("organizations.id", ondelete="RESTRICT"), sort_order=-9
    )


class Shared(Identified):
    """A table whose rows belong to an organization, or with None to the whole installation: accounts, keys."""

    __abstract__ = True

    organization_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("organizations.id", ondelete="RESTRICT"), sort_order=-9
    )


def enum_check(column: str, values: Any) -> str:
    """The text of a CHECK that a column holds one of the values of an enum."""
    return f"{column} IN ({', '.join(repr(str(value.value)) for value in values)})"
