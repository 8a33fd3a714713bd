"""Between the protocols and the engine: which loaded deployment a request means, and one traced run of it."""

from __future__ import annotations

from sealane import telemetry
from sealane.errors import Unavailable
from sealane.protocols import naming, tfserving
from sealane.protocols.call import InferenceAnswer, InferenceCall, ModelDescription, Target
from sealane.rpc.call import Call
from sealane.telemetry import Telemetry
from sealane.tensors import Signature
from sealane_worker.box import BoxState
from sealane_worker.engine import Engine, Inference, Model

#: Deployment that the gateway routed a call to; honoured on lanes alone.
ROUTED_DEPLOYMENT = "x-sealane-deployment"

_PLATFORMS = {"tensorflow": "tensorflow_savedmodel", "litert": "litert_tflite"}


class Serving:
    """What the servicers of every protocol share."""

    def __init__(self, engine: Engine, telemetry_: Telemetry, node: str) -> None:
        self._engine = engine
        self._telemetry = telemetry_
        self._node = node

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
        prefix = f"projects/{call.caller.project}/deployments/"
        mine = {model.assignment.deployment: model for model in self._engine.models()}
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
        return next((model for model in self._engine.models() if model.assignment.deployment == deployment), None)

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

    def alive(self, model: Model) -> bool:
        """Whether the model's process is up, or coming up again after a crash."""
        return self._engine.state(model.assignment.deployment) in (BoxState.READY, BoxState.RESTARTING)

    def run(self, model: Model, call: Call, inference: InferenceCall, outputs: tuple[str, ...]) -> InferenceAnswer:
        """Run once; inputs and outputs were checked by the protocol's adapter.

        Raises:
            SealaneError: see :meth:`sealane_worker.engine.Engine.infer`.
        """
        assignment = model.assignment
        signature = signature_of(model, inference.target.signature)
        attributes = {
            telemetry.NODE: self._node,
            telemetry.DEPLOYMENT: assignment.deployment,
            telemetry.VARIANT: assignment.variant,
        }
        everything = outputs == tuple(spec.name for spec in signature.outputs)
        with self._telemetry.span(telemetry.SPAN_MODEL, **attributes):
            answer = self._engine.infer(
                Inference(
                    deployment=assignment.deployment,
                    inputs=inference.inputs,
                    deadline=call.deadline,
                    signature=signature.name,
                    outputs=() if everything else outputs,
                    checked=True,
                )
            )
        return InferenceAnswer(inference, str(assignment.version), signature.name, answer)


def signature_of(model: Model, name: str) -> Signature:
    """A signature in the words of TensorFlow Serving, which both protocols' clients know.

    Raises:
        FailedPrecondition: the model has no such signature.
    """
    return tfserving.find_signature(describe(model, ""), name)


def describe(model: Model, name: str) -> ModelDescription:
    """The model under the name that the caller used."""
    assignment = model.assignment
    return ModelDescription(
        name=name,
        versions=(str(assignment.version),),
        platform=_PLATFORMS.get(assignment.spec.runtime, assignment.spec.runtime),
        signatures=tuple(model.signatures.values()),
    )
