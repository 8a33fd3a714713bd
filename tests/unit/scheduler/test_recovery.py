"""When lost work is placed anew: a zone that seems cut off is waited for, and losses are made good at a pace."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from test_fleet import World, facts, row

from sealane.clock import ManualClock
from sealane_scheduler.controller import Controller
from sealane_scheduler.fleet import DEAD, SUSPECT, Fleet, Patience
from sealane_scheduler.recovery import SUBSTITUTE_SECONDS, Bucket, Pace
from sealane_scheduler.storms import LEAST, SHARE, Storms

PACE = Pace(rate=2.0, burst=3)


class Zones(World):
    """Four workers in one cloud zone, and two in another, with a slow pace."""

    def restart(self) -> None:
        self.fleet = Fleet(self.clock, Patience())
        self.controller = Controller(self.records, self.fleet, self.clock, PACE)

    def connect(self, nodes: Iterable[str]) -> None:
        for node in nodes:
            self.fleet.connect(node, facts("cloud", node[0]), "")

    def lose(self, nodes: Iterable[str]) -> None:
        for node in nodes:
            self.fleet.disconnect(node, self.fleet.get(node).session)  # type: ignore[union-attr]

    async def wait(self, seconds: float) -> None:
        """Time passes in ticks; who is connected is heard."""
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)
            for state in self.fleet:
                if state.session:
                    self.fleet.heartbeat(state.node, None, "")
            await self.settle()
            self.serve()

    def homes(self) -> dict[str, list[str]]:
        return {item.row.deployment: [copy.row.node for copy in item.copies] for item in self.controller.all()}


A_ZONE, B_ZONE = ["a1", "a2", "a3", "a4"], ["b1", "b2"]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[Zones]:
    made = Zones(tmp_path, ManualClock())
    made.connect(A_ZONE + B_ZONE)
    yield made
    made.database.close()


async def on_zone_a(world: Zones, count: int = 4, **demand: object) -> None:
    """Deployments that are all in zone a."""
    world.lose(B_ZONE)
    for number in range(count):
        await world.create(row(f"d{number}", **demand))
        world.serve()
    assert all(node[0] == "a" for nodes in world.homes().values() for node in nodes)
    world.connect(B_ZONE)
    await world.wait(11.0)


async def test_one_lost_worker_is_made_good_at_once(world: Zones) -> None:
    await on_zone_a(world)
    (lost,) = world.homes()["d0"]
    world.lose([lost])
    await world.settle()
    assert world.homes()["d0"] == [lost]
    await world.wait(SUBSTITUTE_SECONDS + 0.2)
    assert world.endpoints("d0") and world.endpoints("d0") != [lost]


async def test_a_zone_that_seems_cut_off_keeps_its_work_for_one_and_a_half_leases(world: Zones) -> None:
    await on_zone_a(world)
    before = world.homes()
    world.lose(A_ZONE)
    await world.settle()
    assert all(world.endpoints(name) == [] for name in before), "routes stop at once"
    await world.wait(7.3)
    assert world.homes() == before and all(world.constraint(name) == "" for name in before)
    state = world.fleet.get("a1")
    assert state is not None and state.state == DEAD
    assert "4 of 4 workers of zone a" in world.controller.recovery.why("a1", [])
    await world.wait(0.5)
    moved = [name for name, nodes in world.homes().items() if nodes[0][0] == "b"]
    assert len(moved) == PACE.burst, "then it is placed elsewhere, at its pace"
    assert all(len(nodes) == 1 for nodes in world.homes().values()), "what has to wait keeps its place until then"
    await world.wait(3.0)
    assert all(world.endpoints(name)[0][0] == "b" for name in before)


async def test_a_zone_that_comes_back_goes_on_as_it_was(world: Zones) -> None:
    await on_zone_a(world)
    before = {item.row.deployment: [copy.row for copy in item.copies] for item in world.controller.all()}
    world.lose(A_ZONE[:3])
    await world.wait(6.0)
    world.connect(A_ZONE[:3])
    await world.wait(1.0)
    assert {item.row.deployment: [copy.row for copy in item.copies] for item in world.controller.all()} == before
    assert all(len(world.endpoints(name)) == 1 for name in before)
    # The next single loss is a single loss.
    await world.wait(11.0)
    (lost,) = world.homes()["d0"]
    world.lose([lost])
    await world.wait(SUBSTITUTE_SECONDS + 0.2)
    assert world.endpoints("d0") != [lost] and world.endpoints("d0")


async def test_who_is_lost_in_a_storm_belongs_to_it_and_another_zone_does_not(world: Zones) -> None:
    await on_zone_a(world, 1)
    world.lose(A_ZONE[:3])
    await world.wait(1.0)
    world.lose(["a4", "b1"])
    await world.settle()
    held = {node: world.controller.recovery.is_held(node) for node in A_ZONE + B_ZONE}
    assert held == {"a1": True, "a2": True, "a3": True, "a4": True, "b1": False, "b2": False}


async def test_silence_counts_as_a_broken_stream_does(world: Zones) -> None:
    await on_zone_a(world, 1)
    for _ in range(40):
        world.clock.advance(0.1)
        for node in B_ZONE:
            world.fleet.heartbeat(node, None, "")
        await world.settle()
    state = world.fleet.get("a1")
    assert state is not None and state.state == SUSPECT
    assert all(world.controller.recovery.is_held(node) for node in A_ZONE)


async def test_losses_are_made_good_at_a_pace_the_most_urgent_first(world: Zones) -> None:
    world.lose(A_ZONE[1:] + B_ZONE)
    for number in range(8):
        await world.create(row(f"d{number}", priority=number))
        world.serve()
    world.connect(B_ZONE)
    await world.wait(11.0)
    world.lose(["a1"])
    await world.wait(SUBSTITUTE_SECONDS + 0.1)
    placed = [name for name, nodes in world.homes().items() if nodes != ["a1"]]
    assert placed == ["d5", "d6", "d7"], "the burst"
    assert world.controller.recovery.why("a1", world.controller.all()).startswith(
        "5 copies wait to be placed elsewhere"
    )
    await world.create(row("fresh", priority=0))
    assert world.homes()["fresh"], "what is asked for by a user does not wait"
    await world.wait(0.6)
    assert [name for name, nodes in world.homes().items() if "a1" in nodes and len(nodes) == 1] == [
        "d0",
        "d1",
        "d2",
        "d3",
    ]
    await world.wait(2.5)
    assert all(world.endpoints(name) for name in world.homes())


async def test_what_cannot_be_placed_takes_nothing_from_the_others(world: Zones) -> None:
    world.lose(A_ZONE[1:] + B_ZONE)
    for number in range(4):
        await world.create(row(f"bound{number}", priority=9, residency=["a"]))
        world.serve()
    await world.create(row("free"))
    world.serve()
    world.connect(B_ZONE)
    await world.wait(11.0)
    world.lose(["a1"])
    await world.wait(SUBSTITUTE_SECONDS + 0.2)
    assert world.endpoints("free") and world.constraint("bound0") == "residency"


@given(st.integers(0, 30), st.integers(0, 30))
def test_a_storm_is_a_large_part_of_a_zone(lost: int, left: int) -> None:
    clock = ManualClock()
    fleet, storms = Fleet(clock, Patience()), Storms()
    sessions = {f"n{number}": 0 for number in range(lost + left)}
    for node in sessions:
        sessions[node] = fleet.connect(node, facts("cloud", "z"), "")
    for number in range(lost):
        fleet.disconnect(f"n{number}", sessions[f"n{number}"])
    storms.look(fleet, clock.monotonic())
    expected = lost >= LEAST and lost > SHARE * (lost + left)
    assert all((storms.held(f"n{number}") is not None) == expected for number in range(lost))
    assert not any(storms.held(f"n{number}") for number in range(lost, lost + left))


def test_losses_far_apart_and_evictions_are_no_storm() -> None:
    clock = ManualClock()
    fleet, storms = Fleet(clock, Patience()), Storms()
    for number in range(6):
        session = fleet.connect(f"n{number}", facts("cloud", "z"), "")
        fleet.disconnect(f"n{number}", session, evicted=number > 2)
        storms.look(fleet, clock.monotonic())
        clock.advance(6.0)
    assert not any(storms.held(f"n{number}") for number in range(6))


@given(st.lists(st.floats(0, 5), max_size=40))
def test_a_bucket_lets_no_more_through_than_burst_and_rate(pauses: list[float]) -> None:
    bucket, now, taken = Bucket(Pace(rate=4.0, burst=5), 0.0), 0.0, 0
    for pause in pauses:
        now += pause
        bucket.fill(now)
        while bucket.is_open:
            bucket.take()
            taken += 1
        assert taken <= 5 + 4.0 * now + 1e-6


def test_a_bucket_that_rests_is_full_again() -> None:
    bucket = Bucket(Pace(rate=4.0, burst=5), 0.0)
    for _ in range(5):
        bucket.take()
    assert not bucket.is_open
    bucket.fill(100.0)
    for _ in range(5):
        assert bucket.is_open
        bucket.take()
    assert not bucket.is_open


pytestmark = pytest.mark.timeout(60)
