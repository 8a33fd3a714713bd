"""Signed checkpoints of the audit trail."""

from sealane.records.migrations import create_audit_checkpoints

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the table."""
    create_audit_checkpoints()
