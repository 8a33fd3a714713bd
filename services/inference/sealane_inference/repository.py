"""Loading and unloading by the compatible protocols' own methods: passed on to the scheduler, which decides."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc

from sealane.errors import PermissionDenied, ResourceExhausted
from sealane.rpc.call import Call
from sealane.scheduler.v1 import served_model_service_pb2 as pb
from sealane.scheduler.v1 import served_model_service_pb2_grpc
from sealane_inference.present import Present

#: Changes that wait for the scheduler at the same time. Loading takes as long as it takes, so they have threads of
#: their own, and more of them are refused.
AT_ONCE = 2
_TRY_AGAIN = 1.0
#: Longest wait for the routes of a change that was made.
ROUTES_SECONDS = 5.0


class Repository:
    """What is served, as the callers of a project may change it.

    Args:
        channel: to the scheduler's mesh port.
        present: the routes; a change is told when they hold it.
    """

    def __init__(self, channel: Callable[[], grpc.Channel], present: Present) -> None:
        self._channel = channel
        self._present = present
        self._threads = ThreadPoolExecutor(AT_ONCE, "repository")
        self.under_way = 0

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
        if self.under_way >= AT_ONCE:
            raise ResourceExhausted(
                "models are being loaded and unloaded already; try again when they are",
                reason="OVERLOAD",
                retry_after=_TRY_AGAIN,
            )
        stub = served_model_service_pb2_grpc.ServedModelServiceStub(self._channel())
        timeout = max(call.remaining - 0.5, 0.1)
        self.under_way += 1
        work = self._threads.submit(stub.ApplyServedModels, request, timeout=timeout)
        # The thread is free when the scheduler has answered, and not when the caller leaves.
        loop = asyncio.get_running_loop()
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._done))
        answer = await asyncio.wrap_future(work)
        await self._until_routed(answer.revision)

    async def _until_routed(self, revision: int) -> None:
        """Wait for the routes of a change, so that who loads a model can call it; they come in milliseconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ROUTES_SECONDS):
                while True:
                    change = self._present.change()
                    if self._present.ready and self._present.table.revision >= revision:
                        return
                    await change.wait()

    def _done(self) -> None:
        self.under_way -= 1
