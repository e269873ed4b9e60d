"""Work and positions"""

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Move the schema forward."""


def downgrade() -> None:
    """Move the schema back."""
