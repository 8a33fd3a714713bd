"""LaneService: a worker opens its lane; the gateway uses it until it breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from sealane.errors import InvalidArgument, PermissionDenied, SealaneError
from sealane.inference.v1 import lane_service_pb2 as pb
from sealane.rpc.call import Call
from sealane_inference.lanes import Lane
from sealane_inference.loads import Loads
from sealane_inference.present import Present


class LaneServicer:
    """Attaches lanes to what is present."""

    def __init__(self, present: Present, loads: Loads) -> None:
        self._present = present
        self._loads = loads

    async def Open(self, requests: AsyncIterator[pb.WorkerFrames], call: Call) -> AsyncIterator[pb.GatewayFrames]:
        """Serve one lane. The node is the one of the certificate, whatever the worker says."""
        if not call.peer.node:
            raise PermissionDenied("only a node may open a lane; call with a node's certificate", reason="NOT_A_NODE")
        lane = Lane(call.peer.node, await _hello(requests))
        self._present.attach(lane)
        # Not a TaskGroup: a generator may not yield inside one. The reader ends with the lane, below.
        reader = asyncio.create_task(_read(lane, requests))
        try:
            async for frames in lane.outgoing():
                yield frames
        finally:
            reader.cancel()
            lane.close()
            if self._present.detach(lane):
                self._loads.forget(lane.node)


async def _hello(requests: AsyncIterator[pb.WorkerFrames]) -> int:
    first = await anext(requests, None)
    if first is None or not first.frames or not first.frames[0].HasField("hello"):
        raise InvalidArgument("a lane begins with a hello frame; send it first", reason="NO_HELLO", field="frames")
    return first.frames[0].hello.max_in_flight


async def _read(lane: Lane, requests: AsyncIterator[pb.WorkerFrames]) -> None:
    """Deliver answers until the worker ends the stream or it breaks; either way the lane is over."""
    try:
        async for frames in requests:
            lane.deliver(frames)
    except SealaneError:
        pass  # a malformed frame: the lane closes and the worker opens another
    finally:
        lane.close()
