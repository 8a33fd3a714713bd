"""A better place for all copies at once: what it saves, its budget, and how copies move without a gap."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytest_asyncio
from test_fleet import World, facts, row

from sealane.clock import ManualClock
from sealane.errors import InvalidArgument
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane.scheduler.v1 import placement_service_pb2 as placement_pb
from sealane_scheduler import cluster
from sealane_scheduler.cluster import Copy
from sealane_scheduler.filters import MIB, Demand, NodeView, VariantView
from sealane_scheduler.global_plan import plan
from sealane_scheduler.moves import Movable, Move
from sealane_scheduler.placement_servicer import PlacementServicer

ONNX = {"onnxruntime": frozenset({"ONNX"})}
VARIANT = VariantView("v", "ONNX", "FLOAT32", 10 * MIB, "sha256:1", 0.9, 5.0)
NEED = (64 + 20) * MIB


def node(name: str, price: float, room: int, **more: object) -> NodeView:
    """A node with room for so many more copies."""
    plain = NodeView(name, "cloud", "a", "restricted", True, ONNX, price_per_hour=price, free_cpu_milli=100_000)
    return replace(plain, free_memory=room * NEED, **more)  # type: ignore[arg-type]


def deployment(name: str, *nodes: str, **demand: object) -> Movable:
    return Movable(name, Demand(**demand), (VARIANT,), tuple((place, "v") for place in nodes))  # type: ignore[arg-type]


def test_who_is_called_most_gets_what_is_best_for_it() -> None:
    # One room on the fast node, taken by who is hardly called; the busy one waits far away.
    near, far = node("near", 1.0, 0, rtt_ms=1.0), node("far", 1.0, 1, rtt_ms=60.0)
    idle, busy = deployment("idle", "near", rate=0.01), deployment("busy", "far", rate=100.0)
    found = plan((idle, busy), (near, far), 10, 1.0)
    assert {(move.deployment, move.source, move.target) for move in found.moves} == {
        ("idle", "near", "far"),
        ("busy", "far", "near"),
    }
    assert found.planned < found.cost and found.gap < 0.01
    assert sum(move.saves for move in found.moves) == pytest.approx(found.cost - found.planned)


def test_no_more_moves_than_are_allowed_and_the_best_of_them() -> None:
    nodes = [node("dear-1", 9.0, 0), node("dear-2", 5.0, 0), node("cheap", 0.1, 2)]
    two = (deployment("a", "dear-1"), deployment("b", "dear-2"))
    assert [move.deployment for move in plan(two, nodes, 10, 1.0).moves] == ["a", "b"]
    (only,) = plan(two, nodes, 1, 1.0).moves
    assert (only.deployment, only.target) == ("a", "cheap")


def test_what_stands_well_stays_and_nothing_is_no_plan() -> None:
    nodes = [node("cheap", 0.1, 0), node("dear", 9.0, 5)]
    found = plan((deployment("a", "cheap"),), nodes, 10, 1.0)
    assert found.moves == () and found.planned == found.cost
    assert plan((), nodes, 10, 1.0).moves == ()


def test_copies_keep_apart_and_to_where_their_data_may_be() -> None:
    nodes = [
        node("dear-1", 9.0, 0),
        node("dear-2", 9.0, 0, zone="b"),
        node("cheap", 0.1, 5),
        node("low", 0.05, 5, clearance="public"),
    ]
    found = plan((deployment("a", "dear-1", "dear-2", spread="zone", data_class="restricted"),), nodes, 10, 1.0)
    (move,) = found.moves
    assert (move.source, move.target) == ("dear-1", "cheap")


def test_a_copy_where_it_may_not_be_moves_first() -> None:
    nodes = [node("slow", 0.1, 0, rtt_ms=500.0), node("dear-1", 9.0, 0), node("cheap", 1.0, 2)]
    both = (deployment("late", "slow", latency_ms=50.0), deployment("b", "dear-1"))
    (move,) = plan(both, nodes, 1, 1.0).moves
    assert (move.deployment, move.target) == ("late", "cheap")


CALL = SimpleNamespace(
    caller=SimpleNamespace(may_use=lambda permission, model: True),
    method=SimpleNamespace(access=SimpleNamespace(permission="deploy")),
)


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, ManualClock())
    dear = replace(facts("cloud", "eu-1", "internal"), price_per_hour=9.0)
    made.fleet.connect("dear", dear, "")
    await made.create(row("d"))
    made.serve()
    made.fleet.connect("cheap", replace(dear, price_per_hour=0.1), "")
    yield made
    made.database.close()


async def optimized(world: World, **request: object) -> placement_pb.OptimizeResponse:
    servicer = PlacementServicer(world.records, world.controller, SimpleNamespace(), world.clock)  # type: ignore[arg-type]
    asked = placement_pb.OptimizeRequest(parent="projects/p", **request)  # type: ignore[arg-type]
    return await servicer.Optimize(asked, CALL)  # type: ignore[arg-type]


async def test_who_may_not_deploy_a_model_does_not_move_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CALL.caller, "may_use", lambda permission, model: model != "m")
    found = await optimized(world, apply=True)
    assert found.copies == 0 and world.nodes("d") == ["dear"]


async def test_a_dry_run_moves_nothing(world: World) -> None:
    found = await optimized(world)
    (move,) = found.moves
    assert (move.source, move.target, move.applied) == ("nodes/dear", "nodes/cheap", False)
    assert move.saves == pytest.approx(found.cost - found.planned_cost) and move.saves > 0
    await world.settle()
    assert world.nodes("d") == ["dear"]
    with pytest.raises(InvalidArgument):
        await optimized(world, max_moves=1001)


async def test_the_old_copy_stops_only_once_the_new_one_serves(world: World) -> None:
    found = await optimized(world, apply=True)
    assert found.moves[0].applied
    await world.settle()
    assert world.nodes("d") == ["dear", "cheap"] and world.endpoints("d") == ["dear"]
    world.serve()
    assert set(world.endpoints("d")) == {"dear", "cheap"}
    await world.settle()
    assert world.nodes("d") == world.endpoints("d") == ["cheap"]
    item = world.controller.get("projects/p/deployments/d")
    assert item is not None
    decision = pb.Decision.FromString(item.placed)
    assert decision.node == "nodes/cheap" and decision.reasons[0].startswith("moved from dear, which saves ")
    assert not (await optimized(world)).moves


async def test_a_move_that_fails_leaves_the_copy_where_it_was(world: World) -> None:
    await optimized(world, apply=True)
    item = world.controller.get("projects/p/deployments/d")
    assert item is not None
    new = next(copy for copy in item.copies if copy.row.node == "cheap")
    world.controller.report("cheap", item.row.name, Copy(new.row, cluster.FAILED, "no memory"))
    await world.settle()
    assert world.nodes("d") == world.endpoints("d") == ["dear"]
    assert not item.copies[0].leaving
    assert not (await optimized(world)).moves, "the node that failed is avoided"


async def test_a_move_that_fits_no_more_is_not_begun(world: World) -> None:
    gone = Move("projects/p/deployments/d", "dear", "nobody", "litert", 1.0)
    assert not await world.controller.move(gone)
    assert not await world.controller.move(replace(gone, source="cheap", target="dear"))
    await world.create(row("big", memory_bytes=8 << 30))
    assert not await world.controller.move(replace(gone, deployment="projects/p/deployments/none", target="cheap"))
    world.fleet.disconnect("cheap", world.fleet.get("cheap").session)  # type: ignore[union-attr]
    assert not await world.controller.move(replace(gone, target="cheap"))
    assert world.nodes("d") == ["dear"]
