"""
The wall between organizations: every query of an operator goes through `scoped`.

A `Scope` can only make statements that are limited to the organizations its caller may see. A test lists the
routes and fails on an operator route that does not take one.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias
from uuid import UUID

import attrs
from sqlalchemy import Select, Update, select, true, update
from sqlalchemy.sql.elements import ColumnElement

from redflag_server.db.base import Shared, Tenant

Owned: TypeAlias = type[Tenant] | type[Shared]
"""Tables whose rows say whose they are."""


@attrs.frozen
class Caller:
    """
    Who is asking: an authenticated person or script.

    Attributes:
        actor: For events: ``user:alice`` or ``api-key:backup``.
        scopes: Permissions, ``agents:read``; ``*`` is all.
        organizations: The organizations it may see; None for all of the installation.
        user_id: The person, or None for an API key without one.
        credential_id: The session or key it came in with.
    """

    actor: str
    scopes: frozenset[str]
    organizations: frozenset[UUID] | None
    credential_id: UUID
    user_id: UUID | None = None

    def may(self, permission: str) -> bool:
        """Whether the caller holds a permission."""
        return "*" in self.scopes or permission in self.scopes


@attrs.frozen
class Scope:
    """Statements that see only what one caller may see. Made by `scoped`."""

    caller: Caller

    def select(self, table: Owned, *columns: Any) -> "Select[Any]":
        """A SELECT of a table (or of some columns of it), limited to the caller's organizations."""
        return select(*(columns or (table,))).where(self.visible(table))

    def update(self, table: Owned) -> Update:
        """An UPDATE of a table, limited to the caller's organizations."""
        return update(table).where(self.visible(table))

    def visible(self, table: Owned) -> "ColumnElement[bool]":
        """The condition itself, for joins and subqueries."""
        if self.caller.organizations is None:
            return true()
        return table.organization_id.in_(self._ids())

    def sees(self, organization_id: UUID) -> bool:
        """Whether an organization is among the caller's."""
        return self.caller.organizations is None or organization_id in self.caller.organizations

    def _ids(self) -> Sequence[UUID]:
        return sorted(self.caller.organizations or ())


def scoped(caller: Caller) -> Scope:
    """The statements that *caller* may make."""
    return Scope(caller)


def whole_installation(actor: str) -> Scope:
    """The statements of the server itself, or of its command line: they see everything."""
    return Scope(Caller(actor, frozenset({"*"}), None, UUID(int=0)))
