"""Whose place is taken for what fits nowhere: who agreed to it, and as little as possible."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from test_batches import MODEL, node
from test_fleet import World, facts, row

from sealane.clock import ManualClock
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane_scheduler import present, replay
from sealane_scheduler.columns import NodeTable
from sealane_scheduler.filters import Demand, NodeView, cpu_of, memory_of
from sealane_scheduler.placer import GRACE_SECONDS
from sealane_scheduler.preemption import Holding, Preemption, preempt
from sealane_scheduler.scan import Question

ROOM = memory_of(Demand(), MODEL), cpu_of(Demand())


def held(name: str, priority: int = 0, served: float = 10.0, copies: int = 1) -> Holding:
    return Holding(name, 1, priority, ROOM[0] * copies, ROOM[1] * copies, served)


def ask(nodes: list[NodeView], holdings: dict[str, list[Holding]], **demand: object) -> Preemption | None:
    question = Question(Demand(priority=5, **demand), (MODEL,))  # type: ignore[arg-type]
    return preempt(question, NodeTable(nodes).snapshot(), lambda name: holdings.get(name, []))


def names(found: Preemption | None) -> list[str]:
    assert found is not None
    return [item.deployment for item in found.victims]


def test_the_lowest_priority_goes_then_the_fewest_then_the_youngest() -> None:
    full = [node(name, copies=0) for name in ("a", "b", "c")]
    assert names(ask(full, {"a": [held("high", 3)], "b": [held("low", 1)], "c": [held("middle", 2)]})) == ["low"]
    small = Holding("half", 1, 1, ROOM[0] // 2 + 1, ROOM[1] // 2 + 1, 1.0)
    assert names(ask(full, {"a": [small, small], "b": [held("whole", 1, served=99.0)]})) == ["whole"]
    assert names(ask(full, {"a": [held("old", 1, 50.0)], "b": [held("young", 1, 5.0)]})) == ["young"]


def test_equals_and_betters_stay() -> None:
    assert ask([node("a", copies=0)], {"a": [held("equal", 5), held("better", 9)]}) is None


def test_who_is_not_needed_stays() -> None:
    small = Holding("small", 1, 0, ROOM[0] // 4, ROOM[1] // 4, 1.0)
    found = ask([node("a", copies=0)], {"a": [small, held("enough", 1)]})
    assert names(found) == ["enough"]


def test_nobody_goes_where_another_filter_fails_or_room_would_still_lack() -> None:
    assert ask([node("a", copies=0)], {"a": [held("x")]}, residency=("elsewhere",)) is None
    assert ask([node("a", copies=0)], {"a": [held("x")]}, cpu_milli=ROOM[1] * 2) is None


def test_what_was_decided_is_made_again_from_what_is_kept() -> None:
    found = ask([node("a", copies=0)], {"a": [held("projects/p/deployments/x")]})
    assert found is not None and found.decision.reasons[0].startswith("takes the place of x, of lower priority")
    assert replay.replay(replay.record(found.basis)) == found.decision


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, ManualClock())
    made.fleet.connect("edge-1", facts("edge", "site-a"), "")
    yield made
    made.database.close()


async def settle(world: World) -> None:
    for state in world.fleet:
        if state.session:
            world.fleet.heartbeat(state.node, None, "")
    await world.settle()


async def test_a_deployment_takes_the_place_of_one_of_lower_priority_after_its_grace(world: World) -> None:
    await world.create(row("low", preemptible=True, cpu_milli=1500))
    await world.create(row("kept", cpu_milli=400))
    world.serve()
    await world.create(row("high", priority=5, cpu_milli=1500))
    high, low = world.controller.get(row("high").name), world.controller.get(row("low").name)
    assert high is not None and low is not None
    assert world.nodes("high") == [] and world.endpoints("low") == ["edge-1"]  # it serves while it is told
    message = present.deployment(high, world.fleet)
    assert message.decision.reasons[0] == "takes the place of low, of lower priority: nothing else had room"
    assert message.state == pb.Deployment.STATE_PENDING
    assert "gives its place to projects/p/deployments/high" in low.copies[0].message
    await world.create(row("third", cpu_milli=1500))
    assert world.nodes("third") == []  # the room that becomes free is kept
    world.clock.advance(GRACE_SECONDS + 0.1)
    await settle(world)
    await settle(world)
    assert (world.nodes("high"), world.nodes("low"), world.nodes("kept")) == (["edge-1"], [], ["edge-1"])
    assert world.constraint("low") == "cpu"
    kept = await world.records.read(lambda store: store.decisions("p", "high"))
    assert replay.replay(pb.Decision.FromString(kept[0].content).record).node == "edge-1"


async def test_who_gives_way_is_placed_elsewhere_first_where_something_fits(world: World) -> None:
    await world.create(row("low", preemptible=True, cpu_milli=1500))
    world.serve()
    world.fleet.connect("cloud-1", facts("cloud", "eu-1"), "")
    await world.create(row("high", priority=5, cpu_milli=1500, residency=["site-a"]))
    await settle(world)
    assert sorted(world.nodes("low")) == ["cloud-1", "edge-1"]
    world.serve()
    await settle(world)
    await settle(world)
    assert world.endpoints("low") == ["cloud-1"]  # at once: the grace is for who has nowhere to go
    assert world.nodes("high") == ["edge-1"]


async def test_further_copies_take_places_too_one_after_the_other(world: World) -> None:
    for name in ("cloud-1", "cloud-2"):
        world.fleet.connect(name, facts("cloud", "eu-1"), "")
    for name in ("low", "lower"):
        await world.create(row(name, preemptible=True, cpu_milli=1500, tier_preference=pb.TIER_PREFERENCE_CLOUD))
    world.serve()
    await world.create(row("high", priority=5, cpu_milli=1500, replicas=3))
    assert world.nodes("high") == ["edge-1"]
    world.serve()
    for _ in range(3):
        await settle(world)
        world.clock.advance(GRACE_SECONDS + 0.1)
        await settle(world)
        await settle(world)
        assert world.endpoints("high"), "it serves meanwhile with what it has"
        world.serve()
    assert sorted(world.nodes("high")) == ["cloud-1", "cloud-2", "edge-1"]
    assert world.nodes("low") == world.nodes("lower") == []


async def test_nobody_gives_way_who_did_not_agree(world: World) -> None:
    await world.create(row("low", cpu_milli=1500))
    world.serve()
    await world.create(row("high", priority=5, cpu_milli=1500))
    world.clock.advance(GRACE_SECONDS + 1)
    await settle(world)
    assert world.endpoints("low") == ["edge-1"] and world.constraint("high") == "cpu"


async def test_who_was_to_leave_stays_where_nobody_comes_any_more(world: World) -> None:
    await world.create(row("low", preemptible=True, cpu_milli=1500))
    world.serve()
    await world.create(row("high", priority=5, cpu_milli=1500))
    name = row("high").name
    await world.controller.delete(name, "", lambda store: store.drop_deployment("p", "high"))
    world.clock.advance(GRACE_SECONDS + 1)
    await settle(world)
    assert world.endpoints("low") == ["edge-1"]
    low = world.controller.get(row("low").name)
    assert low is not None and not low.copies[0].message and not low.copies[0].leaving


async def test_a_place_that_is_kept_is_given_back_with_its_deployment_or_its_node(world: World) -> None:
    await world.create(row("low", preemptible=True, cpu_milli=1500))
    world.serve()
    await world.create(row("high", priority=5, cpu_milli=1500))
    before = {item.node: item.free_cpu_milli for item in world.controller.nodes()}
    assert before["edge-1"] < 0
    name = row("high").name
    await world.controller.delete(name, "", lambda store: store.drop_deployment("p", "high"))
    assert world.controller.nodes()[0].free_cpu_milli == 500
    await world.create(row("again", priority=5, cpu_milli=1500))
    world.fleet.disconnect("edge-1", world.fleet.get("edge-1").session, evicted=True)  # type: ignore[union-attr]
    await world.settle()
    item = world.controller.get(row("again").name)
    assert item is not None and item.nominated is None
