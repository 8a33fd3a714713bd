"""Tensors cross to the model and back unchanged, and what a model sends is checked before it is believed."""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealane.errors import Internal, ResourceExhausted, SealaneError
from sealane.tensors import NUMPY_OF, Array
from sealane_worker import slots, wire
from sealane_worker.control import Disconnected, read_control, send_control
from sealane_worker.rings import HEAD_BYTES, RING_BYTES, FrontRings, ModelRings, Regions
from sealane_worker.sealed import told_inside
from sealane_worker.slots import Slots
from sealane_worker.spec import Run


def _sample(datatype: str) -> Array:
    dtype = NUMPY_OF[datatype]
    if datatype == "BYTES":
        return np.array([[b"", b"abc"], [b"\x00\xff", b"d"]], np.object_)
    if datatype == "BF16":
        return np.frombuffer(b"\x01\x02\x03\x04\x05\x06", dtype).reshape(3, 1)
    return np.arange(6).astype(dtype).reshape(2, 3)


@pytest.mark.parametrize("datatype", sorted(NUMPY_OF))
def test_every_datatype_arrives_as_sent(datatype: str) -> None:
    sent = {"odd": np.array([1, 2, 3], np.uint8), "x": _sample(datatype), "scalar": np.array(2.5)}
    for _ in range(2):  # the second time from the kept layout
        body = wire.Packer().pack(sent, "sig", ("y",))
        laid = bytearray(body.size)
        body.copy_to(memoryview(laid))
        layout = wire.Layouts().read(body.layout)
        assert (layout.signature, layout.outputs, layout.size, layout.rows) == ("sig", ("y",), body.size, 3)
        got = wire.unpack(layout, memoryview(laid))
        assert list(got) == list(sent)
        for name, array in sent.items():
            assert (got[name].dtype, got[name].shape, got[name].tolist()) == (array.dtype, array.shape, array.tolist())
            assert got[name].flags.aligned


def test_a_strided_array_is_sent_as_it_reads() -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::3]
    body = wire.Packer().pack({"x": array})
    laid = bytearray(body.size)
    body.copy_to(memoryview(laid))
    np.testing.assert_array_equal(wire.unpack(wire.Layouts().read(body.layout), memoryview(laid))["x"], array)


@pytest.mark.parametrize(
    "tensors",
    [
        "nonsense",
        [["x", "FP32", [1000], 8]],
        [["x", "FP32", [-1], -4]],
        [["x", "FLOAT", [1], 4]],
        [["x", "FP32", [1]]],
        [["x", "FP32", ["1"], 4]],
    ],
)
def test_a_layout_that_cannot_be_is_refused(tensors: object) -> None:
    with pytest.raises(Internal):
        wire.Layouts().read(json.dumps({"t": tensors}).encode())


@pytest.mark.parametrize(
    "raw", [b"", b"\x01", struct.pack("<I", 99) + b"x", struct.pack("<I", 1) + b"xtra", struct.pack("<I", 1 << 31)]
)
def test_bytes_that_end_too_early_are_refused_without_taking_memory(raw: bytes) -> None:
    layout = wire.Layouts().read(json.dumps({"t": [["x", "BYTES", [2], len(raw)]]}).encode())
    padded = memoryview(raw + bytes(-len(raw) % wire.ALIGNMENT))
    with pytest.raises(Internal):
        wire.unpack(layout, padded)


def test_a_count_that_no_body_holds_takes_no_memory() -> None:
    layout = wire.Layouts().read(json.dumps({"t": [["x", "BYTES", [1 << 50], 8]]}).encode())
    with pytest.raises(Internal):
        wire.unpack(layout, memoryview(bytes(64)))


def test_control_messages_and_a_hang_up() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_control(ours, {"labels": ["x" * 1000] * 100})
        assert read_control(theirs)["labels"] == ["x" * 1000] * 100
        theirs.settimeout(0.01)
        with pytest.raises(TimeoutError):
            read_control(theirs)
        for raw in (struct.pack("<I", 1 << 30), struct.pack("<I", 4) + b"oops", struct.pack("<I", 2) + b"[]"):
            one, other = socket.socketpair()
            with one, other:
                one.sendall(raw)
                with pytest.raises(Internal):
                    read_control(other)
    with pytest.raises(Disconnected):
        read_control(theirs)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40_000)), max_size=60))
