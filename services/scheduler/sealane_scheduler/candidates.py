"""What the members of a batch choose from: the candidates of one kind of demand, less what the batch has taken. Pure.

What a placement takes of its node changes two filters (memory, processor) and one term (fragmentation) there and
nothing elsewhere; so each next choice is the one that a decision on the changed fleet would make.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sealane_scheduler import front
from sealane_scheduler.columns import Rows, Snapshot, left_over
from sealane_scheduler.decision import Scored
from sealane_scheduler.filters import Demand, VariantView, cpu_of, memory_of
from sealane_scheduler.masks import Numbers
from sealane_scheduler.scan import Pair, Scores, ties
from sealane_scheduler.terms import Room, Terms, fragments, weigh


class Taken:
    """What a batch has taken of the nodes.

    Args:
        nodes: all of them, before that.
    """

    def __init__(self, nodes: Snapshot) -> None:
        self._nodes = nodes
        self._rows: list[int] = []
        self._left: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, node: str, demand: Demand, variant: VariantView) -> None:
        """Take what a copy needs."""
        row = self._nodes.index[node]
        memory, cpu = self._free(row)
        self._left[row] = memory - memory_of(demand, variant), cpu - cpu_of(demand)
        self._rows.append(row)

    def since(self, count: int) -> list[int]:
        """Rows of which something was taken after the first `count` times."""
        return sorted(set(self._rows[count:]))

    def left(self, row: int) -> tuple[int, int, Room[float]]:
        """Memory and processor that are free on a row, and what else matters to who takes of it."""
        memory, cpu = self._free(row)
        return memory, cpu, Room.at(self._nodes, row, left_over(self._nodes.node(row), memory, cpu))

    def _free(self, row: int) -> tuple[int, int]:
        node = self._nodes.node(row)
        return self._left.get(row) or (node.free_memory, node.free_cpu_milli)


class Candidates:
    """Who can take one kind of demand, and what each costs, as the batch goes on.

    Args:
        found: the same before the batch; left as it is.
        taken: what the batch takes, of this kind and of others.
    """

    def __init__(self, found: Scores, taken: Taken) -> None:
        costs = tuple({**terms, "fragmentation": np.array(terms["fragmentation"])} for terms in found.costs)
        self._found = replace(found, scores=found.scores.copy(), costs=costs)
        self._taken = taken
        self._seen = 0

    def best(self) -> Pair | None:
        """The cheapest candidate now; None where there is none."""
        self._catch_up()
        scores = self._found.scores.ravel()
        lowest = scores.min() if len(scores) else np.inf
        if lowest == np.inf:
            return None
        equal = np.flatnonzero(scores == lowest)
        variants, places = np.divmod(equal, len(self._found.fitting))
        first = int(np.argmin(ties(self._found, variants, places))) if len(equal) > 1 else 0
        return int(variants[first]), int(places[first])

    def take(self, pair: Pair) -> Scored:
        """Take what a copy needs of a candidate."""
        scored = front.scored(self._found, pair)
        question = self._found.question
        self._taken.take(scored.node, question.demand, question.variants[pair[0]])
        return scored

    def _catch_up(self) -> None:
        """Look again at the nodes of which something was taken."""
        rows, self._seen = self._taken.since(self._seen), len(self._taken)
        for row in rows:
            place = self._found.place(row)
            if place is not None:
                self._shrink(place, *self._taken.left(row))

    def _shrink(self, place: int, memory: int, cpu: int, room: Room[float]) -> None:
        """:func:`shrink` of one node, whose numbers are few enough to be reckoned with one by one."""
        found, demand = self._found, self._found.question.demand
        for variant, (view, costs) in enumerate(zip(found.question.variants, found.costs, strict=True)):
            scores = found.scores[variant]
            if scores[place] == np.inf:
                continue
            terms = {name: cost if isinstance(cost, float) else cost.item(place) for name, cost in costs.items()}
            terms["fragmentation"] = fragments(demand, view, room)
            _put(costs, place, terms["fragmentation"])
            passes = memory >= memory_of(demand, view) and cpu >= cpu_of(demand)
            scores[place] = weigh(found.weights, terms) if passes else np.inf


def shrink(found: Scores, places: Rows, left: tuple[Rows, Rows, Numbers]) -> None:
    """Some nodes have less room than they had, and are otherwise the same.

    Args:
        found: scores and terms, which are changed.
        places: the nodes, among those that fit.
        left: their free memory and processor, and :func:`columns.left_over`.
    """
    memory, cpu, over = left
    demand, room = found.question.demand, Room.of(found.fitting.take(places), over)
    for place, (view, costs) in enumerate(zip(found.question.variants, found.costs, strict=True)):
        _put(costs, places, fragments(demand, view, room))
        passes = np.isfinite(found.scores[place, places])
        passes &= (memory >= memory_of(demand, view)) & (cpu >= cpu_of(demand))
        terms = {name: cost[places] if isinstance(cost, np.ndarray) else cost for name, cost in costs.items()}
        found.scores[place, places] = np.where(passes, weigh(found.weights, terms), np.inf)


def _put(costs: Terms, places: Rows | int, fragmentation: Numbers | float) -> None:
    array = costs["fragmentation"]
    assert isinstance(array, np.ndarray)
    array[places] = fragmentation
