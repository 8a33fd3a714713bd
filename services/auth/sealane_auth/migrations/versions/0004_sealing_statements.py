"""The directory of sealing keys."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create the table of statements."""
    op.create_table(
        "sealing_statements",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("node", sa.String, nullable=False),
        sa.Column("jws", sa.Text, nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
    )
