"""What was found for a kind of demand, kept for a moment: the next of that kind need only look at what has changed.

Every choice, and what it costs, is of the fleet as it is. What is told beside it (who was rejected, and why) is shared
by those who demand the same within SHARED_SECONDS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from sealane_scheduler.candidates import shrink
from sealane_scheduler.columns import Rows, Snapshot
from sealane_scheduler.decision import Decision
from sealane_scheduler.explanation import explain
from sealane_scheduler.masks import origin_rtt
from sealane_scheduler.placement import FULL_SCAN, search
from sealane_scheduler.scan import Question, Scan, Scores, scan
from sealane_scheduler.terms import Capacity, Terms

SHARED_SECONDS = 0.5
#: What all of it may take, about: candidates, and bytes of one with its terms and filters.
_KEPT, _BYTES = 64 << 20, 150
#: Where more nodes have changed, all are looked at again.
_FEW = 512


@dataclass(slots=True)
class Standing:
    """What was found for one kind of demand.

    Args:
        scan: when it was first asked for.
        nodes: the nodes that :attr:`scores` are of.
        scores: kept up to date.
        made: when it was first asked for, by the clock of :class:`Standings`.
    """

    scan: Scan
    nodes: Snapshot
    scores: Scores
    made: float
    uses: int = 0
    """Decisions that came of it."""
    _decision: Decision | None = None

    @property
    def decision(self) -> Decision:
        """The first decision, with everything that is told of it."""
        if self._decision is None:
            self._decision = explain(self.scan)
        return self._decision

    def advance(self, nodes: Snapshot) -> bool:
        """Take up what has changed; whether that could be done."""
        if nodes.version == self.nodes.version:
            return nodes.changes is self.nodes.changes
        changed, question = nodes.changed_since(self.nodes), self.scan.question
        if changed is None or sum(map(len, changed)) > _FEW or len(nodes) > FULL_SCAN:
            return False
        if question.demand.origin and origin_rtt(question.demand, nodes) != question.demand.origin_rtt_ms:
            return False
        if self.scores is self.scan:
            self.scores = _own(self.scan)
        self.scores = replace(self.scores, fitting=nodes.take(self.scores.rows))
        other, fuller = changed
        there, places = self.scores.at(fuller)
        if len(there):
            rows = fuller[there]
            capacity = Capacity.of(nodes, rows, nodes["left_over"][rows])
            shrink(self.scores, places, nodes["free_memory"][rows], nodes["free_cpu"][rows], capacity)
        if len(other) and not self._replace(scan(question, nodes.take(other)), other):
            return False
        self.nodes = nodes
        return True

    def _replace(self, fresh: Scan, rows: Rows) -> bool:
        """Take what was found of some nodes in the place of what is kept of them; whether that could be done."""
        there, places = self.scores.at(fresh.rows)
        if len(there) < len(fresh.fitting):  # some pass that did not
            return False
        _, changed = self.scores.at(rows)
        self.scores.scores[:, changed] = np.inf
        self.scores.scores[:, places] = fresh.scores
        for kept, new in zip(self.scores.costs, fresh.costs, strict=False):
            _put(kept, new, places)
        return True

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return _BYTES * len(self.scan.nodes) * len(self.scan.question.variants)


def _put(kept: Terms, new: Terms, places: Rows) -> None:
    for name, values in kept.items():
        if isinstance(values, np.ndarray):
            values[places] = new[name]


class Standings:
    """What was found lately, for each kind of demand.

    Args:
        now: seconds that grow; what is found in one moment is shared.
    """

    def __init__(self, now: Callable[[], float] = lambda: 0.0) -> None:
        self._now = now
        self._kept: dict[Question, Standing] = {}

    def of(self, question: Question, nodes: Snapshot) -> Standing:
        """What is found for a question about all nodes of a table."""
        now, kept = self._now(), self._kept.get(question)
        if kept is None or now - kept.made > SHARED_SECONDS or not kept.advance(nodes):
            self.forget()
            found = search(question, nodes)
            kept = self._kept[question] = Standing(found, nodes, found, now)
        return kept

    def forget(self) -> None:
        """Drop what is too old to be shared, and the oldest where it is too much."""
        now, size = self._now(), 0
        newest = sorted(self._kept.items(), key=lambda pair: -pair[1].made)
        self._kept = {}
        for question, standing in newest:
            size += standing.size
            if now - standing.made <= SHARED_SECONDS and size <= _KEPT:
                self._kept[question] = standing


def _own(found: Scan) -> Scores:
    """Scores that may change; the scan stays what is explained."""
    costs = tuple(
        {name: cost.copy() if isinstance(cost, np.ndarray) else cost for name, cost in terms.items()}
        for terms in found.costs
    )
    return Scores(found.question, found.fitting, found.scores.copy(), costs, found.weights)
