"""A better place for all copies at once: which moves would save most, within a budget. Pure.

Copies keep to the same filters and terms as a single decision, on nodes from which every copy that may move is lifted
off. Fragmentation, shared zones and affinity are left out of the score: they depend on where the others go, and the
room of each node and the distance of copies are constraints here. What a place costs is counted by the hour, so that
who is called often weighs more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sealane_scheduler.assignment import Floats, Problem, Solution, cost_of, solve
from sealane_scheduler.columns import NodeTable, Snapshot
from sealane_scheduler.filters import NodeView, VariantView, cpu_of, memory_of
from sealane_scheduler.moves import GlobalPlan, Movable, Move
from sealane_scheduler.placement import Question, search
from sealane_scheduler.terms import by_the_hour

#: Nodes that are weighed for each deployment, the cheapest, beside those where it is.
CANDIDATES = 64
#: What a copy costs that is nowhere, or where it may not be any more, as a multiple of the dearest place.
_PENALTY = 10.0
_LIFTED = (("fragmentation", 0.0), ("spread", 0.0), ("affinity", 0.0))


def plan(movable: Sequence[Movable], nodes: Sequence[NodeView], most_moves: int, seconds: float) -> GlobalPlan:
    """The moves that save most.

    Args:
        movable: deployments whose copies may move.
        nodes: all nodes as they are, with what is placed on them taken off.
        most_moves: copies that may move.
        seconds: how long to search.
    """
    if not movable:
        return GlobalPlan()
    lifted = NodeTable(_lifted(movable, nodes)).snapshot()
    ways = [_ways(item, lifted) for item in movable]
    names = sorted({node for way in ways for node in way} | {node for item in movable for node, _ in item.copies})
    problem = _problem(movable, ways, names, lifted, most_moves)
    found = solve(problem, seconds)
    return _plan(movable, ways, names, problem, found)


def _lifted(movable: Sequence[Movable], nodes: Sequence[NodeView]) -> list[NodeView]:
    memory: dict[str, int] = {}
    cpu: dict[str, int] = {}
    for item in movable:
        for node, name in item.copies:
            memory[node] = memory.get(node, 0) + memory_of(item.demand, _variant(item, name))
            cpu[node] = cpu.get(node, 0) + cpu_of(item.demand)
    return [
        replace(
            node,
            free_memory=node.free_memory + memory.get(node.node, 0),
            free_cpu_milli=node.free_cpu_milli + cpu.get(node.node, 0),
        )
        for node in nodes
    ]


def _variant(item: Movable, name: str) -> VariantView:
    return next(variant for variant in item.variants if variant.variant == name)


def _ways(item: Movable, nodes: Snapshot) -> dict[str, tuple[float, VariantView]]:
    """What the deployment would cost by the hour on each node, and as which variant; where it is, as the one it is."""
    weights = dict(item.demand.weights) | dict(_LIFTED)
    demand = replace(item.demand, weights=tuple(sorted(weights.items())), apart=())
    found = search(Question(demand, item.variants), nodes)
    hourly = by_the_hour(demand) / 1e6
    here = dict(item.copies)
    ways: dict[str, tuple[float, VariantView]] = {}
    least = found.scores.min(axis=0) if len(found.fit) else np.zeros(0)
    cheapest = np.argsort(least, kind="stable")[:CANDIDATES]
    there = [place for place in range(len(found.fit)) if found.fitting.node(place).node in here]
    for place in {*cheapest.tolist(), *there}:
        node, column = found.fitting.node(place).node, found.scores[:, place]
        chosen = int(np.argmin(column))
        if node in here:
            chosen = next(index for index, variant in enumerate(item.variants) if variant.variant == here[node])
        if np.isfinite(column[chosen]):
            ways[node] = (float(column[chosen]) * hourly, item.variants[chosen])
    return ways


def _problem(
    movable: Sequence[Movable],
    ways: Sequence[dict[str, tuple[float, VariantView]]],
    names: Sequence[str],
    nodes: Snapshot,
    most_moves: int,
) -> Problem:
    place = {name: index for index, name in enumerate(names)}
    shape = (len(movable), len(names))
    costs, needs, kept = np.full(shape, np.inf), np.zeros((2, *shape)), np.zeros(shape, np.bool_)
    penalty = _PENALTY * max((abs(cost) for way in ways for cost, _ in way.values()), default=1.0) + 1e-6
    for job, (item, way) in enumerate(zip(movable, ways, strict=True)):
        held = {node: (penalty, _variant(item, name)) for node, name in item.copies}
        for node, (cost, variant) in (held | way).items():
            costs[job, place[node]] = cost
            needs[:, job, place[node]] = memory_of(item.demand, variant), cpu_of(item.demand)
        kept[job, [place[node] for node, _ in item.copies]] = True
    views = [nodes.node(nodes.index[name]) for name in names]
    free = np.array([[view.free_memory for view in views], [view.free_cpu_milli for view in views]], float)
    zones = {zone: index for index, zone in enumerate(dict.fromkeys(view.zone for view in views))}
    return Problem(
        costs,
        needs,
        # What is there stays possible, even where a node has less than it was thought to have.
        np.maximum(free, (needs * kept).sum(axis=1)),
        np.array([len(item.copies) for item in movable]),
        penalty * 2,
        kept,
        most_moves,
        np.array([zones[view.zone] for view in views]),
        np.array([item.demand.spread == "zone" and len(item.copies) > 1 for item in movable]),
    )


def _plan(
    movable: Sequence[Movable],
    ways: Sequence[dict[str, tuple[float, VariantView]]],
    names: Sequence[str],
    problem: Problem,
    found: Solution,
) -> GlobalPlan:
    assert problem.kept is not None
    moves = []
    for job, item in enumerate(movable):
        costs: Floats = problem.costs[job]
        leaving = np.flatnonzero(problem.kept[job] & ~found.chosen[job]).tolist()
        coming = np.flatnonzero(found.chosen[job] & ~problem.kept[job]).tolist()
        leaving.sort(key=lambda node: -costs[node])
        coming.sort(key=lambda node: costs[node])
        for source, target in zip(leaving, coming, strict=False):
            variant = ways[job][names[target]][1].variant
            saved = float(costs[source] - costs[target])
            moves.append(Move(item.name, names[source], names[target], variant, saved))
    moves.sort(key=lambda move: (-move.saves, move.deployment))
    return GlobalPlan(
        tuple(moves),
        cost_of(problem, problem.kept),
        found.cost,
        min(found.bound, found.cost),
        int(problem.copies.sum()),
    )
