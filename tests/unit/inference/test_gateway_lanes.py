"""A lane carries many calls at once and fails them all at once when it breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import pytest

from sealane.errors import DeadlineExceeded, InvalidArgument, Unavailable
from sealane.inference.v1 import lane_service_pb2 as pb
from sealane.rpc.status import to_status
from sealane_inference.lanes import LANE_LOST, LANE_UNSENT, MAX_PAYLOAD_BYTES, Lane, LaneCall


def a_call(payload: bytes = b"body") -> LaneCall:
    return LaneCall("/x.Y/Z", "projects/p/deployments/d", 4, {"authorization": "Bearer t"}, payload)


def run(test: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 5))


def reply(call_id: int, payload: bytes = b"") -> pb.WorkerFrames:
    return pb.WorkerFrames(frames=[pb.WorkerFrame(reply=pb.ReplyFrame(call_id=call_id, payload=payload))])


async def start(lane: Lane, *calls: LaneCall, timeout: float = 3.0) -> list[asyncio.Task[bytes]]:
    tasks = [asyncio.create_task(lane.call(call, timeout)) for call in calls]
    await asyncio.sleep(0)
    return tasks


def test_waiting_calls_travel_together_and_answers_find_their_callers() -> None:
    async def test() -> None:
        lane = Lane("w")
        tasks = await start(lane, a_call(b"1"), a_call(b"2"))
        message = await anext(lane.outgoing())
        first, second = (frame.call for frame in message.frames)
        assert (first.payload, second.payload, first.method, first.epoch) == (b"1", b"2", "/x.Y/Z", 4)
        assert first.metadata["authorization"] == "Bearer t"
        assert 2_000_000 < first.timeout_us <= 3_000_000
        lane.deliver(reply(second.call_id, b"two"))
        lane.deliver(reply(999))
        lane.deliver(reply(first.call_id, b"one"))
        assert [await task for task in tasks] == [b"one", b"two"]
        assert lane.in_flight == 0

    run(test())


def test_a_large_call_does_not_hold_up_others_in_one_message() -> None:
    async def test() -> None:
        lane = Lane("w")
        await start(lane, a_call(b"s"), a_call(b"x" * 2_000_000), a_call(b"s"))
        outgoing = lane.outgoing()
        assert [len((await anext(outgoing)).frames) for _ in range(3)] == [1, 1, 1]
        lane.close()

    run(test())


def test_a_broken_lane_says_whether_the_call_was_sent() -> None:
    async def test() -> None:
        lane = Lane("w")
        (sent,) = await start(lane, a_call())
        await anext(lane.outgoing())
        (unsent,) = await start(lane, a_call())
        lane.close()
        for task, reason in ((sent, LANE_LOST), (unsent, LANE_UNSENT)):
            with pytest.raises(Unavailable) as caught:
                await task
            assert caught.value.reason == reason
        with pytest.raises(Unavailable) as caught:
            await lane.call(a_call(), 1)
        assert caught.value.reason == LANE_UNSENT
        assert [message async for message in lane.outgoing()] == []

    run(test())


def test_a_call_that_nobody_waits_for_is_cancelled_or_never_sent() -> None:
    async def test() -> None:
        lane = Lane("w")
        outgoing = lane.outgoing()
        (sent,) = await start(lane, a_call(), timeout=0.05)
        call_id = (await anext(outgoing)).frames[0].call.call_id
        with pytest.raises(DeadlineExceeded):
            await sent
        (unsent,) = await start(lane, a_call())
        unsent.cancel()
        await asyncio.gather(unsent, return_exceptions=True)
        message = await anext(outgoing)
        assert [frame.WhichOneof("frame") for frame in message.frames] == ["cancel"]
        assert message.frames[0].cancel.call_id == call_id

    run(test())


def test_a_full_lane_and_a_huge_call_are_refused() -> None:
    async def test() -> None:
        lane = Lane("w", max_in_flight=1)
        (first,) = await start(lane, a_call())
        with pytest.raises(Unavailable) as caught:
            await lane.call(a_call(), 1)
        assert caught.value.reason == "LANE_FULL"
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        with pytest.raises(InvalidArgument):
            await lane.call(a_call(b"x" * (MAX_PAYLOAD_BYTES + 1)), 1)

    run(test())


def test_an_error_of_the_worker_arrives_whole() -> None:
    async def test() -> None:
        lane = Lane("w")
        (task,) = await start(lane, a_call())
        call_id = (await anext(lane.outgoing())).frames[0].call.call_id
        status = to_status(InvalidArgument("bad shape", reason="INPUT_SHAPE_MISMATCH", field="inputs.x"), "r")
        frame = pb.ReplyFrame(
            call_id=call_id, code=status.code, message=status.message, status_details=status.SerializeToString()
        )
        lane.deliver(pb.WorkerFrames(frames=[pb.WorkerFrame(reply=frame)]))
        with pytest.raises(InvalidArgument) as caught:
            await task
        assert (caught.value.reason, caught.value.field) == ("INPUT_SHAPE_MISMATCH", "inputs.x")

    run(test())
