"""States, approvals, history, labels, signatures, datasets, policies, quotas, uses; indexes for lists."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def _key(name: str, kind: type = sa.String) -> "sa.Column[object]":
    return sa.Column(name, kind, primary_key=True)


def _value(name: str, kind: type = sa.String, default: object = None) -> "sa.Column[object]":
    return sa.Column(name, kind, nullable=False, server_default=None if default is None else str(default))


def upgrade() -> None:
    """Create the tables, and fill from what was there those that later work goes by."""
    _extend_models()
    _extend_variants()
    _extend_aliases()
    _create_datasets()
    _create_limits()
    _fill()


def _extend_models() -> None:
    op.add_column("models", _value("labels", sa.Text, "{}"))
    op.add_column("models", _value("delete_time", sa.Float, 0))
    op.create_index("models_created", "models", ["project", "create_time", "model"])
    op.create_index("models_updated", "models", ["project", "update_time", "model"])
    op.add_column("versions", _value("state", default="PUSHED"))
    op.add_column("versions", _value("state_reason", sa.Text, ""))
    op.add_column("versions", _value("publisher", default=""))
    op.create_table(
        "approvals",
        _key("project"),
        _key("model"),
        _key("number", sa.Integer),
        _key("approver"),
        _value("roles"),
        _value("comment", sa.Text),
        _value("time", sa.Float),
    )
    op.create_table(
        "labels",
        _key("project"),
        _key("kind"),
        _key("resource"),
        _key("key"),
        _value("value"),
    )
    op.create_index("labels_value", "labels", ["project", "kind", "key", "value", "resource"])


def _extend_variants() -> None:
    op.add_column("variants", sa.Column("load_check", sa.LargeBinary))
    op.create_table(
        "variant_files",
        _key("project"),
        _key("model"),
        _key("number", sa.Integer),
        _key("variant"),
        _key("path"),
        _value("sha256"),
    )
    op.create_index("variant_files_content", "variant_files", ["project", "sha256", "model"])
    op.create_index("measurements_version", "measurements", ["project", "model", "number"])
    op.create_table(
        "signatures",
        _key("project"),
        _key("model"),
        _key("number", sa.Integer),
        _key("variant"),
        _key("key_id"),
        _value("bundle", sa.LargeBinary),
        _value("create_time", sa.Float),
    )


def _extend_aliases() -> None:
    op.add_column("aliases", _value("moves", sa.Integer, 0))
    op.add_column("aliases", _value("head", default=""))
    op.create_index("aliases_version", "aliases", ["project", "model", "number"])
    op.create_table(
        "alias_moves",
        _key("project"),
        _key("model"),
        _key("alias"),
        _key("sequence", sa.Integer),
        _value("number", sa.Integer),
        _value("previous", sa.Integer),
        _value("time_us", sa.BigInteger),
        _value("mover"),
        _value("evidence", sa.Text),
        _value("previous_hash"),
        _value("hash"),
    )
    op.create_index("alias_moves_time", "alias_moves", ["project", "model", "alias", "time_us", "sequence"])


def _create_datasets() -> None:
    op.create_table(
        "datasets",
        _key("project"),
        _key("dataset"),
        _value("content", sa.LargeBinary),
        _value("digest"),
        _value("format"),
        _value("rows", sa.BigInteger),
        _value("size", sa.BigInteger),
        _value("creator"),
        _value("create_time", sa.Float),
        _value("delete_time", sa.Float, 0),
    )
    op.create_index("datasets_created", "datasets", ["project", "create_time", "dataset"])
    op.create_index("datasets_digest", "datasets", ["project", "digest"])
    op.create_table("dataset_files", _key("project"), _key("dataset"), _key("path"), _value("sha256"))
    op.create_index("dataset_files_content", "dataset_files", ["project", "sha256"])


def _create_limits() -> None:
    op.create_table(
        "policies", _key("project"), _value("content", sa.LargeBinary), _value("etag"), _value("update_time", sa.Float)
    )
    op.create_table(
        "quotas",
        _key("project"),
        _value("max_bytes", sa.BigInteger),
        _value("max_models", sa.BigInteger),
        _value("max_versions", sa.BigInteger),
    )
    op.create_table("usage", _key("project"), _value("bytes", sa.BigInteger, 0), _value("models", sa.BigInteger, 0))
    op.create_table("uses", _key("project"), _key("kind"), _key("resource"), _key("holder"))
    op.create_table("use_reports", _key("id", sa.Integer), _value("time", sa.Float))
    op.create_index("uploads_content", "uploads", ["project", "sha256", "size"])
    op.create_index("artifacts_content", "artifacts", ["sha256"])


def _fill() -> None:
    """Files of variants, what projects have, and the first move of each alias."""
    from sealane_registry.schema_fill import fill

    fill(op.get_bind())
