"""Who can take a deployment at all: what is demanded, what nodes and variants offer, and the filters in words.

Each filter says why one candidate fails, with what was wanted and found. :mod:`masks` asks the same of all candidates
at once and is held against this by tests: what is decided there is told here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sealane.security.sealing_policy import SealingPolicy

MIB = 1 << 20
DEFAULT_MEMORY = 64 * MIB
DEFAULT_CPU_MILLI = 100
DEFAULT_REQUEST_BYTES = 4096
DEFAULT_RESPONSE_BYTES = 1024
#: Calls per second that a deployment is reckoned with where it does not say.
DEFAULT_RATE = 1.0
#: Round trip between a caller and a worker of the same site, milliseconds.
LOCAL_RTT_MS = 0.5
CLEARANCE = {"public": 1, "internal": 2, "restricted": 3}
SANDBOX = {"none": 0, "partial": 1, "full": 2}
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
    response_bytes: int = 0
    origin: str = ""
    """Zone that its callers are in; empty for callers at the gateway."""
    origin_rtt_ms: float = 0.0
    """Round trip between that zone and the gateway, as measured; filled in by the decision."""
    rate: float = 0.0
    """Expected calls per second."""
    priority: int = 0
    """Who is placed first where several wait: the higher."""
    precisions: tuple[str, ...] = ()
    weights: tuple[tuple[str, float], ...] = ()
    """Factors of single terms of the score, in the place of the objective's."""
    spread: str = "node"
    """What copies may not share: ``node`` or ``zone``."""
    apart: tuple[tuple[str, str], ...] = ()
    """(node, zone) of the copies that are there; filled in by who asks."""
    affinity: tuple[str, ...] = ()
    """Deployments beside whose copies it would rather run, by id."""
    beside: tuple[tuple[str, str], ...] = ()
    """(node, zone) of the copies of these; filled in by who asks."""
    preemptible: bool = False
    """Whether copies may be taken away for a deployment of higher priority."""
    gang: bool = False
    """Whether its copies are placed all at once or not at all."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as the decision sees it."""

    node: str
    tier: str
    zone: str
    clearance: str
    alive: bool
    runtimes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Runtime -> formats it loads there."""
    sandbox: str = "none"
    """Level that models run at there."""
    sandbox_wanted: str = "none"
    """Level that nodes of its tier must give."""
    free_memory: int = 0
    free_cpu_milli: int = 0
    rtt_ms: float = 0.0
    price_per_hour: float = 0.0
    accelerator: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What its signed statement says."""
    avoid: frozenset[str] = frozenset()
    """Variants this node refused lately."""
    draining: bool = False
    """Takes no new work."""
    memory: int = 0
    """All its memory in bytes; 0 where it is not known."""
    cpu_milli: int = 0
    """All its thousandths of a core; 0 where they are not known."""
    in_bytes_per_second: float = 0.0
    """Measured speed of the link towards it; 0 where it was not measured."""
    out_bytes_per_second: float = 0.0
    """Measured speed of the link from it; 0 where it was not measured."""
    egress_per_gib: float = 0.0
    """Price of a GiB that leaves it."""
    watts: float = 0.0
    """What it draws while it works beyond what it draws idle; 0 where it is not known."""
    resident: frozenset[str] = frozenset()
    """Digests of the variants that are loaded there."""


@dataclass(frozen=True, slots=True)
class VariantView:
    """A variant as the decision sees it. `accuracy`, `p99_ms` and `p50_ms` are None where never measured.

    `converted` says that it was made from another variant, not trained.
    """

    variant: str
    format: str
    precision: str
    size_bytes: int
    digest: str
    accuracy: float | None = None
    p99_ms: float | None = None
    p50_ms: float | None = None
    converted: bool = False
    runtime: str = ""
    """Runtime that has to run it; empty for any."""
    sealing: SealingPolicy = field(default_factory=SealingPolicy)
    """What its owner demands of sealing."""
    blocked: str = ""
    """Why workers do not load it, by the policy of its project."""


def task(runtime: str = "") -> VariantView:
    """A task of a job in the place of a variant: it brings its own program, and may need a runtime."""
    return VariantView("task", "", "", 0, "", runtime=runtime)


Filter = Callable[[Demand, NodeView, VariantView], str]
"""Returns why a candidate fails, or an empty string."""


def _alive(demand: Demand, node: NodeView, variant: VariantView) -> str:
    return "" if node.alive else f"{node.node} is lost"


def _draining(demand: Demand, node: NodeView, variant: VariantView) -> str:
    return f"{node.node} takes no new work" if node.draining else ""


def _spread(demand: Demand, node: NodeView, variant: VariantView) -> str:
    if any(node.node == taken for taken, _ in demand.apart):
        return "a copy of it is there already"
    if demand.spread == "zone" and any(node.zone == zone for _, zone in demand.apart):
        return f"copies are kept in different zones, one is in {node.zone or 'no zone'} already"
    return ""


