"""Many placements of one kind: equal demands are filtered and scored once, and only the node that was taken anew. Pure.

What a placement takes from its node changes two filters (memory, processor) and one term (fragmentation) there and
nothing elsewhere; so each next choice is the one that a decision on the changed fleet would make.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sealane_scheduler import front
from sealane_scheduler.columns import Snapshot, left_over
from sealane_scheduler.decision import Decision, Scored
from sealane_scheduler.explanation import explain
from sealane_scheduler.filters import NodeView, cpu_of, memory_of
from sealane_scheduler.placement import search
from sealane_scheduler.scan import Pair, Question, Scan, ties
from sealane_scheduler.terms import Terms, fragments, weigh


@dataclass(frozen=True, slots=True)
class Equals:
    """Placements of equal demands.

    Args:
        decision: about the first of them, with the explanation that holds for all: who was rejected, and why.
        chosen: where each goes, in order; fewer than were asked for where there is no more room.
    """

    decision: Decision
    chosen: tuple[Scored, ...]


def decide_equals(question: Question, nodes: Snapshot, count: int) -> Equals:
    """Choose places for copies of so many deployments that demand the same.

    Args:
        question: what each of them demands; the copies are not kept apart from each other.
        nodes: the fleet before the first.
        count: how many.
    """
    found = search(question, nodes)
    decision = explain(found)
    room = _Room(found)
    chosen: list[Scored] = []
    while len(chosen) < count:
        pair = room.best()
        if pair is None:
            break
        chosen.append(room.take(pair))
    return Equals(decision, tuple(chosen))


class _Room:
    """A scan, and what of its nodes was taken since."""

    def __init__(self, found: Scan) -> None:
        terms = tuple({**costs, "fragmentation": np.array(costs["fragmentation"])} for costs in found.costs)
        self._found = replace(found, scores=found.scores.copy(), costs=terms)
        self._taken: dict[int, NodeView] = {}

    def best(self) -> Pair | None:
        """The cheapest candidate now; None where there is none."""
        scores = self._found.scores.ravel()
        if not len(scores):
            return None
        lowest = scores.min()
        if lowest == np.inf:
            return None
        equal = np.flatnonzero(scores == lowest)
        variants, places = np.divmod(equal, len(self._found.fit))
        first = int(np.argmin(ties(self._found, variants, places))) if len(equal) > 1 else 0
        return int(variants[first]), int(places[first])

    def take(self, pair: Pair) -> Scored:
        """Take a candidate's room off its node."""
        found, (variant, place) = self._found, pair
        scored, demand = front.scored(found, pair), found.question.demand
        node = self._taken.get(place) or found.fitting.node(place)
        left = self._taken[place] = replace(
            node,
            free_memory=node.free_memory - memory_of(demand, found.question.variants[variant]),
            free_cpu_milli=node.free_cpu_milli - cpu_of(demand),
        )
        for other, view in enumerate(found.question.variants):
            if found.scores[other, place] == np.inf:
                continue
            if left.free_memory < memory_of(demand, view) or left.free_cpu_milli < cpu_of(demand):
                found.scores[other, place] = np.inf
                continue
            costs, one = found.costs[other], found.fitting.take(np.array([place]))
            array = costs["fragmentation"]
            assert isinstance(array, np.ndarray)
            array[place] = fragments(demand, one, view, np.array([left_over(left)]))[0]
            found.scores[other, place] = weigh(found.weights, _at(costs, place))[()]
        return scored


def _at(costs: Terms, place: int) -> Terms:
    return {name: float(cost[place]) if isinstance(cost, np.ndarray) else cost for name, cost in costs.items()}
