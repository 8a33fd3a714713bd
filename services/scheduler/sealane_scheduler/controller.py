"""Keeps the cluster as the deployments want it: notices lost nodes, places, releases.

One task on the event loop owns the cluster. It decides with the pure core (:mod:`placement`), commits,
then tells: a decision is durable before any node hears of it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import numpy as np

from sealane.clock import Clock
from sealane.errors import Aborted, NotFound, SealaneError
from sealane.failpoint import failpoint
from sealane.records.tables import Actor
from sealane.records.transactions import Transactions
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane_scheduler import cluster, present
from sealane_scheduler.changes import NOBODY, Changes
from sealane_scheduler.cluster import Copy, Deployed
from sealane_scheduler.columns import Snapshot, tie_of
from sealane_scheduler.decision import Decision
from sealane_scheduler.filters import Demand, NodeView, VariantView, forbidden
from sealane_scheduler.fleet import DEAD, READY, Fleet
from sealane_scheduler.moves import Movable, Move
from sealane_scheduler.placement import Question, decide
from sealane_scheduler.replay import record
from sealane_scheduler.stock import Stock
from sealane_scheduler.store import DecisionRow, DeploymentRow, PlacementRow, Store

log = logging.getLogger("sealane.controller")

TICK_SECONDS = 0.1
#: A stream that broke and did not come back within this time gets its work substituted.
SUBSTITUTE_SECONDS = 0.5
#: After a restart of the scheduler nodes get this long to come back before they count as lost.
RECONNECT_SECONDS = 5.0
#: A variant that a node could not load is not tried there again for this long.
AVOID_SECONDS = 30.0
#: Of fleets up to this size all that a decision was made from is kept with it.
RECORDED_NODES = 256


class Controller:
    """The cluster and the loop that keeps it."""

    def __init__(self, records: Transactions[Store], fleet: Fleet, clock: Clock) -> None:
        self._records = records
        self._clock = clock
        self.fleet = fleet
        self.changes = Changes(int(clock.now() * 1000))
        self._deployed: dict[str, Deployed] = {}
        self._stock = Stock(fleet)
        self._wake = asyncio.Event()
        self._lock = asyncio.Lock()

    async def load(self) -> None:
        """Take up where the last process stopped."""
        rows, placements = await self._records.read(lambda store: (store.deployments(), store.placements()))
        for row in rows:
            self._deployed[row.name] = _deployed(row)
        for placement in placements:
            item = self._deployed.get(f"projects/{placement.project}/deployments/{placement.deployment}")
            if item is None:
                await self._records.write(partial(_release, row=placement))
                continue
            copy = Copy(placement)
            item.copies.append(copy)
            self._stock.occupy(item, copy)
            self.fleet.expect(placement.node, RECONNECT_SECONDS)
        for item in self._deployed.values():
            item.placed = await self._records.read(partial(_last_place, row=item.row))

    def get(self, name: str) -> Deployed | None:
        """A deployment by its resource name."""
        return self._deployed.get(name)

    def all(self) -> Iterable[Deployed]:
        """All deployments, by name."""
        return [self._deployed[name] for name in sorted(self._deployed)]

    def placed_on(self, node: str) -> list[tuple[Deployed, Copy]]:
        """What is placed on a node, by name of the deployment."""
        return sorted(self._stock.held(node), key=lambda pair: pair[0].row.name)

    def wake(self) -> None:
        """Look at the cluster now, not at the next tick."""
        self._wake.set()

    def add(self, row: DeploymentRow) -> Deployed:
        """A deployment was created."""
        item = self._deployed.setdefault(row.name, _deployed(row))
        self.wake()
        return item

    async def rename(self, wanted: Iterable[DeploymentRow], actor: Actor, now: float) -> None:
        """Let deployments be served under the names and labels of these rows, all at once."""
        async with self._lock:
            changed = []
            for want in wanted:
                item = self._deployed.get(want.name)
                if item is None:
                    raise NotFound(f"{want.name} does not exist any more")
                if (item.row.served_name, item.row.labels) != (want.served_name, want.labels):
                    named = replace(item.row, served_name=want.served_name, labels=want.labels)
                    changed.append((item, replace(named, update_time=now, etag=secrets.token_hex(8))))

            def put(store: Store) -> None:
                for _, row in changed:
                    store.put_deployment(row)
                    store.record(actor, "ServeUnderName", row.name, now, served_name=row.served_name, labels=row.labels)

            await self._records.write(put)
            for item, row in changed:
                item.row = row
        self.changes.announce(copy.row.node for item, _ in changed for copy in item.copies)

    async def delete(self, name: str, etag: str, drop: Callable[[Store], None]) -> None:
        """Delete a deployment; nothing is placed meanwhile.

        Args:
            name: its resource name.
            etag: etag it must still have; empty deletes whatever is there.
            drop: removes it from the records.

        Raises:
            NotFound: somebody else deleted it.
            Aborted: it has another etag.
        """
        async with self._lock:
            item = self._deployed.get(name)
            if item is None:
                raise NotFound(f"{name} does not exist any more")
            if etag and etag != item.row.etag:
                raise Aborted("the deployment has changed since it was read; read it again", reason="ETAG_MISMATCH")
            await self._records.write(drop)
            del self._deployed[name]
            self._stock.vacate(item, item.copies)
        self.changes.announce(copy.row.node for copy in item.copies)

    async def refresh(self, version: model_pb.Version) -> None:
        """A version has new variants, measurements or signatures, or is judged otherwise: later decisions see it."""
        async with self._lock:
            for item in self.all():
                if item.row.model_version != version.name or model_pb.Version.FromString(item.row.version) == version:
                    continue
                row = replace(item.row, version=version.SerializeToString())
                await self._records.write(partial(_put, row=row))
                item.row, item.variants = row, present.variants(version)
                self._stock.touch(item.copies)
                self.changes.announce(copy.row.node for copy in item.copies)
        self.wake()

    def snapshot(self) -> Snapshot:
        """The nodes as a decision sees them now."""
        return self._stock.snapshot()

    def nodes(self) -> list[NodeView]:
        """The same, one by one."""
        return self._stock.snapshot().nodes()

    def plan(self, demand: Demand, variants: Iterable[VariantView], name: str) -> Decision:
        """What would be decided now.

        Args:
            demand: what is wanted.
            variants: of what there is to choose.
            name: what tells equal nodes apart: a version, so that its deployments go where it is known.
        """
        return decide(Question(demand, tuple(variants), tie_of(name)), self._stock.snapshot())

    def report(self, node: str, deployment: str, copy: Copy) -> None:
        """A node says how one of its copies stands; a stale epoch changes nothing."""
        item = self._deployed.get(deployment)
        known = item.copy(node, copy.row.epoch) if item is not None else None
        if known is None:
            return
        known.told = copy.told
        if (known.state, known.message) == (copy.state, copy.message):
            return
        known.state, known.message, known.digest = copy.state, copy.message, copy.digest
        self._stock.touch([known])
        if copy.state == cluster.FAILED:
            self._stock.refuse(node, known.row.variant, self._clock.monotonic())
        self.changes.announce(NOBODY)
        self.wake()

    async def run(self) -> None:
        """Keep the cluster until cancelled."""
        while True:
            self._wake.clear()
            if self.fleet.tick():
                self.changes.announce(NOBODY)
            self._stock.catch_up()
            try:
                for item in self._by_priority():
                    await self.reconcile(item)
            except SealaneError as error:
                log.warning("a decision was not recorded, trying again", extra={"reason": error.reason})
            try:
                async with asyncio.timeout(TICK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _by_priority(self) -> list[Deployed]:
        """Who is placed first: the higher priority, then the older."""
        return sorted(self._deployed.values(), key=lambda item: (-item.demand.priority, item.row.create_time))

    async def reconcile(self, item: Deployed) -> None:
        """Bring one deployment nearer to what it wants: release what is over, place what is missing."""
        async with self._lock:
            if self._deployed.get(item.row.name) is not item:
                return
            self._stock.forgive(self._clock.monotonic() - AVOID_SECONDS)
            await self._release(item, [copy for copy in item.copies if self._is_over(item, copy)])
            await self._release(item, self._surplus(item))
            ready = item.ready(self.fleet)
            if len(ready) <= item.demand.replicas:
                _stay(item.copies)
            if ready and item.refusal is not None:
                item.refusal = None
                self.changes.announce(NOBODY)
            if len(ready) < item.demand.replicas and not self._may_come_back(item):
                await self._place(item)

    async def move(self, move: Move) -> bool:
        """Place a copy anew elsewhere; the old one goes once the new one serves. Whether that was begun."""
        async with self._lock:
            item = self._deployed.get(move.deployment)
            source = None if item is None else next((c for c in item.copies if c.row.node == move.source), None)
            nodes = self._stock.snapshot()
            if item is None or source is None or source.state != cluster.SERVING or move.target not in nodes.index:
                return False
            variants = tuple(variant for variant in item.variants if variant.variant == move.variant)
            others = (copy.row.node for copy in item.ready(self.fleet) if copy is not source)
            demand = replace(item.demand, apart=tuple((node, self._zone(node)) for node in others))
            there = nodes.take(np.array([nodes.index[move.target]]))
            decision = decide(Question(demand, variants), there)
            if not decision.node or move.target == move.source:
                return False
            reason = f"moved from {move.source}, which saves {move.saves:.3g} an hour"
            source.leaving = True
            await self._bind(item, replace(decision, reasons=(reason, *decision.reasons[1:])), b"")
            return True

    def movable(self, allowed: Callable[[DeploymentRow], bool]) -> list[Movable]:
        """What of the allowed deployments may move: those all of whose copies serve."""
        found = []
        for item in self.all():
            serving = item.serving(self.fleet)
            if allowed(item.row) and serving and len(serving) == len(item.copies) == item.demand.replicas:
                copies = tuple((copy.row.node, copy.row.variant) for copy in serving)
                found.append(Movable(item.row.name, item.demand, item.variants, copies))
        return found

    def _is_over(self, item: Deployed, copy: Copy) -> bool:
        state, variant = self.fleet.get(copy.row.node), item.variant(copy.row.variant)
        if copy.state == cluster.FAILED or state is None or state.state == DEAD or variant is None:
            return True
        # Where data may go is checked again for every copy, however it came to be there.
        return state.state == READY and bool(forbidden(item.demand, cluster.place_of(state), variant))

    def _surplus(self, item: Deployed) -> list[Copy]:
        """Copies beyond what is wanted: those that leave, then the newest: a node came back, its substitute goes."""
        serving = sorted(item.serving(self.fleet), key=lambda copy: copy.leaving)
        return serving[item.demand.replicas :] if len(serving) > item.demand.replicas else []

    def _may_come_back(self, item: Deployed) -> bool:
        waits = [self.fleet.absent_for(copy.row.node) for copy in item.copies if not self._is_ready(copy)]
        return any(wait < SUBSTITUTE_SECONDS for wait in waits)

    def _is_ready(self, copy: Copy) -> bool:
        state = self.fleet.get(copy.row.node)
        return state is not None and state.state == READY

    async def _place(self, item: Deployed) -> None:
        taken = tuple((copy.row.node, self._zone(copy.row.node)) for copy in item.ready(self.fleet))
        nodes = self._stock.snapshot()
        question = Question(replace(item.demand, apart=taken), item.variants, tie_of(item.row.model_version))
        decision = decide(question, nodes)
        if not decision.node:
            if taken:
                return  # it serves, with fewer copies than wanted
            if item.refusal is None or item.refusal.kind != decision.kind:
                refused = present.decision(decision, 0, self._clock.now())
                item.refused = await self._note(item, refused, _recorded(question, nodes))
                item.refusal = decision
                self.changes.announce(NOBODY)
            return
        await self._bind(item, decision, _recorded(question, nodes))

    async def _bind(self, item: Deployed, decision: Decision, made_from: bytes) -> None:
        row = item.row
        wanted = PlacementRow(row.project, row.deployment, 0, decision.node, decision.variant)
        epoch = await self._records.write(partial(_bind, row=wanted))
        failpoint("scheduler.bind.committed")
        copy = Copy(replace(wanted, epoch=epoch))
        item.copies.append(copy)
        self._stock.occupy(item, copy)
        message = present.decision(decision, epoch, self._clock.now())
        item.placed, item.refusal = await self._note(item, message, made_from), None
        self.changes.announce([copy.row.node])

    async def _note(self, item: Deployed, decision: pb.Decision, made_from: bytes) -> bytes:
        """Keep a decision, with what it was made from; returns it without."""
        content = decision.SerializeToString()
        decision.record = made_from
        note = DecisionRow(item.row.project, item.row.deployment, self._clock.now(), decision.SerializeToString())
        await self._records.write(lambda store: store.add_decision(note))
        return content

    def _zone(self, node: str) -> str:
        state = self.fleet.get(node)
        return "" if state is None else state.facts.attributes.get("zone", "")

    async def _release(self, item: Deployed, copies: list[Copy]) -> None:
        for copy in copies:
            await self._records.write(partial(_release, row=copy.row))
            item.copies.remove(copy)
            self._stock.vacate(item, [copy])
            self.changes.announce([copy.row.node])


def _recorded(question: Question, nodes: Snapshot) -> bytes:
    """All that a decision is made from; nothing of large fleets."""
    return record(question, nodes) if len(nodes) <= RECORDED_NODES else b""


def _stay(copies: Iterable[Copy]) -> None:
    """Nobody came in the place of these."""
    for copy in copies:
        copy.leaving = False


def _deployed(row: DeploymentRow) -> Deployed:
    version = model_pb.Version.FromString(row.version)
    return Deployed(row, present.demand(pb.Demand.FromString(row.demand)), present.variants(version))


def _put(store: Store, row: DeploymentRow) -> None:
    store.put_deployment(row)


def _bind(store: Store, row: PlacementRow) -> int:
    epoch = store.bind(row)
    failpoint("scheduler.bind.recorded")
    return epoch


def _release(store: Store, row: PlacementRow) -> None:
    store.release(row)


def _last_place(store: Store, row: DeploymentRow) -> bytes:
    kept = store.decisions(row.project, row.deployment)
    told = (pb.Decision.FromString(item.content) for item in kept)
    placed = next((decision for decision in told if decision.node), None)
    if placed is None:
        return b""
    placed.ClearField("record")
    return placed.SerializeToString()
