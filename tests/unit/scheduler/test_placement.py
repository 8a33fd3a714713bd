"""The placement decision, factor by factor."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealane_scheduler.filters import FILTERS, MIB, Demand, NodeView, VariantView
from sealane_scheduler.placement import place

LITERT = {"litert": frozenset({"LITERT"})}
TENSORFLOW = {"tensorflow": frozenset({"SAVED_MODEL"})}
CLOUD = NodeView(
    node="cloud-1",
    tier="cloud",
    zone="eu-1",
    clearance="internal",
    alive=True,
    runtimes={**LITERT, **TENSORFLOW},
    free_memory=8 << 30,
    free_cpu_milli=2000,
    rtt_ms=0.4,
    price_per_hour=0.2,
)
EDGE = replace(
    CLOUD,
    node="edge-1",
    tier="edge",
    zone="site-a",
    clearance="restricted",
    runtimes=LITERT,
    price_per_hour=0.02,
)
SAVED = VariantView("savedmodel", "SAVED_MODEL", "FLOAT32", 700_000, "sha256:1", 0.9861, 0.6)
FLOAT = VariantView("litert-float", "LITERT", "FLOAT32", 230_000, "sha256:2", 0.9861, 0.05, converted=True)
INT8 = VariantView("litert-int8", "LITERT", "INT8", 70_000, "sha256:3", 0.9833, 0.04, converted=True)
ALL = (SAVED, FLOAT, INT8)
RESTRICTED = Demand(data_class="restricted", residency=("site-a",), latency_ms=50)
EDGE_PREFERRED = Demand(data_class="internal", tier="edge", latency_ms=50)
ACCURATE = Demand(objective="accuracy")


def chosen(demand: Demand, nodes: tuple[NodeView, ...] = (CLOUD, EDGE)) -> tuple[str, str]:
    decision = place(demand, nodes, ALL)
    return decision.node, decision.variant


def test_restricted_data_stays_at_its_site_as_int8() -> None:
    assert chosen(RESTRICTED) == ("edge-1", "litert-int8")


def test_edge_preferred_goes_to_the_edge_as_int8() -> None:
    assert chosen(EDGE_PREFERRED) == ("edge-1", "litert-int8")


@pytest.mark.parametrize("int8", [0.9833, 0.9861, 0.99])
def test_accuracy_first_gets_a_float_variant_in_the_cloud(int8: float) -> None:
    decision = place(ACCURATE, (CLOUD, EDGE), (SAVED, FLOAT, replace(INT8, accuracy=int8)))
    assert (decision.node, decision.variant) == ("cloud-1", "savedmodel")


def test_a_lost_edge_sends_internal_data_to_the_cloud() -> None:
    assert chosen(EDGE_PREFERRED, (CLOUD, replace(EDGE, alive=False)))[0] == "cloud-1"


def test_a_lost_edge_leaves_restricted_data_nowhere_and_says_why() -> None:
    decision = place(RESTRICTED, (CLOUD, replace(EDGE, alive=False)), ALL)
    assert (decision.node, decision.binding_constraint) == ("", "residency")
    assert "site-a" in decision.unavailable_reason
    assert "edge-1 could serve it and is lost" in decision.unavailable_reason


FLIPS: dict[str, tuple[Demand, NodeView, str]] = {
    "residency": (replace(EDGE_PREFERRED, residency=("eu-1",)), EDGE, "residency"),
    "clearance": (EDGE_PREFERRED, replace(EDGE, clearance="public"), "clearance"),
    "accelerator": (replace(EDGE_PREFERRED, accelerator="gpu"), EDGE, "accelerator"),
    "runtime": (EDGE_PREFERRED, replace(EDGE, runtimes={}), "runtime"),
    "price": (replace(EDGE_PREFERRED, max_price_per_hour=0.01), EDGE, "price"),
    "latency": (EDGE_PREFERRED, replace(EDGE, rtt_ms=51.0), "latency"),
    "memory": (EDGE_PREFERRED, replace(EDGE, free_memory=MIB), "memory"),
    "cpu": (EDGE_PREFERRED, replace(EDGE, free_cpu_milli=0), "cpu"),
    "accuracy": (replace(EDGE_PREFERRED, min_accuracy=0.999), EDGE, "accuracy"),
    "format": (replace(EDGE_PREFERRED, formats=("ONNX",)), EDGE, "format"),
    "refused": (EDGE_PREFERRED, replace(EDGE, avoid=frozenset({"litert-int8", "litert-float"})), "refused"),
}


@pytest.mark.parametrize("case", FLIPS.values(), ids=FLIPS)
def test_each_filter_rejects_and_is_named(case: tuple[Demand, NodeView, str]) -> None:
    demand, node, name = case
    decision = place(demand, [node], (FLOAT, INT8))
    assert decision.node == ""
    assert decision.binding_constraint == name
    assert {item.failures[0][0] for item in decision.rejected} == {name}


def test_every_candidate_is_accounted_for() -> None:
    decision = place(RESTRICTED, (CLOUD, EDGE), ALL)
    told = {(item.node, item.variant) for item in (*decision.rejected, *decision.candidates)}
    assert told == {(node.node, variant.variant) for node in (CLOUD, EDGE) for variant in ALL}
    best = decision.candidates[0]
    assert best.score == pytest.approx(sum(best.terms.values()))


def test_no_worker_and_no_variant_are_said() -> None:
    assert place(ACCURATE, (), ALL).binding_constraint == "nodes"
    assert place(ACCURATE, (CLOUD,), ()).binding_constraint == "variants"


NODES = st.lists(
    st.builds(
        NodeView,
        node=st.sampled_from([f"n{i}" for i in range(6)]),
        tier=st.sampled_from(["cloud", "edge"]),
        zone=st.sampled_from(["a", "b"]),
        clearance=st.sampled_from(["public", "internal", "restricted"]),
        alive=st.booleans(),
        runtimes=st.sampled_from([{}, LITERT, TENSORFLOW, {**LITERT, **TENSORFLOW}]),
        free_memory=st.integers(0, 1 << 30),
        free_cpu_milli=st.integers(0, 4000),
        rtt_ms=st.floats(0, 100),
        price_per_hour=st.floats(0, 5),
    ),
    max_size=5,
    unique_by=lambda node: node.node,
)
DEMANDS = st.builds(
    Demand,
    min_accuracy=st.sampled_from([0.0, 0.985]),
    latency_ms=st.sampled_from([0.0, 20.0]),
    data_class=st.sampled_from(["public", "internal", "restricted"]),
    residency=st.sampled_from([(), ("a",)]),
    tier=st.sampled_from(["", "edge", "cloud"]),
    objective=st.sampled_from(["balanced", "latency", "cost", "accuracy"]),
)


@given(DEMANDS, NODES)
def test_what_is_chosen_passes_every_filter_and_order_does_not_matter(demand: Demand, nodes: list[NodeView]) -> None:
    decision = place(demand, nodes, ALL)
    assert place(demand, nodes[::-1], ALL) == decision
    feasible = [
        (node.node, variant.variant)
        for node in nodes
        for variant in ALL
        if not any(check(demand, node, variant) for _, check in FILTERS)
    ]
    if feasible:
        assert (decision.node, decision.variant) in feasible
    else:
        assert decision.node == "" and decision.binding_constraint
