"""Organizations and sites as callers may see them."""

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_server.db.scope import Scope
from redflag_server.organizations.tables import INSTALLATION, Organization, Site
from redflag_server.problems import NotFoundError


async def find_organization(session: AsyncSession, visible: Scope, organization_id: UUID) -> Organization:
    """
    A client organization by id.

    Raises:
        NotFoundError: No such organization, or not for the caller to see.
    """
    found = await session.get(Organization, organization_id)
    if found is None or found.id == INSTALLATION or not visible.sees(found.id):
        raise NotFoundError("there is no such organization")
    return found


async def organization_named(session: AsyncSession, name: str) -> Organization:
    """
    A client organization by name: for the command line.

    Raises:
        NotFoundError: There is none. The message names those that there are.
    """
    clients = (await session.scalars(select(Organization).where(Organization.id != INSTALLATION))).all()
    for client in clients:
        if client.name == name:
            return client
    raise NotFoundError(f"there is no organization {name!r}; there are {', '.join(c.name for c in clients)}")


async def organization_of(session: AsyncSession, name_or_id: str) -> Organization:
    """A client organization by name or id, for the command line; raises what `organization_named` does."""
    try:
        found = await session.get(Organization, UUID(name_or_id))
    except ValueError:
        found = None
    if found is None or found.id == INSTALLATION:
        return await organization_named(session, name_or_id)
    return found


async def find_site(session: AsyncSession, visible: Scope, site_id: UUID | None) -> Site:
    """
    A site by id, or with None the oldest one that the caller may see.

    Raises:
        NotFoundError: No such site, or not for the caller to see.
    """
    query = visible.select(Site).order_by(Site.id).limit(1)
    if site_id is not None:
        query = query.where(Site.id == site_id)
    site: Site | None = (await session.scalars(query)).one_or_none()
    if site is None:
        raise NotFoundError("there is no such site")
    return site
