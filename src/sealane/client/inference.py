"""Predictions: through the gateway, straight to a worker, sealed or not. One call, plain arrays."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypedDict, TypeVar, Unpack

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from sealane import telemetry
from sealane.client import calls
from sealane.client.calls import Caller, Request
from sealane.client.routes import Routes
from sealane.client.session import Session
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import MODEL_CRASHED, InvalidArgument, NotFound, SealaneError, Unavailable
from sealane.protocols import openinference
from sealane.protocols.call import InferenceCall
from sealane.protocols.call import Target as ModelTarget
from sealane.rpc.channel import Target
from sealane.tensors import NUMPY_OF, Array, Signature

if TYPE_CHECKING:
    from sealane.client.sealing import Sealing

T = TypeVar("T")

INFER_PATH = "/inference.GRPCInferenceService/ModelInfer"
METADATA_PATH = "/inference.GRPCInferenceService/ModelMetadata"
PREDICT_PATH = "/tensorflow.serving.PredictionService/Predict"
DEFAULT_SECONDS = 10.0
#: A worker's answers that mean the lease is old: the deployment runs elsewhere by now.
_MOVED = frozenset({"MODEL_NOT_FOUND", "DEPLOYMENT_NOT_SERVED"})

Requirement = Mapping[str, str | Sequence[str]]
"""Attribute of a worker's signed statement (tier, zone, region, pool, clearance, node) -> value, or values allowed."""

Inputs = Mapping[str, npt.ArrayLike] | npt.ArrayLike
"""Arrays by input name; or one array, for a model with one input."""


class PredictOptions(TypedDict, total=False):
    """How to predict; everything has a default."""

    via: Literal["gateway", "direct"]
    """Through the gateway (default), or straight to a worker by a routing lease."""
    sealed: bool
    """Seal the payload so that only the chosen workers can read it."""
    timeout: float
    """Seconds for everything, retries included; default 10."""
    signature: str
    """Signature to run; not for sealed calls. Default: the model's default one."""
    outputs: Sequence[str]
    """Outputs wanted; default: all."""
    version: str
    """Version that must be serving, as digits; default: whatever the deployment serves."""
    require: Requirement
    """For sealed calls: what a worker's signed statement must say, such as ``{"tier": "edge"}``."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One prediction under way."""

    call: InferenceCall
    deadline: float
    sealed: bool
    require: Requirement = field(default_factory=dict)


