"""Servicers of the foreign protocols on a worker: TensorFlow Serving and Open Inference. Translation only."""

from __future__ import annotations

import importlib.metadata

from grpc_health.v1 import health_pb2

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import Target
from sealane.rpc.call import Call
from sealane.rpc.health import Health
from sealane_worker.engine import Model
from sealane_worker.serving import Serving, describe, signature_of

SERVING = health_pb2.HealthCheckResponse.SERVING


class OpenInferenceServicer:
    """``inference.GRPCInferenceService``."""

    def __init__(self, serving: Serving, health: Health) -> None:
        self._serving = serving
        self._health = health
        self._version = importlib.metadata.version("sealane")

    def ServerLive(self, request: oip.ServerLiveRequest, call: Call) -> oip.ServerLiveResponse:
        """Whether the process answers."""
        return oip.ServerLiveResponse(live=True)

    def ServerReady(self, request: oip.ServerReadyRequest, call: Call) -> oip.ServerReadyResponse:
        """Whether new work is welcome."""
        return oip.ServerReadyResponse(ready=self._health.status("").status == SERVING)

    def ServerMetadata(self, request: oip.ServerMetadataRequest, call: Call) -> oip.ServerMetadataResponse:
        """What this server is; only extensions that are real."""
        return oip.ServerMetadataResponse(name="sealane", version=self._version, extensions=openinference.EXTENSIONS)

    def ModelReady(self, request: oip.ModelReadyRequest, call: Call) -> oip.ModelReadyResponse:
        """Whether the model would answer now; an unknown one is not ready."""
        return oip.ModelReadyResponse(ready=self._serving.ready(call, openinference.target(request)))

    def ModelMetadata(self, request: oip.ModelMetadataRequest, call: Call) -> oip.ModelMetadataResponse:
        """Inputs and outputs of the default signature."""
        wanted = openinference.target(request)
        return openinference.encode_metadata(describe(self._find(call, wanted), wanted.model))

    def ModelInfer(self, request: oip.ModelInferRequest, call: Call) -> oip.ModelInferResponse:
        """One inference."""
        inference = openinference.decode_request(request)
        model = self._find(call, inference.target)
        outputs = openinference.check(inference, signature_of(model, inference.target.signature))
        return openinference.encode_response(self._serving.run(model, call, inference, outputs))

    def _find(self, call: Call, wanted: Target) -> Model:
        model = self._serving.find(call, wanted)
        if model is None:
            raise openinference.unknown_model(wanted)
        return model


class PredictionServicer:
    """``tensorflow.serving.PredictionService``."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def Predict(self, request: tfs.PredictRequest, call: Call) -> tfs.PredictResponse:
        """One inference."""
        inference = tfserving.decode_request(request)
        model = self._find(call, inference.target)
        outputs = tfserving.check(inference, signature_of(model, inference.target.signature))
        return tfserving.encode_response(self._serving.run(model, call, inference, outputs))

    def GetModelMetadata(self, request: tfs.GetModelMetadataRequest, call: Call) -> tfs.GetModelMetadataResponse:
        """Signatures of the version served."""
        wanted = tfserving.check_metadata_request(request)
        model = self._find(call, wanted)
        return tfserving.encode_metadata(describe(model, wanted.model), str(model.assignment.version))

    def _find(self, call: Call, wanted: Target) -> Model:
        model = self._serving.find(call, wanted)
        if model is None:
            raise tfserving.unknown_model(wanted)
        return model


class ModelServicer:
    """``tensorflow.serving.ModelService``."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def GetModelStatus(self, request: tfs.GetModelStatusRequest, call: Call) -> tfs.GetModelStatusResponse:
        """State of the one version that a deployment serves."""
        wanted = tfserving.target(request)
        model = self._serving.resolve(call, wanted.model)
        if model is None:
            raise tfserving.unknown_model(wanted)
        state = "AVAILABLE" if self._serving.alive(model) else "END"
        return tfserving.encode_status(wanted, [tfserving.VersionStatus(model.assignment.version, state)])
