"""Keys keep to their workers, and no worker gets much more than its share."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sealane.rpc.affinity import BOUND, LEAST_ROOM, bounded

NODES = [f"n{index}" for index in range(8)]


def keeper(nodes: list[str], key: str, calls: dict[str, float] | None = None) -> str:
    there = calls or {}
    return bounded(nodes, key, str, lambda node: there.get(node, 0.0))


def test_a_key_has_one_worker_and_all_workers_have_keys() -> None:
    kept = {f"key-{index}": keeper(NODES, f"key-{index}") for index in range(800)}
    assert kept == {key: keeper(NODES[::-1], key) for key in kept}
    assert min(Counter(kept.values()).values()) > 60


def test_a_worker_that_goes_takes_only_its_own_keys_along() -> None:
    kept = {f"key-{index}": keeper(NODES, f"key-{index}") for index in range(400)}
    left = [node for node in NODES if node != "n3"]
    assert all(keeper(left, key) == node for key, node in kept.items() if node != "n3")


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.text(max_size=8))
def test_nobody_gets_more_than_the_bound(counts: list[int], key: str) -> None:
    calls = dict(zip(NODES, map(float, counts), strict=False))
    nodes = list(calls)
    chosen = keeper(nodes, key, calls)
    room = math.ceil(BOUND * (sum(calls.values()) + 1) / len(nodes))
    assert calls[chosen] + 1 <= max(room, LEAST_ROOM)


def test_an_old_rumour_of_a_call_does_not_move_a_key() -> None:
    first = keeper(NODES, "session")
    assert keeper(NODES, "session", {first: 0.9}) == first


def test_a_crowd_of_one_key_overflows_in_its_own_order() -> None:
    calls: Counter[str] = Counter()
    first = keeper(NODES, "popular")
    for _ in range(80):
        calls[keeper(NODES, "popular", calls)] += 1
    assert max(calls.values()) <= math.ceil(BOUND * 10) and calls[first] == max(calls.values())
