"""How many second tries calls earn."""

from __future__ import annotations

import pytest

from sealane.rpc.retry_budget import RETRIES_AT_REST, RetryBudget


def test_a_budget_is_earned_and_has_an_end() -> None:
    budget = RetryBudget()
    assert sum(budget.spend() for _ in range(100)) == RETRIES_AT_REST
    for _ in range(15):
        budget.earn()
    assert [budget.spend(), budget.spend()] == [True, False]
    for _ in range(10_000):
        budget.earn()
    assert budget.tokens == RETRIES_AT_REST


def test_who_can_wait_gets_a_try_later() -> None:
    budget = RetryBudget(at_rest=2, per_second=4)
    assert [budget.reserve(100.0, 1.0) for _ in range(2)] == [0.0, 0.0]
    assert budget.reserve(100.0, 1.0) == pytest.approx(0.25)
    assert budget.reserve(100.0, 1.0) == pytest.approx(0.5), "behind the one before"
    assert budget.reserve(100.0, 0.5) is None, "it would be too late"
    assert budget.reserve(101.0, 0.5) == 0.0


def test_one_that_time_earns_nothing_for_is_spent_by_calls_alone() -> None:
    budget = RetryBudget(at_rest=1)
    assert budget.reserve(0.0, 10.0) == 0.0
    assert budget.reserve(1000.0, 10.0) is None
