"""The evaluate and benchmark tasks: how right a variant is over labelled rows, and how it runs best on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sealane.errors import InvalidArgument
from sealane.registry.v1 import variant_service_pb2 as registry
from sealane.scheduler.v1 import fleet_service_pb2 as pb
from sealane.scheduler.v1 import job_service_pb2
from sealane.tensors import Array, Signature
from sealane_worker import machine, profiling
from sealane_worker.artifacts import Artifacts
from sealane_worker.batch_task import RUN_SECONDS, outputs_of, signature_of
from sealane_worker.pool import PooledModel
from sealane_worker.preparation import project_of
from sealane_worker.row_data import Shard, ShardReader, inputs_of, padded, rows_per_run
from sealane_worker.runner import Progress, Results
from sealane_worker.spec import HostPolicy, Run
from sealane_worker.statistics import percentile
from sealane_worker.task_models import TaskModels

#: Rows of one run of an evaluation.
BATCH_ROWS = 64
#: Fewest runs of one row behind the latencies, and runs before them.
LATENCY_RUNS, WARM_UP_RUNS = 200, 10
#: Shortest time for them: the processors' clocks tick a hundred times a second.
LATENCY_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class EvaluateWork:
    """Does evaluate tasks.

    Attributes:
        models: runs them.
        shards: reads rows.
        artifacts: where shards come from.
    """

    models: TaskModels
    shards: ShardReader
    artifacts: Artifacts

    def __call__(self, task: pb.TaskAssignment, progress: Progress) -> Results:
        """Run one task; as :data:`sealane_worker.runner.Work` says."""
        wanted, project = task.evaluate, project_of(task.task)
        source = self.artifacts.fetcher(project, task.grant)
        total = sum(item.rows for item in wanted.ranges)
        right = seen = 0
        measurement = registry.Measurement(device_class=machine.device_class(), batch_size=1, rows=total)
        with self.models.model(wanted.variant, project, task.grant) as model:
            signature = signature_of(model, wanted.spec.signature)
            for item in wanted.ranges:
                rows = self.shards.read(item, source)
                inputs = inputs_of(signature, rows, wanted.spec.inputs, wanted.spec.label)
                if not seen:
                    _time(measurement, _Timed(model, signature, inputs), progress)
                right += _right(model, signature, inputs, _Truth(wanted.spec.label, wanted.spec.output, rows))
                seen += item.rows
                progress.tell(0.95 * seen / max(total, 1), f"{seen} of {total} rows")
            measurement.runtime, measurement.memory_bytes = model.spec.runtime, model.footprint_bytes()
        measurement.accuracy = right / total if total else 0.0
        progress.say(f"{right} of {total} rows are right")
        return [_result(wanted.variant, measurement)]


@dataclass(frozen=True, slots=True)
class BenchmarkWork:
    """Does benchmark tasks.

    Attributes:
        models: gets files.
        shards: reads rows.
        artifacts: where shards come from.
        policy: what the operator allows models.
    """

    models: TaskModels
    shards: ShardReader
    artifacts: Artifacts
    policy: HostPolicy

    def __call__(self, task: pb.TaskAssignment, progress: Progress) -> Results:
        """Run one task; as :data:`sealane_worker.runner.Work` says."""
        wanted, project = task.benchmark, project_of(task.task)
        rows: Shard = {}
        if wanted.ranges:
            rows = self.shards.read(wanted.ranges[0], self.artifacts.fetcher(project, task.grant))
        spec = self.models.prepare.spec(wanted.variant, project, task.grant)
        assert spec.files is not None
        try:
            inputs = self._inputs(wanted, rows)
            bench = profiling.Bench(wanted.spec.seconds or 1.0)
            found = profiling.profile(spec, inputs, bench, progress.tell, self.policy)
        finally:
            spec.files.give_back()
        best = found.batches[0]
        measurement = registry.Measurement(
            device_class=found.device_class,
            batch_size=best.batch_size,
            latency_p50_us=best.p50_us,
            latency_p99_us=best.p99_us,
            utilisation=found.utilisation,
            runtime=found.runtime,
            threads=found.threads,
            instances=found.instances,
            memory_bytes=found.memory_bytes,
            rows_per_second=found.rows_per_second,
            joules_per_row=found.joules_per_row,
        )
        for lap in found.batches:
            measurement.batches.add(batch_size=lap.batch_size, latency_p50_us=lap.p50_us, latency_p99_us=lap.p99_us)
        progress.say(f"{found.rows_per_second:.0f} rows a second at {found.best_batch_size} rows a run")
        return [_result(wanted.variant, measurement)]

    @staticmethod
    def _inputs(wanted: pb.BenchmarkTask, rows: Shard) -> dict[str, Array]:
        """Rows by the model's names; it checks them itself."""
        if not wanted.spec.inputs:
            return dict(rows)
        return {name: rows[array] for name, array in wanted.spec.inputs.items() if array in rows}


