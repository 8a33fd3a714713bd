"""Paths where nothing is served, on both kinds of server: who is nobody learns that he is nobody, and no more."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import grpc
import pytest
from bench.http2 import DATA, END_HEADERS, HEADERS, PREFACE, SETTINGS, frame, request_headers
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc_health.v1 import health_pb2

from sealane import telemetry
from sealane.clock import SystemClock
from sealane.errors import SealaneError, Unimplemented
from sealane.rpc import server, sync_server
from sealane.rpc.call import Call, Peer
from sealane.rpc.dispatch import Dispatcher, Served
from sealane.rpc.middleware import Chain, Middleware
from sealane.rpc.order import Guard, standard
from sealane.rpc.policy import unserved
from sealane.rpc.status import from_rpc_error
from sealane.security import jws, tokens
from sealane.security.keys import KeySet, Published

KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes_raw()
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
CHECK = "/grpc.health.v1.Health/Check"
PATHS = ("/x.Y/Z", "/x.Y/Z/", "//", "/", "x", "/%5A", f"{CHECK}?a=1", CHECK.lower(), f"{CHECK} ", f"/{CHECK}")


class Quick:
    """Health that answers at once."""

    def Check(self, request: health_pb2.HealthCheckRequest, call: Call) -> bytes:
        return b""

    List = Check


class QuickAio:
    """The same, awaited."""

    async def Check(self, request: health_pb2.HealthCheckRequest, call: Call) -> bytes:
        return b""

    Watch = List = Check


def chain() -> list[Middleware]:
    keys = KeySet(lambda: Published({jws.thumbprint(PUBLIC): jws.encode(PUBLIC)}))
    verifier = tokens.TokenVerifier(keys, issuer=tokens.ISSUER, audience="sealane-registry", clock=SystemClock())
    return standard(telemetry_=telemetry.disabled(), guard=Guard(verifier))


def asyncio_server() -> Iterator[str]:
    bound: Future[str] = Future()
    stop = threading.Event()

    async def serve() -> None:
        made = server.build([Served(QuickAio(), HEALTH)], Chain(chain()), mesh=True)
        port = made.add_insecure_port("127.0.0.1:0")
        await made.start()
        bound.set_result(f"127.0.0.1:{port}")
        await asyncio.to_thread(stop.wait)
        await made.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    yield bound.result(10)
    stop.set()
    thread.join()


def synchronous_server() -> Iterator[str]:
    made = sync_server.build(Dispatcher([Served(Quick(), HEALTH)], Chain(chain())), threads=2)
    port = made.add_insecure_port("127.0.0.1:0")
    made.start()
    yield f"127.0.0.1:{port}"
    made.stop(0).wait()


@pytest.fixture(scope="module", params=[asyncio_server, synchronous_server], ids=["asyncio", "synchronous"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    yield from request.param()


@pytest.fixture
def channel(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address) as channel:
        yield channel


def bearer() -> tuple[tuple[str, str], ...]:
    grant = tokens.Grant("a", "a@p", "p", "sealane-registry", ("models:read",))
    return (("authorization", f"Bearer {tokens.issue(grant, key=KEY, issuer=tokens.ISSUER, now=time.time())}"),)


def refusal(call: grpc.Call) -> tuple[str, str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        next(iter(call))  # type: ignore[call-overload]
    failure = from_rpc_error(caught.value)
    return failure.kind, failure.reason, failure.message


@pytest.mark.parametrize("path", PATHS)
def test_who_is_nobody_is_told_so_and_who_is_known_that_nothing_is_there(channel: grpc.Channel, path: str) -> None:
    knock = channel.unary_stream(path)
    for metadata in ((), (("authorization", "Bearer nonsense"),)):
        assert refusal(knock(b"\xff", timeout=10, metadata=metadata))[0] == "UNAUTHENTICATED"
    kind, _, message = refusal(knock(b"\xff", timeout=10, metadata=bearer()))
    assert kind == "UNIMPLEMENTED"
    assert "is not served here; check the method and the service's version" in message


def test_a_caller_that_sends_nothing_or_without_end_is_answered_all_the_same(channel: grpc.Channel) -> None:
    """The refusal does not wait for a body."""
    over = threading.Event()

    def silence() -> Iterator[bytes]:
        over.wait(20)
        yield b""

    def flood() -> Iterator[bytes]:
        while not over.wait(0.001):
            yield bytes(100_000)

    try:
        for bodies in (silence, flood):
            call = channel.stream_stream("/x.Y/Z")(bodies(), timeout=10, metadata=bearer())
            assert refusal(call)[0] == "UNIMPLEMENTED"
    finally:
        over.set()


def test_a_long_path_is_not_said_back_whole(channel: grpc.Channel) -> None:
    kind, _, message = refusal(channel.unary_stream("/" + "p" * 5000)(b"", timeout=10, metadata=bearer()))
    assert (kind, len(message) < 400) == ("UNIMPLEMENTED", True)


def test_what_is_served_is_served(channel: grpc.Channel) -> None:
    assert channel.unary_unary(CHECK)(b"", timeout=10) == b""


@pytest.mark.parametrize("odd", [b"/x.Y/Z\xff", b"/\xff\xfe", CHECK.encode() + b"\x80", b"/a\xc3", b"/\xed\xa0\x80"])
def test_a_path_that_is_not_utf_8_ends_no_server(address: str, channel: grpc.Channel, odd: bytes) -> None:
    """grpcio's asyncio server would never take another call."""
    host, _, port = address.rpartition(":")
    header = b"\x00\x05:path" + bytes((len(odd),)) + odd
    fields = request_headers("P").replace(b"\x00\x05:path\x01P", header)
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, fields) + frame(DATA, 1, 1, b""))
        raw.settimeout(10)
        received = b""
        while b"grpc-status" not in received:
            part = raw.recv(65536)
            assert part, "the connection was closed without an answer"
            received += part
    assert channel.unary_unary(CHECK)(b"", timeout=10) == b""


def test_text_that_is_not_utf_8_is_refused_everywhere_else(address: str) -> None:
    """What keeps the server up must not make other parsers lenient."""

    async def decode() -> None:
        b"\xff".decode()

    with pytest.raises(UnicodeDecodeError):
        asyncio.run(decode())
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("utf-8")
    with pytest.raises(UnicodeEncodeError):
        "\ud800".encode()


def test_a_peer_is_known_by_its_certificate_and_an_account_is_not() -> None:
    items = chain()

    def enter(spiffe_id: str) -> str:
        call = Call(unserved("/x.Y/Z"), {}, Peer(spiffe_id, "TLSv1.3"), time.monotonic() + 10)
        with pytest.raises(SealaneError) as caught:
            Chain(items).enter(call)
        return caught.value.kind

    for name in ("service/scheduler", "service/inference", "node/edge-1"):
        assert enter(f"spiffe://sealane/{name}") == "UNIMPLEMENTED"
    assert enter("spiffe://sealane/projects/p/serviceAccounts/a") == "UNAUTHENTICATED"
    assert enter("") == "UNAUTHENTICATED"


def test_healths_public_methods_need_no_token_where_they_are_not_served() -> None:
    """Its clients take UNIMPLEMENTED for "healthy", by its protocol; another code would be an outage."""
    call = Call(unserved("/grpc.health.v1.Health/Watch"), {}, Peer("", "TLSv1.3"), time.monotonic() + 10)
    with pytest.raises(Unimplemented):
        Chain(chain()).enter(call)
