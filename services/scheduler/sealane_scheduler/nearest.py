"""Who came nearest to passing: of each filter, and of all of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sealane_scheduler.columns import Rows
from sealane_scheduler.decision import FilterCount, Rejected
from sealane_scheduler.filters import FILTERS
from sealane_scheduler.masks import Mask, Numbers, lack
from sealane_scheduler.scan import Pair, Scan

_WORDS = dict(FILTERS)
#: More than any pair can miss: who is lost comes after all who are there.
_LOST = np.uint8(255)


@dataclass(frozen=True, slots=True)
class Miss:
    """Who came nearest to passing a filter.

    Args:
        name: the filter.
        alone: how many fail it and nothing else.
        fewest: how many filters the nearest one fails.
        by: how far it is from passing this one; see :func:`masks.lack`.
        pair: the nearest one.
    """

    name: str
    alone: int
    fewest: int
    by: float
    pair: Pair


def misses(found: Scan) -> tuple[Miss, ...]:
    """Of each filter that anybody fails: the pair that fails fewest others beside it, and it by least."""
    levels: list[Mask] = []
    return tuple(_miss(found, name, levels) for name in found.sieve.failing)


def count(found: Scan, miss: Miss) -> FilterCount:
    """What a filter rejected, and its nearest miss."""
    return FilterCount(miss.name, found.sieve.rejected[miss.name], miss.alone, rejection(found, miss.pair))


def rejection(found: Scan, pair: Pair) -> Rejected:
    """A pair that failed, with all that it failed."""
    variant, position = pair
    node, view, demand = found.nodes.node(position), found.question.variants[variant], found.question.demand
    return Rejected(
        node.node, view.variant, tuple((name, _WORDS[name](demand, node, view)) for name in found.sieve.failed(pair))
    )


def of_all(found: Scan) -> Pair:
    """The pair that fails fewest filters, and these by least; of nodes that are there, if any is."""
    lost = found.sieve.failing.get("alive")
    missed = found.sieve.misses
    if lost is not None and not lost[0].all():
        missed = np.where(lost, _LOST, missed)
    fewest = missed.min()
    _, pair = _least(found, [np.flatnonzero(row == fewest) for row in missed], tuple(found.sieve.failing))
    return pair


def _miss(found: Scan, name: str, levels: list[Mask]) -> Miss:
    """The nearest miss of one filter.

    Args:
        found: where.
        name: the filter.
        levels: for each number of misses from 1, who misses so many, variants by nodes; grown as far as is needed.
    """
    failing, level = found.sieve.failing[name], 0
    while True:
        if level == len(levels):
            levels.append(found.sieve.misses == level + 1)
        near = [row.nonzero()[0] for row in failing & levels[level]]
        if any(map(len, near)):
            by, pair = _least(found, near, (name,))
            return Miss(name, 0 if level else sum(map(len, near)), level + 1, by, pair)
        level += 1


def _least(found: Scan, near: Sequence[Rows], names: Sequence[str]) -> tuple[float, Pair]:
    """Of some nodes of each variant the one that lacks least of some filters, and how much that is."""
    keys = []
    for variant, positions in enumerate(near):
        if len(positions):
            by, position = _least_of(found, variant, positions, names)
            keys.append((by, int(found.nodes["tie"][position]), variant, position))
    by, _, variant, position = min(keys)
    return by, (variant, position)


def _least_of(found: Scan, variant: int, positions: Rows, names: Sequence[str]) -> tuple[float, int]:
    question, nodes = found.question, found.nodes
    lacking: Numbers | float = 0.0
    for name in names:
        by = lack(name, question.demand, nodes, question.variants[variant], positions)
        if len(names) > 1:  # of one name all of them fail it
            by = np.where(found.sieve.failing[name][variant][positions], by, 0.0)
        lacking = lacking + by
    least = lacking.min() if isinstance(lacking, np.ndarray) else lacking
    if isinstance(lacking, np.ndarray):
        positions = positions[lacking == least]
    return float(least), int(positions[nodes["tie"][positions].argmin()])
