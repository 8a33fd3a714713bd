"""Loading and unloading by the compatible protocols' own methods: passed on to the scheduler, which decides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc

from sealane.errors import PermissionDenied
from sealane.rpc.call import Call
from sealane.scheduler.v1 import served_model_service_pb2 as pb
from sealane.scheduler.v1 import served_model_service_pb2_grpc


class Repository:
    """What is served, as the callers of a project may change it.

    Args:
        channel: to the scheduler's mesh port.
    """

    def __init__(self, channel: Callable[[], grpc.Channel]) -> None:
        self._channel = channel

    async def reload(self, call: Call, models: list[pb.ServedModel]) -> None:
        """Serve these and nothing else that was loaded this way.

        Raises:
            SealaneError: what the scheduler answers; nothing has changed then.
        """
        origin = pb.ApplyServedModelsRequest.ORIGIN_RELOAD_CONFIG
        await self._apply(call, pb.ApplyServedModelsRequest(origin=origin, models=models, replace_all=True))

    async def load(self, call: Call, name: str) -> None:
        """Serve the latest version of the model of that name; one that was loaded before gives way."""
        origin = pb.ApplyServedModelsRequest.ORIGIN_REPOSITORY
        await self._apply(call, pb.ApplyServedModelsRequest(origin=origin, models=[pb.ServedModel(served_name=name)]))

    async def unload(self, call: Call, name: str) -> None:
        """Serve a model that was loaded this way no longer."""
        origin = pb.ApplyServedModelsRequest.ORIGIN_REPOSITORY
        await self._apply(call, pb.ApplyServedModelsRequest(origin=origin, remove=[name]))

    async def _apply(self, call: Call, request: pb.ApplyServedModelsRequest) -> None:
        request.access_token = call.metadata.get("authorization", "").partition(" ")[2]
        request.request_id = call.request_id
        if not request.access_token:
            raise PermissionDenied("models are loaded for an account; call with its token", reason="TOKEN_MISSING")
        stub = served_model_service_pb2_grpc.ServedModelServiceStub(self._channel())
        await asyncio.to_thread(stub.ApplyServedModels, request, timeout=max(call.remaining - 0.5, 0.1))
