"""The gateway's end of a lane: many calls over the one stream that a worker opened.

Frames that wait together travel together, so the price of a message is shared under load. When the
stream breaks, every call on it fails at once; a dead worker is noticed by its calls, not by a timeout.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import grpc

from sealane.errors import DeadlineExceeded, InvalidArgument, SealaneError, Unavailable
from sealane.inference.v1 import lane_service_pb2 as pb
from sealane.rpc.limits import DATA_MESSAGE_BYTES
from sealane.rpc.status import from_code

#: Largest payload of one call: a message of the lane carries its frame besides.
MAX_PAYLOAD_BYTES = DATA_MESSAGE_BYTES - 64 * 1024
#: A message of several frames stays below this, so that a large call does not hold up small ones.
_BATCH_BYTES = 1024 * 1024
_BATCH_FRAMES = 64
_DEFAULT_IN_FLIGHT = 48

#: The lane broke after the call was sent: the worker may have run it.
LANE_LOST = "LANE_LOST"
#: The call was never sent: no worker has seen it.
LANE_UNSENT = "LANE_UNSENT"


_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class LaneCall:
    """One call as the worker gets it; `payload` is the caller's body, untouched."""

    method: str
    deployment: str
    epoch: int
    metadata: Mapping[str, str]
    payload: bytes


@dataclass(slots=True)
class _Pending:
    call: LaneCall
    deadline: float
    future: asyncio.Future[pb.ReplyFrame]
    sent: bool = False


class Lane:
    """One worker's lane, on the event loop."""

    def __init__(self, node: str, max_in_flight: int = 0) -> None:
        self.node = node
        self._max = max_in_flight if max_in_flight > 0 else _DEFAULT_IN_FLIGHT
        self._pending: dict[int, _Pending] = {}
        self._unsent: dict[int, _Pending] = {}
        self._cancels: deque[int] = deque()
        self._wake = asyncio.Event()
        self._last_id = 0
        self._closed = False

    @property
    def in_flight(self) -> int:
        """Calls that wait for their answer."""
        return len(self._pending)

    async def call(self, call: LaneCall, timeout: float) -> bytes:
        """Send one call and wait for its answer's bytes.

        Raises:
            Unavailable: the lane is full, or broke; the reason says whether the call was sent.
            DeadlineExceeded: no answer in `timeout` seconds; the worker is told to drop the call.
            SealaneError: what the worker answered.
        """
        self._admit(call)
        self._last_id += 1
        call_id = self._last_id
        pending = _Pending(call, time.monotonic() + timeout, asyncio.get_running_loop().create_future())
        self._pending[call_id] = self._unsent[call_id] = pending
        self._wake.set()
        try:
            async with asyncio.timeout(timeout):
                reply = await pending.future
        except (TimeoutError, asyncio.CancelledError) as error:
            self._give_up(call_id)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(
                    "the worker did not answer in time; allow more time or send less", reason="WORKER_TIMEOUT"
                ) from None
            raise
        finally:
            self._pending.pop(call_id, None)
        if reply.code:
            raise _error(reply)
        return reply.payload

    def deliver(self, frames: pb.WorkerFrames) -> None:
        """Hand answers to those who wait; an answer that nobody waits for any more is dropped."""
        for frame in frames.frames:
            pending = self._pending.get(frame.reply.call_id) if frame.HasField("reply") else None
            if pending is not None and not pending.future.done():
                pending.future.set_result(frame.reply)

    async def outgoing(self) -> AsyncIterator[pb.GatewayFrames]:
        """Messages to send, until the lane is closed."""
        while not self._closed:
            if self._unsent or self._cancels:
                yield self._batch()
                continue
            self._wake.clear()
            await self._wake.wait()

    def close(self) -> None:
        """Fail every call on the lane; the message generator ends."""
        self._closed = True
        self._wake.set()
        for pending in self._pending.values():
            if not pending.future.done():
                pending.future.set_exception(_lost(self.node, pending.sent))

    def _admit(self, call: LaneCall) -> None:
        if self._closed:
            raise _lost(self.node, sent=False)
        if len(self._pending) >= self._max:
            raise Unavailable(
                f"worker {self.node!r} has {self._max} calls in flight; retry in a moment",
                reason="LANE_FULL",
                retry_after=0.05,
            )
        if len(call.payload) > MAX_PAYLOAD_BYTES:
            raise InvalidArgument(
                f"the request takes {len(call.payload)} bytes, the limit is {MAX_PAYLOAD_BYTES}; "
                "send fewer rows a call",
                reason="REQUEST_TOO_LARGE",
            )

    def _give_up(self, call_id: int) -> None:
        """Forget a call that was not sent, so that a stalled lane holds no dead payloads; cancel one that was."""
        if self._unsent.pop(call_id, None) is None:
            self._cancels.append(call_id)
            self._wake.set()

    def _batch(self) -> pb.GatewayFrames:
        message = pb.GatewayFrames()
        for call_id in self._cancels:
            message.frames.add().cancel.call_id = call_id
        self._cancels.clear()
        size, now = 0, time.monotonic()
        while self._unsent and len(message.frames) < _BATCH_FRAMES:
            call_id, pending = next(iter(self._unsent.items()))
            size += len(pending.call.payload)
            if message.frames and size > _BATCH_BYTES:
                break
            del self._unsent[call_id]
            pending.sent = True
            _fill(message.frames.add().call, call_id, pending, now)
        return message


def _fill(frame: pb.CallFrame, call_id: int, pending: _Pending, now: float) -> None:
    """In place, because every copy of a frame is a copy of its payload."""
    call = pending.call
    frame.call_id = call_id
    frame.method = call.method
    frame.timeout_us = max(0, int((pending.deadline - now) * 1e6))
    frame.metadata.update(call.metadata)
    frame.payload = call.payload
    frame.deployment = call.deployment
    frame.epoch = call.epoch


def _lost(node: str, sent: bool) -> Unavailable:
    return Unavailable(
        f"worker {node!r} went away during the call; retry",
        reason=LANE_LOST if sent else LANE_UNSENT,
        retry_after=0.05,
    )


def _error(reply: pb.ReplyFrame) -> SealaneError:
    return from_code(_CODES.get(reply.code), reply.message, reply.status_details or None)
