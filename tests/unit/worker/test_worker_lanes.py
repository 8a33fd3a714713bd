"""Lanes: the gateway's calls reach the model over a stream that the worker dialled."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from worker_parts import DEPLOYMENT, Front, Local

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import SealaneError, Unavailable
from sealane.inference.v1 import lane_service_pb2 as pb
from sealane.inference.v1 import lane_service_pb2_grpc
from sealane.protocols import openinference
from sealane.protocols.call import InferenceCall, Target
from sealane.rpc.status import from_code
from sealane.tensors import Array
from sealane_worker.lane_session import LaneWork
from sealane_worker.lanes import Lanes

INFER = "/inference.GRPCInferenceService/ModelInfer"


class FakeGateway(lane_service_pb2_grpc.LaneServiceServicer):
    """The gateway's end: sends frames, collects replies."""

    def __init__(self) -> None:
        self.hello: queue.Queue[pb.HelloFrame] = queue.Queue()
        self.replies: dict[int, pb.ReplyFrame] = {}
        self.messages = 0
        self.arrived = threading.Condition()
        self.outgoing: queue.Queue[pb.GatewayFrames | None] = queue.Queue()

    def Open(
        self, request_iterator: Iterator[pb.WorkerFrames], context: grpc.ServicerContext
    ) -> Iterator[pb.GatewayFrames]:
        """One lane."""
        threading.Thread(target=self._collect, args=(request_iterator,), daemon=True).start()
        yield pb.GatewayFrames(frames=[pb.GatewayFrame(welcome=pb.WelcomeFrame())])
        while (frames := self.outgoing.get()) is not None:
            yield frames

    def _collect(self, messages: Iterator[pb.WorkerFrames]) -> None:
        try:
            for message in messages:
                for frame in message.frames:
                    if frame.HasField("hello"):
                        self.hello.put(frame.hello)
                with self.arrived:
                    self.messages += 1
                    self.replies.update({f.reply.call_id: f.reply for f in message.frames if f.HasField("reply")})
                    self.arrived.notify_all()
        except grpc.RpcError:
            return

    def reply(self, call_id: int) -> bytes:
        """The answer's bytes, or its error raised."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: call_id in self.replies, 10), "no reply"
        reply = self.replies[call_id]
        if reply.code:
            code = next(code for code in grpc.StatusCode if code.value[0] == reply.code)
            raise from_code(code, reply.message, reply.status_details)
        return reply.payload


@pytest.fixture
def gateway(front: Front, local: Local) -> Iterator[FakeGateway]:
    """A gateway to which the worker keeps a lane."""
    fake = FakeGateway()
    address = local.serve(lane_service_pb2_grpc.add_LaneServiceServicer_to_server, fake)
    pool = ThreadPoolExecutor(8)
    lanes = Lanes(LaneWork(front.dispatcher, front.engine, pool, 48), local.dial)
    lanes.keep([address])
    fake.hello.get(timeout=5)
    yield fake
    lanes.stop()
    fake.outgoing.put(None)
    pool.shutdown()


def _frame(rows: Array, call_id: int = 1, epoch: int = 5, model: str = "anything") -> pb.GatewayFrame:
    request = openinference.encode_request(InferenceCall(Target(model), {"image": rows}))
    return pb.GatewayFrame(
        call=pb.CallFrame(
            call_id=call_id,
            method=INFER,
            timeout_us=5_000_000,
            payload=request.SerializeToString(),
            deployment=DEPLOYMENT,
            epoch=epoch,
        )
    )


def _failure(gateway: FakeGateway, frame: pb.GatewayFrame) -> SealaneError:
    gateway.outgoing.put(pb.GatewayFrames(frames=[frame]))
    with pytest.raises(SealaneError) as failure:
        gateway.reply(frame.call.call_id)
    return failure.value


def test_many_calls_on_one_stream(gateway: FakeGateway, digits: tuple[Array, Array]) -> None:
    x, y = digits
    gateway.outgoing.put(pb.GatewayFrames(frames=[_frame(x[index : index + 1], index) for index in range(40)]))
    answers = []
    for index in range(40):
        response = oip.ModelInferResponse.FromString(gateway.reply(index))
        answers.append(openinference.decode_response(response)["probabilities"].argmax())
    assert (np.array(answers) == y[:40]).mean() >= 0.9


def test_an_outdated_route_is_told_so_that_the_gateway_goes_elsewhere(
    gateway: FakeGateway, digits: tuple[Array, Array]
) -> None:
    failure = _failure(gateway, _frame(digits[0][:1], 1, epoch=4))
    assert isinstance(failure, Unavailable)
    assert failure.reason == "STALE_ROUTE"


def test_errors_keep_their_code_and_reason(gateway: FakeGateway, digits: tuple[Array, Array]) -> None:
    assert _failure(gateway, _frame(digits[0][:1, :3], 1)).reason == "INPUT_SHAPE_MISMATCH"
    unknown = _frame(digits[0][:1], 2)
    unknown.call.method = "/no.Such/Method"
    assert _failure(gateway, unknown).kind == "UNIMPLEMENTED"
    over = _frame(digits[0][:1], 3)
    over.call.timeout_us = 0
    assert _failure(gateway, over).kind == "DEADLINE_EXCEEDED"
    foreign = _frame(digits[0][:1], 4)
    foreign.call.metadata["project"] = "q"
    assert _failure(gateway, foreign).kind == "NOT_FOUND"


def test_a_lane_that_broke_is_dialled_again(gateway: FakeGateway, digits: tuple[Array, Array]) -> None:
    gateway.outgoing.put(None)  # the gateway ends the stream
    gateway.hello.get(timeout=5)
    gateway.outgoing.put(pb.GatewayFrames(frames=[_frame(digits[0][:1], 77)]))
    assert gateway.reply(77)


def test_a_call_of_the_past_is_not_run_after_a_cancel(gateway: FakeGateway, digits: tuple[Array, Array]) -> None:
    # More calls than threads: the last ones wait in the pool and can still be cancelled.
    calls = [_frame(digits[0][:100], index) for index in range(200)]
    cancel = pb.GatewayFrame(cancel=pb.CancelFrame(call_id=199))
    gateway.outgoing.put(pb.GatewayFrames(frames=[*calls, cancel]))
    end = time.monotonic() + 10
    while len(gateway.replies) < 199 and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.05)
    assert 199 not in gateway.replies
