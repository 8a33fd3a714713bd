"""What this worker serves: deployments and the boxes that run their models. Knows no gRPC and no wire format.

Loading a new version of a deployment starts it beside the old one; the old one answers until the new one is ready.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from sealane.errors import FailedPrecondition, InvalidArgument, NotFound, SealaneError, Unavailable
from sealane.tensors import Array, Signature
from sealane_worker.box import BoxLimits, BoxState
from sealane_worker.child import LoadedModel
from sealane_worker.pool import Host, Pool, PooledModel
from sealane_worker.signatures import pick_signature
from sealane_worker.spec import ModelSpec, Ran, Run
from sealane_worker.statistics import RunStatistics, StatisticsRecorder


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the scheduler wants served here.

    Attributes:
        deployment: resource name of the deployment.
        model: resource name of the model.
        version: number of the model's version.
        variant: name of the variant (``savedmodel``, ``litert-int8``, ...).
        digest: the variant's manifest digest, ``sha256:`` and hex.
        epoch: placement epoch; a call that carries another was routed by an outdated table.
        spec: runtime, local path, threads, how it is served.
        pinned: whether it stays in memory however long nobody calls it.
    """

    deployment: str
    model: str
    version: int
    variant: str
    digest: str
    epoch: int
    spec: ModelSpec
    pinned: bool = False

    @property
    def model_id(self) -> str:
        """Last part of the model's name."""
        return self.model.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Served:
    """A deployment that this worker has loaded."""

    assignment: Assignment
    signatures: Mapping[str, Signature]
    state: BoxState
    footprint_bytes: int
    statistics: RunStatistics
    loaded: LoadedModel
    resident: bool = True


@dataclass(frozen=True, slots=True)
class Model:
    """What answering a request needs to know of a loaded deployment."""

    assignment: Assignment
    signatures: Mapping[str, Signature]


@dataclass(frozen=True, slots=True)
class Inference:
    """One inference asked of a deployment.

    Attributes:
        deployment: resource name.
        inputs: tensors by name.
        deadline: ``time.monotonic()`` value.
        signature: signature name; empty for the default one.
        outputs: names wanted; empty for all.
        epoch: the placement epoch that the caller's route carries; none where there is no route.
        priority: 1 is the highest; 0 takes the model's default.
        flow: number of the project that asks.
        checked: set where inputs and outputs were checked against the signature already, as the
            adapters of the foreign protocols do in their own words.
    """

    deployment: str
    inputs: Mapping[str, Array]
    deadline: float
    signature: str = ""
    outputs: tuple[str, ...] = ()
    epoch: int | None = None
    priority: int = 0
    flow: int = 0
    checked: bool = False


@dataclass(frozen=True, slots=True)
class _Loaded:
    model: Model
    pooled: PooledModel
    recorder: StatisticsRecorder


