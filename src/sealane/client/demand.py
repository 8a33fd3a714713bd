"""What a deployment needs and wants, in plain Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict, TypeVar

from sealane.errors import InvalidArgument
from sealane.registry.v1 import variant_service_pb2
from sealane.scheduler.v1 import deployment_service_pb2 as pb

E = TypeVar("E", bound=int)

#: ``savedmodel``, ``litert``, ``onnx``, ``torchexport``, ...: the contract's names without what joins their words.
_FORMATS = {
    name.removeprefix("FORMAT_").replace("_", "").lower(): number
    for name, number in variant_service_pb2.Format.items()
    if number
}
_DATA_CLASSES = {
    "": pb.DATA_CLASS_UNSPECIFIED,
    "public": pb.DATA_CLASS_PUBLIC,
    "internal": pb.DATA_CLASS_INTERNAL,
    "restricted": pb.DATA_CLASS_RESTRICTED,
}
_TIERS = {"": pb.TIER_PREFERENCE_UNSPECIFIED, "cloud": pb.TIER_PREFERENCE_CLOUD, "edge": pb.TIER_PREFERENCE_EDGE}
_OBJECTIVES = {
    "": pb.OBJECTIVE_UNSPECIFIED,
    "balanced": pb.OBJECTIVE_BALANCED,
    "green": pb.OBJECTIVE_GREEN,
    "latency": pb.OBJECTIVE_LATENCY,
    "cost": pb.OBJECTIVE_COST,
    "accuracy": pb.OBJECTIVE_ACCURACY,
}


_SPREADS = {"": pb.SPREAD_BY_UNSPECIFIED, "node": pb.SPREAD_BY_NODE, "zone": pb.SPREAD_BY_ZONE}
_PRECISIONS = {
    name.removeprefix("PRECISION_").lower(): number for name, number in variant_service_pb2.Precision.items() if number
}


class DemandFields(TypedDict, total=False):
    """Demands of a deployment; what is left out is not demanded."""

    min_accuracy: float
    """Least measured accuracy of a variant, 0 to 1."""
    formats: Sequence[str]
    """Formats allowed: ``savedmodel``, ``litert``, ``onnx``, ``openvino``, ``keras``, ``torchexport``, ``remote``."""
    latency_ms: float
    """99th percentile as the caller sees it, milliseconds."""
    data_class: str
    """``public``, ``internal`` or ``restricted``."""
    residency: Sequence[str]
    """Zones in which the data must stay."""
    tier: str
    """Where it would rather run: ``cloud`` or ``edge``."""
    objective: str
    """What weighs most: ``balanced``, ``latency``, ``cost``, ``green`` or ``accuracy``."""
    memory_bytes: int
    """Memory on top of the model's own size."""
    cpu_milli: int
    """Thousandths of a core."""
    max_price_per_hour: float
    """Highest price of a node."""
    request_bytes: int
    """Bytes of one request, for the time on the wire."""
    accelerator: str
    """Accelerator class needed."""
    replicas: int
    """Copies."""
    pinned: bool
    """Keep it in memory however long nobody calls it."""
    response_bytes: int
    """Bytes of one answer, for the time on the wire and the price of what leaves a node."""
    origin: str
    """Zone that its callers are in; left out for callers beside the gateway."""
    rate: float
    """Expected calls per second."""
    priority: int
    """Who is placed first where several wait, -1000 to 1000."""
    precisions: Sequence[str]
    """Precisions allowed: ``float32``, ``float16``, ``int8``."""
    weights: Mapping[str, float]
    """Factors of single terms of the score, such as ``{"energy": 100.0}``."""
    spread: str
    """What its copies may not share: ``node`` or ``zone``."""
    affinity: Sequence[str]
    """Deployments, by id, beside whose copies it would rather run: on their node, or else in their zone."""
    preemptible: bool
    """Its copies may be taken away for a deployment of higher priority that fits nowhere else."""
    gang: bool
    """Place its copies all at once or not at all."""


def demand(fields: DemandFields) -> pb.Demand:
    """The demand as the contract carries it.

    Raises:
        InvalidArgument: a word that means nothing there.
    """
    return pb.Demand(
        min_accuracy=fields.get("min_accuracy", 0.0),
        formats=[_word(_FORMATS, name, "formats") for name in fields.get("formats", ())],
        latency_ms=fields.get("latency_ms", 0.0),
        data_class=_word(_DATA_CLASSES, fields.get("data_class", ""), "data_class"),
        residency=fields.get("residency", ()),
        tier_preference=_word(_TIERS, fields.get("tier", ""), "tier"),
        objective=_word(_OBJECTIVES, fields.get("objective", ""), "objective"),
        memory_bytes=fields.get("memory_bytes", 0),
        cpu_milli=fields.get("cpu_milli", 0),
        max_price_per_hour=fields.get("max_price_per_hour", 0.0),
        request_bytes=fields.get("request_bytes", 0),
        accelerator=fields.get("accelerator", ""),
        replicas=fields.get("replicas", 0),
        pinned=fields.get("pinned", False),
        response_bytes=fields.get("response_bytes", 0),
        origin=fields.get("origin", ""),
        rate=fields.get("rate", 0.0),
        priority=fields.get("priority", 0),
        precisions=[_word(_PRECISIONS, name, "precisions") for name in fields.get("precisions", ())],
        weights=fields.get("weights", {}),
        spread_by=_word(_SPREADS, fields.get("spread", ""), "spread"),
        affinity=fields.get("affinity", ()),
        preemptible=fields.get("preemptible", False),
        gang=fields.get("gang", False),
    )


def _word(known: dict[str, E], word: str, field: str) -> E:
    if word not in known:
        raise InvalidArgument(f"{field} {word!r} is unknown; use one of {sorted(filter(None, known))}", field=field)
    return known[word]
