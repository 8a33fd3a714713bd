"""What is known of workers, from their own answers and from what they say of the load of all."""

from __future__ import annotations

import pytest

from sealane.clock import ManualClock
from sealane.errors import DeadlineExceeded, InvalidArgument, Unavailable
from sealane.rpc.loads import (
    ABSENT_SECONDS,
    DECAY_SECONDS,
    FRESH_SECONDS,
    OTHERS_SECONDS,
    RECOVERY_SECONDS,
    TRUSTED_ANSWERS,
    Load,
    NodeLoads,
)


def call(loads: NodeLoads, clock: ManualClock, node: str, seconds: float, load: Load | None = None) -> None:
    ticket = loads.begin(node)
    clock.advance(seconds)
    ticket.hear(load)
    ticket.end()


def least(loads: NodeLoads, *nodes: str) -> str:
    return min(zip(loads.costs(nodes), nodes, strict=True))[1]


def test_a_slow_worker_is_avoided_at_once_and_forgiven_in_time() -> None:
    clock = ManualClock()
    loads = NodeLoads(clock)
    call(loads, clock, "edge", 0.5)
    call(loads, clock, "cloud", 0.01)
    assert least(loads, "edge", "cloud") == "cloud"
    clock.advance(10 * DECAY_SECONDS)
    call(loads, clock, "edge", 0.002)
    call(loads, clock, "cloud", 0.01)
    assert least(loads, "edge", "cloud") == "edge"


def test_calls_in_flight_count() -> None:
    clock = ManualClock()
    loads = NodeLoads(clock)
    call(loads, clock, "edge", 0.01)
    call(loads, clock, "cloud", 0.015)
    assert least(loads, "edge", "cloud") == "edge"
    loads.begin("edge")
    assert least(loads, "edge", "cloud") == "cloud"


def test_what_a_worker_says_of_the_calls_of_others_counts_and_loses_its_weight() -> None:
    clock = ManualClock()
    loads = NodeLoads(clock)
    call(loads, clock, "near", 0.012, Load(calls=9, queue=0.09, service=0.01, spent=0.010))
    call(loads, clock, "far", 0.050, Load(calls=0, queue=0.0, service=0.01, spent=0.010))
    assert loads.of("near") == pytest.approx(0.002 + 0.01 + 9 * 0.01, rel=0.02)
    assert loads.of("far") == pytest.approx(0.040 + 0.01, rel=0.01)
    assert least(loads, "near", "far") == "far"
    assert loads.calls("near") == pytest.approx(9, rel=0.02)
    clock.advance(5 * OTHERS_SECONDS)
    assert least(loads, "near", "far") == "near", "nobody knows what became of them"


def test_our_own_calls_are_not_counted_twice() -> None:
    clock = ManualClock()
    loads = NodeLoads(clock)
    tickets = [loads.begin("one") for _ in range(4)]
    clock.advance(0.01)
    tickets[0].hear(Load(calls=5, queue=0.05, service=0.01, spent=0.01))
    tickets[0].end()
    assert loads.calls("one") == pytest.approx(5), "three of ours and two of others"


def test_what_each_call_costs_those_behind_it_is_the_workers_to_say() -> None:
    clock = ManualClock()
    loads = NodeLoads(clock)
    call(loads, clock, "batching", 0.01, Load(calls=10, queue=0.02, service=0.01, spent=0.01))
    call(loads, clock, "single", 0.01, Load(calls=10, queue=0.10, service=0.01, spent=0.01))
    assert loads.of("batching") == pytest.approx(0.03, rel=0.01)
    assert loads.of("single") == pytest.approx(0.11, rel=0.01)


def test_a_worker_that_nobody_calls_is_tried_again() -> None:
    clock = ManualClock()
    loads = NodeLoads(clock)
    call(loads, clock, "slow", 1.0, Load(0, 0.0, 1.0, 1.0))
    clock.advance(5 * RECOVERY_SECONDS)
    call(loads, clock, "fast", 0.01, Load(0, 0.0, 0.01, 0.01))
    assert least(loads, "slow", "fast") == "slow"


def test_who_was_not_there_is_avoided_for_a_moment() -> None:
    clock = ManualClock()
    loads = NodeLoads(clock)
    call(loads, clock, "dead", 0.001, Load(0, 0.0, 0.001, 0.001))
    call(loads, clock, "alive", 0.01, Load(0, 0.0, 0.01, 0.01))
    loads.begin("dead").end(Unavailable("not there"))
    assert least(loads, "dead", "alive") == "alive"
    clock.advance(ABSENT_SECONDS)
    assert least(loads, "dead", "alive") == "dead"


def test_a_refusal_says_nothing_of_how_fast_a_worker_is() -> None:
    clock = ManualClock()
    loads = NodeLoads(clock)
    call(loads, clock, "one", 0.1)
    loads.begin("one").end(InvalidArgument("bad"))
    assert loads.of("one") == pytest.approx(0.1, rel=0.01)
    assert loads.calls("one") == 0


def test_who_does_not_answer_in_time_is_not_trusted_any_more() -> None:
    clock = ManualClock()
    loads = NodeLoads(clock)
    call(loads, clock, "one", 0.01, Load(0, 0.0, 0.01, 0.01))
    ticket = loads.begin("one")
    clock.advance(2.0)
    ticket.end(DeadlineExceeded("late"))
    assert loads.of("one") >= 2.0


def test_an_estimate_to_refuse_by_needs_answers_and_a_fresh_one() -> None:
    clock = ManualClock()
    loads = NodeLoads(clock)
    load = Load(calls=4, queue=0.04, service=0.01, spent=0.01)
    for _ in range(TRUSTED_ANSWERS - 1):
        call(loads, clock, "one", 0.012, load)
    assert loads.expected("one") is None and loads.expected("never seen") is None
    call(loads, clock, "one", 0.012, load)
    expected = loads.expected("one")
    assert expected is not None
    assert (expected.idle, expected.wait) == (pytest.approx(0.012, rel=1e-3), pytest.approx(0.04, rel=1e-3))
    clock.advance(FRESH_SECONDS + 0.01)
    assert loads.expected("one") is None, "one call goes and finds out"
    loads.begin("one")
    assert loads.expected("one") is not None, "and no other while it is on its way"


def test_who_is_gone_is_forgotten_unless_calls_are_out() -> None:
    loads = NodeLoads(ManualClock())
    ticket = loads.begin("one")
    loads.forget("one")
    assert not loads.empty
    ticket.end(InvalidArgument("bad"))
    loads.forget("one")
    assert loads.empty


@pytest.mark.parametrize("value", ["", "1,2,3", "1,2,3,x", "-1,2,3,4", "1,2,3,4,5", "1e9,1,1,1", "1" * 99 + ",1,1,1"])
def test_a_strange_load_is_none(value: str) -> None:
    assert Load.parse(value) is None


def test_a_load_travels() -> None:
    assert Load.parse(Load(3, 0.25, 0.0125).encode(0.5)) == Load(3, 0.25, 0.0125, 0.5)
