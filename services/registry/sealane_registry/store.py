"""What the registry keeps. Constraints stand in the methods' docstrings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sealane.records.tables import Actor


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model."""

    project: str
    model: str
    description: str
    create_time: float
    update_time: float
    etag: str


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version. `content` is opaque to the store: signatures and lineage, serialized."""

    project: str
    model: str
    number: int
    content: bytes
    create_time: float
    etag: str


@dataclass(frozen=True, slots=True)
class VariantRow:
    """A variant. `content` is opaque: the immutable part, serialized; measurements come beside it."""

    project: str
    model: str
    number: int
    variant: str
    digest: str
    content: bytes
    create_time: float
    measurements: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class AliasRow:
    """An alias."""

    project: str
    model: str
    alias: str
    number: int
    update_time: float
    etag: str


@dataclass(frozen=True, slots=True)
class UploadRow:
    """An upload under way, or done: a done one stays until it is swept, so that its end can be repeated."""

    project: str
    upload: str
    sha256: str
    size: int
    create_time: float


@dataclass(frozen=True, slots=True)
class Scope:
    """Keys of a place in the tree; deeper parts are empty where they do not apply."""

    project: str
    model: str = ""
    number: int = 0
    name: str = ""


class Catalog(Protocol):
    """Models, versions, variants, aliases, inside one transaction."""

    def add_model(self, row: ModelRow) -> None:
        """Add; a name that is taken, or was ever taken, raises AlreadyExists."""
        ...

    def models(self, project: str, after: str, limit: int, only: str = "") -> list[ModelRow]:
        """Models by name, strictly after `after`; just the one named `only`, if given."""
        ...

    def add_version(self, row: VersionRow) -> int:
        """Add under the next number, which is returned; `row.number` is ignored."""
        ...

    def versions(self, scope: Scope, below: int, limit: int) -> list[VersionRow]:
        """Versions, newest first, with numbers below `below`; just `scope.number`, if given."""
        ...

    def add_variant(self, row: VariantRow) -> None:
        """Add; a taken name raises AlreadyExists. The version's etag changes."""
        ...

    def variants(self, scope: Scope) -> list[VariantRow]:
        """Variants of a version, oldest first, with measurements; just `scope.name`, if given."""
        ...

    def add_measurement(self, scope: Scope, content: bytes, now: float) -> None:
        """Add a measurement to a variant."""
        ...

    def alias(self, scope: Scope) -> AliasRow | None:
        """An alias."""
        ...

    def put_alias(self, row: AliasRow, etag: str) -> bool:
        """Set an alias if its etag is still `etag` (empty: if there is none); whether it was set."""
        ...

    def record(self, actor: Actor, action: str, resource: str, now: float, **details: str) -> None:
        """Audit and announce one change, in its transaction."""
        ...


class Artifacts(Protocol):
    """Which project has which artifact, and uploads, inside one transaction."""

    def upload_of(self, project: str, sha256: str, size: int) -> UploadRow | None:
        """The upload of a digest that was started before."""
        ...

    def upload(self, project: str, upload: str) -> UploadRow | None:
        """An upload by its id."""
        ...

    def add_upload(self, row: UploadRow) -> None:
        """Add an upload."""
        ...

    def drop_uploads(self, before: float) -> None:
        """Forget uploads that were started before a time."""
        ...

    def upload_ids(self) -> set[str]:
        """Ids of all uploads."""
        ...

    def add_artifact(self, project: str, sha256: str, size: int, now: float) -> None:
        """Give the artifact to the project; a repeat changes nothing."""
        ...

    def models_with_file(self, project: str, sha256: str) -> list[str]:
        """Ids of the models of a project that have a variant with this file."""
        ...

    def projects_with_artifact(self, sha256: str) -> list[str]:
        """All projects that have the artifact."""
        ...

    def artifact_size(self, project: str, sha256: str) -> int | None:
        """Size of an artifact of the project; None where the project has none such."""
        ...


class Store(Catalog, Artifacts, Protocol):
    """All of it."""
