"""What this worker serves: deployments and the boxes that run their models. Knows no gRPC and no wire format.

Loading a new version of a deployment starts it beside the old one; the old one answers until the new one is ready.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from sealane import ensembles
from sealane.errors import FailedPrecondition, NotFound, SealaneError, Unavailable
from sealane.rpc.loads import Load
from sealane.security.sealing_policy import SealingPolicy
from sealane_worker.box import BoxLimits, BoxState
from sealane_worker.chains import LoadedChain, ServedChain
from sealane_worker.deployment import Assignment, Inference, Model, Served
from sealane_worker.loaded import Loaded, NativeModel, entry_of, infer
from sealane_worker.pool import Host, Pool
from sealane_worker.spec import ModelSpec, Ran


class Engine:
    """Deployment name -> loaded model. Every method may be called from any thread."""

    def __init__(self, limits: BoxLimits | None = None, host: Host | None = None) -> None:
        self._pool = Pool(host or Host(limits))
        self._loaded: dict[str, Loaded] = {}
        self._chains: dict[str, LoadedChain] = {}
        self._expected: Mapping[str, str] = {}
        self._lock = threading.Lock()  # guards the table only; never held while a model loads or runs
        self.changes = 0
        """Grows whenever a name may mean something else than before."""
        self.on_change: Callable[[], None] = _nothing
        """Called then, after it has grown."""

    @property
    def pool(self) -> Pool:
        """The models that share this worker's memory."""
        return self._pool

    def load(self, assignment: Assignment) -> Served:
        """Serve `assignment`, replacing what the deployment served before once the new model is ready.

        An assignment of the same digest, version and variant keeps its process and only takes the new epoch.

        Raises:
            FailedPrecondition: the model cannot be loaded, or a higher epoch is served already (STALE_EPOCH);
                what was served goes on being served.
            Unimplemented: its runtime is not installed.
        """
        used = False
        try:
            served, used = self._load(assignment)
        finally:
            if not used and assignment.spec.files is not None:
                assignment.spec.files.give_back()
        return served

    def _load(self, assignment: Assignment) -> tuple[Served, bool]:
        """As :meth:`load`; and whether the assignment's own files are in use."""
        before = self._loaded.get(assignment.deployment)
        if before is not None:
            _refuse_older(before.model.assignment, assignment)
            if _same_model(before, assignment):
                before.pooled.pinned = assignment.pinned
                entry = replace(before, model=Model(assignment, before.model.signatures))
                self._put(entry)
                return _served(entry), False
        pooled = self._pool.add(assignment.spec, pinned=assignment.pinned)
        try:
            entry = entry_of(assignment, pooled)
        except SealaneError:
            pooled.close()
            raise
        replaced = self._put(entry)
        if replaced is not None:
            replaced.pooled.close()
        return _served(entry), True

    def unload(self, deployment: str) -> bool:
        """Stop serving a deployment after its running inference; false where it was not served."""
        with self._lock:
            entry = self._loaded.pop(deployment, None)
            self._changed()
        if entry is not None:
            entry.pooled.close()
        return entry is not None

    def close(self) -> None:
        """Unload everything, also what no deployment but a task has loaded."""
        for deployment in list(self._loaded):
            self.unload(deployment)
        self._pool.close()

    def served(self) -> tuple[Served, ...]:
        """All loaded deployments, in order of their names."""
        return tuple(_served(entry) for _, entry in sorted(self._loaded.items()))

    def chain(self, chains: Iterable[ServedChain]) -> None:
        """Serve these chains and no others; those that are served already go on."""
        with self._lock:
            before = self._chains
            self._chains = {}
            for wanted in chains:
                known = before.get(wanted.deployment)
                same = known is not None and known.model.assignment.epoch == wanted.epoch
                self._chains[wanted.deployment] = known if known and same else LoadedChain.of(wanted)
            self._changed()

    def get(self, deployment: str) -> Served:
        """One loaded deployment, or chain.

        Raises:
            NotFound: not served here.
        """
        chained = self._chains.get(deployment)
        return chained.served() if chained is not None else _served(self._find(deployment))

    def model(self, deployment: str) -> Model:
        """A loaded deployment, or chain, without its figures; costs nothing.

        Raises:
            NotFound: not served here.
        """
        chained = self._chains.get(deployment)
        return chained.model if chained is not None else self._find(deployment).model

    def variants(self, model: Model) -> Mapping[str, str]:
        """What runs when a deployment is called: its name and the variant's digest; of a chain, those of its models.

        The chain itself is there by its epoch, which tells it from another one of the same name.
        """
        if model.chain is None:
            return {model.assignment.deployment: model.assignment.digest}
        members = self._members(model).values()
        digests = {member.assignment.deployment: member.assignment.digest for member in members}
        return {**digests, model.assignment.deployment: str(model.assignment.epoch)}

    @staticmethod
    def digest_of(model: Model, variants: Mapping[str, str]) -> str:
        """One digest of :meth:`variants`; empty for a chain whose models are not all here."""
        if model.chain is None:
            return model.assignment.digest
        names = {name.rpartition("/")[2]: digest for name, digest in variants.items()}
        steps = {step.deployment for step in model.chain.steps}
        return ensembles.digest_of(model.chain, {name: names[name] for name in steps if name in names})

    def sealing_required(self, model: Model) -> bool:
        """Whether the owner of the model, or of one in the chain, refuses plaintext."""
        if model.chain is None:
            return model.assignment.spec.serving.sealing.required
        return any(policy.required for policy in self.policies(model))

    def policies(self, model: Model) -> list[SealingPolicy]:
        """What the owners of the models demand that a deployment runs."""
        models = [model] if model.chain is None else self._members(model).values()
        return [item.assignment.spec.serving.sealing for item in models]

    def _members(self, chained: Model) -> dict[str, Model]:
        """Id of each deployment of a chain that is loaded here -> its model."""
        assert chained.chain is not None
        project = chained.assignment.deployment.partition("/deployments/")[0]
        entries = {
            step.deployment: self._loaded.get(f"{project}/deployments/{step.deployment}")
            for step in chained.chain.steps
        }
        return {name: entry.model for name, entry in entries.items() if entry is not None}

    def expect(self, deployments: Mapping[str, str]) -> None:
        """Say which deployments (name -> model name) are on their way, so that callers are told to wait."""
        with self._lock:
            self._expected = dict(deployments)
            self._changed()

    def expected(self) -> Mapping[str, str]:
        """Deployments on their way that are not loaded yet, name -> model name."""
        return {name: model for name, model in self._expected.items() if name not in self._loaded}

    def models(self) -> tuple[Model, ...]:
        """All loaded deployments without their figures."""
        return tuple(entry.model for entry in list(self._loaded.values()))

    def offered(self) -> tuple[Model, ...]:
        """All that can be called: loaded deployments and chains."""
        return (*self.models(), *(chained.model for chained in self._chains.values()))

    def processes(self) -> tuple[list[int], bool]:
        """Process ids of the models in memory, and whether each runs an inference on one thread."""
        pooled = [entry.pooled for entry in list(self._loaded.values())]
        boxes = [model.box for model in pooled]
        alone = all(_threads_of(model.spec) == 1 for model in pooled)
        return [box.pid for box in boxes if box is not None], alone

    def state(self, deployment: str) -> BoxState:
        """What a deployment would do with a call; CLOSED where it is not served."""
        if deployment in self._chains:
            return BoxState.READY
        entry = self._loaded.get(deployment)
        return entry.pooled.state if entry is not None else BoxState.CLOSED

    def load_of(self, deployment: str) -> Load | None:
        """How busy a deployment, or chain, is; None where it is not served."""
        entry = self._chains.get(deployment) or self._loaded.get(deployment)
        return None if entry is None else entry.recorder.load()

    def native(self, model: Model) -> NativeModel | None:
        """The native front's own way to the process of a model; None where there is none, or each request matters.

        It matters in a sequence, in a chain, and where equal requests share a run. A model that was replaced has none.
        """
        entry = self._loaded.get(model.assignment.deployment)
        replaced = entry is None or entry.model is not model or model.assignment.deployment in self._chains
        return None if entry is None or replaced else entry.native()

    def infer(self, inference: Inference) -> Ran:
        """Check the inputs against the signature and run.

        Raises:
            NotFound: the deployment is not served here.
            InvalidArgument: inputs or output names that the signature does not have.
            FailedPrecondition: unknown signature (SIGNATURE_UNKNOWN), wrong epoch (STALE_ROUTE), quarantined.
            DeadlineExceeded, Unavailable: see :meth:`sealane_worker.box.Box.run`; or it is not any more what it must
                be (VARIANT_CHANGED).
        """
        chained = self._chains.get(inference.deployment)
        if chained is not None:
            _refuse_changed(inference, str(chained.model.assignment.epoch))
            return chained.infer(inference, self.infer, self.model)
        entry = self._bound(inference)
        try:
            return infer(entry, inference)
        except Unavailable as error:
            # Replaced between the look-up and the run: the new one is there already.
            if error.reason != "MODEL_CLOSED":
                raise
            return infer(self._bound(inference), inference)

    def _bound(self, inference: Inference) -> Loaded:
        """What is to run; where it must be something that is not here any more, it is as another one."""
        entry = self._loaded.get(inference.deployment)
        _refuse_changed(inference, entry.model.assignment.digest if entry is not None else "")
        return entry if entry is not None else self._find(inference.deployment)

    def _find(self, deployment: str) -> Loaded:
        entry = self._loaded.get(deployment)
        if entry is None:
            raise NotFound(
                f"deployment {deployment!r} is not served by this worker; ask for a new route",
                reason="DEPLOYMENT_NOT_SERVED",
            )
        return entry

    def _put(self, entry: Loaded) -> Loaded | None:
        with self._lock:
            replaced = self._loaded.get(entry.model.assignment.deployment)
            self._loaded[entry.model.assignment.deployment] = entry
            self._changed()
        return replaced

    def _changed(self) -> None:
        self.changes += 1
        self.on_change()


