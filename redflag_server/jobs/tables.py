"""Schedules: what is due when."""

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from redflag_server.db.base import SHORT, Base


class Schedule(Base):
    """A recurring job. Whoever moves ``next_due`` forward by a conditional UPDATE runs it, once."""

    __tablename__ = "schedules"

    name: Mapped[str] = mapped_column(SHORT, primary_key=True)
    next_due: Mapped[datetime]
    last_run: Mapped[datetime | None]
    last_error: Mapped[str | None]
