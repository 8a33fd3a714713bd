"""PlacementService.Place: many deployments in one commit, on a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytest_asyncio
from test_fleet import VERSION, World, row, two_nodes

from sealane.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane.scheduler.v1 import placement_service_pb2 as placement_pb
from sealane_scheduler.placement_servicer import MOST_ITEMS, PlacementServicer

Item = placement_pb.PlaceRequest.Item


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = two_nodes(tmp_path)
    yield made
    made.database.close()


class Registry:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def version(self, name: str) -> object:
        self.asked.append(name)
        return VERSION


def servicer(world: World, registry: Registry | None = None) -> PlacementServicer:
    return PlacementServicer(world.records, world.controller, registry or Registry(), world.clock)  # type: ignore[arg-type]


def call(models: Iterable[str] = ("m",)) -> SimpleNamespace:
    caller = SimpleNamespace(subject="s", project="p", may_use=lambda permission, model: model in models)
    method = SimpleNamespace(access=SimpleNamespace(permission="deploy"))
    return SimpleNamespace(caller=caller, method=method, request_id="r")


def item(name: str, **demand: object) -> Item:
    return Item(deployment_id=name, model_version=VERSION.name, demand=pb.Demand(**demand))  # type: ignore[arg-type]


async def place(
    world: World, *items: Item, gang: bool = False, request_id: str = "", registry: Registry | None = None
) -> list[placement_pb.PlaceResponse.Placed]:
    request = placement_pb.PlaceRequest(parent="projects/p", items=items, gang=gang, request_id=request_id)
    return list((await servicer(world, registry).Place(request, call())).placed)  # type: ignore[arg-type]


async def test_all_are_placed_in_the_order_asked_and_each_says_where_and_why(world: World) -> None:
    first, second = await place(world, item("a", tier_preference=pb.TIER_PREFERENCE_EDGE), item("b", replicas=2))
    assert [copy.node for copy in first.copies] == ["nodes/edge-1"] and first.reason.startswith("lowest cost")
    assert sorted(copy.node for copy in second.copies) == ["nodes/cloud-1", "nodes/edge-1"]
    assert [copy.epoch for copy in second.copies] == [1, 2]
    assert world.nodes("a") == ["edge-1"] and sorted(world.nodes("b")) == ["cloud-1", "edge-1"]
    world.restart()
    await world.controller.load()
    assert world.nodes("a") == ["edge-1"] and sorted(world.nodes("b")) == ["cloud-1", "edge-1"]
    rows = await world.records.read(lambda store: store.decisions("p", "b"))
    assert [pb.Decision.FromString(row.content).epoch for row in rows] == [2, 1]


async def test_what_fits_nowhere_waits_and_says_for_what(world: World) -> None:
    fits, waits = await place(world, item("a"), item("b", accelerator="gpu"))
    assert fits.copies and not fits.binding_constraint
    assert not waits.copies and waits.binding_constraint == "accelerator" and "gpu" in waits.reason
    assert world.constraint("b") == "accelerator"


async def test_a_gang_that_does_not_fit_creates_nothing_and_takes_nothing(world: World) -> None:
    before = world.controller.snapshot().digest
    with pytest.raises(FailedPrecondition, match="b does not fit beside the others") as refused:
        await place(world, item("a"), item("b", accelerator="gpu"), gang=True)
    assert refused.value.metadata["constraint"] == "accelerator"
    assert await world.records.read(lambda store: store.deployments()) == []
    assert world.controller.snapshot().digest == before
    assert [bool(found.copies) for found in await place(world, item("a"), item("b"), gang=True)] == [True, True]


async def test_a_repeat_is_answered_as_before_and_takes_no_more_room(world: World) -> None:
    first = await place(world, item("a"), item("b"), request_id="once")
    free = world.controller.snapshot().digest
    assert await place(world, item("a"), item("b"), request_id="once") == first
    assert world.controller.snapshot().digest == free
    assert len(await world.records.read(lambda store: store.placements())) == 2


async def test_a_taken_id_refuses_all_and_gives_the_room_back(world: World) -> None:
    await world.create(row("b"))
    before = world.controller.snapshot().digest
    with pytest.raises(AlreadyExists, match="deployment b exists"):
        await place(world, item("a"), item("b"))
    assert world.controller.get(row("a").name) is None and world.controller.snapshot().digest == before


async def test_a_caller_that_goes_away_leaves_what_was_committed(world: World) -> None:
    asked = asyncio.create_task(place(world, item("a")))
    await asyncio.sleep(0)
    while not world.controller._stock._holdings._reserved and world.controller.get(row("a").name) is None:
        await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    async with asyncio.timeout(5):
        while world.controller.get(row("a").name) is None:
            await asyncio.sleep(0.01)
    assert len(world.nodes("a")) == 1


@pytest.mark.parametrize(
    ("items", "error", "text"),
    [
        ([], InvalidArgument, "1 to 64"),
        ([item(f"d{number}") for number in range(MOST_ITEMS + 1)], InvalidArgument, "65 items"),
        ([item("a"), item("a")], InvalidArgument, "'a' twice"),
        ([item("A")], InvalidArgument, r"items\[0\].deployment_id"),
        ([item("a"), item("b", rate=-1.0)], InvalidArgument, "rate"),
        (
            [Item(deployment_id="a", model_version="projects/q/models/m/versions/1")],
            NotFound,
            "does not exist, or is not yours",
        ),
        (
            [Item(deployment_id="a", model_version="projects/p/models/other/versions/1")],
            NotFound,
            "not yours to deploy",
        ),
    ],
)
async def test_what_is_malformed_or_foreign_is_refused(
    world: World, items: list[Item], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        await place(world, *items)
    assert await world.records.read(lambda store: store.deployments()) == []


async def test_a_version_that_is_deployed_is_not_asked_for_again(world: World) -> None:
    registry = Registry()
    await place(world, item("a"), item("b"), registry=registry)
    await place(world, item("c"), registry=registry)
    assert registry.asked == [VERSION.name]
    alias = Item(deployment_id="d", model_version="projects/p/models/m/versions/production")
    await place(world, alias, registry=registry)
    assert registry.asked[1:] == [alias.model_version]  # what an alias means is always asked
