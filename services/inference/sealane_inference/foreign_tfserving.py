"""TensorFlow Serving at the gateway: bodies pass through unread but for the model's name."""

from __future__ import annotations

from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import SealaneError
from sealane.protocols import tfserving, tfserving_config
from sealane.protocols.tfserving import VersionStatus
from sealane.rpc.call import Call
from sealane.scheduler.v1 import served_model_service_pb2 as served_pb
from sealane_inference.finder import Finder
from sealane_inference.routing import Route, refusal
from sealane_inference.way import Way

_PREDICTION = "/tensorflow.serving.PredictionService/"
#: Paths whose bodies are not parsed here.
RAW = frozenset(
    {
        *(_PREDICTION + name for name in ("Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata")),
        "/tensorflow.serving.ModelService/GetModelStatus",
    }
)
_NAMELESS = "ModelSpec has no name specified."


class PredictionServicer:
    """tensorflow.serving.PredictionService."""

    def __init__(self, way: Way) -> None:
        self._present = way.present
        self._forwarder = way.forwarder
        self._chains = way.chains
        self._finder = Finder(way.present, tfserving.unknown_model, _NAMELESS)

    async def Predict(self, request: None, call: Call) -> bytes:
        """Forwarded."""
        return await self._forward(call)

    async def Classify(self, request: None, call: Call) -> bytes:
        """Forwarded."""
        return await self._forward(call)

    async def Regress(self, request: None, call: Call) -> bytes:
        """Forwarded."""
        return await self._forward(call)

    async def MultiInference(self, request: None, call: Call) -> bytes:
        """Forwarded."""
        return await self._forward(call)

    async def GetModelMetadata(self, request: None, call: Call) -> bytes:
        """Forwarded."""
        return await self._forward(call)

    async def _forward(self, call: Call) -> bytes:
        target = self._finder.target(call)
        if self._present.has_chains and self._chains.here(route := self._finder.route(call, target)):
            return await self._chains.answer(call, route)
        return await self._forwarder.repeatable(call, lambda: self._finder.route(call, target))


class ModelServicer:
    """tensorflow.serving.ModelService."""

    def __init__(self, way: Way) -> None:
        self._chains = way.chains
        self._repository = way.repository
        self._finder = Finder(way.present, tfserving.unknown_model, _NAMELESS)

    async def GetModelStatus(self, request: None, call: Call) -> tfs.GetModelStatusResponse:
        """State of each version that is served under the name; it follows from the routes."""
        target = self._finder.target(call)
        return tfserving.encode_status(target, [self._status(route) for route in self._finder.versions(call, target)])

    async def HandleReloadConfigRequest(self, request: tfs.ReloadConfigRequest, call: Call) -> tfs.ReloadConfigResponse:
        """Serve what the configuration lists; errors are told inside the answer."""
        try:
            models = [
                served_pb.ServedModel(
                    served_name=model.name,
                    model=model.base_path,
                    versions=model.versions,
                    latest=model.latest,
                    labels=model.labels,
                )
                for model in tfserving_config.decode_config(request)
            ]
            await self._repository.reload(call, models)
        except SealaneError as error:
            return tfserving_config.encode_reload(error)
        return tfserving_config.encode_reload(None)

    def _status(self, route: Route) -> VersionStatus:
        version = int(route.version)
        refused = refusal(route)
        if refused is not None:
            return VersionStatus(version, "END", refused.kind, refused.message)
        return VersionStatus(version, "AVAILABLE" if self._chains.available(route) else "LOADING")