@dataclass(frozen=True, slots=True)
class _Truth:
    """The right answers."""

    label: str
    output: str
    rows: Shard


def _right(model: PooledModel, signature: Signature, inputs: Mapping[str, Array], truth: _Truth) -> int:
    """Rows for which the model says what the label says."""
    labels = truth.rows.get(truth.label)
    if labels is None:
        raise InvalidArgument(
            f"the dataset has no array {truth.label!r}, it has {sorted(truth.rows)}; name the label",
            reason="DATASET_LABEL",
        )
    names = [spec.name for spec in signature.outputs]
    output = truth.output or (names[0] if len(names) == 1 else "")
    if output not in names:
        raise InvalidArgument(f"say which output is compared with the label: one of {names}", reason="OUTPUT_UNCLEAR")
    right, before = 0, 0
    for done, outputs in outputs_of(model, signature, inputs, BATCH_ROWS, (output,)):
        said = _classes(outputs[output])
        right += int(np.sum(said == labels[before:done].reshape(said.shape)))
        before = done
    return right


def _classes(array: Array) -> Array:
    """What is said of each row: the place of the largest value, or the integer itself."""
    if np.issubdtype(array.dtype, np.integer) and array.reshape(len(array), -1).shape[1] == 1:
        return array.reshape(len(array))
    return np.asarray(array.reshape(len(array), -1).argmax(axis=1))


@dataclass(frozen=True, slots=True)
class _Timed:
    """What is run one row at a time."""

    model: PooledModel
    signature: Signature
    inputs: Mapping[str, Array]


def _time(measurement: registry.Measurement, timed: _Timed, progress: Progress) -> None:
    """Latencies of one row, and processors used, one run after another; raises Cancelled between two."""
    model, signature, inputs = timed.model, timed.signature, timed.inputs
    size = rows_per_run(signature, 1)
    total = len(next(iter(inputs.values())))
    if not total:
        return
    parts = [padded(inputs, first, size, True) for first in range(min(total, LATENCY_RUNS))]
    box, times = model.box, list[float]()

    def run(index: int) -> float:
        progress.check()
        return model.run(Run(parts[index % len(parts)], signature.name, time.monotonic() + RUN_SECONDS)).seconds

    for index in range(WARM_UP_RUNS):
        run(index)
    cpu, wall = box.cpu_seconds() if box is not None else 0.0, time.monotonic()
    while len(times) < LATENCY_RUNS or time.monotonic() - wall < LATENCY_SECONDS:
        times.append(run(len(times)))
    took = time.monotonic() - wall
    measured = sorted(times)
    measurement.batch_size = size
    measurement.latency_p50_us = percentile(measured, 0.5) * 1e6
    measurement.latency_p99_us = percentile(measured, 0.99) * 1e6
    if box is not None and box is model.box:
        measurement.utilisation = max(box.cpu_seconds() - cpu, 0.0) / took


def _result(variant: registry.Variant, measurement: registry.Measurement) -> job_service_pb2.VariantResult:
    measurement.measure_time.GetCurrentTime()
    return job_service_pb2.VariantResult(variant_id=variant.name.rpartition("/")[2], measurement=measurement)
