"""Commands and plans"""

from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from advanced_alchemy.types import GUID, DateTimeUTC, JsonB
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

OLD_STATUSES = ("pending", "active", "quarantined", "hardware_changed", "renewal_pending", "revoked")
STATUSES = (*OLD_STATUSES[:-1], "executor_rolled_back", "revoked")
COMMAND_STATES = (
    "pending", "leased", "accepted", "running", "completed", "failed", "interrupted", "cancelled", "expired"
)  # fmt: skip
PLAN_STATES = ("planning", "needs_confirmation", "ready", "installing", "done", "failed", "dropped")
COUNTERS = ("order_at", "issued_epoch", "issued_gen", "issued_seq")
DECISIONS = ("decision", "decided_at", "decided_by", "decided_until", "decision_reason", "state_reason")

MOVES: Mapping[str, Mapping[str, str]] = {
    "packages": {
        "current": "available held kept_back phased excluded not_applicable unknown",
        "available": "current held kept_back phased approved deferred excluded not_applicable unknown",
        "held": "current available kept_back phased deferred excluded not_applicable unknown",
        "kept_back": "current available held phased approved deferred excluded not_applicable unknown",
        "phased": "current available held kept_back deferred excluded not_applicable unknown",
        "approved": "current available held kept_back phased deferred excluded planning installing reboot_pending installed failed not_applicable unknown",
        "deferred": "current available held kept_back phased approved excluded not_applicable unknown",
        "excluded": "current available held kept_back phased approved deferred not_applicable unknown",
        "planning": "current held approved needs_confirmation failed not_applicable",
        "needs_confirmation": "current available held kept_back phased approved deferred excluded not_applicable unknown",
        "installing": "current available held kept_back phased approved reboot_pending installed failed rolled_back not_applicable",
        "reboot_pending": "current available held kept_back phased installed rolled_back not_applicable unknown",
        "installed": "current available held kept_back phased excluded rolled_back not_applicable unknown",
        "failed": "current available held kept_back phased approved deferred excluded reboot_pending installed rolled_back not_applicable unknown",
        "rolled_back": "current available held kept_back phased approved deferred excluded not_applicable unknown",
        "not_applicable": "current available held kept_back phased",
        "unknown": "current available held kept_back phased deferred excluded not_applicable",
    },
    "commands": {
        "pending": "leased accepted completed failed interrupted cancelled expired",
        "leased": "pending accepted completed failed interrupted cancelled expired",
        "accepted": "pending running completed failed interrupted cancelled expired",
        "running": "pending completed failed interrupted cancelled expired",
        "cancelled": "completed failed interrupted",
        "expired": "completed failed interrupted",
    },
    "plans": {
        "planning": "needs_confirmation ready failed dropped",
        "needs_confirmation": "ready dropped",
        "ready": "installing dropped",
        "installing": "done failed dropped",
        "failed": "done",
        "dropped": "done failed",
    },
}
"""From which ``state`` a row may go where. A table that is made anew loses its guard: put it back."""


def _as_guid(_inspector: object, _table: object, column: dict[str, object]) -> None:
    """SQLite does not say that a column holds ids: without this, a table that is made anew would have numbers."""
    if isinstance(column["type"], sa.NUMERIC):
        column["type"] = GUID(length=16)


REFLECTION = {"listeners": [("column_reflect", _as_guid)]}


