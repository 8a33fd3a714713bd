"""Rows of the registry as proto messages, and back."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from sealane.errors import InvalidArgument
from sealane.names import parse
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.registry.v1 import promotion_pb2
from sealane.registry.v1 import variant_service_pb2 as variant_pb
from sealane.rpc.times import time_of
from sealane.security.alias_history import Check, checks_of
from sealane.security.sealing_messages import message_of, policy_of
from sealane_registry.catalog import File, NewVariant, NewVersion, check_text
from sealane_registry.policy import Policy
from sealane_registry.rows import AliasRow, ModelRow, MoveRow, Scope, VariantRow, VersionRow
from sealane_registry.signing import blocked

_VERSION, _DATASET = "projects/*/models/*/versions/*", "projects/*/datasets/*"
#: Formats that are a program.
_CODE = {
    variant_pb.FORMAT_TORCH_EXPORT: "a torch.export program",
    variant_pb.FORMAT_TORCH_SCRIPT: "a TorchScript archive",
}
MAX_LINEAGE = 256


def model(row: ModelRow) -> model_pb.Model:
    """A model."""
    return model_pb.Model(
        name=row.name,
        description=row.description,
        create_time=time_of(row.create_time),
        update_time=time_of(row.update_time),
        etag=row.etag,
        labels=row.labels,
        version_count=row.version_count,
    )


def new_version(project: str, version: model_pb.Version) -> NewVersion:
    """A version as it was asked for.

    Raises:
        InvalidArgument: no signatures, a metric that is no finite number, or lineage that names nothing.
    """
    if not version.signatures:
        raise InvalidArgument("a version needs its signatures; read them from the model", field="version")
    lineage = version.lineage
    for name, value in lineage.metrics.items():
        if not math.isfinite(value):
            raise InvalidArgument(f"metric {name!r} is {value}; leave it out", field="version.lineage.metrics")
    if max(len(lineage.metrics), len(lineage.datasets), len(lineage.dataset_digests)) > MAX_LINEAGE:
        raise InvalidArgument(f"lineage has at most {MAX_LINEAGE} of a kind; leave some out", field="version.lineage")
    check_text(version.description, "version.description")
    check_text(version.license, "version.license")
    source = None
    if lineage.source_version:
        there, name, number = parse(lineage.source_version, _VERSION, "version.lineage.source_version")
        if there != project or not number.isdigit() or len(number) > 18:
            raise InvalidArgument(
                "source_version names a version of this project by its number", field="version.lineage.source_version"
            )
        source = Scope(project, name, int(number))
    datasets = [parse(item, _DATASET, "version.lineage.datasets") for item in lineage.datasets]
    if any(there != project for there, _ in datasets):
        raise InvalidArgument("datasets are those of this project", field="version.lineage.datasets")
    kept = model_pb.Version(
        signatures=version.signatures, license=version.license, description=version.description, labels=version.labels
    )
    kept.lineage.CopyFrom(lineage)
    return NewVersion(
        kept.SerializeToString(deterministic=True), dict(version.labels), [dataset for _, dataset in datasets], source
    )


def version(row: VersionRow, variants: Sequence[VariantRow], policy: Policy) -> model_pb.Version:
    """A version with its variants."""
    message = model_pb.Version.FromString(row.content)
    message.name = row.name
    message.number = row.number
    message.variants.extend(variant(item, policy) for item in variants)
    message.create_time.CopyFrom(time_of(row.create_time))
    message.etag = row.etag
    message.state = model_pb.Version.State.Value(f"STATE_{row.state}")
    message.state_reason = row.state_reason
    message.publisher = row.publisher
    message.approvals.extend(
        model_pb.Approval(
            approver=item.approver, roles=item.roles, comment=item.comment, approve_time=time_of(item.time)
        )
        for item in row.approvals
    )
    return message


_MEASURED = (
    *("accuracy", "rows", "batch_size", "latency_p50_us", "latency_p99_us", "utilisation"),
    *("threads", "instances", "memory_bytes", "rows_per_second", "joules_per_row"),
)
MAX_BATCHES = 64


def new_variant(
    variant_id: str, message: variant_pb.Variant, bundles: Sequence[bytes] = (), *, by_job: bool = False
) -> NewVariant:
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
    packaged = any(file.path.startswith("package/") and file.path.endswith(".py") for file in files)
    executable = _CODE.get(message.format, "") or ("a Python step" if packaged else "")
    return NewVariant(variant_id, files, kept.SerializeToString(), tuple(bundles), executable, by_job)


def variant(row: VariantRow, policy: Policy) -> variant_pb.Variant:
    """A variant with its measurements, signatures, and what the project's policy says of it."""
    message = variant_pb.Variant.FromString(row.content)
    message.name = row.name
    message.digest = row.digest
    message.size_bytes = sum(file.size_bytes for file in message.files)
    message.measurements.extend(variant_pb.Measurement.FromString(item) for item in row.measurements)
    message.create_time.CopyFrom(time_of(row.create_time))
    if row.load_check is not None:
        message.load_check.MergeFromString(row.load_check)
    message.signatures.extend(
        variant_pb.VariantSignature(
            key_id=item.key_id,
            key_name=policy.key_named(item.key_id),
            create_time=time_of(item.create_time),
            bundle=item.bundle,
        )
        for item in row.signatures
    )
    message.blocked = blocked(policy, row)
    message.signer_keys.extend(key.pem.encode() for key in policy.demanded_keys())
    return message


