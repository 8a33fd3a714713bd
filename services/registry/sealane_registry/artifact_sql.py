"""Artifacts and uploads in SQL."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from sealane_registry.rows import UploadRow
from sealane_registry.schema import (
    artifacts,
    dataset_files,
    datasets,
    models,
    uploads,
    usage,
    uses,
    variant_files,
)
from sealane_registry.sql import Sql


class ArtifactSql(Sql):
    """Implements :class:`sealane_registry.store.Artifacts`."""

    def upload_of(self, project: str, sha256: str, size: int) -> UploadRow | None:
        """The upload of a digest that was started before."""
        wanted = (uploads.c.project == project) & (uploads.c.sha256 == sha256) & (uploads.c.size == size)
        return self._upload(sa.select(uploads).where(wanted).limit(1))

    def upload(self, project: str, upload: str) -> UploadRow | None:
        """An upload by its id."""
        return self._upload(sa.select(uploads).where((uploads.c.project == project) & (uploads.c.upload == upload)))

    def add_upload(self, row: UploadRow) -> None:
        """Add an upload."""
        self._insert(uploads, row)

    def drop_uploads(self, before: float) -> None:
        """Forget uploads that were started before a time."""
        self._connection.execute(uploads.delete().where(uploads.c.create_time < before))

    def upload_ids(self) -> set[str]:
        """Ids of all uploads."""
        return set(self._connection.execute(sa.select(uploads.c.upload)).scalars())

    def pending_bytes(self, project: str) -> int:
        """Declared bytes of the project's uploads whose artifact it does not have yet."""
        there = sa.exists().where((artifacts.c.project == project) & (artifacts.c.sha256 == uploads.c.sha256))
        query = sa.select(sa.func.coalesce(sa.func.sum(uploads.c.size), 0))
        return int(self._connection.execute(query.where((uploads.c.project == project) & ~there)).scalar_one())

    def add_artifact(self, project: str, sha256: str, size: int, now: float) -> None:
        """Give the artifact to the project; a repeat makes it young again and changes nothing else."""
        key = _key(project, sha256)
        if self._connection.execute(artifacts.update().where(key).values(create_time=now)).rowcount:
            return
        self._connection.execute(artifacts.insert().values(project=project, sha256=sha256, size=size, create_time=now))
        self._add_bytes(project, size)

    def models_with_file(self, project: str, sha256: str) -> list[str]:
        """Ids of the models of a project that have a variant with this file."""
        held = (variant_files.c.project == project) & (variant_files.c.sha256 == sha256)
        query = sa.select(variant_files.c.model).where(held).distinct().order_by(variant_files.c.model)
        return list(self._connection.execute(query).scalars())

    def projects_with_artifact(self, sha256: str) -> list[str]:
        """All projects that have the artifact."""
        query = sa.select(artifacts.c.project).where(artifacts.c.sha256 == sha256)
        return sorted(self._connection.execute(query).scalars())

    def artifact_size(self, project: str, sha256: str) -> int | None:
        """Size of an artifact of the project; None where the project has none such."""
        size = self._connection.execute(sa.select(artifacts.c.size).where(_key(project, sha256))).scalar_one_or_none()
        return None if size is None else int(size)

    def unreferenced(self, before: float, reported: float, limit: int) -> list[tuple[str, str, int]]:
        """Project, digest and size of artifacts given before a time that nothing refers to.

        What belongs to a model or dataset deleted after `reported` is not among them.
        """
        same = artifacts.c.project
        model = (models.c.project == variant_files.c.project) & (models.c.model == variant_files.c.model)
        alive = (models.c.delete_time == 0) | (models.c.delete_time >= reported)
        used = sa.exists().where(
            (uses.c.project == variant_files.c.project)
            & (uses.c.kind == "version")
            & (uses.c.resource == variant_files.c.model + "/" + sa.cast(variant_files.c.number, sa.String))
        )
        of_variant = sa.exists().where(
            (variant_files.c.project == same) & (variant_files.c.sha256 == artifacts.c.sha256) & model & (alive | used)
        )
        dataset = (datasets.c.project == dataset_files.c.project) & (datasets.c.dataset == dataset_files.c.dataset)
        kept = (datasets.c.delete_time == 0) | (datasets.c.delete_time >= reported)
        of_dataset = sa.exists().where(
            (dataset_files.c.project == same) & (dataset_files.c.sha256 == artifacts.c.sha256) & dataset & kept
        )
        of_use = sa.exists().where(
            (uses.c.project == same) & (uses.c.kind == "artifact") & (uses.c.resource == artifacts.c.sha256)
        )
        query = (
            sa.select(artifacts.c.project, artifacts.c.sha256, artifacts.c.size)
            .where((artifacts.c.create_time < before) & ~of_variant & ~of_dataset & ~of_use)
            .limit(limit)
        )
        return [(row.project, row.sha256, row.size) for row in self._connection.execute(query)]

    def drop_artifact(self, project: str, sha256: str) -> bool:
        """Take an artifact from a project; whether no project has it any more."""
        size = self.artifact_size(project, sha256)
        if size is not None:
            self._connection.execute(artifacts.delete().where(_key(project, sha256)))
            self._add_bytes(project, -size)
        # An upload that ended would otherwise be answered as one that is there.
        self._connection.execute(uploads.delete().where((uploads.c.project == project) & (uploads.c.sha256 == sha256)))
        return not self.has_content(sha256)

    def has_content(self, sha256: str) -> bool:
        """Whether any project has the artifact."""
        query = sa.select(artifacts.c.sha256).where(artifacts.c.sha256 == sha256).limit(1)
        return self._connection.execute(query).first() is not None

    def _add_bytes(self, project: str, size: int) -> None:
        changed = usage.update().where(usage.c.project == project).values(bytes=usage.c.bytes + size)
        if self._connection.execute(changed).rowcount == 0:
            self._connection.execute(usage.insert().values(project=project, bytes=size, models=0))

    def _upload(self, query: sa.Select[Any]) -> UploadRow | None:
        row = self._connection.execute(query).one_or_none()
        return None if row is None else UploadRow(row.project, row.upload, row.sha256, row.size, row.create_time)


def _key(project: str, sha256: str) -> sa.ColumnElement[bool]:
    return (artifacts.c.project == project) & (artifacts.c.sha256 == sha256)
