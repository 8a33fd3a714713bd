"""Compute, data security, latency, cost: on one site, each of the four alone changes where a model goes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sealane_scheduler.decision import Decision
from sealane_scheduler.filters import MIB, Demand, NodeView, VariantView
from sealane_scheduler.placement import place

GIB = 1 << 30
ONNX = {"onnxruntime": frozenset({"ONNX"})}
#: In the cloud: much room, at a price, far away.
CLOUD = NodeView(
    node="cloud-1",
    tier="cloud",
    zone="eu-1",
    clearance="internal",
    alive=True,
    runtimes=ONNX,
    free_memory=60 * GIB,
    free_cpu_milli=15_000,
    memory=64 * GIB,
    cpu_milli=16_000,
    rtt_ms=30.0,
    price_per_hour=1.6,
    watts=200.0,
)
#: With an accelerator beside it, dearer.
GPU = replace(CLOUD, node="gpu-1", accelerator="cuda", price_per_hour=4.0, watts=700.0)
#: In a cheap region, further away.
SPOT = replace(CLOUD, node="spot-1", zone="us-1", clearance="public", price_per_hour=0.2, rtt_ms=120.0)
#: At the site: near, trusted, small.
EDGE = replace(
    CLOUD,
    node="edge-7",
    tier="edge",
    zone="site-a",
    clearance="restricted",
    free_memory=600 * MIB,
    free_cpu_milli=1500,
    memory=2 * GIB,
    cpu_milli=4000,
    rtt_ms=2.0,
    price_per_hour=0.1,
    watts=8.0,
)
SITE = (CLOUD, GPU, SPOT, EDGE)
FLOAT = VariantView("float", "ONNX", "FLOAT32", 100 * MIB, "sha256:1", 0.981, 12.0, 9.0)
INT8 = VariantView("int8", "ONNX", "INT8", 26 * MIB, "sha256:2", 0.972, 5.0, 4.0, converted=True)
BASE = Demand(
    data_class="internal", residency=("eu-1", "site-a"), latency_ms=100.0, cpu_milli=1000, memory_bytes=256 * MIB
)


def chosen(demand: Demand) -> tuple[str, str]:
    decision = place(demand, SITE, (FLOAT, INT8))
    return decision.node, decision.variant


#: What alone changes -> where it goes then.
FLIPS = {
    "compute: an accelerator": (replace(BASE, accelerator="cuda"), "gpu-1"),
    "data: restricted": (replace(BASE, data_class="restricted"), "edge-7"),
    "latency: 20 ms": (replace(BASE, latency_ms=20.0), "edge-7"),
    "cost: at most 0.5 an hour": (replace(BASE, max_price_per_hour=0.5), "edge-7"),
}


@pytest.mark.parametrize("case", FLIPS.values(), ids=FLIPS)
def test_each_of_the_four_alone_flips_the_answer(case: tuple[Demand, str]) -> None:
    demand, node = case
    assert chosen(BASE)[0] == "cloud-1"
    assert chosen(demand)[0] == node != "cloud-1"


#: From another beginning: public data, without an objective. What alone changes -> where it goes then.
ANYWHERE = replace(BASE, data_class="public", residency=(), latency_ms=0.0, objective="cost")
BACK = {
    "compute: 12 cores": (
        replace(ANYWHERE, tier="edge", cpu_milli=1000),
        replace(ANYWHERE, tier="edge", cpu_milli=12_000),
    ),
    "data: internal": (ANYWHERE, replace(ANYWHERE, data_class="internal")),
    "latency: 60 ms": (ANYWHERE, replace(ANYWHERE, latency_ms=60.0)),
    "cost: latency weighs more": (ANYWHERE, replace(ANYWHERE, objective="latency")),
}


@pytest.mark.parametrize("case", BACK.values(), ids=BACK)
def test_each_of_them_flips_the_score_too(case: tuple[Demand, Demand]) -> None:
    before, after = case
    assert chosen(before)[0] != chosen(after)[0] != ""


def test_an_objective_changes_which_variant_it_is() -> None:
    assert chosen(replace(BASE, residency=("site-a",)))[1] == "int8"  # memory is scarce at the edge
    assert chosen(replace(BASE, objective="accuracy"))[1] == "float"
    assert chosen(replace(BASE, objective="accuracy", precisions=("INT8",)))[1] == "int8"


def test_green_takes_what_draws_least_and_own_weights_do_what_an_objective_does() -> None:
    anywhere = replace(ANYWHERE, objective="balanced")
    assert chosen(anywhere)[0] == "cloud-1"
    assert chosen(replace(anywhere, objective="green"))[0] == "edge-7"
    assert chosen(replace(anywhere, weights=(("energy", 2000.0), ("tier", 0.0))))[0] == "edge-7"


def test_callers_at_the_site_are_nearer_to_its_node() -> None:
    at_site = replace(BASE, data_class="public", latency_ms=14.0, origin="site-a")
    assert chosen(at_site) == ("edge-7", "int8")
    assert chosen(replace(at_site, origin="eu-1"))[0] == "cloud-1"
    assert place(replace(at_site, origin="us-1"), SITE, (INT8,)).binding_constraint == "latency"


#: What is asked for -> what binds, whom it would run on, and what is said.
INFEASIBLE = {
    "compute": (
        replace(BASE, residency=("site-a",), memory_bytes=600 * MIB),
        "memory",
        "edge-7",
        "needs 652 MiB, the node lacks 53 MiB",
        "int8 would run on edge-7 with 52 MiB more memory free there",
    ),
    "accelerator": (
        replace(BASE, residency=("site-a",), accelerator="cuda"),
        "accelerator",
        "edge-7",
        "needs cuda, the node has none",
        "would run on edge-7 with an accelerator cuda there",
    ),
    "data": (
        replace(BASE, data_class="restricted", residency=("eu-1",)),
        "clearance",
        "cloud-1",
        "data is restricted, the node is cleared for internal",
        "would run on cloud-1 with clearance restricted of that node",
    ),
    "latency": (
        replace(BASE, latency_ms=8.0),
        "latency",
        "edge-7",
        "8 ms wanted, 11.1 ms expected",
        "int8 would run on edge-7 with an objective of 12 ms in place of 8 ms",
    ),
    "cost": (
        replace(BASE, residency=("eu-1",), max_price_per_hour=0.5),
        "price",
        "cloud-1",
        "at most 0.5 an hour wanted, the node costs 1.6",
        "would run on cloud-1 with a highest price of 1.6 an hour",
    ),
}


@pytest.mark.parametrize("case", INFEASIBLE.values(), ids=INFEASIBLE)
def test_an_infeasible_demand_names_what_binds_and_the_nearest_miss(case: tuple[Demand, str, str, str, str]) -> None:
    demand, constraint, node, found, remedy = case
    decision = place(demand, SITE, (FLOAT, INT8))
    assert (decision.node, decision.binding_constraint) == ("", constraint)
    assert found in decision.unavailable_reason and node in decision.unavailable_reason
    told = _filter(decision, constraint)
    assert told.nearest.node == node and (constraint, found) in told.nearest.failures
    assert decision.changes[0].filters == (constraint,) and remedy in decision.changes[0].text


@pytest.mark.parametrize("case", INFEASIBLE.values(), ids=INFEASIBLE)
def test_what_would_make_it_feasible_does(case: tuple[Demand, str, str, str, str]) -> None:
    demand, constraint, node, _, _ = case
    granted = {
        "memory": (demand, replace(EDGE, free_memory=EDGE.free_memory + 52 * MIB)),
        "accelerator": (demand, replace(EDGE, accelerator="cuda")),
        "clearance": (demand, replace(CLOUD, clearance="restricted")),
        "latency": (replace(demand, latency_ms=12.0), EDGE),
        "price": (replace(demand, max_price_per_hour=1.6), CLOUD),
    }
    changed, there = granted[constraint]
    site = [there if item.node == there.node else item for item in SITE]
    assert place(changed, site, (FLOAT, INT8)).node == node


def test_where_no_single_thing_is_enough_all_are_named() -> None:
    decision = place(
        replace(BASE, residency=("us-1",), accelerator="cuda", latency_ms=0.0), (CLOUD, SPOT, EDGE), (INT8,)
    )
    assert decision.node == ""
    (change,) = decision.changes
    assert change.filters == ("clearance", "accelerator")
    assert change.text == (
        "int8 would run on spot-1 with clearance internal of that node and an accelerator cuda there"
    )


def test_the_neighbours_on_the_front_say_what_they_give_and_take() -> None:
    dear = replace(EDGE, price_per_hour=2.0)
    decision = place(replace(ANYWHERE, objective="balanced", tier="cloud"), (CLOUD, SPOT, dear), (INT8,))
    assert decision.node == "cloud-1"
    faster, cheaper = decision.neighbours
    assert faster.text == "edge-7 would be 28 ms faster for 5x the price"
    assert cheaper.text == "spot-1 would be 90 ms slower for 0.13x the price"
    assert (faster.latency_ms, cheaper.latency_ms) == (pytest.approx(-28.0), pytest.approx(90.0))


def _filter(decision: Decision, name: str):  # type: ignore[no-untyped-def]
    return next(item for item in decision.filters if item.name == name)
