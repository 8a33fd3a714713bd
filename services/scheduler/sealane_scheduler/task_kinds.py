"""What the kinds of jobs with many tasks have of their own: their tasks, what a node is told, what its answer means."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sealane.errors import InvalidArgument
from sealane.registry.v1 import variant_service_pb2 as variant_pb
from sealane.scheduler.v1 import fleet_service_pb2 as fleet_pb
from sealane.scheduler.v1 import job_service_pb2 as job_pb
from sealane_scheduler.store import JobRow
from sealane_scheduler.task_specs import Spec, Subject, npz_shards, read_spec
from sealane_scheduler.task_store import TaskRow
from sealane_scheduler.tasks import BATCH, EVALUATE, MAX_TASKS, TaskOutcome

_DIGEST = re.compile(r"[0-9a-f]{64}")


def tasks_of(spec: Spec, subject: Subject) -> list[TaskRow]:
    """The tasks of a job, by number.

    Raises:
        InvalidArgument: more than there may be.
    """
    if isinstance(spec, job_pb.BatchSpec):
        made = list(_ranges(spec, subject))
        if len(made) > MAX_TASKS:
            raise InvalidArgument(
                f"{len(made)} tasks are too many, at most {MAX_TASKS}; take more rows_per_task",
                field="job.batch.rows_per_task",
            )
        return made
    shards = npz_shards(subject) if subject.dataset is not None else []
    # Evaluations and benchmarks have their ranges in the same field.
    ranges = [fleet_pb.RowRange(shard=item, rows=item.rows) for item in shards]
    data = fleet_pb.EvaluateTask(ranges=ranges).SerializeToString()
    return [TaskRow("", "", 0, variant=name, input=data) for name in spec.variants]


def assignment(job: JobRow, task: TaskRow, subject: Subject) -> fleet_pb.TaskAssignment | None:
    """What a node is told of a task; None where its variant is no more."""
    spec, variant = read_spec(job.kind, job.spec), subject.variant(task.variant)
    if variant is None:
        return None
    made = fleet_pb.TaskAssignment(task=task.name)
    if isinstance(spec, job_pb.BatchSpec):
        made.batch.CopyFrom(
            fleet_pb.BatchTask(
                variant=variant,
                range=fleet_pb.RowRange.FromString(task.input),
                inputs=spec.inputs,
                outputs=spec.outputs,
                signature=spec.signature,
                batch_size=spec.batch_size,
            )
        )
    elif isinstance(spec, job_pb.EvaluateSpec):
        made.evaluate.CopyFrom(fleet_pb.EvaluateTask.FromString(task.input))
        made.evaluate.spec.CopyFrom(spec)
        made.evaluate.variant.CopyFrom(variant)
    else:
        ranges = fleet_pb.EvaluateTask.FromString(task.input).ranges
        made.benchmark.CopyFrom(fleet_pb.BenchmarkTask(spec=spec, variant=variant, ranges=ranges))
    return made


def outcome(job: JobRow, task: TaskRow, request: fleet_pb.FinishTaskRequest) -> TaskOutcome:
    """What a node's answer means; one that is not of this task is a failure."""
    if request.error:
        return TaskOutcome(request.error, request.retryable, log=request.log)
    if job.kind == BATCH:
        made = request.output
        if made.rows != task.rows:
            return TaskOutcome(f"the node made {made.rows} rows of {task.rows}", True, log=request.log)
        # It becomes part of a name that the registry is told: one that it refuses would have it refuse all the others.
        if not _DIGEST.fullmatch(made.sha256) or made.size_bytes < 0:
            return TaskOutcome("the node named no file that it made", True, log=request.log)
        return TaskOutcome(output=made.SerializeToString(), log=request.log)
    if [item.variant_id for item in request.results] != [task.variant]:
        return TaskOutcome(f"the node measured something else than {task.variant}", True, log=request.log)
    return TaskOutcome(output=request.results[0].SerializeToString(), log=request.log)


def gather(job: JobRow, outputs: Iterable[bytes]) -> bytes:
    """The results of a job: what was measured; files stay with their tasks."""
    if job.kind == BATCH:
        return b""
    return job_pb.Job(results=[job_pb.VariantResult.FromString(item) for item in outputs]).SerializeToString()


def digests_of(task: fleet_pb.TaskAssignment) -> tuple[str, ...]:
    """Files that a node needs for a task, beside those of the variant."""
    if task.HasField("batch"):
        return (task.batch.range.shard.sha256,)
    ranges = task.evaluate.ranges if task.HasField("evaluate") else task.benchmark.ranges
    return tuple(item.shard.sha256 for item in ranges)


def shards_of(inputs: Iterable[TaskRow]) -> set[str]:
    """Digests of the shards that tasks read."""
    found: set[str] = set()
    for task in inputs:
        if task.rows:
            found.add(fleet_pb.RowRange.FromString(task.input).shard.sha256)
        else:
            found.update(item.shard.sha256 for item in fleet_pb.EvaluateTask.FromString(task.input).ranges)
    return found


def made_by(outputs: Iterable[bytes]) -> set[str]:
    """Digests of what the tasks of a batch made."""
    return {job_pb.TaskOutput.FromString(item).sha256 for item in outputs}


def variant_of(task: fleet_pb.TaskAssignment) -> variant_pb.Variant:
    """The variant that a task is about."""
    kind = task.WhichOneof("spec")
    return (
        task.batch.variant if kind == BATCH else task.evaluate.variant if kind == EVALUATE else task.benchmark.variant
    )


def _ranges(spec: job_pb.BatchSpec, subject: Subject) -> Iterable[TaskRow]:
    before = 0
    for shard in npz_shards(subject):
        for first in range(0, shard.rows, spec.rows_per_task):
            rows = min(spec.rows_per_task, shard.rows - first)
            data = fleet_pb.RowRange(shard=shard, first_row=first, rows=rows).SerializeToString()
            yield TaskRow("", "", 0, first_row=before + first, rows=rows, variant=spec.variant_id, input=data)
        before += shard.rows
