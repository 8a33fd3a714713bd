"""What would make a demand feasible that is not: which one thing would have to change, and by how much. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from sealane_scheduler.decision import Change
from sealane_scheduler.filters import MIB, Demand, NodeView, VariantView, cpu_of, expected_ms, memory_of
from sealane_scheduler.nearest import Miss
from sealane_scheduler.scan import Pair, Scan

#: Single changes that are told.
_TOLD = 3


def _memory(demand: Demand, node: NodeView, variant: VariantView) -> str:
    return f"{math.ceil((memory_of(demand, variant) - node.free_memory) / MIB)} MiB more memory free there"


def _accuracy(demand: Demand, node: NodeView, variant: VariantView) -> str:
    if variant.accuracy is None:
        return f"a measured accuracy of {variant.variant}"
    return f"a least accuracy of {math.floor(variant.accuracy * 1e4) / 1e4:g} in place of {demand.min_accuracy:g}"


def _latency(demand: Demand, node: NodeView, variant: VariantView) -> str:
    return f"an objective of {math.ceil(expected_ms(demand, node, variant))} ms in place of {demand.latency_ms:g} ms"


def _spread(demand: Demand, node: NodeView, variant: VariantView) -> str:
    if any(node.node == taken for taken, _ in demand.apart):
        return "fewer copies"
    return f"copies that may share the zone {node.zone}"


_WORDS: dict[str, Callable[[Demand, NodeView, VariantView], str]] = {
    "residency": lambda demand, node, variant: f"{node.zone or 'a zone of that node'} among the zones of its residency",
    "clearance": lambda demand, node, variant: f"clearance {demand.data_class} of that node",
    "sealing": lambda demand, node, variant: "leave of the model's owner to be opened there",
    "policy": lambda demand, node, variant: "what the policy of the project demands of the variant",
    "sandbox": lambda demand, node, variant: f"sandbox level {node.sandbox_wanted} there",
    "accelerator": lambda demand, node, variant: f"an accelerator {demand.accelerator} there",
    "format": lambda demand, node, variant: f"{variant.format} among the formats allowed",
    "precision": lambda demand, node, variant: f"{variant.precision} among the precisions allowed",
    "accuracy": _accuracy,
    "runtime": lambda demand, node, variant: f"runtime {variant.runtime or 'for ' + variant.format} there",
    "price": lambda demand, node, variant: f"a highest price of {node.price_per_hour:g} an hour",
    "latency": _latency,
    "memory": _memory,
    "cpu": lambda demand, node, variant: (
        f"{cpu_of(demand) - node.free_cpu_milli} thousandths of a core more free there"
    ),
    "refused": lambda demand, node, variant: "a load that succeeds there",
    "spread": _spread,
    "draining": lambda demand, node, variant: "new work allowed there",
    "alive": lambda demand, node, variant: "that node back",
}


def changes(found: Scan, misses: Sequence[Miss], nearest: Pair) -> tuple[Change, ...]:
    """What would make an infeasible demand feasible.

    Args:
        found: where nothing passed.
        misses: the nearest miss of each filter.
        nearest: the nearest miss of all.

    Returns:
        Single changes that would do, nearest first; where none does alone, all that the nearest one needs.
    """
    single = sorted((miss for miss in misses if miss.fewest == 1), key=lambda miss: miss.by)
    return tuple(_change(found, miss.pair) for miss in single[:_TOLD]) or (_change(found, nearest),)


def _change(found: Scan, pair: Pair) -> Change:
    variant, position = pair
    node, view, demand = found.nodes.node(position), found.question.variants[variant], found.question.demand
    names = found.sieve.failed(pair)
    wanted = " and ".join(_WORDS[name](demand, node, view) for name in names)
    return Change(node.node, view.variant, names, f"{view.variant} would run on {node.node} with {wanted}")
