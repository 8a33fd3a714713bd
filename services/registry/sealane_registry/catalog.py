"""The rules about models, versions and variants."""

from __future__ import annotations

import hashlib
import re
import secrets
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sealane import names
from sealane.clock import Clock
from sealane.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound
from sealane.records.tables import Actor
from sealane_registry import limits, policy
from sealane_registry.blobs import check_digest
from sealane_registry.limits import Defaults
from sealane_registry.policy import Policy
from sealane_registry.rows import ModelRow, Scope, SignatureRow, VariantRow, VersionRow
from sealane_registry.signing import check_bundles
from sealane_registry.store import Store

MAX_FILES = 10_000
MAX_DEPTH = 16
MAX_DESCRIPTION = 4000
MAX_LABELS = 64
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class File:
    """One file of a variant."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class NewVariant:
    """A variant as it is asked for.

    Args:
        variant: its id.
        files: its files.
        content: its immutable part, serialized.
        bundles: signatures over its files.
        executable: what of it holds code, in words; empty where nothing does.
        by_job: whether a job made it: a publisher's signature comes later, if it has to.
    """

    variant: str
    files: Sequence[File]
    content: bytes
    bundles: Sequence[bytes] = ()
    executable: str = ""
    by_job: bool = False


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A version as it is asked for.

    Args:
        content: its immutable part, serialized.
        labels: labels.
        datasets: ids of the datasets it was trained on.
        source: version that it was made from.
    """

    content: bytes
    labels: Mapping[str, str] = field(default_factory=dict)
    datasets: Sequence[str] = ()
    source: Scope | None = None


