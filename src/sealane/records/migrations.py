"""Migrations of the tables that every service shares, as the services' own migrations call them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op


def create_shared_tables() -> None:
    """Outbox, audit trail and request ids, as of their first version."""
    op.create_table(
        "outbox",
        sa.Column("revision", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("resource", sa.String, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("action", sa.String, nullable=False),
        sa.Column("resource", sa.String, nullable=False),
        sa.Column("request_id", sa.String, nullable=False),
        sa.Column("details", sa.Text, nullable=False),
        sa.Column("sequence", sa.Integer, unique=True),
        sa.Column("hash", sa.String),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "request_ids",
        sa.Column("project", sa.String, primary_key=True),
        sa.Column("request_id", sa.String, primary_key=True),
        sa.Column("content", sa.String, nullable=False),
        sa.Column("response", sa.LargeBinary, nullable=False),
        sa.Column("time", sa.Float, nullable=False),
    )


def create_audit_checkpoints() -> None:
    """Signed checkpoints of the audit trail, and an index for lists of a project."""
    op.create_table(
        "audit_checkpoints",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
        sa.Column("chain", sa.LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("audit_project", "audit", ["project", "id"])
