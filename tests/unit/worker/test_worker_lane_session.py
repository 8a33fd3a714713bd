"""A worker's end of a lane over several streams: what it sends again, what it never runs twice, what it lets go of."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace

import grpc
import pytest
from worker_parts import Local

from sealane.inference.v1 import lane_service_pb2 as pb
from sealane.inference.v1 import lane_service_pb2_grpc
from sealane.rpc import lane
from sealane.rpc.call import Call
from sealane.rpc.lane import CHUNK_BYTES
from sealane_worker.lane_session import LaneSession, LaneWork
from sealane_worker.lanes import Lanes


def until(condition: Callable[[], bool], what: str = "it") -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen in time"
        time.sleep(0.002)


@dataclass
class Stream:
    """One stream as the gateway sees it."""

    hello: pb.HelloFrame
    outgoing: queue.Queue[pb.GatewayFrames | None] = field(default_factory=queue.Queue)
    frames: list[pb.WorkerFrame] = field(default_factory=list)

    def welcome(self, *, resumed: bool = False, received: int = 0) -> None:
        self.send(pb.GatewayFrame(welcome=pb.WelcomeFrame(resumed=resumed, received=received)))

    def send(self, *frames: pb.GatewayFrame, received: int = 0) -> None:
        self.outgoing.put(pb.GatewayFrames(frames=frames, received=received))

    def replies(self) -> dict[int, bytes]:
        """Payloads by call, as far as they came."""
        found: dict[int, bytes] = {}
        for frame in list(self.frames):
            if frame.HasField("reply"):
                found[frame.reply.call_id] = frame.reply.payload
            elif frame.HasField("data"):
                found[frame.data.call_id] += frame.data.data
        return found

    def cut(self) -> None:
        self.outgoing.put(None)


class FakeGateway(lane_service_pb2_grpc.LaneServiceServicer):
    """Takes streams; the test says what is answered."""

    def __init__(self) -> None:
        self.streams: queue.Queue[Stream] = queue.Queue()

    def Open(
        self, request_iterator: Iterator[pb.WorkerFrames], context: grpc.ServicerContext
    ) -> Iterator[pb.GatewayFrames]:
        stream = Stream(next(request_iterator).frames[0].hello)
        threading.Thread(target=self._collect, args=(stream, request_iterator), daemon=True).start()
        self.streams.put(stream)
        while (frames := stream.outgoing.get()) is not None:
            yield frames
        context.abort(grpc.StatusCode.UNAVAILABLE, "cut")

    @staticmethod
    def _collect(stream: Stream, messages: Iterator[pb.WorkerFrames]) -> None:
        try:
            for message in messages:
                stream.frames.extend(message.frames)
        except grpc.RpcError:
            return

    def next(self) -> Stream:
        return self.streams.get(timeout=10)


class Dispatcher:
    """Answers with the request; notes what it runs; some calls wait."""

    def __init__(self) -> None:
        self.ran: list[bytes] = []
        self.cancelled: list[bytes] = []
        self.go_on = threading.Event()
        self.answer: Callable[[bytes], bytes] = lambda body: body

    def route(self, path: str) -> SimpleNamespace:
        return SimpleNamespace(method=None)

    def unary(self, route: object, call: Call) -> bytes:
        body = call.body or b""
        self.ran.append(body)
        call.on_cancel(lambda: self.cancelled.append(body))
        if body.startswith(b"wait"):
            self.go_on.wait(10)
        return self.answer(body)


class Engine:
    """Everything is served at epoch 1."""

    def model(self, deployment: str) -> SimpleNamespace:
        return SimpleNamespace(assignment=SimpleNamespace(epoch=1))


@dataclass
class Site:
    """A gateway, a worker's lane to it, and what the worker runs."""

    gateway: FakeGateway
    dispatcher: Dispatcher

    def open(self) -> Stream:
        stream = self.gateway.next()
        stream.welcome()
        return stream


@pytest.fixture
def site(local: Local) -> Iterator[Site]:
    fake, dispatcher = FakeGateway(), Dispatcher()
    address = local.serve(lane_service_pb2_grpc.add_LaneServiceServicer_to_server, fake)
    with ThreadPoolExecutor(8) as pool:
        lanes = Lanes(LaneWork(dispatcher, Engine(), pool, 48), local.dial)  # type: ignore[arg-type]
        lanes.keep([address])
        yield Site(fake, dispatcher)
        dispatcher.go_on.set()
        lanes.stop()
        while not fake.streams.empty():
            fake.streams.get().cut()


def call(call_id: int, payload: bytes, size: int = 0) -> pb.GatewayFrame:
    return pb.GatewayFrame(
        call=pb.CallFrame(call_id=call_id, method="/x/Y", timeout_us=30_000_000, payload=payload, epoch=1, size=size)
    )


def cancel(call_id: int) -> pb.GatewayFrame:
    return pb.GatewayFrame(cancel=pb.CancelFrame(call_id=call_id))


def data(call_id: int, payload: bytes) -> pb.GatewayFrame:
    return pb.GatewayFrame(data=pb.DataFrame(call_id=call_id, data=payload))


def test_an_answer_that_was_lost_on_the_way_is_sent_again(site: Site) -> None:
    first = site.open()
    first.send(call(1, b"one"), call(2, b"wait two"))
    until(lambda: 1 in first.replies())
    until(lambda: b"wait two" in site.dispatcher.ran)
    first.cut()
    second = site.gateway.next()
    assert second.hello.session == first.hello.session
    assert second.hello.received == 2
    second.welcome(resumed=True, received=0)  # the first answer never came
    until(lambda: second.replies().get(1) == b"one")
    site.dispatcher.go_on.set()
    until(lambda: second.replies().get(2) == b"wait two")
    assert sorted(site.dispatcher.ran) == [b"one", b"wait two"], "nothing ran twice"
    second.cut()


