"""Callers that open calls on the synchronous front and send no body: the others are served all the same."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from bench.http2 import ACK, DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, frame, request_headers
from grpc_health.v1 import health_pb2

from sealane.rpc import sync_server
from sealane.rpc.call import Call
from sealane.rpc.dispatch import Dispatcher, Served
from sealane.rpc.middleware import Chain, Deadline, Parse

SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"]
CHECK = "/grpc.health.v1.Health/Check"
PLACES = 4


class Quick:
    """Answers at once."""

    def Check(self, request: health_pb2.HealthCheckRequest, call: Call) -> bytes:
        return b"\x08\x01"

    List = Check


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(sync_server, "ARRIVING", PLACES)
    server = sync_server.build(Dispatcher([Served(Quick(), SERVICE)], Chain([Deadline(), Parse()])), threads=2)
    bound = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield bound
    server.stop(0).wait()


@contextmanager
def connection(port: int) -> Iterator[socket.socket]:
    """HTTP/2 by hand, ready for calls."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        raw.sendall(PREFACE + frame(SETTINGS, 0, 0))
        raw.recv(65536)
        raw.sendall(frame(SETTINGS, ACK, 0))
        yield raw


def opened(count: int, first: int = 1) -> bytes:
    """Calls without a body."""
    fields = request_headers(CHECK)
    return b"".join(frame(HEADERS, END_HEADERS, first + 2 * each, fields) for each in range(count))


def read_until(raw: socket.socket, text: bytes) -> bytes:
    received = b""
    while text not in received:
        part = raw.recv(65536)
        assert part, "the connection was closed without an answer"
        received += part
    return received


def test_calls_without_a_body_hold_up_nobody(port: int) -> None:
    with connection(port) as silent, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        silent.sendall(opened(60))
        for _ in range(50):
            assert channel.unary_unary(CHECK)(b"", timeout=20) == b"\x08\x01"


def test_who_opens_most_is_pushed_out_and_a_slow_body_of_another_is_waited_for(port: int) -> None:
    with connection(port) as slow, connection(port) as silent:
        slow.sendall(opened(1))
        silent.sendall(opened(30))
        read_until(silent, b"grpc-status")  # the first of its calls was ended
        slow.sendall(frame(DATA, END_STREAM, 1, b"\0" + struct.pack(">I", 0)))
        assert b"\x08\x01" in read_until(slow, b"grpc-status")


def test_a_call_that_ends_without_a_body_is_refused(port: int) -> None:
    with connection(port) as raw:
        raw.sendall(frame(HEADERS, END_HEADERS | END_STREAM, 1, request_headers(CHECK)))
        assert b"exactly one request message" in read_until(raw, b"grpc-status")