def test_regions_never_overlap_and_come_back(steps: list[tuple[bool, int]]) -> None:
    regions, held = Regions(4096, 4096 * 64), dict[int, int]()
    for give, size in steps:
        if give and held:
            offset, _ = held.popitem()
            regions.give(offset)
            continue
        try:
            offset = regions.take(size, 0.0)
        except ResourceExhausted:
            continue
        assert offset >= 4096
        assert offset + size <= 4096 * 64
        assert all(offset + size <= other or other + had <= offset for other, had in held.items())
        held[offset] = size
    for offset in held:
        regions.give(offset)
    assert regions.taken_bytes == 0


def test_requests_can_be_read_and_not_written_by_the_model() -> None:
    front = FrontRings()
    read_fd, reply_fd = front.passed_fds()
    import mmap
    import os

    for descriptor in (read_fd, front.request_fd):  # even the front's own: the seal holds for every later mapping
        with pytest.raises(PermissionError):
            mmap.mmap(descriptor, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(front.request_fd, RING_BYTES * 2)
    model = ModelRings(os.dup(read_fd), os.dup(reply_fd))
    front.close_passed()
    front.requests[HEAD_BYTES : HEAD_BYTES + 5] = b"hello"
    assert bytes(model.requests[HEAD_BYTES : HEAD_BYTES + 5]) == b"hello"
    model.replies[:5] = b"world"
    assert bytes(front.replies[:5]) == b"world"
    with pytest.raises(TypeError):
        front.replies[:1] = b"x"
    with pytest.raises(TypeError):
        model.requests[:1] = b"x"


def test_a_reply_region_is_taken_anew_once_the_front_has_read_it() -> None:
    import os

    front = FrontRings()
    model = ModelRings(*(os.dup(descriptor) for descriptor in front.passed_fds()))
    front.close_passed()
    half = RING_BYTES // 2 + 4096
    assert model.take(0, 1, half) == 0
    front.mark_read(0, 1)
    assert model.take(1, 1, half) == 0
    with pytest.raises(ResourceExhausted) as full:
        model.take(2, 1, RING_BYTES + 1)
    assert full.value.reason == "REQUEST_TOO_LARGE"


class Liar:
    """A model process that answers whatever it is told to."""

    def __init__(self) -> None:
        self.rings = FrontRings()
        ours, self.sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.slots = Slots([ours], self.rings)

    def answer(self, packet: bytes) -> SealaneError | Disconnected | None:
        """What the front makes of it; once."""
        self.sock.send(packet)
        try:
            self.slots.run(Run({"x": np.zeros(1, np.float32)}, "s", time.monotonic() + 1))
        except (SealaneError, Disconnected) as error:
            return error
        finally:
            self.slots.close()
            self.sock.close()
            self.rings.close_passed()
        return None


def _reply(number: int = 1, offset: int = wire.INLINE, size: int = 64, shape: tuple[int, ...] = (1,)) -> bytes:
    count = int(np.prod(shape)) * 4
    layout = json.dumps({"t": [["y", "FP32", list(shape), count]]}).encode()
    head = wire.REPLY.pack(wire.OK, len(layout), 1, number, offset, size, 0.0, 0.0)
    return head + layout + (bytes(size) if offset == wire.INLINE else b"")


def _failed(**told: object) -> bytes:
    encoded = json.dumps({"kind": "UNAVAILABLE", "reason": "", "field": "", "message": "m", **told}).encode()
    return wire.REPLY.pack(wire.FAILED, len(encoded), 0, 1, wire.INLINE, 0, 0.0, 0.0) + encoded


def test_a_model_cannot_steer_the_front_by_what_it_says_of_itself() -> None:
    for reason in ("MODEL_CLOSED", "MODEL_LOADING"):
        error = Liar().answer(_failed(reason=reason, retry_after=0))
        assert isinstance(error, SealaneError)
        assert (error.reason, error.retry_after) == ("UNAVAILABLE", None)
    for retry_after in (1e300, float("inf"), float("nan"), -1.0):
        error = Liar().answer(_failed(retry_after=retry_after))
        assert isinstance(error, SealaneError)
        assert error.retry_after in (None, 60.0)


def test_a_late_packet_that_is_no_answer_is_noted_and_breaks_nothing() -> None:
    liar = Liar()
    with pytest.raises(SealaneError):
        liar.slots.run(Run({"x": np.zeros(1, np.float32)}, "s", time.monotonic() + 0.02))
    liar.sock.send(b"x")
    liar.slots.reclaim()
    assert liar.slots.lied
    liar.slots.close()
    liar.sock.close()
    liar.rings.close_passed()


def test_layouts_of_any_number_are_made_and_read_by_many_threads_at_once() -> None:
    packer, layouts = wire.Packer(), wire.Layouts()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work(seed: int) -> int:
        for index in range(600):
            size = 1 + (seed * 7919 + index * 31) % 700
            assert layouts.read(packer.pack({"x": np.zeros(size, np.uint8)}).layout).rows == size
        return seed

    try:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(work, range(8))) == list(range(8))
    finally:
        sys.setswitchinterval(before)


