"""Signing keys under the key file, device keys and eviction, revocations, the audit log's checkpoints."""

import sqlalchemy as sa
from alembic import op

from sealane.records.migrations import create_audit_checkpoints

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Change the tables of version 1, and create those of revocations."""
    with op.batch_alter_table("signing_keys") as table:
        table.alter_column("private_pem", new_column_name="sealed_private")
        table.add_column(sa.Column("public", sa.LargeBinary, nullable=False, server_default=sa.text("x''")))
        table.add_column(sa.Column("sign_time", sa.Float, nullable=False, server_default="0"))
        table.add_column(sa.Column("withdraw_time", sa.Float, nullable=False, server_default="0"))
        table.add_column(sa.Column("revoke_time", sa.Float, nullable=False, server_default="0"))
    op.execute("UPDATE signing_keys SET sign_time = create_time")
    no_offline = sa.text("""'{"ttl": 0, "accounts": []}'""")
    with op.batch_alter_table("join_tokens") as table:
        table.add_column(sa.Column("offline", sa.Text, nullable=False, server_default=no_offline))
    with op.batch_alter_table("peers") as table:
        table.add_column(sa.Column("device_key", sa.LargeBinary, nullable=False, server_default=sa.text("x''")))
        table.add_column(sa.Column("offline", sa.Text, nullable=False, server_default=no_offline))
        table.add_column(sa.Column("join_time", sa.Float, nullable=False, server_default="0"))
        table.add_column(sa.Column("evict_time", sa.Float, nullable=False, server_default="0"))
    op.create_table(
        "revocations",
        sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("value", sa.String, nullable=False),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("number", sa.Float, nullable=False),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("until", sa.Float, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "subject_epochs",
        sa.Column("subject", sa.String, primary_key=True),
        sa.Column("epoch", sa.Integer, nullable=False),
    )
    create_audit_checkpoints()
