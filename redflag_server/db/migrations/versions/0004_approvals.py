"""Approvals"""

import sqlalchemy as sa
from advanced_alchemy.types import GUID, DateTimeUTC, JsonB
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Move the schema forward."""
    op.create_table(
        "operator_keys",
        sa.Column("id", GUID(length=16), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("key_id", sa.String(length=32), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("organizations", JsonB, nullable=False),
        _moment("added_at", nullable=False),
        sa.Column("added_by", sa.String(length=128), nullable=False),
        _moment("revoked_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operator_keys")),
        sa.UniqueConstraint("key_id", name=op.f("uq_operator_keys_key_id")),
    )
    op.create_table(
        "approvals",
        *_ids("id", "organization_id", "signed_id"),
        sa.Column("key_id", sa.String(length=32), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("covered", JsonB, nullable=False),
        sa.Column("max_starts", sa.Integer(), nullable=False),
        _moment("valid_from", nullable=False),
        _moment("valid_until", nullable=False),
        _moment("stored_at", nullable=False),
        sa.Column("stored_by", sa.String(length=128), nullable=False),
        sa.UniqueConstraint("signed_id", name=op.f("uq_approvals_signed_id")),
        *_tenant("approvals"),
    )
    op.create_index("ix_approvals_organization_id_id", "approvals", ["organization_id", "id"], unique=False)
    op.create_table(
        "approval_leaves",
        *_ids("id", "organization_id", "approval_id"),
        sa.Column("position", sa.Integer(), nullable=False),
        *_ids("agent_id"),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["approval_id"],
            ["approvals.id"],
            name=op.f("fk_approval_leaves_approval_id_approvals"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name=op.f("fk_approval_leaves_agent_id_agents"), ondelete="CASCADE"
        ),
        sa.UniqueConstraint("approval_id", "position", name=op.f("uq_approval_leaves_approval_id")),
        *_tenant("approval_leaves"),
    )
    op.create_index("ix_approval_leaves_agent_id_digest", "approval_leaves", ["agent_id", "digest"], unique=False)
    # Without a foreign key: to get one, SQLite would make the table anew, and with it would go its guard of states.
    op.add_column("commands", sa.Column("approval_id", GUID(length=16), nullable=True))
    op.add_column("commands", sa.Column("approval_index", sa.Integer(), nullable=True))


def downgrade() -> None:
    """Move the schema back."""
    op.drop_column("commands", "approval_index")
    op.drop_column("commands", "approval_id")
    for table in ("approval_leaves", "approvals", "operator_keys"):
        op.drop_table(table)


def _ids(*names: str) -> tuple[sa.Column[object], ...]:
    return tuple(sa.Column(name, GUID(length=16), nullable=False) for name in names)


def _moment(name: str, *, nullable: bool) -> sa.Column[object]:
    return sa.Column(name, DateTimeUTC(timezone=True), nullable=nullable)


def _tenant(table: str) -> tuple[sa.Constraint, ...]:
    return (
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{table}")),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organizations.id"],
            name=op.f(f"fk_{table}_organization_id_organizations"),
            ondelete="RESTRICT",
        ),
    )
