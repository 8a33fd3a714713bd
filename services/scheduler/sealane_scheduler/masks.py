"""The filters over all nodes at once, as arrays of booleans. Pure; held against the words of :mod:`filters` by tests.

What depends on the node alone is asked once, what depends on the variant alone needs no array, and a filter that
nothing is demanded of is not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sealane.security.sealing_policy import SealingPolicy
from sealane_scheduler.columns import Rows, Snapshot
from sealane_scheduler.filters import (
    CLEARANCE,
    DEFAULT_REQUEST_BYTES,
    DEFAULT_RESPONSE_BYTES,
    FILTERS,
    LOCAL_RTT_MS,
    Demand,
    VariantView,
    cpu_of,
    memory_of,
)

Mask = NDArray[np.bool_]
Numbers = NDArray[np.float64]
#: Who fails: an array, or the answer for all nodes alike.
Failing = Mask | bool

#: How far from passing is who lacks something of another kind, or what data is trusted to; see :func:`lack`.
OF_KIND, OF_TRUST, MOST_TRUST = 2.0, 3.0, 8.0
_NAMES = tuple(name for name, _ in FILTERS)


def wire(demand: Demand, nodes: Snapshot, at: Rows | slice = slice(None)) -> Numbers:
    """:func:`filters.wire_ms` of every node, or of some."""
    there = (demand.request_bytes or DEFAULT_REQUEST_BYTES) * nodes["in_ms"][at]
    back = (demand.response_bytes or DEFAULT_RESPONSE_BYTES) * nodes["out_ms"][at]
    far: Numbers = nodes["rtt"][at] + demand.origin_rtt_ms + (there + back)
    if not demand.origin:
        return far
    return np.where(nodes["zone"][at] == nodes.pools.zones.known(demand.origin), LOCAL_RTT_MS, far)


def _outside(nodes: Snapshot, zones: Sequence[str]) -> Mask:
    codes = [nodes.pools.zones.known(zone) for zone in zones]
    if len(codes) == 1:
        return np.asarray(nodes["zone"] != codes[0])
    outside = np.ones(len(nodes.pools.zones.values), np.bool_)
    outside[[code for code in codes if code >= 0]] = False
    return np.asarray(outside[nodes["zone"]])


def _residency(demand: Demand, nodes: Snapshot) -> Failing:
    return bool(demand.residency) and _outside(nodes, demand.residency)


def _clearance(demand: Demand, nodes: Snapshot) -> Failing:
    failing: Mask = nodes["clearance"] < CLEARANCE[demand.data_class]
    return failing


def _sandbox(demand: Demand, nodes: Snapshot) -> Failing:
    failing: Mask = nodes["sandbox_gap"] < 0
    return failing


def _accelerator(demand: Demand, nodes: Snapshot) -> Failing:
    if not demand.accelerator:
        return False
    failing: Mask = nodes["accelerator"] != nodes.pools.accelerators.known(demand.accelerator)
    return failing


def _price(demand: Demand, nodes: Snapshot) -> Failing:
    if not demand.max_price_per_hour:
        return False
    failing: Mask = nodes["price"] > demand.max_price_per_hour
    return failing


def _cpu(demand: Demand, nodes: Snapshot) -> Failing:
    failing: Mask = nodes["free_cpu"] < cpu_of(demand)
    return failing


def _spread(demand: Demand, nodes: Snapshot) -> Failing:
    if not demand.apart:
        return False
    failing = np.zeros(len(nodes), np.bool_)
    taken = [nodes.index[node] for node, _ in demand.apart if node in nodes.index]
    failing[nodes.positions(taken)] = True
    if demand.spread == "zone":
        failing |= ~_outside(nodes, [zone for _, zone in demand.apart])
    return failing


def _draining(demand: Demand, nodes: Snapshot) -> Failing:
    failing: Mask = nodes["draining"]
    return failing


def _alive(demand: Demand, nodes: Snapshot) -> Failing:
    failing: Mask = ~nodes["alive"]
    return failing


def _sealing(demand: Demand, nodes: Snapshot, variant: VariantView) -> Failing:
    if replace(variant.sealing, required=False) == SealingPolicy():
        return False
    verdicts = nodes.pools.facts.judged(variant.sealing, lambda facts: bool(variant.sealing.refusal(facts)))
    failing: Mask = verdicts[nodes["facts"]]
    return failing


def _policy(demand: Demand, nodes: Snapshot, variant: VariantView) -> Failing:
    return bool(variant.blocked)


def _format(demand: Demand, nodes: Snapshot, variant: VariantView) -> Failing:
    return bool(demand.formats) and variant.format not in demand.formats


def _precision(demand: Demand, nodes: Snapshot, variant: VariantView) -> Failing:
    return bool(demand.precisions) and variant.precision not in demand.precisions


def _accuracy(demand: Demand, nodes: Snapshot, variant: VariantView) -> Failing:
    return bool(demand.min_accuracy) and not (variant.accuracy or 0.0) >= demand.min_accuracy


def _runtime(demand: Demand, nodes: Snapshot, variant: VariantView) -> Failing:
    def unable(kit: dict[str, tuple[str, ...]]) -> bool:
        able = [name for name, formats in kit.items() if not variant.format or variant.format in formats]
        return variant.runtime not in able if variant.runtime else bool(variant.format) and not able

    verdicts = nodes.pools.kits.judged((variant.format, variant.runtime), unable)
    if not verdicts.any():
        return False
    failing: Mask = verdicts[nodes["kit"]]
    return failing


def _latency(demand: Demand, nodes: Snapshot, variant: VariantView) -> Failing:
    if not demand.latency_ms:
        return False
    failing: Mask = wire(demand, nodes) + (variant.p99_ms or 0.0) > demand.latency_ms
    return failing


def _memory(demand: Demand, nodes: Snapshot, variant: VariantView) -> Failing:
    failing: Mask = nodes["free_memory"] < memory_of(demand, variant)
    return failing


def _refused(demand: Demand, nodes: Snapshot, variant: VariantView) -> Failing:
    refusers = nodes.avoided.get(variant.variant)
    if not refusers:
        return False
    failing = np.zeros(len(nodes), np.bool_)
    failing[nodes.positions(refusers)] = True
    return failing


_OF_NODE: dict[str, Callable[[Demand, Snapshot], Failing]] = {
    "residency": _residency,
    "clearance": _clearance,
    "sandbox": _sandbox,
    "accelerator": _accelerator,
    "price": _price,
    "cpu": _cpu,
    "spread": _spread,
    "draining": _draining,
    "alive": _alive,
}
_OF_PAIR: dict[str, Callable[[Demand, Snapshot, VariantView], Failing]] = {
    "sealing": _sealing,
    "policy": _policy,
    "format": _format,
    "precision": _precision,
    "accuracy": _accuracy,
    "runtime": _runtime,
    "latency": _latency,
    "memory": _memory,
    "refused": _refused,
}


@dataclass(frozen=True, slots=True)
class Sieve:
    """What every filter says of every pair of variant and node.

    Args:
        failing: filter -> who fails it, variants by nodes; filters that nobody fails are absent.
        misses: for each variant and node, how many filters it fails.
        rejected: filter -> how many pairs fail it.
    """

    failing: dict[str, Mask]
    misses: NDArray[np.uint8]
    rejected: dict[str, int]

    @property
    def passed(self) -> Mask:
        """Pairs that no filter rejects, variants by nodes."""
        passed: Mask = self.misses == 0
        return passed

    def failed(self, pair: tuple[int, int]) -> tuple[str, ...]:
        """Filters that a pair fails, in their order."""
        return tuple(name for name, failing in self.failing.items() if failing[pair])


def sieve(demand: Demand, nodes: Snapshot, variants: Sequence[VariantView]) -> Sieve:
    """Ask every filter."""
    count = len(nodes)
    shape = (len(variants), count)
    if not count or not variants:
        return Sieve({}, np.zeros(shape, np.uint8), {})
    failing: dict[str, Mask] = {}
    rejected: dict[str, int] = {}
    alike = np.zeros(count, np.uint8)
    for name, of_node in _OF_NODE.items():
        found = of_node(demand, nodes)
        if found is False:
            continue
        mask, fails = _counted(found, count)
        if fails:
            alike += mask.view(np.uint8)
            same = mask[None] if len(variants) == 1 else np.broadcast_to(mask, shape)
            failing[name], rejected[name] = same, fails * len(variants)
    misses = np.empty(shape, np.uint8)
    misses[:] = alike
    for name, of_pair in _OF_PAIR.items():
        answers = [of_pair(demand, nodes, variant) for variant in variants]
        if all(answer is False for answer in answers):
            continue
        masks = [_counted(answer, count) for answer in answers]
        if fails := sum(found for _, found in masks):
            alone = len(masks) == 1
            failing[name] = masks[0][0][None] if alone else np.stack([mask for mask, _ in masks])
            rejected[name] = fails
            misses += failing[name].view(np.uint8)
    return Sieve({name: failing[name] for name in _NAMES if name in failing}, misses, rejected)


def _counted(failing: Failing, count: int) -> tuple[Mask, int]:
    """Who fails as an array, and how many that are."""
    if isinstance(failing, bool):
        return (np.ones if failing else np.zeros)(count, np.bool_), count * failing
    return failing, int(np.count_nonzero(failing))


def lack(name: str, demand: Demand, nodes: Snapshot, variant: VariantView, positions: Rows) -> Numbers | float:
    """How far some nodes that fail a filter are from passing it.

    What is measured counts as a share of what is demanded, OF_KIND at most; what is of another kind (a runtime, an
    accelerator) OF_KIND; and what data is trusted to more than that, since it is the last that should give way.
    """
    match name:
        case "memory" | "cpu" | "latency" | "price" | "accuracy":
            return np.minimum(_share_lacking(name, demand, nodes, variant, positions), OF_KIND)
        case "clearance":
            return np.asarray(OF_TRUST + CLEARANCE[demand.data_class] - nodes["clearance"][positions])
        case "sandbox":
            return np.asarray(OF_TRUST - nodes["sandbox_gap"][positions])
        case "residency" | "sealing" | "policy":
            return MOST_TRUST
    return OF_KIND


def _share_lacking(
    name: str, demand: Demand, nodes: Snapshot, variant: VariantView, positions: Rows
) -> Numbers | float:
    match name:
        case "memory":
            return np.asarray(1 - nodes["free_memory"][positions] / memory_of(demand, variant))
        case "cpu":
            return np.asarray(1 - nodes["free_cpu"][positions] / cpu_of(demand))
        case "latency":
            return (wire(demand, nodes, positions) + (variant.p99_ms or 0.0)) / demand.latency_ms - 1
        case "price":
            return np.asarray(nodes["price"][positions] / demand.max_price_per_hour - 1)
    return 1 - (variant.accuracy or 0.0) / demand.min_accuracy


def origin_rtt(demand: Demand, nodes: Snapshot) -> float:
    """Round trip between the callers' zone and the gateway: the least that a living node of the zone has, else 0."""
    if not demand.origin:
        return 0.0
    there = np.flatnonzero((nodes["zone"] == nodes.pools.zones.known(demand.origin)) & nodes["alive"])
    return float(nodes["rtt"][there].min()) if len(there) else 0.0
