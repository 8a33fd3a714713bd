"""Datasets as proto messages, and back."""

from __future__ import annotations

from sealane.registry.v1 import dataset_service_pb2 as pb
from sealane.rpc.times import time_of
from sealane_registry.catalog import File, check_text
from sealane_registry.datasets import Field, NewDataset, Shard
from sealane_registry.rows import DatasetRow


def new_dataset(dataset_id: str, message: pb.Dataset) -> NewDataset:
    """A dataset as it was asked for."""
    kept = pb.Dataset(
        description=check_text(message.description, "dataset.description"),
        format=message.format,
        schema=message.schema,
        shards=message.shards,
        origin=check_text(message.origin, "dataset.origin"),
        license=check_text(message.license, "dataset.license"),
        labels=message.labels,
    )
    return NewDataset(
        dataset_id,
        message.format,
        [Field(item.name, item.datatype, tuple(item.shape), item.label) for item in message.schema],
        [Shard(File(item.path, item.sha256, item.size_bytes), item.rows) for item in message.shards],
        kept.SerializeToString(deterministic=True),
        dict(message.labels),
    )


def dataset(row: DatasetRow) -> pb.Dataset:
    """A dataset."""
    message = pb.Dataset.FromString(row.content)
    message.name = row.name
    message.rows = row.rows
    message.size_bytes = row.size
    message.digest = row.digest
    message.creator = row.creator
    message.create_time.CopyFrom(time_of(row.create_time))
    return message


def shards_of(row: DatasetRow) -> list[str]:
    """Digests of its files."""
    return [item.sha256 for item in pb.Dataset.FromString(row.content).shards]
