"""Frames carry every datatype unchanged and survive being cut into pieces."""

from __future__ import annotations

import socket
import struct
import time

import numpy as np
import pytest

from sealane.errors import Internal
from sealane.tensors import NUMPY_OF, Array
from sealane_worker.frames import Disconnected, FrameReader, send_frame


def _sample(datatype: str) -> Array:
    dtype = NUMPY_OF[datatype]
    if datatype == "BYTES":
        return np.array([[b"", b"abc"], [b"\x00\xff", b"d"]], np.object_)
    if datatype == "BF16":
        return np.frombuffer(b"\x01\x02\x03\x04\x05\x06", dtype).reshape(3, 1)
    return np.arange(6).astype(dtype).reshape(2, 3)


@pytest.mark.parametrize("datatype", sorted(NUMPY_OF))
def test_every_datatype_arrives_as_sent(datatype: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sent = {"odd": np.array([1, 2, 3], np.uint8), "x": _sample(datatype), "scalar": np.array(2.5)}
        send_frame(ours, {"id": 7}, sent)
        frame = FrameReader(theirs, reuse=True).read(time.monotonic() + 1)
    assert frame.header == {"id": 7}
    assert list(frame.arrays) == ["odd", "x", "scalar"]
    for name, array in sent.items():
        got = frame.arrays[name]
        assert (got.dtype, got.shape, got.tolist()) == (array.dtype, array.shape, array.tolist())
        assert got.flags.aligned


def test_a_timeout_in_the_middle_loses_nothing() -> None:
    ours, theirs = socket.socketpair()
    record, replay = socket.socketpair()
    with ours, theirs, record, replay:
        send_frame(record, {"id": 1}, {"x": np.arange(100, dtype=np.float32)})
        data = replay.recv(10_000)
        reader = FrameReader(theirs, reuse=False)
        for piece in (data[:5], data[5:20], data[20:-1]):
            ours.sendall(piece)
            with pytest.raises(TimeoutError):
                reader.read(time.monotonic() + 0.01)
        ours.sendall(data[-1:])
        frame = reader.read(time.monotonic() + 1)
    np.testing.assert_array_equal(frame.arrays["x"], np.arange(100, dtype=np.float32))


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack("!IQ", 1 << 30, 0),
        struct.pack("!IQ", 10, 1 << 40),
        struct.pack("!IQ", 0, 0),
        struct.pack("!IQ", 4, 0) + b"oops",
        struct.pack("!IQ", 2, 0) + b"{}",
        struct.pack("!IQ", 42, 0) + b'{"tensors": [["x", "FP32", [1000], 4000]]}',
        struct.pack("!IQ", 46, 0) + b'{"tensors": [["x", "BYTES", [9999999999], 0]]}',
    ],
)
def test_a_hostile_frame_is_an_error_and_takes_no_memory(raw: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(raw)
        with pytest.raises(Internal):
            FrameReader(theirs, reuse=False).read(time.monotonic() + 1)


def test_hanging_up_is_told_apart_from_waiting() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        with pytest.raises(Disconnected):
            FrameReader(theirs, reuse=False).read(time.monotonic() + 1)
        with pytest.raises(Disconnected):
            send_frame(theirs, {})
