"""What hostile peers send (SECURITY 2.4), against real service processes: the synchronous front and asyncio servers.

Counts are asserted, times are not: those are figures of bench/hostile.py.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from light_site import CLOUD, EDGE, SERVICES, LightSite

sys.path.insert(0, str(Path(__file__).parents[2]))
from bench.hostile import BODIES, CALLS, attacked
from bench.http2 import (
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Connection,
    Door,
    flood,
    frame,
    literal,
    request_headers,
)

from sealane.rpc.channel import Target, dial
from sealane_local import plan

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1800 if os.environ.get("LONG") else 180)]
LONG = bool(os.environ.get("LONG"))
#: An asyncio server, the synchronous front of a worker, and the native one where it is built.
PLACES = ("registry", EDGE, CLOUD)
NATIVE = importlib.util.find_spec("sealane_native") is not None
MALFORMED = 100_000 if LONG else 10_000
MIB = 1024 * 1024
BROKEN = (b"\xff\xff\xff\xff", b"\x0a\xff\x01x", b"\x0b", b"\x0a")
PATHS = {
    **CALLS,
    "auth": "/sealane.auth.v1.IdentityService/ListServiceAccounts",
    "scheduler": "/sealane.scheduler.v1.DeploymentService/ListDeployments",
    "inference": "/inference.GRPCInferenceService/ServerLive",
}
#: With a request that has a field, so that broken bytes are broken.
PARSED = {**PATHS, **dict.fromkeys((EDGE, CLOUD), "/inference.GRPCInferenceService/ModelMetadata")}


def door(site: LightSite, place: str, port: str = "") -> Door:
    if place in SERVICES:
        return Door(site.endpoints[f"{place}{port}"], site.trust, f"{place}.service.sealane")
    return Door(site.stack.worker_address(place), site.trust, f"{place}.node.sealane")


def token(site: LightSite, place: str) -> str:
    return site.client.token(f"sealane-{place if place in SERVICES else 'inference'}")


def bearer(site: LightSite, place: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token(site, place)}"),)


def serves(site: LightSite, place: str, channel: grpc.Channel) -> None:
    """A proper call is answered."""
    channel.unary_unary(CALLS[place])(BODIES[place], timeout=10, metadata=bearer(site, place))


def pid(site: LightSite, place: str) -> int:
    folder = site.data / place if place in SERVICES else plan.worker_dir(site.stack.options, place)
    return int(json.loads((folder / "ports.json").read_text())["pid"])


def memory_mib(process: int, name: str = "VmRSS") -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1]) / 1024


@contextmanager
def peak_below(process: int, more_mib: float) -> Iterator[None]:
    """The process's memory never rises by more than so much inside."""
    Path(f"/proc/{process}/clear_refs").write_text("5")
    before = memory_mib(process)
    yield
    assert memory_mib(process, "VmHWM") <= before + more_mib


def code_of(call: Callable[[], object]) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as failure:
        return failure.code()
    return grpc.StatusCode.OK


@contextmanager
def legitimate(site: LightSite, place: str) -> Iterator[list[str]]:
    """A client that goes on working; what failed it is in the list."""
    failures: list[str] = []
    calls, over = [0], threading.Event()
    with site.channel(place) as channel:
        serves(site, place, channel)

        def work() -> None:
            while not over.is_set():
                try:
                    serves(site, place, channel)
                    calls[0] += 1
                except grpc.RpcError as failure:
                    failures.append(f"{failure.code()}: {failure.details()}")
                time.sleep(0.01)

        worker = threading.Thread(target=work)
        worker.start()
        try:
            yield failures
        finally:
            over.set()
            worker.join()
    assert calls[0] > 0
    assert failures == []


