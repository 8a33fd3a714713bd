"""Keeps the cluster as the deployments want it: notices lost nodes, places, releases.

One task on the event loop owns the cluster. It decides with the pure core (:mod:`together`), commits, then tells: a
decision is durable before any node hears of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

from sealane.clock import Clock
from sealane.errors import Aborted, NotFound, SealaneError
from sealane.records.tables import Actor
from sealane.records.transactions import Transactions
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane_scheduler import cluster, present
from sealane_scheduler.changes import NOBODY, Changes
from sealane_scheduler.cluster import Copy, Deployed, renamed
from sealane_scheduler.columns import Snapshot, tie_of
from sealane_scheduler.creation import Creation, Creations
from sealane_scheduler.decision import Decision
from sealane_scheduler.evacuation import asked_lately
from sealane_scheduler.filters import Demand, NodeView, VariantView, forbidden
from sealane_scheduler.fleet import DEAD, READY, Fleet
from sealane_scheduler.holds import Holds
from sealane_scheduler.moves import Movable, Move
from sealane_scheduler.placement import Question, decide
from sealane_scheduler.placer import Placer, Surroundings
from sealane_scheduler.placing import Binding, adopt
from sealane_scheduler.recollection import recollect, release, update
from sealane_scheduler.recovery import RECONNECT_SECONDS, Pace, Recovery
from sealane_scheduler.route_log import RouteLog
from sealane_scheduler.stock import Stock
from sealane_scheduler.store import DeploymentRow, HoldRow, Store

log = logging.getLogger("sealane.controller")

TICK_SECONDS = 0.1
#: A variant that a node could not load is not tried there again for this long.
AVOID_SECONDS = 30.0
#: What fits nowhere is decided again at every change that could help, and after this time.
RETRY_SECONDS = 1.0


class Controller:
    """The cluster and the loop that keeps it."""

    def __init__(self, records: Transactions[Store], fleet: Fleet, clock: Clock, pace: Pace | None = None) -> None:
        self.check: Callable[[], None] = lambda: None
        """Raises where this process has lost the right to decide."""
        self._records = records
        self._clock = clock
        self.fleet = fleet
        self.changes = Changes(int(clock.now() * 1000))
        self.routes = RouteLog()
        self._deployed: dict[str, Deployed] = {}
        self.holds = Holds()
        self.recovery = Recovery(fleet, clock, pace or Pace())
        self._stock = Stock(fleet, self.holds, clock.monotonic)
        world = Surroundings(records, self._stock, fleet, self.holds, clock)
        self._placer = Placer(world, self._deployed, self._changed)
        self._creations = Creations(records, self._placer, self._created)
        self._version_of: dict[str, str] = {}
        self._due: set[str] = set()
        self._unsettled: set[str] = set()
        self._news = 0
        self._wake = asyncio.Event()
        self._lock = asyncio.Lock()

    async def load(self, grace: float = RECONNECT_SECONDS) -> None:
        """Take up where the last process stopped; nodes get `grace` seconds to come to this one."""
        self.changes.revision = max(self.changes.revision, int(self._clock.now() * 1000))
        self.holds.load(await self._records.read(lambda store: store.holds()))
        for held in self.holds:
            self.fleet.expect(held.node, grace)
        found, orphans = await self._records.read(partial(recollect, now=self._clock.now()))
        for row in orphans:
            await self._records.write(partial(release, row=row))
        for item in found:
            self._deployed[item.row.name], self._version_of[item.row.model_version] = item, item.row.name
            for copy in item.copies:
                self._stock.occupy(item, copy)
                self.fleet.expect(copy.row.node, grace)
        self._due.update(self._deployed)

    def get(self, name: str) -> Deployed | None:
        """A deployment by its resource name."""
        return self._deployed.get(name)

    def version(self, name: str) -> tuple[str, bytes] | None:
        """Name and content of a version that is deployed, as it was last heard of; None where it is not."""
        item = self._deployed.get(self._version_of.get(name, ""))
        return None if item is None else (item.row.model_version, item.row.version)

    def all(self) -> Iterable[Deployed]:
        """All deployments, by name."""
        return [self._deployed[name] for name in sorted(self._deployed)]

    def wake(self, *, news: bool = False) -> None:
        """Look at the cluster now, not at the next tick; `news` where something may give room to what fits nowhere."""
        self._news += news
        self._wake.set()

    def look_at(self, names: Iterable[str]) -> None:
        """Look whether these deployments are as they want to be."""
        self._due.update(names)
        self.wake()

    def _changed(self, names: Iterable[str], nodes: Iterable[str] | None = None) -> None:
        """Deployments are otherwise; `nodes` are those that are to do something else now, by default where they run."""
        names = list(names)
        self._tell(names, nodes)
        self.look_at(names)

    def _tell(self, names: Sequence[str], nodes: Iterable[str] | None = None) -> None:
        """Have gateways, and nodes that are to do something else now, hear of it."""
        if nodes is None:
            items = (self._deployed[name] for name in names if name in self._deployed)
            nodes = {copy.row.node for item in items for copy in item.copies}
        self.routes.touch(names)
        self.changes.announce(nodes)

    def rerouted_since(self, number: int) -> list[str] | None:
        """Names of deployments whose routes may have changed since :attr:`routes` had a number; None for all."""
        self._take_turned()
        self.routes.forget(len(self._deployed))
        return self.routes.since(number)

    def _take_turned(self) -> None:
        """Nodes came, went, or are judged otherwise."""
        if not self.fleet.turned:
            return
        names = set[str]().union(*map(self._stock.holders, self.fleet.turned))
        self.fleet.turned.clear()
        self._due |= names
        self.routes.touch(names)
        self._news += 1

    async def create(self, wanted: Creation) -> bytes:
        """Create deployments and place them, in one transaction; see :meth:`creation.Creations.create`."""
        return await self._creations.create(wanted)

    def _created(self, bindings: Sequence[Binding]) -> None:
        for binding in bindings:
            row = binding.item.row
            self._deployed[row.name], self._version_of[row.model_version] = binding.item, row.name
            adopt(binding, self._stock)
        self._tell([binding.item.row.name for binding in bindings])
        # Nodes may have gone since they were chosen.
        self.look_at(binding.item.row.name for binding in bindings if not self._is_settled(binding.item))

    async def rename(self, wanted: Iterable[DeploymentRow], actor: Actor, now: float) -> None:
        """Let deployments be served under the names and labels of these rows, all at once."""
        async with self._lock:
            changed = renamed(self._deployed, wanted, now)

            def put(store: Store) -> None:
                for _, row in changed:
                    store.put_deployment(row)
                    store.record(actor, "ServeUnderName", row.name, now, served_name=row.served_name, labels=row.labels)

            await self._records.write(put)
            for item, row in changed:
                item.row = row
        self._changed(row.name for _, row in changed)

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
            self._unsettled.discard(name)
            self._stock.vacate(item.copies)
            self._placer.give_up(item)
        self._changed([name], {copy.row.node for copy in item.copies})
        self.wake(news=True)

    async def hold(self, row: HoldRow, write: Callable[[Store], None]) -> None:
        """Have a node take nothing new from now on, or open it again; nothing is placed meanwhile.

        Args:
            row: what it may take.
            write: puts that into the records.
        """
        async with self._lock:
            await self._records.write(write)
            self.holds.put(row)
            for _, copy in self._stock.on(row.node):
                copy.stuck = None
        self._due |= self._stock.holders(row.node)
        self.changes.announce()
        self.wake(news=True)

    def copies_on(self, node: str) -> list[tuple[Deployed, Copy]]:
        """What a node has, by deployment."""
        return self._stock.on(node)

    async def refresh(self, version: model_pb.Version) -> None:
        """A version has new variants, measurements or signatures, or is judged otherwise: later decisions see it."""
        async with self._lock:
            for item in self.all():
                if item.row.model_version != version.name or model_pb.Version.FromString(item.row.version) == version:
                    continue
                row = replace(item.row, version=version.SerializeToString())
                await self._records.write(partial(update, row=row))
                item.row, item.variants = row, present.variants(version)
                self._stock.touch(item.copies)
                self._changed([row.name])
        self.wake(news=True)

    def snapshot(self) -> Snapshot:
        """The nodes as a decision sees them now."""
        return self._stock.snapshot()

    def nodes(self) -> list[NodeView]:
        """The same, one by one."""
        return self._stock.snapshot().nodes()

    def plan(self, demand: Demand, variants: Iterable[VariantView], name: str, project: str) -> Decision:
        """What would be decided now.

        Args:
            demand: what is wanted.
            variants: of what there is to choose.
            name: what tells equal nodes apart: a version, so that its deployments go where it is known.
            project: whose deployments the demand names.
        """
        demand = self._placer.near(demand, project)
        return decide(Question(demand, tuple(variants), tie_of(name)), self._stock.snapshot())

    def report(self, node: str, deployment: str, copy: Copy) -> None:
        """A node says how one of its copies stands; a stale epoch changes nothing."""
        item = self._deployed.get(deployment)
        known = item.copy(node, copy.row.epoch) if item is not None else None
        if known is None:
            return
        known.told = copy.told
        message = known.message if known.gives_way else copy.message
        if (known.state, known.message) == (copy.state, message):
            return
        known.state, known.message, known.digest = copy.state, message, copy.digest
        self._stock.touch([known])
        if copy.state == cluster.FAILED:
            self._stock.refuse(node, known.row.variant, self._clock.monotonic())
            self._news += 1
        self._changed([deployment], NOBODY)

    async def run(self) -> None:
        """Keep the cluster until cancelled."""
        while True:
            self._wake.clear()
            self._stock.catch_up()
            try:
                await self.round()
            except SealaneError as error:
                log.warning("a decision was not recorded, trying again", extra={"reason": error.reason})
            try:
                async with asyncio.timeout(TICK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def round(self) -> None:
        """Bring what is not as it should be nearer to it."""
        self.check()
        if self.fleet.tick():
            self.changes.announce(NOBODY)
        async with self._lock:
            self._take_turned()
            self.recovery.begin_round()
            if self._stock.forgive(self._clock.monotonic() - AVOID_SECONDS):
                self._news += 1
            # What is not settled in this round, for whatever reason, is looked at in the next.
            self._unsettled |= self._due
            self._due = set()
            await self._settle([self._deployed[name] for name in self._unsettled if name in self._deployed])

    async def reconcile(self, item: Deployed) -> None:
        """Bring one deployment nearer to what it wants."""
        async with self._lock:
            self._stock.forgive(self._clock.monotonic() - AVOID_SECONDS)
            if self._deployed.get(item.row.name) is item:
                item.asked = -1
                await self._settle([item])

    async def _settle(self, items: Iterable[Deployed]) -> None:
        """Release what is over, and place what is missing."""
        items = sorted(items, key=lambda item: (-item.demand.priority, item.row.create_time, item.row.name))
        # One after the other: whoever has to wait for the pace keeps its lost copy until then.
        asking = [item for item in items if await self._lacks(item) and self._may_ask(item)]
        if asking:
            had = [len(item.copies) for item in asking]
            await self._placer.place(asking)
            for item, before in zip(asking, had, strict=True):
                self.recovery.placed(item, len(item.copies) - before)
        for item in items:
            if self._is_settled(item):
                self._unsettled.discard(item.row.name)
            else:
                self._unsettled.add(item.row.name)

    def _may_ask(self, item: Deployed) -> bool:
        """Whether a place is to be looked for now."""
        now = self._clock.monotonic()
        if item.asked == self._news and now - item.asked_at < RETRY_SECONDS:
            return False
        leaving = [copy for copy in item.ready(self.fleet) if self.holds.draining(copy.row.node)]
        if asked_lately(leaving, now) or not self.recovery.may_place(item):
            return False
        item.asked, item.asked_at = self._news, now
        return True

    async def _lacks(self, item: Deployed) -> bool:
        """Release what is over; whether copies are missing."""
        await self._release(item, [copy for copy in item.copies if self._is_over(item, copy)])
        await self._release(item, self._surplus(item))
        if item.nominated is not None:
            await self._placer.succeed(item, item.nominated)
        ready, staying = item.ready(self.fleet), self._placer.staying(item)
        if len(ready) <= item.demand.replicas:
            item.stay()
        if ready and item.refusal is not None:
            item.refusal = None
            self._changed([item.row.name], NOBODY)
        if len(staying) >= item.demand.replicas:
            item.bereft = False
            return False
        return item.nominated is None

    def _is_settled(self, item: Deployed) -> bool:
        staying = self._placer.staying(item)
        return len(staying) == len(item.copies) == item.demand.replicas and not any(copy.leaving for copy in staying)

    async def move(self, move: Move) -> bool:
        """Place a copy anew elsewhere; the old one goes once the new one serves. Whether that was begun."""
        async with self._lock:
            item = self._deployed.get(move.deployment)
            return item is not None and await self._placer.move(item, move)

    def movable(self, allowed: Callable[[DeploymentRow], bool]) -> list[Movable]:
        """What of the allowed deployments may move: those all of whose copies serve."""
        return [
            Movable(item.row.name, item.demand, item.variants, tuple((c.row.node, c.row.variant) for c in item.copies))
            for item in self.all()
            if allowed(item.row) and item.copies and len(item.copies) == item.demand.replicas
            if len(item.serving(self.fleet)) == len(item.copies)
        ]

    def _is_over(self, item: Deployed, copy: Copy) -> bool:
        state, variant = self.fleet.get(copy.row.node), item.variant(copy.row.variant)
        if copy.state == cluster.FAILED or state is None or variant is None:
            return True
        if state.state == DEAD:
            return self.recovery.is_gone(copy.row.node)
        if self.holds.over(copy.row.node, self._clock.now()):
            return True
        if copy.gives_way and self._clock.monotonic() >= copy.gives_way:
            return True
        # Where data may go is checked again for every copy, however it came to be there.
        return state.state == READY and bool(forbidden(item.demand, cluster.place_of(state), variant))

    def _surplus(self, item: Deployed) -> list[Copy]:
        """Copies beyond what is wanted: those that leave, then the newest: a node came back, its substitute goes."""
        serving = sorted(item.serving(self.fleet), key=lambda c: c.leaving or self.holds.draining(c.row.node))
        return serving[item.demand.replicas :] if len(serving) > item.demand.replicas else []

    async def _release(self, item: Deployed, copies: list[Copy]) -> None:
        for copy in copies:
            await self._records.write(partial(release, row=copy.row))
            item.copies.remove(copy)
            self._stock.vacate([copy])
            self._changed([item.row.name], [copy.row.node])
            self._news += 1
