"""The decision over arrays: held against a loop over every pair, and against itself under every change of the fleet."""

from __future__ import annotations

from dataclasses import replace

import naive_placement as naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealane.security.sealing_policy import SealingPolicy
from sealane_scheduler import placement, replay
from sealane_scheduler.batch import Basis
from sealane_scheduler.columns import NodeTable
from sealane_scheduler.filters import FILTERS, MIB, Demand, NodeView, VariantView
from sealane_scheduler.masks import origin_rtt, sieve
from sealane_scheduler.placement import Question, decide, place
from sealane_scheduler.terms import PRESETS, TERMS

LITERT = {"litert": frozenset({"LITERT"})}
ONNX = {"onnxruntime": frozenset({"ONNX"})}
ZONES = ["a", "b", "c"]
CLEARANCES = ["", "public", "internal", "restricted"]
NODE = st.builds(
    NodeView,
    node=st.sampled_from([f"n{i}" for i in range(9)]),
    tier=st.sampled_from(["cloud", "edge"]),
    zone=st.sampled_from(ZONES),
    clearance=st.sampled_from(CLEARANCES),
    alive=st.sampled_from([True, True, True, False]),
    runtimes=st.sampled_from([{}, LITERT, ONNX, {**LITERT, **ONNX}]),
    sandbox=st.sampled_from(["none", "partial", "full"]),
    sandbox_wanted=st.sampled_from(["none", "partial"]),
    free_memory=st.integers(-MIB, 1 << 30),
    free_cpu_milli=st.integers(-100, 4000),
    memory=st.sampled_from([0, 1 << 30]),
    cpu_milli=st.sampled_from([0, 4000]),
    rtt_ms=st.floats(0, 100),
    price_per_hour=st.floats(0, 5),
    accelerator=st.sampled_from(["", "gpu", "npu"]),
    facts=st.sampled_from([{}, {"zone": "a"}, {"zone": "b", "tier": "edge"}]),
    avoid=st.sampled_from([frozenset(), frozenset({"onnx"})]),
    draining=st.sampled_from([False, False, True]),
    in_bytes_per_second=st.sampled_from([0.0, 1e5, 1e9]),
    out_bytes_per_second=st.sampled_from([0.0, 1e5, 1e9]),
    egress_per_gib=st.sampled_from([0.0, 0.1]),
    watts=st.sampled_from([0.0, 5.0, 300.0]),
    resident=st.sampled_from([frozenset(), frozenset({"sha256:1"}), frozenset({"sha256:1", "sha256:2"})]),
)
NODES = st.lists(NODE, max_size=8, unique_by=lambda node: node.node)
VARIANTS = (
    VariantView("onnx", "ONNX", "FLOAT32", 9 * MIB, "sha256:1", 0.986, 4.0, 3.0),
    VariantView("litert", "LITERT", "FLOAT32", 8 * MIB, "sha256:2", 0.985, 5.0, None, converted=True),
    VariantView("int8", "LITERT", "INT8", 2 * MIB, "sha256:3", 0.97, 2.0, 1.5, converted=True),
    VariantView("sealed", "LITERT", "INT8", 2 * MIB, "sha256:4", None, None, sealing=SealingPolicy(zones=("a",))),
    VariantView("held", "ONNX", "FLOAT16", MIB, "sha256:5", 0.9, 1.0, runtime="other", blocked="needs a signature"),
)
DEMAND = st.builds(
    Demand,
    min_accuracy=st.sampled_from([0.0, 0.98]),
    formats=st.sampled_from([(), (), ("LITERT",)]),
    precisions=st.sampled_from([(), (), ("FLOAT32", "FLOAT16")]),
    latency_ms=st.sampled_from([0.0, 20.0, 80.0]),
    data_class=st.sampled_from(["public", "internal", "restricted"]),
    residency=st.sampled_from([(), (), ("a",), ("a", "b")]),
    tier=st.sampled_from(["", "edge", "cloud"]),
    objective=st.sampled_from(sorted(PRESETS)),
    memory_bytes=st.sampled_from([0, 300 * MIB]),
    cpu_milli=st.sampled_from([0, 1500]),
    max_price_per_hour=st.sampled_from([0.0, 2.0]),
    request_bytes=st.sampled_from([0, 100_000]),
    response_bytes=st.sampled_from([0, 100_000]),
    accelerator=st.sampled_from(["", "", "gpu"]),
    origin=st.sampled_from(["", "a", "z"]),
    rate=st.sampled_from([0.0, 50.0]),
    weights=st.sampled_from([(), (("energy", 1e5), ("price", 0.0))]),
    spread=st.sampled_from(["node", "zone"]),
    apart=st.sampled_from([(), (("n1", "a"),), (("n2", "b"), ("gone", "c"))]),
    beside=st.sampled_from([(), (("n1", "a"),), (("n3", "b"), ("gone", "c"))]),
)
#: Scores are whole millionths.
EXACT = 2e-6


