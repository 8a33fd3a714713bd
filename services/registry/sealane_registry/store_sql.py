"""The store on SQLite and PostgreSQL."""

from __future__ import annotations

import secrets
from typing import Any

import sqlalchemy as sa

from sealane.errors import AlreadyExists
from sealane.records import tables
from sealane.records.tables import Actor
from sealane_registry.store import AliasRow, ModelRow, Scope, UploadRow, VariantRow, VersionRow

metadata = sa.MetaData()


def _key(name: str, kind: type[sa.types.TypeEngine[Any]] = sa.String) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=True)


def _value(name: str, kind: type[sa.types.TypeEngine[Any]] = sa.String) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False)


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
)
aliases = sa.Table(
    "aliases",
    metadata,
    _key("project"),
    _key("model"),
    _key("alias"),
    _value("number", sa.Integer),
    _value("update_time", sa.Float),
    _value("etag"),
)
uploads = sa.Table(
    "uploads",
    metadata,
    _key("project"),
    _key("upload"),
    _value("sha256"),
    _value("size", sa.BigInteger),
    _value("create_time", sa.Float),
)
artifacts = sa.Table(
    "artifacts",
    metadata,
    _key("project"),
    _key("sha256"),
    _value("size", sa.BigInteger),
    _value("create_time", sa.Float),
)


def _in_version(table: sa.Table, scope: Scope) -> sa.ColumnElement[bool]:
    return (table.c.project == scope.project) & (table.c.model == scope.model) & (table.c.number == scope.number)


#: Tables of every noun.
METADATA = (metadata,)


