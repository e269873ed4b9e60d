"""Work and positions"""

from typing import Any

import sqlalchemy as sa
from advanced_alchemy.types import GUID, DateTimeUTC, JsonB
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SQLITE = """\
CREATE TRIGGER events_unplaced AFTER INSERT ON events FOR EACH ROW BEGIN
    INSERT INTO unplaced_events (arrived, event_id)
    SELECT coalesce(max(arrived), 0) + 1, NEW.id FROM unplaced_events;
END"""

FUNCTION = """\
CREATE FUNCTION events_unplaced() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO unplaced_events (arrived, event_id, xid)
    SELECT
        (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, id, pg_current_xact_id()::text::bigint
    FROM (SELECT id FROM inserted ORDER BY id) AS ordered;
    RETURN NULL;
END $$"""

POSTGRESQL = """\
CREATE TRIGGER events_unplaced AFTER INSERT ON events REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION events_unplaced()"""

ALL_EVENTS = """\
INSERT INTO unplaced_events (arrived, event_id) SELECT row_number() OVER (ORDER BY id), id FROM events"""


def upgrade() -> None:
    """Move the schema forward. The sequencer places the events that are there, in the order of their ids."""
    _jobs()
    _histories()
    op.execute(ALL_EVENTS)
    if op.get_bind().dialect.name == "sqlite":
        op.execute(SQLITE)
    else:
        op.execute(FUNCTION)
        op.execute(POSTGRESQL)


def downgrade() -> None:
    """Move the schema back."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER events_unplaced")
    else:
        op.execute("DROP TRIGGER events_unplaced ON events")
        op.execute("DROP FUNCTION events_unplaced()")
    for table in ("consumers", "history_entries", "histories", "unplaced_events", "leases", "jobs"):
        op.drop_table(table)


def _jobs() -> None:
    op.create_table(
        "jobs",
        _id("id"),
        _id("organization_id"),
        sa.Column("kind", sa.String(length=128), nullable=False),
        sa.Column("key", sa.String(length=256), nullable=True),
        sa.Column("payload", JsonB, nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("ordinal", sa.BigInteger(), nullable=False),
        _moment("run_at"),
        sa.Column("attempts", sa.Integer(), nullable=False),
        _id("lease_holder", nullable=True),
        _moment("lease_until", nullable=True),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        _moment("created_at"),
        _moment("ended_at", nullable=True),
        sa.CheckConstraint("state IN ('live', 'done', 'dead')", name=op.f("ck_jobs_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        _organization("jobs"),
    )
    live = _where("state = 'live'")
    op.create_index("ix_jobs_organization_id_id", "jobs", ["organization_id", "id"])
    op.create_index("ix_jobs_run_at", "jobs", ["run_at"], **live)
    op.create_index("ix_jobs_key_ordinal", "jobs", ["key", "ordinal"], **live)
    leased = _where("state = 'live' AND lease_until IS NOT NULL")
    op.create_index("ix_jobs_one_lease", "jobs", ["key"], unique=True, **leased)
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=128), nullable=False),
        _id("holder"),
        _moment("until"),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )


def _histories() -> None:
    op.create_table(
        "unplaced_events",
        sa.Column("arrived", sa.BigInteger(), nullable=False),
        _id("event_id"),
        sa.Column("xid", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("arrived", "event_id", name=op.f("pk_unplaced_events")),
    )
    op.create_table(
        "histories",
        _id("organization_id"),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("nodes", JsonB, nullable=False),
        sa.Column("last", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("organization_id", name=op.f("pk_histories")),
        _organization("histories"),
    )
    op.create_table(
        "history_entries",
        _id("organization_id"),
        sa.Column("position", sa.BigInteger(), nullable=False),
        _id("event_id"),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("organization_id", "position", name=op.f("pk_history_entries")),
        sa.UniqueConstraint("event_id", name=op.f("uq_history_entries_event_id")),
        _organization("history_entries"),
    )
    op.create_table(
        "consumers",
        sa.Column("name", sa.String(length=128), nullable=False),
        _id("organization_id"),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", "organization_id", name=op.f("pk_consumers")),
        _organization("consumers"),
    )


def _id(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, GUID(length=16), nullable=nullable)


def _moment(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, DateTimeUTC(timezone=True), nullable=nullable)


def _organization(table: str) -> sa.Constraint:
    return sa.ForeignKeyConstraint(
        ["organization_id"],
        ["organizations.id"],
        name=op.f(f"fk_{table}_organization_id_organizations"),
        ondelete="RESTRICT",
    )


def _where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}
