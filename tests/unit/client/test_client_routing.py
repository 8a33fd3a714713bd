"""Calls straight to workers: which worker gets them, when another one is asked, and how often."""

from __future__ import annotations

import time

import numpy as np
import pytest

from sealane.client import Client, calls, hedges
from sealane.client.hedges import Slowness
from sealane.errors import DeadlineExceeded, ResourceExhausted, SealaneError, Unavailable
from sealane.rpc.affinity import AFFINITY
from sealane.rpc.loads import TRUSTED_ANSWERS, Load
from sealane.rpc.retry_budget import RETRIES_AT_REST, RetryBudget

X = {"x": np.zeros((1, 2), np.float32)}
BUSY = ResourceExhausted("too much waits", reason="QUEUE_WAIT", retry_after=0.5)


@pytest.fixture
def both(site):
    """Both workers in the lease."""
    first = site.routing.route.endpoints[0]
    if len(site.routing.route.endpoints) == 1:
        site.routing.route.endpoints.add(
            node="edge-2", address=site.listeners["edge-2"].address, tls_name="edge-2.node.sealane"
        )
    assert first.node == "edge-1"
    return site.workers


def direct(client: Client, **options: object) -> None:
    client.inference.predict("camera", X, via="direct", **options)  # type: ignore[arg-type]


def test_a_worker_that_others_keep_busy_is_passed_over(client: Client, both) -> None:
    busy, idle = both
    busy.load, idle.load = Load(40, 0.4, 0.01), Load(0, 0.0, 0.01)
    for _ in range(12):
        direct(client)
    assert len(busy.calls) <= 1, "once, to find out"
    assert len(idle.calls) >= 11


def test_a_call_that_nobody_can_answer_in_time_is_not_sent(client: Client, both) -> None:
    for worker in both:
        worker.load = Load(30, 3.0, 0.1)
    loads = client.inference._workers.loads("camera")
    for node in ("edge-1", "edge-2"):
        for _ in range(TRUSTED_ANSWERS):
            ticket = loads.begin(node)
            ticket.hear(both[0].load)
            ticket.end()
    with pytest.raises(ResourceExhausted, match="too much waits"):
        direct(client, timeout=0.9)
    with pytest.raises(DeadlineExceeded):
        direct(client, timeout=0.08)
    assert not both[0].calls and not both[1].calls
    direct(client, timeout=5.0)


def test_an_overloaded_worker_is_passed_over_within_the_budget(client: Client, both) -> None:
    for _ in range(5):
        both[0].failures = [BUSY]
        direct(client)
    both[0].failures, both[1].failures = [BUSY] * 500, [BUSY] * 500
    before = sum(len(worker.calls) for worker in both)
    for _ in range(60):
        with pytest.raises(ResourceExhausted):
            direct(client)
    asked = sum(len(worker.calls) for worker in both) - before
    assert 60 < asked <= 60 * 1.1 + RETRIES_AT_REST


def test_calls_of_one_key_go_to_one_worker(client: Client, both) -> None:
    kept = set()
    for key in range(12):
        before = [len(worker.calls) for worker in both]
        for _ in range(4):
            direct(client, affinity=f"session-{key}")
        grown = [len(worker.calls) - count for worker, count in zip(both, before, strict=True)]
        assert sorted(grown) == [0, 4]
        kept.add(grown.index(4))
    assert kept == {0, 1}, "keys are spread"


def test_the_gateway_is_told_the_key(client: Client, site) -> None:
    client.inference.predict("camera", X, affinity="session-1")
    client.inference.predict("camera", X, affinity="session-2", sealed=True)
    client.inference.predict("camera", X)
    told = [call.metadata.get(AFFINITY, "") for call in site.workers[0].calls]
    assert told == ["session-1", "session-2", ""]


def test_a_sealed_call_of_a_key_is_sealed_to_the_workers_that_keep_it_first(client: Client, site) -> None:
    first, second = site.workers
    first.offered = [first, second]
    kept = []
    for key in range(16):
        before = len(first.calls)
        for _ in range(2):
            client.inference.predict("camera", X, via="direct", sealed=True, affinity=f"session-{key}")
        grown = len(first.calls) - before
        assert grown in (0, 2)
        kept.append(grown)
    assert set(kept) == {0, 2}


def test_a_slow_worker_is_hedged_unsealed_too(client: Client, both) -> None:
    for _ in range(4):
        direct(client)
    for worker in both:
        worker.load = Load(0, 0.0, 0.001)
    both[0].slow = 1.5
    begun = time.monotonic()
    for _ in range(3):
        direct(client, hedge=0.05)
    assert time.monotonic() - begun < 1.4


def test_hedging_by_what_is_usual_waits_until_that_is_known(client: Client, both) -> None:
    assert client.inference._workers.slowness("camera").p95 == 0.0
    for _ in range(30):
        direct(client, hedge=True)
    assert 0.0 < client.inference._workers.slowness("camera").p95 < 1.0
    assert sum(len(worker.calls) for worker in both) <= 30 + hedges.HEDGES_AT_REST + 1


def test_few_calls_are_asked_twice_for_being_slow(client: Client, both) -> None:
    for worker in both:
        worker.slow = 0.02
    for _ in range(40):
        direct(client, hedge=0.001)
    time.sleep(0.1)
    asked = sum(len(worker.calls) for worker in both)
    assert 40 < asked <= 40 + hedges.HEDGES_AT_REST + 40 * hedges.HEDGE_SHARE + 1


def test_the_p95_is_of_the_last_answers() -> None:
    slowness = Slowness()
    for index in range(19):
        slowness.took(index)
    assert slowness.p95 == 0.0
    for index in range(19, 100):
        slowness.took(index / 1000)
    for _ in range(512):
        slowness.took(0.010)
    assert slowness.p95 == 0.010


class Attempts:
    """Fails so many times."""

    def __init__(self, failures: int, error: SealaneError) -> None:
        self.failures, self.error, self.count = failures, error, 0

    def __call__(self) -> str:
        self.count += 1
        if self.count <= self.failures:
            raise self.error
        return "answer"


def test_repeats_are_bounded_by_the_calls_of_the_whole_client() -> None:
    budget, away = RetryBudget(at_rest=5, per_second=20.0), Unavailable("away", retry_after=0.0)
    everybody = [Attempts(10**6, away) for _ in range(4)]
    begun = time.monotonic()
    for attempt in everybody:
        with pytest.raises(Unavailable):
            calls.repeat(attempt, time.monotonic() + 0.3, budget)
    spent = time.monotonic() - begun
    assert sum(attempt.count for attempt in everybody) <= 4 + 5 + 20 * spent + 1


def test_a_call_without_a_budget_waits_for_one_inside_its_time() -> None:
    budget = RetryBudget(at_rest=1, per_second=10.0)
    attempt = Attempts(3, Unavailable("away", retry_after=0.0))
    begun = time.monotonic()
    assert calls.repeat(attempt, begun + 5.0, budget) == "answer"
    assert 0.15 < time.monotonic() - begun < 3.0
