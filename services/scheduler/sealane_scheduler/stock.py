"""The nodes as decisions see them: what they have, less what is placed there. Kept node by node, never made anew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from sealane_scheduler.cluster import SERVING, Copy, Deployed, place_of
from sealane_scheduler.columns import NodeTable, Snapshot
from sealane_scheduler.filters import Demand, NodeView, VariantView, cpu_of, memory_of
from sealane_scheduler.fleet import READY, Fleet, NodeState
from sealane_scheduler.preemption import Holding
from sealane_scheduler.queue_order import Amounts


class Stock:
    """What is free where. Lives on the event loop, beside the controller."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._table = NodeTable()
        self._held: dict[str, list[tuple[Deployed, Copy]]] = {}
        self._refused: dict[tuple[str, str], float] = {}
        self._changed: set[str] = set()
        self._reserved: dict[str, dict[int, tuple[int, int]]] = {}
        self._reservations = 0

    def take(self, node: str, demand: Demand, variant: VariantView) -> int:
        """Reserve what a copy needs until it is placed there, or not; returns the reservation's number."""
        self._reservations += 1
        needs = memory_of(demand, variant), cpu_of(demand)
        self._reserved.setdefault(node, {})[self._reservations] = needs
        self._changed.add(node)
        return self._reservations

    def give(self, taken: int) -> None:
        """End a reservation."""
        for node, held in self._reserved.items():
            if held.pop(taken, None) is not None:
                self._changed.add(node)
                if not held:
                    del self._reserved[node]
                return

    def holders(self, node: str) -> set[str]:
        """Names of the deployments that have a copy on a node."""
        return {item.row.name for item, _ in self._held.get(node, ())}

    def occupy(self, item: Deployed, copy: Copy) -> None:
        """A copy was placed."""
        self._held.setdefault(copy.row.node, []).append((item, copy))
        self._changed.add(copy.row.node)

    def held(self, node: str) -> list[tuple[Deployed, Copy]]:
        """What is placed on a node."""
        return self._held.get(node, [])

    def vacate(self, item: Deployed, copies: Iterable[Copy]) -> None:
        """Copies of a deployment are gone."""
        for copy in copies:
            held = self._held.get(copy.row.node, [])
            self._held[copy.row.node] = [pair for pair in held if pair[1] is not copy]
            self._changed.add(copy.row.node)

    def touch(self, copies: Iterable[Copy]) -> None:
        """These copies, or their variants, are otherwise than they were."""
        self._changed.update(copy.row.node for copy in copies)

    def refuse(self, node: str, variant: str, now: float) -> None:
        """A node could not load a variant."""
        self._refused[node, variant] = now
        self._changed.add(node)

    def forgive(self, before: float) -> bool:
        """Forget refusals that are older; whether there were any."""
        old = [key for key, since in self._refused.items() if since < before]
        for key in old:
            del self._refused[key]
            self._changed.add(key[0])
        return bool(old)

    def used(self) -> dict[str, Amounts]:
        """What the copies of each project take."""
        taken: defaultdict[str, Amounts] = defaultdict(lambda: (0.0, 0.0))
        for pairs in self._held.values():
            for item, copy in pairs:
                variant = item.variant(copy.row.variant)
                if variant is not None:
                    memory, cpu = taken[item.row.project]
                    taken[item.row.project] = memory + memory_of(item.demand, variant), cpu + cpu_of(item.demand)
        return dict(taken)

    def total(self) -> Amounts:
        """What the nodes have that are there."""
        there = [state.facts for state in self._fleet if state.state == READY]
        return float(sum(facts.memory_bytes for facts in there)), float(sum(facts.cpu_milli for facts in there))

    def holdings(self, node: str, now: float) -> list[Holding]:
        """Copies on a node that may have to give way.

        Args:
            node: which.
            now: seconds since 1970.
        """
        found = []
        for item, copy in self._held.get(node, ()):
            variant = item.variant(copy.row.variant)
            if variant is not None and item.demand.preemptible and not copy.gives_way:
                memory, cpu = memory_of(item.demand, variant), cpu_of(item.demand)
                served = now - copy.since
                found.append(Holding(item.row.name, copy.row.epoch, item.demand.priority, memory, cpu, served))
        return found

    def snapshot(self) -> Snapshot:
        """The nodes now."""
        touched = self._changed | self._fleet.touched
        self._changed.clear()
        self._fleet.touched.clear()
        for node in touched:
            state = self._fleet.get(node)
            if state is not None:
                self._table.put(self._view(state))
        return self._table.snapshot()

    def _view(self, state: NodeState) -> NodeView:
        facts, memory, cpu, resident = state.facts, 0, 0, []
        for item, copy in self._held.get(state.node, ()):
            variant = item.variant(copy.row.variant)
            if variant is not None:
                memory += memory_of(item.demand, variant)
                cpu += cpu_of(item.demand)
                resident += [variant.digest] if copy.state == SERVING else []
        for needs in self._reserved.get(state.node, {}).values():
            memory, cpu = memory + needs[0], cpu + needs[1]
        return replace(
            place_of(state),
            runtimes={name: frozenset(runtime.formats) for name, runtime in facts.runtimes.items()},
            sandbox=facts.labels.get("sandbox", "none"),
            sandbox_wanted=self._fleet.sandbox.get(state.tier, "none"),
            free_memory=facts.memory_bytes - memory,
            free_cpu_milli=facts.cpu_milli - cpu,
            memory=facts.memory_bytes,
            cpu_milli=facts.cpu_milli,
            rtt_ms=state.rtt_ms,
            price_per_hour=facts.price_per_hour,
            egress_per_gib=facts.egress_per_gib,
            watts=facts.watts,
            accelerator=facts.accelerator,
            avoid=frozenset(variant for node, variant in self._refused if node == state.node),
            resident=frozenset(resident),
        )