@given(DEMAND, NODES)
@settings(max_examples=150, deadline=None)
def test_arrays_and_words_reject_the_same(demand: Demand, nodes: list[NodeView]) -> None:
    snapshot = NodeTable(nodes).snapshot()
    demand = replace(demand, origin_rtt_ms=origin_rtt(demand, snapshot))
    assert demand == naive.with_origin(demand, nodes)
    found = sieve(demand, snapshot, VARIANTS)
    for position, node in enumerate(snapshot.nodes()):
        for place_, variant in enumerate(VARIANTS):
            assert list(found.failed((place_, position))) == naive.failures(demand, node, variant)
            assert found.misses[place_, position] == len(naive.failures(demand, node, variant))


@given(DEMAND, NODES)
@settings(max_examples=150, deadline=None)
def test_what_is_chosen_is_the_cheapest_that_passes_and_every_term_is_as_by_hand(
    demand: Demand, nodes: list[NodeView]
) -> None:
    decision = place(demand, nodes, VARIANTS)
    by_hand = naive.feasible(demand, nodes, VARIANTS)
    assert {(item.node, item.variant) for item in decision.candidates} == set(by_hand)
    assert decision.passed == len(by_hand)
    for item in decision.candidates:
        assert set(item.terms) == set(TERMS)
        for name, value in by_hand[item.node, item.variant].items():
            assert item.terms[name] == pytest.approx(value, abs=EXACT)
    if by_hand:
        least = min(sum(terms.values()) for terms in by_hand.values())
        assert decision.candidates[0].score == pytest.approx(least, abs=len(TERMS) * EXACT)
        assert (decision.node, decision.variant) == (decision.candidates[0].node, decision.candidates[0].variant)
    else:
        assert decision.node == "" and decision.binding_constraint and decision.unavailable_reason


@given(DEMAND, NODES, st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_the_order_of_the_nodes_does_not_matter_and_a_record_replays(
    demand: Demand, nodes: list[NodeView], seed: int
) -> None:
    question = Question(demand, VARIANTS, seed)
    snapshot = NodeTable(nodes).snapshot()
    decision = decide(question, snapshot)
    assert decide(question, NodeTable(nodes[::-1]).snapshot()) == decision
    assert replay.replay(replay.record(Basis(question, snapshot))) == decision


@given(DEMAND, NODES)
@settings(max_examples=80, deadline=None)
def test_without_the_chosen_candidate_the_next_one_is_chosen(demand: Demand, nodes: list[NodeView]) -> None:
    decision = place(demand, nodes, VARIANTS)
    without = [
        replace(node, avoid=node.avoid | {decision.variant}) if node.node == decision.node else node for node in nodes
    ]
    after = place(demand, without, VARIANTS)
    left = [(item.node, item.variant, item.score) for item in decision.candidates[1:]]
    assert [(item.node, item.variant, item.score) for item in after.candidates] == left


@given(DEMAND, NODES)
@settings(max_examples=80, deadline=None)
def test_what_is_said_to_be_missing_is_enough(demand: Demand, nodes: list[NodeView]) -> None:
    decision = place(demand, nodes, VARIANTS)
    by_name = {node.node: node for node in nodes}
    demand = naive.with_origin(demand, nodes)
    for change in decision.changes:
        variant = next(item for item in VARIANTS if item.variant == change.variant)
        assert list(change.filters) == naive.failures(demand, by_name[change.node], variant)
    for told in decision.filters:
        pairs = [(node, variant) for node in nodes for variant in VARIANTS]
        failing = [naive.failures(demand, *pair) for pair in pairs]
        assert told.rejected == sum(told.name in names for names in failing)
        assert told.alone == sum(names == [told.name] for names in failing)
        assert len(told.nearest.failures) == min(len(names) for names in failing if told.name in names)
        assert all(why for _, why in told.nearest.failures)


CHANGES = st.lists(st.one_of(NODE, st.sampled_from([f"n{i}" for i in range(9)])), max_size=25)


@given(CHANGES)
@settings(max_examples=80, deadline=None)
def test_a_table_that_was_changed_is_the_table_made_anew_and_old_snapshots_stand(
    changes: list[NodeView | str],
) -> None:
    table, nodes = NodeTable(), {}
    kept = []
    for change in changes:
        if isinstance(change, str):
            table.drop(change)
            nodes.pop(change, None)
        else:
            table.put(change)
            nodes[change.node] = change
        kept.append((table.snapshot(), dict(nodes)))
    for snapshot, was in kept:
        fresh = NodeTable(was.values()).snapshot()
        assert snapshot.digest == fresh.digest
        assert {node.node: node for node in snapshot.nodes()} == was
        question = Question(Demand(latency_ms=80.0, apart=(("n1", "a"),)), VARIANTS)
        assert replace(decide(question, snapshot), seen=None) == replace(decide(question, fresh), seen=None)


def fleet(count: int) -> list[NodeView]:
    """Nodes that nothing speaks against, each a little different."""
    base = NodeView("", "cloud", "a", "restricted", True, LITERT, free_memory=1 << 40, free_cpu_milli=1 << 20)
    return [
        replace(base, node=f"n{i:05}", zone=ZONES[i % 3], rtt_ms=1 + i * 7 % 31, price_per_hour=0.1 + i % 11)
        for i in range(count)
    ]


def test_of_a_large_fleet_a_sample_and_the_holders_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "FULL_SCAN", 1000)
    nodes = fleet(3000)
    nodes[1234] = replace(nodes[1234], resident=frozenset({"sha256:3"}), price_per_hour=0.0, rtt_ms=0.0)
    snapshot = NodeTable(nodes).snapshot()
    decision = decide(Question(Demand(), VARIANTS[2:3]), snapshot)
    assert decision.node == "n01234"
    assert decision.seen.nodes == 3000 and 300 < decision.seen.looked_at <= 513
    assert any(f"{decision.seen.looked_at} of 3000 nodes were looked at" in reason for reason in decision.reasons)
    assert decide(Question(Demand(), VARIANTS[2:3]), snapshot) == decision


