"""Which worker gets the next call."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

import pytest

from sealane.clock import ManualClock
from sealane.errors import DeadlineExceeded, ResourceExhausted
from sealane.rpc.choice import MOST_SCANNED, SAMPLE, cheapest, in_time
from sealane.rpc.loads import TRUSTED_ANSWERS, Load, NodeLoads


def test_equal_workers_share_the_load() -> None:
    loads, rng = NodeLoads(ManualClock()), random.Random(7)
    chosen = Counter(cheapest(["edge", "cloud"], loads, rng.choice) for _ in range(200))
    assert min(chosen["edge"], chosen["cloud"]) > 60


def test_of_very_many_workers_a_sample_is_looked_at() -> None:
    nodes, rng = [f"w{index}" for index in range(1000)], random.Random(1)
    asked: set[str] = set()

    class Counting(NodeLoads):
        def costs(self, nodes: Iterable[str]) -> list[float]:
            names = list(nodes)
            asked.update(names)
            return [float(int(name[1:])) for name in names]

    loads = Counting(ManualClock())
    for _ in range(20):
        asked.clear()
        chosen = cheapest(nodes, loads, rng.choice)
        assert len(asked) <= SAMPLE and int(chosen[1:]) == min(int(name[1:]) for name in asked)
    assert cheapest(nodes[:MOST_SCANNED], loads, rng.choice) == "w0", "all of them are looked at"


def busy(**calls: int) -> NodeLoads:
    """Workers that take 10 ms, and have so many calls."""
    loads = NodeLoads(ManualClock())
    for node, count in calls.items():
        for _ in range(TRUSTED_ANSWERS):
            ticket = loads.begin(node)
            ticket.hear(Load(count, count * 0.01, 0.01))
            ticket.end()
    return loads


def test_one_that_is_too_late_gives_way_to_one_that_is_not() -> None:
    loads = busy(kept=30, other=3)
    assert in_time("kept", ["kept", "other"], loads, 1.0) == "kept"
    assert in_time("kept", ["kept", "other"], loads, 0.1) == "other"
    assert in_time("kept", ["kept", "unknown"], loads, 0.1) == "unknown", "nobody knows that it is late"


def test_where_all_are_too_late_the_reason_is_told() -> None:
    loads = busy(one=30, two=20)
    with pytest.raises(ResourceExhausted) as waits:
        in_time("one", ["one", "two"], loads, 0.1)
    assert waits.value.retry_after == pytest.approx(0.2, rel=0.01)
    with pytest.raises(DeadlineExceeded, match="10 ms"):
        in_time("one", ["one", "two"], loads, 0.005)