class CatalogRules:
    """What may be done to the catalog. Every method runs inside one transaction."""

    def __init__(self, clock: Clock, defaults: Defaults | None = None) -> None:
        self._clock = clock
        self._defaults = defaults or Defaults()

    def create_model(
        self, store: Store, actor: Actor, model: str, description: str, labels: Mapping[str, str] | None = None
    ) -> ModelRow:
        """A new model in the actor's project.

        Raises:
            ResourceExhausted: the project has as many as it may.
        """
        names.check_id(model, "model_id")
        limits.check_models(store, actor.project, self._defaults)
        now = self._clock.now()
        row = ModelRow(actor.project, model, description, now, now, secrets.token_hex(8), check_labels(labels or {}))
        check_text(description, "model.description")
        store.add_model(row)
        store.record(actor, "CreateModel", row.name, now)
        return row

    def get_model(self, store: Store, project: str, model: str) -> ModelRow:
        """A model.

        Raises:
            NotFound: there is none of that name.
        """
        row = store.model(project, model)
        if row is None:
            raise NotFound(f"model {model} does not exist; list them with 'sealane models list'")
        return row

    def update_model(self, store: Store, actor: Actor, wanted: ModelRow, fields: Sequence[str]) -> ModelRow:
        """Change the named fields of a model to those of `wanted`, whose etag must be the present one if it has one.

        Raises:
            Aborted: it was changed by somebody else.
        """
        present = self.get_model(store, actor.project, wanted.model)
        check_etag(wanted.etag, present.etag, "model")
        now = self._clock.now()
        changed = replace(present, update_time=now, etag=secrets.token_hex(8))
        if "description" in fields:
            changed = replace(changed, description=check_text(wanted.description, "model.description"))
        if "labels" in fields:
            changed = replace(changed, labels=check_labels(wanted.labels))
        store.put_model(changed)
        store.record(actor, "UpdateModel", present.name, now, fields=",".join(fields))
        return changed

    def delete_model(self, store: Store, actor: Actor, model: str, etag: str) -> None:
        """Delete a model; its name stays taken.

        Raises:
            FailedPrecondition: a deployment or job uses it (MODEL_IN_USE).
            Aborted: it was changed by somebody else.
        """
        row = self.get_model(store, actor.project, model)
        check_etag(etag, row.etag, "model")
        holders = [
            holder for kind in ("version", "alias") for holder in store.holders(actor.project, kind, model, below=True)
        ]
        if holders:
            raise FailedPrecondition(
                f"model {model} is used by {', '.join(sorted(set(holders))[:3])}; delete that first",
                reason="MODEL_IN_USE",
            )
        now = self._clock.now()
        store.delete_model(actor.project, model, now)
        store.record(actor, "DeleteModel", row.name, now)

    def create_version(
        self, store: Store, actor: Actor, model: str, version: NewVersion, variant: NewVariant
    ) -> VersionRow:
        """The next version of a model, with its first variant.

        Raises:
            NotFound: no such model.
            FailedPrecondition: a dataset or source version that does not exist, and as :meth:`create_variant`.
            ResourceExhausted: the model has as many as it may.
        """
        there = self.get_model(store, actor.project, model)
        limits.check_versions(store, actor.project, there.version_count, self._defaults)
        for dataset in version.datasets:
            if store.dataset(actor.project, dataset) is None:
                raise FailedPrecondition(
                    f"dataset {dataset} does not exist; push it first",
                    reason="DATASET_MISSING",
                    field="version.lineage",
                )
        if version.source is not None and store.version(version.source) is None:
            raise FailedPrecondition(
                f"version {version.source.number} of {version.source.model} does not exist; leave source_version out",
                reason="SOURCE_MISSING",
                field="version.lineage",
            )
        now = self._clock.now()
        row = VersionRow(actor.project, model, 0, version.content, now, secrets.token_hex(8), publisher=actor.subject)
        row = replace(row, number=store.add_version(row, check_labels(version.labels)))
        store.record(actor, "CreateVersion", row.name, now)
        self.create_variant(store, actor, row.scope, variant)
        return self._version(store, row.scope)

    def find_version(self, store: Store, scope: Scope, number_or_alias: str) -> VersionRow:
        """A version by its number, or by an alias that points at it.

        Raises:
            NotFound: there is none.
        """
        number = int(number_or_alias) if _NUMBER.fullmatch(number_or_alias) else 0
        if not number:
            alias = store.alias(replace(scope, name=number_or_alias))
            number = alias.number if alias is not None else 0
        row = store.version(replace(scope, number=number)) if number else None
        if row is None:
            self.get_model(store, scope.project, scope.model)  # which says so where there is none
            raise NotFound(f"model {scope.model} has no version or alias {number_or_alias!r}; list its versions")
        return row

    def create_variant(self, store: Store, actor: Actor, scope: Scope, variant: NewVariant) -> VariantRow:
        """A variant of a version, whose files the project must have uploaded.

        Raises:
            NotFound: no such version.
            InvalidArgument: files that cannot be laid out, or of another size.
            FailedPrecondition: a file that is not uploaded, code that the policy does not allow, signatures that are
                missing or do not verify.
        """
        names.check_id(variant.variant, "variant_id")
        self._version(store, scope)
        check_files(variant.files)
        self._check_stored(store, scope.project, variant.files)
        demands = policy.from_json(store.policy(scope.project).content)
        _check_code(demands, variant)
        digests = {file.path: file.sha256 for file in variant.files}
        signed = check_bundles(demands, variant.bundles, digests)
        if (why := demands.unsigned_reason(signed)) and not variant.by_job:
            raise FailedPrecondition(f"{why}; push with --sign-key KEY.pem", reason="SIGNATURE_REQUIRED")
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
        store.add_variant(row, digests)
        place = replace(scope, name=variant.variant)
        for key_id, bundle in zip(signed, variant.bundles, strict=True):
            store.add_signature(place, SignatureRow(key_id, bundle, now))
        store.record(actor, "CreateVariant", row.name, now, digest=row.digest, signers=" ".join(signed))
        return self.get_variant(store, place)

    def get_variant(self, store: Store, scope: Scope) -> VariantRow:
        """A variant.

        Raises:
            NotFound: there is none.
        """
        place = replace(scope, name="")
        self._version(store, place)
        for row in store.variants([place])[place]:
            if row.variant == scope.name:
                return row
        raise NotFound(f"version {scope.number} of {scope.model} has no variant {scope.name!r}; list its variants")

    def add_measurement(self, store: Store, actor: Actor, scope: Scope, content: bytes) -> VariantRow:
        """Add a measurement to a variant; its files stay as they are."""
        name = self.get_variant(store, scope).name
        now = self._clock.now()
        store.add_measurement(scope, content, now)
        store.record(actor, "RecordMeasurement", name, now)
        return self.get_variant(store, scope)

    def _version(self, store: Store, scope: Scope) -> VersionRow:
        row = store.version(scope)
        if row is None:
            raise NotFound(f"model {scope.model} has no version {scope.number}; list its versions")
        return row

    def _check_stored(self, store: Store, project: str, files: Sequence[File]) -> None:
        for file in files:
            stored = store.artifact_size(project, file.sha256)
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


