"""The gateway's end of a lane: many calls over the one stream that a worker opened.

Frames that wait together travel together, so the price of a message is shared under load. When the stream breaks, a
call that may run again fails at once and goes elsewhere: a dead worker is noticed by its calls, not by a timeout.
One that may not waits for the worker to open the lane again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

import grpc

from sealane.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, SealaneError, Unavailable
from sealane.inference.v1 import lane_service_pb2 as pb
from sealane.rpc.lane import MAX_PAYLOAD_BYTES, Cancel, Outbox, Pace, Piece
from sealane.rpc.lane_inbox import Inbox
from sealane.rpc.loads import Load
from sealane.rpc.status import from_code

_DEFAULT_IN_FLIGHT = 48
#: A worker may ask for more calls at once, but not without bound: each of them is held here until it is answered.
MAX_IN_FLIGHT = 1024

#: The lane broke after the call was sent: the worker may have run it.
LANE_LOST = "LANE_LOST"
#: The call was never sent: no worker has seen it.
LANE_UNSENT = "LANE_UNSENT"
#: The worker has as many calls of this gateway as it takes; it has not seen this one.
LANE_FULL = "LANE_FULL"

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


#: Takes what the worker says of its load with an answer, whether that is good or bad.
Hear = Callable[[Load], None]


@dataclass(frozen=True, slots=True)
class LaneCall:
    """One call as the worker gets it.

    Attributes:
        method: path.
        deployment: resource name that it is routed to.
        epoch: of the placement.
        metadata: for the worker.
        payload: the caller's body, untouched.
        once: whether it may run at most once.
    """

    method: str
    deployment: str
    epoch: int
    metadata: Mapping[str, str]
    payload: bytes
    once: bool = False


@dataclass(slots=True, eq=False)
class _Pending:
    call: LaneCall
    deadline: float
    future: asyncio.Future[bytes]
    hear: Hear | None


class Lane:
    """One worker's lane, on the event loop. It outlives its stream where its worker names the session.

    Args:
        node: the worker's.
        max_in_flight: most calls at once, 1024 at most; 0 takes the default.
        session: as the worker names it; empty for one that cannot be resumed.
    """

    def __init__(self, node: str, max_in_flight: int = 0, session: str = "") -> None:
        self.node = node
        self.session = session
        self._max = _most(max_in_flight)
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, _Pending] = {}
        self._outbox: Outbox[_Pending] = Outbox()
        self._inbox: Inbox[pb.ReplyFrame] = Inbox()
        self._waker: asyncio.Future[None] | None = None
        self._last_id = 0
        self._stream = 1
        self._connected = True
        self._closed = False

    @property
    def in_flight(self) -> int:
        """Calls that wait for their answer."""
        return len(self._pending)

    @property
    def full(self) -> bool:
        """Whether the worker takes no more calls now."""
        return len(self._pending) >= self._max or self._outbox.full

    @property
    def connected(self) -> bool:
        """Whether a stream carries it."""
        return self._connected

    @property
    def stream(self) -> int:
        """Number of the stream that carries the lane now; a stream with another number has no say any more."""
        return self._stream

    async def call(self, call: LaneCall, timeout: float, hear: Hear | None = None) -> bytes:
        """Send one call and wait for its answer's bytes.

        Args:
            call: what.
            timeout: seconds.
            hear: told what the worker says of its load.

        Raises:
            ResourceExhausted: the lane is full.
            Unavailable: the lane broke; the reason says whether the call was sent.
            DeadlineExceeded: no answer in `timeout` seconds; the worker is told to drop the call.
            SealaneError: what the worker answered.
        """
        self._admit(call)
        self._last_id = call_id = self._last_id + 1
        deadline = self._loop.time() + timeout
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._pending[call_id] = pending = _Pending(call, deadline, future, hear)
        self._outbox.add(call_id, pending, call.payload, deadline)
        self._wake()
        timer = self._loop.call_at(deadline, _expire, future)
        answered = False
        try:
            payload = await future
            answered = True
            return payload
        except SealaneError as error:
            # A time that is over here is the one failure that the worker does not know of.
            answered = error.reason != "WORKER_TIMEOUT"
            raise
        finally:
            timer.cancel()
            self._pending.pop(call_id, None)
            self._inbox.drop(call_id)
            if not answered:
                self._give_up(call_id)

    def deliver(self, frames: pb.WorkerFrames) -> None:
        """Hand answers to those who wait; an answer that nobody waits for any more is dropped.

        Raises:
            InvalidArgument: the worker's end is confused; the lane is of no more use.
        """
        self._outbox.acknowledge(frames.received)
        size = 0
        for frame in frames.frames:
            kind = frame.WhichOneof("frame")
            if kind == "reply":
                size += len(frame.reply.payload)
                self._take_reply(frame.reply)
            elif kind == "data":
                size += len(frame.data.data)
                self._join(frame.data)
            elif kind == "credit":
                self._outbox.grant(frame.credit.call_id, frame.credit.bytes)
                self._wake()
        self._inbox.count(len(frames.frames), size)
        if self._inbox.acknowledgement_due:
            self._wake()

    async def outgoing(self) -> AsyncIterator[pb.GatewayFrames]:
        """Messages to send, until the lane is closed or another stream carries it."""
        stream, pace = self._stream, Pace()
        while not self._closed and self._connected and self._stream == stream:
            if self._outbox.ready or self._inbox.acknowledgement_due:
                pause = pace.pause(self._loop.time(), len(self._pending))
                if pause > 0.0 and not self._outbox.plenty:
                    await asyncio.sleep(pause)
                yield self._batch()
                continue
            self._waker = self._loop.create_future()
            await self._waker

    def welcome(self, *, resumed: bool) -> pb.GatewayFrames:
        """What a worker is answered that opens the lane."""
        frame = pb.WelcomeFrame(resumed=resumed, received=self._inbox.acknowledge() if resumed else 0)
        return pb.GatewayFrames(frames=[pb.GatewayFrame(welcome=frame)])

    def resume(self, received: int, max_in_flight: int) -> bool:
        """Go on over another stream, of which the worker says that it has so many frames; false where that is over."""
        if self._closed or not self.session or not self._outbox.resume(received):
            return False
        self._max = _most(max_in_flight)
        self._stream += 1
        self._connected = True
        self._wake()  # ends the messages of the stream before
        return True

    def suspend(self) -> bool:
        """The stream broke. Calls that may run again fail at once; whether others wait for another stream."""
        self._connected = False
        self._wake()
        for call_id, pending in list(self._pending.items()):
            if not (self.session and pending.call.once):
                self._fail(call_id, pending)
        return bool(self._pending) and not self._closed

    def close(self) -> None:
        """Fail every call on the lane; the message generator ends."""
        self._closed = True
        self._wake()
        self.fail_calls()

    def fail_calls(self) -> None:
        """Fail every call on the lane, as lost: nobody will answer them."""
        for call_id, pending in list(self._pending.items()):
            self._fail(call_id, pending)

    def _admit(self, call: LaneCall) -> None:
        if self._closed or not self._connected:
            raise _lost(self.node, sent=False)
        if self.full:
            raise ResourceExhausted(
                f"worker {self.node!r} has {self.in_flight} calls in flight; retry in a moment",
                reason=LANE_FULL,
                retry_after=0.05,
            )
        if len(call.payload) > MAX_PAYLOAD_BYTES:
            raise InvalidArgument(
                f"the request takes {len(call.payload)} bytes, the limit is {MAX_PAYLOAD_BYTES}; "
                "send fewer rows a call",
                reason="REQUEST_TOO_LARGE",
            )

    def _wake(self) -> None:
        waker = self._waker
        if waker is not None and not waker.done():
            waker.set_result(None)

    def _fail(self, call_id: int, pending: _Pending) -> None:
        """End a call because the lane broke."""
        unsent = self._outbox.waits(call_id)
        del self._pending[call_id]
        self._give_up(call_id)
        if not pending.future.done():
            pending.future.set_exception(_lost(self.node, sent=not unsent))

    def _give_up(self, call_id: int) -> None:
        """Forget a call that was not sent, so that a stalled lane holds no dead payloads; cancel one that was."""
        unsent = self._outbox.waits(call_id)
        self._outbox.drop(call_id)
        if not unsent:
            self._outbox.cancel(call_id)
            self._wake()

    def _take_reply(self, reply: pb.ReplyFrame) -> None:
        pending = self._pending.get(reply.call_id)
        if pending is None:
            return
        if pending.hear is not None and reply.HasField("load"):
            pending.hear(_load(reply.load))
        if reply.size:
            self._inbox.begin(reply.call_id, reply, reply.size, reply.payload)
            return
        if pending.future.done():
            return
        if reply.code:
            pending.future.set_exception(_error(reply))
        else:
            pending.future.set_result(reply.payload)

    def _join(self, data: pb.DataFrame) -> None:
        whole = self._inbox.add(data.call_id, data.data)
        for credit in self._inbox.credits():
            self._outbox.credit(credit.call_id, credit.size)
            self._wake()
        pending = self._pending.get(data.call_id)
        if whole is not None and pending is not None and not pending.future.done():
            pending.future.set_result(whole[1])

    def _batch(self) -> pb.GatewayFrames:
        message = pb.GatewayFrames(received=self._inbox.acknowledge(), in_flight=len(self._pending))
        now = self._loop.time()
        for piece in self._outbox.batch(now):
            frame = message.frames.add()
            if isinstance(piece, Piece):
                self._fill(frame, piece, now)
            elif isinstance(piece, Cancel):
                frame.cancel.call_id = piece.call_id
            else:
                frame.credit.call_id, frame.credit.bytes = piece.call_id, piece.size
        return message

    def _fill(self, frame: pb.GatewayFrame, piece: Piece[_Pending], now: float) -> None:
        """In place, because every copy of a frame is a copy of its payload."""
        parcel = piece.parcel
        if parcel.lost:  # sent again after a break, and there is nothing left to send
            frame.cancel.call_id = parcel.call_id
            if parcel.call_id in self._pending:
                self._fail(parcel.call_id, parcel.item)
            return
        if piece.start:
            frame.data.call_id, frame.data.data = parcel.call_id, piece.data
            return
        call, target = parcel.item.call, frame.call
        target.call_id = parcel.call_id
        target.method = call.method
        target.timeout_us = max(0, int((parcel.deadline - now) * 1e6))
        target.metadata.update(call.metadata)
        target.payload = piece.data
        target.deployment = call.deployment
        target.epoch = call.epoch
        if piece.end < parcel.size:
            target.size = parcel.size


def _most(asked: int) -> int:
    return min(asked, MAX_IN_FLIGHT) if asked > 0 else _DEFAULT_IN_FLIGHT


def _expire(future: asyncio.Future[bytes]) -> None:
    if not future.done():
        future.set_exception(
            DeadlineExceeded("the worker did not answer in time; allow more time or send less", reason="WORKER_TIMEOUT")
        )


def _lost(node: str, sent: bool) -> Unavailable:
    return Unavailable(
        f"worker {node!r} went away during the call; retry",
        reason=LANE_LOST if sent else LANE_UNSENT,
        retry_after=0.05,
    )


def _load(told: pb.Load) -> Load:
    """A worker that lies here is called less, or more, by those whose calls it answers anyway."""
    calls, queue, service, spent = (
        max(value, 0) for value in (told.calls, told.queue_us, told.service_us, told.spent_us)
    )
    return Load(calls, queue / 1e6, service / 1e6, spent / 1e6)


def _error(reply: pb.ReplyFrame) -> SealaneError:
    return from_code(_CODES.get(reply.code), reply.message, reply.status_details or None)
