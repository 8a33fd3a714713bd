"""What is kept of a look at the fleet says what another look would say, however the fleet and the batch went on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_placement_core import DEMAND, NODE, NODES, VARIANTS

from sealane_scheduler import batch, columns, front, placement, standing
from sealane_scheduler.batch import TableRoom, Wanted, one_by_one
from sealane_scheduler.candidates import Candidates, Ledger
from sealane_scheduler.columns import NodeTable
from sealane_scheduler.filters import MIB, Demand, NodeView, cpu_of, memory_of
from sealane_scheduler.placement import Question, decide, search
from sealane_scheduler.scan import Scores, best
from sealane_scheduler.standing import SHARED_SECONDS, Standing, Standings

SMALL = {"memory_bytes": 90 * MIB, "cpu_milli": 700}


def question(demand: Demand, seed: int = 3) -> Question:
    return Question(replace(demand, **SMALL), VARIANTS, seed)  # type: ignore[arg-type]


def take(table: NodeTable, asked: Question, name: str, variant: str) -> None:
    node, view = table.get(name), next(view for view in VARIANTS if view.variant == variant)
    assert node is not None
    memory, cpu = node.free_memory - memory_of(asked.demand, view), node.free_cpu_milli - cpu_of(asked.demand)
    table.put(replace(node, free_memory=memory, free_cpu_milli=cpu))


def told(found: Scores) -> dict[tuple[str, str], tuple[float, dict[str, float]]]:
    """Every candidate with its score and its terms."""
    pairs = [(int(variant), int(place)) for variant, place in np.argwhere(np.isfinite(found.scores))]
    scored = {pair: front.scored(found, pair) for pair in pairs}
    return {(item.node, item.variant): (found.scores[pair], item.terms) for pair, item in scored.items()}


@given(st.lists(DEMAND, min_size=1, max_size=3), NODES, st.lists(st.integers(0, 2), max_size=12))
@settings(max_examples=80, deadline=None)
def test_each_choice_of_a_batch_is_that_of_a_decision_on_what_is_left(
    demands: list[Demand], nodes: list[NodeView], order: list[int]
) -> None:
    asked = [question(demand) for demand in demands]
    table = NodeTable(nodes)
    before = table.snapshot()
    ledger = Ledger(before)
    kinds = [Candidates(search(item, before), ledger) for item in asked]
    for kind in (number % len(asked) for number in order):
        decision, pair = decide(asked[kind], table.snapshot()), kinds[kind].best()
        if pair is None:
            assert not decision.node
            continue
        chosen = kinds[kind].take(pair)
        assert decision.candidates[0] == chosen
        take(table, asked[kind], chosen.node, chosen.variant)


CHANGE = st.one_of(
    st.tuples(st.just("put"), NODE),
    st.tuples(st.just("drop"), st.integers(0, 8)),
    st.tuples(st.just("take"), st.integers(0, 8)),
    st.tuples(st.just("rtt"), st.integers(0, 8)),
)


def change(table: NodeTable, what: tuple[str, object]) -> None:
    kind, value = what
    if kind == "put":
        assert isinstance(value, NodeView)
        table.put(value)
        return
    node = table.get(f"n{value}")
    if node is None:
        return
    if kind == "drop":
        table.drop(node.node)
    elif kind == "take":
        table.put(replace(node, free_memory=node.free_memory - 90 * MIB))
    else:
        table.put(replace(node, rtt_ms=node.rtt_ms * 1.5 + 1))


@given(DEMAND, NODES, st.lists(st.lists(CHANGE, max_size=4), min_size=1, max_size=5))
@settings(max_examples=150, deadline=None)
def test_what_is_kept_is_what_would_be_found_after_every_change(
    demand: Demand, nodes: list[NodeView], rounds: list[list[tuple[str, object]]]
) -> None:
    asked, table, standings = question(demand), NodeTable(nodes), Standings()
    standings.of(asked, table.snapshot())
    for changes in rounds:
        for what in changes:
            change(table, what)
        now = table.snapshot()
        assert told(standings.of(asked, now).scores) == told(search(asked, now))


@given(st.lists(DEMAND, min_size=1, max_size=3), NODES, st.lists(st.integers(0, 2), min_size=1, max_size=10))
@settings(max_examples=60, deadline=None)
def test_a_batch_of_a_large_fleet_goes_where_one_after_the_other_would(
    demands: list[Demand], nodes: list[NodeView], order: list[int]
) -> None:
    members = [Wanted(question(demands[number % len(demands)])) for number in order]
    alone = TableRoom(NodeTable(nodes))
    expected = [one_by_one([member], alone)[0] for member in members]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "RECORDED_NODES", -1)
        found = one_by_one(members, TableRoom(NodeTable(nodes)))
    for item, other in zip(found, expected, strict=True):
        assert [place.decision.candidates[0] for place in item.places] == [
            place.decision.candidates[0] for place in other.places
        ]
        assert (item.refusal is None) == (other.refusal is None)


def fleet(count: int = 600) -> NodeTable:
    litert = {"litert": frozenset({"LITERT"})}
    return NodeTable(
        NodeView(f"n{i:03}", "cloud", "a", "internal", True, litert, "full", "none", 1 << 30, 4000, rtt_ms=i / 100)
        for i in range(count)
    )


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many nodes are looked at by each look of :mod:`standing`."""
    looks: list[int] = []
    scan = placement.scan

    def spy(asked: Question, nodes: columns.Snapshot) -> object:
        looks.append(len(nodes))
        return scan(asked, nodes)

    monkeypatch.setattr(placement, "scan", spy)
    monkeypatch.setattr(standing, "scan", spy)
    return looks


