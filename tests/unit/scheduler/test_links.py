"""What is learned of a node's connection, and what that changes."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from sealane.clock import ManualClock
from sealane_scheduler import masks
from sealane_scheduler.filters import Demand, NodeView, VariantView, expected_ms
from sealane_scheduler.fleet import READY, SUSPECT, Facts, Fleet, Patience
from sealane_scheduler.holds import Holds
from sealane_scheduler.links import LEARNED, Link, Rhythm
from sealane_scheduler.stock import Stock

EDGE = Facts({"tier": "edge", "zone": "site-a", "clearance": "restricted"})
NODE = NodeView("n", "edge", "site-a", "restricted", True)
VARIANT = VariantView("v", "LITERT", "int8", 1000, "sha256:1", p99_ms=10.0)


def test_the_round_trip_is_smoothed_and_so_is_how_far_it_is_off() -> None:
    link = Link()
    link.pinged(20.0)
    assert (link.rtt_ms, link.jitter_ms) == (20.0, 0.0)
    for index in range(200):
        link.pinged(30.0 if index % 2 else 10.0)
    assert link.rtt_ms == pytest.approx(20.0, abs=2.0)
    assert link.jitter_ms == pytest.approx(10.0, abs=2.0)
    for _ in range(100):
        link.pinged(20.0)
    assert link.jitter_ms < 0.1


@pytest.mark.parametrize("place", [0, 1, 2, 5])
def test_one_round_trip_that_is_far_off_moves_nothing_and_two_do(place: int) -> None:
    link = Link()
    for index in range(8):
        link.pinged(2000.0 if index == place else 4.0)
        if index > place or index > 1:
            assert link.rtt_ms == 4.0
    for _ in range(40):
        link.pinged(60.0)
    assert link.rtt_ms == pytest.approx(60.0, abs=0.1)


def test_a_speed_that_is_none_changes_nothing() -> None:
    link = Link()
    link.carried(2e6, 0.0)
    for strange in (0.0, -1.0, math.nan, math.inf):
        link.carried(strange, strange)
    assert (link.down, link.up) == (2e6, 0.0)
    link.carried(1e300, 5e5)
    assert (link.down, link.up) == (1e12, 5e5)


def test_what_a_node_measures_is_in_the_latency_that_is_expected_there() -> None:
    clock = ManualClock()
    fleet = Fleet(clock, Patience())
    fleet.connect("n", EDGE, "")
    stock = Stock(fleet, Holds())
    demand = Demand(request_bytes=1_000_000, response_bytes=500_000)

    def expected() -> float:
        snapshot = stock.snapshot()
        told = expected_ms(demand, snapshot.node(0), VARIANT)
        assert told == pytest.approx(float(masks.wire(demand, snapshot)[0]) + 10.0), "the filter over arrays agrees"
        return told

    assert expected() == pytest.approx(1_500_000 / 1.25e6 * 1000 + 10.0), "as assumed where nobody has measured"
    fleet.heartbeat("n", 4.0, "", (1e7, 1e6))
    assert expected() == pytest.approx(4.0 + 100.0 + 500.0 + 10.0)
    fleet.connect("n", EDGE, "")
    assert expected() == pytest.approx(614.0), "a new stream does not make another link"


def test_a_fast_link_lets_a_node_keep_an_objective_that_a_slow_one_misses() -> None:
    demand = Demand(request_bytes=1_000_000, latency_ms=200.0)
    slow, fast = replace(NODE, in_bytes_per_second=1e6), replace(NODE, in_bytes_per_second=1e8)
    assert expected_ms(demand, slow, VARIANT) > 200.0 > expected_ms(demand, fast, VARIANT)


def test_an_uneven_rhythm_bears_more_silence_and_an_even_one_no_less() -> None:
    rng = random.Random(7)
    even, uneven = Rhythm(5.0, 12.0, 24.0), Rhythm(5.0, 12.0, 24.0)
    for _ in range(400):
        even.sign(2.5)
        uneven.sign(rng.choice([1.0, 1.0, 1.0, 11.0]))
    assert even.patience == 12.0
    assert 12.0 < uneven.patience < 24.0
    deviation = math.sqrt(3) / 4 * 10
    assert uneven.patience == pytest.approx(3.5 + 5.0 + 3.09 * deviation, rel=0.2)
    for _ in range(400):
        uneven.sign(2.5)
    assert uneven.patience == 12.0, "what was uneven once is forgotten"


def test_a_rhythm_that_is_not_known_yet_and_one_that_is_hopeless_have_bounds() -> None:
    rhythm = Rhythm(5.0, 12.0, 24.0)
    for _ in range(LEARNED - 1):
        rhythm.sign(20.0)
    assert rhythm.patience == 12.0
    rhythm.sign(100.0)
    assert rhythm.patience == 24.0


@pytest.mark.parametrize(("gaps", "borne"), [([2.5], 12.0), ([1.0, 1.0, 9.0], 15.0)])
def test_an_edge_node_is_suspected_by_its_own_rhythm(gaps: list[float], borne: float) -> None:
    clock = ManualClock()
    fleet = Fleet(clock, Patience(edge=60.0))
    fleet.connect("n", EDGE, "")
    state = fleet.get("n")
    assert state is not None
    for _ in range(200):
        for gap in gaps:
            clock.advance(gap)
            fleet.tick()
            assert state.state == READY
            fleet.heartbeat("n", None, "")
    clock.advance(borne - 0.5)
    fleet.tick()
    assert state.state == READY
    clock.advance(12.0)
    fleet.tick()
    assert state.state == SUSPECT


def test_the_cloud_keeps_its_three_seconds() -> None:
    clock = ManualClock()
    fleet = Fleet(clock, Patience())
    fleet.connect("n", replace(EDGE, attributes={"tier": "cloud"}), "")
    state = fleet.get("n")
    assert state is not None
    for gap in [0.1, 0.1, 2.9] * 40:
        clock.advance(gap)
        fleet.heartbeat("n", None, "")
    clock.advance(3.01)
    fleet.tick()
    assert state.state == SUSPECT
