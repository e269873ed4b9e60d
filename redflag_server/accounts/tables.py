"""People, and the credentials with which they or their scripts come in."""

from datetime import datetime
from uuid import UUID

from advanced_alchemy.types import JsonB
from sqlalchemy import CheckConstraint, ForeignKey, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from redflag_server.db.base import NAME, Base, Shared


class User(Shared):
    """A person, who sees one organization or, with None, the whole installation."""

    __tablename__ = "users"
    __table_args__ = (CheckConstraint("role IN ('owner', 'viewer')", name="role"),)

    name: Mapped[str] = mapped_column(NAME, unique=True)
    role: Mapped[str] = mapped_column(String(16))
    password_hash: Mapped[str] = mapped_column(NAME)
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]


class Credential(Shared):
    """A session or an API key: only a digest of its secret is kept. Listable, revocable at once."""

    __tablename__ = "credentials"
    __table_args__ = (CheckConstraint("kind IN ('session', 'api_key')", name="kind"),)

    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(NAME)
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    scopes: Mapped[list[str]] = mapped_column(JsonB)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class SetupLink(Base):
    """
    The one link that makes the first owner, while there is none. Only a digest of its secret is kept.

    Installation-wide table of one row: a new link replaces the one before.
    """

    __tablename__ = "setup_links"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)

    id: Mapped[int] = mapped_column(primary_key=True, default=1)
    digest: Mapped[bytes] = mapped_column(LargeBinary(32))
    expires_at: Mapped[datetime]
