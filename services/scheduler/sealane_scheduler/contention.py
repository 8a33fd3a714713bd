"""Assigns the members of a batch that want the same room by linear programming. Pure."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np

from sealane_scheduler.assignment import Problem, place_batch
from sealane_scheduler.batch import Wanted
from sealane_scheduler.columns import Snapshot
from sealane_scheduler.filters import NodeView, cpu_of, memory_of
from sealane_scheduler.scan import Pair, Scan, ties
from sealane_scheduler.terms import by_the_hour

#: Of each member so many of the cheapest nodes are weighed against the others', and so many of the rest by chance: the
#: cheapest alone are what everybody wants.
CHEAPEST, BY_CHANCE = 12, 12
#: Rounds in which an assignment may be improved; rounds and not seconds, so that it comes out alike everywhere.
_ROUNDS = 64
_MILLIONTHS = 1e6

Ways = dict[str, Pair]
"""Node -> the candidate that it is, for one member."""


def assign(wanted: Sequence[Wanted], scans: Sequence[Scan], nodes: Snapshot, penalty: float) -> list[list[Pair]]:
    """Candidates for the copies of each member, all of which fit at once; fewer than wanted where there is no room.

    Args:
        wanted: the members.
        scans: what was found for each of them on these nodes.
        nodes: what is free.
        penalty: cost by the hour of a copy that is nowhere.
    """
    alike = Counter(id(scan) for scan in scans)
    known = {id(scan): _ways(scan, alike[id(scan)]) for scan in scans}
    ways = [known[id(scan)] for scan in scans]
    names = sorted({node for way in ways for node in way})
    if not names:
        return [[] for _ in wanted]
    views = [nodes.node(nodes.index[name]) for name in names]
    problem = _problem(wanted, scans, ways, views, penalty)
    chosen = place_batch(problem, _ROUNDS, itertools.count().__next__)
    return [
        sorted((way[names[column]] for column in np.flatnonzero(marks)), key=lambda pair: (scan.scores[pair], pair))
        for scan, way, marks in zip(scans, ways, chosen, strict=True)
    ]


def _ways(scan: Scan, members: int) -> Ways:
    """The candidates of some equal members that are weighed, one for each node."""
    ways: Ways = {}
    if not scan.passed:
        return ways
    least = scan.scores.min(axis=0)
    every = np.arange(len(scan.fit))
    cheapest = np.argsort(least, kind="stable")[: CHEAPEST + members]
    chance = np.argsort(ties(scan, np.zeros_like(every), every), kind="stable")[:BY_CHANCE]
    for place in np.concatenate([cheapest, chance]).tolist():
        ways[scan.fitting.node(place).node] = (int(np.argmin(scan.scores[:, place])), place)
    return ways


def _problem(
    wanted: Sequence[Wanted], scans: Sequence[Scan], ways: Sequence[Ways], nodes: Sequence[NodeView], penalty: float
) -> Problem:
    shape = (len(wanted), len(nodes))
    costs, needs = np.full(shape, np.inf), np.zeros((2, *shape))
    for member, (item, scan, way) in enumerate(zip(wanted, scans, ways, strict=True)):
        demand = item.question.demand
        hourly = by_the_hour(demand) / _MILLIONTHS
        for column, node in enumerate(nodes):
            pair = way.get(node.node)
            if pair is not None:
                costs[member, column] = float(scan.scores[pair]) * hourly
                needs[:, member, column] = memory_of(demand, item.question.variants[pair[0]]), cpu_of(demand)
    zones = {zone: number for number, zone in enumerate(dict.fromkeys(node.zone for node in nodes))}
    return Problem(
        costs,
        needs,
        np.array([[node.free_memory for node in nodes], [node.free_cpu_milli for node in nodes]], float),
        np.array([item.copies for item in wanted]),
        penalty,
        zones=np.array([zones[node.zone] for node in nodes]),
        apart=np.array([item.question.demand.spread == "zone" and item.copies > 1 for item in wanted]),
    )