def upgrade() -> None:
    """Move the schema forward."""
    _create_plans()
    _create_commands()
    with op.batch_alter_table("agents", reflect_kwargs=REFLECTION) as agents:
        agents.drop_constraint(op.f("ck_agents_status"), type_="check")
        agents.create_check_constraint(op.f("ck_agents_status"), _in("status", STATUSES))
        for name in COUNTERS:
            agents.add_column(sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    with op.batch_alter_table("packages", reflect_kwargs=REFLECTION) as packages:
        packages.add_column(sa.Column("plan_id", GUID(length=16), nullable=True))
        packages.add_column(sa.Column("decision", sa.String(length=16), nullable=True))
        packages.add_column(sa.Column("decided_at", DateTimeUTC(timezone=True), nullable=True))
        packages.add_column(sa.Column("decided_by", sa.String(length=128), nullable=True))
        packages.add_column(sa.Column("decided_until", DateTimeUTC(timezone=True), nullable=True))
        packages.add_column(sa.Column("decision_reason", sa.Text(), nullable=True))
        packages.add_column(sa.Column("state_reason", sa.Text(), nullable=True))
        packages.create_foreign_key(
            op.f("fk_packages_plan_id_plans"), "plans", ["plan_id"], ["id"], ondelete="SET NULL"
        )
        packages.create_index(op.f("ix_packages_plan_id"), ["plan_id"], unique=False)
        packages.create_index(op.f("ix_packages_decided_until"), ["decided_until"], unique=False)
    op.add_column("events", sa.Column("package_id", GUID(length=16), nullable=True))
    op.create_index("ix_events_package_id_id", "events", ["package_id", "id"], unique=False)
    for table, moves in MOVES.items():
        _guard(table, moves)


def downgrade() -> None:
    """Move the schema back."""
    for table in MOVES:
        _unguard(table)
    op.drop_index("ix_events_package_id_id", table_name="events")
    op.drop_column("events", "package_id")
    with op.batch_alter_table("packages", reflect_kwargs=REFLECTION) as packages:
        packages.drop_index(op.f("ix_packages_decided_until"))
        packages.drop_index(op.f("ix_packages_plan_id"))
        packages.drop_constraint(op.f("fk_packages_plan_id_plans"), type_="foreignkey")
        for name in ("plan_id", *DECISIONS):
            packages.drop_column(name)
    with op.batch_alter_table("agents", reflect_kwargs=REFLECTION) as agents:
        agents.drop_constraint(op.f("ck_agents_status"), type_="check")
        agents.create_check_constraint(op.f("ck_agents_status"), _in("status", OLD_STATUSES))
        for name in COUNTERS:
            agents.drop_column(name)
    for table in ("command_statements", "command_deliveries", "command_subjects", "commands", "plans"):
        op.drop_table(table)


def _in(column: str, values: Sequence[str]) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


def _check(table: str, column: str, values: Sequence[str]) -> sa.CheckConstraint:
    return sa.CheckConstraint(_in(column, values), name=op.f(f"ck_{table}_{column}"))


def _trigger(table: str) -> str:
    return f"{table}_state_moves"


def _guard(table: str, moves: Mapping[str, str]) -> None:
    """Let the database refuse a change of state that no rule of the core makes."""
    pairs = ", ".join(f"'{before}>{after}'" for before, targets in moves.items() for after in targets.split())
    moved = f"OLD.state <> NEW.state AND OLD.state || '>' || NEW.state NOT IN ({pairs})"
    begun = f"CREATE TRIGGER {_trigger(table)} BEFORE UPDATE OF state ON {table} FOR EACH ROW WHEN"
    refusal = f"illegal move of {table}.state"
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"{begun} {moved} BEGIN SELECT RAISE(ABORT, '{refusal}'); END")
        return
    op.execute(
        f"CREATE FUNCTION {_trigger(table)}() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE check_violation USING MESSAGE = '{refusal}'; END $$"
    )
    op.execute(f"{begun} ({moved}) EXECUTE FUNCTION {_trigger(table)}()")


def _unguard(table: str) -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"DROP TRIGGER {_trigger(table)}")
    else:
        op.execute(f"DROP TRIGGER {_trigger(table)} ON {table}")
        op.execute(f"DROP FUNCTION {_trigger(table)}()")


def _tenant(table: str) -> tuple[sa.Constraint, ...]:
    return (
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{table}")),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organizations.id"],
            name=op.f(f"fk_{table}_organization_id_organizations"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name=op.f(f"fk_{table}_agent_id_agents"), ondelete="CASCADE"
        ),
    )


def _ids() -> tuple[sa.Column[object], ...]:
    return tuple(
        sa.Column(name, GUID(length=16), nullable=False) for name in ("id", "organization_id", "agent_id")
    )


def _moment(name: str, *, nullable: bool = True) -> sa.Column[object]:
    return sa.Column(name, DateTimeUTC(timezone=True), nullable=nullable)


