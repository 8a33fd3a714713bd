"""Who watches the routes is told of what changed; what he has then is what the whole table says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from test_fleet import World, facts, row

from sealane.clock import ManualClock
from sealane.scheduler.v1 import routing_service_pb2 as pb
from sealane_inference.routing import RouteTable
from sealane_inference.watch import to_plain
from sealane_scheduler import routes
from sealane_scheduler.ensembles import Ensembles
from sealane_scheduler.route_log import RouteLog


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, ManualClock())
    made.fleet.connect("edge-1", facts("edge", "site-a"), "")
    made.fleet.connect("cloud-1", facts("cloud", "eu-1", "internal"), "")
    yield made
    made.database.close()


class Watcher:
    """A gateway's side of the stream."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.chains = Ensembles(world.records, world.controller)
        self.tables = routes.Tables(world.controller, self.chains, takes_changes=True)
        self.present = RouteTable()

    def hear(self) -> pb.RouteTable | None:
        told = self.tables.next()
        if told is not None:
            self.present = to_plain(told, self.present)
        whole = to_plain(routes.table(self.world.controller, self.chains), RouteTable())
        assert (self.present.routes, self.present.names) == (whole.routes, whole.names)
        return told


async def test_changes_add_up_to_the_whole_table(world: World) -> None:
    watcher = Watcher(world)
    for name in ("a", "b", "c"):
        await world.create(row(name))
    first = watcher.hear()
    assert first is not None and not first.changes_only and len(first.routes) == 3
    assert watcher.hear() is None
    world.serve()
    assert watcher.hear() is not None
    await world.create(row("d", accelerator="gpu"))
    changed = watcher.hear()
    assert changed is not None and [route.deployment for route in changed.routes] == ["projects/p/deployments/d"]
    await world.controller.delete(row("b").name, "", lambda store: store.drop_deployment("p", "b"))
    changed = watcher.hear()
    assert changed is not None and list(changed.removed) == ["projects/p/deployments/b"] and not changed.routes
    for name in ("a", "c", "d"):
        await world.controller.delete(row(name).name, "", lambda store, name=name: store.drop_deployment("p", name))
    assert watcher.hear() is not None and not watcher.present.routes


async def test_a_node_that_goes_or_renews_its_statement_changes_its_own_routes(world: World) -> None:
    watcher = Watcher(world)
    await world.create(row("edge", residency=["site-a"]))
    await world.create(row("cloud", residency=["eu-1"]))
    world.serve()
    watcher.hear()
    edge = world.fleet.get("edge-1")
    assert edge is not None
    world.fleet.heartbeat("edge-1", None, "a.b.c")
    changed = watcher.hear()
    assert changed is not None and [route.deployment[-4:] for route in changed.routes] == ["edge"]
    world.fleet.disconnect("edge-1", edge.session)
    changed = watcher.hear()
    assert changed is not None and [len(route.endpoints) for route in changed.routes] == [0]
    world.fleet.heartbeat("cloud-1", 3.0, "")
    assert watcher.hear() is None


async def test_who_does_not_take_changes_gets_whole_tables(world: World) -> None:
    chains = Ensembles(world.records, world.controller)
    tables = routes.Tables(world.controller, chains, takes_changes=False)
    for count in (1, 2):
        await world.create(row(f"d{count}"))
        told = tables.next()
        assert told is not None and not told.changes_only and len(told.routes) == count


def test_a_log_that_has_forgotten_says_so() -> None:
    log = RouteLog()
    log.touch(["a", "b", "a"])
    assert log.since(0) == ["a", "b"] and log.since(2) == ["a"] and log.since(3) == []
    log.touch(f"d{number}" for number in range(1500))
    log.forget(live=10)
    assert log.since(3) is None
    assert log.since(log.number - 5) == [f"d{number}" for number in range(1499, 1494, -1)]
