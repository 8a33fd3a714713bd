"""Nodes that are cordoned or drained."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "holds",
        sa.Column("node", sa.String, primary_key=True),
        sa.Column("admission", sa.String, nullable=False),
        sa.Column("deadline", sa.Float, nullable=False),
        sa.Column("since", sa.Float, nullable=False),
    )
