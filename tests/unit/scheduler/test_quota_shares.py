"""Quotas are divided, never multiplied: what all enforcers hold together stays within the whole, and nobody starves."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealane.errors import InvalidArgument, PermissionDenied, ResourceExhausted
from sealane.rpc.call import Peer
from sealane.rpc.times import duration_of
from sealane.scheduler.v1 import routing_service_pb2 as pb
from sealane_scheduler import quota_present, quota_shares
from sealane_scheduler.quota_shares import (
    ALLOWANCE,
    EVEN,
    LAPSE_SECONDS,
    MOVING_SECONDS,
    NAMES,
    REFRESH_SECONDS,
    Need,
    QuotaShares,
)

NAME = "projects/p"


@dataclass
class World:
    """A scheduler that has run for a while, and enforcers that do as they are told."""

    shares: QuotaShares = field(default_factory=lambda: QuotaShares(0.0))
    now: float = 100.0
    held: dict[str, float] = field(default_factory=dict)
    asked: dict[str, float] = field(default_factory=dict)

    def ask(self, enforcer: str, rate: float, name: str = NAME) -> float:
        (share,) = self.shares.share(enforcer, [Need(name, rate, self.held.get(enforcer, 0.0))], self.now).shares
        self.held[enforcer], self.asked[enforcer] = share, self.now
        return share

    def round(self, rates: dict[str, float]) -> None:
        """A second in which each asks once."""
        self.now += 1
        for enforcer, rate in rates.items():
            self.ask(enforcer, rate)

    def settle(self, rates: dict[str, float], rounds: int = 10) -> None:
        for _ in range(rounds):
            self.round(rates)

    def total(self) -> float:
        """What all that are not idle or dead give out together."""
        return sum(share for each, share in self.held.items() if self.asked[each] > self.now - LAPSE_SECONDS)


STEPS = st.lists(
    st.tuples(st.floats(0, 6), st.sampled_from("abcdef"), st.floats(0, 1e6)),
    min_size=1,
    max_size=80,
)


@given(STEPS)
@settings(deadline=None)
def test_together_they_hold_at_most_a_tenth_more_than_the_whole_whoever_asks_when(
    steps: list[tuple[float, str, float]],
) -> None:
    world = World()
    for pause, enforcer, rate in steps:
        world.now += pause
        # One that was silent for so long has no share any more: it is idle and has given it up, or it has died.
        if world.asked.get(enforcer, 0.0) <= world.now - LAPSE_SECONDS:
            world.held.pop(enforcer, None)
        assert 0 < world.ask(enforcer, rate) <= 1
        assert world.total() <= 1 + ALLOWANCE + 1e-9


@given(STEPS, st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 1e6), min_size=1))
@settings(deadline=None)
def test_once_all_have_asked_again_they_hold_the_whole_and_no_more(
    steps: list[tuple[float, str, float]], rates: dict[str, float]
) -> None:
    world = World()
    for pause, enforcer, rate in steps:
        world.now += pause
        world.ask(enforcer, rate)
    # Those that ask no more lapse; the others share what there is, each with its even part at least.
    world.settle(rates, int(LAPSE_SECONDS) + 30)
    assert world.total() == pytest.approx(1, abs=0.05)
    assert world.total() <= 1 + 1e-9
    assert min(world.held[each] for each in rates) >= EVEN / len(rates) * 0.99


@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(1, 1e4), min_size=2))
def test_shares_follow_the_demand(rates: dict[str, float]) -> None:
    world, total = World(), sum(rates.values())
    world.settle(rates, 20)
    for enforcer, rate in rates.items():
        wanted = EVEN / len(rates) + (1 - EVEN) * rate / total
        assert world.held[enforcer] == pytest.approx(wanted, abs=0.02)


def test_who_is_alone_has_all_of_it_at_once() -> None:
    assert World().ask("a", 1) == 1


def test_a_newcomer_begins_with_part_of_the_tenth_and_has_its_own_once_the_other_asked_again() -> None:
    world = World()
    world.settle({"a": 50})
    assert 0 < world.ask("b", 50) <= ALLOWANCE
    assert world.ask("c", 50) > 0
    assert world.held["a"] == 1
    world.settle({"a": 50, "b": 50, "c": 50}, 3)
    assert world.held == {each: pytest.approx(1 / 3, abs=0.05) for each in "abc"}


def test_those_that_share_a_name_ask_sooner_until_it_has_settled() -> None:
    shares = QuotaShares(0.0)
    ask = lambda enforcer, now: shares.share(enforcer, [Need(NAME, 50)], now).refresh_after  # noqa: E731
    assert ask("a", 100) == REFRESH_SECONDS  # alone, nothing moves
    assert ask("b", 100) == MOVING_SECONDS
    for step in range(1, 13):
        ask("a", 100 + step / 4), ask("b", 100 + step / 4)
    assert ask("a", 103.5) == ask("b", 103.5) == REFRESH_SECONDS


def test_load_that_moves_takes_its_share_along() -> None:
    world = World()
    world.settle({"gateway": 100, "worker": 1})
    assert world.held["gateway"] > 0.9
    world.settle({"gateway": 0, "worker": 100}, 5)
    assert world.held["worker"] > 0.85


def test_what_the_dead_held_is_free_again() -> None:
    world = World()
    world.settle({"a": 50, "b": 50})
    world.settle({"b": 50}, 3)
    assert world.held["b"] < 0.6  # it may have been cut off, and go on with what it has
    world.settle({"b": 50}, 3)
    assert world.held["b"] == 1


def test_names_do_not_touch_each_other() -> None:
    world = World()
    assert world.shares.share("a", [Need("x", 5), Need("y", 5)], 100).shares == [1, 1]
    assert world.shares.share("b", [Need("z", 5), Need("x", 5)], 100).shares == [1, pytest.approx(0.05)]


def test_a_scheduler_that_has_just_started_lets_all_keep_what_they_have_and_nobody_more() -> None:
    shares = QuotaShares(100.0)
    assert shares.share("a", [Need(NAME, 5, 0.3)], 100.5).shares == [0.3]
    assert shares.share("b", [Need(NAME, 12, 0.65)], 101.0).shares == [0.65]
    assert shares.share("a", [Need(NAME, 50, 0.3)], 102.4).shares == [0.3]
    (newcomer,) = shares.share("c", [Need(NAME, 50)], 102.45).shares
    assert 0.3 + 0.65 + newcomer <= 1 + ALLOWANCE
    # It knows of all by now: what nobody has may be given out.
    assert shares.share("a", [Need(NAME, 50, 0.3)], 103.0).shares == [pytest.approx(1 - 0.65 - newcomer)]


def test_a_newcomer_right_after_a_start_gets_little_though_nobody_else_has_asked_yet() -> None:
    shares = QuotaShares(100.0)
    assert shares.share("c", [Need(NAME, 500)], 100.1).shares[0] <= ALLOWANCE / 2
    assert shares.share("c", [Need(NAME, 500)], 101.1).shares[0] <= ALLOWANCE / 2
    assert shares.share("c", [Need(NAME, 500)], 102.6).shares == [1]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota_shares, "NAMES", 10)
    monkeypatch.setattr(quota_shares, "ENFORCERS", 3)
    shares = QuotaShares(0.0)
    for index in range(100):
        shares.share("a", [Need(f"n{index}", 1)], 100)
    assert shares.share("b", [Need("n0", 1), Need("n99", 1)], 100).shares == [1, pytest.approx(0.05)]
    shares.share("c", [], 100)
    with pytest.raises(ResourceExhausted):
        shares.share("d", [], 100)
    assert shares.share("c", [], 100).enforcers == 3
    assert shares.share("d", [Need("n99", 1)], 200).enforcers == 1
    assert len(shares._holders) == 1


def test_a_worker_is_who_its_certificate_says_and_a_gateway_names_itself() -> None:
    node, gateway = Peer("spiffe://sealane/node/edge-1"), Peer("spiffe://sealane/service/inference")
    assert quota_present.enforcer("", node) == "nodes/edge-1"
    assert quota_present.enforcer("edge-1", gateway) == "gateways/edge-1"
    with pytest.raises(PermissionDenied):
        quota_present.enforcer("inference", node)
    for wrong in ("", "x" * 300):
        with pytest.raises(InvalidArgument):
            quota_present.enforcer(wrong, gateway)


def test_a_rate_is_the_calls_of_a_period_that_is_not_too_short_to_tell() -> None:
    demands = [pb.QuotaDemand(name="a", calls=6, share=0.5), pb.QuotaDemand(name="b")]
    for period, rate in ((0.001, 60.0), (2.0, 3.0)):
        request = pb.ShareQuotasRequest(demands=demands, period=duration_of(period))
        assert quota_present.needs(request) == [Need("a", rate, 0.5), Need("b", 0.0, 0.0)]


@pytest.mark.parametrize(
    "demands",
    [
        [pb.QuotaDemand(name="")],
        [pb.QuotaDemand(name="x" * 257)],
        [pb.QuotaDemand(name="a"), pb.QuotaDemand(name="a")],
        [pb.QuotaDemand(name="a", calls=-1)],
        [pb.QuotaDemand(name="a", share=1.1)],
        [pb.QuotaDemand(name="a", share=float("nan"))],
        [pb.QuotaDemand(name=str(index)) for index in range(NAMES + 1)],
    ],
)
def test_nonsense_is_refused(demands: list[pb.QuotaDemand]) -> None:
    with pytest.raises(InvalidArgument):
        quota_present.needs(pb.ShareQuotasRequest(demands=demands))
