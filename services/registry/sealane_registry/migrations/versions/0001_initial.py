"""Models, versions, variants, measurements, aliases, uploads, artifacts."""

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
        "models",
        _key("project"),
        _key("model"),
        _value("description"),
        _value("create_time", sa.Float),
        _value("update_time", sa.Float),
        _value("etag"),
        _value("next_number", sa.Integer),
    )
    op.create_table(
        "versions",
        _key("project"),
        _key("model"),
        _key("number", sa.Integer),
        _value("content", sa.LargeBinary),
        _value("create_time", sa.Float),
        _value("etag"),
    )
    op.create_table(
        "variants",
        _key("project"),
        _key("model"),
        _key("number", sa.Integer),
        _key("variant"),
        _value("digest"),
        _value("content", sa.LargeBinary),
        _value("create_time", sa.Float),
    )
    op.create_table(
        "measurements",
        _key("id", sa.Integer),
        _value("project"),
        _value("model"),
        _value("number", sa.Integer),
        _value("variant"),
        _value("content", sa.LargeBinary),
        _value("create_time", sa.Float),
    )
    op.create_table(
        "aliases",
        _key("project"),
        _key("model"),
        _key("alias"),
        _value("number", sa.Integer),
        _value("update_time", sa.Float),
        _value("etag"),
    )
    _create_artifact_tables()


def _create_artifact_tables() -> None:
    op.create_table(
        "uploads",
        _key("project"),
        _key("upload"),
        _value("sha256"),
        _value("size", sa.BigInteger),
        _value("create_time", sa.Float),
    )
    op.create_table(
        "artifacts", _key("project"), _key("sha256"), _value("size", sa.BigInteger), _value("create_time", sa.Float)
    )
