"""Global assignments: as good as trying everything, never worse than what is, within the budget and the room."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealane_scheduler import assignment
from sealane_scheduler.assignment import Marks, Problem, cost_of, place_batch, solve

UNPLACED = 100.0


def problem(seed: int, jobs: int = 4, nodes: int = 3) -> Problem:
    random = np.random.default_rng(seed)
    costs = random.uniform(1, 9, (jobs, nodes))
    costs[random.random((jobs, nodes)) < 0.2] = np.inf
    needs = random.uniform(1, 5, (2, jobs, nodes))
    capacity = random.uniform(4, 9, (2, nodes))
    zones = random.integers(0, 2, nodes)
    apart = random.random(jobs) < 0.5
    return Problem(costs, needs, capacity, random.integers(1, 3, jobs), UNPLACED, zones=zones, apart=apart)


def fits(given: Problem, chosen: Marks) -> bool:
    """Whether an assignment keeps to everything that it has to."""
    room = ((given.needs * chosen).sum(axis=1) <= given.capacity + 1e-9).all()
    allowed = np.isfinite(given.costs[chosen]).all() and (chosen.sum(axis=1) <= given.copies).all()
    assert given.zones is not None and given.apart is not None
    shared = any(chosen[job, given.zones == zone].sum() > 1 for job in np.flatnonzero(given.apart) for zone in (0, 1))
    moved = 0 if given.kept is None else int((given.kept & ~chosen).sum())
    return bool(room and allowed and not shared and (given.most_moves is None or moved <= given.most_moves))


def by_trying(given: Problem) -> float:
    """Least cost of all assignments."""
    jobs, nodes = given.costs.shape
    rows = list(itertools.product([False, True], repeat=nodes))
    costs = (
        cost_of(given, chosen)
        for picked in itertools.product(rows, repeat=jobs)
        if fits(given, chosen := np.array(picked))
    )
    return min(costs)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_small_problems_are_solved_as_by_trying_everything(seed: int) -> None:
    given_ = problem(seed, jobs=3)
    found = solve(given_, 2.0)
    assert fits(given_, found.chosen)
    assert found.cost == pytest.approx(by_trying(given_), rel=2e-3)
    assert found.bound <= found.cost + 1e-6


@given(st.integers(0, 10_000), st.integers(0, 4), st.booleans())
@settings(max_examples=40, deadline=None)
def test_what_is_kept_is_never_made_worse_and_no_more_is_moved_than_allowed(seed: int, most: int, large: bool) -> None:
    first = solve(problem(seed), 1.0)
    random = np.random.default_rng(seed)
    given_ = problem(seed)
    changed = np.where(np.isfinite(given_.costs), random.uniform(1, 9, given_.costs.shape), np.inf)
    given_ = replace(given_, costs=changed, kept=first.chosen, most_moves=most)
    with pytest.MonkeyPatch.context() as patch:
        if large:
            patch.setattr(assignment, "EXACT_PAIRS", 0)
        found = solve(given_, 0.5)
    assert fits(given_, found.chosen)
    assert found.cost <= cost_of(given_, first.chosen) + 1e-9
    assert found.bound <= found.cost + 1e-6


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_a_batch_keeps_to_the_room_and_places_what_has_plenty(seed: int) -> None:
    given_ = problem(seed, jobs=6, nodes=4)
    assert fits(given_, place_batch(given_, 0.05))
    plenty = replace(given_, capacity=given_.capacity * 100)
    chosen = place_batch(plenty, 0.05)
    assert fits(plenty, chosen)
    alone = ~given_.apart & (given_.copies == 1) & np.isfinite(given_.costs).any(axis=1)  # type: ignore[operator]
    assert (chosen[alone].sum(axis=1) == 1).all()


def test_the_large_way_comes_near_to_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(7)
    needs = np.repeat(random.uniform(5, 25, (2, 60))[:, :, None], 12, axis=2)
    capacity = np.repeat((needs[:, :, 0].sum(axis=1) / 0.7 / 12)[:, None], 12, axis=1)
    given_ = Problem(random.uniform(10, 50, (60, 12)), needs, capacity, np.ones(60, np.int64), 500.0)
    monkeypatch.setattr(assignment, "EXACT_PAIRS", 0)
    found = solve(given_, 5.0)
    assert found.unplaced == 0 and found.gap < 0.06
