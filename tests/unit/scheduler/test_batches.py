"""Deployments that are placed at once: never dearer than one after the other, and made again from what was kept."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from sealane_scheduler import replay
from sealane_scheduler.batch import RECORDED_NODES, Placed, TableRoom, Wanted, one_by_one
from sealane_scheduler.columns import NodeTable
from sealane_scheduler.filters import MIB, Demand, NodeView, VariantView, cpu_of, memory_of
from sealane_scheduler.scan import Question
from sealane_scheduler.terms import by_the_hour
from sealane_scheduler.together import place_all

MODEL = VariantView("litert", "LITERT", "FLOAT32", 10 * MIB, "sha256:1", 0.97, 5.0, 4.0)


def node(name: str, *, price: float = 1.0, rtt: float = 1.0, copies: int = 1, zone: str = "a") -> NodeView:
    """A node with room for some copies of MODEL."""
    room = memory_of(Demand(), MODEL)
    return NodeView(
        name,
        "cloud",
        zone,
        "internal",
        True,
        {"litert": frozenset({"LITERT"})},
        free_memory=copies * room,
        free_cpu_milli=copies * cpu_of(Demand()),
        memory=8 * room,
        cpu_milli=8 * cpu_of(Demand()),
        price_per_hour=price,
        rtt_ms=rtt,
    )


def wanted(copies: int = 1, seed: int = 0, **demand: object) -> Wanted:
    return Wanted(Question(Demand(**demand), (MODEL,), seed), copies)  # type: ignore[arg-type]


def places(found: list[Placed]) -> list[list[str]]:
    return [[place.decision.node for place in item.places] for item in found]


def total(members: list[Wanted], found: list[Placed]) -> float:
    return sum(
        place.decision.candidates[0].score * by_the_hour(item.question.demand)
        for item, placed in zip(members, found, strict=True)
        for place in placed.places
    )


def contended() -> tuple[list[Wanted], list[NodeView]]:
    """Both like the near node best; who is asked a hundred times as often would pay much more elsewhere."""
    return [wanted(rate=1.0), wanted(rate=100.0)], [node("near", rtt=1.0), node("far", rtt=30.0)]


def test_who_gains_most_gets_the_room_that_two_want() -> None:
    members, nodes = contended()
    assert places(one_by_one(members, TableRoom(NodeTable(nodes)))) == [["near"], ["far"]]
    found = place_all(members, TableRoom(NodeTable(nodes)))
    assert places(found) == [["far"], ["near"]]
    assert "assigned at once with 1 others" in found[0].places[0].decision.reasons[0]
    assert found[1].places[0].decision.reasons[0].startswith("lowest cost")


def test_a_higher_priority_does_not_give_way() -> None:
    members, nodes = contended()
    first = Wanted(replace(members[0].question, demand=replace(members[0].question.demand, priority=1)))
    assert places(place_all([members[1], first], TableRoom(NodeTable(nodes)))) == [["far"], ["near"]]


def test_where_all_have_what_they_want_each_goes_where_it_would_go_alone() -> None:
    members = [wanted(rate=1.0), wanted(rate=2.0), wanted(rate=3.0)]
    nodes = [node("near", copies=3), node("far", rtt=30.0)]
    found = place_all(members, TableRoom(NodeTable(nodes)))
    assert places(found) == [["near"]] * 3
    assert not any(item.places[0].basis.batch for item in found)


def test_what_is_assigned_at_once_is_made_again_from_what_was_kept() -> None:
    members, nodes = contended()
    for item in place_all(members, TableRoom(NodeTable(nodes))):
        assert item.places[0].basis.batch
        assert replay.replay(replay.record(item.places[0].basis)) == item.places[0].decision


@pytest.mark.parametrize("seed", range(12))
def test_a_batch_costs_no_more_than_one_after_the_other_and_fits(seed: int) -> None:
    rng = random.Random(seed)
    nodes = [
        node(
            f"n{i}", price=rng.uniform(0.5, 2), rtt=rng.uniform(0, 60), copies=rng.randint(0, 3), zone=rng.choice("abc")
        )
        for i in range(8)
    ]
    members = [
        wanted(rng.choice([1, 1, 2]), rate=rng.choice([1.0, 10.0, 100.0]), spread=rng.choice(["node", "zone"]))
        for _ in range(8)
    ]
    alone = one_by_one(members, TableRoom(NodeTable(nodes)))
    room = TableRoom(NodeTable(nodes))
    found = place_all(members, room)
    count = sum(len(item.places) for item in found)
    assert count >= sum(len(item.places) for item in alone)
    if count == sum(len(item.places) for item in alone):
        assert total(members, found) <= total(members, alone) + 1e-6
    assert all(left.free_memory >= 0 and left.free_cpu_milli >= 0 for left in room.snapshot().nodes())
    zones = {item.node: item.zone for item in nodes}
    for member, item in zip(members, found, strict=True):
        there = [place.decision.node for place in item.places]
        assert len(set(there)) == len(there)
        if member.question.demand.spread == "zone":
            assert len({zones[name] for name in there}) == len(there)
        assert (item.refusal is None) == (len(there) == member.copies)
        for place in item.places:
            assert replay.replay(replay.record(place.basis)) == place.decision


def test_a_gang_is_placed_whole_or_not_at_all() -> None:
    nodes = [node("one", copies=2), node("two", copies=2)]
    room = TableRoom(NodeTable(nodes))
    before = room.snapshot().digest
    (found,) = place_all([wanted(3, gang=True)], room)
    assert not found.places and found.refusal is not None and found.refusal[0].binding_constraint == "spread"
    assert room.snapshot().digest == before
    (found,) = place_all([wanted(2, gang=True)], room)
    assert sorted(place.decision.node for place in found.places) == ["one", "two"]


def test_a_gang_of_members_takes_nothing_where_one_has_no_place() -> None:
    room = TableRoom(NodeTable([node("one")]))
    before = room.snapshot().digest
    found = place_all([wanted(), wanted(rate=5.0)], room, gang=True)
    assert [item.places for item in found] == [(), ()] and room.snapshot().digest == before
    assert [item.refusal is None for item in found].count(False) == 1


def test_equals_of_a_large_fleet_go_where_single_decisions_would_send_them() -> None:
    rng = random.Random(4)
    nodes = [node(f"n{i:03}", rtt=rng.uniform(0, 50), copies=rng.randint(0, 2)) for i in range(RECORDED_NODES + 44)]
    members = [wanted(seed=7) for _ in range(40)]
    found = place_all(members, TableRoom(NodeTable(nodes)))
    room, single = TableRoom(NodeTable(nodes)), []
    for member in members:
        single += one_by_one([member], room)
    assert places(found) == places(single)
    assert all(item.places[0].decision.candidates[0].node == item.places[0].decision.node for item in found)


def test_equals_beyond_the_room_say_what_binds() -> None:
    nodes = [node(f"n{i:03}", copies=1 if i < 3 else 0) for i in range(RECORDED_NODES + 44)]
    found = place_all([wanted() for _ in range(5)], TableRoom(NodeTable(nodes)))
    assert [len(item.places) for item in found] == [1, 1, 1, 0, 0]
    assert found[3].refusal is not None and found[3].refusal[0].binding_constraint in ("memory", "cpu")
