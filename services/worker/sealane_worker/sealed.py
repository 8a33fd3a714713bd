"""Sealed inference on a worker: open, run, seal. The gateway that carried the envelope learns nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TypeVar, cast

from google.protobuf.message import DecodeError, Message

from sealane import telemetry
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import InvalidArgument, NotFound, Unavailable
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.protocols import sealed
from sealane.rpc.call import Call
from sealane.rpc.dispatch import Dispatcher, carried
from sealane.rpc.status import to_status, translate
from sealane.security import envelope, sealed_session
from sealane.security.envelope import ANSWER, STATUS
from sealane.security.opener import Opened, Opener
from sealane.telemetry import Telemetry
from sealane_worker.deployment import Model
from sealane_worker.front import infer
from sealane_worker.front_tfserving import PredictionServicer
from sealane_worker.introduction import Introduction
from sealane_worker.serving import BoundServing, Serving

log = logging.getLogger("sealane.worker.sealed")

_PREDICTION = "/tensorflow.serving.PredictionService/"
#: Paths whose bodies are not parsed before the servicer has them.
RAW = frozenset({sealed.INFER})
M = TypeVar("M", bound=Message)


class SealedServicer:
    """``sealane.inference.v1.SealedInferenceService``."""

    def __init__(self, serving: Serving, opener: Opener, introduction: Introduction, telemetry_: Telemetry) -> None:
        self._serving = serving
        self._opener = opener
        self._introduction = introduction
        self._telemetry = telemetry_
        self._dispatcher: Dispatcher | None = None

    def attach(self, dispatcher: Dispatcher) -> None:
        """Say what serves the messages of streams; it serves the streams too, so it is there later."""
        self._dispatcher = dispatcher

    def GetSealingContext(self, request: pb.GetSealingContextRequest, call: Call) -> pb.SealingContext:
        """This worker as the one candidate, for callers that came directly."""
        model = self._serving.resolve(call, request.model)
        version = str(model.assignment.version) if model is not None else ""
        if model is None or request.label or request.version not in ("", version):
            raise NotFound(
                f"deployment {request.model!r} is not served here; ask the gateway", reason="DEPLOYMENT_NOT_SERVED"
            )
        return pb.SealingContext(
            deployment=model.assignment.deployment,
            model_version=f"{model.assignment.model}/versions/{version}",
            candidates=[self._introduction.candidate(self._serving.digest(model), self._serving.policies(model))],
        )

    def SealedInfer(self, request: None, call: Call) -> pb.SealedInferResponse:
        """One sealed inference; what goes wrong after opening is sealed too."""
        head, chunks = envelope.parsed(call.body or b"")
        model, digest = self._bound_to(head, call)
        with self._telemetry.span(telemetry.SPAN_OPEN):
            opened = self._opener.open(head, call.caller, digest, chunks)
        assert model is not None  # an envelope for a deployment that is not served never opens
        plaintext = ANSWER if opened.end else self._run(opened, model, call)
        with self._telemetry.span(telemetry.SPAN_SEAL):
            return opened.seal(plaintext)

    def OpenSealedSession(self, request: pb.OpenSealedSessionRequest, call: Call) -> pb.OpenSealedSessionResponse:
        """Keep a session from now on."""
        _, digest = self._bound_to(request.envelope, call)
        opened = self._opener.open_session(request.envelope, call.caller, digest)
        told = pb.SealedSession(
            lifetime_seconds=int(sealed_session.LIFETIME_SECONDS), max_requests=sealed_session.MAX_REQUESTS
        )
        return pb.OpenSealedSessionResponse(answer=opened.seal(ANSWER + told.SerializeToString()))

    def SealedInferStream(self, bodies: Iterator[bytes], call: Call) -> Iterator[bytes]:
        """Each message of the stream is a call of its own; they run one after the other."""
        if self._dispatcher is None:
            raise Unavailable("not ready; try again in a moment")
        session_id = b""
        try:
            for body in bodies:
                first = not session_id
                path, request = sealed.step_of_stream(body, first=first)
                route = self._dispatcher.route(path)
                answer = self._dispatcher.unary(route, carried(call, route.method, request))
                if first:  # it opened, so it is this caller's
                    session_id = pb.OpenSealedSessionRequest.FromString(request).envelope.request_id
                yield sealed.answer_of_stream(answer, first=first)
        finally:
            self._opener.end_session(session_id)

    def _bound_to(self, request: pb.SealedInferRequest, call: Call) -> tuple[Model | None, str]:
        """What the envelope's deployment serves here, and its digest; empty where it serves nothing."""
        model = self._serving.by_deployment(call, request.deployment)
        return model, self._serving.digest(model) if model is not None else ""

    def _run(self, opened: Opened, model: Model, call: Call) -> bytes:
        try:
            return ANSWER + self._infer(opened, BoundServing(self._serving, model), call)
        except Exception as error:  # the translator of what is said inside the seal
            told = translate(error, call.request_id)
            if told.kind == "INTERNAL":
                # Not its text and not its frames: they may hold what was sealed.
                log.error(
                    "unexpected failure in a sealed call", extra={"kind": type(error).__name__, "id": call.request_id}
                )
            status: bytes = to_status(told, call.request_id).SerializeToString()
            return STATUS + status

    def _infer(self, opened: Opened, serving: BoundServing, call: Call) -> bytes:
        if not opened.method.startswith(_PREDICTION):
            return infer(serving, _parse(oip.ModelInferRequest(), opened.plaintext), call).SerializeToString()
        prediction = PredictionServicer(serving)
        answer: Message
        match opened.method.removeprefix(_PREDICTION):
            case "Predict":
                answer = prediction.Predict(_parse(tfs.PredictRequest(), opened.plaintext), call)
            case "Classify":
                answer = prediction.Classify(_parse(tfs.ClassificationRequest(), opened.plaintext), call)
            case "Regress":
                answer = prediction.Regress(_parse(tfs.RegressionRequest(), opened.plaintext), call)
            case _:
                answer = prediction.MultiInference(_parse(tfs.MultiInferenceRequest(), opened.plaintext), call)
        return answer.SerializeToString()


def _parse(message: M, content: bytes | bytearray) -> M:
    try:
        message.ParseFromString(cast(bytes, content))  # it takes any buffer
    except DecodeError:
        raise InvalidArgument(
            f"the sealed payload is no {message.DESCRIPTOR.name}; generate it with a protobuf library",
            reason="MALFORMED",
        ) from None
    return message
