"""What jobs with many tasks are asked to do, and about what: checked, and with all that was left open."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sealane.errors import FailedPrecondition, InvalidArgument, NotFound
from sealane.registry.v1 import dataset_service_pb2 as dataset_pb
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.registry.v1 import variant_service_pb2 as variant_pb
from sealane.scheduler.v1 import deployment_service_pb2 as deployment_pb
from sealane.scheduler.v1 import job_service_pb2 as job_pb
from sealane_scheduler.tasks import BATCH, EVALUATE, MAX_TASKS, Execution

ROWS_PER_TASK = 1024
BATCH_SIZE = 64
MAX_BATCH_SIZE = 4096
MAX_SECONDS = 60.0
#: Shards of a measurement: the grant names each.
MAX_SHARDS = 64
_CLASSES = ("public", "internal", "restricted")

Spec = job_pb.BatchSpec | job_pb.EvaluateSpec | job_pb.BenchmarkSpec


class Registry(Protocol):
    """What is asked of the registry."""

    def version(self, name: str) -> model_pb.Version:
        """A version with its variants."""
        ...

    def dataset(self, name: str) -> dataset_pb.Dataset:
        """A dataset."""
        ...


@dataclass(frozen=True, slots=True)
class Subject:
    """What a job is about, as the registry has it."""

    version: model_pb.Version
    dataset: dataset_pb.Dataset | None = None

    def variant(self, name: str) -> variant_pb.Variant | None:
        """A variant by its id."""
        return next((item for item in self.version.variants if _id(item.name) == name), None)

    @property
    def variants(self) -> list[str]:
        """Ids of the variants."""
        return [_id(item.name) for item in self.version.variants]


def spec_of(kind: str, job: job_pb.Job) -> Spec:
    """The spec of a job of one of these kinds."""
    return job.batch if kind == BATCH else job.evaluate if kind == EVALUATE else job.benchmark


def read_spec(kind: str, data: bytes) -> Spec:
    """A stored spec."""
    if kind == BATCH:
        return job_pb.BatchSpec.FromString(data)
    return job_pb.EvaluateSpec.FromString(data) if kind == EVALUATE else job_pb.BenchmarkSpec.FromString(data)


def subject_in(registry: Registry, spec: Spec) -> Subject:
    """What a job is about. Blocks; raises the registry's errors."""
    return Subject(registry.version(spec.version), registry.dataset(spec.dataset) if spec.dataset else None)


def check_execution(message: job_pb.Execution) -> None:
    """Refuse what no job can be run by.

    Raises:
        InvalidArgument: a number out of its range, a class that does not exist, or restricted data without a residency.
    """
    if not -100 <= message.priority <= 100:
        raise InvalidArgument("priority goes from -100 to 100", field="job.execution.priority")
    for name, most in (("max_parallel", MAX_TASKS), ("gang", MAX_TASKS), ("max_attempts", 20)):
        if not 0 <= getattr(message, name) <= most:
            raise InvalidArgument(f"{name} goes from 0 to {most}", field=f"job.execution.{name}")
    if message.max_parallel and message.gang > message.max_parallel:
        raise InvalidArgument("a gang larger than max_parallel can never begin", field="job.execution.gang")
    if message.data_class not in deployment_pb.DataClass.values():
        raise InvalidArgument(f"data class {message.data_class} is unknown", field="job.execution.data_class")
    if message.data_class == deployment_pb.DATA_CLASS_RESTRICTED and not message.residency:
        raise InvalidArgument(
            "restricted data needs the zones it must stay in; set execution.residency", field="job.execution.residency"
        )


def execution_of(message: job_pb.Execution) -> Execution:
    """How the tasks of a job are run that was checked when it was created."""
    name = deployment_pb.DataClass.Name(message.data_class).removeprefix("DATA_CLASS_").lower()
    return Execution(
        priority=message.priority,
        data_class=name if name in _CLASSES else "internal",
        residency=tuple(message.residency),
        max_parallel=message.max_parallel,
        gang=message.gang,
        max_attempts=message.max_attempts,
        speculative=message.speculative,
    )