def test_what_only_one_node_of_a_large_fleet_can_take_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "FULL_SCAN", 1000)
    nodes = fleet(3000)
    nodes[77] = replace(nodes[77], accelerator="gpu")
    decision = decide(Question(Demand(accelerator="gpu"), VARIANTS[1:2]), NodeTable(nodes).snapshot())
    assert (decision.node, decision.seen.looked_at) == ("n00077", 3000)
    assert decision.filters[0].rejected == 2999


def test_of_many_candidates_the_best_are_told_and_the_nearest_misses() -> None:
    nodes = fleet(500)
    decision = place(Demand(residency=("a", "b")), nodes, VARIANTS[1:3])
    assert len(decision.candidates) == 5 and decision.passed == 2 * sum(node.zone != "c" for node in nodes)
    assert [item.score for item in decision.candidates] == sorted(item.score for item in decision.candidates)
    assert len(decision.rejected) == 1 and decision.rejected[0].failures[0][0] == "residency"


def test_equal_nodes_are_told_apart_by_the_seed_and_all_of_them_are_used() -> None:
    base = fleet(1)[0]
    table = NodeTable(replace(base, node=f"n{i:02}") for i in range(20)).snapshot()
    chosen = [decide(Question(Demand(), VARIANTS[1:2], seed), table).node for seed in range(200)]
    assert len(set(chosen)) == 20
    assert chosen == [decide(Question(Demand(), VARIANTS[1:2], seed), table).node for seed in range(200)]


def test_every_filter_has_a_mask() -> None:
    bad = NodeView("n", "cloud", "z", "", False, {}, "none", "full", 0, 0, 99.0, 9.0, facts={}, draining=True)
    variant = VariantView("v", "ONNX", "INT8", MIB, "d", 0.1, 9.0, sealing=SealingPolicy(zones=("a",)), blocked="no")
    demand = Demand(
        min_accuracy=0.9,
        formats=("LITERT",),
        precisions=("FLOAT32",),
        latency_ms=1.0,
        residency=("a",),
        max_price_per_hour=1.0,
        accelerator="gpu",
        apart=(("n", "z"),),
    )
    bad = replace(bad, avoid=frozenset({"v"}))
    found = sieve(demand, NodeTable([bad]).snapshot(), [variant])
    assert list(found.failing) == [name for name, _ in FILTERS]
    assert np.all(found.misses == len(FILTERS))