def _precision(demand: Demand, node: NodeView, variant: VariantView) -> str:
    if not demand.precisions or variant.precision in demand.precisions:
        return ""
    return f"only {_join(demand.precisions)} allowed, the variant is {variant.precision}"


def _residency(demand: Demand, node: NodeView, variant: VariantView) -> str:
    if not demand.residency or node.zone in demand.residency:
        return ""
    return f"data must stay in {_join(demand.residency)}, the node is in {node.zone or 'no zone'}"


def _clearance(demand: Demand, node: NodeView, variant: VariantView) -> str:
    if CLEARANCE.get(node.clearance, 0) >= CLEARANCE[demand.data_class]:
        return ""
    return f"data is {demand.data_class}, the node is cleared for {node.clearance or 'nothing'}"


def _sealing(demand: Demand, node: NodeView, variant: VariantView) -> str:
    return variant.sealing.refusal(node.facts)


def _policy(demand: Demand, node: NodeView, variant: VariantView) -> str:
    return variant.blocked


def _accelerator(demand: Demand, node: NodeView, variant: VariantView) -> str:
    if not demand.accelerator or demand.accelerator == node.accelerator:
        return ""
    return f"needs {demand.accelerator}, the node has {node.accelerator or 'none'}"


def _runtime(demand: Demand, node: NodeView, variant: VariantView) -> str:
    able = [name for name, formats in node.runtimes.items() if not variant.format or variant.format in formats]
    has = _join(sorted(node.runtimes)) or "none"
    if variant.runtime:
        return "" if variant.runtime in able else f"needs runtime {variant.runtime}, the node has {has}"
    return "" if able or not variant.format else f"no runtime for {variant.format}, the node has {has}"


def _sandbox(demand: Demand, node: NodeView, variant: VariantView) -> str:
    if SANDBOX.get(node.sandbox, 0) >= SANDBOX[node.sandbox_wanted]:
        return ""
    return f"models of {node.tier} nodes run at sandbox level {node.sandbox_wanted}, the node gives {node.sandbox}"


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
    need = cpu_of(demand)
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
    ("sealing", _sealing),
    ("policy", _policy),
    ("sandbox", _sandbox),
    ("accelerator", _accelerator),
    ("format", _format),
    ("precision", _precision),
    ("accuracy", _accuracy),
    ("runtime", _runtime),
    ("price", _price),
    ("latency", _latency),
    ("memory", _memory),
    ("cpu", _cpu),
    ("refused", _refused),
    ("spread", _spread),
    ("draining", _draining),
    ("alive", _alive),
)


def forbidden(demand: Demand, node: NodeView, variant: VariantView) -> str:
    """Why a copy may not be on a node whatever else is true: where its data may go. Empty where it may."""
    return _residency(demand, node, variant) or _clearance(demand, node, variant) or _sealing(demand, node, variant)


def unloadable(node: NodeView, variant: VariantView) -> str:
    """Why a node does not load a variant, whatever a deployment demands; empty where it does."""
    anything = Demand()
    return _runtime(anything, node, variant) or _sealing(anything, node, variant) or _sandbox(anything, node, variant)


def has_runtime(node: NodeView, variant: VariantView) -> bool:
    """Whether a node has a runtime for a variant."""
    return not _runtime(Demand(), node, variant)


def memory_of(demand: Demand, variant: VariantView) -> int:
    """Bytes reserved for a copy: the demand's (64 MiB by default) plus twice the files."""
    return (demand.memory_bytes or DEFAULT_MEMORY) + 2 * variant.size_bytes


def cpu_of(demand: Demand) -> int:
    """Thousandths of a core reserved for a copy."""
    return demand.cpu_milli or DEFAULT_CPU_MILLI


def wire_ms(demand: Demand, node: NodeView) -> float:
    """Round trip, request and answer on the wire, between callers and a node.

    Callers of the node's own zone reach it there; others come from their zone by way of the gateway.
    """
    if demand.origin and demand.origin == node.zone:
        return LOCAL_RTT_MS
    there = (demand.request_bytes or DEFAULT_REQUEST_BYTES) * ms_per_byte(node.in_bytes_per_second)
    back = (demand.response_bytes or DEFAULT_RESPONSE_BYTES) * ms_per_byte(node.out_bytes_per_second)
    return node.rtt_ms + demand.origin_rtt_ms + (there + back)


def ms_per_byte(speed: float) -> float:
    """Milliseconds that a byte takes on a link of so many bytes a second; 0 is a link that was not measured."""
    return 1000 / (speed or ASSUMED_BYTES_PER_SECOND)


def expected_ms(demand: Demand, node: NodeView, variant: VariantView) -> float:
    """Milliseconds in which 99 of 100 calls are answered: :func:`wire_ms` and the variant's measured p99."""
    return wire_ms(demand, node) + (variant.p99_ms or 0.0)


def _join(items: Sequence[str]) -> str:
    return ", ".join(items)
