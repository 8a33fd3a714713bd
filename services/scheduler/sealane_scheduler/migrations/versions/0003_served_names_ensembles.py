"""Names and labels of deployments that the compatible protocols made; chains."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns and the table."""
    for name in ("served_name", "origin", "labels"):
        op.add_column("deployments", sa.Column(name, sa.String, nullable=False, server_default=""))
    op.create_table(
        "ensembles",
        sa.Column("project", sa.String, primary_key=True),
        sa.Column("deployment", sa.String, primary_key=True),
        sa.Column("ensemble", sa.LargeBinary, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
        sa.Column("etag", sa.String, nullable=False),
    )
