"""Between the protocols and the engine: which loaded deployment a request means, and one traced run of it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Protocol

from sealane import telemetry
from sealane.errors import NotFound, Unavailable
from sealane.protocols import naming, tfserving
from sealane.protocols.call import DEFAULT_SIGNATURE, InferenceAnswer, InferenceCall, ModelDescription, Target
from sealane.protocols.sealed import sealed_required
from sealane.rpc.call import Call
from sealane.security.opener import Opened
from sealane.security.sealing_policy import SealingPolicy
from sealane.telemetry import Telemetry
from sealane.tensors import Array, Signature
from sealane_worker.box import BoxState
from sealane_worker.deployment import Assignment, Inference, Model, Served
from sealane_worker.engine import Engine

#: Deployment that the gateway routed a call to; honoured on lanes alone.
ROUTED_DEPLOYMENT = "x-sealane-deployment"

#: Names that callers use, kept while nothing changes.
_KEPT_NAMES = 1024
_ALIVE = (BoxState.READY, BoxState.IDLE, BoxState.RESTARTING)
_PLATFORMS = {"tensorflow": "tensorflow_savedmodel", "litert": "litert_tflite", "onnxruntime": "onnxruntime_onnx"}


#: Hears of calls that ended well; see :meth:`sealane_worker.express.Express.learn`.
Learn = Callable[[Call, Model, Inference, InferenceCall, Opened | None], None]


class Serving:
    """What the servicers of every protocol share."""

    def __init__(self, engine: Engine, telemetry_: Telemetry, node: str, learn: Learn | None = None) -> None:
        self._engine = engine
        self._learn = learn
        self._telemetry = telemetry_
        self._node = node
        self._resolved: dict[tuple[str, str], Model] = {}
        self._resolved_at = -1

    def resolve(self, call: Call, name: str) -> Model | None:
        """The loaded deployment of the caller's project that `name` means; None where there is none.

        A name is a deployment's id, else the id of a model with exactly one deployment here. On a lane the
        gateway has resolved it already, over all workers.

        Raises:
            FailedPrecondition: the model has several deployments here (MODEL_AMBIGUOUS).
            Unavailable: it is on its way here (MODEL_LOADING).
        """
        if call.peer.via_gateway and ROUTED_DEPLOYMENT in call.metadata:
            return self.by_deployment(call, call.metadata[ROUTED_DEPLOYMENT])
        changes = self._engine.changes
        if self._resolved_at != changes:
            self._resolved, self._resolved_at = {}, changes
        resolved, key = self._resolved, (call.caller.project, name)
        model = resolved.get(key) or self._look_up(*key)
        if model is not None and len(resolved) < _KEPT_NAMES:
            resolved[key] = model
        return model if model is not None and _may_use(call, model) else None

    def _look_up(self, project: str, name: str) -> Model | None:
        prefix = f"projects/{project}/deployments/"
        mine = {model.assignment.deployment: model for model in self._engine.offered()}
        coming = self._engine.expected()
        names = {**coming, **{key: model.assignment.model for key, model in mine.items()}}
        known = {key.removeprefix(prefix): names[key].rpartition("/")[2] for key in names if key.startswith(prefix)}
        meant = naming.resolve(name, known)
        if meant is not None and prefix + meant in coming:
            raise Unavailable(
                f"deployment {meant!r} is being loaded here; try again in a moment",
                reason="MODEL_LOADING",
                retry_after=0.2,
            )
        return mine[prefix + meant] if meant is not None else None

    def by_deployment(self, call: Call, deployment: str) -> Model | None:
        """A loaded deployment by its resource name; None too where it is another project's.

        The token decides whose models are seen, whatever a gateway says.
        """
        if not deployment.startswith(f"projects/{call.caller.project}/"):
            return None
        try:
            model = self._engine.model(deployment)
        except NotFound:
            return None
        return model if _may_use(call, model) else None

    def find(self, call: Call, wanted: Target) -> Model | None:
        """As :meth:`resolve`, and None too where another version than the one served is wanted.

        A label was resolved by the gateway; a direct caller's label is unknown here.
        """
        model = self.resolve(call, wanted.model)
        if model is None or (wanted.label and not call.peer.via_gateway):
            return None
        return model if wanted.version in ("", str(model.assignment.version)) else None

    def ready(self, call: Call, wanted: Target) -> bool:
        """Whether the model that is wanted would answer now."""
        try:
            model = self.find(call, wanted)
        except Unavailable:
            return False
        return model is not None and self.alive(model)

    def mine(self, call: Call) -> list[Model]:
        """The loaded deployments of the caller's project that its token may use, by name."""
        prefix = f"projects/{call.caller.project}/deployments/"
        found = [model for model in self._engine.offered() if model.assignment.deployment.startswith(prefix)]
        return sorted(
            (model for model in found if _may_use(call, model)), key=lambda model: model.assignment.deployment
        )

    def coming(self, call: Call) -> list[str]:
        """Ids of the caller's deployments that are on their way."""
        prefix = f"projects/{call.caller.project}/deployments/"
        expected = self._engine.expected()
        names = [name for name, model in expected.items() if name.startswith(prefix) and _may_name(call, model)]
        return sorted(name.removeprefix(prefix) for name in names)

    def served(self, model: Model) -> Served:
        """A loaded deployment with its figures."""
        return self._engine.get(model.assignment.deployment)

    def alive(self, model: Model) -> bool:
        """Whether the model would answer: its process is up, comes up again, or comes with the next call."""
        return self._engine.state(model.assignment.deployment) in _ALIVE

    def run(self, model: Model, call: Call, inference: InferenceCall, outputs: tuple[str, ...]) -> InferenceAnswer:
        """Run once what came in plaintext; inputs and outputs were checked by the protocol's adapter.

        Raises:
            FailedPrecondition: the model's owner wants it sealed (SEALED_REQUIRED).
            SealaneError: see :meth:`sealane_worker.engine.Engine.infer`.
        """
        if self._engine.sealing_required(model):
            raise sealed_required(model.assignment.deployment.rpartition("/")[2])
        return self._run(model, call, inference, outputs)

    def variants(self, model: Model) -> Mapping[str, str]:
        """What runs when a deployment is called; see :meth:`sealane_worker.engine.Engine.variants`."""
        return self._engine.variants(model)

    def digest(self, model: Model, variants: Mapping[str, str] | None = None) -> str:
        """What a deployment serves here, as one digest; empty for a chain whose models are not all here."""
        return self._engine.digest_of(model, self.variants(model) if variants is None else variants)

    def policies(self, model: Model) -> list[SealingPolicy]:
        """What the owners of the models demand that a deployment runs here."""
        return self._engine.policies(model)

    def run_opened(
        self,
        model: Model,
        call: Call,
        inference: InferenceCall,
        outputs: tuple[str, ...],
        *,
        variants: Mapping[str, str],
        opened: Opened,
    ) -> InferenceAnswer:
        """As :meth:`run`, for what came sealed to these variants: nothing else is run.

        What the model keeps from one request to the next, a sequence, is the sender's key's and not the token's: with
        a captured token nobody goes on with it.
        """
        return self._run(model, call, inference, outputs, (variants, opened))

    def _run(
        self,
        model: Model,
        call: Call,
        inference: InferenceCall,
        outputs: tuple[str, ...],
        sealed: tuple[Mapping[str, str], Opened] | None = None,
    ) -> InferenceAnswer:
        bound, opened = sealed or (None, None)
        assignment = model.assignment
        signature = signature_of(model, inference.target.signature)
        everything = len(outputs) == len(signature.outputs)
        asked = Inference(
            deployment=assignment.deployment,
            inputs=inference.inputs,
            deadline=_deadline(call, inference),
            signature=signature.name,
            outputs=() if everything else outputs,
            priority=inference.priority,
            flow=zlib.crc32(call.caller.project.encode()),
            checked=True,
            on_cancel=call.on_cancel,
            caller=call.caller.subject if bound is None else f"{call.caller.subject}\0{call.caller.key_thumbprint}",
            sequence=inference.sequence,
            bound=bound,
        )
        try:
            answer = self._traced(assignment, asked) if telemetry.sampled() else self._engine.infer(asked).outputs
        finally:
            call.load = self._engine.load_of(assignment.deployment)
        if call.ticket and self._learn is not None:
            self._learn(call, model, asked, inference, opened)
        return InferenceAnswer(inference, str(assignment.version), signature.name, answer)

    def _traced(self, assignment: Assignment, asked: Inference) -> dict[str, Array]:
        attributes = {
            telemetry.NODE: self._node,
            telemetry.DEPLOYMENT: assignment.deployment,
            telemetry.VARIANT: assignment.variant,
        }
        with self._telemetry.span(telemetry.SPAN_MODEL, **attributes) as span:
            ran = self._engine.infer(asked)
            if span is not None:
                span.set_attribute(telemetry.BATCH, ran.batch_rows)
                span.set_attribute(telemetry.QUEUE_US, int(ran.queue_seconds * 1e6))
            return ran.outputs


