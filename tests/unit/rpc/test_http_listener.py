"""The HTTPS listener: who holds connections and sends no request loses them."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gc
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from sealane.rpc import http_guests, http_listener
from sealane.rpc.http_guests import Guests, network_of
from sealane.rpc.http_listener import HttpListener
from sealane.security import tls
from sealane_auth import authority

GET = b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n"


async def slow(request: Request) -> Response:
    """Answers later than a connection may wait for its request."""
    await request.body()
    await asyncio.sleep(0.6)
    return PlainTextResponse("here")


@pytest.fixture
def identity(tmp_path: Path) -> Iterator[tls.PeerIdentity]:
    now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=1)
    root = authority.make_root(now)
    signer = authority.make_intermediate(root, now)
    names, (private, request) = authority.service_names("auth"), tls.new_request()
    leaf = authority.issue_leaf(signer, request, names, authority.Validity(now, now + authority.LEAF_LIFE))
    chain = leaf.public_bytes(serialization.Encoding.PEM) + signer.certificate_pem
    yield tls.store(tmp_path, private, tls.Issued(chain, root.certificate_pem, names.spiffe_id, {}))


@pytest.fixture
async def address(identity: tls.PeerIdentity, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[int, str]]:
    monkeypatch.setattr(http_listener, "REQUEST_SECONDS", 0.3)
    application = Starlette(routes=[Route("/slow", slow, methods=["GET", "POST"])])
    listener = await HttpListener.start(application, "127.0.0.1:0", identity)
    try:
        yield listener.port, identity.trust_bundle.decode()
    finally:
        await listener.stop()


@asynccontextmanager
async def connected(address: tuple[int, str]) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    context = ssl.create_default_context(cadata=address[1])
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", address[0], ssl=context, server_hostname="auth.service.sealane"
    )
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):  # closed before the loop is, or asyncio complains of it
            await writer.wait_closed()


@pytest.mark.parametrize("sent", [b"", GET[:20], POST + b"abc"], ids=["nothing", "half a head", "half a body"])
async def test_a_connection_without_a_whole_request_is_closed(address: tuple[int, str], sent: bytes) -> None:
    async with connected(address) as (reader, writer):
        writer.write(sent)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError, ssl.SSLError)):
            await asyncio.wait_for(reader.readexactly(1), 20)


async def test_who_waits_for_an_answer_gets_it(address: tuple[int, str]) -> None:
    async with connected(address) as (reader, writer):
        for request in (GET, POST + b"abcde"):
            writer.write(request)
            assert (await asyncio.wait_for(reader.readuntil(b"here"), 20)).startswith(b"HTTP/1.1 200")


async def test_many_idle_connections_leave_room_for_others(
    address: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_listener, "REQUEST_SECONDS", 30)
    async with AsyncExitStack() as held:
        for _ in range(120):
            await held.enter_async_context(connected(address))
        async with connected(address) as (reader, writer):
            writer.write(GET)
            assert (await asyncio.wait_for(reader.readuntil(b"here"), 20)).startswith(b"HTTP/1.1 200")


async def introduce(request: Request) -> Response:
    """A request of somebody who is known."""
    request.scope["state"][http_listener.CONNECTION].known = True
    return PlainTextResponse("here")


@pytest.fixture
async def door(identity: tls.PeerIdentity) -> AsyncIterator[tuple[int, str]]:
    """A listener that waits long for those it knows."""
    routes = [Route("/slow", slow), Route("/known", introduce), Route("/large", large), Route("/post", slow)]
    patience = http_listener.Patience(body=60, idle=60)
    listener = await HttpListener.start(Starlette(routes=routes), "127.0.0.1:0", identity, patience)
    try:
        yield listener.port, identity.trust_bundle.decode()
    finally:
        await listener.stop()


async def large(request: Request) -> Response:
    """An answer that fits in no buffer, in pieces."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(128):
            yield b"x" * (256 << 10)

    return StreamingResponse(pieces(), headers={"content-length": str(32 << 20)})


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> bytes:
    writer.write(f"GET {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
    return await asyncio.wait_for(reader.readuntil(b"here"), 20)


async def closed(reader: asyncio.StreamReader) -> bool:
    """Whether the other side closes, within a time that no slow machine needs."""
    try:
        return await asyncio.wait_for(reader.read(1), 20) == b""
    except (ConnectionError, ssl.SSLError):
        return True


async def test_strangers_from_one_address_leave_room_and_those_inside_are_served(
    door: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_guests, "STRANGERS", 5)
    monkeypatch.setattr(http_listener, "REQUEST_SECONDS", 60.0)
    async with AsyncExitStack() as held:
        known = await held.enter_async_context(connected(door))
        assert (await ask(*known, "/known")).startswith(b"HTTP/1.1 200")
        for _ in range(5):
            await held.enter_async_context(connected(door))
        async with connected(door) as (reader, _):
            assert await closed(reader)
        assert (await ask(*known, "/known")).startswith(b"HTTP/1.1 200")


async def test_with_every_place_taken_those_inside_are_served(
    door: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_guests, "CONNECTIONS", 2)
    monkeypatch.setattr(http_listener, "REQUEST_SECONDS", 60.0)
    async with connected(door) as stranger:
        async with connected(door) as known:
            assert (await ask(*known, "/known")).startswith(b"HTTP/1.1 200")
            async with connected(door) as (reader, _):
                assert await closed(reader)
            assert (await ask(*known, "/known")).startswith(b"HTTP/1.1 200")
            assert (await ask(*stranger, "/slow")).startswith(b"HTTP/1.1 200")
        async with asyncio.timeout(20):
            while True:  # the place of who left is free, as soon as that is noticed
                with contextlib.suppress(OSError, ssl.SSLError, asyncio.IncompleteReadError):
                    async with connected(door) as new:
                        assert (await ask(*new, "/known")).startswith(b"HTTP/1.1 200")
                        break


async def test_nothing_is_kept_of_who_breaks_off(door: tuple[int, str]) -> None:
    async with connected(door) as (reader, writer):
        await ask(reader, writer, "/known")
    async with asyncio.timeout(20):
        while any(isinstance(found, http_listener._Protocol) for found in gc.get_objects()):
            await asyncio.sleep(0.1)
            gc.collect()


async def test_the_long_pause_is_for_who_is_known(door: tuple[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_listener, "STRANGER_SECONDS", 0.3)
    async with connected(door) as known, connected(door) as stranger:
        await ask(*known, "/known")
        await ask(*stranger, "/slow")
        assert await closed(stranger[0])
        assert (await ask(*known, "/known")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("order", [0, 1])
async def test_a_request_with_two_ends_is_refused_with_its_connection(door: tuple[int, str], order: int) -> None:
    fields = [b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n"]
    head = b"POST /slow HTTP/1.1\r\nhost: a\r\n" + fields[order] + fields[1 - order] + b"\r\n"
    async with connected(door) as (reader, writer):
        writer.write(head + b"0\r\n\r\n" + b"GET /known HTTP/1.1\r\nhost: a\r\n\r\n")
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            answered = await asyncio.wait_for(reader.read(), 20)
            assert answered.startswith(b"HTTP/1.1 400")
            assert b"here" not in answered and answered.count(b"HTTP/1.1") == 1


async def test_who_does_not_read_his_answer_is_not_waited_for(
    door: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_listener, "STALL_SECONDS", 0.3)
    async with connected(door) as (reader, writer):
        writer.write(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport of both directions
        await asyncio.sleep(2)
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError, ssl.SSLError)):
            await asyncio.wait_for(reader.readexactly(32 << 20), 20)


async def test_a_handshake_has_its_time(identity: tls.PeerIdentity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_listener, "HANDSHAKE_SECONDS", 0.2)
    listener = await HttpListener.start(Starlette(), "127.0.0.1:0", identity)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        assert await closed(reader)
        writer.close()
    finally:
        await listener.stop()


async def test_a_port_that_is_taken_is_an_error(identity: tls.PeerIdentity, door: tuple[int, str]) -> None:
    with pytest.raises(OSError, match="is the port taken"):
        await HttpListener.start(Starlette(), f"127.0.0.1:{door[0]}", identity)


def test_places_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_guests, "STRANGERS", 2)
    guests = Guests()
    assert guests.admit("a") and guests.admit("a") and guests.admit("b")
    assert not guests.admit("a")
    guests.introduce("a")
    assert guests.admit("a")
    assert not guests.admit("a")
    guests.leave("a", known=True)
    assert not guests.admit("a")
    guests.leave("a", known=False)
    assert guests.admit("a")


def test_an_address_of_version_6_counts_with_its_network() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1") != network_of("192.0.2.2")
    assert network_of("fe80::1%eth0") == network_of("fe80::2")


async def test_a_slow_body_has_its_own_time(identity: tls.PeerIdentity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_listener, "REQUEST_SECONDS", 0.2)
    application = Starlette(routes=[Route("/slow", slow, methods=["POST"])])
    listener = await HttpListener.start(application, "127.0.0.1:0", identity, http_listener.Patience(body=60, idle=60))
    try:
        address = (listener.port, identity.trust_bundle.decode())
        async with connected(address) as (reader, writer):
            for _ in range(2):
                writer.write(POST + b"abc")
                await asyncio.sleep(0.5)
                writer.write(b"de")
                assert (await asyncio.wait_for(reader.readuntil(b"here"), 20)).startswith(b"HTTP/1.1 200")
                await asyncio.sleep(0.5)
        async with connected(address) as (reader, writer):
            writer.write(GET[:20])  # a head has no more time than before
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError, ssl.SSLError)):
                await asyncio.wait_for(reader.readexactly(1), 20)
    finally:
        await listener.stop()


async def test_a_renewed_certificate_is_used_without_a_restart(
    identity: tls.PeerIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_listener, "RENEWAL_SECONDS", 0.05)
    listener = await HttpListener.start(Starlette(), "127.0.0.1:0", identity)
    try:
        before = await served_certificate(listener.port)
        now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=1)
        root = authority.make_root(now)
        signer = authority.make_intermediate(root, now)
        names, (private, request) = authority.service_names("auth"), tls.new_request()
        leaf = authority.issue_leaf(signer, request, names, authority.Validity(now, now + authority.LEAF_LIFE))
        chain = leaf.public_bytes(serialization.Encoding.PEM) + signer.certificate_pem
        tls.store(identity.directory, private, tls.Issued(chain, root.certificate_pem, names.spiffe_id, {}))
        async with asyncio.timeout(20):
            while await served_certificate(listener.port) == before:
                await asyncio.sleep(0.05)
        assert await served_certificate(listener.port) == leaf.public_bytes(serialization.Encoding.DER)
    finally:
        await listener.stop()


async def served_certificate(port: int) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        assert isinstance(found, bytes)
        return found
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):  # closed before the loop is, or asyncio complains of it
            await writer.wait_closed()
