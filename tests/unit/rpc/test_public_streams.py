"""Streams have places of their own: health's Watch, which anybody may open, and those of peers, which live for days."""

from __future__ import annotations

import time

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sealane.errors import ResourceExhausted
from sealane.rpc import middleware
from sealane.rpc.call import Call, Peer
from sealane.rpc.health import Health
from sealane.rpc.middleware import PUBLIC_STREAM_SECONDS, PUBLIC_STREAMS, Chain, Deadline, Limits, Parse
from sealane.rpc.policy import Method, methods_of
from sealane.rpc.server import build
from sealane.scheduler.v1 import fleet_service_pb2

_METHODS = {method.name: method for method in methods_of(health_pb2.DESCRIPTOR.services_by_name["Health"])}


def call(method: Method) -> Call:
    return Call(method, {}, Peer("", "TLSv1.3"), time.monotonic() + 24 * 3600)


def test_public_streams_have_places_of_their_own() -> None:
    limits = Limits(10)
    watches = [call(_METHODS["Watch"]) for _ in range(PUBLIC_STREAMS)]
    for watch in watches:
        limits.before(watch)
        assert watch.remaining <= PUBLIC_STREAM_SECONDS
    with pytest.raises(ResourceExhausted) as refused:
        limits.before(call(_METHODS["Watch"]))
    assert refused.value.reason == "PUBLIC_STREAMS" and refused.value.retry_after
    assert limits.in_flight == 0
    limits.before(call(_METHODS["Check"]))
    assert limits.in_flight == 1
    limits.after(watches.pop(), None)
    limits.before(call(_METHODS["Watch"]))


def test_streams_of_peers_take_no_place_from_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "PEER_STREAMS", 3)
    limits, connect = Limits(1), methods_of(fleet_service_pb2.DESCRIPTOR.services_by_name["FleetService"])[0]
    streams = [call(connect) for _ in range(3)]
    for stream in streams:
        limits.before(stream)
    with pytest.raises(ResourceExhausted) as refused:
        limits.before(call(connect))
    assert refused.value.reason == "PEER_STREAMS" and refused.value.retry_after
    assert limits.in_flight == 0
    limits.after(streams.pop(), None)
    limits.before(call(connect))


async def test_a_watch_ends_by_itself_and_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "PUBLIC_STREAMS", 1)
    monkeypatch.setattr(middleware, "PUBLIC_STREAM_SECONDS", 0.3)
    server = build([Health().served_aio()], Chain([Limits(10), Deadline(), Parse()]), mesh=False)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for _ in range(2):
                answers = [answer.status async for answer in stub.Watch(health_pb2.HealthCheckRequest(), timeout=20)]
                assert answers == [health_pb2.HealthCheckResponse.NOT_SERVING]
    finally:
        await server.stop(0)
