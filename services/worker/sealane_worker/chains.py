"""Chains of models that this worker serves all of: run here, from model to model, without a trip to anybody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from sealane import ensembles
from sealane.ensembles import Chain, Step
from sealane.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from sealane.tensors import Array, Signature
from sealane_worker.box import BoxState
from sealane_worker.child import LoadedModel
from sealane_worker.deployment import Assignment, Inference, Model, Served
from sealane_worker.spec import ModelSpec, Ran
from sealane_worker.statistics import StatisticsRecorder

RUNTIME = "ensemble"
#: Runs one model of this worker.
RunModel = Callable[[Inference], Ran]
#: The model that a deployment serves here; raises NotFound.
ModelOf = Callable[[str], Model]


@dataclass(frozen=True, slots=True)
class ServedChain:
    """A chain as the scheduler wants it served.

    Attributes:
        deployment: resource name.
        epoch: tells it apart from an earlier one of the same name.
        chain: the chain.
        signature: what callers send and get.
        models: ids of its models.
    """

    deployment: str
    epoch: int
    chain: Chain
    signature: Signature
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoadedChain:
    """A chain and what it has done."""

    model: Model
    chain: Chain
    recorder: StatisticsRecorder = field(default_factory=StatisticsRecorder)

    @classmethod
    def of(cls, served: ServedChain) -> LoadedChain:
        """A chain that is served from now on."""
        assignment = Assignment(
            deployment=served.deployment,
            model=served.deployment.replace("/deployments/", "/models/"),
            version=1,
            variant=RUNTIME,
            digest="",
            epoch=served.epoch,
            spec=ModelSpec(RUNTIME, Path()),
        )
        model = Model(assignment, {served.signature.name: served.signature}, served.models, served.chain)
        return cls(model, served.chain)

    def served(self) -> Served:
        """The chain with its figures."""
        signatures = self.model.signatures
        return Served(
            assignment=self.model.assignment,
            signatures=signatures,
            state=BoxState.READY,
            footprint_bytes=0,
            statistics=self.recorder.snapshot(),
            loaded=LoadedModel(tuple(signatures.values()), "none", 0.0, ()),
        )

    def infer(self, inference: Inference, run: RunModel, model_of: ModelOf) -> Ran:
        """Run the models that the outputs wanted need.

        Args:
            inference: what is asked of the chain.
            run: runs one model of this worker.
            model_of: gives the model that a deployment serves here.

        Raises:
            Unavailable: a model of the chain is not loaded yet.
            InvalidArgument: inputs or output names that the chain does not have.
            SealaneError: what a model answers.
        """
        if inference.epoch is not None and inference.epoch != self.model.assignment.epoch:
            raise FailedPrecondition("the route is of another chain; ask for a new route", reason="STALE_ROUTE")
        signature = self.model.signatures[ensembles.DEFAULT_SIGNATURE]
        known = tuple(spec.name for spec in signature.outputs)
        if not inference.checked:
            signature.check_inputs(inference.inputs)
            if not set(inference.outputs) <= set(known):
                raise InvalidArgument(f"outputs are unknown; choose from {sorted(known)}", field="outputs")
        begun, ran = self.recorder.begun(), None
        try:
            self._check_models(inference, model_of)
            ran = self._run(inference, inference.outputs or known, run)
        finally:
            if ran is None:
                self.recorder.failed(begun)
        first = next(iter(inference.inputs.values()))
        self.recorder.succeeded(begun, ran, first.shape[0] if first.ndim else 1)
        return ran

    def _check_models(self, inference: Inference, model_of: ModelOf) -> None:
        """Callers were asked for the right to the models that the chain was checked with: no other one is run."""
        for step in self.chain.steps:
            name = _member(inference, step)
            try:
                found = model_of(name).assignment.model_id
            except NotFound as error:
                raise _not_here(step) from error
            if found not in self.model.members:
                raise _not_here(step)

    def _run(self, inference: Inference, wanted: tuple[str, ...], run: RunModel) -> Ran:
        tensors: dict[str, Array] = dict(inference.inputs)
        seconds = queued = 0.0
        rows = 1
        for stage in ensembles.stages(self.chain, wanted):
            for step in stage:
                ran = _run_step(step, inference, tensors, run)
                tensors.update(ensembles.outputs_of(step, ran.outputs))
                seconds, queued, rows = seconds + ran.seconds, queued + ran.queue_seconds, max(rows, ran.batch_rows)
        return Ran({name: tensors[name] for name in wanted}, seconds, queued, rows)


def _run_step(step: Step, inference: Inference, tensors: dict[str, Array], run: RunModel) -> Ran:
    asked = replace(
        inference,
        deployment=_member(inference, step),
        inputs=ensembles.inputs_of(step, tensors),
        outputs=tuple(step.outputs),
        signature="",
        epoch=None,
        checked=False,
    )
    try:
        return run(asked)
    except NotFound as error:
        raise _not_here(step) from error


def _member(inference: Inference, step: Step) -> str:
    project = inference.deployment.partition("/deployments/")[0]
    return f"{project}/deployments/{step.deployment}"


def _not_here(step: Step) -> Unavailable:
    return Unavailable(
        f"model {step.deployment!r} of the chain is not loaded here; try again in a moment",
        reason="MODEL_LOADING",
        retry_after=0.2,
    )
