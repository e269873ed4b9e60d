"""Organizations and their sites."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from redflag_server.db.base import NAME, Identified, Tenant

INSTALLATION = UUID(int=0)
"""The organization of what belongs to no client: events of the server itself. Never listed as a client."""


class Organization(Identified):
    """A client of the MSP, or the installation itself."""

    __tablename__ = "organizations"
    __table_args__ = (CheckConstraint("kind IN ('client', 'installation')", name="kind"),)

    name: Mapped[str] = mapped_column(NAME, unique=True)
    kind: Mapped[str] = mapped_column(String(16), default="client")
    created_at: Mapped[datetime]


class Site(Tenant):
    """A place of an organization where machines are."""

    __tablename__ = "sites"
    __table_args__ = (UniqueConstraint("organization_id", "name"),)

    name: Mapped[str] = mapped_column(NAME)
    created_at: Mapped[datetime]