# -- AUTH-7 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [*PLACES, "inference", "scheduler"])
def test_malformed_messages_leak_nothing_and_leave_the_connection_serving(site: LightSite, place: str) -> None:
    process, metadata = pid(site, place), bearer(site, place)
    with site.channel(place) as channel:
        method = channel.unary_unary(PARSED[place])

        def send(count: int, metadata: tuple[tuple[str, str], ...]) -> None:
            waiting = []
            for number in range(count):
                waiting.append(method.future(BROKEN[number % len(BROKEN)], timeout=60, metadata=metadata))
                if len(waiting) == 50 or number == count - 1:
                    answers = {(item.code(), item.details()) for item in waiting}
                    assert {code for code, _ in answers} == {grpc.StatusCode.INVALID_ARGUMENT}, answers
                    waiting.clear()

        send(2000, metadata)
        before = memory_mib(process)
        for _ in range(MALFORMED // 5000):
            send(5000, bearer(site, place))
        grown = memory_mib(process) - before
        print(f"{place}: {MALFORMED} malformed messages, {grown:+.1f} MiB")
        assert grown <= 5
        if place in CALLS:
            serves(site, place, channel)
        assert code_of(lambda: method(b"", timeout=10, metadata=bearer(site, place))) is not grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("place", PLACES)
def test_a_client_with_more_calls_than_streams_is_served(site: LightSite, place: str) -> None:
    """The caps that stop hostile clients must not fail a busy one."""
    metadata = bearer(site, place)
    with site.channel(place) as channel:
        method = channel.unary_unary(CALLS[place])
        for _ in range(10):
            waiting = [method.future(BODIES[place], timeout=60, metadata=metadata) for _ in range(200)]
            assert {(item.code(), item.details()) for item in waiting} == {(grpc.StatusCode.OK, "")}


# -- AUTH-8 and its relatives ----------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_rapid_reset_fails_no_call_of_somebody_else(site: LightSite, place: str) -> None:
    # Without its limits the server grows by hundreds of megabytes here.
    with peak_below(pid(site, place), 40):
        felt = attacked(door(site, place), (CALLS[place], BODIES[place], token(site, place)))
    print(f"{place}: {felt.resets} resets, {len(felt.times_ms)} calls, p99 {felt.p99_ms:.0f} ms")
    assert felt.failures == []
    assert felt.ended or felt.resets > 20_000, "an attack that slow shows nothing"
    assert len(felt.times_ms) > 20


@pytest.mark.parametrize("place", PLACES)
def test_streams_that_the_server_must_reset_itself(site: LightSite, place: str) -> None:
    """MadeYouReset: the client overflows the window, so that it is the server that resets."""

    def batches() -> Iterator[bytes]:
        block = request_headers(CALLS[place])
        for first in range(1, 2**31 - 1000, 1000):
            yield b"".join(
                frame(HEADERS, END_HEADERS, stream, block)
                + frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 2**31 - 1)) * 2
                for stream in range(first, first + 1000, 2)
            )

    with legitimate(site, place):
        for _ in range(3):
            connection = Connection.open(door(site, place))
            flood(connection, batches(), 1.0)
            assert connection.frames[RST_STREAM] or connection.closed
            connection.close()


