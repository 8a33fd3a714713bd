"""The placement decision: filter, score, pick. Pure: demand and snapshot in, decision with reasons out.

Every candidate is a pair of node and variant, because the variant is part of the choice. Scores are costs: lower is
better, each term is kept by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sealane_scheduler.filters import FILTERS, MIB, Demand, NodeView, VariantView, expected_ms


@dataclass(frozen=True, slots=True)
class Rejected:
    """A candidate that did not pass: every filter it failed, in order, with what was found."""

    node: str
    variant: str
    failures: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate that passed."""

    node: str
    variant: str
    score: float
    terms: dict[str, float]


@dataclass(frozen=True, slots=True)
class Decision:
    """What was chosen and why; `node` is empty where nothing fits."""

    node: str
    variant: str
    reasons: tuple[str, ...]
    rejected: tuple[Rejected, ...]
    candidates: tuple[Scored, ...]
    binding_constraint: str = ""
    unavailable_reason: str = ""


@dataclass(frozen=True, slots=True)
class Weights:
    """What a unit of each term costs."""

    latency_per_ms: float
    accuracy_per_point: float
    price_per_hour: float
    fidelity: float


PRESETS = {
    "balanced": Weights(latency_per_ms=0.01, accuracy_per_point=2.0, price_per_hour=0.5, fidelity=0.0),
    "latency": Weights(latency_per_ms=1.0, accuracy_per_point=1.0, price_per_hour=0.1, fidelity=0.0),
    "cost": Weights(latency_per_ms=0.001, accuracy_per_point=1.0, price_per_hour=10.0, fidelity=0.0),
    "accuracy": Weights(latency_per_ms=0.001, accuracy_per_point=100.0, price_per_hour=0.05, fidelity=1.0),
}
_WRONG_TIER = 5.0
_EDGE_SCARCITY = 0.5
_EDGE_PER_MIB, _CLOUD_PER_MIB = 1.0, 0.001
_UNMEASURED_ACCURACY = 0.5


def place(demand: Demand, nodes: Sequence[NodeView], variants: Sequence[VariantView]) -> Decision:
    """Choose a node and a variant for one copy.

    Ties go to the name that sorts first, so that the same snapshot gives the same decision.
    """
    rejected, candidates = [], []
    for node in sorted(nodes, key=lambda item: item.node):
        for variant in variants:
            failures = [(name, why) for name, check in FILTERS if (why := check(demand, node, variant))]
            if failures:
                rejected.append(Rejected(node.node, variant.variant, tuple(failures)))
            else:
                candidates.append(_score(demand, node, variant))
    candidates.sort(key=lambda item: (item.score, item.node, item.variant))
    if not candidates:
        return _nothing(demand, tuple(rejected), bool(variants))
    best = candidates[0]
    node = next(item for item in nodes if item.node == best.node)
    chosen = next(item for item in variants if item.variant == best.variant)
    reasons = _reasons(demand, node, chosen, candidates)
    return Decision(best.node, best.variant, reasons, tuple(rejected), tuple(candidates))


def _score(demand: Demand, node: NodeView, variant: VariantView) -> Scored:
    weights, edge = PRESETS[demand.objective], node.tier == "edge"
    per_mib = _EDGE_PER_MIB if edge and demand.objective != "accuracy" else _CLOUD_PER_MIB
    accuracy = _UNMEASURED_ACCURACY if variant.accuracy is None else variant.accuracy
    terms = {
        "price": weights.price_per_hour * node.price_per_hour,
        "latency": weights.latency_per_ms * expected_ms(demand, node, variant),
        "accuracy": weights.accuracy_per_point * (1.0 - accuracy),
        "fidelity": weights.fidelity * _unfaithful(variant),
        "footprint": per_mib * variant.size_bytes / MIB,
        "tier": _tier(demand, edge),
    }
    terms = {name: round(value, 6) for name, value in terms.items()}
    return Scored(node.node, variant.variant, round(sum(terms.values()), 6), terms)


def _unfaithful(variant: VariantView) -> float:
    """How far a variant may be from what was trained where a test set shows no difference."""
    if variant.precision == "INT8":
        return 1.0
    return 0.1 if variant.converted else 0.0


def _tier(demand: Demand, edge: bool) -> float:
    if demand.tier:
        return 0.0 if (demand.tier == "edge") == edge else _WRONG_TIER
    # Edge capacity is scarce: it is kept for those who ask for it or must be there.
    return _EDGE_SCARCITY if edge and not demand.residency else 0.0


def _reasons(demand: Demand, node: NodeView, variant: VariantView, candidates: Sequence[Scored]) -> tuple[str, ...]:
    best = candidates[0]
    reasons = [f"lowest cost {best.score:.3f} of {len(candidates)} candidates that passed every filter"]
    if demand.residency:
        reasons.append(f"{demand.data_class} data stays in {', '.join(demand.residency)}, where {node.node} is")
    if demand.tier:
        reasons.append(f"{demand.tier} preferred, {node.node} is {node.tier}")
    if demand.latency_ms:
        expected = expected_ms(demand, node, variant)
        reasons.append(f"{expected:.1f} ms expected, {demand.latency_ms:g} ms wanted")
    if variant.accuracy is not None:
        reasons.append(f"{variant.variant} measured {variant.accuracy:.4f} accuracy in {variant.size_bytes} bytes")
    other = next((item for item in candidates if (item.node, item.variant) != (best.node, best.variant)), None)
    if other is not None:
        reasons.append(f"next best: {other.variant} on {other.node}, {_difference(best, other)}")
    return tuple(reasons)


def _difference(best: Scored, other: Scored) -> str:
    name = max(best.terms, key=lambda term: other.terms[term] - best.terms[term])
    return f"{other.score - best.score:.3f} more, mostly {name}"


def _nothing(demand: Demand, rejected: tuple[Rejected, ...], have_variants: bool) -> Decision:
    if not have_variants:
        return Decision("", "", (), rejected, (), "variants", "the version has no variant; push one")
    if not rejected:
        return Decision("", "", (), rejected, (), "nodes", "no worker has joined; start one")
    # The nearest miss: a live candidate that fails least. What it fails first is what binds.
    living = [item for item in rejected if all(name != "alive" for name, _ in item.failures)]
    nearest = min(living or rejected, key=lambda item: len(item.failures))
    constraint, why = nearest.failures[0]
    lost = sorted({item.node for item in rejected if [name for name, _ in item.failures] == ["alive"]})
    reason = f"{constraint}: {why} ({nearest.node})"
    if lost:
        reason += f"; {', '.join(lost)} could serve it and is lost"
    return Decision("", "", (), rejected, (), constraint, reason)
