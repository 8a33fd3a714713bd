"""Finds places for what lacks them: in the order of the queue, all at once, and for others' if it must."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from sealane.clock import Clock
from sealane.failpoint import failpoint
from sealane.records.transactions import Transactions
from sealane_scheduler import cluster, present
from sealane_scheduler.batch import Basis, Place, Placed, Wanted, because, give_back
from sealane_scheduler.cluster import Copy, Deployed, Nomination
from sealane_scheduler.columns import NodeTable, tie_of
from sealane_scheduler.evacuation import why_stuck
from sealane_scheduler.filters import Demand
from sealane_scheduler.fleet import READY, Fleet
from sealane_scheduler.holds import Holds
from sealane_scheduler.moves import Move
from sealane_scheduler.placement import decide
from sealane_scheduler.placing import Binding, adopt, keep
from sealane_scheduler.preemption import Preemption, preempt
from sealane_scheduler.queue_order import in_order
from sealane_scheduler.scan import Question
from sealane_scheduler.stock import Stock
from sealane_scheduler.store import Store, deployment_name
from sealane_scheduler.together import load_solver, place_all, solver_is_loaded

log = logging.getLogger("sealane.placer")

#: A copy that gives its place to another deployment serves for so long after it was told.
GRACE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What decisions are made from.

    Args:
        records: where decisions and copies are kept.
        stock: what is free.
        fleet: the nodes.
        holds: which of them take nothing new.
        clock: the time.
    """

    records: Transactions[Store]
    stock: Stock
    fleet: Fleet
    holds: Holds
    clock: Clock


