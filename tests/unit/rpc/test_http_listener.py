"""The HTTPS listener: who holds connections and sends no request loses them."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from sealane.rpc import http_listener
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
