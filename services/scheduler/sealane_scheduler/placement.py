"""The placement decision: filter, score, pick. Pure: demand and snapshot in, decision with reasons out.

Every candidate is a pair of node and variant, because the variant is part of the choice. Scores are costs: lower is
better, each term is kept by name. Up to FULL_SCAN nodes are all looked at; of more, a sample and who holds the model,
and all of them only where nothing of that fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sealane_scheduler.columns import NodeTable, Rows, Snapshot
from sealane_scheduler.decision import Decision
from sealane_scheduler.explanation import explain
from sealane_scheduler.filters import Demand, NodeView, VariantView
from sealane_scheduler.masks import origin_rtt
from sealane_scheduler.scan import Question, Scan, mixed, scan

__all__ = ["Decision", "Question", "decide", "place", "search"]

FULL_SCAN = 20_000
SAMPLE = 512
_GOLDEN_SECTION = 0.6180339887


def place(demand: Demand, nodes: Sequence[NodeView], variants: Sequence[VariantView]) -> Decision:
    """Choose a node and a variant for one copy, among nodes that no table is kept of."""
    return decide(Question(demand, tuple(variants)), NodeTable(nodes).snapshot())


def decide(question: Question, nodes: Snapshot) -> Decision:
    """Choose a node and a variant for one copy, and say why.

    Equal candidates are told apart by a number of their name and the seed: the same question on the same snapshot is
    always answered alike.
    """
    return explain(search(question, nodes))


def search(question: Question, nodes: Snapshot) -> Scan:
    """Look at the nodes: at all of few, at a sample of many, and at all of many where the sample has nothing."""
    if question.demand.origin:
        demand = replace(question.demand, origin_rtt_ms=origin_rtt(question.demand, nodes))
        question = replace(question, demand=demand)
    if len(nodes) <= FULL_SCAN:
        return scan(question, nodes)
    some = scan(question, nodes.take(_sample(question, nodes)))
    return some if len(some.fit) else scan(question, nodes)


def _sample(question: Question, nodes: Snapshot) -> Rows:
    """Rows of a large fleet: some that the seed and the state of the fleet choose, and all that hold a variant."""
    start = mixed(question.seed ^ nodes.version) % nodes.total
    # A step of about the golden section reaches all parts of the fleet; rows may be met twice, which does no harm.
    step = int(nodes.total * _GOLDEN_SECTION) | 1
    some = (start + step * np.arange(SAMPLE, dtype=np.int64)) % nodes.total
    held = [row for variant in question.variants for row in nodes.holders.get(variant.digest, ())]
    return np.unique(np.concatenate([some, np.array(held, np.int64)]))
