"""The nodes as decisions see them: what they have, less what is placed there. Kept node by node, never made anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice

from sealane_scheduler.cluster import Copy, Deployed, place_of
from sealane_scheduler.columns import NodeTable, Snapshot
from sealane_scheduler.filters import Demand, NodeView, VariantView
from sealane_scheduler.fleet import READY, Fleet, NodeState
from sealane_scheduler.holdings import Holdings
from sealane_scheduler.holds import Holds
from sealane_scheduler.preemption import Holding
from sealane_scheduler.queue_order import Amounts
from sealane_scheduler.standing import Standings

#: Nodes that are taken up in one go, about 10 ms of work.
_AT_ONCE = 64


class Stock:
    """What is free where. Lives on the event loop, beside the controller."""

    def __init__(self, fleet: Fleet, holds: Holds, now: Callable[[], float] = lambda: 0.0) -> None:
        self.standings = Standings(now)
        self._fleet = fleet
        self._holds = holds
        self._table = NodeTable()
        self._holdings = Holdings()
        self._refused: dict[tuple[str, str], float] = {}
        self._changed: set[str] = set()
        self._loaded: set[str] = set()

    def take(self, node: str, demand: Demand, variant: VariantView) -> int:
        """Reserve what a copy needs until it is placed there, or not; returns the reservation's number."""
        self._loaded.add(node)
        return self._holdings.reserve(node, demand, variant)

    def give(self, taken: int) -> None:
        """End a reservation."""
        self._loaded.add(self._holdings.unreserve(taken))

    def holders(self, node: str) -> set[str]:
        """Names of the deployments that have a copy on a node."""
        return {item.row.name for item, _ in self._holdings.of(node)}

    def occupy(self, item: Deployed, copy: Copy, taken: int = 0) -> None:
        """A copy was placed, for which a reservation may have been made: then its node has what it had before."""
        load = self._holdings.load(copy.row.node)
        before = load.memory, load.cpu_milli
        self._holdings.put(item, copy)
        if taken:
            self._holdings.unreserve(taken)
        if not taken or (load.memory, load.cpu_milli) != before:
            self._changed.add(copy.row.node)

    def vacate(self, copies: Iterable[Copy]) -> None:
        """Copies are gone."""
        for copy in copies:
            self._holdings.drop(copy)
            self._changed.add(copy.row.node)

    def on(self, node: str) -> list[tuple[Deployed, Copy]]:
        """What a node has, by deployment."""
        return sorted(self._holdings.of(node), key=lambda pair: (pair[0].row.name, pair[1].row.epoch))

    def touch(self, copies: Iterable[Copy]) -> None:
        """These copies, or their variants, are otherwise than they were."""
        copies = list(copies)
        self._holdings.refresh(copies)
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
        return self._holdings.used()

    def total(self) -> Amounts:
        """What the nodes have that are there."""
        there = [state.facts for state in self._fleet if state.state == READY]
        return float(sum(facts.memory_bytes for facts in there)), float(sum(facts.cpu_milli for facts in there))

    def holdings(self, node: str, now: float) -> list[Holding]:
        """Copies on a node that may have to give way, at a time in seconds since 1970."""
        return self._holdings.preemptible(node, now)

    def snapshot(self) -> Snapshot:
        """The nodes now."""
        touched = self._changed | self._fleet.touched | self._holds.touched
        for kept in (self._changed, self._fleet.touched, self._holds.touched):
            kept.clear()
        self._take_up(touched)
        for node in self._loaded - touched:
            self._reckon(node)
        self._loaded.clear()
        return self._table.snapshot()

    def catch_up(self) -> None:
        """Take up some of what has changed: a decision must not wait for a thousand nodes that came at once."""
        self.standings.forget()
        some = list(islice(self._fleet.touched, _AT_ONCE))
        self._fleet.touched.difference_update(some)
        self._take_up(some)

    def _take_up(self, nodes: Iterable[str]) -> None:
        for node in nodes:
            state = self._fleet.get(node)
            if state is not None:
                self._table.put(self._view(state))

    def _reckon(self, node: str) -> None:
        """Take up what is free on a node of which only that has changed."""
        known, state = self._table.get(node), self._fleet.get(node)
        if known is None or state is None:
            self._take_up([node])
            return
        facts, load = state.facts, self._holdings.load(node)
        memory, cpu = facts.memory_bytes - load.memory, facts.cpu_milli - load.cpu_milli
        self._table.put(replace(known, free_memory=memory, free_cpu_milli=cpu))

    def _view(self, state: NodeState) -> NodeView:
        facts, load = state.facts, self._holdings.load(state.node)
        return replace(
            place_of(state),
            runtimes={name: frozenset(runtime.formats) for name, runtime in facts.runtimes.items()},
            sandbox=facts.labels.get("sandbox", "none"),
            sandbox_wanted=self._fleet.sandbox.get(state.tier, "none"),
            free_memory=facts.memory_bytes - load.memory,
            free_cpu_milli=facts.cpu_milli - load.cpu_milli,
            memory=facts.memory_bytes,
            cpu_milli=facts.cpu_milli,
            rtt_ms=state.rtt_seen,
            in_bytes_per_second=state.link.down,
            out_bytes_per_second=state.link.up,
            price_per_hour=facts.price_per_hour,
            egress_per_gib=facts.egress_per_gib,
            watts=facts.watts,
            accelerator=facts.accelerator,
            avoid=frozenset(variant for node, variant in self._refused if node == state.node),
            resident=frozenset(load.resident),
            draining=self._holds.closed(state.node),
        )
