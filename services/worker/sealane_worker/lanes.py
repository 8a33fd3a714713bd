"""Lanes: streams that this worker dials to the gateways and over which they call it.

A call from a lane runs through the same dispatcher as one on the worker's own listener: the caller's token is
verified again here, for a gateway may be taken over.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import grpc

from sealane.errors import NotFound, SealaneError, Unavailable
from sealane.inference.v1 import lane_service_pb2 as pb
from sealane.inference.v1.lane_service_pb2_grpc import LaneServiceStub
from sealane.rpc import limits
from sealane.rpc.call import Call, Peer
from sealane.rpc.dispatch import Dispatcher
from sealane.rpc.status import CODE_OF, to_status
from sealane_worker.engine import Engine
from sealane_worker.serving import ROUTED_DEPLOYMENT

log = logging.getLogger("sealane.worker.lanes")

FIRST_BACKOFF = 0.1
LAST_BACKOFF = 2.0
#: Replies that travel in one message stop here; one larger reply still travels alone.
COALESCE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class LaneWork:
    """What every lane of this worker shares.

    Attributes:
        dispatcher: the same as of the worker's own listener.
        engine: what is served, and at which epoch.
        pool: threads that calls run on.
        max_in_flight: calls that a gateway may have running here.
    """

    dispatcher: Dispatcher
    engine: Engine
    pool: ThreadPoolExecutor
    max_in_flight: int


#: Makes a channel to a gateway's mesh address, with the certificate of this moment.
Dial = Callable[[str], grpc.Channel]


class Lanes:
    """One lane per gateway."""

    def __init__(self, work: LaneWork, dial: Dial) -> None:
        self._work = work
        self._dial = dial
        self._lanes: dict[str, Lane] = {}

    def keep(self, addresses: Iterable[str]) -> None:
        """Have a lane to each of these gateways.

        A lane to another one goes once it is broken: a scheduler that has just started does not know its
        gateways yet, and calls in flight need nobody's leave.
        """
        wanted = set(addresses)
        for address in [name for name in self._lanes.keys() - wanted if not self._lanes[name].healthy]:
            self._lanes.pop(address).stop()
        for address in wanted - self._lanes.keys():
            self._lanes[address] = lane = Lane(self._work, self._dial, address)
            lane.start()

    def stop(self) -> None:
        """Close all."""
        while self._lanes:
            self._lanes.popitem()[1].stop()


class Lane:
    """Keeps one lane open, in a thread of its own."""

    def __init__(self, work: LaneWork, dial: Dial, address: str) -> None:
        self._work = work
        self._dial = dial
        self._address = address
        self._session: _Session | None = None
        self._opened: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lane-{address}", daemon=True)

    @property
    def healthy(self) -> bool:
        """Whether the stream has held for longer than a refusal takes."""
        opened = self._opened
        return opened is not None and time.monotonic() - opened > LAST_BACKOFF

    def start(self) -> None:
        """Begin to dial."""
        self._thread.start()

    def stop(self) -> None:
        """Close."""
        self._stop.set()
        session = self._session
        if session is not None:
            session.close()

    def _run(self) -> None:
        """Supervise: one session after another."""
        backoff = FIRST_BACKOFF
        while not self._stop.is_set():
            self._session = session = _Session(self._work)
            self._opened = opened = time.monotonic()
            try:
                with self._dial(self._address) as channel:
                    session.run(LaneServiceStub(channel))
            except SealaneError as error:
                log.info("lane closed, dialling again", extra={"gateway": self._address, "reason": error.reason})
            except Exception:  # supervisor: the lane is opened again whatever ended it
                log.exception("lane failed, dialling again")
            self._opened = None
            lived = time.monotonic() - opened > LAST_BACKOFF
            backoff = FIRST_BACKOFF if lived else min(backoff * 2, LAST_BACKOFF)
            self._stop.wait(random.uniform(0, backoff))


class _Session:
    """One stream to one gateway."""

    def __init__(self, work: LaneWork) -> None:
        self._work = work
        self._outgoing: queue.SimpleQueue[pb.WorkerFrame | None] = queue.SimpleQueue()
        self._begun: dict[int, Future[None]] = {}
        self._cancel: Callable[[], object] = lambda: None

    def close(self) -> None:
        """End from this side."""
        self._outgoing.put(None)
        self._cancel()

    def run(self, stub: LaneServiceStub) -> None:
        """Say hello, then take frames until the stream ends.

        Raises:
            SealaneError: the stream broke.
        """
        self._outgoing.put(pb.WorkerFrame(hello=pb.HelloFrame(max_in_flight=self._work.max_in_flight)))
        stream = stub.Open(self._messages())
        self._cancel = stream.cancel
        try:
            for message in stream:
                for frame in message.frames:
                    self._take(frame)
        finally:
            self._outgoing.put(None)
            for call in list(self._begun.values()):
                call.cancel()  # nobody is there to take the answers

    def _take(self, frame: pb.GatewayFrame) -> None:
        if frame.WhichOneof("frame") == "cancel":
            waiting = self._begun.get(frame.cancel.call_id)
            if waiting is not None:
                waiting.cancel()  # only what has not begun: a running model cannot be stopped in the middle
            return
        call = frame.call
        # The deadline counts from here, not from when a thread is free.
        deadline = time.monotonic() + min(call.timeout_us / 1e6, limits.UNARY_SECONDS)
        future = self._work.pool.submit(self._answer, call, deadline)
        self._begun[call.call_id] = future
        future.add_done_callback(lambda _: self._begun.pop(call.call_id, None))

    def _answer(self, frame: pb.CallFrame, deadline: float) -> None:
        try:
            payload = self._run_call(frame, deadline)
        except SealaneError as error:
            reply = pb.ReplyFrame(
                call_id=frame.call_id,
                code=CODE_OF[error.kind].value[0],
                message=error.message,
                status_details=to_status(error, frame.metadata.get("x-request-id", "")).SerializeToString(),
            )
        else:
            reply = pb.ReplyFrame(call_id=frame.call_id, payload=payload)
        self._outgoing.put(pb.WorkerFrame(reply=reply))

    def _run_call(self, frame: pb.CallFrame, deadline: float) -> bytes:
        self._check_route(frame)
        route = self._work.dispatcher.route(frame.method)
        call = Call(
            method=route.method,
            metadata={**frame.metadata, ROUTED_DEPLOYMENT: frame.deployment},
            peer=Peer(via_gateway=True, tls_version="TLSv1.3"),
            deadline=deadline,
            body=frame.payload,
        )
        return self._work.dispatcher.unary(route, call)

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

    def _messages(self) -> Iterator[pb.WorkerFrames]:
        """Replies; all that wait travel together."""
        while True:
            frame = self._outgoing.get()
            frames, size = [], 0
            while frame is not None:
                frames.append(frame)
                size += len(frame.reply.payload)
                if size >= COALESCE_BYTES or self._outgoing.empty():
                    break
                frame = self._outgoing.get()
            if frames:
                yield pb.WorkerFrames(frames=frames)
            if frame is None:
                return