class SqlStore:
    """Implements :class:`sealane_registry.store.Store` on one connection."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def add_model(self, row: ModelRow) -> None:
        """Add; a taken name raises AlreadyExists."""
        if self.models(row.project, "", 1, only=row.model):
            raise AlreadyExists(f"model {row.model} exists; push a new version of it, or choose another name")
        self._insert(models, row, next_number=1)

    def models(self, project: str, after: str, limit: int, only: str = "") -> list[ModelRow]:
        """Models by name, strictly after `after`; just the one named `only`, if given."""
        wanted = models.c.project == project
        wanted &= (models.c.model == only) if only else (models.c.model > after)
        query = sa.select(models).where(wanted).order_by(models.c.model).limit(limit)
        return [
            ModelRow(row.project, row.model, row.description, row.create_time, row.update_time, row.etag)
            for row in self._connection.execute(query)
        ]

    def add_version(self, row: VersionRow) -> int:
        """Add under the next number, which is returned."""
        key = (models.c.project == row.project) & (models.c.model == row.model)
        taken = (
            models.update()
            .where(key)
            .values(next_number=models.c.next_number + 1, update_time=row.create_time, etag=secrets.token_hex(8))
            .returning(models.c.next_number)
        )
        number = int(self._connection.execute(taken).scalar_one()) - 1
        self._connection.execute(
            versions.insert().values(
                project=row.project,
                model=row.model,
                number=number,
                content=row.content,
                create_time=row.create_time,
                etag=row.etag,
            )
        )
        return number

    def versions(self, scope: Scope, below: int, limit: int) -> list[VersionRow]:
        """Versions, newest first, with numbers below `below`; just `scope.number`, if given."""
        wanted = (versions.c.project == scope.project) & (versions.c.model == scope.model)
        wanted &= (versions.c.number == scope.number) if scope.number else (versions.c.number < below)
        query = sa.select(versions).where(wanted).order_by(versions.c.number.desc()).limit(limit)
        return [
            VersionRow(row.project, row.model, row.number, row.content, row.create_time, row.etag)
            for row in self._connection.execute(query)
        ]

    def add_variant(self, row: VariantRow) -> None:
        """Add; a taken name raises AlreadyExists. The version's etag changes."""
        scope = Scope(row.project, row.model, row.number, row.variant)
        if self.variants(scope):
            raise AlreadyExists(f"variant {row.variant} exists; variants are immutable, choose another id")
        self._connection.execute(
            variants.insert().values(
                project=row.project,
                model=row.model,
                number=row.number,
                variant=row.variant,
                digest=row.digest,
                content=row.content,
                create_time=row.create_time,
            )
        )
        self._touch(scope)

    def variants(self, scope: Scope) -> list[VariantRow]:
        """Variants of a version, oldest first, with measurements; just `scope.name`, if given."""
        wanted = _in_version(variants, scope)
        if scope.name:
            wanted &= variants.c.variant == scope.name
        rows = self._connection.execute(
            sa.select(variants).where(wanted).order_by(variants.c.create_time, variants.c.variant)
        ).all()
        measured: dict[str, list[bytes]] = {}
        query = sa.select(measurements).where(_in_version(measurements, scope)).order_by(measurements.c.id)
        for row in self._connection.execute(query):
            measured.setdefault(row.variant, []).append(row.content)
        return [
            VariantRow(
                row.project,
                row.model,
                row.number,
                row.variant,
                row.digest,
                row.content,
                row.create_time,
                tuple(measured.get(row.variant, ())),
            )
            for row in rows
        ]

    def add_measurement(self, scope: Scope, content: bytes, now: float) -> None:
        """Add a measurement to a variant."""
        self._connection.execute(
            measurements.insert().values(
                project=scope.project,
                model=scope.model,
                number=scope.number,
                variant=scope.name,
                content=content,
                create_time=now,
            )
        )
        self._touch(scope)

    def alias(self, scope: Scope) -> AliasRow | None:
        """An alias."""
        row = self._connection.execute(sa.select(aliases).where(_alias_key(scope))).one_or_none()
        if row is None:
            return None
        return AliasRow(row.project, row.model, row.alias, row.number, row.update_time, row.etag)

    def put_alias(self, row: AliasRow, etag: str) -> bool:
        """Set an alias if its etag is still `etag` (empty: if there is none); whether it was set."""
        scope = Scope(row.project, row.model, name=row.alias)
        if etag:
            changed = aliases.update().where(_alias_key(scope) & (aliases.c.etag == etag))
            values = {"number": row.number, "update_time": row.update_time, "etag": row.etag}
            return self._connection.execute(changed.values(**values)).rowcount == 1
        if self.alias(scope) is not None:
            return False
        self._insert(aliases, row)
        return True

    def upload_of(self, project: str, sha256: str, size: int) -> UploadRow | None:
        """The upload of a digest that was started before."""
        wanted = (uploads.c.project == project) & (uploads.c.sha256 == sha256) & (uploads.c.size == size)
        return self._upload(sa.select(uploads).where(wanted).limit(1))

    def upload(self, project: str, upload: str) -> UploadRow | None:
        """An upload by its id."""
        return self._upload(sa.select(uploads).where(_upload_key(project, upload)))

    def add_upload(self, row: UploadRow) -> None:
        """Add an upload."""
        self._insert(uploads, row)

    def drop_uploads(self, before: float) -> None:
        """Forget uploads that were started before a time."""
        self._connection.execute(uploads.delete().where(uploads.c.create_time < before))

    def upload_ids(self) -> set[str]:
        """Ids of all uploads."""
        return set(self._connection.execute(sa.select(uploads.c.upload)).scalars())

    def add_artifact(self, project: str, sha256: str, size: int, now: float) -> None:
        """Give the artifact to the project; a repeat changes nothing."""
        if self.artifact_size(project, sha256) is None:
            self._connection.execute(
                artifacts.insert().values(project=project, sha256=sha256, size=size, create_time=now)
            )

    def models_with_file(self, project: str, sha256: str) -> list[str]:
        """Ids of the models of a project that have a variant with this file."""
        rows = self._connection.execute(
            sa.select(variants.c.model, variants.c.content).where(variants.c.project == project)
        )
        # The digest stands in the serialized variant as text.
        return sorted({row.model for row in rows if sha256.encode() in row.content})

    def projects_with_artifact(self, sha256: str) -> list[str]:
        """All projects that have the artifact."""
        query = sa.select(artifacts.c.project).where(artifacts.c.sha256 == sha256)
        return sorted(self._connection.execute(query).scalars())

    def artifact_size(self, project: str, sha256: str) -> int | None:
        """Size of an artifact of the project; None where the project has none such."""
        wanted = (artifacts.c.project == project) & (artifacts.c.sha256 == sha256)
        size = self._connection.execute(sa.select(artifacts.c.size).where(wanted)).scalar_one_or_none()
        return None if size is None else int(size)

    def record(self, actor: Actor, action: str, resource: str, now: float, **details: str) -> None:
        """Audit and announce one change, in its transaction."""
        tables.record(self._connection, actor=actor, action=action, resource=resource, now=now, **details)

    def _touch(self, scope: Scope) -> None:
        self._connection.execute(
            versions.update().where(_in_version(versions, scope)).values(etag=secrets.token_hex(8))
        )

    def _upload(self, query: sa.Select[Any]) -> UploadRow | None:
        row = self._connection.execute(query).one_or_none()
        return None if row is None else UploadRow(row.project, row.upload, row.sha256, row.size, row.create_time)

    def _insert(self, table: sa.Table, row: object, **more: object) -> None:
        names = [column.name for column in table.columns if hasattr(row, column.name)]
        self._connection.execute(table.insert().values({name: getattr(row, name) for name in names} | more))


def _alias_key(scope: Scope) -> sa.ColumnElement[bool]:
    return (aliases.c.project == scope.project) & (aliases.c.model == scope.model) & (aliases.c.alias == scope.name)


def _upload_key(project: str, upload: str) -> sa.ColumnElement[bool]:
    return (uploads.c.project == project) & (uploads.c.upload == upload)
