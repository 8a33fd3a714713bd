"""Frames between a worker's front and its model processes: a JSON header and raw tensor bytes on a socket.

Not a format for anybody else: both ends are this installation. There is no pickle in it, so a model process
that was taken over can send wrong numbers and nothing more; sizes are checked before memory is taken.

Layout, big endian: u32 header length, u64 body length, header (UTF-8 JSON), body (tensors one after another,
row-major, each padded to 8 bytes so that every view is aligned; ``BYTES`` tensors as elements of u32 length and
bytes). ``header["tensors"]`` lists name, datatype, shape and byte length in body order.
"""

from __future__ import annotations

import json
import math
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np

from sealane.errors import Internal
from sealane.tensors import NUMPY_OF, Array, datatype_of

Scalar: TypeAlias = str | int | float | bool | None
Json: TypeAlias = Scalar | list["Json"] | dict[str, "Json"]
Header: TypeAlias = dict[str, Json]

MAX_HEADER_BYTES = 1 << 20
MAX_BODY_BYTES = 512 << 20
_PREFIX = struct.Struct("!IQ")
_LENGTH = struct.Struct("!I")
_ALIGNMENT = 8
_PADDING = memoryview(bytes(_ALIGNMENT))


class Disconnected(Exception):
    """The other end is gone; what to tell the caller depends on which end asks."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message. `arrays` may be views of a buffer that the next message overwrites (see FrameReader)."""

    header: Header
    arrays: dict[str, Array]


def send_frame(sock: socket.socket, header: Header, arrays: Mapping[str, Array] | None = None) -> None:
    """Write one frame without copying the tensors.

    Raises:
        Disconnected: the other end is gone.
        TimeoutError: the socket's timeout passed; the stream is then torn and must be closed.
    """
    tensors: list[Json] = []
    parts: list[memoryview] = []
    for name, array in (arrays or {}).items():
        datatype = datatype_of(array)
        shape: list[Json] = [int(size) for size in array.shape]
        body = _bytes_body(array) if datatype == "BYTES" else _view(array)
        tensors.append([name, datatype, shape, body.nbytes])
        parts += [body, _PADDING[: -body.nbytes % _ALIGNMENT]]
    encoded = json.dumps({**header, "tensors": tensors}, separators=(",", ":")).encode()
    size = sum(part.nbytes for part in parts)
    pending = [memoryview(_PREFIX.pack(len(encoded), size) + encoded), *(part for part in parts if part.nbytes)]
    try:
        while pending:
            sent = sock.sendmsg(pending)
            while pending and sent >= pending[0].nbytes:
                sent -= pending.pop(0).nbytes
            if sent:
                pending[0] = pending[0][sent:]
    except TimeoutError:
        raise
    except OSError as error:
        raise Disconnected from error


def _view(array: Array) -> memoryview:
    # reshape(-1) first: a zero-dimensional array has no buffer that can be cast to bytes.
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _bytes_body(array: Array) -> memoryview:
    body = bytearray()
    for item in array.reshape(-1).tolist():
        raw = item.encode() if isinstance(item, str) else bytes(cast(bytes, item))
        body += _LENGTH.pack(len(raw)) + raw
    return memoryview(body)


class FrameReader:
    """Reads frames from a socket; a timeout in the middle of one loses nothing: read again to go on.

    Args:
        sock: connected stream socket.
        reuse: keep one buffer for all bodies. The arrays of a frame are then valid until the next read.
    """

    def __init__(self, sock: socket.socket, *, reuse: bool) -> None:
        self._sock = sock
        self._reuse = reuse
        self._kept = np.empty(0, np.uint8)
        self._prefix = bytearray(_PREFIX.size)
        self._parts: list[memoryview] = [memoryview(self._prefix)]
        self._body = self._kept
        self._encoded = bytearray()
        self._filled = 0

    def read(self, deadline: float | None = None) -> Frame:
        """The next frame.

        Args:
            deadline: ``time.monotonic()`` value after which to give up; none waits for ever.

        Raises:
            TimeoutError: not complete by `deadline`.
            Disconnected: the other end is gone.
            Internal: the other end does not keep to the layout.
        """
        if not self._encoded:
            self._fill(deadline)
            self._begin_message()
        while self._parts:
            self._fill(deadline)
        encoded, body = self._encoded, self._body
        self._encoded, self._parts, self._body = bytearray(), [memoryview(self._prefix)], self._kept
        return _decode(encoded, body)

    def _begin_message(self) -> None:
        header_size, body_size = _PREFIX.unpack(self._prefix)
        if not 0 < header_size <= MAX_HEADER_BYTES or body_size > MAX_BODY_BYTES:
            raise Internal("a model process sent a frame beyond the limits")
        self._encoded = bytearray(header_size)
        if not self._reuse:
            self._body = np.empty(body_size, np.uint8)
        else:
            if self._kept.size < body_size:
                self._kept = np.empty(body_size, np.uint8)
            self._body = self._kept[:body_size]
        self._parts = [memoryview(self._encoded)]
        if body_size:
            self._parts.append(memoryview(self._body.data))

    def _fill(self, deadline: float | None) -> None:
        """Fill the first pending part and drop it."""
        part = self._parts[0]
        while self._filled < part.nbytes:
            if deadline is not None:
                # A tiny positive wait even after the deadline: what has arrived already is worth taking.
                self._sock.settimeout(max(deadline - time.monotonic(), 1e-4))
            else:
                self._sock.settimeout(None)
            try:
                count = self._sock.recv_into(part[self._filled :])
            except TimeoutError:
                raise
            except OSError as error:
                raise Disconnected from error
            if count == 0:
                raise Disconnected
            self._filled += count
        self._filled = 0
        self._parts.pop(0)


def _decode(encoded: bytearray, body: Array) -> Frame:
    try:
        header = cast(Header, json.loads(encoded))
        tensors = cast(list[tuple[str, str, list[int], int]], header.pop("tensors"))
        arrays: dict[str, Array] = {}
        offset = 0
        for name, datatype, shape, size in tensors:
            raw = body[offset : offset + size]
            offset += size + -size % _ALIGNMENT
            arrays[name] = _parse_bytes(raw, shape) if datatype == "BYTES" else _array(raw, datatype, shape)
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise Internal("a model process sent a frame that cannot be read") from error
    return Frame(header, arrays)


def _array(raw: Array, datatype: str, shape: list[int]) -> Array:
    return raw.view(NUMPY_OF[datatype]).reshape(shape)


def _parse_bytes(raw: Array, shape: list[int]) -> Array:
    data = raw.tobytes()
    count = math.prod(shape)
    if not 0 <= count * _LENGTH.size <= len(data):
        raise ValueError("more elements than bytes")
    items = np.empty(count, np.object_)
    offset = 0
    for index in range(items.size):
        (size,) = _LENGTH.unpack_from(data, offset)
        offset += _LENGTH.size
        if offset + size > len(data):
            raise ValueError("a BYTES tensor ends before its last element")
        items[index] = data[offset : offset + size]
        offset += size
    return items.reshape(shape)
