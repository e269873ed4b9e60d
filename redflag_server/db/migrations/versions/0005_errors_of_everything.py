"""Errors of everything"""

from typing import Any

import attrs
import sqlalchemy as sa
from advanced_alchemy.types import GUID, DateTimeUTC, JsonB
from alembic import op

from redflag_core.error_reports import kinds_of
from redflag_core.messages import ClientError

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TABLE = "client_errors"
NO_AGENT = sa.text("agent_id IS NULL")

ROWS = sa.table(
    TABLE,
    sa.column("id", GUID(length=16)),
    sa.column("source", sa.String()),
    sa.column("agent_id", GUID(length=16)),
    sa.column("digest", sa.String()),
    sa.column("subsystem", sa.String()),
    sa.column("type", sa.String()),
    sa.column("message", sa.Text()),
    sa.column("stack", sa.Text()),
    sa.column("context", JsonB),
    sa.column("count", sa.BigInteger()),
    sa.column("first_seen_at", DateTimeUTC(timezone=True)),
    sa.column("last_seen_at", DateTimeUTC(timezone=True)),
)


def _as_guid(_inspector: object, _table: object, column: dict[str, object]) -> None:
    """SQLite does not say that a column holds ids: without this, a table that is made anew would have numbers."""
    if isinstance(column["type"], sa.NUMERIC):
        column["type"] = GUID(length=16)


REFLECTION = {"listeners": [("column_reflect", _as_guid)]}


def upgrade() -> None:
    """Move the schema forward. What is stored is told apart by the new rule, and loses its secrets."""
    with op.batch_alter_table(TABLE, reflect_kwargs=REFLECTION) as errors:
        errors.add_column(sa.Column("source", sa.String(length=16), nullable=False, server_default="agent"))
        errors.add_column(sa.Column("resolved_at", DateTimeUTC(timezone=True), nullable=True))
        errors.add_column(sa.Column("resolved_by", sa.String(length=128), nullable=True))
        errors.add_column(sa.Column("resolution", sa.Text(), nullable=True))
        errors.alter_column("agent_id", existing_type=GUID(length=16), nullable=True)
        errors.create_check_constraint(op.f("ck_client_errors_source"), "source IN ('agent', 'server')")
    with op.batch_alter_table(TABLE, reflect_kwargs=REFLECTION) as errors:
        errors.alter_column("source", existing_type=sa.String(length=16), server_default=None)
    op.create_index("ix_client_errors_digest", TABLE, ["digest"], unique=False)
    op.create_index(
        "uq_client_errors_without_agent",
        TABLE,
        ["organization_id", "source", "digest"],
        unique=True,
        sqlite_where=NO_AGENT,
        postgresql_where=NO_AGENT,
    )
    for agent_id in op.get_bind().execute(sa.select(ROWS.c.agent_id).distinct()).scalars().all():
        _tell_apart_anew(agent_id)


def downgrade() -> None:
    """Move the schema back. Errors of the server go; those that became one stay one."""
    op.drop_index("uq_client_errors_without_agent", table_name=TABLE)
    op.drop_index("ix_client_errors_digest", table_name=TABLE)
    op.execute(sa.delete(ROWS).where(ROWS.c.agent_id.is_(None)))
    with op.batch_alter_table(TABLE, reflect_kwargs=REFLECTION) as errors:
        errors.drop_constraint(op.f("ck_client_errors_source"), type_="check")
        errors.alter_column("agent_id", existing_type=GUID(length=16), nullable=False)
        for name in ("source", "resolved_at", "resolved_by", "resolution"):
            errors.drop_column(name)


def _tell_apart_anew(agent_id: Any) -> None:
    """The errors of one agent, at most some hundreds: each kind in its oldest row, with the sample of its newest."""
    rows = op.get_bind().execute(sa.select(ROWS).where(ROWS.c.agent_id == agent_id).order_by(ROWS.c.id)).all()
    kinds: dict[str, list[Any]] = {}
    samples: dict[str, ClientError] = {}
    for row in rows:
        error = ClientError(row.subsystem, row.type, row.message, 1, 0, 0, row.stack, row.context)
        (kind,) = kinds_of([error])
        kinds.setdefault(kind.fingerprint, []).append(row)
        samples[kind.fingerprint] = kind.sample
    op.execute(sa.delete(ROWS).where(ROWS.c.id.in_([row.id for same in kinds.values() for row in same[1:]])))
    for digest, same in kinds.items():
        values = attrs.asdict(samples[digest], recurse=False)
        values |= {
            "digest": digest,
            "count": sum(row.count for row in same),
            "first_seen_at": min(row.first_seen_at for row in same),
            "last_seen_at": max(row.last_seen_at for row in same),
        }
        del values["first_seen"], values["last_seen"]
        op.execute(sa.update(ROWS).where(ROWS.c.id == same[0].id).values(values))
