"""What happened: one row for each event, written in the transaction of the change itself."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from redflag_server.db.base import SHORT, Tenant


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
