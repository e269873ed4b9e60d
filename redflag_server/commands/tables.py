"""Commands, what they are about, and the statements of executors."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from redflag_core.command_queue import CommandState
from redflag_server.db.base import SHORT, Tenant, enum_check


class Command(Tenant):
    """
    One order to one agent. ``id`` is the ``cmd_id`` on the wire.

    ``params`` are the exact bytes that every signature of it covers. The order columns are those of the last
    lease. ``delivered_at`` is set with the first lease and stays: from then on the machine may have started it.
    ``approval_id`` and ``approval_index`` say which leaf of which approval goes with it; approvals are kept.
    ``result`` is what the executor signed, without what other columns hold; the envelope is in `CommandStatement`.
    """

    __tablename__ = "commands"
    __table_args__ = (
        CheckConstraint(enum_check("state", CommandState), name="state"),
        Index("ix_commands_agent_id_state", "agent_id", "state"),
        Index("ix_commands_organization_id_id", "organization_id", "id"),
    )

    agent_id: Mapped[UUID] = mapped_column(ForeignKey("agents.id", ondelete="CASCADE"))
    type: Mapped[str] = mapped_column(String(48))
    params: Mapped[bytes] = mapped_column(LargeBinary)
    digest: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), default=CommandState.PENDING)
    state_at: Mapped[datetime]
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(SHORT)
    reason: Mapped[str] = mapped_column(Text, default="")
    retry_of: Mapped[UUID | None]
    plan_id: Mapped[UUID | None] = mapped_column(ForeignKey("plans.id", ondelete="SET NULL"), index=True)
    start_by: Mapped[datetime]
    approval_id: Mapped[UUID | None]
    approval_index: Mapped[int | None]

    not_before: Mapped[datetime | None]
    leased_until: Mapped[datetime | None]
    delivered_at: Mapped[datetime | None]
    deliveries: Mapped[int] = mapped_column(default=0)
    refusals: Mapped[int] = mapped_column(default=0)
    order_epoch: Mapped[int | None] = mapped_column(BigInteger)
    order_gen: Mapped[int | None] = mapped_column(BigInteger)
    order_seq: Mapped[int | None] = mapped_column(BigInteger)

    accepted_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    code: Mapped[str | None] = mapped_column(String(64))
    detail: Mapped[str | None] = mapped_column(Text)
    progress: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    cancel_requested_at: Mapped[datetime | None]
    overdue_at: Mapped[datetime | None]
    archived_at: Mapped[datetime | None]


class CommandSubject(Tenant):
    """What a live command is about. The row is there exactly as long as the command is live."""

    __tablename__ = "command_subjects"
    __table_args__ = (UniqueConstraint("agent_id", "subject"),)

    agent_id: Mapped[UUID] = mapped_column(ForeignKey("agents.id", ondelete="CASCADE"))
    subject: Mapped[str] = mapped_column(String(400))
    command_id: Mapped[UUID] = mapped_column(ForeignKey("commands.id", ondelete="CASCADE"), index=True)


class CommandDelivery(Tenant):
    """
    One signature of a command: what was handed out, under which order. No order is given out twice to an agent.

    ``body`` is the SHA-256 of what was signed: with it the server knows what an executor accepted as its own word.
    """

    __tablename__ = "command_deliveries"
    __table_args__ = (UniqueConstraint("agent_id", "epoch", "gen", "seq"),)

    agent_id: Mapped[UUID] = mapped_column(ForeignKey("agents.id", ondelete="CASCADE"))
    command_id: Mapped[UUID] = mapped_column(ForeignKey("commands.id", ondelete="CASCADE"), index=True)
    at: Mapped[datetime]
    epoch: Mapped[int] = mapped_column(BigInteger)
    gen: Mapped[int] = mapped_column(BigInteger)
    seq: Mapped[int] = mapped_column(BigInteger)
    body: Mapped[str] = mapped_column(String(64))


class CommandStatement(Tenant):
    """
    What an executor signed about a command, exactly as it came: the proof. The same statement is recorded once.

    ``command_id`` is no foreign key: a server that was restored gets results of commands it does not know.
    """

    __tablename__ = "command_statements"
    __table_args__ = (
        UniqueConstraint("agent_id", "digest"),
        CheckConstraint("kind IN ('accepted', 'refused', 'result')", name="kind"),
        Index("ix_command_statements_command_id", "command_id"),
    )

    agent_id: Mapped[UUID] = mapped_column(ForeignKey("agents.id", ondelete="CASCADE"))
    command_id: Mapped[UUID | None]
    kind: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(64))
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    received_at: Mapped[datetime]
