"""Accounts, join tokens, peers, signing keys, and what every service keeps."""

import sqlalchemy as sa
from alembic import op

from sealane.records.migrations import create_shared_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    create_shared_tables()
    op.create_table(
        "accounts",
        sa.Column("project", sa.String, primary_key=True),
        sa.Column("account_id", sa.String, primary_key=True),
        sa.Column("client_id", sa.String, nullable=False, unique=True),
        sa.Column("secret_hash", sa.String, nullable=False),
        sa.Column("scopes", sa.String, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
        sa.Column("etag", sa.String, nullable=False),
    )
    op.create_table(
        "join_tokens",
        sa.Column("token_hash", sa.String, primary_key=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("subject", sa.String, nullable=False),
        sa.Column("attributes", sa.Text, nullable=False),
        sa.Column("hosts", sa.String, nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
    )
    op.create_table(
        "peers",
        sa.Column("kind", sa.String, primary_key=True),
        sa.Column("subject", sa.String, primary_key=True),
        sa.Column("attributes", sa.Text, nullable=False),
        sa.Column("hosts", sa.String, nullable=False),
    )
    op.create_table(
        "signing_keys",
        sa.Column("kid", sa.String, primary_key=True),
        sa.Column("private_pem", sa.LargeBinary, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
    )