class Inference:
    """Runs models."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._caller = Caller(session)
        self._routes = Routes(session)
        self._sealing: Sealing | None = None
        self._gateways: tuple[Target, ...] = ()
        self._turn = 0
        self._signatures: dict[str, Signature] = {}

    def predict(self, model: str, inputs: Inputs, **options: Unpack[PredictOptions]) -> dict[str, Array]:
        """Run a model once.

        Unsealed calls are repeated on UNAVAILABLE inside the timeout, but only once where it was the model that
        crashed. A sealed request is sealed anew for every attempt, and none runs twice on one worker.

        Args:
            model: deployment id, or id of a model with exactly one deployment.
            inputs: arrays by input name, each with the batch in front; or one array for a model with one
                input. Arrays travel as they are; lists get the datatype that the model takes.
            options: see :class:`PredictOptions`.

        Returns:
            Arrays by output name.

        Raises:
            InvalidArgument: inputs that the model cannot run.
            NotFound: no such model.
            Unavailable: nobody serves it; `metadata["constraint"]` names what forbids it.
            DeadlineExceeded: the time is over.
        """
        prediction = self.prepare(model, inputs, options)
        if options.get("via", "gateway") == "gateway":
            return self._by_gateway(prediction)
        if prediction.sealed:
            # The gateway settles who may be sealed to; the payload goes to the worker itself.
            return self._by_gateway(prediction, direct=True)
        return self._caller.repeat(lambda: self._on_workers(prediction), prediction.deadline)

    def predict_traced(
        self, model: str, inputs: Inputs, **options: Unpack[PredictOptions]
    ) -> tuple[dict[str, Array], str]:
        """As :meth:`predict`, recorded in every hop; returns the outputs and the trace id."""
        with self.traced() as trace_id:
            return self.predict(model, inputs, **options), trace_id

    @contextlib.contextmanager
    def traced(self) -> Iterator[str]:
        """Record every call inside; gives the trace id."""
        root = telemetry.new_traceparent(True)
        entered = telemetry.enter(root)
        try:
            with self._session.telemetry.span("client.predict"):
                yield root.split("-")[1]
        finally:
            telemetry.leave(entered)

    def signature(self, model: str, timeout: float = DEFAULT_SECONDS) -> Signature:
        """What a model takes and gives by default, from the gateway; remembered."""
        return self._signature(model, None, time.monotonic() + timeout)

    def at(self, address: str, tls_name: str, model: str) -> WorkerModel:
        """A model on a worker that the caller knows: needs neither gateway nor scheduler.

        Args:
            address: ``host:port`` of the worker.
            tls_name: name in its certificate, ``<node>.node.sealane``.
            model: deployment id, or id of a model with one deployment there.
        """
        return WorkerModel(self, Target(address, self._session.site.trust_bundle, tls_name), model)

    def prepare(self, model: str, inputs: Inputs, options: PredictOptions, source: Target | None = None) -> Prediction:
        """A prediction from what a caller gave; names and datatypes are asked of `source` where they are missing."""
        deadline = time.monotonic() + options.get("timeout", DEFAULT_SECONDS)
        signature, sealed = options.get("signature", ""), options.get("sealed", False)
        if sealed and signature:
            raise InvalidArgument("a sealed call runs the default signature; leave signature out", field="signature")
        call = InferenceCall(
            ModelTarget(model, options.get("version", ""), signature=signature),
            self._arrays(model, inputs, deadline, source),
            tuple(options.get("outputs", ())),
        )
        return Prediction(call, deadline, sealed, options.get("require", {}))

    def _arrays(self, model: str, inputs: Inputs, deadline: float, source: Target | None) -> dict[str, Array]:
        if isinstance(inputs, Mapping):
            arrays = {name: value for name, value in inputs.items() if isinstance(value, np.ndarray)}
            if len(arrays) == len(inputs):
                return arrays
        signature = self._signature(model, source, deadline)
        if not isinstance(inputs, Mapping):
            if len(signature.inputs) != 1:
                names = [spec.name for spec in signature.inputs]
                raise InvalidArgument(f"{model!r} has the inputs {names}; give a dict of arrays", field="inputs")
            inputs = {signature.inputs[0].name: inputs}
        types = {spec.name: NUMPY_OF[spec.datatype] for spec in signature.inputs}
        return {
            name: value if isinstance(value, np.ndarray) else np.asarray(value, types.get(name))
            for name, value in inputs.items()
        }

    def _signature(self, model: str, source: Target | None, deadline: float) -> Signature:
        """From `source`, or from a gateway."""
        key = f"{source.address if source else ''}/{model}"
        if key not in self._signatures:
            request = Request(METADATA_PATH, oip.ModelMetadataRequest(name=model).SerializeToString())

            def ask(target: Target) -> bytes:
                return self._caller.send(target, request, deadline)

            answer = self._caller.repeat(lambda: ask(source) if source else self._at_gateway(ask), deadline)
            found = openinference.decode_metadata(oip.ModelMetadataResponse.FromString(answer)).signature()
            if found is None:
                raise NotFound(f"{model!r} has no default signature; give a dict of arrays", reason="NO_SIGNATURE")
            self._signatures[key] = found
        return self._signatures[key]

    def run(self, prediction: Prediction, target: Target) -> dict[str, Array]:
        """Run at one target, again while it is UNAVAILABLE and there is time."""
        return self._caller.repeat(lambda: self._once(prediction, target, direct=False), prediction.deadline)

    def _by_gateway(self, prediction: Prediction, *, direct: bool = False) -> dict[str, Array]:
        """The same at the gateways; `direct`: see :class:`SealedCall`."""
        return self._caller.repeat(
            lambda: self._at_gateway(lambda target: self._once(prediction, target, direct=direct)), prediction.deadline
        )

    def _at_gateway(self, attempt: Callable[[Target], T]) -> T:
        """One attempt; where the gateway is away, the next one is at another."""
        if not self._gateways:
            self._gateways = self._session.targets("inference")
            self._turn = random.randrange(len(self._gateways))  # noqa: S311  # only so that clients spread
        turn = self._turn
        try:
            return attempt(self._gateways[turn % len(self._gateways)])
        except Unavailable:
            if self._turn == turn:  # else another thread has seen it before
                self._turn = turn + 1
            raise

    def _on_workers(self, prediction: Prediction) -> dict[str, Array]:
        """One try at each worker of the lease, in random order so that callers spread."""
        model = prediction.call.target.model
        targets = self._routes.targets(model, calls.remaining(prediction.deadline))
        random.shuffle(targets)
        failure: SealaneError | None = None
        for target in targets:
            try:
                return self._once(prediction, target, direct=False)
            except SealaneError as error:
                # What crashed one copy of the model is not shown to the next one of the lease.
                if error.reason == MODEL_CRASHED or (calls.final(error) and error.reason not in _MOVED):
                    raise
                failure = error
        self._routes.expire(model)
        raise (
            failure
            if isinstance(failure, Unavailable)
            else Unavailable(f"the workers of {model!r} have changed; retry", reason="ROUTE_CHANGED")
        )

    def _once(self, prediction: Prediction, target: Target, *, direct: bool) -> dict[str, Array]:
        call, deadline = prediction.call, prediction.deadline
        calls.remaining(deadline)
        try:
            if prediction.sealed:
                return self._once_sealed(prediction, target, direct=direct)
            if call.target.signature:
                return self._once_signature(call, target, deadline)
            request = Request(INFER_PATH, openinference.encode_request(call).SerializeToString())
            return _decode(self._caller.send(target, request, deadline))
        except DecodeError as error:
            raise InvalidArgument("the answer is malformed; is this a Sealane endpoint?") from error

    def _once_sealed(self, prediction: Prediction, target: Target, *, direct: bool) -> dict[str, Array]:
        # Imported at the first sealed call: whoever never seals does not pay for it.
        from sealane.client.sealing import SealedCall, Sealing

        if self._sealing is None:
            self._sealing = Sealing(self._session, self._caller)
        call = prediction.call
        plaintext = openinference.encode_request(call).SerializeToString()
        sealed = SealedCall(call.target.model, plaintext, target, prediction.require, direct)
        return _decode(self._sealing.run(sealed, prediction.deadline))

    def _once_signature(self, call: InferenceCall, target: Target, deadline: float) -> dict[str, Array]:
        # The Open Inference Protocol has no word for signatures; TensorFlow Serving has.
        from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
        from sealane.protocols import tfserving

        request = Request(PREDICT_PATH, tfserving.encode_request(call).SerializeToString())
        answer = self._caller.send(target, request, deadline)
        return tfserving.decode_response(tfs.PredictResponse.FromString(answer))


class WorkerModel:
    """A model on one known worker."""

    def __init__(self, inference: Inference, target: Target, model: str) -> None:
        self._inference = inference
        self._target = target
        self._model = model

    def predict(self, inputs: Inputs, **options: Unpack[PredictOptions]) -> dict[str, Array]:
        """Run it once; as :meth:`Inference.predict`, `via` aside."""
        prediction = self._inference.prepare(self._model, inputs, options, self._target)
        return self._inference.run(prediction, self._target)


def _decode(answer: bytes) -> dict[str, Array]:
    return openinference.decode_response(oip.ModelInferResponse.FromString(answer))
