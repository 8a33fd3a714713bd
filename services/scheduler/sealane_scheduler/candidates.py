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
from sealane_scheduler.scan import Pair, Scores, best
from sealane_scheduler.terms import Capacity, fragments, weigh


class Ledger:
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

    def left(self, row: int) -> tuple[int, int, Capacity]:
        """Memory and processor that are free on a row, and what else matters to who takes of it."""
        memory, cpu = self._free(row)
        return memory, cpu, Capacity.of(self._nodes, row, left_over(self._nodes.node(row), memory, cpu))

    def _free(self, row: int) -> tuple[int, int]:
        node = self._nodes.node(row)
        return self._left.get(row) or (node.free_memory, node.free_cpu_milli)


class Candidates:
    """Who can take one kind of demand, and what each costs, as the batch goes on.

    Args:
        found: the same before the batch; left as it is.
        ledger: what the batch takes, of this kind and of others.
    """

    def __init__(self, found: Scores, ledger: Ledger) -> None:
        costs = tuple({**terms, "fragmentation": np.array(terms["fragmentation"])} for terms in found.costs)
        self._found = replace(found, scores=found.scores.copy(), costs=costs)
        self._ledger = ledger
        self._seen = 0

    def best(self) -> Pair | None:
        """The cheapest candidate now; None where there is none."""
        rows, self._seen = self._ledger.since(self._seen), len(self._ledger)
        for row in rows:
            place = self._found.place(row)
            if place is not None:
                shrink(self._found, place, *self._ledger.left(row))
        return next(iter(best(self._found, 1)), None)

    def take(self, pair: Pair) -> Scored:
        """Take what a copy needs of a candidate."""
        scored = front.scored(self._found, pair)
        question = self._found.question
        self._ledger.take(scored.node, question.demand, question.variants[pair[0]])
        return scored


def shrink(found: Scores, at: Rows | int, memory: Rows | int, cpu: Rows | int, capacity: Capacity) -> None:
    """One node, or several, have less room than they had, and are otherwise the same.

    Args:
        found: scores and terms, which are changed.
        at: where they are among those that fit.
        memory: what is free of it there.
        cpu: thousandths of a core that are free.
        capacity: the same as shares.
    """
    demand = found.question.demand
    for view, costs, scores in zip(found.question.variants, found.costs, found.scores, strict=True):
        array = costs["fragmentation"]
        assert isinstance(array, np.ndarray)
        array[at] = fragments(demand, view, capacity)
        fits = np.isfinite(scores[at]) & (memory >= memory_of(demand, view)) & (cpu >= cpu_of(demand))
        terms = {name: cost[at] if isinstance(cost, np.ndarray) else cost for name, cost in costs.items()}
        scores[at] = np.where(fits, weigh(found.weights, terms), np.inf)