class Placer:
    """The decisions of the controller.

    Args:
        world: what they are made from.
        deployed: all deployments by name; the controller's own.
        changed: called with the names of deployments to look at after every change.
    """

    def __init__(
        self, world: Surroundings, deployed: Mapping[str, Deployed], changed: Callable[[Sequence[str]], None]
    ) -> None:
        self._records, self._stock, self._fleet = world.records, world.stock, world.fleet
        self._holds, self._clock = world.holds, world.clock
        self._deployed = deployed
        self._changed = changed
        self.serialize = present.Serializer()
        """Makes bytes of decisions."""

    def staying(self, item: Deployed) -> list[Copy]:
        """Copies that are there, and need neither give their place to others nor leave a node that is drained."""
        return [copy for copy in item.staying(self._fleet) if not self._holds.draining(copy.row.node)]

    def wanted(self, item: Deployed) -> Wanted:
        """What a deployment lacks."""
        staying = self.staying(item)
        there = [*staying, *(copy for copy in item.ready(self._fleet) if copy.gives_way)]
        apart = tuple((copy.row.node, self.zone(copy.row.node)) for copy in there)
        demand = self.near(item.demand, item.row.project)
        if apart or demand.gang:
            demand = replace(demand, apart=apart, gang=demand.gang and not item.copies)
        question = Question(demand, item.variants, tie_of(item.row.model_version))
        return Wanted(question, item.demand.replicas - len(staying))

    def near(self, demand: Demand, project: str) -> Demand:
        """A demand with where the deployments are that it would rather be beside."""
        named = (self._deployed.get(deployment_name(project, name)) for name in demand.affinity)
        nodes = dict.fromkeys(copy.row.node for item in named if item is not None for copy in self.staying(item))
        return replace(demand, beside=tuple((node, self.zone(node)) for node in nodes)) if nodes else demand

    @property
    def now(self) -> float:
        """Seconds since 1970."""
        return self._clock.now()

    async def ready_for(self, count: int) -> None:
        """Have at hand what deciding about so many at once may need."""
        if count > 1 and not solver_is_loaded():
            await asyncio.to_thread(load_solver)

    def reserve(self, items: Sequence[Deployed], *, gang: bool = False) -> list[Placed]:
        """Decide about deployments that are not recorded yet; what they get is kept for them."""
        return place_all([self.wanted(item) for item in items], self._stock, gang=gang)

    def release(self, bindings: Sequence[Binding]) -> None:
        """Give back what was kept for what is not recorded."""
        give_back((binding.placed for binding in bindings), self._stock)

    async def place(self, items: Sequence[Deployed]) -> None:
        """Place what these deployments lack."""
        await self.ready_for(len(items))
        items = self._in_order(items)
        wanted = [self.wanted(item) for item in items]
        found = place_all(wanted, self._stock)
        bindings, now = [], self.now
        for item, want, placed in zip(items, wanted, found, strict=True):
            if placed.refusal is not None and not placed.places:
                self._note_stuck(item, placed.refusal[1])
            lacking = placed.refusal is not None and not placed.places
            way = lacking and self._preempts(item, want.question)
            refused = lacking and not way and not item.ready(self._fleet)
            kind = placed.refusal[0].kind if placed.refusal is not None else None
            new = refused and (item.refusal is None or item.refusal.kind != kind)
            if placed.places or new:
                bindings.append(Binding(item, placed, now, self.serialize, new))
        await self.bind(bindings)

    def _note_stuck(self, item: Deployed, basis: Basis) -> None:
        """Say why nothing takes what is on nodes that are drained."""
        for copy in item.ready(self._fleet):
            if self._holds.draining(copy.row.node):
                copy.stuck = why_stuck(basis.question, basis.nodes, self._holds, self._clock.monotonic())

    async def bind(self, bindings: Sequence[Binding]) -> None:
        """Commit what was decided, then have it known."""
        if not bindings:
            return
        recorded = False
        try:
            await self._records.write(partial(keep, bindings=bindings))
            recorded = True
        finally:
            if not recorded:
                self.release(bindings)
        if any(binding.placed.places for binding in bindings):
            failpoint("scheduler.bind.committed")
        for binding in bindings:
            adopt(binding, self._stock)
        self._changed([binding.item.row.name for binding in bindings])

    def _in_order(self, items: Sequence[Deployed]) -> Sequence[Deployed]:
        if len(items) < 2:
            return items
        named = {item.row.name: item for item in items}
        waiting = [item.waiting(item.demand.replicas - len(self.staying(item))) for item in items]
        order = in_order(waiting, self._stock.used(), self._stock.total())
        return [named[place.name] for place in order]

    def _preempts(self, item: Deployed, question: Question) -> bool:
        """Have copies of lower priority give their place to a deployment that fits nowhere; whether any does."""
        lower = any(
            other.demand.preemptible and other.demand.priority < item.demand.priority
            for other in self._deployed.values()
        )
        if not lower or question.demand.gang:
            return False
        found = preempt(question, self._stock.snapshot(), partial(self._stock.holdings, now=self._clock.now()))
        if found is None:
            return False
        self._have_way(item, found)
        return True

    def _have_way(self, item: Deployed, found: Preemption) -> None:
        node = found.decision.node
        until = self._clock.monotonic() + GRACE_SECONDS
        for victim in found.victims:
            other = self._deployed[victim.deployment]
            copy = other.copy(node, victim.epoch)
            assert copy is not None
            copy.gives_way, copy.leaving = until, True
            copy.message = f"gives its place to {item.row.name}, whose priority is {item.demand.priority}"
        taken = self._stock.take(node, item.demand, found.variant)
        victims = tuple((victim.deployment, victim.epoch) for victim in found.victims)
        item.nominated = Nomination(Placed((Place(found.decision, found.basis, taken),)), node, victims)
        item.refused = present.decision(found.decision, 0, self._clock.now()).SerializeToString()
        item.refusal = None
        log.info("a deployment takes the place of others", extra={"deployment": item.row.name, "node": node})
        self._changed([victim.deployment for victim in found.victims])

    async def succeed(self, item: Deployed, nomination: Nomination) -> None:
        """Place a deployment where others gave way, once they are gone."""
        state = self._fleet.get(nomination.node)
        if state is None or state.state != READY:
            self.give_up(item)
            return
        for name, epoch in nomination.victims:
            other = self._deployed.get(name)
            if other is not None and other.copy(nomination.node, epoch) is not None:
                return
        item.nominated = None
        await self.bind([Binding(item, nomination.placed, self._clock.now(), self.serialize)])

    def give_up(self, item: Deployed) -> None:
        """Keep no place for a deployment any more; who was to leave it stays."""
        nomination, item.nominated = item.nominated, None
        if nomination is None:
            return
        give_back([nomination.placed], self._stock)
        for name, epoch in nomination.victims:
            other = self._deployed.get(name)
            copy = other.copy(nomination.node, epoch) if other is not None else None
            if copy is not None:
                copy.gives_way, copy.leaving, copy.message = 0.0, False, ""
        self._changed([name for name, _ in nomination.victims])

    def zone(self, node: str) -> str:
        """Zone of a node."""
        state = self._fleet.get(node)
        return "" if state is None else state.facts.attributes.get("zone", "")

    async def move(self, item: Deployed, move: Move) -> bool:
        """Place a copy anew elsewhere; the old one goes once the new one serves. Whether that was begun."""
        source = next((c for c in item.copies if c.row.node == move.source), None)
        nodes = self._stock.snapshot()
        if source is None or source.state != cluster.SERVING or move.target not in nodes.index:
            return False
        variants = tuple(variant for variant in item.variants if variant.variant == move.variant)
        others = (copy.row.node for copy in item.ready(self._fleet) if copy is not source)
        demand = self.near(item.demand, item.row.project)
        demand = replace(demand, apart=tuple((node, self.zone(node)) for node in others))
        question = Question(demand, variants)
        there = NodeTable([nodes.node(nodes.index[move.target])]).snapshot()
        decision = decide(question, there)
        if not decision.node or move.target == move.source:
            return False
        why = f"moved from {move.source}, which saves {move.saves:.3g} an hour"
        source.leaving = True
        taken = self._stock.take(decision.node, item.demand, variants[0])
        place = Place(because(decision, why), Basis(question, there, why=why), taken)
        await self.bind([Binding(item, Placed((place,)), self._clock.now(), self.serialize)])
        return True
