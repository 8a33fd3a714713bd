"""The nodes as decisions see them: what they have, less what is placed there. Kept node by node, never made anew."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

from sealane_scheduler.cluster import SERVING, Copy, Deployed, place_of
from sealane_scheduler.columns import NodeTable, Snapshot
from sealane_scheduler.filters import NodeView, cpu_of, memory_of
from sealane_scheduler.fleet import Fleet, NodeState

#: Nodes that are taken up in one go, about 10 ms of work.
_AT_ONCE = 64


class Stock:
    """What is free where. Lives on the event loop, beside the controller."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._table = NodeTable()
        self._held: dict[str, list[tuple[Deployed, Copy]]] = {}
        self._refused: dict[tuple[str, str], float] = {}
        self._changed: set[str] = set()

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

    def forgive(self, before: float) -> None:
        """Forget refusals that are older."""
        for key in [key for key, since in self._refused.items() if since < before]:
            del self._refused[key]
            self._changed.add(key[0])

    def snapshot(self) -> Snapshot:
        """The nodes now."""
        touched = self._changed | self._fleet.touched
        self._changed.clear()
        self._fleet.touched.clear()
        self._take(touched)
        return self._table.snapshot()

    def catch_up(self) -> None:
        """Take up some of what has changed: a decision must not wait for a thousand nodes that came at once."""
        some = list(islice(self._fleet.touched, _AT_ONCE))
        self._fleet.touched.difference_update(some)
        self._take(some)

    def _take(self, nodes: Iterable[str]) -> None:
        for node in nodes:
            state = self._fleet.get(node)
            if state is not None:
                self._table.put(self._view(state))

    def _view(self, state: NodeState) -> NodeView:
        facts, memory, cpu, resident = state.facts, 0, 0, []
        for item, copy in self._held.get(state.node, ()):
            variant = item.variant(copy.row.variant)
            if variant is not None:
                memory += memory_of(item.demand, variant)
                cpu += cpu_of(item.demand)
                resident += [variant.digest] if copy.state == SERVING else []
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
