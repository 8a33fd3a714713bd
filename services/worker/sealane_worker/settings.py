"""How a loaded model is served and what it has done, in the plain words of the protocols' adapters."""

from __future__ import annotations

from sealane.protocols.openinference_model import (
    BatchingSettings,
    Control,
    Duration,
    EnsembleStep,
    ModelCounts,
    ModelSettings,
    SequenceSettings,
    State,
)
from sealane.tensors import Signature
from sealane_worker.deployment import Model, Served
from sealane_worker.model.queueing import DELAY, Batching
from sealane_worker.spec import Sequencing


def settings_of(model: Model, full: tuple[Signature, ...]) -> ModelSettings:
    """How a model is served; `full` are its signatures with what the server fills."""
    serving, assignment = model.assignment.spec.serving, model.assignment
    signature = model.signatures.get("serving_default") or next(iter(model.signatures.values()))
    batched = all(spec.shape[:1] == (-1,) for spec in (*signature.inputs, *signature.outputs))
    if model.chain is not None:
        steps = (EnsembleStep(step.deployment, step.inputs, step.outputs) for step in model.chain.steps)
        return ModelSettings(runtime=assignment.spec.runtime, steps=tuple(steps))
    sequencing = serving.sequencing
    return ModelSettings(
        runtime=assignment.spec.runtime,
        max_batch_size=serving.batching.max_rows if batched else 0,
        instances=max(serving.instances, 1),
        device=serving.device,
        batching=_batching(serving.batching),
        sequence=_sequences(sequencing, full) if sequencing is not None else None,
        deterministic=serving.deterministic,
        parameters={"variant": assignment.variant, "digest": assignment.digest, "model": assignment.model_id},
    )


def counts_of(served: Served) -> ModelCounts:
    """What a model has done since it was loaded."""
    taken = served.statistics
    executions = sum(count for count, _ in taken.batches.values())
    return ModelCounts(
        success=Duration(taken.succeeded, taken.queue_seconds + taken.run_seconds),
        fail=Duration(taken.failed, taken.failed_seconds),
        queue=Duration(taken.succeeded, taken.queue_seconds),
        infer=Duration(taken.succeeded, taken.run_seconds),
        shared=Duration(taken.shared),
        rows=taken.rows,
        executions=round(executions),
        last_time=taken.last_time,
        batches={size: Duration(round(count), seconds) for size, (count, seconds) in taken.batches.items()},
        memory_bytes=served.footprint_bytes,
    )


def _batching(batching: Batching) -> BatchingSettings:
    return BatchingSettings(
        preferred_batch_size=batching.preferred_batch_size,
        max_queue_delay_microseconds=batching.max_queue_delay_microseconds,
        priority_levels=batching.priority_levels,
        default_priority_level=batching.default_priority_level,
        delay=batching.timeout_action == DELAY,
        default_timeout_microseconds=batching.default_timeout_microseconds,
        max_queue_size=batching.max_queue_size,
    )


def _sequences(sequencing: Sequencing, full: tuple[Signature, ...]) -> SequenceSettings:
    inputs = {spec.name: spec for signature in full for spec in signature.inputs}
    return SequenceSettings(
        max_idle_microseconds=int(sequencing.max_idle_seconds * 1e6),
        controls=tuple(Control(name, kind, inputs[name].datatype) for name, kind in sequencing.controls.items()),
        states=tuple(
            State(name, output, inputs[name].datatype, inputs[name].shape) for name, output in sequencing.states.items()
        ),
    )
