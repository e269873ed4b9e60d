"""Operators that a host application knows: the port through which it says who is asking."""

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias
from uuid import UUID

import attrs

from redflag_server.accounts.permissions import check_permissions
from redflag_server.db.scope import Caller
from redflag_server.problems import InvalidRequestError

HOST_SCOPE: Final = "redflag.host"
"""Where the scope of a request that came through a host has the host's own scope."""

MAX_NAME: Final = 100
"""Characters of a name: with what is written before it, an actor of an event has 128."""


def _name(name: str) -> str:
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise InvalidRequestError(f"the name of an operator has 1 to {MAX_NAME} printable characters")
    return name


def _permissions(names: Iterable[str]) -> frozenset[str]:
    return frozenset(check_permissions(names))


def _organizations(ids: Iterable[UUID] | None) -> frozenset[UUID] | None:
    return None if ids is None else frozenset(ids)


@attrs.frozen
class HostOperator:
    """
    Somebody whom the host application authenticated.

    Attributes:
        name: Stable and unique, ``alice``. Events say ``user:alice``.
        permissions: Names of permissions, or ``*`` for all.
        organizations: Ids of the organizations that may be seen and changed; None for the whole installation.
        ambient: Whether a browser sends what proves it by itself: a cookie, or HTTP's own password dialogue. Then
            a change needs our form token and must come from the same origin, or any web site could order it. Say
            False only for what a script must add on purpose, such as a bearer token.

    Raises:
        InvalidRequestError: A name that is none, or a permission that does not exist.
    """

    name: str = attrs.field(converter=_name)
    permissions: frozenset[str] = attrs.field(converter=_permissions)
    organizations: frozenset[UUID] | None = attrs.field(converter=_organizations)
    ambient: bool = True

    @property
    def caller(self) -> Caller:
        """What it may do and see here."""
        return Caller(
            actor=f"user:{self.name}",
            scopes=self.permissions,
            organizations=self.organizations,
            credential_id=UUID(int=0),
        )

    @property
    def digest(self) -> bytes:
        """What the form token of this person is made from, in place of a session's secret."""
        return hashlib.sha256(b"redflag-host-operator-v1\0" + self.name.encode()).digest()


IdentifyOperator: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[HostOperator | None]]
"""
Tells who sent a request, from the host's own ASGI scope (``user``, ``session``, headers); None for nobody.

Raising anything refuses the request. It is called for each request of people and scripts, and never for agents.
"""
