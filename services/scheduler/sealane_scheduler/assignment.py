"""Assigning copies to nodes at least cost, all at once: integer programmes, their relaxations, and bounds. Pure.

A generalised assignment problem with several resources. The linear relaxation is solved first: it bounds the cost of
every assignment from below, so the gap of each is known, and its multipliers are the prices at which copies bid for
room. From there, or from what is now, copies are shifted and swapped; small problems then go to the integer solver too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from sealane_scheduler.local_search import NOWHERE, Places, fill, improve

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Marks = NDArray[np.bool_]

#: Pairs up to which the whole problem is given to the integer solver.
EXACT_PAIRS = 4000
#: Share of what is free that a round reckons with being taken, by itself and by those that come after it.
EXPECTED = 0.6
_WHOLE = 1 - 1e-6
_GAP = 1e-3


@dataclass(frozen=True, slots=True)
class Problem:
    """What is to be assigned.

    Args:
        costs: jobs by nodes; infinite where a job may not be.
        needs: resources by jobs by nodes: what a copy takes there.
        capacity: resources by nodes: what there is.
        copies: of each job, on different nodes.
        unplaced: cost of a copy that is nowhere.
        kept: jobs by nodes: where copies are now.
        most_moves: how many of these may go; None for all.
        zones: number of the zone of each node.
        apart: jobs whose copies may not share a zone.
    """

    costs: Floats
    needs: Floats
    capacity: Floats
    copies: Ints
    unplaced: float
    kept: Marks | None = None
    most_moves: int | None = None
    zones: Ints | None = None
    apart: Marks | None = None


@dataclass(frozen=True, slots=True)
class Solution:
    """An assignment.

    Args:
        chosen: jobs by nodes.
        cost: of it, copies that are nowhere included.
        bound: no assignment costs less.
        unplaced: copies that are nowhere.
    """

    chosen: Marks
    cost: float
    bound: float
    unplaced: int

    @property
    def gap(self) -> float:
        """By what share the cost may be above the least possible."""
        return max(0.0, (self.cost - self.bound) / abs(self.bound)) if self.bound else 0.0


@dataclass(frozen=True, slots=True)
class _Programme:
    """A problem in the solver's form: a variable for each pair that may be, then one for each job's unplaced copies."""

    jobs: Ints
    nodes: Ints
    costs: Floats
    equal: sparse.csr_array
    copies: Floats
    below: sparse.csr_array
    limits: Floats
    upper: Floats

    def relaxed(self) -> tuple[Floats, float, Floats]:
        """The relaxation: its solution, its cost, and what a unit more of each resource of each node would save."""
        found = linprog(
            self.costs,
            A_ub=self.below,
            b_ub=self.limits,
            A_eq=self.equal,
            b_eq=self.copies,
            bounds=np.stack([np.zeros(len(self.upper)), self.upper], axis=1),
            method="highs",
        )
        return found.x, float(found.fun), -found.ineqlin.marginals

    def whole(self, seconds: float) -> tuple[Floats | None, float]:
        """An integer solution, if one was found in time, and a bound."""
        found = milp(
            self.costs,
            constraints=[
                LinearConstraint(self.equal, self.copies, self.copies),
                LinearConstraint(self.below, -np.inf, self.limits),
            ],
            integrality=np.ones(len(self.costs)),
            bounds=Bounds(0, self.upper),
            options={"time_limit": max(seconds, 0.05), "mip_rel_gap": _GAP},
        )
        bound = -np.inf if found.mip_dual_bound is None else float(found.mip_dual_bound)
        return found.x, bound


def solve(problem: Problem, seconds: float, clock: Callable[[], float] = time.monotonic) -> Solution:
    """A good assignment within some time, the best one of small problems; never worse than what is kept.

    Args:
        problem: what is to be assigned.
        seconds: how long it may take; the relaxation, which comes first, always runs to its end.
        clock: seconds that pass.
    """
    until = clock() + seconds
    programme = _programme(problem)
    relaxed, bound, prices = programme.relaxed()
    small = len(programme.jobs) <= EXACT_PAIRS
    places = _settled(problem, programme, relaxed, prices[: problem.capacity.size].reshape(problem.capacity.shape))
    improve(places, lambda: until - clock() - (0.8 * seconds if small else 0.0))
    best = _solution(problem, _chosen(problem, places), bound)
    if not small:
        return best
    whole, better = programme.whole(until - clock())
    bound = max(bound, better)
    found = best if whole is None else _solution(problem, _marks(programme, whole, problem), bound)
    return found if found.cost < best.cost else replace(best, bound=min(bound, best.cost))


def place_batch(problem: Problem, seconds: float, clock: Callable[[], float] = time.monotonic) -> Marks:
    """Assign the jobs of one round to what is free, without moving what is there.

    Room is priced by a relaxation in which these jobs take EXPECTED of what is free, as if more like them would come:
    else the first rounds take the cheapest nodes from those who need them later.

    Args:
        problem: the jobs of the round; `capacity` is what is free.
        seconds: how long shifts and swaps may take after the relaxation.
        clock: seconds that pass.

    Returns:
        Jobs by nodes: where copies go.
    """
    wanted = problem.needs.mean(axis=2) @ problem.copies
    share = min(1.0, float((wanted / (EXPECTED * np.maximum(problem.capacity.sum(axis=1), 1e-12))).max()))
    expected = replace(problem, capacity=problem.capacity * share)
    programme = _programme(expected)
    relaxed, _, prices = programme.relaxed()
    worth = prices[: problem.capacity.size].reshape(problem.capacity.shape)
    places = _settled(expected, programme, relaxed, worth)
    until = clock() + seconds
    places.costs = places.costs + (places.needs * worth[:, None, :]).sum(axis=0)
    improve(places, lambda: until - clock())
    # What its share of the room had no place for may still fit into the whole.
    places.free += problem.capacity - expected.capacity
    fill(places, worth, np.flatnonzero(places.at == NOWHERE))
    return _chosen(problem, places)


def cost_of(problem: Problem, chosen: Marks) -> float:
    """What an assignment costs."""
    missing = int(problem.copies.sum()) - int(chosen.sum())
    return float(problem.costs[chosen].sum()) + problem.unplaced * missing


def _solution(problem: Problem, chosen: Marks, bound: float) -> Solution:
    return Solution(chosen, cost_of(problem, chosen), bound, int(problem.copies.sum()) - int(chosen.sum()))


def _programme(problem: Problem) -> _Programme:
    jobs, nodes = np.nonzero(np.isfinite(problem.costs))
    count, pairs = len(problem.copies), len(jobs)
    columns = np.arange(pairs)
    equal = sparse.csr_array(
        (np.ones(pairs + count), (np.concatenate([jobs, np.arange(count)]), np.arange(pairs + count)))
    )
    width = problem.capacity.shape[1]
    rows = [
        sparse.csr_array((need[jobs, nodes], (nodes, columns)), shape=(width, pairs + count)) for need in problem.needs
    ]
    limits = [problem.capacity.ravel()]
    if problem.kept is not None and problem.most_moves is not None:
        kept = problem.kept[jobs, nodes]
        rows.append(sparse.csr_array(np.concatenate([-kept.astype(float), np.zeros(count)])[None, :]))
        limits.append(np.array([problem.most_moves - kept.sum()], float))
    if problem.zones is not None and problem.apart is not None and problem.apart.any():
        spread = problem.apart[jobs]
        keys, places = np.unique(
            jobs[spread] * (problem.zones.max() + 1) + problem.zones[nodes[spread]], return_inverse=True
        )
        there = columns[spread]
        rows.append(sparse.csr_array((np.ones(len(there)), (places, there)), shape=(len(keys), pairs + count)))
        limits.append(np.ones(len(keys)))
    return _Programme(
        jobs,
        nodes,
        np.concatenate([problem.costs[jobs, nodes], np.full(count, problem.unplaced)]),
        equal,
        problem.copies.astype(float),
        sparse.vstack(rows, format="csr"),
        np.concatenate(limits),
        np.concatenate([np.ones(pairs), problem.copies]),
    )


def _marks(programme: _Programme, values: Floats, problem: Problem) -> Marks:
    chosen = np.zeros(problem.costs.shape, np.bool_)
    taken = values[: len(programme.jobs)] > 0.5
    chosen[programme.jobs[taken], programme.nodes[taken]] = True
    return chosen


def _settled(problem: Problem, programme: _Programme, relaxed: Floats, prices: Floats) -> Places:
    """What is now, if it is given; else what the relaxation leaves whole; the others where they cost least then."""
    jobs = np.repeat(np.arange(len(problem.copies)), problem.copies)
    values = np.zeros(problem.costs.shape)
    values[programme.jobs, programme.nodes] = relaxed[: len(programme.jobs)]
    whole = values > _WHOLE if problem.kept is None else problem.kept
    places = _places(problem, jobs)
    first = np.searchsorted(jobs, np.arange(len(problem.copies)))
    for job in np.flatnonzero(whole.any(axis=1)):
        for copy, node in enumerate(np.flatnonzero(whole[job])[: problem.copies[job]]):
            places.put(int(first[job]) + copy, int(node))
    if problem.kept is not None:
        places.home, places.moves = places.at.copy(), problem.most_moves
    size = (problem.needs / np.maximum(problem.capacity, 1e-12)[:, None, :]).mean(axis=(0, 2))[jobs]
    waiting = np.flatnonzero(places.at == NOWHERE)
    fill(places, prices, waiting[np.argsort(-size[waiting])])
    return places


def _places(problem: Problem, jobs: Ints) -> Places:
    width = problem.costs.shape[1]
    own = np.arange(width)
    zones = own if problem.zones is None else problem.zones
    apart = np.zeros(len(problem.copies), np.bool_) if problem.apart is None else problem.apart
    twins = [np.flatnonzero((jobs == job) & (np.arange(len(jobs)) != copy)) for copy, job in enumerate(jobs)]
    nowhere = np.full(len(jobs), NOWHERE)
    return Places(
        costs=problem.costs[jobs],
        needs=problem.needs[:, jobs],
        free=problem.capacity.copy(),
        at=nowhere,
        home=nowhere.copy(),
        unplaced=problem.unplaced,
        moves=None,
        twins=twins,
        zones=[zones if apart[job] else own for job in jobs],
    )


def _chosen(problem: Problem, places: Places) -> Marks:
    jobs = np.repeat(np.arange(len(problem.copies)), problem.copies)
    chosen = np.zeros(problem.costs.shape, np.bool_)
    there = places.at != NOWHERE
    chosen[jobs[there], places.at[there]] = True
    return chosen
