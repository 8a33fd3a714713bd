"""What is kept of decisions, who is told of it, and what a plan says; on a real database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytest_asyncio
from test_fleet import VERSION, World, facts, row

from sealane.clock import ManualClock
from sealane.errors import InvalidArgument
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane.scheduler.v1 import placement_service_pb2 as placement_pb
from sealane_scheduler import cluster, present, replay
from sealane_scheduler.cluster import Copy
from sealane_scheduler.placement_servicer import PlacementServicer
from sealane_scheduler.stock import Stock
from sealane_scheduler.store import KEPT_DECISIONS, DecisionRow, Store

DEPLOYMENT = "projects/p/deployments/d"


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, ManualClock())
    made.fleet.connect("cloud-1", facts("cloud", "eu-1", "internal"), "")
    made.fleet.connect("edge-1", facts("edge", "site-a"), "")
    yield made
    made.database.close()


def servicer(world: World) -> PlacementServicer:
    registry = SimpleNamespace(version=lambda name: VERSION)
    return PlacementServicer(world.records, world.controller, registry, world.clock)  # type: ignore[arg-type]


def call(*scopes: str) -> SimpleNamespace:
    return SimpleNamespace(caller=SimpleNamespace(scopes=frozenset(scopes), models={}))


async def explained(world: World, *scopes: str) -> list[pb.Decision]:
    request = placement_pb.ExplainRequest(deployment=DEPLOYMENT)
    return list((await servicer(world).Explain(request, call(*scopes))).decisions)  # type: ignore[arg-type]


async def test_a_decision_that_was_kept_is_made_again_from_what_was_kept_with_it(world: World) -> None:
    await world.create(row("d", tier_preference=pb.TIER_PREFERENCE_EDGE, latency_ms=50))
    world.serve()
    world.fleet.disconnect("edge-1", world.fleet.get("edge-1").session, evicted=True)  # type: ignore[union-attr]
    await world.settle()
    await world.create(row("other", accelerator="gpu"))
    kept = await explained(world, "models:read", "nodes:read")
    assert [decision.node for decision in kept] == ["nodes/cloud-1", "nodes/edge-1"]
    for decision in kept:
        again = present.decision(replay.replay(decision.record), decision.epoch, 0.0)
        for message in (again, decision):
            message.ClearField("decide_time")
            message.ClearField("record")
        assert again == decision


async def test_nodes_are_told_only_to_who_may_read_them(world: World) -> None:
    await world.create(row("d"))
    assert (await explained(world, "models:read", "nodes:read"))[0].record
    assert not (await explained(world, "models:read"))[0].record
    item = world.controller.get(DEPLOYMENT)
    assert item is not None and not present.deployment(item, world.fleet).decision.record
    world.restart()
    await world.controller.load()
    item = world.controller.get(DEPLOYMENT)
    assert item is not None and not present.deployment(item, world.fleet).decision.record


async def test_a_plan_says_what_a_create_then_does(world: World) -> None:
    for node in range(5):
        world.fleet.connect(f"same-{node}", facts("cloud", "eu-2"), "")
    request = placement_pb.PlanRequest(parent="projects/p", model_version=VERSION.name, demand=pb.Demand())
    planned = await servicer(world).Plan(request, call())  # type: ignore[arg-type]
    await world.create(row("d"))
    assert [planned.node.removeprefix("nodes/")] == world.nodes("d")


async def test_a_task_is_planned_by_its_runtime(world: World) -> None:
    def planned(runtime: str, **demand: object) -> placement_pb.PlanRequest:
        wanted = pb.Demand(**demand)  # type: ignore[arg-type]
        return placement_pb.PlanRequest(parent="projects/p", runtime=runtime, demand=wanted)

    plan = servicer(world).Plan
    found = await plan(planned("litert", residency=["site-a"]), call())  # type: ignore[arg-type]
    assert (found.node, found.variant) == ("nodes/edge-1", "task")
    nowhere = await plan(planned("tensorflow"), call())  # type: ignore[arg-type]
    assert (nowhere.node, nowhere.binding_constraint) == ("", "runtime")
    assert "runtime tensorflow there" in nowhere.changes[0].text
    both = placement_pb.PlanRequest(parent="projects/p", runtime="litert", model_version=VERSION.name)
    with pytest.raises(InvalidArgument):
        await plan(both, call())  # type: ignore[arg-type]


async def test_it_goes_beside_the_deployment_that_it_names(world: World) -> None:
    world.fleet.connect("cloud-2", facts("cloud", "eu-2"), "")
    await world.create(row("first", residency=["eu-2"]))
    plain = placement_pb.PlanRequest(parent="projects/p", model_version=VERSION.name)
    plan = servicer(world).Plan
    assert (await plan(plain, call())).node != "nodes/cloud-2"  # type: ignore[arg-type]
    near = placement_pb.PlanRequest(
        parent="projects/p", model_version=VERSION.name, demand=pb.Demand(affinity=["first", "absent"])
    )
    planned = await plan(near, call())  # type: ignore[arg-type]
    assert planned.node == "nodes/cloud-2"
    assert {item.node: item.terms["affinity"] for item in planned.candidates}["nodes/cloud-1"] == 0.5
    await world.create(row("second", affinity=["first"]))
    assert world.nodes("second") == ["cloud-2"]
    with pytest.raises(InvalidArgument, match="affinity"):
        await plan(  # type: ignore[arg-type]
            placement_pb.PlanRequest(parent="projects/p", demand=pb.Demand(affinity=["Not An Id"])), call()
        )


async def test_the_higher_priority_is_placed_first(world: World) -> None:
    names = ("low", "high", "middle")
    for name, priority in zip(names, (0, 9, 5), strict=True):
        await world.create(row(name, priority=priority, residency=["site-z"], cpu_milli=1000))
    assert [world.nodes(name) for name in names] == [[], [], []]
    world.fleet.connect("small", facts("edge", "site-z"), "")
    await world.controller.round()
    assert [len(world.nodes(name)) for name in names] == [0, 1, 1]


async def test_copies_of_one_deployment_keep_apart_by_zone(world: World) -> None:
    world.fleet.connect("cloud-2", facts("cloud", "eu-1", "internal"), "")
    await world.create(row("d", replicas=3, spread_by=pb.SPREAD_BY_ZONE))
    for _ in range(3):
        world.serve()
        await world.settle()
    zones = [world.fleet.get(node).facts.attributes["zone"] for node in world.nodes("d")]  # type: ignore[union-attr]
    assert sorted(zones) == ["eu-1", "site-a"]


async def test_the_picture_of_the_nodes_is_kept_as_if_it_were_made_anew(world: World) -> None:
    def same() -> None:
        kept, fresh = world.controller.snapshot().digest, Stock(world.fleet, world.controller.holds)
        world.fleet.touched.update(state.node for state in world.fleet)
        for item in world.controller.all():
            for copy in item.copies:
                fresh.occupy(item, copy)
        assert fresh.snapshot().digest == kept

    await world.create(row("d", memory_bytes=1 << 30, cpu_milli=500))
    same()
    await world.create(row("e", tier_preference=pb.TIER_PREFERENCE_EDGE))
    world.serve()
    same()
    assert any(node.resident for node in world.controller.nodes())
    edge = world.fleet.get("edge-1")
    assert edge is not None
    world.fleet.heartbeat("edge-1", 12.0, "")
    same()
    world.fleet.disconnect("edge-1", edge.session, evicted=True)
    await world.settle()
    same()
    await world.controller.delete("projects/p/deployments/d", "", lambda store: store.drop_deployment("p", "d"))
    same()
    free = {node.node: node.free_cpu_milli for node in world.controller.nodes()}
    assert free == {"cloud-1": 1900, "edge-1": 2000}


async def test_a_refused_load_is_forgiven_after_a_while(world: World) -> None:
    await world.create(row("d"))
    item = world.controller.get(DEPLOYMENT)
    assert item is not None
    first = item.copies[0]
    world.controller.report(first.row.node, item.row.name, Copy(first.row, cluster.FAILED, "no memory"))
    avoided = {node.node: node.avoid for node in world.controller.nodes()}
    assert avoided[first.row.node] == {"litert"}
    world.clock.advance(31)
    for node in ("cloud-1", "edge-1"):
        world.fleet.heartbeat(node, None, "")
    await world.settle()
    assert not any(node.avoid for node in world.controller.nodes())


@pytest.mark.parametrize(
    "demand",
    [
        {"weights": {"luck": 1.0}},
        {"weights": {"price": -1.0}},
        {"weights": {"price": float("nan")}},
        {"priority": 1001},
        {"rate": float("inf")},
        {"spread_by": 9},
        {"precisions": [9]},
        {"response_bytes": -1},
    ],
)
def test_a_demand_that_cannot_be_is_refused(demand: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        present.demand(pb.Demand(**demand))  # type: ignore[arg-type]


async def test_a_refusal_is_kept_once_however_its_numbers_change(world: World) -> None:
    await world.create(row("d", latency_ms=1.0, request_bytes=100_000))
    for rtt in (5.0, 9.0, 14.0):
        world.fleet.heartbeat("edge-1", rtt, "")
        await world.settle()
    assert len(await explained(world)) == 1
    world.fleet.disconnect("edge-1", world.fleet.get("edge-1").session, evicted=True)  # type: ignore[union-attr]
    await world.settle()
    assert len(await explained(world)) == 2


async def test_the_newest_decisions_of_each_deployment_are_kept(world: World) -> None:
    def add(store: Store) -> tuple[list[bytes], int]:
        for number in range(KEPT_DECISIONS + 7):
            store.add_decisions([DecisionRow("p", "d", float(number), str(number).encode())])
        for _ in range(3):
            store.add_decisions([DecisionRow("p", "other", 0.0, b"one of few")])
        return [item.content for item in store.decisions("p", "d")], len(store.decisions("p", "other"))

    kept, others = await world.records.write(add)
    assert kept == [str(number).encode() for number in reversed(range(7, KEPT_DECISIONS + 7))]
    assert others == 3
