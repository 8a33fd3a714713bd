"""The foreign protocols at the gateway: bodies pass through unread but for the model's name.

Questions that the routes can answer are answered here: they stay right while a worker is busy.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import InvalidArgument, SealaneError
from sealane.protocols import openinference, tfserving
from sealane.protocols.call import Target
from sealane.protocols.peek import peek
from sealane.protocols.tfserving import VersionStatus
from sealane.rpc.call import Call
from sealane_inference.forward import Forwarder
from sealane_inference.present import Present
from sealane_inference.routing import Route, refusal, resolve

Unknown = Callable[[Target], SealaneError]

#: Paths whose bodies are not parsed here.
RAW = frozenset(
    {
        "/inference.GRPCInferenceService/ModelReady",
        "/inference.GRPCInferenceService/ModelMetadata",
        "/inference.GRPCInferenceService/ModelInfer",
        "/tensorflow.serving.PredictionService/Predict",
        "/tensorflow.serving.PredictionService/GetModelMetadata",
        "/tensorflow.serving.ModelService/GetModelStatus",
    }
)


class Finder:
    """From a call to its route, with the words that the caller's protocol has for a miss."""

    def __init__(self, present: Present, unknown: Unknown, nameless: str) -> None:
        self._present = present
        self._unknown = unknown
        self._nameless = nameless

    def target(self, call: Call) -> Target:
        """The model that the call names.

        Raises:
            InvalidArgument: it names none, or its body is malformed.
        """
        target = peek(call.method.path, call.body or b"")
        if not target.model:
            raise InvalidArgument(self._nameless, reason="MODEL_NAME_MISSING", field="model_spec.name")
        return target

    def route(self, call: Call, target: Target) -> Route:
        """The route to `target` in the caller's project.

        Raises:
            NotFound: no such model or version there.
            FailedPrecondition: the name means several deployments.
            Unavailable: there are no routes yet.
        """
        route = resolve(self._present.table, call.caller.project, target)
        if route is None or not call.caller.may_use(call.method.access.permission, route.model):
            raise self._unknown(target)
        return route


class OpenInferenceServicer:
    """inference.GRPCInferenceService."""

    def __init__(self, present: Present, forwarder: Forwarder) -> None:
        self._present = present
        self._forwarder = forwarder
        self._finder = Finder(present, openinference.unknown_model, "the request names no model; set its name")

    async def ServerLive(self, request: oip.ServerLiveRequest, call: Call) -> oip.ServerLiveResponse:
        """Up."""
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip.ServerReadyRequest, call: Call) -> oip.ServerReadyResponse:
        """Ready once there are routes."""
        return oip.ServerReadyResponse(ready=self._present.ready)

    async def ServerMetadata(self, request: oip.ServerMetadataRequest, call: Call) -> oip.ServerMetadataResponse:
        """Name, version, extensions."""
        return oip.ServerMetadataResponse(
            name="sealane", version=metadata.version("sealane"), extensions=openinference.EXTENSIONS
        )

    async def ModelReady(self, request: None, call: Call) -> oip.ModelReadyResponse:
        """Ready while a worker that serves the model has an open lane."""
        route = self._finder.route(call, self._finder.target(call))
        return oip.ModelReadyResponse(ready=bool(self._present.reachable(route)))

    async def ModelMetadata(self, request: None, call: Call) -> bytes:
        """Forwarded."""
        return await self._forward(call)

    async def ModelInfer(self, request: None, call: Call) -> bytes:
        """Forwarded."""
        return await self._forward(call)

    async def _forward(self, call: Call) -> bytes:
        target = self._finder.target(call)
        return await self._forwarder.repeatable(call, lambda: self._finder.route(call, target))


class PredictionServicer:
    """tensorflow.serving.PredictionService."""

    def __init__(self, present: Present, forwarder: Forwarder) -> None:
        self._forwarder = forwarder
        self._finder = Finder(present, tfserving.unknown_model, "ModelSpec has no name specified.")

    async def Predict(self, request: None, call: Call) -> bytes:
        """Forwarded."""
        return await self._forward(call)

    async def GetModelMetadata(self, request: None, call: Call) -> bytes:
        """Forwarded."""
        return await self._forward(call)

    async def _forward(self, call: Call) -> bytes:
        target = self._finder.target(call)
        return await self._forwarder.repeatable(call, lambda: self._finder.route(call, target))


class ModelServicer:
    """tensorflow.serving.ModelService."""

    def __init__(self, present: Present) -> None:
        self._present = present
        self._finder = Finder(present, tfserving.unknown_model, "ModelSpec has no name specified.")

    async def GetModelStatus(self, request: None, call: Call) -> tfs.GetModelStatusResponse:
        """State of the version that the deployment serves; it follows from the routes."""
        target = self._finder.target(call)
        whole = Target(target.model, label=target.label)
        return tfserving.encode_status(target, (self._status(self._finder.route(call, whole)),))

    def _status(self, route: Route) -> VersionStatus:
        version = int(route.version)
        refused = refusal(route)
        if refused is not None:
            return VersionStatus(version, "END", refused.kind, refused.message)
        return VersionStatus(version, "AVAILABLE" if self._present.reachable(route) else "LOADING")
