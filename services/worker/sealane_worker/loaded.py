"""One loaded deployment, and how an inference runs on it: alone, in its sequence, or together with an equal one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.tensors import Array, Signature
from sealane_worker.box import Box
from sealane_worker.deployment import Assignment, Inference, Model
from sealane_worker.pool import PooledModel
from sealane_worker.sequences import Asked, Places, Sequences
from sealane_worker.signatures import pick_signature
from sealane_worker.single_flight import SingleFlight, Waiter, key_of
from sealane_worker.spec import Ran, Run
from sealane_worker.statistics import StatisticsRecorder

if TYPE_CHECKING:
    import sealane_native


@dataclass(frozen=True, slots=True)
class NativeModel:
    """A model as the native front calls it: past its box, which goes on to watch the process."""

    slots: sealane_native.Slots
    statistics: sealane_native.Statistics
    box: Box


@dataclass(frozen=True, slots=True)
class Loaded:
    """A deployment with its model, and what is kept for it."""

    model: Model
    pooled: PooledModel
    recorder: StatisticsRecorder
    sequences: Mapping[str, Sequences] = field(default_factory=dict)
    flights: SingleFlight | None = None

    def native(self) -> NativeModel | None:
        """See :meth:`sealane_worker.engine.Engine.native`."""
        box = self.pooled.box
        if box is None or box.native is None or self.recorder.native is None or self.sequences or self.flights:
            return None
        return NativeModel(box.native, self.recorder.native, box)


def infer(entry: Loaded, inference: Inference) -> Ran:
    """Run one inference; see :meth:`sealane_worker.engine.Engine.infer`."""
    assignment = entry.model.assignment
    if inference.epoch is not None and inference.epoch != assignment.epoch:
        raise FailedPrecondition(
            f"the route is of epoch {inference.epoch}, this worker serves epoch {assignment.epoch}; "
            "ask for a new route",
            reason="STALE_ROUTE",
        )
    signature = pick_signature(entry.model.signatures, inference.signature)
    if not inference.checked:
        signature.check_inputs(inference.inputs)
        _check_outputs(signature, inference.outputs)
    run = Run(
        inference.inputs,
        signature.name,
        inference.deadline,
        inference.outputs,
        inference.priority,
        inference.flow,
        inference.on_cancel,
    )
    begun, ended = entry.recorder.begun(), None
    try:
        ended = _run(entry, inference, run)
    finally:
        if ended is None:
            entry.recorder.failed(begun)
    ran, shared = ended
    if shared:
        entry.recorder.shared()
    else:
        entry.recorder.succeeded(begun, ran, _rows(inference.inputs))
    return ran


def _run(entry: Loaded, inference: Inference, run: Run) -> tuple[Ran, bool]:
    """Run, in its sequence or together with an equal request; and whether it was another one's run."""
    sequences = entry.sequences.get(run.signature)
    if sequences is not None:
        asked = Asked(inference.caller, inference.sequence, inference.deadline, run.inputs, run.outputs)
        ran = sequences.run(
            asked, lambda inputs, outputs: entry.pooled.run(replace(run, inputs=inputs, outputs=outputs))
        )
        return ran, False
    if entry.flights is not None:
        what = (inference.deployment, entry.model.assignment.epoch, run.signature, run.outputs)
        key = key_of((inference.caller,), what, run.inputs)
        return entry.flights.run(key, Waiter(inference.deadline, inference.on_cancel), lambda: entry.pooled.run(run))
    return entry.pooled.run(run), False


def entry_of(assignment: Assignment, pooled: PooledModel) -> Loaded:
    """A deployment whose model was just loaded.

    Raises:
        FailedPrecondition: its manifest names tensors that the model does not have.
    """
    serving = assignment.spec.serving
    signatures = {signature.name: signature for signature in pooled.loaded.signatures}
    sequences: dict[str, Sequences] = {}
    if serving.sequencing is not None:
        places = Places()
        sequences = {name: Sequences(serving.sequencing, signature, places) for name, signature in signatures.items()}
        signatures = {name: item.signature for name, item in sequences.items()}
    flights = SingleFlight() if serving.deterministic and not sequences else None
    return Loaded(Model(assignment, signatures), pooled, StatisticsRecorder(native=pooled.native), sequences, flights)


def _rows(inputs: Mapping[str, Array]) -> int:
    shape = next(iter(inputs.values())).shape if inputs else ()
    return shape[0] if shape else 1


def _check_outputs(signature: Signature, wanted: tuple[str, ...]) -> None:
    known = {spec.name for spec in signature.outputs}
    unknown = sorted(set(wanted) - known)
    if unknown or len(set(wanted)) != len(wanted):
        raise InvalidArgument(
            f"outputs {unknown or sorted(wanted)} are unknown or asked for twice; choose from {sorted(known)}",
            reason="OUTPUT_UNKNOWN",
            field="outputs",
        )
