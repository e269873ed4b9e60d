"""People, and the credentials with which they or their scripts come in."""

from datetime import datetime
from uuid import UUID

from advanced_alchemy.types import JsonB
from sqlalchemy import CheckConstraint, ForeignKey, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from redflag_server.db.base import NAME, Identified


class User(Identified):
    """
    A person. ``organization_id`` None sees the whole installation.

    Installation-wide table: people are not an organization's rows, they are given access to organizations.
    """

    __tablename__ = "users"
    __table_args__ = (CheckConstraint("role IN ('owner', 'viewer')", name="role"),)

    name: Mapped[str] = mapped_column(NAME, unique=True)
    role: Mapped[str] = mapped_column(String(16))
    organization_id: Mapped[UUID | None] = mapped_column(ForeignKey("organizations.id", ondelete="RESTRICT"))
    password_hash: Mapped[str] = mapped_column(NAME)
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]


class Credential(Identified):
    """A session or an API key: only a digest of its secret is kept. Listable, revocable at once."""

    __tablename__ = "credentials"
    __table_args__ = (CheckConstraint("kind IN ('session', 'api_key')", name="kind"),)

    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(NAME)
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    scopes: Mapped[list[str]] = mapped_column(JsonB)
    organization_id: Mapped[UUID | None] = mapped_column(ForeignKey("organizations.id", ondelete="RESTRICT"))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
