"""Deployments, epochs, placements, decisions, jobs."""

import sqlalchemy as sa
from alembic import op

from sealane.records.migrations import create_shared_tables

revision = "0001"
down_revision = None


def _key(name: str, kind: type = sa.String) -> "sa.Column[object]":
    return sa.Column(name, kind, primary_key=True)


def _value(name: str, kind: type = sa.String) -> "sa.Column[object]":
    return sa.Column(name, kind, nullable=False)


def upgrade() -> None:
    """Create the tables."""
    create_shared_tables()
    op.create_table(
        "deployments",
        _key("project"),
        _key("deployment"),
        _value("model_version"),
        _value("demand", sa.LargeBinary),
        _value("version", sa.LargeBinary),
        _value("create_time", sa.Float),
        _value("update_time", sa.Float),
        _value("etag"),
    )
    op.create_table("epochs", _key("project"), _key("deployment"), _value("epoch", sa.BigInteger))
    op.create_table(
        "placements",
        _key("project"),
        _key("deployment"),
        _key("epoch", sa.BigInteger),
        _value("node"),
        _value("variant"),
    )
    op.create_table(
        "decisions",
        _key("id", sa.Integer),
        _value("project"),
        _value("deployment"),
        _value("time", sa.Float),
        _value("content", sa.LargeBinary),
    )
    op.create_table(
        "jobs",
        _key("project"),
        _key("job"),
        _value("state"),
        _value("spec", sa.LargeBinary),
        _value("create_time", sa.Float),
        _value("update_time", sa.Float),
        _value("etag"),
        _value("attempt", sa.BigInteger),
        _value("node"),
        _value("lease_until", sa.Float),
        _value("progress", sa.Float),
        _value("message", sa.Text),
        _value("error", sa.Text),
        _value("results", sa.LargeBinary),
    )