def files(row: VariantRow) -> list[File]:
    """Its files."""
    return [File(file.path, file.sha256, file.size_bytes) for file in variant_pb.Variant.FromString(row.content).files]


def measurement_content(message: variant_pb.Measurement, recorder: str) -> bytes:
    """A measurement to keep. Placement and gates decide by it, so it must be one.

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
    if len(message.metrics) > MAX_BATCHES or not all(math.isfinite(value) for value in message.metrics.values()):
        raise InvalidArgument(
            f"metrics are at most {MAX_BATCHES} finite numbers; leave the others out", field="measurement.metrics"
        )
    kept = variant_pb.Measurement()
    kept.CopyFrom(message)
    kept.recorder = recorder
    return kept.SerializeToString(deterministic=True)


def alias(row: AliasRow) -> model_pb.Alias:
    """An alias."""
    return model_pb.Alias(
        name=row.name,
        version=f"projects/{row.project}/models/{row.model}/versions/{row.number}",
        update_time=time_of(row.update_time),
        etag=row.etag,
        move_count=row.moves,
    )


def move(row: MoveRow) -> model_pb.AliasMove:
    """A move of an alias with its evidence."""
    parent = f"projects/{row.project}/models/{row.model}"
    message = model_pb.AliasMove(
        name=f"{parent}/aliases/{row.alias}/moves/{row.sequence}",
        version=f"{parent}/versions/{row.number}" if row.number else "",
        previous_version=f"{parent}/versions/{row.previous}" if row.previous else "",
        mover=row.mover,
        previous_hash=bytes.fromhex(row.previous_hash),
        hash=bytes.fromhex(row.hash),
    )
    message.move_time.FromMicroseconds(row.time_us)
    if row.evidence:
        message.evidence.CopyFrom(report(Scope(row.project, row.model, row.number, row.alias), checks_of(row.evidence)))
    return message


def report(scope: Scope, checks: Sequence[Check]) -> promotion_pb2.GateReport:
    """Whether a version may have an alias."""
    return promotion_pb2.GateReport(
        version=f"projects/{scope.project}/models/{scope.model}/versions/{scope.number}",
        alias=scope.name,
        promotable=all(item.passed for item in checks),
        checks=[
            promotion_pb2.GateCheck(
                kind=promotion_pb2.GateCheck.Kind.Value(f"KIND_{item.kind}"),
                passed=item.passed,
                requirement=item.requirement,
                finding=item.finding,
                remedy=item.remedy,
                evidence=item.evidence,
            )
            for item in checks
        ],
    )
