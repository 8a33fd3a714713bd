"""What a place costs: the terms of the score, all in one currency, per 1,000 inferences. Pure.

A term is what it costs at the rates below; in the score it has the factor that the objective, or the demand itself,
gives it. Lower is better. Terms that are the same for every node are numbers, others arrays over the nodes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sealane_scheduler.columns import Rows, Snapshot
from sealane_scheduler.filters import DEFAULT_RATE, DEFAULT_RESPONSE_BYTES, Demand, VariantView, cpu_of, memory_of
from sealane_scheduler.masks import Numbers

#: What one unit costs, in units of currency per 1,000 inferences.
PER_MS = 0.01
PER_LATE_MS = 0.1
PER_COLD_MS = 0.1
PER_KWH = 0.30
PER_FRAGMENT = 0.05
PER_IDLE_ACCELERATOR = 0.2
PER_SHARED_ZONE = 0.1
PER_LOST_ACCURACY = 2.0
PER_UNFAITHFUL = 1.0
#: For every time that a model is twice as large: halving it is worth 2.5 points of accuracy at the edge.
EDGE_PER_DOUBLING, CLOUD_PER_DOUBLING = 0.05, 0.00005
WRONG_TIER = 5.0
#: Away from the deployments that it would rather be beside; in their zone it is half as much.
PER_DISTANCE = 0.5
EDGE_SCARCITY = 0.5

UNMEASURED_ACCURACY = 0.5
#: A model of this size has a footprint of one doubling.
SMALL_BYTES = 1 << 16
#: Bytes a second at which files become a loaded model.
LOAD_BYTES_PER_SECOND = 200e6
#: So many means of an exponential tail away it has no weight.
_NEVER = 40.0
#: Hours of calls over which one start of a model is spread.
HOURS_PER_START = 1.0

TERMS = (
    "price",
    "egress",
    "energy",
    "latency",
    "lateness",
    "cold_start",
    "fragmentation",
    "spread",
    "accuracy",
    "fidelity",
    "footprint",
    "tier",
    "affinity",
)
#: What is paid in the end, whatever it weighs in the score.
MONEY = ("price", "egress", "energy")
#: Objective -> factors; a term that is not named has 1.
PRESETS: Mapping[str, Mapping[str, float]] = {
    "balanced": {"fidelity": 0.0},
    "latency": {"latency": 100.0, "lateness": 10.0, "price": 0.2, "accuracy": 0.5, "fidelity": 0.0},
    "cost": {"price": 20.0, "egress": 20.0, "latency": 0.1, "accuracy": 0.5, "fidelity": 0.0},
    "green": {"energy": 20000.0, "price": 0.5, "latency": 0.5, "fidelity": 0.0},
    "accuracy": {"accuracy": 50.0, "latency": 0.1, "price": 0.1, "footprint": 0.001},
}

Terms = dict[str, Numbers | float]


@dataclass(frozen=True, slots=True)
class Capacity:
    """What of a node, or of several, matters to :func:`fragments`.

    Args:
        over: see :func:`columns.left_over`.
        per_cpu: share of the node that a thousandth of a core is.
        per_memory: share of the node that a byte is.
        accelerated: 1 where it has an accelerator.
    """

    over: Numbers | float
    per_cpu: Numbers | float
    per_memory: Numbers | float
    accelerated: Numbers | float

    @classmethod
    def of(cls, nodes: Snapshot, at: Rows | int | slice, over: Numbers | float) -> Capacity:
        """Of the nodes at some positions, or at one, with what is left over there."""
        return cls(over, nodes["per_cpu"][at], nodes["per_memory"][at], nodes["accelerated"][at])


def factors(demand: Demand) -> dict[str, float]:
    """Factor of every term: the demand's own, else its objective's, else 1."""
    given = dict(demand.weights)
    preset = PRESETS[demand.objective]
    return {name: given.get(name, preset.get(name, 1.0)) for name in TERMS}


def costs(demand: Demand, nodes: Snapshot, variant: VariantView, network: Numbers) -> Terms:
    """Every term of a variant on each of the nodes, at the rates alone.

    Args:
        demand: what is wanted.
        nodes: who is asked.
        variant: what would run there.
        network: milliseconds of a call on the wire, see :func:`masks.wire`.
    """
    accuracy = UNMEASURED_ACCURACY if variant.accuracy is None else variant.accuracy
    return {
        "price": _share(demand, nodes, variant) * nodes["price"] * (1000 / uses_per_hour(demand)),
        "egress": _egress(demand, nodes),
        "energy": nodes["watts"] * (_typical_ms(variant) / 3.6e6 * PER_KWH),
        "latency": PER_MS * (network + (variant.p99_ms or 0.0)),
        "lateness": _lateness(demand, network, variant),
        "cold_start": _cold_start(demand, nodes, variant),
        "fragmentation": fragments(demand, variant, Capacity.of(nodes, slice(None), nodes["left_over"])),
        "spread": _spread(demand, nodes),
        "accuracy": PER_LOST_ACCURACY * (1.0 - accuracy),
        "fidelity": PER_UNFAITHFUL * unfaithful(variant),
        "footprint": np.where(nodes["edge"], EDGE_PER_DOUBLING, CLOUD_PER_DOUBLING) * _doublings(variant),
        "tier": _tier(demand, nodes),
        "affinity": _affinity(demand, nodes),
    }


def weigh(weights: Mapping[str, float], found: Mapping[str, Numbers | float]) -> Numbers:
    """The score: the terms times their factors, in a fixed order, in millionths, so that equal is equal everywhere."""
    total: Numbers | float = 0.0
    for name, factor in weights.items():
        if factor:
            total = total + factor * found[name]
    return np.rint(np.asarray(total) * 1e6)


def uses_per_hour(demand: Demand) -> float:
    """Calls in an hour that a deployment is reckoned with."""
    return (demand.rate or DEFAULT_RATE) * 3600


def by_the_hour(demand: Demand) -> float:
    """What a score, which is of 1,000 calls, is multiplied with to compare deployments that are called unequally."""
    return uses_per_hour(demand) / 1000


def unfaithful(variant: VariantView) -> float:
    """How far a variant may be from what was trained where a test set shows no difference."""
    if variant.precision == "INT8":
        return 1.0
    return 0.1 if variant.converted else 0.0


def _doublings(variant: VariantView) -> float:
    return math.log2(1 + variant.size_bytes / SMALL_BYTES)


def _typical_ms(variant: VariantView) -> float:
    return (variant.p99_ms or 0.0) if variant.p50_ms is None else variant.p50_ms


def _share(demand: Demand, nodes: Snapshot, variant: VariantView) -> Numbers:
    """Share of a node that a copy takes, by what it takes most of; all of it where its size is not known."""
    share = np.maximum(cpu_of(demand) * nodes["per_cpu"], memory_of(demand, variant) * nodes["per_memory"])
    return np.where(share > 0, np.minimum(share, 1.0), 1.0)


def _egress(demand: Demand, nodes: Snapshot) -> Numbers:
    gib = (demand.response_bytes or DEFAULT_RESPONSE_BYTES) * 1000 / (1 << 30)
    paid: Numbers = nodes["egress"] * gib
    if not demand.origin:
        return paid
    return np.where(nodes["zone"] == nodes.pools.zones.known(demand.origin), 0.0, paid)


def _lateness(demand: Demand, network: Numbers, variant: VariantView) -> Numbers | float:
    """Expected milliseconds beyond the objective, at their rate.

    Half the runs take the median; the other half's excess falls off exponentially, so that the 99th percentile is as
    measured.
    """
    if not demand.latency_ms:
        return 0.0
    typical = _typical_ms(variant)
    mean = max((variant.p99_ms or 0.0) - typical, 1e-6) / math.log(50)
    over = network + (typical - demand.latency_ms)
    late = np.zeros(len(over))
    near = np.flatnonzero(over > -_NEVER * mean)  # further away it is never late
    over = over[near]
    late[near] = np.where(over > 0, over + 0.5 * mean, 0.5 * mean * np.exp(np.minimum(over, 0.0) / mean))
    return PER_LATE_MS * late


def _cold_start(demand: Demand, nodes: Snapshot, variant: VariantView) -> Numbers:
    size = variant.size_bytes
    milliseconds = size * nodes["in_ms"] + size / LOAD_BYTES_PER_SECOND * 1000
    holders = nodes.holders.get(variant.digest)
    if holders:
        milliseconds[nodes.positions(holders)] = 0.0
    return np.asarray(milliseconds * (PER_COLD_MS / (uses_per_hour(demand) * HOURS_PER_START)))


def fragments(demand: Demand, variant: VariantView, of: Capacity) -> Numbers | float:
    """How much more of a node is left that fits nothing, and accelerators taken by who needs none.

    Args:
        demand: what is wanted.
        variant: what would run there.
        of: a node, or several.
    """
    after = of.over - cpu_of(demand) * of.per_cpu + memory_of(demand, variant) * of.per_memory
    growth: Numbers | float = PER_FRAGMENT * (np.abs(after) - np.abs(of.over))
    return growth if demand.accelerator else growth + PER_IDLE_ACCELERATOR * of.accelerated


def _spread(demand: Demand, nodes: Snapshot) -> Numbers | float:
    """Share of the copies that are in the same zone."""
    if not demand.apart:
        return 0.0
    shared = np.zeros(len(nodes))
    for _, zone in demand.apart:
        shared += nodes["zone"] == nodes.pools.zones.known(zone)
    return np.asarray(shared * (PER_SHARED_ZONE / len(demand.apart)))


def _affinity(demand: Demand, nodes: Snapshot) -> Numbers | float:
    """How far it is from the nearest copy of a deployment that it would rather be beside."""
    if not demand.beside:
        return 0.0
    far = np.ones(len(nodes))
    for _, zone in demand.beside:
        far[nodes["zone"] == nodes.pools.zones.known(zone)] = 0.5
    far[nodes.positions(nodes.index[node] for node, _ in demand.beside if node in nodes.index)] = 0.0
    return np.asarray(PER_DISTANCE * far)


def _tier(demand: Demand, nodes: Snapshot) -> Numbers | float:
    if demand.tier:
        return np.where(nodes["edge"] == (demand.tier == "edge"), 0.0, WRONG_TIER)
    # Edge capacity is scarce: it is kept for those who ask for it or must be there.
    return 0.0 if demand.residency else np.where(nodes["edge"], EDGE_SCARCITY, 0.0)
