"""The batch task: some rows of a dataset through a model, what comes out as a file in the registry."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sealane.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from sealane.scheduler.v1 import fleet_service_pb2 as pb
from sealane.scheduler.v1 import job_service_pb2
from sealane.tensors import Array, Signature
from sealane_worker.artifacts import Artifacts
from sealane_worker.pool import PooledModel
from sealane_worker.preparation import project_of
from sealane_worker.row_data import ShardReader, inputs_of, joined, padded, rows_per_run
from sealane_worker.runner import Progress, Results
from sealane_worker.signatures import pick_signature
from sealane_worker.spec import Run
from sealane_worker.task_models import TaskModels

#: Longest that one run may take, with the load of a model that gave way.
RUN_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class BatchWork:
    """Does batch tasks.

    Attributes:
        models: runs them.
        shards: reads rows.
        artifacts: where results go.
    """

    models: TaskModels
    shards: ShardReader
    artifacts: Artifacts

    def __call__(self, task: pb.TaskAssignment, progress: Progress) -> Results:
        """Run one task; as :data:`sealane_worker.runner.Work` says."""
        wanted, project = task.batch, project_of(task.task)
        rows = self.shards.read(wanted.range, self.artifacts.fetcher(project, task.grant))
        with self.models.model(wanted.variant, project, task.grant) as model:
            signature = signature_of(model, wanted.signature)
            inputs = inputs_of(signature, rows, wanted.inputs)
            parts = []
            for done, part in outputs_of(model, signature, inputs, wanted.batch_size, tuple(wanted.outputs)):
                parts.append(part)
                progress.tell(0.9 * done / max(wanted.range.rows, 1), f"{done} of {wanted.range.rows} rows")
        progress.check()
        return [self._stored(task, joined(parts) if parts else {}, project)]

    def _stored(
        self, task: pb.TaskAssignment, outputs: Mapping[str, Array], project: str
    ) -> job_service_pb2.TaskOutput:
        scratch = self.models.prepare.cache.scratch
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            path = Path(folder) / "outputs.npz"
            try:
                np.savez(path, **outputs)  # type: ignore[arg-type]  # arrays by name
            except OSError as error:
                raise ResourceExhausted(
                    f"the worker has no room for the outputs in {scratch}; take fewer rows_per_task, or enlarge it",
                    reason="SCRATCH_FULL",
                ) from error
            blob = self.artifacts.upload(project, path, task.grant)
            size = path.stat().st_size
        return job_service_pb2.TaskOutput(sha256=blob.digest, size_bytes=size, rows=task.batch.range.rows)


def signature_of(model: PooledModel, name: str) -> Signature:
    """A signature of a loaded model; raises FailedPrecondition where it has none of that name."""
    return pick_signature({item.name: item for item in model.loaded.signatures}, name)


def outputs_of(
    model: PooledModel, signature: Signature, inputs: Mapping[str, Array], wanted: int, names: tuple[str, ...] = ()
) -> Iterator[tuple[int, dict[str, Array]]]:
    """Run all rows; gives the rows done so far, and the outputs of each run.

    Args:
        model: a loaded model.
        signature: of it.
        inputs: all rows.
        wanted: rows of one run, where the model leaves that open.
        names: outputs; empty for all.

    Raises:
        InvalidArgument: an output that the model has not.
        FailedPrecondition: an output whose first axis is not the rows.
        SealaneError: what the run raises.
    """
    known = [spec.name for spec in signature.outputs]
    if unknown := sorted(set(names) - set(known)):
        raise InvalidArgument(f"outputs {unknown} are unknown; choose from {sorted(known)}", reason="OUTPUT_UNKNOWN")
    total, step = len(next(iter(inputs.values()))), rows_per_run(signature, wanted)
    fixed = any(spec.shape[:1] not in ((), (-1,)) for spec in signature.inputs)
    for first in range(0, total, step):
        part = padded(inputs, first, step, fixed)
        count = min(step, total - first)
        ran = model.run(Run(part, signature.name, time.monotonic() + RUN_SECONDS, names))
        yield (
            first + count,
            {name: _cut(name, array, count, len(next(iter(part.values())))) for name, array in ran.outputs.items()},
        )


def _cut(name: str, array: Array, count: int, rows: int) -> Array:
    if array.ndim == 0 or len(array) != rows:
        raise FailedPrecondition(
            f"output {name!r} has no row for each row of the input; name the outputs that have", reason="OUTPUT_ROWS"
        )
    return array[:count]
