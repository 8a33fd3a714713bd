"""Jobs of more kinds than one, rounds of a job, and the alias that a deployment was made by."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the columns; what is there optimises."""
    op.add_column("jobs", sa.Column("kind", sa.String, nullable=False, server_default="optimise"))
    op.add_column("jobs", sa.Column("rounds", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("deployments", sa.Column("alias", sa.String, nullable=False, server_default=""))
