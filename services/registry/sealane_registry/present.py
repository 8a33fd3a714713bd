"""Rows of the registry as proto messages, and back."""

from __future__ import annotations

import math
import sys

from sealane.errors import InvalidArgument
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.registry.v1 import variant_service_pb2 as variant_pb
from sealane.rpc.times import time_of
from sealane.security.sealing_messages import message_of, policy_of
from sealane_registry.catalog import File, NewVariant
from sealane_registry.store import AliasRow, ModelRow, VariantRow, VersionRow


def model(row: ModelRow) -> model_pb.Model:
    """A model."""
    return model_pb.Model(
        name=f"projects/{row.project}/models/{row.model}",
        description=row.description,
        create_time=time_of(row.create_time),
        update_time=time_of(row.update_time),
        etag=row.etag,
    )


def version_content(version: model_pb.Version) -> bytes:
    """What a version keeps of what was sent.

    Raises:
        InvalidArgument: a metric that is no finite number.
    """
    for name, value in version.lineage.metrics.items():
        if not math.isfinite(value):
            raise InvalidArgument(f"metric {name!r} is {value}; leave it out", field="version.lineage.metrics")
    kept = model_pb.Version(signatures=version.signatures)
    kept.lineage.CopyFrom(version.lineage)
    return kept.SerializeToString()


def version(row: VersionRow, variants: list[VariantRow]) -> model_pb.Version:
    """A version with its variants."""
    message = model_pb.Version.FromString(row.content)
    message.name = f"projects/{row.project}/models/{row.model}/versions/{row.number}"
    message.number = row.number
    message.variants.extend(variant(item) for item in variants)
    message.create_time.CopyFrom(time_of(row.create_time))
    message.etag = row.etag
    return message


_MEASURED = (
    *("accuracy", "rows", "batch_size", "latency_p50_us", "latency_p99_us", "utilisation"),
    *("threads", "instances", "memory_bytes", "rows_per_second", "joules_per_row"),
)
MAX_BATCHES = 64


def new_variant(variant_id: str, message: variant_pb.Variant) -> NewVariant:
    """A variant as it was asked for.

    Raises:
        InvalidArgument: no format or precision, or one that is unknown here.
    """
    if message.format not in variant_pb.Format.values()[1:]:
        known = variant_pb.Format.keys()[1:]
        raise InvalidArgument(f"format {message.format} is unknown; use one of {known}", field="variant.format")
    if message.precision not in variant_pb.Precision.values():
        known = variant_pb.Precision.keys()
        raise InvalidArgument(
            f"precision {message.precision} is unknown; use one of {known}", field="variant.precision"
        )
    kept = variant_pb.Variant(
        format=message.format,
        precision=message.precision,
        files=message.files,
        source_variant=message.source_variant,
        job=message.job,
        runtime=message.runtime,
    )
    if message.HasField("sealing"):
        kept.sealing.CopyFrom(message_of(policy_of(message.sealing)))
    files = [File(file.path, file.sha256, file.size_bytes) for file in message.files]
    return NewVariant(variant_id, files, kept.SerializeToString())


def variant(row: VariantRow) -> variant_pb.Variant:
    """A variant with its measurements."""
    message = variant_pb.Variant.FromString(row.content)
    message.name = f"projects/{row.project}/models/{row.model}/versions/{row.number}/variants/{row.variant}"
    message.digest = row.digest
    message.size_bytes = sum(file.size_bytes for file in message.files)
    message.measurements.extend(variant_pb.Measurement.FromString(item) for item in row.measurements)
    message.create_time.CopyFrom(time_of(row.create_time))
    return message


def measurement_content(message: variant_pb.Measurement) -> bytes:
    """A measurement to keep. Placement decides by it, so it must be one.

    Raises:
        InvalidArgument: a number that is not finite, negative, or an accuracy beyond 1.
    """
    for field in _MEASURED:
        highest = 1.0 if field == "accuracy" else sys.float_info.max
        if not 0 <= getattr(message, field) <= highest:
            wanted = "a share from 0 to 1" if field == "accuracy" else "a number from 0"
            raise InvalidArgument(
                f"{field} {getattr(message, field)} is not {wanted}; measure again", field=f"measurement.{field}"
            )
    if len(message.batches) > MAX_BATCHES or any(
        not (item.batch_size > 0 and 0 <= item.latency_p50_us < math.inf and 0 <= item.latency_p99_us < math.inf)
        for item in message.batches
    ):
        raise InvalidArgument(
            f"batches must be at most {MAX_BATCHES}, each with a size from 1 and latencies from 0; measure again",
            field="measurement.batches",
        )
    return message.SerializeToString()


def alias(row: AliasRow) -> model_pb.Alias:
    """An alias."""
    return model_pb.Alias(
        name=f"projects/{row.project}/models/{row.model}/aliases/{row.alias}",
        version=f"projects/{row.project}/models/{row.model}/versions/{row.number}",
        update_time=time_of(row.update_time),
        etag=row.etag,
    )
