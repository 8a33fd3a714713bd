"""The control socket between a worker's front and a model process: ``u32 length`` (little endian) and JSON.

Needs the standard library alone, because a model process reads its first message before it may import anything else.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import TypeAlias, cast

from sealane.errors import Internal

Scalar: TypeAlias = str | int | float | bool | None
Json: TypeAlias = Scalar | list["Json"] | dict[str, "Json"]
Header: TypeAlias = dict[str, Json]

MAX_CONTROL_BYTES = 16 << 20
_LENGTH = struct.Struct("<I")


class Disconnected(Exception):
    """The other end is gone; what to tell the caller depends on which end asks."""


def send_control(sock: socket.socket, message: Header) -> None:
    """Write one control message.

    Raises:
        Disconnected: the other end is gone.
    """
    encoded = json.dumps(message, separators=(",", ":")).encode()
    try:
        sock.sendall(_LENGTH.pack(len(encoded)) + encoded)
    except OSError as error:
        raise Disconnected from error


def read_control(sock: socket.socket, deadline: float | None = None) -> Header:
    """Read one control message, whole by `deadline` (``time.monotonic()``) where there is one.

    Raises:
        TimeoutError: nothing came in time.
        Disconnected: the other end is gone.
        Internal: what came is no control message.
    """
    (size,) = _LENGTH.unpack(_read(sock, _LENGTH.size, deadline))
    if size > MAX_CONTROL_BYTES:
        raise Internal("a model process sent a control message beyond the limits")
    try:
        message = json.loads(_read(sock, size, deadline))
    except (ValueError, RecursionError) as error:
        raise Internal("a model process sent a control message that cannot be read") from error
    if not isinstance(message, dict):
        raise Internal("a model process sent a control message that is no object")
    return cast(Header, message)


def _read(sock: socket.socket, size: int, deadline: float | None) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        if deadline is not None:
            # A tiny wait even then: what has come already is worth taking, and 0 would not block at all.
            sock.settimeout(max(deadline - time.monotonic(), 1e-4))
            if time.monotonic() > deadline:
                raise TimeoutError
        try:
            part = sock.recv(min(size - len(parts), 1 << 20))
        except TimeoutError:
            raise
        except OSError as error:
            raise Disconnected from error
        if not part:
            raise Disconnected
        parts += part
    return bytes(parts)
