"""A worker's lane as the gateway opens it: how much a worker may ask for, what a new process says of an old one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine

import pytest

from sealane.clock import SystemClock
from sealane.errors import ResourceExhausted, Unavailable
from sealane.inference.v1 import lane_service_pb2 as pb
from sealane.rpc.call import Call, Peer
from sealane.rpc.policy import methods_of
from sealane_inference.lane_servicer import LaneServicer
from sealane_inference.lanes import LANE_FULL, LANE_LOST, MAX_IN_FLIGHT, Lane, LaneCall
from sealane_inference.loads import Loads
from sealane_inference.present import Present

SERVICE = pb.DESCRIPTOR.services_by_name["LaneService"]
METHOD = next(method for method in methods_of(SERVICE) if method.name == "Open")


class Worker:
    """A worker's process: its streams stay open, as over a connection of which nobody heard that it is dead."""

    def __init__(self, servicer: LaneServicer, session: str, max_in_flight: int = 0) -> None:
        self._hello = pb.HelloFrame(session=session, max_in_flight=max_in_flight)
        call = Call(METHOD, {}, Peer("spiffe://sealane/node/w"), time.monotonic() + 60)
        opened = servicer.Open(self._requests(), call)
        assert isinstance(opened, AsyncGenerator)
        self.frames: AsyncGenerator[pb.GatewayFrames, None] = opened

    async def _requests(self) -> AsyncIterator[pb.WorkerFrames]:
        yield pb.WorkerFrames(frames=[pb.WorkerFrame(hello=self._hello)])
        await asyncio.Event().wait()

    async def welcomed(self) -> bool:
        return (await anext(self.frames)).frames[0].welcome.resumed


class Gateway:
    def __init__(self) -> None:
        clock = SystemClock()
        self.present = Present(clock)
        self.servicer = LaneServicer(self.present, Loads(clock))

    def lane(self) -> Lane:
        lane = self.present.lane("w")
        assert lane is not None
        return lane


def a_call(*, once: bool) -> LaneCall:
    return LaneCall("/x.Y/Z", "projects/p/deployments/d", 1, {}, b"body", once)


def run(test: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


def test_a_worker_may_not_ask_for_calls_without_bound() -> None:
    async def test() -> None:
        gateway = Gateway()
        worker = Worker(gateway.servicer, "s", 2**31 - 1)
        assert not await worker.welcomed()
        tasks = [asyncio.create_task(gateway.lane().call(a_call(once=False), 60)) for _ in range(MAX_IN_FLIGHT)]
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted) as refused:
            await gateway.lane().call(a_call(once=False), 60)
        assert refused.value.reason == LANE_FULL
        await worker.frames.aclose()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await Worker(gateway.servicer, "s2", 2).welcomed() is False
        assert not gateway.lane().full, "what it asks for below that is what it gets"

    run(test())


def test_a_new_process_of_a_worker_ends_the_calls_of_the_one_before() -> None:
    async def test() -> None:
        gateway = Gateway()
        first = Worker(gateway.servicer, "first")
        await first.welcomed()
        before = gateway.lane()
        tasks = [asyncio.create_task(before.call(a_call(once=once), 60)) for once in (True, False)]
        await asyncio.sleep(0)
        assert len((await anext(first.frames)).frames) == 2  # sent, and never answered

        second = Worker(gateway.servicer, "second")
        assert not await second.welcomed()
        for task in tasks:
            with pytest.raises(Unavailable) as lost:
                await task
            assert lost.value.reason == LANE_LOST
        after = gateway.lane()
        assert after is not before
        await first.frames.aclose()  # the old stream is noticed at last
        assert gateway.lane() is after and after.connected
        await second.frames.aclose()

    run(test())