def _create_plans() -> None:
    op.create_table(
        "plans",
        *_ids(),
        sa.Column("manager", sa.String(length=32), nullable=False),
        sa.Column("scanner", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=24), nullable=False),
        _moment("state_at", nullable=False),
        sa.Column("targets", JsonB, nullable=False),
        sa.Column("transaction", JsonB, nullable=True),
        sa.Column("plan_hash", sa.String(length=64), nullable=True),
        sa.Column("outcomes", JsonB, nullable=False),
        sa.Column("beyond_routine", JsonB, nullable=False),
        sa.Column("packages", sa.Integer(), nullable=False),
        sa.Column("changes", sa.Integer(), nullable=True),
        sa.Column("extra", sa.Integer(), nullable=True),
        sa.Column("download_size", sa.BigInteger(), nullable=True),
        _moment("created_at", nullable=False),
        sa.Column("created_by", sa.String(length=128), nullable=False),
        _moment("planned_at"),
        _moment("confirmed_at"),
        sa.Column("confirmed_by", sa.String(length=128), nullable=True),
        sa.Column("code", sa.String(length=64), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        _check("plans", "state", PLAN_STATES),
        *_tenant("plans"),
    )
    op.create_index("ix_plans_agent_id_state", "plans", ["agent_id", "state"], unique=False)
    op.create_index("ix_plans_organization_id_id", "plans", ["organization_id", "id"], unique=False)


def _create_commands() -> None:
    op.create_table(
        "commands",
        *_ids(),
        sa.Column("type", sa.String(length=48), nullable=False),
        sa.Column("params", sa.LargeBinary(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        _moment("state_at", nullable=False),
        _moment("created_at", nullable=False),
        sa.Column("created_by", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("retry_of", GUID(length=16), nullable=True),
        sa.Column("plan_id", GUID(length=16), nullable=True),
        _moment("start_by", nullable=False),
        _moment("not_before"),
        _moment("leased_until"),
        _moment("delivered_at"),
        sa.Column("deliveries", sa.Integer(), nullable=False),
        sa.Column("refusals", sa.Integer(), nullable=False),
        sa.Column("order_epoch", sa.BigInteger(), nullable=True),
        sa.Column("order_gen", sa.BigInteger(), nullable=True),
        sa.Column("order_seq", sa.BigInteger(), nullable=True),
        _moment("accepted_at"),
        _moment("started_at"),
        _moment("finished_at"),
        sa.Column("code", sa.String(length=64), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("progress", JsonB, nullable=True),
        sa.Column("result", JsonB, nullable=True),
        _moment("cancel_requested_at"),
        _moment("overdue_at"),
        _moment("archived_at"),
        _check("commands", "state", COMMAND_STATES),
        sa.ForeignKeyConstraint(
            ["plan_id"], ["plans.id"], name=op.f("fk_commands_plan_id_plans"), ondelete="SET NULL"
        ),
        *_tenant("commands"),
    )
    op.create_index("ix_commands_agent_id_state", "commands", ["agent_id", "state"], unique=False)
    op.create_index("ix_commands_organization_id_id", "commands", ["organization_id", "id"], unique=False)
    op.create_index(op.f("ix_commands_plan_id"), "commands", ["plan_id"], unique=False)
    op.create_table(
        "command_subjects",
        *_ids(),
        sa.Column("subject", sa.String(length=400), nullable=False),
        sa.Column("command_id", GUID(length=16), nullable=False),
        sa.UniqueConstraint("agent_id", "subject", name=op.f("uq_command_subjects_agent_id")),
        sa.ForeignKeyConstraint(
            ["command_id"],
            ["commands.id"],
            name=op.f("fk_command_subjects_command_id_commands"),
            ondelete="CASCADE",
        ),
        *_tenant("command_subjects"),
    )
    op.create_index(op.f("ix_command_subjects_command_id"), "command_subjects", ["command_id"], unique=False)
    op.create_table(
        "command_deliveries",
        *_ids(),
        sa.Column("command_id", GUID(length=16), nullable=False),
        _moment("at", nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("gen", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["command_id"],
            ["commands.id"],
            name=op.f("fk_command_deliveries_command_id_commands"),
            ondelete="CASCADE",
        ),
        sa.UniqueConstraint("agent_id", "epoch", "gen", "seq", name=op.f("uq_command_deliveries_agent_id")),
        *_tenant("command_deliveries"),
    )
    op.create_index(op.f("ix_command_deliveries_command_id"), "command_deliveries", ["command_id"], unique=False)
    op.create_table(
        "command_statements",
        *_ids(),
        sa.Column("command_id", GUID(length=16), nullable=True),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        _moment("received_at", nullable=False),
        _check("command_statements", "kind", ("accepted", "refused", "result")),
        sa.UniqueConstraint("agent_id", "digest", name=op.f("uq_command_statements_agent_id")),
        *_tenant("command_statements"),
    )
    op.create_index("ix_command_statements_command_id", "command_statements", ["command_id"], unique=False)
