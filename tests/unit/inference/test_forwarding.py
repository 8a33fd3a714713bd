"""Where a call goes after a refusal: elsewhere, within a budget, and nowhere when its time is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from sealane import telemetry
from sealane.clock import SystemClock
from sealane.compat.openinference.v2 import openinference_pb2
from sealane.errors import MODEL_CRASHED, DeadlineExceeded, ResourceExhausted, SealaneError, Unavailable
from sealane.inference.v1 import lane_service_pb2 as pb
from sealane.rpc.call import Call, Identity, Peer
from sealane.rpc.loads import FRESH_SECONDS, TRUSTED_ANSWERS, Load
from sealane.rpc.policy import methods_of
from sealane.rpc.retry_budget import RETRIES_AT_REST
from sealane.rpc.status import to_status
from sealane_inference.forward import Forwarder
from sealane_inference.lanes import Lane
from sealane_inference.loads import Loads
from sealane_inference.present import Present
from sealane_inference.routing import Endpoint, Route

SERVICE = openinference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
METHOD = next(
    method for method in methods_of(SERVICE, "inference.GRPCInferenceService") if method.path.endswith("/ModelInfer")
)
OVERLOADED = ResourceExhausted("too much waits", reason="QUEUE_WAIT", retry_after=0.25)


class Site:
    """Workers that answer as a test wants, behind real lanes."""

    def __init__(self, **answers: Callable[[], bytes | pb.ReplyFrame]) -> None:
        clock = SystemClock()
        self.present = Present(clock)
        self.asked: list[str] = []
        self.loads = Loads(clock)
        self.forwarder = Forwarder(
            self.present, self.loads, telemetry.configure(telemetry.TelemetryConfig("test", sample_ratio=0.0))
        )
        self.route = Route("p", "d", "m", "1", tuple(Endpoint(node, 1, key_id=node) for node in answers))
        self.tasks = [asyncio.create_task(self._serve(node, answer)) for node, answer in answers.items()]

    async def _serve(self, node: str, answer: Callable[[], bytes | pb.ReplyFrame]) -> None:
        lane = Lane(node)
        self.present.attach(lane)
        async for message in lane.outgoing():
            for frame in message.frames:
                if frame.HasField("call"):
                    self.asked.append(node)
                    lane.deliver(pb.WorkerFrames(frames=[pb.WorkerFrame(reply=_reply(frame.call.call_id, answer))]))

    async def call(self, seconds: float = 5.0, **metadata: str) -> bytes:
        return await self.forwarder.repeatable(await a_call(seconds, **metadata), lambda: self.route)

    async def kept(self) -> bytes:
        return await self.forwarder.kept(await a_call(), lambda: self.route, "a\0sequence")

    async def once(self) -> bytes:
        keys = tuple(endpoint.key_id for endpoint in self.route.endpoints)
        return await self.forwarder.once(await a_call(), self.route, keys)


async def a_call(seconds: float = 5.0, **metadata: str) -> Call:
    await asyncio.sleep(0)
    sent = {key.replace("_", "-"): value for key, value in metadata.items()}
    return Call(METHOD, sent, Peer(), time.monotonic() + seconds, body=b"body", identity=Identity("a", "p"))


def _reply(call_id: int, answer: Callable[[], bytes | pb.ReplyFrame]) -> pb.ReplyFrame:
    try:
        given = answer()
        if isinstance(given, bytes):
            return pb.ReplyFrame(call_id=call_id, payload=given)
        given.call_id = call_id
        return given
    except SealaneError as error:
        status = to_status(error)
        return pb.ReplyFrame(
            call_id=call_id, code=status.code, message=status.message, status_details=status.SerializeToString()
        )


def refuses(error: SealaneError) -> Callable[[], bytes]:
    def answer() -> bytes:
        raise error

    return answer


def one_after_another(*answers: SealaneError | bytes) -> Callable[[], bytes | pb.ReplyFrame]:
    """What is answered first, second, and so on."""
    left = list(answers)

    def answer() -> bytes:
        given = left.pop(0)
        if isinstance(given, SealaneError):
            raise given
        return given

    return answer


def test_a_request_that_crashed_the_model_is_shown_to_no_other_copy_of_it() -> None:
    async def test() -> None:
        crashed = refuses(Unavailable("crashed", reason=MODEL_CRASHED, retry_after=0.1))
        site = Site(one=crashed, two=crashed)
        with pytest.raises(Unavailable) as caught:
            await site.call()
        assert (caught.value.reason, caught.value.retry_after) == (MODEL_CRASHED, 0.1)
        assert len(site.asked) == 1

    asyncio.run(asyncio.wait_for(test(), 10))


def test_a_request_that_the_model_never_saw_goes_elsewhere() -> None:
    async def test() -> None:
        site = Site(down=refuses(Unavailable("restarting", reason="MODEL_RESTARTING")), up=lambda: b"answer")
        for _ in range(5):
            assert await site.call() == b"answer"

    asyncio.run(asyncio.wait_for(test(), 10))


@pytest.mark.parametrize("reason", [MODEL_CRASHED, "MODEL_CLOSED", "LANE_LOST", "", "SOMETHING_NEW"])
def test_what_may_have_run_and_may_run_only_once_is_not_sent_again(reason: str) -> None:
    async def test() -> None:
        failing = refuses(Unavailable("failed", reason=reason))
        for ask in (Site.once, Site.kept):
            site = Site(one=failing, two=failing)
            with pytest.raises(Unavailable):
                await ask(site)
            assert len(site.asked) == 1

    asyncio.run(asyncio.wait_for(test(), 10))


def test_a_sealed_request_that_was_not_opened_goes_to_another_recipient() -> None:
    async def test() -> None:
        for error in (
            Unavailable("another epoch", reason="STALE_ROUTE"),
            ResourceExhausted("full", reason="LANE_FULL"),
            ResourceExhausted("too many calls", reason="OVERLOAD"),
        ):
            site = Site(one=refuses(error), two=lambda: b"answer")
            for _ in range(4):
                assert await site.once() == b"answer"

    asyncio.run(asyncio.wait_for(test(), 10))


def test_a_request_of_a_sequence_waits_for_its_worker_where_the_model_has_not_run() -> None:
    async def test() -> None:
        restarting = Unavailable("restarting", reason="MODEL_RESTARTING")
        site = Site(one=one_after_another(restarting, Unavailable("old", reason="STALE_ROUTE"), b"answer"))
        assert await site.kept() == b"answer"
        assert site.asked == ["one"] * 3

    asyncio.run(asyncio.wait_for(test(), 10))


def test_an_overloaded_worker_is_passed_over_for_another_one() -> None:
    async def test() -> None:
        site = Site(busy=refuses(OVERLOADED), idle=lambda: b"answer")
        for _ in range(5):
            assert await site.call() == b"answer"

    asyncio.run(asyncio.wait_for(test(), 10))


def test_overload_is_not_multiplied() -> None:
    async def test() -> None:
        site = Site(one=refuses(OVERLOADED), two=refuses(OVERLOADED))
        calls = 200
        for _ in range(calls):
            with pytest.raises(ResourceExhausted) as caught:
                await site.call()
            assert caught.value.retry_after == 0.25, "it survives the lane"
        assert len(site.asked) <= calls * 1.1 + RETRIES_AT_REST
        assert len(site.asked) > calls

    asyncio.run(asyncio.wait_for(test(), 10))


def test_a_quota_is_not_asked_for_elsewhere() -> None:
    async def test() -> None:
        error = ResourceExhausted("your quota", reason="QUOTA_EXCEEDED", retry_after=1.0)
        site = Site(one=refuses(error), two=refuses(error))
        with pytest.raises(ResourceExhausted):
            await site.call()
        assert len(site.asked) == 1

    asyncio.run(asyncio.wait_for(test(), 10))


def test_what_is_over_is_not_sent() -> None:
    async def test() -> None:
        site = Site(one=lambda: b"answer")
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded):
            await site.call(seconds=0.0)
        assert site.asked == []

    asyncio.run(asyncio.wait_for(test(), 10))


def busy(calls: int, service: float) -> Callable[[], pb.ReplyFrame]:
    """Answers, and says that so many other calls are there."""
    microseconds = int(service * 1e6)
    load = pb.Load(calls=calls, queue_us=calls * microseconds, service_us=microseconds)
    return lambda: pb.ReplyFrame(payload=b"answer", load=load)


def test_a_worker_that_others_keep_busy_is_passed_over() -> None:
    async def test() -> None:
        site = Site(busy=busy(20, 0.01), idle=busy(0, 0.01))
        for _ in range(2):
            await site.call()  # each is tried once
        assert sorted(site.asked) == ["busy", "idle"]
        for _ in range(20):
            await site.call()
        assert site.asked[2:] == ["idle"] * 20

    asyncio.run(asyncio.wait_for(test(), 10))


def test_a_call_that_nobody_can_answer_in_time_is_refused_at_once() -> None:
    async def test() -> None:
        site = Site(one=busy(50, 0.1), two=busy(30, 0.1))
        for node, load in (("one", Load(50, 5.0, 0.1)), ("two", Load(30, 3.0, 0.1))):
            for _ in range(TRUSTED_ANSWERS):
                ticket = site.loads.of(site.route.name).begin(node)
                ticket.hear(load)
                ticket.end()
        with pytest.raises(ResourceExhausted) as caught:
            await site.call(seconds=1.0)
        assert caught.value.reason == "QUEUE_WAIT" and caught.value.retry_after is not None
        assert 2.5 < caught.value.retry_after < 3.1, "what the less busy one has before it"
        with pytest.raises(DeadlineExceeded) as alone:
            await site.call(seconds=0.05)
        assert alone.value.reason == "DEADLINE_TOO_SHORT"
        assert site.asked == [], "no worker was asked"
        assert await site.call(seconds=30.0) == b"answer"

    asyncio.run(asyncio.wait_for(test(), 10))


def test_who_was_busy_a_while_ago_is_asked_again() -> None:
    async def test() -> None:
        site = Site(one=busy(50, 0.1))
        for _ in range(TRUSTED_ANSWERS):
            await site.call(seconds=30.0)
        with pytest.raises(ResourceExhausted):
            await site.call(seconds=1.0)
        await asyncio.sleep(FRESH_SECONDS + 0.05)
        assert await site.call(seconds=1.0) == b"answer"

    asyncio.run(asyncio.wait_for(test(), 10))


def test_calls_of_one_key_keep_to_one_worker_and_those_of_many_are_spread() -> None:
    async def test() -> None:
        names = [f"n{index}" for index in range(4)]
        site = Site(**{name: (lambda: b"answer") for name in names})
        for key in range(40):
            site.asked.clear()
            for _ in range(3):
                await site.call(x_sealane_affinity=f"session-{key}")
            assert len(set(site.asked)) == 1
        site.asked.clear()
        for key in range(200):
            await site.call(x_sealane_affinity=f"session-{key}")
        assert min(site.asked.count(name) for name in names) > 20

    asyncio.run(asyncio.wait_for(test(), 10))