def _check_code(demands: Policy, variant: NewVariant) -> None:
    if variant.executable and not demands.allow_executable_formats:
        raise FailedPrecondition(
            f"{variant.executable} holds code, which the project's policy does not allow; push a format without code "
            "(ONNX, LiteRT, SavedModel), or have an admin run 'sealane policy set --allow-executable-formats'",
            reason="EXECUTABLE_FORMAT",
        )


def check_files(files: Sequence[File], field: str = "variant.files") -> None:
    """Refuse file lists that could not be laid out safely (SECURITY 2.8).

    Raises:
        InvalidArgument: no files, too many, twice the same path, or a path that leaves its folder.
    """
    if not 0 < len(files) <= MAX_FILES:
        raise InvalidArgument(f"there are 1 to {MAX_FILES} files, not {len(files)}", field=field)
    seen: set[str] = set()
    for file in files:
        check_digest(file.sha256, f"{field}.sha256")
        # One name in two ways of writing it is one file on some machines.
        folded = unicodedata.normalize("NFC", file.path).casefold()
        if not _acceptable(file.path) or folded in seen:
            raise InvalidArgument(
                f"file path {file.path[:80]!r} is not acceptable; use relative paths with '/', each once",
                field=f"{field}.path",
            )
        seen.add(folded)
    for folded in seen:
        parts = folded.split("/")
        if any("/".join(parts[:depth]) in seen for depth in range(1, len(parts))):
            raise InvalidArgument(f"a folder of {folded[:80]!r} is also a file; rename one", field=f"{field}.path")


def _acceptable(path: str) -> bool:
    parts = path.split("/")
    return (
        0 < len(path.encode(errors="replace")) <= 512
        and len(parts) <= MAX_DEPTH
        and path.isprintable()
        and not any(part in ("", ".", "..") or part.endswith((".", " ")) or part.startswith(" ") for part in parts)
        and not any(character in path for character in '\\:%"<>|?*')
        and not any(part.split(".")[0].casefold() in _RESERVED for part in parts)
    )


#: Names that mean a device on some machines.
_RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"{name}{n}" for name in ("com", "lpt") for n in range(1, 10))})


def manifest_digest(files: Sequence[File]) -> str:
    """``sha256:`` and the SHA-256 over the sorted lines ``sha256 size path``."""
    lines = sorted(f"{file.sha256} {file.size} {file.path}\n" for file in files)
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Labels that can be kept.

    Raises:
        InvalidArgument: too many, or a key or value that is not acceptable.
    """
    if len(labels) > MAX_LABELS:
        raise InvalidArgument(f"there are at most {MAX_LABELS} labels", field="labels")
    for key, value in labels.items():
        names.check_id(key, "labels")
        if len(value) > 256 or not value.isprintable():
            raise InvalidArgument(
                f"label {key} has a value that is longer than 256 characters or not printable; change it",
                field="labels",
            )
    return dict(labels)


def check_text(text: str, field: str) -> str:
    """A text that can be kept.

    Raises:
        InvalidArgument: it is too long.
    """
    if len(text) > MAX_DESCRIPTION:
        raise InvalidArgument(f"{field} has more than {MAX_DESCRIPTION} characters; shorten it", field=field)
    return text


def check_etag(wanted: str, present: str, what: str) -> None:
    """Refuse an etag that is not the present one; an empty one is any.

    Raises:
        Aborted: so it is.
    """
    if wanted and wanted != present:
        raise Aborted(f"the {what} has changed since it was read; read it again", reason="ETAG_MISMATCH")