def test_an_answer_to_a_load_that_drips_or_nests_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(struct.pack("<I", 100))
        dripping = threading.Event()

        def drip() -> None:
            while not dripping.wait(0.02):
                ours.send(b" ")

        thread = threading.Thread(target=drip)
        thread.start()
        with pytest.raises(TimeoutError):
            read_control(theirs, time.monotonic() + 0.2)
        dripping.set()
        thread.join()
    one, other = socket.socketpair()
    with one, other:
        deep = b"[" * 100_000
        threading.Thread(target=one.sendall, args=(struct.pack("<I", len(deep)) + deep,), daemon=True).start()
        with pytest.raises(Internal):
            read_control(other)


def test_the_front_believes_a_model_nothing() -> None:
    assert Liar().answer(_reply()) is None
    for packet in (
        b"x",
        _reply(number=7),
        _reply(size=0),
        _reply(shape=(1 << 40,)),
        _reply(offset=RING_BYTES - 64, size=128, shape=(32,)),
        _reply(offset=1 << 63, size=64),
        _reply(offset=0, size=4, shape=(64,)),
        wire.REPLY.pack(wire.FAILED, 5, 0, 1, wire.INLINE, 0, 0.0, 0.0) + b"oops!",
        wire.REPLY.pack(wire.FAILED, 2, 0, 1, wire.INLINE, 0, 0.0, 0.0) + b"{}",
    ):
        assert isinstance(Liar().answer(packet), Internal), packet


def test_only_requests_whose_tensors_have_as_many_rows_can_run_together() -> None:
    def key(*shapes: tuple[int, ...]) -> object:
        arrays = {f"x{index}": np.zeros(shape, np.float32) for index, shape in enumerate(shapes)}
        return wire.Layouts().read(wire.Packer().pack(arrays, "s").layout).key

    assert key((3, 4), (3, 2)) == key((5, 4), (5, 2))
    assert key((3, 4)) != key((3, 5))
    assert key((3, 4), (1, 2)) is None
    assert key(()) is None


@pytest.mark.parametrize(
    "said",
    [
        b"[]",
        b"{}",
        b"\xff",
        b'{"kind":"INTERNAL","reason":"\\ud800","field":"","message":"","retry_after":0}',
        b'{"kind":"INTERNAL","reason":"","field":"","message":"","retry_after":1' + b"0" * 500 + b"}",
    ],
)
def test_an_error_that_cannot_be_sent_on_is_told_as_one(said: bytes) -> None:
    error = slots.told(said)
    assert (error.kind, error.message) == ("INTERNAL", "the model process sent an error that cannot be read")
    assert told_inside(error, "request-1")
