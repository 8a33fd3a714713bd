"""Bodies in and out: nobody fills the memory, and heavy work does not stand in the way."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Mapping

import pytest

from sealane.errors import Cancelled, InvalidArgument, ResourceExhausted, SealaneError
from sealane_inference import http_coding
from sealane_inference.http_coding import Heavy, Inflow, coding_of, deflate, inflate, wanted_coding


def receiver(*pieces: bytes, ends: bool = True) -> http_coding.Receive:
    messages: list[Mapping[str, object]] = [
        {"type": "http.request", "body": piece, "more_body": index + 1 < len(pieces) or not ends}
        for index, piece in enumerate(pieces)
    ]
    messages.append({"type": "http.disconnect"})
    left = iter(messages)

    async def receive() -> Mapping[str, object]:
        return next(left)

    return receive


def test_a_body_is_read_whole() -> None:
    inflow = Inflow(10)
    assert asyncio.run(inflow.read(receiver(b"abc", b"", b"def"), {})) == b"abcdef"
    inflow.done(6)
    assert asyncio.run(inflow.read(receiver(b"0123456789"), {})) == b"0123456789"


@pytest.mark.parametrize(
    ("pieces", "ends", "headers", "refusal"),
    [
        ([b"x" * 11], True, {}, ResourceExhausted),
        ([b"x"], False, {}, Cancelled),
        ([b"x"], True, {"content-length": "9" * 30}, InvalidArgument),
    ],
)
def test_what_is_refused_gives_its_place_back(
    pieces: list[bytes], ends: bool, headers: dict[str, str], refusal: type[SealaneError]
) -> None:
    inflow = Inflow(10)
    for _ in range(3):
        with pytest.raises(refusal):
            asyncio.run(inflow.read(receiver(*pieces, ends=ends), headers))
    assert asyncio.run(inflow.read(receiver(b"0123456789"), {})) == b"0123456789"


def test_bodies_together_have_a_limit() -> None:
    inflow = Inflow(10)
    asyncio.run(inflow.read(receiver(b"123456"), {}))
    with pytest.raises(ResourceExhausted):
        asyncio.run(inflow.read(receiver(b"123456"), {}))
    inflow.done(6)
    asyncio.run(inflow.read(receiver(b"123456"), {}))


@pytest.mark.parametrize("size", [0, 1, 1_000_000])
def test_compression_is_undone(size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    assert inflate(gzip.compress(body), "gzip") == inflate(zlib.compress(body), "deflate") == body
    for coding in ("gzip", "deflate"):
        assert inflate(deflate([body, body], coding), coding) == body + body


def test_a_bomb_is_refused_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_coding, "BODY_BYTES", 100_000)
    assert len(inflate(gzip.compress(b"\0" * 100_000), "gzip")) == 100_000
    for bomb in (gzip.compress(b"\0" * 100_001), gzip.compress(b"\0" * 50_000_000)):
        with pytest.raises(InvalidArgument) as caught:
            inflate(bomb, "gzip")
        assert caught.value.reason == "REQUEST_TOO_LARGE"


@pytest.mark.parametrize(
    ("accepted", "size", "coding"),
    [
        ("gzip", 5000, "gzip"),
        ("gzip", 50, ""),
        ("br, deflate;q=0.5, gzip", 5000, "deflate"),
        ("gzip;q=0, deflate", 5000, "deflate"),
        ("gzip; q=0", 5000, ""),
        ("identity", 5000, ""),
        ("", 5000, ""),
    ],
)
def test_an_answer_is_compressed_as_the_caller_reads_it(accepted: str, size: int, coding: str) -> None:
    assert wanted_coding({"accept-encoding": accepted}, size) == coding


def test_unknown_compression_is_refused() -> None:
    assert coding_of({}) == coding_of({"content-encoding": "identity"}) == ""
    assert coding_of({"content-encoding": "GZIP"}) == "gzip"
    with pytest.raises(InvalidArgument):
        coding_of({"content-encoding": "br"})


def test_heavy_work_leaves_the_event_loop() -> None:
    import threading

    async def run() -> tuple[int, int]:
        heavy = Heavy()
        return await heavy.run(10, threading.get_ident), await heavy.run(10_000_000, threading.get_ident)

    little, much = asyncio.run(run())
    assert little == threading.get_ident()
    assert much != little