class Found(Protocol):
    """What the servicers of the protocols need to run a request: what it means, and how it is run."""

    def find(self, call: Call, wanted: Target) -> Model | None:
        """The loaded deployment that is wanted; None where there is none."""
        ...

    def run(self, model: Model, call: Call, inference: InferenceCall, outputs: tuple[str, ...]) -> InferenceAnswer:
        """Run once."""
        ...


class BoundServing:
    """For a request that came sealed: the one deployment that its envelope is bound to.

    The name inside the seal must mean it too: a gateway that has a caller seal for another deployment than the one that
    he named gets nothing run.
    """

    def __init__(self, serving: Serving, model: Model, variants: Mapping[str, str], opened: Opened) -> None:
        self._serving = serving
        self._model = model
        self._variants = variants
        self._opened = opened

    def find(self, call: Call, wanted: Target) -> Model | None:
        """The deployment, where that is what is wanted."""
        return self._model if self._model.assignment.is_meant(wanted) else None

    def run(self, model: Model, call: Call, inference: InferenceCall, outputs: tuple[str, ...]) -> InferenceAnswer:
        """Run once; see :meth:`Serving.run_opened`."""
        return self._serving.run_opened(model, call, inference, outputs, variants=self._variants, opened=self._opened)


def _deadline(call: Call, inference: InferenceCall) -> float:
    if not inference.timeout_us:
        return call.deadline
    return min(call.deadline, call.started + inference.timeout_us / 1e6)


def _may_use(call: Call, model: Model) -> bool:
    """Whether the caller's token, if it is limited to some models, is for this one."""
    identity = call.caller
    permission = call.method.access.permission
    return not identity.models or all(identity.may_use(permission, name) for name in model.model_ids)


def _may_name(call: Call, model: str) -> bool:
    return call.caller.may_use(call.method.access.permission, model.rpartition("/")[2])


def signature_of(model: Model, name: str) -> Signature:
    """A signature in the words of TensorFlow Serving, which both protocols' clients know.

    Raises:
        FailedPrecondition: the model has no such signature.
    """
    found = model.signatures.get(name or DEFAULT_SIGNATURE)
    return found or tfserving.find_signature(describe(model, ""), name)


def describe(model: Model, name: str) -> ModelDescription:
    """The model under the name that the caller used."""
    assignment = model.assignment
    return ModelDescription(
        name=name,
        versions=(str(assignment.version),),
        platform=_PLATFORMS.get(assignment.spec.runtime, assignment.spec.runtime),
        signatures=tuple(model.signatures.values()),
    )