class Engine:
    """Deployment name -> loaded model. Every method may be called from any thread."""

    def __init__(self, limits: BoxLimits | None = None, host: Host | None = None) -> None:
        self._pool = Pool(host or Host(limits))
        self._loaded: dict[str, _Loaded] = {}
        self._expected: Mapping[str, str] = {}
        self._lock = threading.Lock()  # guards the table only; never held while a model loads or runs
        self.changes = 0
        """Grows whenever a name may mean something else than before."""

    def load(self, assignment: Assignment) -> Served:
        """Serve `assignment`, replacing what the deployment served before once the new model is ready.

        An assignment of the same digest, version and variant keeps its process and only takes the new epoch.

        Raises:
            FailedPrecondition: the model cannot be loaded, or a higher epoch is served already (STALE_EPOCH);
                what was served goes on being served.
            Unimplemented: its runtime is not installed.
        """
        before = self._loaded.get(assignment.deployment)
        if before is not None:
            _refuse_older(before.model.assignment, assignment)
            if _same_model(before, assignment):
                before.pooled.pinned = assignment.pinned
                entry = _Loaded(Model(assignment, before.model.signatures), before.pooled, before.recorder)
                self._put(entry)
                return _served(entry)
        pooled = self._pool.add(assignment.spec, pinned=assignment.pinned)
        signatures = {signature.name: signature for signature in pooled.loaded.signatures}
        entry = _Loaded(Model(assignment, signatures), pooled, StatisticsRecorder())
        replaced = self._put(entry)
        if replaced is not None:
            replaced.pooled.close()
        return _served(entry)

    def unload(self, deployment: str) -> bool:
        """Stop serving a deployment after its running inference; false where it was not served."""
        with self._lock:
            entry = self._loaded.pop(deployment, None)
            self.changes += 1
        if entry is not None:
            entry.pooled.close()
        return entry is not None

    def close(self) -> None:
        """Unload everything."""
        for deployment in list(self._loaded):
            self.unload(deployment)

    def served(self) -> tuple[Served, ...]:
        """All loaded deployments, in order of their names."""
        return tuple(_served(entry) for _, entry in sorted(self._loaded.items()))

    def get(self, deployment: str) -> Served:
        """One loaded deployment.

        Raises:
            NotFound: not served here.
        """
        return _served(self._find(deployment))

    def model(self, deployment: str) -> Model:
        """A loaded deployment without its figures; costs nothing.

        Raises:
            NotFound: not served here.
        """
        return self._find(deployment).model

    def expect(self, deployments: Mapping[str, str]) -> None:
        """Say which deployments (name -> model name) are on their way, so that callers are told to wait."""
        with self._lock:
            self._expected = dict(deployments)
            self.changes += 1

    def expected(self) -> Mapping[str, str]:
        """Deployments on their way that are not loaded yet, name -> model name."""
        return {name: model for name, model in self._expected.items() if name not in self._loaded}

    def models(self) -> tuple[Model, ...]:
        """All loaded deployments without their figures."""
        return tuple(entry.model for entry in list(self._loaded.values()))

    def processes(self) -> tuple[list[int], bool]:
        """Process ids of the models in memory, and whether each runs an inference on one thread."""
        pooled = [entry.pooled for entry in list(self._loaded.values())]
        boxes = [model.box for model in pooled]
        alone = all(_threads_of(model.spec) == 1 for model in pooled)
        return [box.pid for box in boxes if box is not None], alone

    def state(self, deployment: str) -> BoxState:
        """What a deployment would do with a call; CLOSED where it is not served."""
        entry = self._loaded.get(deployment)
        return entry.pooled.state if entry is not None else BoxState.CLOSED

    def infer(self, inference: Inference) -> Ran:
        """Check the inputs against the signature and run.

        Raises:
            NotFound: the deployment is not served here.
            InvalidArgument: inputs or output names that the signature does not have.
            FailedPrecondition: unknown signature (SIGNATURE_UNKNOWN), wrong epoch (STALE_ROUTE), quarantined.
            DeadlineExceeded, Unavailable: see :meth:`sealane_worker.box.Box.run`.
        """
        entry = self._find(inference.deployment)
        try:
            return _infer(entry, inference)
        except Unavailable as error:
            # Replaced between the look-up and the run: the new one is there already.
            if error.reason != "MODEL_CLOSED":
                raise
            return _infer(self._find(inference.deployment), inference)

    def _find(self, deployment: str) -> _Loaded:
        entry = self._loaded.get(deployment)
        if entry is None:
            raise NotFound(
                f"deployment {deployment!r} is not served by this worker; ask for a new route",
                reason="DEPLOYMENT_NOT_SERVED",
            )
        return entry

    def _put(self, entry: _Loaded) -> _Loaded | None:
        with self._lock:
            replaced = self._loaded.get(entry.model.assignment.deployment)
            self._loaded[entry.model.assignment.deployment] = entry
            self.changes += 1
        return replaced


def _threads_of(spec: ModelSpec) -> int:
    return spec.serving.threads or spec.threads


def _refuse_older(served: Assignment, wanted: Assignment) -> None:
    if wanted.epoch < served.epoch:
        raise FailedPrecondition(
            f"deployment {wanted.deployment!r} is served at epoch {served.epoch}, epoch {wanted.epoch} is older; "
            "read the placement again",
            reason="STALE_EPOCH",
        )


def _same_model(before: _Loaded, wanted: Assignment) -> bool:
    had = before.model.assignment
    same = (had.digest, had.version, had.variant, had.spec) == (
        wanted.digest,
        wanted.version,
        wanted.variant,
        wanted.spec,
    )
    # Deploying anew is the way out of quarantine.
    return same and before.pooled.state is not BoxState.QUARANTINED


def _served(entry: _Loaded) -> Served:
    return Served(
        assignment=entry.model.assignment,
        signatures=entry.model.signatures,
        state=entry.pooled.state,
        footprint_bytes=entry.pooled.footprint_bytes(),
        statistics=entry.recorder.snapshot(),
        loaded=entry.pooled.loaded,
        resident=entry.pooled.resident,
    )


def _infer(entry: _Loaded, inference: Inference) -> Ran:
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
        inference.inputs, signature.name, inference.deadline, inference.outputs, inference.priority, inference.flow
    )
    try:
        ran = entry.pooled.run(run)
    except SealaneError:
        entry.recorder.failed()
        raise
    entry.recorder.succeeded(ran.seconds, time.time())
    return ran


def _check_outputs(signature: Signature, wanted: tuple[str, ...]) -> None:
    known = {spec.name for spec in signature.outputs}
    unknown = sorted(set(wanted) - known)
    if unknown or len(set(wanted)) != len(wanted):
        raise InvalidArgument(
            f"outputs {unknown or sorted(wanted)} are unknown or asked for twice; choose from {sorted(known)}",
            reason="OUTPUT_UNKNOWN",
            field="outputs",
        )
