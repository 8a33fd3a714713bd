"""The rules about datasets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sealane import names
from sealane.clock import Clock
from sealane.errors import FailedPrecondition, InvalidArgument, NotFound
from sealane.records.tables import Actor
from sealane.tensors import NUMPY_OF
from sealane_registry.catalog import File, check_files, check_labels
from sealane_registry.rows import DatasetRow
from sealane_registry.store import Store

MAX_FIELDS = 1000


@dataclass(frozen=True, slots=True)
class Field:
    """What a row holds under one name."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    label: bool = False


@dataclass(frozen=True, slots=True)
class Shard:
    """One file, with the rows in it."""

    file: File
    rows: int


@dataclass(frozen=True, slots=True)
class NewDataset:
    """A dataset as it is asked for; `content` is its immutable part, serialized."""

    dataset: str
    format: str
    schema: Sequence[Field]
    shards: Sequence[Shard]
    content: bytes
    labels: Mapping[str, str] = field(default_factory=dict)


class DatasetRules:
    """What may be done to datasets. Every method runs inside one transaction."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def create(self, store: Store, actor: Actor, wanted: NewDataset) -> DatasetRow:
        """A new dataset, whose shards the project must have uploaded.

        Raises:
            InvalidArgument: a schema or shards that mean nothing.
            FailedPrecondition: a shard that is not uploaded.
            AlreadyExists: the name is, or was, taken.
        """
        names.check_id(wanted.dataset, "dataset_id")
        _check(wanted)
        for shard in wanted.shards:
            stored = store.artifact_size(actor.project, shard.file.sha256)
            if stored is None:
                raise FailedPrecondition(
                    f"shard {shard.file.path} (sha256 {shard.file.sha256}) is not uploaded; upload it first",
                    reason="FILE_MISSING",
                )
            if stored != shard.file.size:
                raise InvalidArgument(
                    f"shard {shard.file.path} has {stored} bytes, not {shard.file.size}; send the right size",
                    field="dataset.shards",
                )
        now = self._clock.now()
        row = DatasetRow(
            actor.project,
            wanted.dataset,
            wanted.content,
            digest_of(wanted),
            wanted.format,
            sum(shard.rows for shard in wanted.shards),
            sum(shard.file.size for shard in wanted.shards),
            actor.subject,
            now,
        )
        files = {shard.file.path: shard.file.sha256 for shard in wanted.shards}
        store.add_dataset(row, files, check_labels(wanted.labels))
        store.record(actor, "CreateDataset", row.name, now, digest=row.digest)
        return row

    def get(self, store: Store, project: str, dataset: str) -> DatasetRow:
        """A dataset.

        Raises:
            NotFound: there is none of that name.
        """
        row = store.dataset(project, dataset)
        if row is None:
            raise NotFound(f"dataset {dataset} does not exist; list them with 'sealane datasets list'")
        return row

    def delete(self, store: Store, actor: Actor, dataset: str, shards: Sequence[str]) -> None:
        """Delete a dataset; its name stays taken.

        Args:
            store: of this transaction.
            actor: who deletes.
            dataset: its id.
            shards: digests of its files.

        Raises:
            FailedPrecondition: a job uses a file of it (DATASET_IN_USE).
        """
        row = self.get(store, actor.project, dataset)
        holders = sorted({holder for sha256 in shards for holder in store.holders(actor.project, "artifact", sha256)})
        if holders:
            raise FailedPrecondition(
                f"dataset {dataset} is used by {', '.join(holders[:3])}; wait for it, or cancel it",
                reason="DATASET_IN_USE",
            )
        now = self._clock.now()
        store.delete_dataset(actor.project, dataset, now)
        store.record(actor, "DeleteDataset", row.name, now)


def digest_of(wanted: NewDataset) -> str:
    """``sha256:`` and the SHA-256 over the lines of a dataset.

    ``format F``; for each field in order ``field NAME DATATYPE SHAPE LABEL`` (sizes joined by commas, 1 or 0); for each
    shard in order ``shard SHA256 SIZE ROWS PATH``; each ended by a line feed.
    """
    lines = [f"format {wanted.format}"]
    lines += [
        f"field {item.name} {item.datatype} {','.join(map(str, item.shape))} {int(item.label)}"
        for item in wanted.schema
    ]
    lines += [f"shard {item.file.sha256} {item.file.size} {item.rows} {item.file.path}" for item in wanted.shards]
    return "sha256:" + hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def _check(wanted: NewDataset) -> None:
    check_files([shard.file for shard in wanted.shards], "dataset.shards")
    if any(not 0 <= shard.rows < 2**53 for shard in wanted.shards):
        raise InvalidArgument("a shard has a number of rows from 0", field="dataset.shards.rows")
    if not wanted.format or len(wanted.format) > 63 or not wanted.format.isprintable() or " " in wanted.format:
        raise InvalidArgument("a dataset has a format, such as 'npz'", field="dataset.format")
    known = [item.name for item in wanted.schema]
    if len(known) > MAX_FIELDS or len(set(known)) != len(known):
        raise InvalidArgument(f"a schema has at most {MAX_FIELDS} fields, each name once", field="dataset.schema")
    for item in wanted.schema:
        shaped = len(item.shape) <= 8 and all(size >= -1 for size in item.shape)
        if (
            not item.name
            or not item.name.isprintable()
            or " " in item.name
            or item.datatype not in NUMPY_OF
            or not shaped
        ):
            raise InvalidArgument(
                f"field {item.name[:40]!r} of the schema wants a name without blanks, a datatype of the Open Inference "
                f"Protocol ({', '.join(NUMPY_OF)}) and a shape",
                field="dataset.schema",
            )
