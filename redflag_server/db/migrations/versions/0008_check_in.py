"""Check-in: what every check-in changes is in no index, so that PostgreSQL rewrites the row in its page"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Move the schema forward."""
    with op.batch_alter_table("agents", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_agents_last_seen_at"))
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE agents SET (fillfactor = 50)")


def downgrade() -> None:
    """Move the schema back."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE agents RESET (fillfactor)")
    with op.batch_alter_table("agents", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_agents_last_seen_at"), ["last_seen_at"], unique=False)
