"""Nodes that are cordoned and drained, on a real database with a clock that is moved by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytest_asyncio
import sqlalchemy as sa
from test_fleet import A, B, World, facts, row

from sealane.clock import ManualClock
from sealane.errors import NotFound
from sealane.records import tables
from sealane.records.tables import Actor
from sealane_scheduler.drains import Drains
from sealane_scheduler.filters import VariantView
from sealane_scheduler.holds import CORDONED, DRAINING, OPEN

WHO = Actor("spiffe://sealane/account/ops", "")


class Site(World):
    """Two cloud nodes and one at the edge; a fleet of which single nodes are held."""

    def __init__(self, path: Path, clock: ManualClock) -> None:
        self.taken_back: list[set[str]] = []
        self.tasks = 0
        super().__init__(path, clock)

    def restart(self) -> None:
        super().restart()
        loop = SimpleNamespace(held_by=lambda node: self.tasks, take_back=self._take_back)
        self.drains = Drains(self.controller, (loop,), self.clock)  # type: ignore[arg-type]

    def connect(self) -> None:
        self.fleet.connect("cloud-1", facts("cloud", "eu-1"), "")
        self.fleet.connect("cloud-2", facts("cloud", "eu-2"), "")
        self.fleet.connect("edge-1", facts("edge", "site-a"), "")

    async def hold(self, node: str, admission: str, deadline: float = 0.0) -> None:
        await self.drains.hold(WHO, node, admission, deadline)

    async def rounds(self) -> None:
        """What is wanted settles, and everything that was placed serves."""
        for _ in range(3):
            await self.settle()
            self.serve()

    def admission(self, node: str) -> str:
        return self.drains.standing(node).admission

    async def _take_back(self, nodes: set[str]) -> None:
        self.taken_back.append(set(nodes))
        self.tasks = 0


@pytest_asyncio.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(tmp_path, ManualClock())
    made.connect()
    yield made
    made.database.close()


async def test_a_cordoned_node_keeps_what_it_has_and_takes_nothing_new(site: Site) -> None:
    await site.create(B)
    site.serve()
    assert site.nodes("b") == ["edge-1"]
    await site.hold("edge-1", CORDONED)
    await site.create(row("c", tier_preference=B_EDGE))
    await site.rounds()
    assert site.nodes("b") == ["edge-1"] and site.nodes("c") != ["edge-1"]
    item = site.controller.get(B.name)
    assert item is not None
    decision = site.controller.plan(item.demand, [VariantView("v", "LITERT", "", 1, "d")], "v", "p")
    assert [(item.node, item.failures[0][0]) for item in decision.rejected] == [("edge-1", "draining")]
    await site.hold("edge-1", OPEN)
    await site.create(row("d", tier_preference=B_EDGE))
    assert site.nodes("d") == ["edge-1"]


async def test_a_copy_goes_only_once_its_substitute_serves(site: Site) -> None:
    await site.create(B)
    site.serve()
    await site.hold("edge-1", DRAINING)
    for _ in range(3):
        await site.settle()
        assert site.endpoints("b") == ["edge-1"], "the substitute does not serve yet"
    assert site.admission("edge-1") == DRAINING
    assert len(site.nodes("b")) == 2
    await site.rounds()
    assert len(site.endpoints("b")) == 1 and "edge-1" not in site.nodes("b")
    assert site.admission("edge-1") == "DRAINED"


async def test_what_nothing_else_can_take_stays_and_says_why_until_the_deadline(site: Site) -> None:
    await site.create(A)
    site.serve()
    await site.hold("edge-1", DRAINING, site.clock.now() + 60.0)
    await site.rounds()
    assert site.endpoints("a") == ["edge-1"]
    standing = site.drains.standing("edge-1")
    ((_, copy),) = standing.copies
    assert copy.stuck is not None and copy.stuck.constraint == "residency"
    assert "site-a" in copy.stuck.reason
    assert site.constraint("a") == ""
    site.clock.advance(61.0)
    site.connect()
    await site.settle()
    assert site.nodes("a") == [] and site.constraint("a") == "draining"
    assert site.admission("edge-1") == "DRAINED"
    await site.hold("edge-1", OPEN)
    await site.rounds()
    assert site.endpoints("a") == ["edge-1"]


async def test_several_copies_leave_several_nodes_and_those_that_stay_are_not_touched(site: Site) -> None:
    await site.create(row("r", replicas=2))
    await site.rounds()
    before = set(site.nodes("r"))
    (left,) = {"cloud-1", "cloud-2", "edge-1"} - before
    gone = sorted(before)[0]
    epochs = epochs_of(site, "r")
    await site.hold(gone, DRAINING)
    await site.rounds()
    assert set(site.nodes("r")) == (before - {gone}) | {left}
    kept = (before - {gone}).pop()
    assert epochs_of(site, "r")[kept] == epochs[kept]


async def test_a_drain_goes_on_after_a_restart_and_a_node_that_comes_back_is_still_drained(site: Site) -> None:
    await site.create(B)
    site.serve()
    await site.hold("edge-1", DRAINING)
    await site.settle()
    site.restart()
    await site.controller.load()
    assert site.admission("edge-1") == DRAINING
    site.connect()
    await site.rounds()
    assert "edge-1" not in site.nodes("b") and len(site.endpoints("b")) == 1
    site.fleet.connect("edge-1", facts("edge", "site-a"), "")
    await site.create(row("e", tier_preference=B_EDGE))
    assert site.nodes("e") != ["edge-1"]


async def test_a_drain_that_is_called_off_leaves_the_copy_where_it_was(site: Site) -> None:
    await site.create(B)
    site.serve()
    epoch = epochs_of(site, "b")["edge-1"]
    await site.hold("edge-1", DRAINING)
    await site.settle()
    await site.hold("edge-1", OPEN)
    await site.rounds()
    assert epochs_of(site, "b") == {"edge-1": epoch}


async def test_a_drained_node_that_is_lost_is_lost_as_any_other(site: Site) -> None:
    await site.create(A)
    site.serve()
    await site.hold("edge-1", DRAINING)
    session = site.fleet.get("edge-1").session  # type: ignore[union-attr]
    site.fleet.disconnect("edge-1", session)
    site.clock.advance(1.0)
    await site.settle()
    assert site.constraint("a") == "residency"


async def test_tasks_may_end_until_the_deadline_and_are_taken_back_then(site: Site) -> None:
    site.tasks = 2
    await site.hold("cloud-1", DRAINING, site.clock.now() + 10.0)
    await site.drains.step()
    assert site.taken_back == [] and site.admission("cloud-1") == DRAINING
    site.clock.advance(11.0)
    await site.drains.step()
    assert site.taken_back == [{"cloud-1"}] and site.admission("cloud-1") == "DRAINED"


async def test_saying_it_again_changes_nothing_and_every_change_is_audited(site: Site) -> None:
    for _ in range(2):
        await site.hold("edge-1", CORDONED)
    await site.hold("edge-1", DRAINING, 5e9)
    await site.hold("edge-1", DRAINING, 6e9)
    for _ in range(2):
        await site.hold("edge-1", OPEN)

    def actions(connection: sa.Connection) -> list[str]:
        query = sa.select(tables.audit.c.action).where(tables.audit.c.resource == "nodes/edge-1")
        return [str(found.action) for found in connection.execute(query)]

    assert site.database.read(actions).result(5) == ["CordonNode", "DrainNode", "DrainNode", "UncordonNode"]
    assert await site.records.read(lambda store: store.holds()) == []


async def test_a_node_that_was_never_seen_is_refused(site: Site) -> None:
    with pytest.raises(NotFound, match="sealane nodes list"):
        await site.hold("nobody", CORDONED)


def epochs_of(site: Site, name: str) -> dict[str, int]:
    item = site.controller.get(f"projects/p/deployments/{name}")
    assert item is not None
    return {copy.row.node: copy.row.epoch for copy in item.copies}


B_EDGE = 2
