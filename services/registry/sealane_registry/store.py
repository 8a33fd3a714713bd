"""What the registry keeps, noun by noun. Constraints stand in the methods' docstrings; all run in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from sealane.records.listing import Listing
from sealane.records.tables import Actor
from sealane_registry.rows import (
    AliasRow,
    ApprovalRow,
    ChangeRow,
    DatasetRow,
    ModelRow,
    MoveRow,
    PolicyRow,
    QuotaRow,
    Scope,
    SignatureRow,
    UploadRow,
    UsageRow,
    UseRow,
    VariantRow,
    VersionRow,
)

__all__ = [
    "AliasRow",
    "ModelRow",
    "Scope",
    "Store",
    "UploadRow",
    "VariantRow",
    "VersionRow",
]


class Models(Protocol):
    """Models."""

    def add_model(self, row: ModelRow) -> None:
        """Add; a name that is taken, or was ever taken, raises AlreadyExists."""
        ...

    def model(self, project: str, model: str) -> ModelRow | None:
        """A model that was not deleted."""
        ...

    def models(self, project: str, listing: Listing) -> list[ModelRow]:
        """The page's models and one more; deleted ones are not there."""
        ...

    def put_model(self, row: ModelRow) -> None:
        """Set description, labels, etag and time of change of a model that is there."""
        ...

    def delete_model(self, project: str, model: str, now: float) -> None:
        """Delete; its name stays taken, what is below it is kept until it is collected."""
        ...


class Versions(Protocol):
    """Versions."""

    def add_version(self, row: VersionRow, labels: Mapping[str, str]) -> int:
        """Add under the next number, which is returned; `row.number` is ignored."""
        ...

    def version(self, scope: Scope) -> VersionRow | None:
        """A version of a model that was not deleted."""
        ...

    def versions(self, project: str, model: str, listing: Listing) -> list[VersionRow]:
        """The page's versions and one more."""
        ...

    def put_state(self, scope: Scope, state: str, reason: str) -> None:
        """Set a version's state; its etag changes."""
        ...

    def add_approval(self, scope: Scope, row: ApprovalRow) -> None:
        """Add an approval, or replace the approver's own; the version's etag changes."""
        ...


class Variants(Protocol):
    """Variants."""

    def add_variant(self, row: VariantRow, files: Mapping[str, str]) -> None:
        """Add, with path and digest of its files; a taken name raises AlreadyExists. The version's etag changes."""
        ...

    def variants(self, scopes: Sequence[Scope]) -> dict[Scope, list[VariantRow]]:
        """Variants of some versions of one project, oldest first, whole."""
        ...

    def add_measurement(self, scope: Scope, content: bytes, now: float) -> None:
        """Add a measurement to a variant; the version's etag changes."""
        ...

    def add_signature(self, scope: Scope, row: SignatureRow) -> bool:
        """Add a signature; one of the same key stays as it is. Whether it was added."""
        ...

    def put_load_check(self, scope: Scope, content: bytes) -> None:
        """Set what came of loading a variant; the version's etag changes."""
        ...


class Aliases(Protocol):
    """Aliases and their history."""

    def alias(self, scope: Scope) -> AliasRow | None:
        """An alias that is there, or was taken away."""
        ...

    def aliases(self, project: str, model: str) -> list[AliasRow]:
        """All that are there, by name."""
        ...

    def put_alias(self, row: AliasRow, etag: str, move: MoveRow) -> bool:
        """Set an alias and add its move if its etag is still `etag` (empty: if there is none); whether it was set."""
        ...

    def moves(self, scope: Scope, listing: Listing) -> list[MoveRow]:
        """The page's moves and one more."""
        ...

    def move_as_of(self, scope: Scope, time_us: int) -> MoveRow | None:
        """The last move that is not later."""
        ...


class Datasets(Protocol):
    """Datasets."""

    def add_dataset(self, row: DatasetRow, files: Mapping[str, str], labels: Mapping[str, str]) -> None:
        """Add; a name that is taken, or was ever taken, raises AlreadyExists."""
        ...

    def dataset(self, project: str, dataset: str) -> DatasetRow | None:
        """A dataset that was not deleted."""
        ...

    def datasets(self, project: str, listing: Listing) -> list[DatasetRow]:
        """The page's datasets and one more."""
        ...

    def delete_dataset(self, project: str, dataset: str, now: float) -> None:
        """Delete; its name stays taken."""
        ...


class Limits(Protocol):
    """Policies, quotas, and what is in use."""

    def policy(self, project: str) -> PolicyRow:
        """The policy; an empty one where none was set."""
        ...

    def put_policy(self, project: str, row: PolicyRow) -> None:
        """Set it."""
        ...

    def quota(self, project: str) -> QuotaRow:
        """What it may store; zeros where nothing was set."""
        ...

    def put_quota(self, project: str, row: QuotaRow) -> None:
        """Set it."""
        ...

    def usage(self, project: str) -> UsageRow:
        """What it has."""
        ...

    def put_uses(self, rows: Sequence[UseRow], now: float) -> None:
        """Replace all that is in use."""
        ...

    def holders(self, project: str, kind: str, resource: str, *, below: bool = False) -> list[str]:
        """Who refers to a resource, or to anything below it."""
        ...

    def use_reported(self) -> float:
        """When the scheduler last told what is in use; 0 for never."""
        ...


class Artifacts(Protocol):
    """Which project has which artifact, and uploads."""

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

    def pending_bytes(self, project: str) -> int:
        """Declared bytes of the project's uploads whose artifact it does not have yet."""
        ...

    def add_artifact(self, project: str, sha256: str, size: int, now: float) -> None:
        """Give the artifact to the project; a repeat makes it young again and changes nothing else."""
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

    def unreferenced(self, before: float, reported: float, limit: int) -> list[tuple[str, str, int]]:
        """Project, digest and size of artifacts given before a time that nothing refers to.

        What belongs to a model or dataset deleted after `reported` is not among them.
        """
        ...

    def drop_artifact(self, project: str, sha256: str) -> bool:
        """Take an artifact from a project; whether no project has it any more."""
        ...

    def has_content(self, sha256: str) -> bool:
        """Whether any project has the artifact."""
        ...


class Changes(Protocol):
    """What was changed, and by whom."""

    def record(self, actor: Actor, action: str, resource: str, now: float, **details: str) -> None:
        """Audit and announce one change, in its transaction."""
        ...

    def changes(self, project: str, after: int, limit: int) -> list[ChangeRow]:
        """Changes of a project after a revision, in order."""
        ...

    def revisions(self) -> tuple[int, int]:
        """The last revision that is no longer kept, and the newest; zeros for none."""
        ...

    def drop_changes(self, before: float) -> None:
        """Forget changes before a time, but the newest one."""
        ...


class Store(Models, Versions, Variants, Aliases, Datasets, Limits, Artifacts, Changes, Protocol):
    """All of it."""
