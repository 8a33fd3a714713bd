"""A refused call leaves nothing behind that waits for the garbage collector: its request may be large."""

from __future__ import annotations

import gc
import time
import weakref

import pytest
from grpc_health.v1 import health_pb2

from sealane.errors import NotFound, SealaneError
from sealane.rpc.call import Call, Peer
from sealane.rpc.dispatch import Dispatcher, Served
from sealane.rpc.middleware import Chain, Parse

SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"]


class Request:
    """Stands for a large message."""


class Refusing:
    """Refuses with its request at hand."""

    def Check(self, request: object, call: Call) -> bytes:
        try:
            raise KeyError(request)
        except KeyError as error:
            raise NotFound("not here") from error

    List = Check


def test_the_request_of_a_refused_call_is_freed_at_once() -> None:
    dispatcher = Dispatcher([Served(Refusing(), SERVICE)], Chain([Parse()]))
    route = dispatcher.routes["/grpc.health.v1.Health/Check"]

    def refused() -> weakref.ref[Request]:
        call = Call(route.method, {}, Peer(), time.monotonic() + 10)
        request = Request()
        call.message = request  # type: ignore[assignment]  # a message takes no weak reference
        with pytest.raises(SealaneError):
            dispatcher.unary(route, call)
        return weakref.ref(request)

    gc.collect()
    gc.disable()
    try:
        assert refused()() is None
    finally:
        gc.enable()
