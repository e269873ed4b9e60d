"""Plans: what updating some packages of one machine would change."""

from datetime import datetime
from typing import Any
from uuid import UUID

from advanced_alchemy.types import JsonB
from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from redflag_core.patching import PlanState
from redflag_server.db.base import SHORT, Tenant, enum_check


def _number_of_targets(context: Any) -> int:
    return len(context.get_current_parameters()["targets"])


class Plan(Tenant):
    """
    One plan. Its packages point to it with ``packages.plan_id`` while it is open.

    ``targets`` is what was asked for (`PackageTarget`); ``transaction`` is what the machine signed that it would
    change for those of them that can be changed; ``outcomes`` says what became of each target. These can be large:
    lists show the numbers beside them.
    """

    __tablename__ = "plans"
    __table_args__ = (
        CheckConstraint(enum_check("state", PlanState), name="state"),
        Index("ix_plans_agent_id_state", "agent_id", "state"),
        Index("ix_plans_organization_id_id", "organization_id", "id"),
    )

    agent_id: Mapped[UUID] = mapped_column(ForeignKey("agents.id", ondelete="CASCADE"))
    manager: Mapped[str] = mapped_column(String(32))
    scanner: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(24), default=PlanState.PLANNING)
    state_at: Mapped[datetime]
    targets: Mapped[list[dict[str, Any]]] = mapped_column(JsonB)
    transaction: Mapped[dict[str, Any] | None]
    plan_hash: Mapped[str | None] = mapped_column(String(64))
    outcomes: Mapped[list[dict[str, Any]]] = mapped_column(JsonB, default=list)
    beyond_routine: Mapped[list[str]] = mapped_column(JsonB, default=list)
    packages: Mapped[int] = mapped_column(default=_number_of_targets)
    changes: Mapped[int | None]
    extra: Mapped[int | None]
    download_size: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(SHORT)
    planned_at: Mapped[datetime | None]
    confirmed_at: Mapped[datetime | None]
    confirmed_by: Mapped[str | None] = mapped_column(SHORT)
    code: Mapped[str | None] = mapped_column(String(64))
    detail: Mapped[str | None] = mapped_column(Text)
