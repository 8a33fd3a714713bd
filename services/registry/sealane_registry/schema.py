"""Tables of the registry. A change here needs a migration."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()

#: Tables of every noun.
METADATA = (metadata,)


def _key(name: str, kind: type[sa.types.TypeEngine[Any]] = sa.String) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=True)


def _value(name: str, kind: type[sa.types.TypeEngine[Any]] = sa.String, default: object = None) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False, server_default=None if default is None else str(default))


models = sa.Table(
    "models",
    metadata,
    _key("project"),
    _key("model"),
    _value("description"),
    _value("create_time", sa.Float),
    _value("update_time", sa.Float),
    _value("etag"),
    _value("next_number", sa.Integer),
    _value("labels", sa.Text, "{}"),
    # 0 for a model that is there; the name of one that is not stays taken.
    _value("delete_time", sa.Float, 0),
    sa.Index("models_created", "project", "create_time", "model"),
    sa.Index("models_updated", "project", "update_time", "model"),
)
versions = sa.Table(
    "versions",
    metadata,
    _key("project"),
    _key("model"),
    _key("number", sa.Integer),
    _value("content", sa.LargeBinary),
    _value("create_time", sa.Float),
    _value("etag"),
    _value("state", default="PUSHED"),
    _value("state_reason", sa.Text, ""),
    _value("publisher", default=""),
)
approvals = sa.Table(
    "approvals",
    metadata,
    _key("project"),
    _key("model"),
    _key("number", sa.Integer),
    _key("approver"),
    _value("roles"),
    _value("comment", sa.Text),
    _value("time", sa.Float),
)
variants = sa.Table(
    "variants",
    metadata,
    _key("project"),
    _key("model"),
    _key("number", sa.Integer),
    _key("variant"),
    _value("digest"),
    _value("content", sa.LargeBinary),
    _value("create_time", sa.Float),
    sa.Column("load_check", sa.LargeBinary),
)
variant_files = sa.Table(
    "variant_files",
    metadata,
    _key("project"),
    _key("model"),
    _key("number", sa.Integer),
    _key("variant"),
    _key("path"),
    _value("sha256"),
    sa.Index("variant_files_content", "project", "sha256", "model"),
)
measurements = sa.Table(
    "measurements",
    metadata,
    _key("id", sa.Integer),
    _value("project"),
    _value("model"),
    _value("number", sa.Integer),
    _value("variant"),
    _value("content", sa.LargeBinary),
    _value("create_time", sa.Float),
    sa.Index("measurements_version", "project", "model", "number"),
)
signatures = sa.Table(
    "signatures",
    metadata,
    _key("project"),
    _key("model"),
    _key("number", sa.Integer),
    _key("variant"),
    _key("key_id"),
    _value("bundle", sa.LargeBinary),
    _value("create_time", sa.Float),
)
aliases = sa.Table(
    "aliases",
    metadata,
    _key("project"),
    _key("model"),
    _key("alias"),
    # 0 for an alias that was taken away: its history goes on if it comes back.
    _value("number", sa.Integer),
    _value("update_time", sa.Float),
    _value("etag"),
    _value("moves", sa.Integer, 0),
    _value("head", default=""),
    sa.Index("aliases_version", "project", "model", "number"),
)
alias_moves = sa.Table(
    "alias_moves",
    metadata,
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
    sa.Index("alias_moves_time", "project", "model", "alias", "time_us", "sequence"),
)
labels = sa.Table(
    "labels",
    metadata,
    _key("project"),
    # "model", "version" or "dataset".
    _key("kind"),
    # Id of a model or dataset; a version's model, "/" and number.
    _key("resource"),
    _key("key"),
    _value("value"),
    sa.Index("labels_value", "project", "kind", "key", "value", "resource"),
)
datasets = sa.Table(
    "datasets",
    metadata,
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
    sa.Index("datasets_created", "project", "create_time", "dataset"),
    sa.Index("datasets_digest", "project", "digest"),
)
dataset_files = sa.Table(
    "dataset_files",
    metadata,
    _key("project"),
    _key("dataset"),
    _key("path"),
    _value("sha256"),
    sa.Index("dataset_files_content", "project", "sha256"),
)
policies = sa.Table(
    "policies",
    metadata,
    _key("project"),
    _value("content", sa.LargeBinary),
    _value("etag"),
    _value("update_time", sa.Float),
)
quotas = sa.Table(
    "quotas",
    metadata,
    _key("project"),
    _value("max_bytes", sa.BigInteger),
    _value("max_models", sa.BigInteger),
    _value("max_versions", sa.BigInteger),
)
#: What each project has; kept with every change, since it is asked at every upload.
usage = sa.Table(
    "usage", metadata, _key("project"), _value("bytes", sa.BigInteger, 0), _value("models", sa.BigInteger, 0)
)
#: What deployments and jobs refer to, as the scheduler told last.
uses = sa.Table(
    "uses",
    metadata,
    _key("project"),
    # "version", "alias" or "artifact".
    _key("kind"),
    # A version's or an alias's model, "/" and number or id; an artifact's digest.
    _key("resource"),
    _key("holder"),
)
use_reports = sa.Table("use_reports", metadata, _key("id", sa.Integer), _value("time", sa.Float))
uploads = sa.Table(
    "uploads",
    metadata,
    _key("project"),
    _key("upload"),
    _value("sha256"),
    _value("size", sa.BigInteger),
    _value("create_time", sa.Float),
    sa.Index("uploads_content", "project", "sha256", "size"),
)
artifacts = sa.Table(
    "artifacts",
    metadata,
    _key("project"),
    _key("sha256"),
    _value("size", sa.BigInteger),
    _value("create_time", sa.Float),
    # Whether other projects have the same content.
    sa.Index("artifacts_content", "sha256"),
)
