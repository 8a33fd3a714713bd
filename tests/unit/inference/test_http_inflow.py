"""Bodies in and out: nobody fills the memory, and heavy work does not stand in the way."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from sealane.errors import Cancelled, InvalidArgument, ResourceExhausted, SealaneError
from sealane_inference import http_inflow
from sealane_inference.http_inflow import Heavy, Inflow


def receiver(*pieces: bytes, ends: bool = True) -> http_inflow.Receive:
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


def test_heavy_work_leaves_the_event_loop() -> None:
    import threading

    async def run() -> tuple[int, int]:
        heavy = Heavy()
        return await heavy.run(10, threading.get_ident), await heavy.run(10_000_000, threading.get_ident)

    little, much = asyncio.run(run())
    assert little == threading.get_ident()
    assert much != little