FLOODS: dict[str, Callable[[], Iterator[bytes]]] = {
    "settings": lambda: iter(lambda: frame(SETTINGS, 0, 0) * 500, b""),
    "pings": lambda: iter(lambda: frame(PING, 0, 0, bytes(8)) * 500, b""),
    "priority and unknown frames": lambda: iter(lambda: frame(0xBB, 0, 0, bytes(16)) * 500, b""),
    "empty data": lambda: iter(
        [frame(HEADERS, END_HEADERS, 1, request_headers(CALLS["registry"]))] + [frame(DATA, 0, 1) * 500] * 10_000
    ),
    "continuation": lambda: iter(
        [frame(HEADERS, 0, 1, request_headers(CALLS["registry"]))]
        + [frame(CONTINUATION, 0, 1, literal("x-a", "b" * 100)) * 500] * 10_000
    ),
    "empty continuation": lambda: iter(
        [frame(HEADERS, 0, 1, request_headers(CALLS["registry"]))] + [frame(CONTINUATION, 0, 1) * 500] * 10_000
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_of_frames_neither_fills_memory_nor_stops_the_others(site: LightSite, place: str, kind: str) -> None:
    with peak_below(pid(site, place), 20), legitimate(site, place):
        connection = Connection.open(door(site, place))
        flood(connection, FLOODS[kind](), 2.0)
        connection.receive(0.5)
        print(f"{place} {kind}: closed {connection.closed}, goaway {connection.goaway} {connection.goaway_text}")
        if kind == "pings":
            assert connection.goaway == 11  # ENHANCE_YOUR_CALM
            assert "too_many_pings" in connection.goaway_text or (place == CLOUD and NATIVE)
        connection.close()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "hostile",
    [
        frame(WINDOW_UPDATE, 0, 0, bytes(4)),
        frame(SETTINGS, 0, 1),
        frame(SETTINGS, 0, 0, b"x"),
        frame(PING, 0, 0, b"short"),
        frame(DATA, 0, 0, b"x"),
        frame(RST_STREAM, 0, 0, struct.pack(">I", CANCEL)),
        frame(CONTINUATION, 0, 1, b""),
        frame(HEADERS, END_HEADERS, 2, request_headers("/x/y")),
        frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"),
        b"\xff\xff\xff" + bytes(6),
    ],
    ids=["window-0", "settings-on-stream", "settings-size", "ping-size", "data-0", "reset-0", "continuation-alone",
         "even-stream", "bad-hpack", "huge-frame"],
)  # fmt: skip
def test_a_frame_against_the_protocol_ends_at_most_its_own_connection(
    site: LightSite, place: str, hostile: bytes
) -> None:
    with legitimate(site, place):
        connection = Connection.open(door(site, place))
        connection.send(hostile)
        connection.receive(0.5)
        connection.close()


# -- sizes -----------------------------------------------------------------------------------------


def test_a_message_above_the_limit_is_refused_and_not_kept(site: LightSite) -> None:
    for place, size in (("registry", 5 * MIB), ("auth", 5 * MIB), (EDGE, 65 * MIB), (CLOUD, 65 * MIB)):
        options = [("grpc.ssl_target_name_override", door(site, place).name), ("grpc.max_send_message_length", -1)]
        credentials = grpc.ssl_channel_credentials(site.trust)
        with grpc.secure_channel(door(site, place).address, credentials, options=options) as channel:
            method = channel.unary_unary(PARSED[place])
            code = code_of(lambda: method(bytes(size), timeout=30, metadata=bearer(site, place)))  # noqa: B023
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED, place
            if place in CALLS:
                serves(site, place, channel)


@pytest.mark.parametrize("place", ["registry", "auth", EDGE, CLOUD])
def test_a_bomb_of_a_thousand_to_one_is_not_unpacked(site: LightSite, place: str) -> None:
    limit = 64 if place in (EDGE, CLOUD) else 4
    bomb = gzip.compress(bytes(4 * limit * MIB), 9)
    assert len(bomb) * 900 < 4 * limit * MIB
    block = request_headers(PARSED[place], (("grpc-encoding", "gzip"), *bearer(site, place)))
    message = b"\x01" + struct.pack(">I", len(bomb)) + bomb
    with peak_below(pid(site, place), limit + 30), site.channel(place) as channel:
        connection = Connection.open(door(site, place))
        connection.send(frame(HEADERS, END_HEADERS, 1, block))
        for start in range(0, len(message), 16_000):
            last = start + 16_000 >= len(message)
            connection.send(frame(DATA, 1 if last else 0, 1, message[start : start + 16_000]))
            connection.receive(0.05)
        connection.receive(1.0)
        assert connection.frames[HEADERS] or connection.frames[RST_STREAM], "it was answered, with a refusal"
        connection.close()
        if place in CALLS:
            serves(site, place, channel)


@pytest.mark.parametrize("place", PLACES)
def test_metadata_up_to_the_limit_pass_every_time_and_beyond_never(site: LightSite, place: str) -> None:
    with site.channel(place) as channel:
        method = channel.unary_unary(CALLS[place])
        for kilobytes, fits in ((8, True), (9, True), (12, True), (14, True), (17, False), (40, False)):
            metadata = (*bearer(site, place), ("x-big", "a" * (kilobytes * 1024)))
            codes = {code_of(lambda: method(BODIES[place], timeout=10, metadata=metadata)) for _ in range(25)}  # noqa: B023
            assert codes == {grpc.StatusCode.OK if fits else grpc.StatusCode.RESOURCE_EXHAUSTED}, kilobytes


@pytest.mark.parametrize("place", PLACES)
def test_a_token_above_4_kilobytes_is_not_looked_at(site: LightSite, place: str) -> None:
    with site.channel(place) as channel:
        long = f"{token(site, place)}{'A' * 4096}"
        call = channel.unary_unary(PARSED[place])
        with pytest.raises(grpc.RpcError) as refused:
            call(BODIES[place], timeout=10, metadata=(("authorization", f"Bearer {long}"),))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


# -- paths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [*SERVICES, EDGE, CLOUD])
def test_no_other_spelling_of_a_path_reaches_a_method(site: LightSite, place: str) -> None:
    path = PATHS[place]
    service, _, name = path[1:].partition("/")
    spellings = (
        path[1:], "/" + path, f"/{service}//{name}", f"/{service}/./{name}", f"/x/../{service}/{name}", f"{path}/",
        f"{path}?a=1", f"{path}#a", f"/{service}/%{ord(name[0]):x}{name[1:]}", f"/{service.upper()}/{name}",
        f"/{service}/{name.lower()}", f"/{service}", f"/{service}/", f"{path} ", f"/{service}.{name}", "/", f"{path}\\",
        "/x.Y/Z", "//", "/%5A", "x",
    )  # fmt: skip
    native = place == CLOUD and NATIVE
    with site.channel(place) as channel:
        for spelling in spellings:
            for metadata, code in (
                ((), grpc.StatusCode.UNAUTHENTICATED),
                ((("authorization", "Bearer nonsense"),), grpc.StatusCode.UNAUTHENTICATED),
                (bearer(site, place), grpc.StatusCode.UNIMPLEMENTED),
            ):
                method = channel.unary_unary(spelling)
                found = code_of(lambda: method(BODIES.get(place, b""), timeout=10, metadata=metadata))  # noqa: B023
                if native and _no_path(spelling):
                    # HTTP/2 itself refuses it: nobody's code sees it.
                    assert found is grpc.StatusCode.INTERNAL, spelling
                elif native and spelling.endswith("#a"):
                    continue  # a fragment is no part of a path, and HTTP/2 libraries leave it out: the same call
                else:
                    assert found is code, spelling


def _no_path(spelling: str) -> bool:
    """RFC 9113 section 8.3.1: it begins with a slash, and has no space in it."""
    return not spelling.startswith("/") or " " in spelling


@pytest.mark.parametrize("place", PLACES)
def test_a_path_that_is_no_text_reaches_nothing(site: LightSite, place: str) -> None:
    """NUL and bytes that are not UTF-8, by hand: no gRPC client can send them."""
    with site.channel(place) as channel:
        path = PATHS[place].encode()
        for odd in (path + b"\0", b"/\0", path + b"\xff", b"/\xff\xfe/\x80", b"", b"/" + b"p" * 15_000):
            connection = Connection.open(door(site, place))
            fields = request_headers("PATH").replace(literal(":path", "PATH"), raw_literal(b":path", odd))
            connection.send(frame(HEADERS, END_HEADERS, 1, fields) + frame(DATA, 1, 1, b"\0\0\0\0\0"))
            until = time.monotonic() + 10
            while not (connection.closed or connection.frames[HEADERS] or connection.frames[RST_STREAM]):
                assert time.monotonic() < until, f"{odd[:40]!r} is neither answered nor refused"
                connection.receive(0.05)
            connection.close()
        serves(site, place, channel)


def raw_literal(name: bytes, value: bytes) -> bytes:
    """A header field as bytes; lengths by RFC 7541 section 5.1."""
    return literal(name.decode(), value.decode("latin-1")) if value.isascii() else _raw(name, value)


def _raw(name: bytes, value: bytes) -> bytes:
    assert max(len(name), len(value)) < 127
    return b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value


# -- connections -----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_connections_above_the_cap_are_closed_and_silent_ones_do_not_stay(site: LightSite, place: str) -> None:
    host, _, port = door(site, place).address.rpartition(":")
    opened: list[socket.socket] = []
    with site.channel(place) as channel:
        serves(site, place, channel)
        try:
            for _ in range(1050):
                opened.append(socket.create_connection((host, int(port)), timeout=10))
            until = time.monotonic() + 60
            closed = 0
            while closed < len(opened) and time.monotonic() < until:
                serves(site, place, channel)  # who is in stays in
                closed = sum(_is_closed(item) for item in opened)
                if closed == 0:
                    time.sleep(0.2)
            assert closed == len(opened), "nobody who says nothing keeps a place"
        finally:
            for item in opened:
                item.close()
    with site.channel(place) as channel:
        serves(site, place, channel)


def _is_closed(item: socket.socket) -> bool:
    item.setblocking(False)
    try:
        return item.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize("place", ["auth", "registry", "scheduler", "inference"])
def test_the_mesh_port_lets_nobody_in_without_a_certificate_of_ours(site: LightSite, place: str) -> None:
    mesh = door(site, place, "_mesh")
    path = "/grpc.health.v1.Health/Check"
    with dial(Target(mesh.address, site.trust, mesh.name)) as channel:
        assert code_of(lambda: channel.unary_unary(path)(b"", timeout=3)) is grpc.StatusCode.UNAVAILABLE
    certificate, key = _rogue()
    with dial(Target(mesh.address, site.trust, mesh.name, key, certificate)) as channel:
        assert code_of(lambda: channel.unary_unary(path)(b"", timeout=3)) is grpc.StatusCode.UNAVAILABLE


def _rogue() -> tuple[bytes, bytes]:
    """A certificate with a service's name by an authority that nobody knows."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([])
    uri = x509.UniformResourceIdentifier("spiffe://sealane/service/scheduler")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(random.getrandbits(64))
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([uri]), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), private
