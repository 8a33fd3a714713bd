"""Loading and unloading at the gateway: what takes long there keeps nothing else waiting."""

from __future__ import annotations

import asyncio
import threading
import time

import grpc
import pytest

from sealane.clock import SystemClock
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import ResourceExhausted
from sealane.rpc.call import Call, Peer
from sealane.rpc.policy import methods_of
from sealane.scheduler.v1 import served_model_service_pb2 as pb
from sealane_inference import repository
from sealane_inference.present import Present
from sealane_inference.repository import Repository
from sealane_inference.routing import RouteTable

LOAD = next(
    method
    for method in methods_of(oip.DESCRIPTOR.services_by_name["GRPCInferenceService"], "inference.GRPCInferenceService")
    if method.path.endswith("RepositoryModelLoad")
)


class Scheduler:
    """A channel to a scheduler that answers when it is let."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.revision = 0
        self.asked: list[str] = []

    def unary_unary(self, path: str, *args: object, **options: object) -> Scheduler:
        return self

    def __call__(self, request: pb.ApplyServedModelsRequest, timeout: float) -> pb.ApplyServedModelsResponse:
        self.asked.append(request.models[0].served_name)
        assert self.free.wait(20)
        return pb.ApplyServedModelsResponse(revision=self.revision)

    unary_stream = stream_unary = stream_stream = unary_unary


def call() -> Call:
    return Call(LOAD, {"authorization": "Bearer t"}, Peer(), time.monotonic() + 60)


async def test_loads_beyond_two_are_refused_and_leave_every_other_thread_free() -> None:
    scheduler = Scheduler()
    channel: grpc.Channel = scheduler  # type: ignore[assignment]  # the part of it that stubs use
    present = Present(SystemClock())
    present.replace(RouteTable.of(0, []))
    served = Repository(lambda: channel, present)
    loads = [asyncio.ensure_future(served.load(call(), f"m{index}")) for index in range(repository.AT_ONCE)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted) as caught:
        await served.load(call(), "one too many")
    assert caught.value.retry_after
    assert await asyncio.to_thread(threading.active_count)  # what others use is free
    loads[0].cancel()  # a caller that leaves frees no thread
    with pytest.raises(asyncio.CancelledError):
        await loads[0]
    with pytest.raises(ResourceExhausted):
        await served.load(call(), "one too many")
    scheduler.free.set()
    await loads[1]
    async with asyncio.timeout(20):
        while served.under_way:
            await asyncio.sleep(0.01)
    await served.load(call(), "later")
    assert sorted(scheduler.asked) == ["later", "m0", "m1"]


async def test_a_change_is_told_when_the_routes_hold_it() -> None:
    scheduler, present = Scheduler(), Present(SystemClock())
    scheduler.free.set()
    scheduler.revision = 7
    channel: grpc.Channel = scheduler  # type: ignore[assignment]
    present.replace(RouteTable.of(6, []))
    load = asyncio.ensure_future(Repository(lambda: channel, present).load(call(), "m"))
    await asyncio.sleep(0.1)
    assert scheduler.asked == ["m"] and not load.done()
    present.replace(RouteTable.of(7, []))
    async with asyncio.timeout(5):
        await load