def test_only_what_has_changed_is_looked_at_again_and_all_of_it_once_it_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    table, now = fleet(), [0.0]
    standings, looks, asked = Standings(lambda: now[0]), counted(monkeypatch), question(Demand())

    def look() -> Standing:
        return standings.of(asked, table.snapshot())

    first = look()
    take(table, asked, "n000", "int8")
    assert look() is first and looks == [600], "who has less room is reckoned with as in a batch"
    change(table, ("rtt", "001"))
    change(table, ("rtt", "002"))
    assert look() is first and look() is first and looks == [600, 2]
    now[0] = SHARED_SECONDS + 0.01
    assert look() is not first and looks == [600, 2, 600]
    standings.forget()
    now[0] *= 3
    standings.forget()
    assert not standings._kept


def test_too_many_changes_a_new_node_and_one_that_fits_again_are_looked_at_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = fleet()
    standings, looks, asked = Standings(), counted(monkeypatch), question(Demand())
    full = table.get("n007")
    assert full is not None
    table.put(replace(full, free_memory=0))
    standings.of(asked, table.snapshot())
    table.put(full)
    found = standings.of(asked, table.snapshot()).scores
    assert looks == [600, 1, 600] and len(found.fitting) == 600
    table.put(replace(full, node="new"))
    standings.of(asked, table.snapshot())
    assert looks[3:] == [601]
    for i in range(600):
        take(table, asked, f"n{i:03}", "int8")
    standings.of(asked, table.snapshot())
    assert looks[4:] == [601]


def test_what_is_not_a_snapshot_of_the_same_table_is_looked_at_whole() -> None:
    standings, asked = Standings(), question(Demand())
    first = standings.of(asked, fleet().snapshot())
    other = NodeTable([replace(item, rtt_ms=50.0) for item in fleet().snapshot().nodes()])
    found = standings.of(asked, other.snapshot())
    assert found is not first and told(found.scores) == told(search(asked, other.snapshot()))


def test_the_first_of_a_kind_is_explained_whole_and_the_next_say_what_they_share() -> None:
    room = TableRoom(fleet())
    asked = question(Demand())
    expected = decide(asked, room.snapshot())
    first, second = (item.places[0].decision for item in one_by_one([Wanted(asked)] * 2, room))
    assert first == expected
    assert second.filters is first.filters and second.node != "" and len(second.candidates) == 1
    assert second.reasons[0].endswith("filters were counted 1 decisions of its kind before")


def test_who_finds_no_room_is_told_why_as_if_it_were_alone() -> None:
    asked = Question(Demand(memory_bytes=2 << 30), VARIANTS, 3)
    room = TableRoom(fleet())
    found = one_by_one([Wanted(asked)] * 3, room)
    assert [item.places for item in found] == [()] * 3
    assert all(item.refusal is not None and item.refusal[0].binding_constraint == "memory" for item in found)
    assert found[0] is found[2], "it is not asked again while nothing is given back"


def test_the_best_are_the_same_after_changes_of_large_tables() -> None:
    table, standings = fleet(3000), Standings()
    asked = question(Demand())
    for number in range(columns._CHANGES // 100 + 2):
        for i in range(100):
            take(table, asked, f"n{(number * 100 + i) % 3000:03}", "int8")
        now = table.snapshot()
        found, fresh = standings.of(asked, now).scores, search(asked, now)
        names = [[place.fitting.node(pair[1]).node for pair in best(place, 5)] for place in (found, fresh)]
        assert names[0] == names[1]
