"""The calls that a stream carries hear when its caller leaves, and leave nothing behind when they are answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import SealaneError
from sealane.rpc.call import Call, Cancellation, Peer
from sealane.rpc.dispatch import Dispatcher, Route
from sealane.rpc.policy import Method, methods_of
from sealane_worker.streams import INFER, Streams

SERVICE = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"]
METHODS = {method.path: method for method in methods_of(SERVICE, "inference.GRPCInferenceService")}


@dataclass
class Model:
    """Answers at once; or waits for its caller to leave, as a model does that takes long."""

    waits: bool = False
    begun: threading.Event = field(default_factory=threading.Event)
    heard: threading.Event = field(default_factory=threading.Event)

    def route(self, path: str) -> Route:
        return Route(METHODS[path], lambda request, call: None)

    def unary(self, route: Route, call: Call) -> bytes:
        call.on_cancel(self.heard.set)
        self.begun.set()
        if self.waits:
            self.heard.wait(30)
        return oip.ModelInferResponse(id="answer").SerializeToString()


@dataclass
class Caller:
    """A caller of a stream; counts what is asked to be told of it."""

    leaves: Cancellation = field(default_factory=Cancellation)
    watches: int = 0

    def watch(self, callback: Callable[[], None]) -> bool:
        self.watches += 1
        return self.leaves.watch(callback)

    def call(self) -> Call:
        method: Method = METHODS["/inference.GRPCInferenceService/ModelStreamInfer"]
        return Call(method, {}, Peer(), time.monotonic() + 60, watch=self.watch)


def streams(model: Model) -> Streams:
    found = Streams(4)
    found.attach(cast(Dispatcher, model))
    return found


def test_a_long_stream_keeps_nothing_of_the_calls_that_are_over() -> None:
    caller, model = Caller(), Model()
    bodies = (oip.ModelInferRequest(id=str(index)).SerializeToString() for index in range(300))
    assert len(list(streams(model).run(bodies, caller.call()))) == 300
    assert caller.watches == 1
    assert METHODS[INFER].path == INFER


def test_a_call_under_way_hears_that_the_streams_caller_left() -> None:
    caller, model = Caller(), Model(waits=True)
    left = threading.Event()

    def bodies() -> Iterator[bytes]:
        yield oip.ModelInferRequest(id="1").SerializeToString()
        left.wait(30)

    def leave() -> None:
        model.begun.wait(30)
        caller.leaves.cancel()
        left.set()

    thread = threading.Thread(target=leave)
    thread.start()
    assert len(list(streams(model).run(bodies(), caller.call()))) == 1
    thread.join()
    assert model.heard.is_set()


def test_a_request_of_a_stream_whose_caller_left_is_not_run() -> None:
    caller, model = Caller(), Model()
    caller.leaves.cancel()
    call = caller.call()
    call.metadata = {"triton_grpc_error": "true"}
    try:
        list(streams(model).run(iter([oip.ModelInferRequest().SerializeToString()]), call))
    except SealaneError as error:
        assert error.kind == "CANCELLED"
    else:
        raise AssertionError("it was answered")
    assert not model.begun.is_set()
