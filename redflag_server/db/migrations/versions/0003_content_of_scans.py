"""Content of scans"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Move the schema forward."""
    op.add_column("scanners", sa.Column("content", sa.String(length=64), nullable=True))


def downgrade() -> None:
    """Move the schema back."""
    with op.batch_alter_table("scanners", schema=None) as batch_op:
        batch_op.drop_column("content")
