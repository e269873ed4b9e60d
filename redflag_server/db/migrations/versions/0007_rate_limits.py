"""Rate limits"""

import sqlalchemy as sa
from advanced_alchemy.types import GUID, DateTimeUTC
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

CLASSES = ("agent", "report", "result", "error", "token", "operator", "address", "register", "sign-in")


def upgrade() -> None:
    """Move the schema forward."""
    op.create_table(
        "rate_limits",
        sa.Column("id", GUID(length=16), nullable=False),
        sa.Column("organization_id", GUID(length=16), nullable=False),
        sa.Column("class", sa.String(length=16), nullable=False),
        sa.Column("policy", sa.String(length=64), nullable=False),
        sa.Column("changed_at", DateTimeUTC(timezone=True), nullable=False),
        sa.Column("changed_by", sa.String(length=128), nullable=False),
        sa.CheckConstraint(f"class IN ({', '.join(map(repr, CLASSES))})", name=op.f("ck_rate_limits_class")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rate_limits")),
        sa.UniqueConstraint("organization_id", "class", name=op.f("uq_rate_limits_organization_id")),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organizations.id"],
            name=op.f("fk_rate_limits_organization_id_organizations"),
            ondelete="RESTRICT",
        ),
    )
    op.create_index("ix_rate_limits_organization_id_id", "rate_limits", ["organization_id", "id"])
    op.create_table(
        "rate_arrivals",
        sa.Column(
            "key",
            sa.String(length=192).with_variant(sa.String(length=192, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column("arrival", sa.Float(precision=53), nullable=False),
        sa.Column("allowed", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_rate_arrivals")),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE rate_arrivals SET (fillfactor = 50)")  # most changes then fit beside the old row


def downgrade() -> None:
    """Move the schema back."""
    op.drop_table("rate_arrivals")
    op.drop_table("rate_limits")