def test_an_answer_that_came_is_not_sent_again(site: Site) -> None:
    first = site.open()
    first.send(call(1, b"one"))
    until(lambda: 1 in first.replies())
    first.cut()
    second = site.gateway.next()
    second.welcome(resumed=True, received=1)
    second.send(call(2, b"two"))
    until(lambda: 2 in second.replies())
    assert 1 not in second.replies()
    second.cut()


def test_a_gateway_that_forgot_the_session_gets_none_of_it(site: Site) -> None:
    first = site.open()
    first.send(call(1, b"wait"))
    until(lambda: bool(site.dispatcher.ran))
    first.cut()
    second = site.open()
    until(lambda: site.dispatcher.cancelled == [b"wait"])
    second.send(call(1, b"another"))
    until(lambda: second.replies() == {1: b"another"})
    site.dispatcher.go_on.set()
    second.send(call(2, b"last"))
    until(lambda: 2 in second.replies())
    assert second.replies() == {1: b"another", 2: b"last"}
    second.cut()


def test_a_cut_in_the_middle_of_a_large_call_costs_no_byte(site: Site) -> None:
    payload = bytes(range(256)) * 4000
    first = site.open()
    first.send(call(1, payload[:CHUNK_BYTES], len(payload)), data(1, payload[CHUNK_BYTES : 2 * CHUNK_BYTES]))
    first.send(call(2, b"small"))
    until(lambda: 2 in first.replies())
    first.cut()
    second = site.gateway.next()
    assert second.hello.received == 3
    second.welcome(resumed=True, received=len(first.frames))
    for at in range(2 * CHUNK_BYTES, len(payload), CHUNK_BYTES):
        second.send(data(1, payload[at : at + CHUNK_BYTES]))
    until(lambda: payload in site.dispatcher.ran)
    second.cut()


def test_a_large_answer_waits_for_credit_and_small_ones_pass_it(site: Site) -> None:
    site.dispatcher.answer = lambda body: body * 3_000_000 if body == b"x" else body
    stream = site.open()
    stream.send(call(1, b"x"))
    until(lambda: len(stream.replies().get(1, b"")) == lane.WINDOW_BYTES, "a window of the answer")
    stream.send(call(2, b"small"))
    until(lambda: 2 in stream.replies())
    assert len(stream.replies()[1]) == lane.WINDOW_BYTES, "no more than was asked for"
    head = next(frame.reply for frame in stream.frames if frame.reply.call_id == 1)
    assert head.size == 3_000_000
    stream.send(pb.GatewayFrame(credit=pb.CreditFrame(call_id=1, bytes=3_000_000)))
    until(lambda: stream.replies()[1] == b"x" * 3_000_000)
    stream.cut()


def test_a_large_call_is_asked_for_and_dropped_when_nobody_wants_it(site: Site) -> None:
    stream = site.open()
    size = 100 * CHUNK_BYTES
    stream.send(call(1, bytes(CHUNK_BYTES), size), *(data(1, bytes(CHUNK_BYTES)) for _ in range(3)))
    until(lambda: any(frame.HasField("credit") for frame in stream.frames), "credit")
    stream.send(cancel(1), data(1, bytes(CHUNK_BYTES)), call(2, b"next"))
    until(lambda: 2 in stream.replies())
    assert site.dispatcher.ran == [b"next"]
    stream.cut()


def test_a_running_call_hears_that_nobody_waits(site: Site) -> None:
    stream = site.open()
    stream.send(call(1, b"wait"))
    until(lambda: bool(site.dispatcher.ran))
    stream.send(cancel(1))
    until(lambda: site.dispatcher.cancelled == [b"wait"])
    site.dispatcher.go_on.set()
    stream.send(call(2, b"next"))
    until(lambda: 2 in stream.replies())
    assert 1 not in stream.replies()
    stream.cut()


def test_answers_beyond_the_bound_fail_where_they_were_lost(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "LANE_BYTES", 250_000)
    site.dispatcher.answer = lambda body: body * 100_000
    first = site.open()
    for number in range(1, 6):
        first.send(call(number, b"x"))
        until(lambda number=number: number in first.replies())  # type: ignore[misc]
    first.cut()
    second = site.gateway.next()
    second.welcome(resumed=True, received=0)
    until(lambda: len(second.replies()) == 5)
    answers = {frame.reply.call_id: frame.reply for frame in second.frames if frame.HasField("reply")}
    assert [answers[number].code for number in range(1, 6)] == [14, 14, 14, 0, 0]
    assert b"LANE_LOST" in answers[1].status_details
    second.cut()


def test_a_lane_that_is_stuck_takes_no_more_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "LANE_BYTES", 1000)
    dispatcher = Dispatcher()
    with ThreadPoolExecutor(2) as pool:
        session = LaneSession(LaneWork(dispatcher, Engine(), pool, 48))  # type: ignore[arg-type]
        session._open = True
        for body in (b"x" * 2000, b"y"):
            number = len(dispatcher.ran) + 1
            for work in session._take_message(pb.GatewayFrames(frames=[call(number, body)])):
                work()
        replies = [piece.parcel.item for piece in session._outbox.batch(0.0)]  # type: ignore[union-attr]
    assert [reply.code for reply in replies] == [0, 8]
    assert dispatcher.ran == [b"x" * 2000]


def test_a_gateway_that_sends_nonsense_is_dialled_anew_under_another_name(site: Site) -> None:
    first = site.open()
    first.send(call(1, b"wait"), call(1, b"again"))
    second = site.gateway.next()
    assert second.hello.session != first.hello.session
    assert second.hello.received == 0
    second.cut()
    first.cut()
