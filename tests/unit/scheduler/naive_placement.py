"""The decision as one would write it down: every pair in a loop, every term by itself; arrays are held against it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from sealane_scheduler import terms
from sealane_scheduler.filters import (
    ASSUMED_BYTES_PER_SECOND,
    FILTERS,
    Demand,
    NodeView,
    VariantView,
    cpu_of,
    memory_of,
    wire_ms,
)


def with_origin(demand: Demand, nodes: Sequence[NodeView]) -> Demand:
    """The demand with the round trip of its callers."""
    there = [node.rtt_ms for node in nodes if node.alive and node.zone == demand.origin]
    return replace(demand, origin_rtt_ms=min(there) if demand.origin and there else 0.0)


def failures(demand: Demand, node: NodeView, variant: VariantView) -> list[str]:
    """Filters that a pair fails."""
    return [name for name, check in FILTERS if check(demand, node, variant)]


def feasible(
    demand: Demand, nodes: Sequence[NodeView], variants: Sequence[VariantView]
) -> dict[tuple[str, str], dict[str, float]]:
    """(node, variant) that pass, with their terms."""
    demand = with_origin(demand, nodes)
    return {
        (node.node, variant.variant): scored(demand, node, variant)
        for node in nodes
        for variant in variants
        if not failures(demand, node, variant)
    }


def scored(demand: Demand, node: NodeView, variant: VariantView) -> dict[str, float]:
    """Every term, weighed."""
    uses = (demand.rate or 1.0) * 3600
    needs = [
        need / whole
        for need, whole in ((cpu_of(demand), node.cpu_milli), (memory_of(demand, variant), node.memory))
        if whole
    ]
    local = bool(demand.origin) and demand.origin == node.zone
    median = (variant.p99_ms or 0.0) if variant.p50_ms is None else variant.p50_ms
    size = variant.size_bytes
    cold = size / (node.in_bytes_per_second or ASSUMED_BYTES_PER_SECOND) + size / terms.LOAD_BYTES_PER_SECOND
    accuracy = 0.5 if variant.accuracy is None else variant.accuracy
    edge = node.tier == "edge"
    plain = {
        "price": (min(max(needs), 1.0) if needs else 1.0) * node.price_per_hour * 1000 / uses,
        "egress": 0.0 if local else node.egress_per_gib * (demand.response_bytes or 1024) * 1000 / (1 << 30),
        "energy": node.watts * median / 3.6e6 * terms.PER_KWH,
        "latency": terms.PER_MS * (wire_ms(demand, node) + (variant.p99_ms or 0.0)),
        "lateness": terms.PER_LATE_MS * late(demand, node, variant, median),
        "cold_start": 0.0 if variant.digest in node.resident else cold * 1000 * terms.PER_COLD_MS / uses,
        "fragmentation": fragments(demand, node, variant),
        "spread": terms.PER_SHARED_ZONE
        * sum(zone == node.zone for _, zone in demand.apart)
        / max(len(demand.apart), 1),
        "accuracy": terms.PER_LOST_ACCURACY * (1 - accuracy),
        "fidelity": terms.unfaithful(variant),
        "footprint": (terms.EDGE_PER_DOUBLING if edge else terms.CLOUD_PER_DOUBLING) * math.log2(1 + size / 65536),
        "tier": tier(demand, edge),
        "affinity": terms.PER_DISTANCE * distance(demand, node),
    }
    weights = terms.factors(demand)
    return {name: weights[name] * value for name, value in plain.items()}


def distance(demand: Demand, node: NodeView) -> float:
    if not demand.beside or node.node in {name for name, _ in demand.beside}:
        return 0.0
    return 0.5 if node.zone in {zone for _, zone in demand.beside} else 1.0


def tier(demand: Demand, edge: bool) -> float:
    if demand.tier:
        return 0.0 if (demand.tier == "edge") == edge else terms.WRONG_TIER
    return terms.EDGE_SCARCITY if edge and not demand.residency else 0.0


def late(demand: Demand, node: NodeView, variant: VariantView, median: float) -> float:
    """Expected milliseconds beyond the objective where half the runs take the median, the others exponentially more."""
    if not demand.latency_ms:
        return 0.0
    mean = max((variant.p99_ms or 0.0) - median, 1e-6) / math.log(50)
    over = wire_ms(demand, node) + median - demand.latency_ms
    return over + mean / 2 if over > 0 else mean / 2 * math.exp(over / mean)


def fragments(demand: Demand, node: NodeView, variant: VariantView) -> float:
    def imbalance(cpu: int, memory: int) -> float:
        return abs((cpu / node.cpu_milli if node.cpu_milli else 0.0) - (memory / node.memory if node.memory else 0.0))

    after = imbalance(node.free_cpu_milli - cpu_of(demand), node.free_memory - memory_of(demand, variant))
    growth = terms.PER_FRAGMENT * (after - imbalance(node.free_cpu_milli, node.free_memory))
    wasted = bool(node.accelerator) and not demand.accelerator
    return growth + (terms.PER_IDLE_ACCELERATOR if wasted else 0.0)
