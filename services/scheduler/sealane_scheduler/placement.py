"""The placement decision: filter, score, pick. Pure: demand and snapshot in, decision with reasons out.

Filters and their order follow SCHEDULING.md; every candidate is a pair of node and variant, because the
variant is part of the choice. Scores are costs: lower is better, each term is kept by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

MIB = 1 << 20
DEFAULT_MEMORY = 64 * MIB
DEFAULT_REQUEST_BYTES = 4096
CLEARANCE = {"public": 1, "internal": 2, "restricted": 3}
RUNTIME_OF = {"SAVED_MODEL": "tensorflow", "LITERT": "litert"}
#: Wire speed assumed until a node's link has been measured, bytes per second.
ASSUMED_BYTES_PER_SECOND = 1.25e6


@dataclass(frozen=True, slots=True)
class Demand:
    """What a deployment needs and wants; zero values mean "no demand"."""

    min_accuracy: float = 0.0
    formats: tuple[str, ...] = ()
    latency_ms: float = 0.0
    data_class: str = "internal"
    residency: tuple[str, ...] = ()
    tier: str = ""
    objective: str = "balanced"
    memory_bytes: int = 0
    cpu_milli: int = 0
    max_price_per_hour: float = 0.0
    request_bytes: int = 0
    accelerator: str = ""
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as the decision sees it."""

    node: str
    tier: str
    zone: str
    clearance: str
    alive: bool
    runtimes: frozenset[str] = frozenset()
    free_memory: int = 0
    free_cpu_milli: int = 0
    rtt_ms: float = 0.0
    price_per_hour: float = 0.0
    accelerator: str = ""
    avoid: frozenset[str] = frozenset()
    """Variants this node refused lately."""


@dataclass(frozen=True, slots=True)
class VariantView:
    """A variant as the decision sees it. `accuracy` and `p99_ms` are None where never measured.

    `converted` says that it was made from another variant, not trained.
    """

    variant: str
    format: str
    precision: str
    size_bytes: int
    digest: str
    accuracy: float | None = None
    p99_ms: float | None = None
    converted: bool = False


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

Filter = Callable[[Demand, NodeView, VariantView], str]
"""Returns why a candidate fails, or an empty string."""


def _alive(demand: Demand, node: NodeView, variant: VariantView) -> str:
    return "" if node.alive else f"{node.node} is lost"


def _residency(demand: Demand, node: NodeView, variant: VariantView) -> str:
    if not demand.residency or node.zone in demand.residency:
        return ""
    return f"data must stay in {_join(demand.residency)}, the node is in {node.zone or 'no zone'}"


def _clearance(demand: Demand, node: NodeView, variant: VariantView) -> str:
    if CLEARANCE.get(node.clearance, 0) >= CLEARANCE[demand.data_class]:
        return ""
    return f"data is {demand.data_class}, the node is cleared for {node.clearance or 'nothing'}"


def _accelerator(demand: Demand, node: NodeView, variant: VariantView) -> str:
    if not demand.accelerator or demand.accelerator == node.accelerator:
        return ""
    return f"needs {demand.accelerator}, the node has {node.accelerator or 'none'}"


def _runtime(demand: Demand, node: NodeView, variant: VariantView) -> str:
    wanted = RUNTIME_OF.get(variant.format, variant.format.lower())
    if wanted in node.runtimes:
        return ""
    return f"{variant.format} needs runtime {wanted}, the node has {_join(sorted(node.runtimes)) or 'none'}"


def _format(demand: Demand, node: NodeView, variant: VariantView) -> str:
    if not demand.formats or variant.format in demand.formats:
        return ""
    return f"only {_join(demand.formats)} allowed, the variant is {variant.format}"


def _accuracy(demand: Demand, node: NodeView, variant: VariantView) -> str:
    if not demand.min_accuracy or (variant.accuracy or 0.0) >= demand.min_accuracy:
        return ""
    found = "never measured" if variant.accuracy is None else f"measured {variant.accuracy:.4f}"
    return f"accuracy of at least {demand.min_accuracy} wanted, the variant was {found}"


def _memory(demand: Demand, node: NodeView, variant: VariantView) -> str:
    need = memory_of(demand, variant)
    if need <= node.free_memory:
        return ""
    return f"needs {need // MIB} MiB, the node lacks {(need - node.free_memory) // MIB + 1} MiB"


def _cpu(demand: Demand, node: NodeView, variant: VariantView) -> str:
    need = demand.cpu_milli or 100
    if need <= node.free_cpu_milli:
        return ""
    return f"needs {need} thousandths of a core, the node has {node.free_cpu_milli} left"


def _latency(demand: Demand, node: NodeView, variant: VariantView) -> str:
    expected = expected_ms(demand, node, variant)
    if not demand.latency_ms or expected <= demand.latency_ms:
        return ""
    return f"{demand.latency_ms:g} ms wanted, {expected:.1f} ms expected"


def _price(demand: Demand, node: NodeView, variant: VariantView) -> str:
    if not demand.max_price_per_hour or node.price_per_hour <= demand.max_price_per_hour:
        return ""
    return f"at most {demand.max_price_per_hour:g} an hour wanted, the node costs {node.price_per_hour:g}"


def _refused(demand: Demand, node: NodeView, variant: VariantView) -> str:
    return f"the node could not load {variant.variant} lately" if variant.variant in node.avoid else ""


#: In the order in which they are told. What the caller demands comes before what the fleet lacks.
FILTERS: tuple[tuple[str, Filter], ...] = (
    ("residency", _residency),
    ("clearance", _clearance),
    ("accelerator", _accelerator),
    ("format", _format),
    ("accuracy", _accuracy),
    ("runtime", _runtime),
    ("price", _price),
    ("latency", _latency),
    ("memory", _memory),
    ("cpu", _cpu),
    ("refused", _refused),
    ("alive", _alive),
)


def memory_of(demand: Demand, variant: VariantView) -> int:
    """Bytes reserved for a copy: the demand's (64 MiB by default) plus twice the files."""
    return (demand.memory_bytes or DEFAULT_MEMORY) + 2 * variant.size_bytes


def expected_ms(demand: Demand, node: NodeView, variant: VariantView) -> float:
    """Round trip, request on the wire, and the variant's measured p99."""
    wire = (demand.request_bytes or DEFAULT_REQUEST_BYTES) / ASSUMED_BYTES_PER_SECOND * 1000
    return node.rtt_ms + wire + (variant.p99_ms or 0.0)


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
        reasons.append(f"{demand.data_class} data stays in {_join(demand.residency)}, where {node.node} is")
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
        reason += f"; {_join(lost)} could serve it and is lost"
    return Decision("", "", (), rejected, (), constraint, reason)


def _join(items: Sequence[str]) -> str:
    return ", ".join(items)
