"""Whose place a deployment may take that fits nowhere: as little as possible, of who agreed to it. Pure.

Of the nodes that lack nothing but memory or processors the one is chosen whose victims have the lowest priority, then
are fewest, then have served for the shortest time together. Only copies of deployments that said so (`preemptible`) and
have a lower priority may be victims.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sealane_scheduler.batch import Basis, because
from sealane_scheduler.columns import NodeTable, Snapshot
from sealane_scheduler.decision import Decision
from sealane_scheduler.filters import NodeView, VariantView, cpu_of, memory_of
from sealane_scheduler.placement import decide, search
from sealane_scheduler.scan import Question

#: Nodes that are looked at, those with the most room first.
MOST_NODES = 64
_ROOM = ("memory", "cpu")


@dataclass(frozen=True, slots=True)
class Holding:
    """A copy that may have to go.

    Args:
        deployment: its resource name.
        epoch: which of its copies.
        priority: of the deployment.
        memory: bytes that it takes.
        cpu_milli: thousandths of a core that it takes.
        served: seconds since it was placed.
    """

    deployment: str
    epoch: int
    priority: int
    memory: int
    cpu_milli: int
    served: float


@dataclass(frozen=True, slots=True)
class Preemption:
    """A place that becomes free.

    Args:
        decision: about it, as if it were free, with the names of who has to go.
        basis: what the decision followed from.
        variant: the variant chosen.
        victims: who has to go.
    """

    decision: Decision
    basis: Basis
    variant: VariantView
    victims: tuple[Holding, ...]


def preempt(question: Question, nodes: Snapshot, holdings: Callable[[str], Sequence[Holding]]) -> Preemption | None:
    """The place whose victims are missed least; None where nobody may be asked to go.

    Args:
        question: what is demanded; nothing fits it as it is.
        nodes: the fleet.
        holdings: node -> copies on it that may have to go.
    """
    found = search(question, nodes)
    room = sum((found.sieve.failing[name].astype(np.uint8) for name in _ROOM if name in found.sieve.failing), 0)
    lacking = np.argwhere((found.sieve.misses > 0) & (found.sieve.misses == room))
    ways = [(found.nodes.node(int(place)), question.variants[int(variant)]) for variant, place in lacking]
    ways.sort(key=lambda way: (-way[0].free_memory, way[0].node))
    best: tuple[tuple[int, int, float, int, str], NodeView, VariantView, tuple[Holding, ...]] | None = None
    for node, variant in _first_nodes(ways):
        lower = [item for item in holdings(node.node) if item.priority < question.demand.priority]
        victims = _victims(question, node, variant, lower)
        if victims:
            served = sum(item.served for item in victims)
            rank = (max(item.priority for item in victims), len(victims), served, variant.size_bytes, node.node)
            if best is None or rank < best[0]:
                best = rank, node, variant, victims
    return None if best is None else _preemption(question, *best[1:])


def _first_nodes(ways: Sequence[tuple[NodeView, VariantView]]) -> list[tuple[NodeView, VariantView]]:
    first = dict.fromkeys(node.node for node, _ in ways)
    kept = set(list(first)[:MOST_NODES])
    return [way for way in ways if way[0].node in kept]


def _victims(
    question: Question, node: NodeView, variant: VariantView, holdings: Sequence[Holding]
) -> tuple[Holding, ...]:
    """Who has to go for it to fit; nobody where all of them are not enough."""
    lowest = sorted(holdings, key=lambda item: (item.priority, item.served, item.deployment, item.epoch))
    memory = memory_of(question.demand, variant) - node.free_memory
    cpu = cpu_of(question.demand) - node.free_cpu_milli
    taken: list[Holding] = []
    for item in lowest:
        if memory <= 0 and cpu <= 0:
            break
        taken.append(item)
        memory, cpu = memory - item.memory, cpu - item.cpu_milli
    if memory > 0 or cpu > 0:
        return ()
    for item in reversed(taken.copy()):  # who is not needed after all stays, the highest priority first
        if memory + item.memory <= 0 and cpu + item.cpu_milli <= 0:
            taken.remove(item)
            memory, cpu = memory + item.memory, cpu + item.cpu_milli
    return tuple(taken)


def _preemption(question: Question, node: NodeView, variant: VariantView, victims: tuple[Holding, ...]) -> Preemption:
    lifted = replace(
        node,
        free_memory=node.free_memory + sum(item.memory for item in victims),
        free_cpu_milli=node.free_cpu_milli + sum(item.cpu_milli for item in victims),
    )
    alone = replace(question, variants=(variant,))
    there = NodeTable([lifted]).snapshot()
    names = ", ".join(sorted({victim.deployment.rpartition("/")[2] for victim in victims}))
    why = f"takes the place of {names}, of lower priority: nothing else had room"
    return Preemption(because(decide(alone, there), why), Basis(alone, there, why=why), variant, victims)
