"""A stream of requests at the gateway holds a bounded number of bytes, whatever the answers are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import cast

import pytest

from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.rpc.async_dispatch import AsyncDispatcher, Source
from sealane.rpc.call import Call, Peer
from sealane.rpc.policy import Method, methods_of
from sealane_inference import streams
from sealane_inference.streams import INFER, Streams

METHODS = {
    method.path: method
    for method in methods_of(oip.DESCRIPTOR.services_by_name["GRPCInferenceService"], "inference.GRPCInferenceService")
}
REQUEST = oip.ModelInferRequest(model_name="d").SerializeToString()


class Answering:
    """A dispatcher whose first answer of all comes when it is let, and the others at once; each is `size` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = 0
        self.blocked = asyncio.Event()

    def method(self, path: str) -> Method:
        return METHODS[path]

    async def unary(self, call: Call, source: Source) -> bytes:
        self.taken += 1
        if self.taken == 2:
            await self.blocked.wait()
        return b"\0" * self.size


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield REQUEST


async def settled(answering: Answering) -> int:
    """How many requests are taken when no more are."""
    before = -1
    while before != answering.taken:
        before = answering.taken
        for _ in range(50):
            await asyncio.sleep(0)
    return before


@pytest.mark.parametrize(
    ("size", "most"), [(10, streams.UNDER_WAY), (100_000, 11), (2_000_000, 2)], ids=["small", "medium", "large"]
)
async def test_answers_that_wait_for_an_earlier_one_are_counted(
    size: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "BYTES_UNDER_WAY", 1_000_000)
    answering, served = Answering(size), Streams()
    served.attach(cast(AsyncDispatcher, answering))
    call = Call(METHODS[INFER.replace("ModelInfer", "ModelStreamInfer")], {}, Peer(), time.monotonic() + 60)
    answers = served.run(endless(), call)
    await anext(answers)
    following = asyncio.ensure_future(anext(answers))
    taken = await settled(answering)
    assert 1 < taken <= 1 + most + streams.FIRST_UNDER_WAY
    assert taken <= 1 + most if size < 1_000_000 else taken <= streams.FIRST_UNDER_WAY + 1
    answering.blocked.set()
    assert len(await following) > size
    await answers.aclose()  # type: ignore[attr-defined]  # an async generator


async def test_before_the_first_answer_few_are_taken() -> None:
    answering, served = Answering(10), Streams()
    answering.taken = 1  # the first one waits already
    served.attach(cast(AsyncDispatcher, answering))
    call = Call(METHODS[INFER.replace("ModelInfer", "ModelStreamInfer")], {}, Peer(), time.monotonic() + 60)
    answers = served.run(endless(), call)
    following = asyncio.ensure_future(anext(answers))
    assert await settled(answering) == 1 + streams.FIRST_UNDER_WAY
    answering.blocked.set()
    await following
    await answers.aclose()  # type: ignore[attr-defined]  # an async generator
