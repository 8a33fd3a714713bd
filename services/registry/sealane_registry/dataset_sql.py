"""Datasets in SQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from sealane.errors import AlreadyExists
from sealane.records.listing import Columns, Listing
from sealane_registry.rows import DatasetRow
from sealane_registry.schema import dataset_files, datasets
from sealane_registry.sql import Sql, with_label


class DatasetSql(Sql):
    """Implements :class:`sealane_registry.store.Datasets`."""

    def add_dataset(self, row: DatasetRow, files: Mapping[str, str], labels: Mapping[str, str]) -> None:
        """Add; a name that is taken, or was ever taken, raises AlreadyExists."""
        key = (datasets.c.project == row.project) & (datasets.c.dataset == row.dataset)
        if self._connection.execute(sa.select(datasets.c.dataset).where(key)).first():
            raise AlreadyExists(
                f"dataset {row.dataset} exists, or existed; datasets are immutable and names are never given out "
                "again, choose another one"
            )
        self._insert(datasets, row)
        place = {"project": row.project, "dataset": row.dataset}
        self._connection.execute(
            dataset_files.insert(), [{**place, "path": path, "sha256": sha256} for path, sha256 in files.items()]
        )
        self._set_labels(row.project, "dataset", row.dataset, labels)

    def dataset(self, project: str, dataset: str) -> DatasetRow | None:
        """A dataset that was not deleted."""
        there = (datasets.c.project == project) & (datasets.c.dataset == dataset) & (datasets.c.delete_time == 0)
        row = self._connection.execute(sa.select(datasets).where(there)).one_or_none()
        return None if row is None else _row(row)

    def datasets(self, project: str, listing: Listing) -> list[DatasetRow]:
        """The page's datasets and one more."""
        columns = Columns(
            {
                "name": datasets.c.dataset,
                "create_time": datasets.c.create_time,
                "rows": datasets.c.rows,
                "size_bytes": datasets.c.size,
                "format": datasets.c.format,
                "digest": datasets.c.digest,
            },
            datasets.c.dataset,
            with_label(project, "dataset", datasets.c.dataset),
        )
        query = sa.select(datasets).where((datasets.c.project == project) & (datasets.c.delete_time == 0))
        return [_row(row) for row in self._connection.execute(columns.apply(query, listing))]

    def delete_dataset(self, project: str, dataset: str, now: float) -> None:
        """Delete; its name stays taken."""
        key = (datasets.c.project == project) & (datasets.c.dataset == dataset)
        self._connection.execute(datasets.update().where(key & (datasets.c.delete_time == 0)).values(delete_time=now))
        self._set_labels(project, "dataset", dataset, {})


def _row(row: Any) -> DatasetRow:
    return DatasetRow(
        row.project,
        row.dataset,
        row.content,
        row.digest,
        row.format,
        row.rows,
        row.size,
        row.creator,
        row.create_time,
    )
