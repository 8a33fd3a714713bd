"""One session with one gateway: the calls that it sent, their answers, and what both need to go on after a break."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from sealane.errors import InvalidArgument, NotFound, SealaneError, Unavailable
from sealane.inference.v1 import lane_service_pb2 as pb
from sealane.inference.v1.lane_service_pb2_grpc import LaneServiceStub
from sealane.rpc import limits
from sealane.rpc.call import Call, Cancellation, Peer
from sealane.rpc.dispatch import Dispatcher
from sealane.rpc.lane import LANE_CONFUSED, MAX_PAYLOAD_BYTES, Cancel, Outbox, Pace, Piece
from sealane.rpc.lane_inbox import Inbox
from sealane_worker.engine import Engine
from sealane_worker.lane_readers import Readers
from sealane_worker.lane_replies import failed, fill, full, tell, too_large
from sealane_worker.link_meter import LinkMeter
from sealane_worker.serving import ROUTED_DEPLOYMENT

_PEER = Peer(via_gateway=True, tls_version="TLSv1.3")


@dataclass(frozen=True, slots=True)
class LaneWork:
    """What every lane of this worker shares.

    Attributes:
        dispatcher: the same as of the worker's own listener.
        engine: what is served, and at which epoch.
        pool: threads that calls run on.
        max_in_flight: calls that a gateway may have running here.
        meter: told how fast large payloads travel.
    """

    dispatcher: Dispatcher
    engine: Engine
    pool: ThreadPoolExecutor
    max_in_flight: int
    meter: LinkMeter = field(default_factory=LinkMeter)


@dataclass(slots=True, eq=False)
class _Running:
    """A call that this worker has whole; what it was sent in is let go of once it is answered."""

    frame: pb.CallFrame
    payload: bytes
    deadline: float
    cancellation: Cancellation = field(default_factory=Cancellation)
    dropped: bool = False

    def cancel(self) -> None:
        """Not begun, it is not run; running, it ends as soon as the model lets it."""
        self.dropped = True
        self.cancellation.cancel()


class LaneSession:
    """The calls of one gateway, over one stream after another. All methods are for any thread."""

    def __init__(self, work: LaneWork) -> None:
        self._work = work
        self._session = uuid.uuid4().hex
        self._lock = threading.Lock()  # holds while anything below changes
        # Wakes who sends. A queue in C is woken faster than a condition, and nobody rings it with the lock in his hand.
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._outbox: Outbox[pb.ReplyFrame] = Outbox()
        self._inbox: Inbox[tuple[pb.CallFrame, float, float]] = Inbox()
        self._credited = (0, 0.0)
        self._running: dict[int, _Running] = {}
        self._begun: list[Callable[[], None]] = []
        self._life = 0
        self._stream = 0
        self._open = False
        self._closed = False
        self._welcomed = False
        self._in_flight = 0
        self._cancel: Callable[[], object] = lambda: None

    def close(self) -> None:
        """End from this side, for good."""
        self._closed = True
        self._bell.put(None)
        self._cancel()

    def take_welcomed(self) -> bool:
        """Whether a gateway welcomed this worker since this was last asked."""
        welcomed, self._welcomed = self._welcomed, False
        return welcomed

    def run(self, stub: LaneServiceStub) -> None:
        """Say hello, then take frames until the stream ends.

        Raises:
            SealaneError: the stream broke.
        """
        with self._lock:
            self._stream += 1
            self._open = False
            bell: queue.SimpleQueue[None] = queue.SimpleQueue()
            self._bell = bell
            hello = pb.HelloFrame(
                max_in_flight=self._work.max_in_flight, session=self._session, received=self._inbox.received
            )
        stream = stub.Open(self._messages(self._stream, hello, bell))
        self._cancel = stream.cancel
        try:
            Readers(iter(stream), self._work.pool, self._take_message).run()
        finally:
            self._stream += 1  # ends the messages
            bell.put(None)

    def forget(self, *, renew: bool = True) -> None:
        """Nobody is there to take the answers: end every call, and begin with nothing, under another name or not."""
        with self._lock:
            if renew:
                self._session = uuid.uuid4().hex
            running, self._running = self._running, {}
            self._outbox, self._inbox = Outbox(), Inbox()
            self._life += 1
        for call in running.values():
            call.cancel()

    def _begin(self, message: pb.GatewayFrames) -> None:
        first = message.frames[0] if message.frames else pb.GatewayFrame()
        if first.WhichOneof("frame") != "welcome":
            raise InvalidArgument(
                "the gateway did not welcome this worker; it has another version", reason=LANE_CONFUSED
            )
        if not first.welcome.resumed:
            self.forget(renew=False)
        with self._lock:
            if first.welcome.resumed and not self._outbox.resume(first.welcome.received):
                raise InvalidArgument("the gateway counts other frames than were sent", reason=LANE_CONFUSED)
            self._open = self._welcomed = True
        self._bell.put(None)

    def _take_message(self, message: pb.GatewayFrames) -> list[Callable[[], None]]:
        """Take the frames in; returns the calls that can run now."""
        if not self._open:
            self._begin(message)
            return []
        self._take(message)
        begun, self._begun = self._begun, []
        return begun

    def _take(self, message: pb.GatewayFrames) -> None:
        now, size = time.monotonic(), 0
        with self._lock:
            self._outbox.acknowledge(message.received)
            self._in_flight = message.in_flight
            for frame in message.frames:
                kind = frame.WhichOneof("frame")
                if kind == "call":
                    size += len(frame.call.payload)
                    self._take_call(frame.call, now)
                elif kind == "data":
                    size += len(frame.data.data)
                    self._join(frame.data)
                elif kind == "cancel":
                    self._drop(frame.cancel.call_id)
                elif kind == "credit":
                    self._grant(frame.credit, now)
            self._inbox.count(len(message.frames), size)
            due = self._inbox.acknowledgement_due or self._outbox.ready
        if due:
            self._bell.put(None)

    def _take_call(self, frame: pb.CallFrame, now: float) -> None:
        # The deadline counts from here, not from when a thread is free.
        deadline = now + min(frame.timeout_us / 1e6, limits.UNARY_SECONDS)
        if frame.size:
            self._inbox.begin(frame.call_id, (frame, deadline, now), frame.size, frame.payload)
            self._ask()
        else:
            self._start(frame, frame.payload, deadline)

    def _join(self, data: pb.DataFrame) -> None:
        whole = self._inbox.add(data.call_id, data.data)
        if whole is not None:
            (frame, deadline, begun), payload = whole
            self._work.meter.came(len(payload) - len(frame.payload), time.monotonic() - begun)
            self._start(frame, payload, deadline)
        self._ask()

    def _grant(self, credit: pb.CreditFrame, now: float) -> None:
        """The gateway takes more of an answer: as much of it has arrived since it said so before."""
        call_id, before = self._credited
        if call_id == credit.call_id:
            self._work.meter.left(credit.bytes, now - before)
        self._credited = (credit.call_id, now)
        self._outbox.grant(credit.call_id, credit.bytes)

    def _ask(self) -> None:
        for credit in self._inbox.credits():
            self._outbox.credit(credit.call_id, credit.size)

    def _start(self, frame: pb.CallFrame, payload: bytes, deadline: float) -> None:
        call_id = frame.call_id
        if call_id in self._running:
            raise InvalidArgument("the gateway gave two calls one number", reason=LANE_CONFUSED)
        if self._outbox.full:
            self._put(call_id, failed(frame, full()))
            return
        running = self._running[call_id] = _Running(frame, payload, deadline)
        self._begun.append(functools.partial(self._answer, running, self._life))

    def _drop(self, call_id: int) -> None:
        """Nobody waits for this call any more."""
        if self._inbox.drop(call_id):
            self._ask()
        self._outbox.drop(call_id)
        running = self._running.pop(call_id, None)
        if running is not None:
            running.cancel()

    def _answer(self, running: _Running, life: int) -> None:
        frame = running.frame
        payload = b""
        if running.dropped:
            return
        call: Call | None = None
        try:
            call = self._call_of(running)
            payload = self._work.dispatcher.unary(self._work.dispatcher.route(frame.method), call)
            if len(payload) > MAX_PAYLOAD_BYTES:
                raise too_large(len(payload))
            reply = pb.ReplyFrame(call_id=frame.call_id)
        except SealaneError as error:
            payload, reply = b"", failed(frame, error)
        if call is not None:
            tell(reply, call)
        with self._lock:
            if life == self._life and self._running.pop(frame.call_id, None) is not None:
                self._put(frame.call_id, reply, payload)
        self._bell.put(None)

    def _put(self, call_id: int, reply: pb.ReplyFrame, payload: bytes = b"") -> None:
        self._outbox.add(call_id, reply, payload)

    def _call_of(self, running: _Running) -> Call:
        frame = running.frame
        self._check_route(frame)
        return Call(
            method=self._work.dispatcher.route(frame.method).method,
            metadata={**frame.metadata, ROUTED_DEPLOYMENT: frame.deployment},
            peer=_PEER,
            deadline=running.deadline,
            body=running.payload,
            watch=running.cancellation.watch,
        )

    def _check_route(self, frame: pb.CallFrame) -> None:
        try:
            epoch = self._work.engine.model(frame.deployment).assignment.epoch
        except NotFound:
            epoch = -1
        if epoch != frame.epoch:
            raise Unavailable(
                f"the route of {frame.deployment} is of epoch {frame.epoch}, this worker is at {epoch}; route anew",
                reason="STALE_ROUTE",
            )

    def _messages(self, stream: int, hello: pb.HelloFrame, bell: queue.SimpleQueue[None]) -> Iterator[pb.WorkerFrames]:
        """Hello, and after the welcome replies; all that wait travel together."""
        yield pb.WorkerFrames(frames=[pb.WorkerFrame(hello=hello)])
        pace = Pace()
        while self._stream == stream and not self._closed:
            if not self._ready():
                bell.get()
                continue
            self._gather(pace.pause(time.monotonic(), self._in_flight), bell)
            with self._lock:
                message = self._batch() if self._stream == stream and self._ready() else None
            if message is not None:
                yield message

    def _gather(self, pause: float, bell: queue.SimpleQueue[None]) -> None:
        until = time.monotonic() + pause
        while not self._outbox.plenty and (left := until - time.monotonic()) > 0.0:
            with contextlib.suppress(queue.Empty):
                bell.get(timeout=left)

    def _ready(self) -> bool:
        return self._open and (self._outbox.ready or self._inbox.acknowledgement_due)

    def _batch(self) -> pb.WorkerFrames:
        message = pb.WorkerFrames(received=self._inbox.acknowledge())
        for piece in self._outbox.batch(time.monotonic()):
            frame = message.frames.add()
            if isinstance(piece, Piece):
                fill(frame, piece)
            elif not isinstance(piece, Cancel):  # a worker cancels nothing
                frame.credit.call_id, frame.credit.bytes = piece.call_id, piece.size
        return message
