"""The queue: priorities, fairness between projects, deadlines, bounds; the latency model: when batching pays."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealane_worker.model.latency import SAMPLES, LatencyModel
from sealane_worker.model.queueing import DELAY, Batching, BatchQueue, Refused


@dataclass(frozen=True, eq=False)
class Item:
    """A request."""

    name: str = ""
    flow: int = 0
    priority: int = 0
    rows: int = 1
    size: int = 100
    key: object = "k"
    deadline: float = 1e9


def taught(fixed: float, slope: float, max_rows: int = 32, objective: float = 0.0) -> LatencyModel:
    """A latency model that has seen runs of many sizes."""
    model = LatencyModel(max_rows, objective)
    noise = random.Random(1)
    for index in range(6 * SAMPLES):
        rows = 1 + index % max_rows
        model.observe(rows, (fixed + slope * rows) * noise.uniform(0.95, 1.05))
    return model


def queue_of(batching: Batching | None = None, latency: LatencyModel | None = None) -> BatchQueue[Item]:
    """A queue that puts up to eight rows together unless it is told otherwise."""
    batching = batching or Batching(max_batch_size=8)
    return BatchQueue(batching, latency or taught(0.01, 0.0001, batching.max_rows))


def names(batch: list[Item]) -> str:
    return "".join(item.name for item in batch)


def test_batching_that_does_not_pay_is_not_done() -> None:
    # MobileNetV2 on a processor: 8.5 ms alone, 57.8 ms for eight (PERFORMANCE, finding 8).
    assert taught(0.0013, 0.0072, 8).best_rows() == 1
    assert taught(0.0, 0.005).best_rows() == 1


def test_batching_that_pays_is_done_as_far_as_it_pays() -> None:
    overhead = taught(0.010, 0.0001)
    assert overhead.best_rows() > 16
    assert 2 <= taught(0.001, 0.001).best_rows() <= 8


def test_an_objective_bounds_the_batch() -> None:
    model = taught(0.010, 0.001, objective=0.020)
    assert model.p99(model.best_rows()) <= 0.020
    assert 2 <= model.best_rows() < 12
    assert taught(0.010, 0.001, objective=0.001).best_rows() == 1, "what cannot be met still runs"


def test_what_is_learned_is_what_was_seen() -> None:
    model = taught(0.004, 0.0005)
    assert model.mean(1) == pytest.approx(0.0045, rel=0.1)
    assert model.mean(32) == pytest.approx(0.020, rel=0.1)
    assert model.p99(8) >= model.mean(8)


def test_a_slow_one_in_a_hundred_shows_in_the_p99_and_hardly_in_the_mean() -> None:
    model = LatencyModel(8)
    noise = random.Random(3)
    for _ in range(3000):
        model.observe(1, 0.100 if noise.random() < 0.03 else 0.010)
    assert model.p99(1) > 2 * model.mean(1)


def test_until_it_knows_the_size_grows_while_others_wait_and_shrinks_on_a_miss() -> None:
    model = LatencyModel(32)
    assert model.best_rows() == 1
    for _ in range(4):
        model.observe(model.best_rows(), 0.01, waiting=10)
    grown = model.best_rows()
    assert grown == 5
    for _ in range(10):
        model.missed()
    assert model.best_rows() < grown
    for _ in range(10):
        model.observe(1, 0.01, waiting=0)
    assert model.best_rows() < grown, "nobody waits: nothing to grow for"


def test_requests_of_one_kind_run_together_and_others_apart() -> None:
    queue = queue_of()
    for item in (Item("a"), Item("b", key="other"), Item("c"), Item("d", key=None), Item("e")):
        assert queue.put(item, 0.0) is None
    assert [names(queue.take(0.0)[0]) for _ in range(3)] == ["ace", "b", "d"]
    assert queue.take(0.0) == ([], None)


def test_a_batch_is_never_larger_than_allowed_and_a_larger_request_runs_alone() -> None:
    queue = queue_of()
    for item in (Item("a", rows=5), Item("b", rows=5), Item("c", rows=20), Item("d", rows=3)):
        queue.put(item, 0.0)
    assert [names(queue.take(0.0)[0]) for _ in range(4)] == ["a", "b", "c", "d"]


def test_the_highest_priority_goes_first_and_the_middle_is_the_default() -> None:
    queue = queue_of(Batching(max_batch_size=1, priority_levels=3))
    for item in (Item("l", priority=3), Item("m"), Item("h", priority=1), Item("beyond", priority=9)):
        queue.put(item, 0.0)
    assert [names(queue.take(0.0)[0]) for _ in range(4)] == ["h", "m", "l", "beyond"]


def test_a_project_that_floods_does_not_starve_another() -> None:
    queue = queue_of(Batching(max_batch_size=1))
    for index in range(100):
        queue.put(Item(f"a{index}", flow=1), 0.0)
    order = []
    for index in range(10):
        queue.put(Item(f"b{index}", flow=2), 0.0)
    for _ in range(20):
        order.append(queue.take(0.0)[0][0].flow)
    assert order.count(2) == 10


def test_fairness_counts_rows_not_requests() -> None:
    queue = queue_of(Batching(max_batch_size=4))
    for _ in range(50):
        queue.put(Item(flow=1, rows=4), 0.0)
        queue.put(Item(flow=2, rows=1, key="small"), 0.0)
    rows = {1: 0, 2: 0}
    for _ in range(20):
        for item in queue.take(0.0)[0]:
            rows[item.flow] += item.rows
    assert abs(rows[1] - rows[2]) <= 8


def test_one_whose_time_is_over_is_never_run() -> None:
    queue = queue_of()
    queue.put(Item("a", deadline=1.0), 0.0)
    queue.put(Item("b", deadline=9.0), 0.0)
    assert names(queue.expire(2.0)) == "a"
    assert names(queue.take(2.0)[0]) == "b"


def test_a_queue_timeout_rejects_or_delays() -> None:
    for action, expired, order in (("reject", "a", ["b"]), (DELAY, "", ["b", "a"])):
        queue = queue_of(Batching(max_batch_size=1, default_timeout_microseconds=100_000, timeout_action=action))
        queue.put(Item("a"), 0.0)
        queue.put(Item("b"), 0.15)
        assert names(queue.expire(0.2)) == expired
        assert [names(queue.take(0.2)[0]) for _ in order] == order


def test_the_queue_is_bounded_in_number_and_in_bytes() -> None:
    queue = queue_of(Batching(max_batch_size=1, max_queue_size=2))
    assert [queue.put(Item(), 0.0) for _ in range(2)] == [None, None]
    full = queue.put(Item(), 0.0)
    assert full is not None
    assert (full.reason, full.retry_after > 0) == ("QUEUE_FULL", True)
    queue = queue_of(Batching(max_batch_size=1, max_queue_bytes=1000))
    assert queue.put(Item(size=5000), 0.0) is None, "one that is alone is always taken"
    assert isinstance(queue.put(Item(size=1), 0.0), Refused)


def test_one_that_cannot_be_in_time_is_refused_when_it_comes() -> None:
    queue = queue_of(Batching(max_batch_size=1), taught(0.0, 0.010, 1))
    for _ in range(10):
        assert queue.put(Item(deadline=100.0), 0.0) is None
    assert queue.expected_wait() == pytest.approx(0.1, rel=0.1)
    refused = queue.put(Item(deadline=0.05), 0.0)
    assert refused is not None
    assert (refused.reason, refused.retry_after) == ("QUEUE_WAIT", pytest.approx(0.1, rel=0.1))
    assert queue.put(Item(deadline=0.5), 0.0) is None


def test_waiting_for_company_ends_with_the_delay_the_deadline_or_the_size() -> None:
    latency = taught(0.010, 0.0001, 8)
    batching = Batching(max_batch_size=8, max_queue_delay_microseconds=50_000, preferred_batch_size=(4,))
    queue: BatchQueue[Item] = BatchQueue(batching, latency)
    queue.put(Item("a"), 0.0)
    batch, wait = queue.take(0.0)
    assert (batch, wait) == ([], pytest.approx(0.05))
    assert names(queue.take(0.051)[0]) == "a"
    queue.put(Item("b", deadline=1.030), 1.0)
    batch, wait = queue.take(1.0)
    assert wait is not None
    assert wait < 0.021, "its deadline less one run comes before the delay is over"
    for name in "cde":
        queue.put(Item(name), 1.0)
    assert names(queue.take(1.0)[0]) == "bcde", "a preferred size runs at once"


def test_a_cancelled_request_is_gone() -> None:
    queue = queue_of()
    item = Item("a")
    queue.put(item, 0.0)
    assert (queue.cancel(item), queue.cancel(item), len(queue), queue.rows) == (True, False, 0, 0)


def test_a_run_under_way_counts_at_admission() -> None:
    queue = queue_of()
    run = queue.begin(10.0)
    refused = queue.put(Item("a", deadline=9.0), 0.0)
    assert refused is not None
    assert (refused.reason, refused.retry_after) == ("QUEUE_WAIT", pytest.approx(10.0))
    assert queue.put(Item("b", deadline=20.0), 0.0) is None
    queue.end(run)
    assert queue.put(Item("c", deadline=9.0), 0.0) is None


def test_another_instance_that_is_free_is_no_reason_to_refuse() -> None:
    queue: BatchQueue[Item] = BatchQueue(Batching(), queue_of()._latency, instances=2)
    queue.begin(10.0)
    assert queue.put(Item("a", deadline=9.0), 0.0) is None


def test_what_cannot_be_answered_in_time_gives_way_to_others() -> None:
    queue = queue_of()
    run_seconds = queue._latency.mean(1)
    hopeless, other = Item("a", deadline=5.0 + run_seconds / 2), Item("b", deadline=9.0)
    assert queue.put(hopeless, 0.0) is None
    assert queue.expire(5.0) == [], "alone it takes nobody's place"
    assert queue.put(other, 0.0) is None
    assert queue.expire(5.0) == [hopeless]
    assert names(queue.take(5.0)[0]) == "b"


ITEMS = st.lists(
    st.builds(
        Item,
        flow=st.integers(0, 3),
        priority=st.integers(0, 4),
        rows=st.integers(1, 12),
        key=st.sampled_from(["a", "b", None]),
        deadline=st.floats(0.0, 3.0),
    ),
    max_size=40,
)


@given(ITEMS, st.integers(1, 16), st.sampled_from(["reject", DELAY]))
def test_everything_is_run_refused_or_expired_exactly_once(items: list[Item], size: int, action: str) -> None:
    batching = Batching(
        max_batch_size=size, priority_levels=3, timeout_action=action, default_timeout_microseconds=1_000_000
    )
    queue = queue_of(batching)
    seen: list[Item] = [item for item in items if queue.put(item, 0.0) is not None]
    now = 0.0
    while len(queue):
        now += 0.1
        dead = queue.expire(now)
        assert all(item.deadline <= now + queue._latency.mean(item.rows) or now >= 1.0 for item in dead)
        batch, _ = queue.take(now)
        assert len({item.key for item in batch}) <= 1
        assert sum(item.rows for item in batch) <= size or len(batch) == 1
        seen += [*dead, *batch]
    assert len(seen) == len(items) == len(set(map(id, seen)))
    assert queue.rows == 0
