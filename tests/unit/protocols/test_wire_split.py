"""A message without one field, as protobuf itself would have it without that field."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.protocols.wire import split

CHUNKS, MOST = 8, 64


def message(chunks: list[bytes], counter: int, text: str) -> pb.SealedInferRequest:
    return pb.SealedInferRequest(
        version=1,
        suite=pb.SUITE_X25519,
        issued_at_ms=1_800_000_000_000,
        deployment=text,
        recipients=[pb.Recipient(key_id=text, wrapped_key=b"w" * 200)],
        chunks=chunks,
        session=pb.SessionPlace(counter=counter),
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=5), st.integers(0, 2**32 - 1), st.text(max_size=40))
def test_it_is_what_protobuf_reads(chunks: list[bytes], counter: int, text: str) -> None:
    whole = message(chunks, counter, text)
    rest, found = split(whole.SerializeToString(), CHUNKS, MOST)
    assert [bytes(item) for item in found] == chunks
    whole.ClearField("chunks")
    assert pb.SealedInferRequest.FromString(rest) == whole


def test_fields_may_come_in_any_order_and_twice() -> None:
    first, second = message([b"a"], 1, "x"), message([b"b", b"c"], 2, "y")
    both = first.SerializeToString() + second.SerializeToString()
    rest, found = split(both, CHUNKS, MOST)
    assert [bytes(item) for item in found] == [b"a", b"b", b"c"]
    expected = pb.SealedInferRequest.FromString(both)
    expected.ClearField("chunks")
    assert pb.SealedInferRequest.FromString(rest) == expected


def test_whatever_is_damaged_is_read_as_protobuf_reads_it_or_refused() -> None:
    dice = random.Random(7)
    wire = message([b"chunk" * 30, b"", b"z"], 300, "projects/p/deployments/d").SerializeToString()
    agreed = refused = 0
    for _ in range(20_000):
        body = bytearray(wire if dice.random() < 0.8 else wire[: dice.randrange(1, len(wire))])
        body[dice.randrange(len(body))] = dice.randrange(256)
        try:
            expected: pb.SealedInferRequest | None = pb.SealedInferRequest.FromString(bytes(body))
        except DecodeError:
            expected = None
        try:
            rest, found = split(bytes(body), CHUNKS, MOST)
            got: pb.SealedInferRequest | None = pb.SealedInferRequest.FromString(rest)
        except (ValueError, DecodeError):
            got = None
        if got is None:
            refused += 1  # it may refuse what protobuf takes (groups), never take another one
            continue
        assert expected is not None, bytes(body)
        assert [bytes(item) for item in found] == list(expected.chunks)
        expected.ClearField("chunks")
        assert got == expected
        agreed += 1
    assert agreed > 1000 and refused > 1000


@pytest.mark.parametrize("body", [b"\x0b", b"\x42\x05ab", b"\x42", b"\x80", b"\x42" + b"\xff" * 10, b"\x09\x00"])
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):
        split(body, CHUNKS, MOST)


def test_more_fields_than_there_can_be_are_refused_before_they_cost_anything() -> None:
    assert len(split(b"\x42\x00" * MOST, CHUNKS, MOST)[1]) == MOST
    for body in (b"\x42\x00" * (MOST + 1), b"\x3a\x00" * 5000, b"\x42\x00" * 1_000_000):
        tracemalloc.start()
        with pytest.raises(ValueError):
            split(body, CHUNKS, MOST)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1_000_000
