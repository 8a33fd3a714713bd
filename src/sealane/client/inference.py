"""Predictions: through the gateway, straight to a worker, sealed or not. One call, plain arrays."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar, Unpack

import numpy as np
from google.protobuf.message import DecodeError

from sealane import telemetry
from sealane.client import calls
from sealane.client.calls import Caller, Request
from sealane.client.gateways import Gateways
from sealane.client.prediction import Form, Inputs, Prediction, PredictOptions, form_of
from sealane.client.session import Session
from sealane.client.workers import Workers
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import InvalidArgument, NotFound
from sealane.protocols import openinference
from sealane.protocols.call import InferenceCall
from sealane.protocols.call import Target as ModelTarget
from sealane.rpc.channel import Target
from sealane.tensors import NUMPY_OF, Array, Signature

if TYPE_CHECKING:
    from sealane.client.sealing import SealedCall, Sealing

T = TypeVar("T")

METADATA_PATH = "/inference.GRPCInferenceService/ModelMetadata"
DEFAULT_SECONDS = 10.0


class Inference:
    """Runs models."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._caller = Caller(session)
        self._workers = Workers(session, self._caller)
        self._sealing: Sealing | None = None
        self._gateways = Gateways(session, self._caller)
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

    def sealed_stream(
        self, model: str, inputs: Iterable[Inputs], **options: Unpack[PredictOptions]
    ) -> Iterator[dict[str, Array]]:
        """Run a model on one input after the other over one sealed stream to one worker.

        The outputs come in the order of the inputs; neither can be reordered, repeated or cut off unseen. Inputs are
        taken as they are sent. A stream is not repeated: what fails ends it.

        Args:
            model: as for :meth:`predict`.
            inputs: as for :meth:`predict`, each.
            options: see :class:`PredictOptions`; `timeout` is for the whole stream, `hedge` has no meaning here.

        Raises:
            SealaneError: as for :meth:`predict`; Unavailable (STREAM_CUT) where the stream ended before its end.
        """
        from sealane.client.sealed_stream import open_stream

        items = iter(inputs)
        try:
            first = self.prepare(model, next(items), {**options, "sealed": True})
        except StopIteration:
            return
        form = form_of(first.call)

        def bodies() -> Iterator[bytes]:
            yield form.body
            for item in items:
                yield form_of(self.prepare(model, item, {**options, "sealed": True}).call).body

        def run(target: Target) -> Iterator[bytes]:
            call = _sealed(first, form, target, direct=options.get("via") == "direct")
            return open_stream(self.sealing, call, bodies(), first.deadline)

        # Opened here, so that a gateway that is away is noticed as such.
        for answer in self._gateways.once(run):
            yield form.decode(answer)

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
        sealed, require = options.get("sealed", False), options.get("require", {})
        if require and not sealed:
            raise InvalidArgument("only sealed calls can require where they are read; set sealed=True", field="require")
        call = InferenceCall(
            ModelTarget(model, options.get("version", ""), signature=options.get("signature", "")),
            self._arrays(model, inputs, deadline, source),
            tuple(options.get("outputs", ())),
        )
        hedge, affinity = options.get("hedge", 0.0), options.get("affinity", "")
        return Prediction(call, deadline, sealed, require, hedge, affinity)

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

            answer = self._caller.repeat(lambda: ask(source) if source else self._gateways.once(ask), deadline)
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
        return self._gateways.repeat(lambda target: self._once(prediction, target, direct=direct), prediction.deadline)

    def _on_workers(self, prediction: Prediction) -> dict[str, Array]:
        """One try at each worker of the lease, the cheapest first."""
        form, model, begun = form_of(prediction.call), prediction.call.target.model, time.monotonic()
        request = Request(form.method, form.body, affinity=prediction.affinity)
        answer = self._workers.send(model, request, prediction.deadline, hedge=self._hedge_after(prediction))
        self._workers.slowness(model).took(time.monotonic() - begun)
        return _decoded(form, answer)

    def _hedge_after(self, prediction: Prediction) -> float:
        """Seconds; 0 for never, which is also where too little is known of how long answers take."""
        if prediction.hedge is True:
            return self._workers.slowness(prediction.call.target.model).p95
        return prediction.hedge

    def _once(self, prediction: Prediction, target: Target, *, direct: bool) -> dict[str, Array]:
        call, deadline = prediction.call, prediction.deadline
        calls.remaining(deadline)
        form = form_of(call)
        if not prediction.sealed:
            request = Request(form.method, form.body, affinity=prediction.affinity)
            return _decoded(form, self._caller.send(target, request, deadline))
        begun = time.monotonic()
        sealed = _sealed(prediction, form, target, direct=direct, hedge_after=self._hedge_after(prediction))
        answer = self.sealing.run(sealed, deadline)
        if direct:
            self._workers.slowness(call.target.model).took(time.monotonic() - begun)
        return _decoded(form, answer)

    def close(self) -> None:
        """End what workers keep for this client."""
        if self._sealing is not None:
            self._sealing.close()

    @property
    def gateways(self) -> Gateways:
        """The site's gateways."""
        return self._gateways

    @property
    def caller(self) -> Caller:
        """Sends requests."""
        return self._caller

    @property
    def sealing(self) -> Sealing:
        """Seals; made at the first sealed call, so that whoever never seals does not pay for its imports."""
        from sealane.client.sealing import Sealing

        if self._sealing is None:
            self._sealing = Sealing(self._session, self._caller)
        return self._sealing


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


def _decoded(form: Form, answer: bytes) -> dict[str, Array]:
    try:
        return form.decode(answer)
    except DecodeError as error:
        raise InvalidArgument("the answer is malformed; is this a Sealane endpoint?") from error


def _sealed(
    prediction: Prediction, form: Form, target: Target, *, direct: bool, hedge_after: float = 0.0
) -> SealedCall:
    from sealane.client.sealing import SealedCall
    from sealane.client.sealing_context import Asked

    wanted = prediction.call.target
    return SealedCall(
        asked=Asked(wanted.model, target, wanted.version, require=prediction.require),
        method=form.method,
        plaintext=form.body,
        direct=direct,
        session=prediction.sealed == "session",
        hedge_after=hedge_after,
        affinity=prediction.affinity,
    )
