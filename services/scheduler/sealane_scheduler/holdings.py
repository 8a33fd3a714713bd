"""What is placed and reserved on each node, added up as it comes and goes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from sealane_scheduler.cluster import SERVING, Copy, Deployed
from sealane_scheduler.filters import Demand, VariantView, cpu_of, memory_of
from sealane_scheduler.preemption import Holding
from sealane_scheduler.queue_order import Amounts


@dataclass(slots=True)
class _Share:
    """What one copy takes."""

    item: Deployed
    copy: Copy
    memory: int
    cpu_milli: int
    digest: str
    """Digest of the variant where it is loaded; else empty."""


@dataclass(slots=True)
class Load:
    """What is taken of a node."""

    memory: int = 0
    cpu_milli: int = 0
    resident: Counter[str] = field(default_factory=Counter)
    shares: dict[int, _Share] = field(default_factory=dict)


class Holdings:
    """Copies and reservations by node."""

    def __init__(self) -> None:
        self._loads: defaultdict[str, Load] = defaultdict(Load)
        self._used: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._reserved: dict[int, tuple[str, int, int]] = {}
        self._numbers = 0

    def load(self, node: str) -> Load:
        """What is taken of a node."""
        return self._loads[node]

    def of(self, node: str) -> list[tuple[Deployed, Copy]]:
        """Copies on a node, in the order in which they came."""
        return [(share.item, share.copy) for share in self._loads[node].shares.values()]

    def reserve(self, node: str, demand: Demand, variant: VariantView) -> int:
        """Take what a copy needs; returns the number of the reservation."""
        self._numbers += 1
        needs = memory_of(demand, variant), cpu_of(demand)
        self._reserved[self._numbers] = (node, *needs)
        self._add(node, *needs)
        return self._numbers

    def unreserve(self, number: int) -> str:
        """End a reservation; returns its node."""
        node, memory, cpu_milli = self._reserved.pop(number)
        self._add(node, -memory, -cpu_milli)
        return node

    def put(self, item: Deployed, copy: Copy) -> None:
        """A copy came."""
        variant = item.variant(copy.row.variant)
        memory, cpu_milli, digest = 0, 0, ""
        if variant is not None:
            memory, cpu_milli = memory_of(item.demand, variant), cpu_of(item.demand)
            digest = variant.digest if copy.state == SERVING else ""
        load = self._loads[copy.row.node]
        load.shares[id(copy)] = _Share(item, copy, memory, cpu_milli, digest)
        self._count(load, load.shares[id(copy)], 1)

    def drop(self, copy: Copy) -> Deployed | None:
        """A copy went; returns whose it was, if it was there."""
        load = self._loads[copy.row.node]
        share = load.shares.pop(id(copy), None)
        if share is None:
            return None
        self._count(load, share, -1)
        return share.item

    def refresh(self, copies: Iterable[Copy]) -> None:
        """These copies, or their variants, are otherwise than they were."""
        for copy in copies:
            item = self.drop(copy)
            if item is not None:
                self.put(item, copy)

    def used(self) -> dict[str, Amounts]:
        """What the copies of each project take."""
        return {project: (float(memory), float(cpu)) for project, (memory, cpu) in self._used.items()}

    def preemptible(self, node: str, now: float) -> list[Holding]:
        """Copies on a node that may have to give way.

        Args:
            node: which.
            now: seconds since 1970.
        """
        return [
            Holding(
                share.item.row.name,
                share.copy.row.epoch,
                share.item.demand.priority,
                share.memory,
                share.cpu_milli,
                now - share.copy.since,
            )
            for share in self._loads[node].shares.values()
            if share.item.demand.preemptible and not share.copy.gives_way
        ]

    def _add(self, node: str, memory: int, cpu_milli: int) -> None:
        load = self._loads[node]
        load.memory += memory
        load.cpu_milli += cpu_milli

    def _count(self, load: Load, share: _Share, sign: int) -> None:
        load.memory += sign * share.memory
        load.cpu_milli += sign * share.cpu_milli
        used = self._used[share.item.row.project]
        used[0] += sign * share.memory
        used[1] += sign * share.cpu_milli
        if share.digest:
            load.resident[share.digest] += sign
            if not load.resident[share.digest]:
                del load.resident[share.digest]
