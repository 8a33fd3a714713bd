"""A lane carries many calls at once; when it breaks, those that may run again fail, and the others go on after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine

import pytest

from sealane.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, Unavailable
from sealane.inference.v1 import lane_service_pb2 as pb
from sealane.rpc.lane import CHUNK_BYTES, MAX_PAYLOAD_BYTES
from sealane.rpc.status import to_status
from sealane_inference.lanes import LANE_LOST, LANE_UNSENT, Lane, LaneCall


def a_call(payload: bytes = b"body", *, once: bool = False) -> LaneCall:
    return LaneCall("/x.Y/Z", "projects/p/deployments/d", 4, {"authorization": "Bearer t"}, payload, once)


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


def test_a_large_call_does_not_hold_up_small_ones() -> None:
    async def test() -> None:
        lane = Lane("w")
        payload = bytes(range(256)) * 8000
        await start(lane, a_call(b"s"), a_call(payload), a_call(b"s"))
        outgoing = lane.outgoing()
        first = (await anext(outgoing)).frames
        assert [len(frame.call.payload) for frame in first] == [1, 1, CHUNK_BYTES]
        big = first[2].call
        assert big.size == len(payload)
        await start(lane, a_call(b"later"))
        second = (await anext(outgoing)).frames
        assert [frame.WhichOneof("frame") for frame in second] == ["call", "data"]
        got = big.payload + second[1].data.data
        while len(got) < len(payload):
            credit = pb.CreditFrame(call_id=big.call_id, bytes=CHUNK_BYTES)
            lane.deliver(pb.WorkerFrames(frames=[pb.WorkerFrame(credit=credit)]))
            (frame,) = (await anext(outgoing)).frames
            got += frame.data.data
        assert got == payload
        lane.close()

    run(test())


def test_a_large_answer_is_joined_and_asked_for() -> None:
    async def test() -> None:
        lane, outgoing, task, call_id = await one_sent(once=False)
        payload = bytes(range(256)) * 8000
        head = pb.ReplyFrame(call_id=call_id, payload=payload[:CHUNK_BYTES], size=len(payload))
        lane.deliver(pb.WorkerFrames(frames=[pb.WorkerFrame(reply=head)]))
        asked = 0
        for at in range(CHUNK_BYTES, len(payload), CHUNK_BYTES):
            assert not task.done()
            data = pb.DataFrame(call_id=call_id, data=payload[at : at + CHUNK_BYTES])
            lane.deliver(pb.WorkerFrames(frames=[pb.WorkerFrame(data=data)]))
        for frame in (await anext(outgoing)).frames:
            asked += frame.credit.bytes
        assert asked
        assert await task == payload

    run(test())


def test_a_large_call_that_is_given_up_goes_no_further() -> None:
    async def test() -> None:
        lane = Lane("w")
        outgoing = lane.outgoing()
        (task,) = await start(lane, a_call(bytes(5_000_000)))
        call_id = (await anext(outgoing)).frames[0].call.call_id
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        (frame,) = (await anext(outgoing)).frames
        assert frame.cancel.call_id == call_id
        await start(lane, a_call(b"next"))
        assert [frame.call.payload for frame in (await anext(outgoing)).frames] == [b"next"]

    run(test())


async def one_sent(*, once: bool) -> tuple[Lane, AsyncIterator[pb.GatewayFrames], asyncio.Task[bytes], int]:
    """A lane with a session over which one call was sent."""
    lane = Lane("w", session="s")
    outgoing = lane.outgoing()
    (task,) = await start(lane, a_call(once=once))
    return lane, outgoing, task, (await anext(outgoing)).frames[0].call.call_id


def test_a_call_that_may_run_once_outlives_the_stream() -> None:
    async def test() -> None:
        lane, outgoing, task, call_id = await one_sent(once=True)
        (unsent,) = await start(lane, a_call(b"unsent", once=True))
        assert lane.suspend()
        assert [message async for message in outgoing] == []
        with pytest.raises(Unavailable):
            await lane.call(a_call(), 1)
        assert lane.resume(1, 0)  # the worker has the first call
        assert lane.welcome(resumed=True).frames[0].welcome.resumed
        (frame,) = (await anext(lane.outgoing())).frames
        assert frame.call.payload == b"unsent"
        lane.deliver(reply(call_id, b"answer"))
        lane.deliver(reply(frame.call.call_id, b"another"))
        assert (await task, await unsent) == (b"answer", b"another")

    run(test())


def test_a_call_that_the_worker_never_got_is_sent_again() -> None:
    async def test() -> None:
        lane, _, task, call_id = await one_sent(once=True)
        lane.suspend()
        assert lane.resume(0, 0)
        (frame,) = (await anext(lane.outgoing())).frames
        assert (frame.call.call_id, frame.call.payload) == (call_id, b"body")
        assert frame.call.timeout_us > 0
        lane.deliver(reply(call_id, b"answer"))
        assert await task == b"answer"

    run(test())


def test_a_call_that_may_run_again_fails_at_once_and_is_cancelled_there() -> None:
    async def test() -> None:
        lane, _, task, call_id = await one_sent(once=False)
        assert not lane.suspend()
        with pytest.raises(Unavailable) as caught:
            await task
        assert caught.value.reason == LANE_LOST
        assert lane.resume(1, 0)
        (frame,) = (await anext(lane.outgoing())).frames
        assert frame.cancel.call_id == call_id

    run(test())


def test_a_break_in_the_middle_of_a_large_call_costs_no_byte() -> None:
    async def test() -> None:
        lane = Lane("w", session="s")
        payload = bytes(range(256)) * 4000
        (task,) = await start(lane, a_call(payload, once=True))
        outgoing = lane.outgoing()
        first, _, _ = [(await anext(outgoing)).frames[0] for _ in range(3)]
        lane.suspend()
        assert lane.resume(1, 0)  # two pieces were on their way
        got, again = first.call.payload, lane.outgoing()
        while len(got) < len(payload):
            for frame in (await anext(again)).frames:
                got += frame.data.data
        assert got == payload
        lane.deliver(reply(first.call.call_id, b"answer"))
        assert await task == b"answer"

    run(test())


def test_what_came_is_acknowledged_with_the_next_message_or_after_a_while() -> None:
    async def test() -> None:
        lane = Lane("w")
        outgoing = lane.outgoing()
        lane.deliver(reply(99))
        await start(lane, a_call())
        assert (await anext(outgoing)).received == 1
        for _ in range(64):
            lane.deliver(reply(99))
        message = await anext(outgoing)
        assert (message.received, len(message.frames)) == (65, 0)
        assert lane.welcome(resumed=True).frames[0].welcome.received == 65

    run(test())


def test_a_worker_that_is_confused_is_found_out() -> None:
    async def test() -> None:
        lane, _, _, call_id = await one_sent(once=False)
        with pytest.raises(InvalidArgument):
            lane.deliver(
                pb.WorkerFrames(frames=[pb.WorkerFrame(reply=pb.ReplyFrame(call_id=call_id, size=3, payload=b"1234"))])
            )
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
        with pytest.raises(ResourceExhausted) as caught:
            await lane.call(a_call(), 1)
        assert caught.value.reason == "LANE_FULL"
        assert caught.value.retry_after
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
