"""How a worker's silence is judged, and what the controller makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
import sqlalchemy as sa
from google.protobuf import empty_pb2

from sealane.clock import ManualClock
from sealane.errors import Aborted, InvalidArgument, NotFound
from sealane.records import tables
from sealane.records.database import Database
from sealane.records.tables import Actor
from sealane.records.transactions import Transactions
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.registry.v1 import variant_service_pb2 as variant_pb
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane_scheduler import cluster, present, routes
from sealane_scheduler.cluster import Copy
from sealane_scheduler.controller import Controller
from sealane_scheduler.creation import Creation
from sealane_scheduler.fleet import DEAD, READY, SUSPECT, Facts, Fleet, Patience, RuntimeFacts
from sealane_scheduler.recovery import RECONNECT_SECONDS, SUBSTITUTE_SECONDS
from sealane_scheduler.store import DeploymentRow, PlacementRow, Store
from sealane_scheduler.store_sql import SqlStore, metadata

VERSION = model_pb.Version(
    name="projects/p/models/m/versions/1",
    number=1,
    variants=[
        variant_pb.Variant(
            name="projects/p/models/m/versions/1/variants/litert",
            format=variant_pb.FORMAT_LITERT,
            digest="sha256:1",
            size_bytes=1000,
        )
    ],
)


def facts(tier: str, zone: str, clearance: str = "restricted") -> Facts:
    attributes = {"tier": tier, "zone": zone, "clearance": clearance, "region": "", "pool": ""}
    return Facts(attributes, runtimes={"litert": RuntimeFacts("2", ("LITERT",))}, cpu_milli=2000, memory_bytes=8 << 30)


def row(deployment: str, **demand: object) -> DeploymentRow:
    message = pb.Demand(**demand)  # type: ignore[arg-type]
    return DeploymentRow(
        "p", deployment, VERSION.name, message.SerializeToString(), VERSION.SerializeToString(), 0.0, 0.0, "e"
    )


A = row("a", data_class=pb.DATA_CLASS_RESTRICTED, residency=["site-a"])
B = row("b", tier_preference=pb.TIER_PREFERENCE_EDGE)


def create_tables(connection: sa.Connection) -> None:
    metadata.create_all(connection)
    tables.metadata.create_all(connection)


class World:
    """A controller on a real database, with a clock that is moved by hand."""

    def __init__(self, path: Path, clock: ManualClock) -> None:
        self.clock = clock
        self.database = Database.at(path / "s.db")
        self.database.start(create_tables)
        self.records: Transactions[Store] = Transactions(self.database, SqlStore, clock)
        self.restart()

    def restart(self) -> None:
        self.fleet = Fleet(self.clock, Patience())
        self.controller = Controller(self.records, self.fleet, self.clock)

    async def create(self, deployment: DeploymentRow) -> None:
        await self.add(deployment)
        await self.settle()

    async def add(self, *rows: DeploymentRow) -> None:
        """Created in one commit, and placed."""
        await self.controller.create(Creation(rows, Actor("s", "p"), lambda bindings: empty_pb2.Empty()))

    async def settle(self) -> None:
        await self.controller.round()

    def serve(self) -> None:
        """Every node reports its copies as serving."""
        for item in self.controller.all():
            for copy in item.copies:
                self.controller.report(copy.row.node, item.row.name, Copy(copy.row, cluster.SERVING))

    def nodes(self, name: str) -> list[str]:
        item = self.controller.get(f"projects/p/deployments/{name}")
        assert item is not None
        return [copy.row.node for copy in item.copies]

    def endpoints(self, name: str) -> list[str]:
        item = self.controller.get(f"projects/p/deployments/{name}")
        assert item is not None
        return [endpoint.node for endpoint in routes.route(item, self.fleet).endpoints]

    def constraint(self, name: str) -> str:
        item = self.controller.get(f"projects/p/deployments/{name}")
        assert item is not None
        return routes.route(item, self.fleet).binding_constraint


def join_two(world: World) -> None:
    """One worker at the edge, and one in the cloud."""
    world.fleet.connect("edge-1", facts("edge", "site-a"), "")
    world.fleet.connect("cloud-1", facts("cloud", "eu-1"), "")


def two_nodes(path: Path) -> World:
    """A controller with both, and its database in a folder."""
    made = World(path, ManualClock())
    join_two(made)
    return made


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, ManualClock())
    made.fleet.connect("cloud-1", facts("cloud", "eu-1", "internal"), "")
    made.edge = made.fleet.connect("edge-1", facts("edge", "site-a"), "")  # type: ignore[attr-defined]
    yield made
    made.database.close()


async def deployed(world: World) -> None:
    await world.create(A)
    await world.create(B)
    world.serve()
    assert world.endpoints("a") == world.endpoints("b") == ["edge-1"]


def alive(world: World) -> None:
    for node in ("cloud-1", "edge-1"):
        world.fleet.heartbeat(node, None, "")


async def test_a_broken_stream_stops_routes_at_once_and_moves_work_after_a_moment(world: World) -> None:
    await deployed(world)
    world.fleet.disconnect("edge-1", world.edge)  # type: ignore[attr-defined]
    await world.settle()
    assert world.endpoints("a") == world.endpoints("b") == []
    assert world.nodes("b") == ["edge-1"]
    assert world.constraint("a") == ""  # it may come back: callers wait
    world.clock.advance(SUBSTITUTE_SECONDS + 0.01)
    world.fleet.heartbeat("cloud-1", None, "")
    await world.settle()
    assert world.nodes("b") == ["edge-1", "cloud-1"]
    assert world.nodes("a") == ["edge-1"]
    assert world.constraint("a") == "residency"
    world.serve()
    assert world.endpoints("b") == ["cloud-1"]


async def test_work_of_an_evicted_node_goes_elsewhere_without_waiting(world: World) -> None:
    await deployed(world)
    world.fleet.disconnect("edge-1", world.edge, evicted=True)  # type: ignore[attr-defined]
    assert next(state.state for state in world.fleet if state.node == "edge-1") == DEAD
    for _ in range(2):
        world.fleet.heartbeat("cloud-1", None, "")
        await world.settle()
        world.serve()
    assert world.endpoints("b") == ["cloud-1"]
    world.fleet.connect("edge-1", facts("edge", "site-a"), "")  # a join token let it back
    assert next(state.state for state in world.fleet if state.node == "edge-1") == READY


async def test_a_node_that_comes_back_is_not_restarted_and_its_substitute_goes(world: World) -> None:
    await deployed(world)
    world.fleet.disconnect("edge-1", world.edge)  # type: ignore[attr-defined]
    world.clock.advance(SUBSTITUTE_SECONDS + 0.01)
    world.fleet.heartbeat("cloud-1", None, "")
    await world.settle()
    world.serve()
    world.fleet.connect("edge-1", facts("edge", "site-a"), "")
    await world.settle()
    world.serve()
    await world.settle()
    assert world.endpoints("a") == world.endpoints("b") == ["edge-1"]
    assert world.nodes("b") == ["edge-1"]


async def test_a_blink_moves_nothing(world: World) -> None:
    await deployed(world)
    world.fleet.disconnect("edge-1", world.edge)  # type: ignore[attr-defined]
    world.clock.advance(SUBSTITUTE_SECONDS / 2)
    await world.settle()
    world.fleet.connect("edge-1", facts("edge", "site-a"), "")
    await world.settle()
    assert world.endpoints("b") == ["edge-1"] and world.nodes("b") == ["edge-1"]


async def test_silence_is_suspicion_then_death(world: World) -> None:
    state = world.fleet.get("cloud-1")
    assert state is not None
    world.clock.advance(2.9)
    world.fleet.tick()
    assert state.state == READY
    world.clock.advance(0.2)
    world.fleet.tick()
    assert state.state == SUSPECT
    world.clock.advance(2.0)
    world.fleet.tick()
    assert state.state == DEAD


async def test_a_restarted_scheduler_moves_no_healthy_work(world: World) -> None:
    await deployed(world)
    world.restart()
    await world.controller.load()
    await world.settle()
    assert world.nodes("a") == world.nodes("b") == ["edge-1"]
    world.clock.advance(RECONNECT_SECONDS - 0.1)
    world.fleet.connect("cloud-1", facts("cloud", "eu-1", "internal"), "")
    world.fleet.connect("edge-1", facts("edge", "site-a"), "")
    await world.settle()
    world.serve()
    assert world.endpoints("a") == world.endpoints("b") == ["edge-1"]


async def test_a_node_that_cannot_load_is_avoided_and_the_next_one_takes_it(world: World) -> None:
    await world.create(B)
    item = world.controller.get(B.name)
    assert item is not None
    first = item.copies[0]
    world.controller.report(first.row.node, B.name, Copy(first.row, cluster.FAILED, "no memory"))
    await world.settle()
    assert world.nodes("b") == ["cloud-1"]


async def test_a_stale_epoch_changes_nothing(world: World) -> None:
    await world.create(B)
    item = world.controller.get(B.name)
    assert item is not None
    stale = Copy(item.copies[0].row.__class__("", "", 99, "edge-1", ""), cluster.SERVING)
    world.controller.report("edge-1", B.name, stale)
    assert item.copies[0].state == cluster.PREPARING


async def test_epochs_grow_even_over_a_deletion(world: World) -> None:
    await world.create(B)
    item = world.controller.get(B.name)
    assert item is not None
    first = item.copies[0].row.epoch
    await world.controller.delete(B.name, "", lambda store: store.drop_deployment("p", "b"))
    await world.create(B)
    item = world.controller.get(B.name)
    assert item is not None and item.copies[0].row.epoch > first


async def test_changes_wake_who_waits(world: World) -> None:
    revision = world.controller.changes.revision
    waiter = asyncio.create_task(world.controller.changes.after(revision, 5.0))
    await asyncio.sleep(0)
    world.controller.changes.announce()
    assert await waiter
    assert not await world.controller.changes.after(world.controller.changes.revision, 0.01)


async def test_a_second_loss_waits_again_before_it_refuses(world: World) -> None:
    await deployed(world)
    for _ in range(2):
        session = world.fleet.get("edge-1").session  # type: ignore[union-attr]
        world.fleet.disconnect("edge-1", session)
        await world.settle()
        assert world.constraint("a") == ""  # it may come back
        world.clock.advance(SUBSTITUTE_SECONDS + 0.01)
        world.fleet.heartbeat("cloud-1", None, "")
        await world.settle()
        assert world.constraint("a") == "residency"
        world.fleet.connect("edge-1", facts("edge", "site-a"), "")
        await world.settle()
        world.serve()
        assert world.endpoints("a") == ["edge-1"]


async def test_a_decision_is_told_after_a_restart_too(world: World) -> None:
    await deployed(world)
    world.restart()
    await world.controller.load()
    item = world.controller.get(A.name)
    assert item is not None
    assert present.deployment(item, world.fleet).decision.node == "nodes/edge-1"


async def test_more_copies_than_nodes_serve_with_what_there_is(world: World) -> None:
    await world.create(row("c", replicas=3))
    for _ in range(3):
        world.serve()
        await world.settle()
    assert sorted(world.nodes("c")) == ["cloud-1", "edge-1"]
    assert sorted(world.endpoints("c")) == ["cloud-1", "edge-1"]
    assert world.constraint("c") == ""


async def test_a_delete_and_a_placement_leave_no_orphan(world: World) -> None:
    for _ in range(20):
        await world.add(B)
        item = world.controller.get(B.name)
        assert item is not None
        deleting = world.controller.delete(B.name, "", lambda store: store.drop_deployment("p", "b"))
        await asyncio.gather(world.controller.reconcile(item), deleting, world.controller.reconcile(item))
        assert await world.records.read(lambda store: store.placements()) == []
    with pytest.raises(NotFound):
        await world.controller.delete(B.name, "", lambda store: store.drop_deployment("p", "b"))
    await world.create(B)
    with pytest.raises(Aborted):
        await world.controller.delete(B.name, "stale", lambda store: store.drop_deployment("p", "b"))


async def test_a_copy_where_its_data_may_not_be_is_released_however_it_came_there(world: World) -> None:
    await world.create(A)
    await world.records.write(lambda store: store.bind([PlacementRow("p", "a", 0, "cloud-1", "litert")]))
    world.restart()
    await world.controller.load()
    for node, tier, zone, clearance in (
        ("cloud-1", "cloud", "eu-1", "internal"),
        ("edge-1", "edge", "site-a", "restricted"),
    ):
        world.fleet.connect(node, facts(tier, zone, clearance), "")
    await world.settle()
    world.serve()
    await world.settle()
    assert world.nodes("a") == world.endpoints("a") == ["edge-1"]


async def test_an_unknown_format_stops_nothing(world: World) -> None:
    version = model_pb.Version.FromString(B.version)
    version.variants[0].format = 99  # type: ignore[assignment]
    strange = replace(row("strange"), version=version.SerializeToString())
    await world.create(strange)
    assert world.constraint("strange") == "runtime"
    world.restart()
    await world.controller.load()
    assert world.controller.get(strange.name) is not None


STRANGE = {
    "nan": {"latency_ms": float("nan")},
    "infinite": {"max_price_per_hour": float("inf")},
    "negative": {"memory_bytes": -1},
    "enum": {"data_class": 99},
    "format": {"formats": [99]},
    "restricted nowhere": {"data_class": pb.DATA_CLASS_RESTRICTED},
}


@pytest.mark.parametrize("demand", STRANGE.values(), ids=STRANGE)
def test_a_strange_demand_is_refused(demand: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        present.demand(pb.Demand(**demand))  # type: ignore[arg-type]


async def test_a_newer_stream_supersedes_the_older(world: World) -> None:
    old = world.fleet.connect("edge-1", facts("edge", "site-a"), "")
    new = world.fleet.connect("edge-1", facts("edge", "site-a"), "")
    assert not world.fleet.holds("edge-1", old) and world.fleet.holds("edge-1", new)
    assert not world.fleet.disconnect("edge-1", old)
    assert world.fleet.get("edge-1").state == READY  # type: ignore[union-attr]