def _nothing() -> None:
    """Nobody wants to hear of changes."""


def _refuse_changed(inference: Inference, served: str) -> None:
    if inference.bound is not None and inference.bound.get(inference.deployment) != served:
        raise Unavailable(
            "another version is served here, or none, since the request was sealed; nothing ran, seal it again",
            reason="VARIANT_CHANGED",
            retry_after=0.0,
        )


def _threads_of(spec: ModelSpec) -> int:
    return spec.serving.threads or spec.threads


def _refuse_older(served: Assignment, wanted: Assignment) -> None:
    if wanted.epoch < served.epoch:
        raise FailedPrecondition(
            f"deployment {wanted.deployment!r} is served at epoch {served.epoch}, epoch {wanted.epoch} is older; "
            "read the placement again",
            reason="STALE_EPOCH",
        )


def _same_model(before: Loaded, wanted: Assignment) -> bool:
    had = before.model.assignment
    same = (had.digest, had.version, had.variant, had.spec) == (
        wanted.digest,
        wanted.version,
        wanted.variant,
        wanted.spec,
    )
    # Deploying anew is the way out of quarantine.
    return same and before.pooled.state is not BoxState.QUARANTINED


def _served(entry: Loaded) -> Served:
    return Served(
        assignment=entry.model.assignment,
        signatures=entry.model.signatures,
        state=entry.pooled.state,
        footprint_bytes=entry.pooled.footprint_bytes(),
        statistics=entry.recorder.snapshot(),
        loaded=entry.pooled.loaded,
        resident=entry.pooled.resident,
    )
