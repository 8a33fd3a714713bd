"""What the servers decide for themselves: how long a call may run, and whose certificate has had its time."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives import serialization
from grpc_health.v1 import health_pb2

from sealane.rpc import limits, sync_server
from sealane.rpc.call import Call
from sealane.rpc.dispatch import Dispatcher, Served
from sealane.rpc.middleware import Chain, Deadline, Parse
from sealane.rpc.server import build
from sealane.security import tls
from sealane_auth import authority

CHECK = "/grpc.health.v1.Health/Check"
SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"]
NOW = datetime.datetime.now(datetime.UTC)


class Slow:
    """Never answers; remembers how long it was given."""

    def __init__(self) -> None:
        self.given: list[float] = []

    async def Check(self, request: health_pb2.HealthCheckRequest, call: Call) -> bytes:
        self.given.append(call.remaining)
        await asyncio.sleep(60)
        return b""

    Watch = List = Check


class Quick:
    """Answers at once; remembers how long it was given."""

    def __init__(self) -> None:
        self.given: list[float] = []

    def Check(self, request: health_pb2.HealthCheckRequest, call: Call) -> bytes:
        self.given.append(call.remaining)
        return b""

    List = Check


@asynccontextmanager
async def asyncio_server(servicer: object, identity: tls.PeerIdentity | None = None) -> AsyncIterator[str]:
    server = build([Served(servicer, SERVICE)], Chain([Deadline(), Parse()]), mesh=identity is not None)
    if identity is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", tls.server_credentials(identity, mesh=True))
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def test_a_call_without_a_deadline_gets_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UNARY_SECONDS", 0.3)
    servicer = Slow()
    async with asyncio_server(servicer) as address, grpc.aio.insecure_channel(address) as channel:
        for timeout in (None, 50.0):
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await channel.unary_unary(CHECK)(b"", timeout=timeout)
            assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert all(0 < given <= 0.3 for given in servicer.given)


def test_the_synchronous_front_caps_deadlines_too() -> None:
    servicer = Quick()
    server = sync_server.build(Dispatcher([Served(servicer, SERVICE)], Chain([Deadline(), Parse()])), threads=2)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            for timeout in (None, 3600.0):
                channel.unary_unary(CHECK)(b"", timeout=timeout)
    finally:
        server.stop(0).wait()
    assert len(servicer.given) == 2
    assert all(given <= limits.UNARY_SECONDS for given in servicer.given)


async def test_a_certificate_that_has_expired_opens_no_mesh_port(tmp_path: Path) -> None:
    root = authority.make_root(NOW - datetime.timedelta(days=3))
    signer = authority.make_intermediate(root, NOW - datetime.timedelta(days=3))

    def identity(name: str, begin: datetime.datetime) -> tls.PeerIdentity:
        key, request = tls.new_request()
        names = authority.service_names(name)
        leaf = authority.issue_leaf(
            signer, request, names, authority.Validity(begin, begin + datetime.timedelta(days=1))
        )
        chain = leaf.public_bytes(serialization.Encoding.PEM) + signer.certificate_pem
        issued = tls.Issued(chain, root.certificate_pem, names.spiffe_id, {})
        return tls.store(tmp_path / f"{name}-{begin.timestamp()}", key, issued)

    hour = datetime.timedelta(hours=1)
    good, expired = identity("scheduler", NOW - hour), identity("scheduler", NOW - 26 * hour)
    async with asyncio_server(Answering(), identity("auth", NOW - hour)) as address:
        for peer, code in ((good, grpc.StatusCode.OK), (expired, grpc.StatusCode.UNAVAILABLE)):
            credentials = grpc.ssl_channel_credentials(root.certificate_pem, peer.private_key, peer.certificate_chain)
            options = [("grpc.ssl_target_name_override", "auth.service.sealane")]
            async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
                assert await channel.unary_unary(CHECK)(b"", timeout=5).code() is code


class Answering:
    """Answers at once."""

    async def Check(self, request: health_pb2.HealthCheckRequest, call: Call) -> bytes:
        return b""

    Watch = List = Check
