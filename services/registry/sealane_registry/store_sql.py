"""The store on SQLite and PostgreSQL."""

from __future__ import annotations

from sealane_registry.alias_sql import AliasSql
from sealane_registry.artifact_sql import ArtifactSql
from sealane_registry.change_sql import ChangeSql
from sealane_registry.dataset_sql import DatasetSql
from sealane_registry.limit_sql import LimitSql
from sealane_registry.model_sql import ModelSql
from sealane_registry.schema import METADATA, metadata
from sealane_registry.variant_sql import VariantSql
from sealane_registry.version_sql import VersionSql

__all__ = ["METADATA", "SqlStore", "metadata"]


class SqlStore(ModelSql, VersionSql, VariantSql, AliasSql, DatasetSql, LimitSql, ArtifactSql, ChangeSql):
    """Implements :class:`sealane_registry.store.Store` on one connection."""
