"""Names under which deployments are served are looked up with every new deployment."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Make the index."""
    op.create_index("deployments_by_served_name", "deployments", ["project", "served_name"])
