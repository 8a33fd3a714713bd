"""Servicer of the Open Inference Protocol on a worker. Translation only."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator

from grpc_health.v1 import health_pb2

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import Unimplemented
from sealane.protocols import openinference, openinference_model
from sealane.protocols.call import Target
from sealane.rpc.call import Call
from sealane.rpc.health import Health
from sealane_worker.deployment import Model
from sealane_worker.serving import Found, Serving, describe, signature_of
from sealane_worker.settings import counts_of, settings_of
from sealane_worker.streams import Streams

SERVING = health_pb2.HealthCheckResponse.SERVING


class OpenInferenceServicer:
    """``inference.GRPCInferenceService``."""

    def __init__(self, serving: Serving, health: Health, streams: Streams) -> None:
        self._serving = serving
        self._health = health
        self._version = importlib.metadata.version("sealane")
        self._streams = streams

    def ServerLive(self, request: oip.ServerLiveRequest, call: Call) -> oip.ServerLiveResponse:
        """Whether the process answers."""
        return oip.ServerLiveResponse(live=True)

    def ServerReady(self, request: oip.ServerReadyRequest, call: Call) -> oip.ServerReadyResponse:
        """Whether new work is welcome."""
        return oip.ServerReadyResponse(ready=self._health.status("").status == SERVING)

    def ServerMetadata(self, request: oip.ServerMetadataRequest, call: Call) -> oip.ServerMetadataResponse:
        """What this server is; only extensions that are real."""
        # Which models a worker serves is the scheduler's to say: what loads and unloads is at the gateway.
        extensions = [name for name in openinference.EXTENSIONS if not name.startswith("model_repository")]
        return oip.ServerMetadataResponse(name="sealane", version=self._version, extensions=extensions)

    def ModelReady(self, request: oip.ModelReadyRequest, call: Call) -> oip.ModelReadyResponse:
        """Whether the model would answer now; an unknown one is not ready."""
        return oip.ModelReadyResponse(ready=self._serving.ready(call, openinference.target(request)))

    def ModelMetadata(self, request: oip.ModelMetadataRequest, call: Call) -> oip.ModelMetadataResponse:
        """Inputs and outputs of the default signature."""
        wanted = openinference.target(request)
        return openinference.encode_metadata(describe(self._find(call, wanted), wanted.model))

    def ModelConfig(self, request: oip.ModelConfigRequest, call: Call) -> oip.ModelConfigResponse:
        """How the model is served."""
        wanted = openinference.target(request)
        model = self._find(call, wanted)
        settings = settings_of(model, self._serving.served(model).loaded.signatures)
        return openinference_model.encode_config(describe(model, wanted.model), settings)

    def ModelStatistics(self, request: oip.ModelStatisticsRequest, call: Call) -> oip.ModelStatisticsResponse:
        """What one model has done, or each of the caller's."""
        if request.name:
            wanted = openinference.target(request)
            named = [(wanted.model, self._find(call, wanted))]
        else:
            named = [(model.assignment.deployment.rpartition("/")[2], model) for model in self._serving.mine(call)]
        return oip.ModelStatisticsResponse(model_stats=[self._statistics(name, model) for name, model in named])

    def RepositoryIndex(self, request: oip.RepositoryIndexRequest, call: Call) -> oip.RepositoryIndexResponse:
        """The caller's deployments on this worker."""
        entries = [self._entry(model) for model in self._serving.mine(call)]
        entries += [openinference_model.IndexEntry(name, "", "LOADING") for name in self._serving.coming(call)]
        return openinference_model.encode_index(entries, ready=request.ready)

    def RepositoryModelLoad(
        self, request: oip.RepositoryModelLoadRequest, call: Call
    ) -> oip.RepositoryModelLoadResponse:
        """Not here: the scheduler says what a worker serves."""
        raise _at_the_gateway()

    def RepositoryModelUnload(
        self, request: oip.RepositoryModelUnloadRequest, call: Call
    ) -> oip.RepositoryModelUnloadResponse:
        """Not here: the scheduler says what a worker serves."""
        raise _at_the_gateway()

    def ModelInfer(self, request: oip.ModelInferRequest, call: Call) -> oip.ModelInferResponse:
        """One inference."""
        return infer(self._serving, request, call)

    def ModelStreamInfer(self, bodies: Iterator[bytes], call: Call) -> Iterator[bytes]:
        """Inferences over one stream."""
        return self._streams.run(bodies, call)

    def _find(self, call: Call, wanted: Target) -> Model:
        model = self._serving.find(call, wanted)
        if model is None:
            raise openinference.unknown_model(wanted)
        return model

    def _statistics(self, name: str, model: Model) -> oip.ModelStatistics:
        counts = counts_of(self._serving.served(model))
        return openinference_model.encode_statistics(name, str(model.assignment.version), counts)

    def _entry(self, model: Model) -> openinference_model.IndexEntry:
        name, version = model.assignment.deployment.rpartition("/")[2], str(model.assignment.version)
        if self._serving.alive(model):
            return openinference_model.IndexEntry(name, version, "READY")
        return openinference_model.IndexEntry(name, version, "UNAVAILABLE", "it crashed too often; deploy it anew")


def infer(serving: Found, request: oip.ModelInferRequest, call: Call) -> oip.ModelInferResponse:
    """One inference; `serving` says what the name in the request means."""
    inference = openinference.decode_request(request)
    model = serving.find(call, inference.target)
    if model is None:
        raise openinference.unknown_model(inference.target)
    outputs = openinference.check(inference, signature_of(model, inference.target.signature))
    return openinference.encode_response(serving.run(model, call, inference, outputs))


def _at_the_gateway() -> Unimplemented:
    return Unimplemented("a worker serves what the scheduler assigns to it; call this method at the gateway")