def resolved(spec: Spec, subject: Subject, loadable: Sequence[str]) -> Spec:
    """The spec with all that it left open.

    Args:
        spec: as it was asked for.
        subject: what it is about.
        loadable: ids of variants that a worker can load now.

    Raises:
        InvalidArgument: a field that cannot be.
        NotFound: a variant that the version has not.
        FailedPrecondition: a dataset of another format, without a label, or in too many shards.
    """
    if isinstance(spec, job_pb.BatchSpec):
        return _resolved_batch(spec, subject, loadable)
    made = copy.deepcopy(spec)
    made.version = subject.version.name
    if subject.dataset is not None and len(npz_shards(subject)) > MAX_SHARDS:
        raise FailedPrecondition(f"a measurement takes at most {MAX_SHARDS} shards; make larger ones")
    for name in spec.variants:
        _known(subject, name)
    wanted = set(spec.variants) or set(subject.variants)
    del made.variants[:]
    made.variants.extend(name for name in subject.variants if name in wanted)
    if isinstance(made, job_pb.EvaluateSpec):
        made.label = made.label or _label(subject)
    elif not 0 <= made.seconds <= MAX_SECONDS:
        raise InvalidArgument(f"seconds goes from 0 to {MAX_SECONDS:g}", field="job.benchmark.seconds")
    _name_inputs(made, subject, _label_of(made))
    return made


def npz_shards(subject: Subject) -> Sequence[dataset_pb.Shard]:
    """The shards of a job's dataset; raises FailedPrecondition where workers cannot read them (DATASET_FORMAT)."""
    assert subject.dataset is not None
    if subject.dataset.format != "npz":
        raise FailedPrecondition(
            f"{subject.dataset.name} has format {subject.dataset.format!r}, workers read npz; push it as npz",
            reason="DATASET_FORMAT",
        )
    return subject.dataset.shards


def _resolved_batch(spec: job_pb.BatchSpec, subject: Subject, loadable: Sequence[str]) -> job_pb.BatchSpec:
    made = copy.deepcopy(spec)
    made.version = subject.version.name
    if spec.variant_id:
        _known(subject, spec.variant_id)
    elif not subject.variants:
        raise FailedPrecondition(f"{subject.version.name} has no variant; push one", reason="VARIANTS_ABSENT")
    made.variant_id = spec.variant_id or next(iter([*loadable, *subject.variants]))
    if not 0 <= spec.batch_size <= MAX_BATCH_SIZE:
        raise InvalidArgument(f"batch_size goes from 0 to {MAX_BATCH_SIZE}", field="job.batch.batch_size")
    if spec.rows_per_task < 0:
        raise InvalidArgument("rows_per_task is a number from 0", field="job.batch.rows_per_task")
    made.batch_size = spec.batch_size or BATCH_SIZE
    made.rows_per_task = spec.rows_per_task or ROWS_PER_TASK
    npz_shards(subject)
    _name_inputs(made, subject, "")
    return made


def _label(subject: Subject) -> str:
    assert subject.dataset is not None
    labels = [item.name for item in subject.dataset.schema if item.label]
    if len(labels) != 1:
        raise FailedPrecondition(
            f"{subject.dataset.name} has {len(labels)} labels, not one; name the array in 'label'",
            reason="DATASET_LABEL",
        )
    return labels[0]


def _label_of(spec: Spec) -> str:
    return spec.label if isinstance(spec, job_pb.EvaluateSpec) else ""


def _name_inputs(spec: Spec, subject: Subject, label: str) -> None:
    """Say which array is which input where it was left open, and there is no doubt.

    What the registry does not know of a model or dataset is left to the worker, which looks into both.
    """
    signatures = {item.name: item for item in subject.version.signatures}
    name = "" if isinstance(spec, job_pb.BenchmarkSpec) else spec.signature
    signature = signatures.get(name or "serving_default") or (
        next(iter(signatures.values())) if len(signatures) == 1 and not name else None
    )
    if spec.inputs or signature is None or subject.dataset is None or not subject.dataset.schema:
        return
    arrays = [item.name for item in subject.dataset.schema if not item.label and item.name != label]
    inputs = [item.name for item in signature.inputs]
    if set(inputs) <= set(arrays):
        spec.inputs.update({item: item for item in inputs})
    elif len(inputs) == len(arrays) == 1:
        spec.inputs[inputs[0]] = arrays[0]
    else:
        raise FailedPrecondition(
            f"the model takes {inputs} and the dataset has {arrays}; say which is which in 'inputs'",
            reason="INPUTS_UNCLEAR",
        )


def _known(subject: Subject, name: str) -> None:
    if name not in subject.variants:
        raise NotFound(f"{subject.version.name} has no variant {name!r}; it has {subject.variants}")


def _id(name: str) -> str:
    return name.rpartition("/")[2]
