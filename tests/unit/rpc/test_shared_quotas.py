"""An enforcer asks for shares when it needs them, no more often, and goes on with what it has while nobody answers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from sealane.clock import ManualClock
from sealane.errors import SealaneError, Unavailable
from sealane.rpc import quota_shares
from sealane.rpc.call import Call, Identity, Peer, Quota
from sealane.rpc.dispatch import enter_blocking
from sealane.rpc.middleware import Blocking, Chain
from sealane.rpc.policy import methods_of
from sealane.rpc.quota import QuotaLimits
from sealane.rpc.quota_shares import IDLE_SECONDS, SharedQuotas
from sealane.rpc.times import duration_of
from sealane.scheduler.v1 import routing_service_pb2 as pb


class Scheduler:
    """Answers as a scheduler does; stands where the channel would."""

    def __init__(self) -> None:
        self.share = 0.25
        self.enforcers = 3
        self.failure: SealaneError | None = None
        self.asked: list[pb.ShareQuotasRequest] = []
        self.during: Callable[[], object] = lambda: None

    def unary_unary(self, path: str, *_: object, **__: object) -> Callable[..., pb.ShareQuotasResponse]:
        assert path in ("/sealane.scheduler.v1.RoutingService/ShareQuotas", *OTHERS)
        return self.answer

    def unary_stream(self, *_: object, **__: object) -> None:
        return None

    def answer(self, request: pb.ShareQuotasRequest, timeout: float) -> pb.ShareQuotasResponse:
        self.during()
        self.asked.append(request)
        if self.failure is not None:
            raise self.failure
        shares = [pb.QuotaShare(name=demand.name, share=self.share) for demand in request.demands]
        return pb.ShareQuotasResponse(shares=shares, enforcers=self.enforcers, refresh_after=duration_of(0.01))

    def last(self) -> dict[str, tuple[int, float]]:
        return {demand.name: (demand.calls, demand.share) for demand in self.asked[-1].demands}


OTHERS = tuple(method.path for method in methods_of(pb.DESCRIPTOR.services_by_name["RoutingService"]))


class Site:
    """An enforcer and its scheduler."""

    def __init__(self, gateway: str = "") -> None:
        self.clock, self.scheduler = ManualClock(), Scheduler()
        self.shares = SharedQuotas(self.channel, self.clock, gateway)

    def channel(self) -> grpc.Channel:
        return self.scheduler  # type: ignore[return-value]

    def of(self, name: str) -> float:
        """As the chain does it: the work that blocks is done, then it is entered again."""
        while True:
            try:
                return self.shares.of(name)
            except Blocking as pause:
                pause.work()

    def round(self, **calls: int) -> None:
        self.clock.advance(1.0)
        self.shares.again(calls)


@pytest.fixture
def site() -> Site:
    return Site("inference")


def test_a_name_is_asked_for_when_it_is_first_seen_and_then_known(site: Site) -> None:
    assert [site.of("a") for _ in range(5)] == [0.25] * 5
    assert site.of("b") == 0.25
    assert [[demand.name for demand in request.demands] for request in site.scheduler.asked] == [["a"], ["b"]]
    assert {request.gateway for request in site.scheduler.asked} == {"inference"}
    assert site.scheduler.last() == {"b": (1, 0.0)}


def test_a_round_tells_the_calls_and_takes_the_new_shares(site: Site) -> None:
    site.of("a"), site.of("b")  # both are known from here on
    site.scheduler.share = 0.5
    site.round(a=7, stranger=3)
    assert site.scheduler.last() == {"a": (7, 0.25), "b": (0, 0.25)}
    assert site.scheduler.asked[-1].period == duration_of(1.0)
    assert site.of("a") == 0.5
    site.round()
    assert site.scheduler.last() == {"a": (0, 0.5), "b": (0, 0.5)}


def test_what_nobody_uses_is_given_up(site: Site) -> None:
    site.of("a"), site.of("b")
    for _ in range(int(IDLE_SECONDS) - 1):
        site.round(b=1)
    assert site.scheduler.last().keys() == {"a", "b"}
    site.round(b=1)  # the round in which it gives up
    site.round(b=1)
    assert site.scheduler.last().keys() == {"b"}
    asked = len(site.scheduler.asked)
    assert site.of("a") == 0.25
    assert len(site.scheduler.asked) == asked + 1


def test_shares_hold_while_the_scheduler_is_away_and_calls_are_told_of_after(site: Site) -> None:
    site.of("a")
    site.scheduler.failure = Unavailable("gone")
    for _ in range(20):
        site.round(a=2)
        assert site.of("a") == 0.25
    site.scheduler.failure, site.scheduler.share = None, 0.75
    site.round(a=2)
    assert site.scheduler.last() == {"a": (42, 0.25)}
    assert site.scheduler.asked[-1].period == duration_of(21.0)
    assert site.of("a") == 0.75


def test_who_is_new_while_the_scheduler_is_away_gets_an_even_part_and_waits_once_at_most(site: Site) -> None:
    site.of("a")
    site.scheduler.failure = Unavailable("gone")
    assert site.of("b") == pytest.approx(1 / 3)
    asked = len(site.scheduler.asked)
    assert site.of("c") == pytest.approx(1 / 3)
    assert len(site.scheduler.asked) == asked
    site.scheduler.failure = None
    site.round(b=1)
    assert [site.of(name) for name in "abc"] == [0.25] * 3


def test_who_was_never_told_anything_takes_half() -> None:
    site = Site()
    site.scheduler.failure = Unavailable("not there yet")
    assert site.of("a") == 0.5


def test_many_that_come_at_once_are_asked_for_together(site: Site) -> None:
    entered, go = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        assert go.wait(10)

    site.scheduler.during = wait
    with ThreadPoolExecutor(12) as pool:
        first = pool.submit(site.of, "first")
        assert entered.wait(10)
        others = [pool.submit(site.of, f"n{index % 4}") for index in range(8)]
        while len(site.shares._wanted) < 4:
            threading.Event().wait(0.001)
        go.set()
        assert [each.result(10) for each in (first, *others)] == [0.25] * 9
    assert sorted(len(request.demands) for request in site.scheduler.asked) == [1, 4]


def test_names_beyond_the_capacity_get_an_even_part_without_a_question(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota_shares, "NAMES", 2)
    assert [site.of(name) for name in "abcd"] == [0.25, 0.25, 1 / 3, 1 / 3]
    assert len(site.scheduler.asked) == 2


def eventually(holds: Callable[[], object]) -> None:
    for _ in range(2000):
        if holds():
            return
        threading.Event().wait(0.005)
    raise AssertionError("not within ten seconds")


def test_the_thread_asks_while_there_are_calls_and_rests_when_there_are_none(site: Site) -> None:
    taken: list[float] = []

    def take_demand() -> dict[str, int]:
        taken.append(site.clock.monotonic())
        return {}

    site.shares.start(take_demand)
    try:
        threading.Event().wait(0.05)
        assert not taken and not site.scheduler.asked
        site.of("a")
        eventually(lambda: len(taken) > 3)  # at the pace that the scheduler's answer told, which is no second
        site.clock.advance(IDLE_SECONDS)
        eventually(lambda: not site.shares._held)
        rounds = len(taken)
        threading.Event().wait(0.2)
        assert len(taken) <= rounds
        site.of("b")
        eventually(lambda: len(taken) > rounds)
    finally:
        site.shares.stop()
    assert site.shares._thread is not None
    site.shares._thread.join(10)
    assert not site.shares._thread.is_alive()


def test_a_round_that_fails_for_an_unforeseen_reason_is_followed_by_another(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [ValueError("odd"), ValueError("odd")]

    def take_demand() -> dict[str, int]:
        if failures:
            raise failures.pop()
        return {"a": 3}

    site.of("a")
    site.shares.start(take_demand)
    try:
        eventually(lambda: site.scheduler.last() == {"a": (3, 0.25)})
        assert "the next one follows" in caplog.text
    finally:
        site.shares.stop()


def test_a_call_waits_for_its_first_shares_in_the_chain_and_is_counted_once(site: Site) -> None:
    limits = QuotaLimits(site.clock, site.shares)
    chain = Chain([limits])
    identity = Identity("projects/p/serviceAccounts/a", "p", quota=(Quota(8), Quota(80)))
    (method, *_) = methods_of(pb.DESCRIPTOR.services_by_name["RoutingService"])
    passed = 0
    for _ in range(10):
        call = Call(method, {}, Peer(), deadline=0.0, body=b"", identity=identity)
        try:
            enter_blocking(chain, call)
            passed += 1
        except SealaneError as error:
            assert error.reason == "QUOTA_EXCEEDED"
        chain.leave(call, None)
    assert passed == 4  # two seconds of a quarter of eight a second
    assert limits.take_demand() == {"projects/p/serviceAccounts/a": 10, "projects/p": 4}
