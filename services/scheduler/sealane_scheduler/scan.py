"""One look at the nodes: which pairs of variant and node pass, what each costs, and which come first. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sealane_scheduler.columns import Rows, Snapshot
from sealane_scheduler.filters import Demand, VariantView
from sealane_scheduler.masks import Numbers, Sieve, sieve, wire
from sealane_scheduler.terms import Terms, costs, factors, weigh

Pair = tuple[int, int]
"""Place of a variant, and position of a node among those that were looked at, or among those that fit."""

_WORD = (1 << 64) - 1
#: Odd, so that multiplying by it is a permutation; of the golden ratio, so that neighbours are spread.
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Question:
    """What a decision is made from, beside the nodes.

    Args:
        demand: what is wanted.
        variants: of what there is to choose.
        seed: which of equal candidates wins, and which nodes of a large fleet are looked at first.
    """

    demand: Demand
    variants: tuple[VariantView, ...]
    seed: int = 0
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Asked for again and again, and made of some forty values.
        object.__setattr__(self, "_hash", hash((self.demand, self.variants, self.seed)))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True)
class Scores:
    """What each pair of variant and node costs.

    Args:
        question: what was asked.
        fitting: the nodes that pass with some variant.
        scores: variants by these nodes, in millionths; infinite where a pair does not pass.
        costs: for each variant the terms over these nodes; empty where nobody passes.
        weights: factor of each term in the scores.
    """

    question: Question
    fitting: Snapshot
    scores: Numbers
    costs: tuple[Terms, ...]
    weights: dict[str, float]

    @property
    def rows(self) -> Rows:
        """Rows of the whole table that the nodes are, which grow."""
        return np.arange(len(self.fitting)) if self.fitting.rows is None else self.fitting.rows

    def place(self, row: int) -> int | None:
        """Where a row of the whole table is among these nodes, if it is there."""
        if self.fitting.rows is None:
            return row
        place = int(np.searchsorted(self.fitting.rows, row))
        return place if place < len(self.fitting.rows) and self.fitting.rows[place] == row else None

    def at(self, rows: Rows) -> tuple[Rows, Rows]:
        """Which of some rows of the whole table are among these nodes, by place, and where they are here."""
        mine = self.rows
        if not len(mine):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        places = np.minimum(np.searchsorted(mine, rows), len(mine) - 1)
        there = np.flatnonzero(mine[places] == rows)
        return there, places[there]


@dataclass(frozen=True, slots=True)
class Scan(Scores):
    """What was found.

    Args:
        nodes: who was looked at.
        sieve: what the filters say of them.
        fit: positions of the nodes that pass with some variant.
        passed: how many pairs pass.
    """

    nodes: Snapshot
    sieve: Sieve
    fit: Rows
    passed: int


def scan(question: Question, nodes: Snapshot) -> Scan:
    """Ask every filter of every node, and score who passes."""
    demand, variants = question.demand, question.variants
    found = sieve(demand, nodes, variants)
    passed = found.passed
    one = len(variants) == 1
    fit = np.flatnonzero(passed[0] if one else passed.any(axis=0)) if variants else np.zeros(0, np.int64)
    fitting = nodes if len(fit) == len(nodes) else nodes.take(fit)
    network = wire(demand, fitting)
    terms = tuple(costs(demand, fitting, variant, network) for variant in variants) if len(fit) else ()
    weights = factors(demand)
    scores = np.full((len(variants), len(fit)), np.inf)
    for place, of_variant in enumerate(terms):
        score = weigh(weights, of_variant)
        scores[place] = score if one else np.where(passed[place][fit], score, np.inf)
    count = len(fit) if one else int(np.count_nonzero(passed))
    return Scan(question, fitting, scores, terms, weights, nodes, found, fit, count)


def best(found: Scores, most: int) -> list[Pair]:
    """The best candidates, best first.

    Args:
        found: what was found.
        most: how many are wanted.
    """
    scores = found.scores.ravel().copy()
    ranked: list[Pair] = []
    while len(ranked) < most and len(scores):
        lowest = scores.min()
        if lowest == np.inf:
            break
        equal = (scores == lowest).nonzero()[0]
        scores[equal] = np.inf
        if len(equal) == 1:
            ranked.append(divmod(int(equal[0]), len(found.fitting)))
            continue
        variants, places = np.divmod(equal, len(found.fitting))
        for place in np.argsort(ties(found, variants, places))[: most - len(ranked)]:
            ranked.append((int(variants[place]), int(places[place])))
    return ranked


def ties(found: Scores, variants: Rows, places: Rows) -> Numbers:
    """By what equal candidates are told apart: a number of the node's name and the seed; the variant named first."""
    keys = found.fitting.take(places)["tie"] ^ np.uint64(mixed(found.question.seed))
    return (keys * np.uint64(_GOLDEN) >> np.uint64(20)).astype(np.float64) + variants / len(found.question.variants)


def mixed(number: int) -> int:
    """64 bits that look like any others, of a number."""
    word = number * _GOLDEN & _WORD
    return (word ^ word >> 31) * _GOLDEN & _WORD
