"""What the scheduler asks of the registry, over the mesh. Blocking: call it in threads."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator

from sealane.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from sealane.names import parse
from sealane.registry.v1 import dataset_service_pb2 as dataset_pb
from sealane.registry.v1 import dataset_service_pb2_grpc, model_service_pb2_grpc, variant_service_pb2_grpc
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.registry.v1 import variant_service_pb2 as variant_pb
from sealane.scheduler.v1 import job_service_pb2 as job_pb
from sealane.security.enroll import MeshChannel

#: What the registry says when it will never take what it is told.
PERMANENT = (InvalidArgument, NotFound, AlreadyExists, FailedPrecondition, PermissionDenied)
_NAMESPACE = uuid.UUID("6b1f6a51-8f0e-4c53-9a53-5f0ad3a1d7c4")
_SECONDS = 5.0
#: A report of what is in use: time for one part, bytes of one, and artifacts of one holder in one.
_REPORT_SECONDS, _PART_BYTES, _ARTIFACTS = 30.0, 1 << 20, 5000


class RegistryPort:
    """The registry's services, with this process's certificate."""

    def __init__(self, channel: MeshChannel) -> None:
        self._channel = channel

    def version(self, name: str) -> model_pb.Version:
        """A version with its variants; the name may end in an alias."""
        stub = model_service_pb2_grpc.ModelServiceStub(self._channel())
        return stub.GetVersion(model_pb.GetVersionRequest(name=name), timeout=_SECONDS)

    def dataset(self, name: str) -> dataset_pb.Dataset:
        """A dataset."""
        stub = dataset_service_pb2_grpc.DatasetServiceStub(self._channel())
        return stub.GetDataset(dataset_pb.GetDatasetRequest(name=name), timeout=_SECONDS)

    def latest(self, model: str, count: int) -> list[model_pb.Version]:
        """The latest versions of a model, the newest first."""
        stub = model_service_pb2_grpc.ModelServiceStub(self._channel())
        request = model_pb.ListVersionsRequest(parent=model, page_size=count)
        return list(stub.ListVersions(request, timeout=_SECONDS).versions)

    def register(self, job: job_pb.Job) -> list[str]:
        """Register what a job made and record what it measured; safe to repeat. Returns the variants."""
        source = job.optimise.source_variant
        version, made = source.rsplit("/variants/", 1)[0], []
        stub = variant_service_pb2_grpc.VariantServiceStub(self._channel())
        for result in job.results:
            name = f"{version}/variants/{result.variant_id}"
            if name != source:
                variant = variant_pb.Variant()
                variant.CopyFrom(result.variant)
                variant.source_variant, variant.job = source, job.name
                stub.CreateVariant(
                    variant_pb.CreateVariantRequest(
                        parent=version,
                        variant_id=result.variant_id,
                        variant=variant,
                        request_id=_request_id(job.name, "create", result.variant_id),
                    ),
                    timeout=_SECONDS,
                )
                made.append(name)
            stub.RecordMeasurement(
                variant_pb.RecordMeasurementRequest(
                    name=name,
                    measurement=result.measurement,
                    request_id=_request_id(job.name, "measure", result.variant_id),
                ),
                timeout=_SECONDS,
            )
        return made

    def record_measurements(self, job: job_pb.Job, version: str) -> model_pb.Version:
        """Record what a job measured of variants of a version; safe to repeat. Returns the version as it is then."""
        stub = variant_service_pb2_grpc.VariantServiceStub(self._channel())
        for result in job.results:
            stub.RecordMeasurement(
                variant_pb.RecordMeasurementRequest(
                    name=f"{version}/variants/{result.variant_id}",
                    measurement=result.measurement,
                    request_id=_request_id(job.name, "measure", result.variant_id),
                ),
                timeout=_SECONDS,
            )
        return self.version(version)

    def record_checks(self, job: job_pb.Job) -> None:
        """Record what came of loading variants; safe to repeat."""
        stub = variant_service_pb2_grpc.VariantServiceStub(self._channel())
        for found in job.checks:
            stub.RecordLoadCheck(
                variant_pb.RecordLoadCheckRequest(
                    name=f"{job.check.version}/variants/{found.variant_id}",
                    load_check=found.load_check,
                    request_id=_request_id(job.name, "check", found.variant_id),
                ),
                timeout=_SECONDS,
            )

    def report_uses(self, uses: Iterable[model_pb.Use]) -> None:
        """Tell all that deployments and jobs refer to; it replaces what was told before."""
        stub = model_service_pb2_grpc.ModelServiceStub(self._channel())
        parts = list(_parts(uses)) or [[]]
        for number, part in enumerate(parts):
            request = model_pb.ReportUseRequest(uses=part, part=number, more=number < len(parts) - 1)
            stub.ReportUse(request, timeout=_REPORT_SECONDS)

    def close(self) -> None:
        """End what is under way: a process that ends must not wait for a registry that is gone."""
        self._channel.close()


def version_number(version: str) -> int:
    """The number in a version's name."""
    return int(version.rpartition("/")[2])


def version_of(variant: str) -> str:
    """The version that a variant's name belongs to."""
    project, model, number, _ = parse(variant, "projects/*/models/*/versions/*/variants/*", "source_variant")
    return f"projects/{project}/models/{model}/versions/{number}"


def _parts(uses: Iterable[model_pb.Use]) -> Iterator[list[model_pb.Use]]:
    """Uses in messages that a server takes; one of many artifacts is told by several of its holder."""
    part, size = list[model_pb.Use](), 0
    for use in uses:
        for first in range(0, max(len(use.artifacts), 1), _ARTIFACTS):
            piece = model_pb.Use(holder=use.holder, artifacts=use.artifacts[first : first + _ARTIFACTS])
            if first == 0:
                piece.versions.extend(use.versions)
                piece.aliases.extend(use.aliases)
            if part and size + piece.ByteSize() > _PART_BYTES:
                yield part
                part, size = [], 0
            part.append(piece)
            size += piece.ByteSize()
    if part:
        yield part


def _request_id(*parts: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, "/".join(parts)))
