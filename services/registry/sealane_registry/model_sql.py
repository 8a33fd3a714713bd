"""Models in SQL."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from sealane.errors import AlreadyExists
from sealane.records.listing import Columns, Listing
from sealane_registry.rows import ModelRow
from sealane_registry.schema import models, usage
from sealane_registry.sql import Sql, with_label


class ModelSql(Sql):
    """Implements :class:`sealane_registry.store.Models`."""

    def add_model(self, row: ModelRow) -> None:
        """Add; a name that is taken, or was ever taken, raises AlreadyExists."""
        there = self._connection.execute(sa.select(models.c.delete_time).where(_key(row.project, row.model))).scalar()
        if there:
            raise AlreadyExists(
                f"model {row.model} was deleted and names are never given out again; choose another name",
                reason="NAME_WAS_DELETED",
            )
        if there is not None:
            raise AlreadyExists(f"model {row.model} exists; push a new version of it, or choose another name")
        self._insert(models, row, next_number=1, labels=json.dumps(dict(row.labels), sort_keys=True))
        self._set_labels(row.project, "model", row.model, row.labels)
        self._count(row.project, 1)

    def model(self, project: str, model: str) -> ModelRow | None:
        """A model that was not deleted."""
        query = sa.select(models).where(_key(project, model) & (models.c.delete_time == 0))
        row = self._connection.execute(query).one_or_none()
        return None if row is None else _row(row)

    def models(self, project: str, listing: Listing) -> list[ModelRow]:
        """The page's models and one more; deleted ones are not there."""
        columns = Columns(
            {
                "name": models.c.model,
                "description": models.c.description,
                "create_time": models.c.create_time,
                "update_time": models.c.update_time,
            },
            models.c.model,
            with_label(project, "model", models.c.model),
        )
        query = sa.select(models).where((models.c.project == project) & (models.c.delete_time == 0))
        return [_row(row) for row in self._connection.execute(columns.apply(query, listing))]

    def put_model(self, row: ModelRow) -> None:
        """Set description, labels, etag and time of change of a model that is there."""
        self._connection.execute(
            models.update()
            .where(_key(row.project, row.model))
            .values(
                description=row.description,
                labels=json.dumps(dict(row.labels), sort_keys=True),
                update_time=row.update_time,
                etag=row.etag,
            )
        )
        self._set_labels(row.project, "model", row.model, row.labels)

    def delete_model(self, project: str, model: str, now: float) -> None:
        """Delete; its name stays taken, what is below it is kept until it is collected."""
        there = _key(project, model) & (models.c.delete_time == 0)
        if self._connection.execute(models.update().where(there).values(delete_time=now)).rowcount:
            self._set_labels(project, "model", model, {})
            self._count(project, -1)

    def _count(self, project: str, change: int) -> None:
        place = usage.c.project == project
        changed = usage.update().where(place).values(models=usage.c.models + change)
        if self._connection.execute(changed).rowcount == 0:
            self._connection.execute(usage.insert().values(project=project, bytes=0, models=change))


def _key(project: str, model: str) -> sa.ColumnElement[bool]:
    return (models.c.project == project) & (models.c.model == model)


def _row(row: Any) -> ModelRow:
    return ModelRow(
        row.project,
        row.model,
        row.description,
        row.create_time,
        row.update_time,
        row.etag,
        json.loads(row.labels),
        row.next_number - 1,
    )
