"""The rules about models, versions, variants and aliases."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sealane import names
from sealane.clock import Clock
from sealane.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound
from sealane.records.tables import Actor
from sealane_registry.blobs import check_digest
from sealane_registry.store import AliasRow, ModelRow, Scope, Store, VariantRow, VersionRow

MAX_FILES = 10_000
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class File:
    """One file of a variant."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class NewVariant:
    """A variant as it is asked for; `content` is its serialized immutable part."""

    variant: str
    files: Sequence[File]
    content: bytes


class CatalogRules:
    """What may be done to the catalog. Every method runs inside one transaction."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def create_model(self, store: Store, actor: Actor, model: str, description: str) -> ModelRow:
        """A new model in the actor's project."""
        names.check_id(model, "model_id")
        now = self._clock.now()
        row = ModelRow(actor.project, model, description, now, now, secrets.token_hex(8))
        store.add_model(row)
        store.record(actor, "CreateModel", f"projects/{actor.project}/models/{model}", now)
        return row

    def get_model(self, store: Store, project: str, model: str) -> ModelRow:
        """A model.

        Raises:
            NotFound: there is none of that name.
        """
        rows = store.models(project, "", 1, only=model)
        if not rows:
            raise NotFound(f"model {model} does not exist; list them with 'sealane models list'")
        return rows[0]

    def create_version(self, store: Store, actor: Actor, model: str, content: bytes, variant: NewVariant) -> VersionRow:
        """The next version of a model, with its first variant."""
        self.get_model(store, actor.project, model)
        now = self._clock.now()
        row = VersionRow(actor.project, model, 0, content, now, secrets.token_hex(8))
        row = replace(row, number=store.add_version(row))
        name = f"projects/{actor.project}/models/{model}/versions/{row.number}"
        store.record(actor, "CreateVersion", name, now)
        self.create_variant(store, actor, Scope(actor.project, model, row.number), variant)
        return store.versions(Scope(actor.project, model, row.number), 0, 1)[0]

    def find_version(self, store: Store, scope: Scope, number_or_alias: str) -> VersionRow:
        """A version by its number, or by an alias that points at it.

        Raises:
            NotFound: there is none.
        """
        self.get_model(store, scope.project, scope.model)
        number = int(number_or_alias) if _NUMBER.fullmatch(number_or_alias) else 0
        if not number:
            number = self.get_alias(store, replace(scope, name=number_or_alias)).number
        rows = store.versions(replace(scope, number=number), 0, 1)
        if not rows:
            raise NotFound(f"model {scope.model} has no version {number}; list its versions")
        return rows[0]

    def create_variant(self, store: Store, actor: Actor, scope: Scope, variant: NewVariant) -> VariantRow:
        """A variant of a version, whose files the project must have uploaded."""
        names.check_id(variant.variant, "variant_id")
        if not store.versions(scope, 0, 1):
            raise NotFound(f"model {scope.model} has no version {scope.number}; list its versions")
        check_files(variant.files)
        for file in variant.files:
            stored = store.artifact_size(scope.project, file.sha256)
            if stored is None:
                raise FailedPrecondition(
                    f"file {file.path} (sha256 {file.sha256}) is not uploaded; upload it first",
                    reason="FILE_MISSING",
                )
            if stored != file.size:
                raise InvalidArgument(
                    f"file {file.path} has {stored} bytes, not {file.size}; send the right size",
                    field="variant.files",
                )
        now = self._clock.now()
        row = VariantRow(
            scope.project,
            scope.model,
            scope.number,
            variant.variant,
            manifest_digest(variant.files),
            variant.content,
            now,
        )
        store.add_variant(row)
        name = f"projects/{scope.project}/models/{scope.model}/versions/{scope.number}/variants/{variant.variant}"
        store.record(actor, "CreateVariant", name, now, digest=row.digest)
        return row

    def get_variant(self, store: Store, scope: Scope) -> VariantRow:
        """A variant.

        Raises:
            NotFound: there is none.
        """
        rows = store.variants(scope)
        if not rows or not scope.name:
            raise NotFound(f"version {scope.number} of {scope.model} has no variant {scope.name!r}; list its variants")
        return rows[0]

    def add_measurement(self, store: Store, actor: Actor, scope: Scope, content: bytes) -> VariantRow:
        """Add a measurement to a variant; its files stay as they are."""
        self.get_variant(store, scope)
        now = self._clock.now()
        store.add_measurement(scope, content, now)
        name = f"projects/{scope.project}/models/{scope.model}/versions/{scope.number}/variants/{scope.name}"
        store.record(actor, "RecordMeasurement", name, now)
        return self.get_variant(store, scope)

    def get_alias(self, store: Store, scope: Scope) -> AliasRow:
        """An alias.

        Raises:
            NotFound: there is none.
        """
        row = store.alias(scope)
        if row is None:
            raise NotFound(f"model {scope.model} has no version or alias {scope.name!r}; list its versions")
        return row

    def move_alias(self, store: Store, actor: Actor, scope: Scope, etag: str) -> AliasRow:
        """Point an alias at ``scope.number`` by compare-and-set on `etag`.

        Raises:
            NotFound: no such version.
            Aborted: the alias was moved, or made, by somebody else.
        """
        names.check_id(scope.name, "alias", label=True)
        if not store.versions(replace(scope, name=""), 0, 1):
            raise NotFound(f"model {scope.model} has no version {scope.number}; list its versions")
        now = self._clock.now()
        row = AliasRow(scope.project, scope.model, scope.name, scope.number, now, secrets.token_hex(8))
        if not store.put_alias(row, etag):
            raise Aborted("the alias has changed since it was read; read it again", reason="ETAG_MISMATCH")
        name = f"projects/{scope.project}/models/{scope.model}/aliases/{scope.name}"
        store.record(actor, "MoveAlias", name, now, version=str(scope.number))
        return row


def check_files(files: Sequence[File]) -> None:
    """Refuse file lists that could not be laid out safely (SECURITY 2.8).

    Raises:
        InvalidArgument: no files, too many, twice the same path, or a path that leaves its folder.
    """
    if not 0 < len(files) <= MAX_FILES:
        raise InvalidArgument(f"a variant has 1 to {MAX_FILES} files, not {len(files)}", field="variant.files")
    seen: set[str] = set()
    for file in files:
        check_digest(file.sha256, "variant.files.sha256")
        parts = file.path.split("/")
        acceptable = (
            0 < len(file.path) <= 512
            and file.path.isprintable()
            and not any(part in ("", ".", "..") or part.endswith((".", " ")) for part in parts)
            and not any(character in file.path for character in '\\:%"<>|?*')
        )
        if not acceptable or file.path.casefold() in seen:
            raise InvalidArgument(
                f"file path {file.path!r} is not acceptable; use relative paths with '/', each once",
                field="variant.files.path",
            )
        seen.add(file.path.casefold())


def manifest_digest(files: Sequence[File]) -> str:
    """``sha256:`` and the SHA-256 over the sorted lines ``sha256 size path``."""
    lines = sorted(f"{file.sha256} {file.size} {file.path}\n" for file in files)
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()
