"""Who came nearest to passing: of each filter, and of all of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sealane_scheduler.columns import Rows
from sealane_scheduler.decision import FilterCount, Rejected
from sealane_scheduler.filters import FILTERS
from sealane_scheduler.masks import lack
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
    return tuple(_miss(found, name) for name in found.sieve.failing)


def count(found: Scan, miss: Miss) -> FilterCount:
    """What a filter rejected, and its nearest miss."""
    return FilterCount(miss.name, found.sieve.count(miss.name), miss.alone, rejection(found, miss.pair))


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
    _, pair = _least(found, np.flatnonzero(missed == missed.min()), tuple(found.sieve.failing))
    return pair


def _miss(found: Scan, name: str) -> Miss:
    failing, missed = found.sieve.failing[name], found.sieve.misses
    level, alone = 1, np.flatnonzero(failing & (missed == 1))
    nearest = alone
    while not len(nearest):
        level += 1
        nearest = np.flatnonzero(failing & (missed == level))
    by, pair = _least(found, nearest, (name,))
    return Miss(name, len(alone), level, by, pair)


def _least(found: Scan, flat: Rows, names: Sequence[str]) -> tuple[float, Pair]:
    """Of some pairs, by their number, the one that lacks least of some filters, and how much that is."""
    width = len(found.nodes)
    variants, positions = np.divmod(flat, width)
    lacking = np.zeros(len(flat))
    for place, view in enumerate(found.question.variants):
        mine = slice(*np.searchsorted(variants, (place, place + 1)))
        there = positions[mine]
        for name in names if len(there) else ():
            failing = found.sieve.failing[name][place][there]
            if failing.any():
                by = lack(name, found.question.demand, found.nodes, view, there)
                lacking[mine] += np.where(failing, by, 0.0)
    least = lacking.min()
    equal = np.flatnonzero(lacking == least)
    nearest = equal[np.argmin(found.nodes["tie"][positions[equal]])]
    return float(least), (int(variants[nearest]), int(positions[nearest]))
