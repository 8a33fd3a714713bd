"""Who is placed first of those that wait: the higher priority, then whose project has least, then the older. Pure.

What a project has is its dominant share: the share of all memory or of all processors that its copies take, whichever
is larger (DRF, Ghodsi et al., NSDI 2011). It grows with each one that comes up, so that projects take turns.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Amounts = tuple[float, float]
"""Bytes of memory, and thousandths of a core."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """One that waits.

    Args:
        name: its resource name.
        project: whose it is.
        priority: the higher comes first.
        since: when it was created.
        needs: what its copies take.
    """

    name: str
    project: str
    priority: int
    since: float
    needs: Amounts


def in_order(waiting: Iterable[Waiting], used: Mapping[str, Amounts], total: Amounts) -> list[Waiting]:
    """The order in which to place them.

    Args:
        waiting: who waits.
        used: what the copies of each project take now.
        total: what all nodes have.
    """
    levels: defaultdict[int, list[Waiting]] = defaultdict(list)
    for item in waiting:
        levels[item.priority].append(item)
    taken = dict(used)
    order: list[Waiting] = []
    for priority in sorted(levels, reverse=True):
        order += _turns(levels[priority], taken, total)
    return order


def _turns(waiting: Sequence[Waiting], taken: dict[str, Amounts], total: Amounts) -> list[Waiting]:
    queues: defaultdict[str, list[Waiting]] = defaultdict(list)
    for item in sorted(waiting, key=lambda item: (item.since, item.name), reverse=True):
        queues[item.project].append(item)
    heap = [(_share(taken, project, total), queue[-1].since, project) for project, queue in queues.items()]
    heapq.heapify(heap)
    order = []
    while heap:
        _, _, project = heapq.heappop(heap)
        item = queues[project].pop()
        order.append(item)
        memory, cpu = taken.get(project, (0.0, 0.0))
        taken[project] = memory + item.needs[0], cpu + item.needs[1]
        if queues[project]:
            heapq.heappush(heap, (_share(taken, project, total), queues[project][-1].since, project))
    return order


def _share(taken: Mapping[str, Amounts], project: str, total: Amounts) -> float:
    amounts = taken.get(project, (0.0, 0.0))
    return max(amount / whole if whole else 0.0 for amount, whole in zip(amounts, total, strict=True))
