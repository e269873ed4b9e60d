"""Errors of everything"""

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Move the schema forward."""


def downgrade() -> None:
    """Move the schema back."""
