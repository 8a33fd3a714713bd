"""LaneService: a worker opens its lane; the gateway uses it until it breaks, and for a while longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from sealane.errors import InvalidArgument, PermissionDenied, SealaneError
from sealane.inference.v1 import lane_service_pb2 as pb
from sealane.rpc.call import Call
from sealane.rpc.lane import GRACE_SECONDS
from sealane_inference.lanes import Lane
from sealane_inference.loads import Loads
from sealane_inference.present import Present


class LaneServicer:
    """Attaches lanes to what is present.

    Args:
        present: where they are found.
        loads: what is known of their workers.
        grace: seconds in which a worker whose stream broke can go on with its session.
    """

    def __init__(self, present: Present, loads: Loads, grace: float = GRACE_SECONDS) -> None:
        self._present = present
        self._loads = loads
        self._grace = grace
        self._sessions: dict[str, Lane] = {}

    async def Open(self, requests: AsyncIterator[pb.WorkerFrames], call: Call) -> AsyncIterator[pb.GatewayFrames]:
        """Serve one lane. The node is the one of the certificate, whatever the worker says."""
        if not call.peer.node:
            raise PermissionDenied("only a node may open a lane; call with a node's certificate", reason="NOT_A_NODE")
        lane, welcome = self._open(call.peer.node, await _hello(requests))
        stream = lane.stream
        self._present.attach(lane)
        # Not a TaskGroup: a generator may not yield inside one. The reader ends with the lane, below.
        outgoing = lane.outgoing()
        reader = asyncio.create_task(_read(lane, requests))
        try:
            yield welcome
            async for frames in outgoing:
                yield frames
        finally:
            reader.cancel()
            if lane.stream == stream:  # not where the worker has opened another stream for it meanwhile
                self._leave(lane)

    def _open(self, node: str, hello: pb.HelloFrame) -> tuple[Lane, pb.GatewayFrames]:
        """The lane that goes on, or a new one."""
        known = self._sessions.get(node)
        if known is not None and known.session == hello.session:
            if known.resume(hello.received, hello.max_in_flight):
                return known, known.welcome(resumed=True)
            known.close()
        elif known is not None:
            # Another session: the one before is gone, whether its stream was seen to break or not.
            if known.connected:
                known.fail_calls()  # its stream ends by itself: a worker that were cut off here would dial again
            else:
                known.close()
        lane = Lane(node, hello.max_in_flight, hello.session)
        if hello.session:
            self._sessions[node] = lane
        return lane, lane.welcome(resumed=False)

    def _leave(self, lane: Lane) -> None:
        """The stream is over: nothing new goes there, and what cannot run again waits for another stream."""
        if self._present.detach(lane):
            self._loads.forget(lane.node)
        waits = lane.suspend()
        if waits and self._sessions.get(lane.node) is lane:
            asyncio.get_running_loop().call_later(self._grace, self._end, lane, lane.stream)
        else:
            self._end(lane, lane.stream)

    def _end(self, lane: Lane, stream: int) -> None:
        if lane.stream == stream and not lane.connected:
            lane.close()
            if self._sessions.get(lane.node) is lane:
                del self._sessions[lane.node]


async def _hello(requests: AsyncIterator[pb.WorkerFrames]) -> pb.HelloFrame:
    first = await anext(requests, None)
    if first is None or not first.frames or not first.frames[0].HasField("hello"):
        raise InvalidArgument("a lane begins with a hello frame; send it first", reason="NO_HELLO", field="frames")
    return first.frames[0].hello


async def _read(lane: Lane, requests: AsyncIterator[pb.WorkerFrames]) -> None:
    """Deliver answers until the worker ends the stream or it breaks; either way the stream is over."""
    stream = lane.stream
    try:
        async for frames in requests:
            if lane.stream != stream:
                return
            lane.deliver(frames)
    except SealaneError:
        lane.close()  # malformed or confused: the worker opens another, and nothing of this one goes on
    finally:
        if lane.stream == stream:
            lane.suspend()
