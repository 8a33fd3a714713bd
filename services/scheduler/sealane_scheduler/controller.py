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

from sealane.clock import Clock
from sealane.errors import Aborted, NotFound, SealaneError
from sealane.failpoint import failpoint
from sealane.records.tables import Actor
from sealane.records.transactions import Transactions
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane_scheduler import cluster, present
from sealane_scheduler.changes import Changes
from sealane_scheduler.cluster import Copy, Deployed
from sealane_scheduler.filters import NodeView, forbidden
from sealane_scheduler.fleet import DEAD, READY, Fleet
from sealane_scheduler.placement import Decision, place
from sealane_scheduler.store import DecisionRow, DeploymentRow, PlacementRow, Store

log = logging.getLogger("sealane.controller")

TICK_SECONDS = 0.1
#: A stream that broke and did not come back within this time gets its work substituted.
SUBSTITUTE_SECONDS = 0.5
#: After a restart of the scheduler nodes get this long to come back before they count as lost.
RECONNECT_SECONDS = 5.0
#: A variant that a node could not load is not tried there again for this long.
AVOID_SECONDS = 30.0


class Controller:
    """The cluster and the loop that keeps it."""

    def __init__(self, records: Transactions[Store], fleet: Fleet, clock: Clock) -> None:
        self._records = records
        self._clock = clock
        self.fleet = fleet
        self.changes = Changes(int(clock.now() * 1000))
        self._deployed: dict[str, Deployed] = {}
        self._avoid: dict[tuple[str, str], float] = {}
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
            item.copies.append(Copy(placement))
            self.fleet.expect(placement.node, RECONNECT_SECONDS)
        for item in self._deployed.values():
            item.placed = await self._records.read(partial(_last_place, row=item.row))

    def get(self, name: str) -> Deployed | None:
        """A deployment by its resource name."""
        return self._deployed.get(name)

    def all(self) -> Iterable[Deployed]:
        """All deployments, by name."""
        return [self._deployed[name] for name in sorted(self._deployed)]

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
        self.changes.announce()

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
        self.changes.announce()

    async def refresh(self, version: model_pb.Version) -> None:
        """A version has new variants, measurements or signatures, or is judged otherwise: later decisions see it."""
        async with self._lock:
            for item in self.all():
                if item.row.model_version != version.name or model_pb.Version.FromString(item.row.version) == version:
                    continue
                row = replace(item.row, version=version.SerializeToString())
                await self._records.write(partial(_put, row=row))
                item.row, item.variants = row, present.variants(version)
                self.changes.announce()
        self.wake()

    def nodes(self) -> list[NodeView]:
        """The nodes as a decision sees them now."""
        return cluster.views(self.fleet, self._deployed.values(), self._avoid)

    def plan(self, demand: pb.Demand, version: model_pb.Version) -> Decision:
        """What would be decided now."""
        return place(present.demand(demand), self.nodes(), present.variants(version))

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
        if copy.state == cluster.FAILED:
            self._avoid[node, known.row.variant] = self._clock.monotonic()
        self.changes.announce()
        self.wake()

    async def run(self) -> None:
        """Keep the cluster until cancelled."""
        while True:
            self._wake.clear()
            if self.fleet.tick():
                self.changes.announce()
            try:
                for item in list(self._deployed.values()):
                    await self.reconcile(item)
            except SealaneError as error:
                log.warning("a decision was not recorded, trying again", extra={"reason": error.reason})
            try:
                async with asyncio.timeout(TICK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def reconcile(self, item: Deployed) -> None:
        """Bring one deployment nearer to what it wants: release what is over, place what is missing."""
        async with self._lock:
            if self._deployed.get(item.row.name) is not item:
                return
            self._forget_old_failures()
            await self._release(item, [copy for copy in item.copies if self._is_over(item, copy)])
            await self._release(item, self._surplus(item))
            ready = item.ready(self.fleet)
            if ready and item.refusal is not None:
                item.refusal = None
                self.changes.announce()
            if len(ready) < item.demand.replicas and not self._may_come_back(item):
                await self._place(item)

    def _is_over(self, item: Deployed, copy: Copy) -> bool:
        state, variant = self.fleet.get(copy.row.node), item.variant(copy.row.variant)
        if copy.state == cluster.FAILED or state is None or state.state == DEAD or variant is None:
            return True
        # Where data may go is checked again for every copy, however it came to be there.
        return state.state == READY and bool(forbidden(item.demand, cluster.place_of(state), variant))

    def _surplus(self, item: Deployed) -> list[Copy]:
        """Copies beyond what is wanted, newest first: a node that came back serves again, its substitute goes."""
        serving = item.serving(self.fleet)
        return serving[item.demand.replicas :] if len(serving) > item.demand.replicas else []

    def _may_come_back(self, item: Deployed) -> bool:
        waits = [self.fleet.absent_for(copy.row.node) for copy in item.copies if not self._is_ready(copy)]
        return any(wait < SUBSTITUTE_SECONDS for wait in waits)

    def _is_ready(self, copy: Copy) -> bool:
        state = self.fleet.get(copy.row.node)
        return state is not None and state.state == READY

    async def _place(self, item: Deployed) -> None:
        nodes = self.nodes()
        taken = {copy.row.node for copy in item.ready(self.fleet)}
        free = [node for node in nodes if node.node not in taken]
        decision = place(item.demand, free, item.variants)
        if not decision.node:
            if taken:
                return  # it serves, with fewer copies than wanted
            if item.refusal is None or item.refusal.unavailable_reason != decision.unavailable_reason:
                item.refused = await self._note(item, decision, 0)
                item.refusal = decision
                self.changes.announce()
            return
        row = item.row
        wanted = PlacementRow(row.project, row.deployment, 0, decision.node, decision.variant)
        epoch = await self._records.write(partial(_bind, row=wanted))
        failpoint("scheduler.bind.committed")
        item.copies.append(Copy(replace(wanted, epoch=epoch)))
        item.placed, item.refusal = await self._note(item, decision, epoch), None
        self.changes.announce()

    async def _note(self, item: Deployed, decision: Decision, epoch: int) -> bytes:
        now, row = self._clock.now(), item.row
        content = present.decision(decision, epoch, now).SerializeToString()
        note = DecisionRow(row.project, row.deployment, now, content)
        await self._records.write(lambda store: store.add_decision(note))
        return content

    async def _release(self, item: Deployed, copies: list[Copy]) -> None:
        for copy in copies:
            await self._records.write(partial(_release, row=copy.row))
            item.copies.remove(copy)
            self.changes.announce()

    def _forget_old_failures(self) -> None:
        now = self._clock.monotonic()
        self._avoid = {key: since for key, since in self._avoid.items() if now - since < AVOID_SECONDS}


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
    told = [decision.content for decision in store.decisions(row.project, row.deployment, 50)]
    return next((content for content in told if pb.Decision.FromString(content).node), b"")
