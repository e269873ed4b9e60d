"""
What happened: one row for each event, written in the transaction of the change itself.

Beside it stands what the sequencer makes of it: the place of each event in the history of its organization.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from advanced_alchemy.types import JsonB
from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from redflag_server.db.base import SHORT, Base, Tenant


class Event(Tenant):
    """
    One event.

    ``actor`` says who (``user:alice``, ``agent:<id>``, ``server``, ``address:<ip>``). ``agent_id`` is set when it
    is about an agent, ``package_id`` when it is about one package of it, also of one that is gone: history has no
    foreign keys. What concerns many packages is an event for each, so that each has its own timeline.
    """

    __tablename__ = "events"
    __table_args__ = (
        Index("ix_events_organization_id_id", "organization_id", "id"),
        Index("ix_events_agent_id_id", "agent_id", "id"),
        Index("ix_events_package_id_id", "package_id", "id"),
    )

    at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(SHORT, index=True)
    actor: Mapped[str] = mapped_column(SHORT)
    agent_id: Mapped[UUID | None]
    package_id: Mapped[UUID | None]
    code: Mapped[str | None] = mapped_column(String(64))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)


class UnplacedEvent(Base):
    """
    An event that has no place yet. A trigger of the database makes the row with the event; placing removes it.

    ``arrived`` gives the order: microseconds of PostgreSQL's clock, or a number that goes up in SQLite. ``xid`` is
    the transaction that wrote the event, in PostgreSQL.
    """

    __tablename__ = "unplaced_events"

    arrived: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    event_id: Mapped[UUID] = mapped_column(primary_key=True)
    xid: Mapped[int | None] = mapped_column(BigInteger)


class History(Base):
    """The history of an organization: what `redflag_core.audit.AuditState` needs to go on with it."""

    __tablename__ = "histories"

    organization_id: Mapped[UUID] = mapped_column(
        ForeignKey("organizations.id", ondelete="RESTRICT"), primary_key=True
    )
    size: Mapped[int] = mapped_column(BigInteger)
    nodes: Mapped[list[str]] = mapped_column(JsonB)
    last: Mapped[str] = mapped_column(String(64))


class HistoryEntry(Base):
    """
    The place of an event, and its link in the chain. It stays when the event is purged, but for the salt.

    The hash of the entry before is that of the row before. The payload is made from the event: see `payloads`.
    """

    __tablename__ = "history_entries"

    organization_id: Mapped[UUID] = mapped_column(
        ForeignKey("organizations.id", ondelete="RESTRICT"), primary_key=True
    )
    position: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    event_id: Mapped[UUID] = mapped_column(unique=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    hash: Mapped[bytes] = mapped_column(LargeBinary)
    salt: Mapped[bytes | None] = mapped_column(LargeBinary)


class Consumer(Base):
    """How far somebody who follows events has come in the history of an organization."""

    __tablename__ = "consumers"

    name: Mapped[str] = mapped_column(SHORT, primary_key=True)
    organization_id: Mapped[UUID] = mapped_column(
        ForeignKey("organizations.id", ondelete="RESTRICT"), primary_key=True
    )
    position: Mapped[int] = mapped_column(BigInteger)
