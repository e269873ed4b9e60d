"""What the server knows of itself, and the signed documents it serves."""

from datetime import datetime

from advanced_alchemy.types import JsonB
from sqlalchemy import BigInteger, CheckConstraint, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from redflag_server.db.base import SHORT, Base, Identified


class ServerState(Base):
    """
    One row: the server's id and its counters.

    ``epoch`` is the current bundle's. ``gen`` is raised when the database is restored from a backup; no nonce
    created at or below ``nonce_horizon`` is accepted any more. ``addresses`` and ``tls_pin`` are those of the last
    start: what the command line writes into links and registration tokens.
    """

    __tablename__ = "server_state"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)

    id: Mapped[int] = mapped_column(primary_key=True, default=1)
    server: Mapped[str] = mapped_column(String(36))
    root_fp: Mapped[str] = mapped_column(String(64))
    epoch: Mapped[int] = mapped_column(BigInteger, default=1)
    gen: Mapped[int] = mapped_column(BigInteger, default=0)
    nonce_horizon: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[datetime]
    addresses: Mapped[list[str]] = mapped_column(JsonB, default=list)
    tls_pin: Mapped[str | None] = mapped_column(String(80))


class TrustDocument(Base):
    """A signed envelope exactly as served: root n or bundle version n. All are kept."""

    __tablename__ = "trust_documents"
    __table_args__ = (CheckConstraint("kind IN ('root', 'bundle')", name="kind"),)

    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    digest: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]


class OperatorKey(Identified):
    """
    The public half of a key with which a person approves.

    Whether it is believed is what the trust bundle says. Here is whose it is, also after it was revoked: it never
    comes back.
    """

    __tablename__ = "operator_keys"
    __table_args__ = (UniqueConstraint("key_id"),)

    name: Mapped[str] = mapped_column(SHORT)
    key_id: Mapped[str] = mapped_column(String(32))
    public_key: Mapped[bytes] = mapped_column(LargeBinary)
    organizations: Mapped[list[str]] = mapped_column(JsonB)
    added_at: Mapped[datetime]
    added_by: Mapped[str] = mapped_column(SHORT)
    revoked_at: Mapped[datetime | None]
