"""Sealed inference on a worker: open, run, seal. The gateway that carried the envelope learns nothing."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from sealane import telemetry
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import InvalidArgument, NotFound, SealaneError
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.protocols import openinference
from sealane.rpc.call import Call
from sealane.rpc.status import to_status
from sealane.security.envelope import Opened, Opener
from sealane.telemetry import Telemetry
from sealane_worker.deployment import Model
from sealane_worker.introduction import Introduction
from sealane_worker.serving import Serving, signature_of

#: First byte of a sealed answer's plaintext: what follows.
ANSWER, STATUS = b"\x00", b"\x01"


class SealedServicer:
    """``sealane.inference.v1.SealedInferenceService``."""

    def __init__(self, serving: Serving, opener: Opener, introduction: Introduction, telemetry_: Telemetry) -> None:
        self._serving = serving
        self._opener = opener
        self._introduction = introduction
        self._telemetry = telemetry_

    def GetSealingContext(self, request: pb.GetSealingContextRequest, call: Call) -> pb.SealingContext:
        """This worker as the one candidate, for callers that came directly."""
        model = self._serving.resolve(call, request.model)
        if model is None:
            raise NotFound(
                f"deployment {request.model!r} is not served here; ask the gateway", reason="DEPLOYMENT_NOT_SERVED"
            )
        return pb.SealingContext(
            deployment=model.assignment.deployment,
            model_version=f"{model.assignment.model}/versions/{model.assignment.version}",
            candidates=[self._introduction.candidate(model.assignment.digest)],
        )

    def SealedInfer(self, request: pb.SealedInferRequest, call: Call) -> pb.SealedInferResponse:
        """One sealed inference; what goes wrong after opening is sealed too."""
        model = self._serving.by_deployment(call, request.deployment)
        with self._telemetry.span(telemetry.SPAN_OPEN):
            opened = self._opener.open(request, call.caller, model.assignment.digest if model else "")
        assert model is not None  # an envelope for a deployment that is not served never opens
        plaintext = self._run(opened, model, call)
        with self._telemetry.span(telemetry.SPAN_SEAL):
            return opened.seal(plaintext)

    def _run(self, opened: Opened, model: Model, call: Call) -> bytes:
        try:
            return ANSWER + self._infer(opened, model, call)
        except SealaneError as error:
            status: bytes = to_status(error, call.request_id).SerializeToString()
            return STATUS + status

    def _infer(self, opened: Opened, model: Model, call: Call) -> bytes:
        request = oip.ModelInferRequest()
        try:
            request.ParseFromString(opened.plaintext)
        except DecodeError as error:
            raise InvalidArgument("the sealed payload is no ModelInferRequest", reason="MALFORMED") from error
        inference = openinference.decode_request(request)
        # The envelope is bound to a deployment; a model name inside cannot lead elsewhere.
        outputs = openinference.check(inference, signature_of(model, inference.target.signature))
        answer = self._serving.run(model, call, inference, outputs)
        serialized: bytes = openinference.encode_response(answer).SerializeToString()
        return serialized
