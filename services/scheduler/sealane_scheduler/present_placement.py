"""Demands, variants and decisions as proto messages, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from sealane.errors import InvalidArgument
from sealane.names import check_id
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.registry.v1 import variant_service_pb2 as variant_pb
from sealane.rpc.times import time_of
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane.scheduler.v1 import placement_service_pb2 as placement_pb
from sealane.security.sealing_messages import policy_of
from sealane_scheduler.decision import Change, Decision, FilterCount, Neighbour, Rejected, Scored, Seen
from sealane_scheduler.filters import Demand, VariantView
from sealane_scheduler.moves import GlobalPlan
from sealane_scheduler.terms import TERMS

_TIERS = {pb.TIER_PREFERENCE_CLOUD: "cloud", pb.TIER_PREFERENCE_EDGE: "edge"}
_CLASSES = {pb.DATA_CLASS_PUBLIC: "public", pb.DATA_CLASS_RESTRICTED: "restricted"}
_OBJECTIVES = {
    pb.OBJECTIVE_LATENCY: "latency",
    pb.OBJECTIVE_COST: "cost",
    pb.OBJECTIVE_ACCURACY: "accuracy",
    pb.OBJECTIVE_GREEN: "green",
}
_NUMBERS = (
    "min_accuracy",
    "latency_ms",
    "memory_bytes",
    "cpu_milli",
    "max_price_per_hour",
    "request_bytes",
    "response_bytes",
    "rate",
)
_MOST_PRIORITY = 1000
#: Kinds of demand whose decisions are likely to have something in common with the next ones.
_KEPT_COMMON = 64
_MOST_BESIDE = 16
_MOST_WEIGHT = 1e6


def demand(message: pb.Demand) -> Demand:
    """A demand, checked.

    Raises:
        InvalidArgument: numbers that cannot be, or restricted data without a residency.
    """
    _check_numbers(message)
    _check_enums(message)
    data_class = _CLASSES.get(message.data_class, "internal")
    if data_class == "restricted" and not message.residency:
        raise InvalidArgument(
            "restricted data needs the zones it must stay in; set demand.residency", field="demand.residency"
        )
    return Demand(
        min_accuracy=message.min_accuracy,
        formats=tuple(_format(item) for item in message.formats),
        latency_ms=message.latency_ms,
        data_class=data_class,
        residency=tuple(message.residency),
        tier=_TIERS.get(message.tier_preference, ""),
        objective=_OBJECTIVES.get(message.objective, "balanced"),
        memory_bytes=message.memory_bytes,
        cpu_milli=message.cpu_milli,
        max_price_per_hour=message.max_price_per_hour,
        request_bytes=message.request_bytes,
        accelerator=message.accelerator,
        replicas=message.replicas or 1,
        response_bytes=message.response_bytes,
        origin=message.origin,
        rate=message.rate,
        priority=message.priority,
        precisions=tuple(_precision(item) for item in message.precisions),
        weights=tuple(sorted(message.weights.items())),
        spread="zone" if message.spread_by == pb.SPREAD_BY_ZONE else "node",
        affinity=tuple(check_id(item, "demand.affinity", label=True) for item in message.affinity),
        preemptible=message.preemptible,
        gang=message.gang,
    )


@lru_cache(1024)
def demand_of(content: bytes) -> Demand:
    """The same of a serialized demand; what many deployments demand is one object."""
    return demand(pb.Demand.FromString(content))


def _check_numbers(message: pb.Demand) -> None:
    for field in _NUMBERS:
        if not 0 <= getattr(message, field) < math.inf:
            raise InvalidArgument(
                f"demand.{field} must be a number from 0; leave it out for no demand", field=f"demand.{field}"
            )
    if message.min_accuracy > 1:
        raise InvalidArgument("demand.min_accuracy is a share, 0 to 1", field="demand.min_accuracy")
    if not 0 <= message.replicas <= 64:
        raise InvalidArgument("demand.replicas must be 1 to 64", field="demand.replicas")
    if len(message.affinity) > _MOST_BESIDE:
        raise InvalidArgument(f"demand.affinity names at most {_MOST_BESIDE} deployments", field="demand.affinity")
    if abs(message.priority) > _MOST_PRIORITY:
        raise InvalidArgument("demand.priority must be -1000 to 1000", field="demand.priority")
    for name, weight in message.weights.items():
        if name not in TERMS:
            raise InvalidArgument(f"demand.weights has {name!r}; use some of {list(TERMS)}", field="demand.weights")
        if not 0 <= weight <= _MOST_WEIGHT:
            raise InvalidArgument(f"demand.weights[{name!r}] must be a number from 0 to 1e6", field="demand.weights")


def _check_enums(message: pb.Demand) -> None:
    known: dict[str, tuple[Sequence[int], Sequence[int]]] = {
        "data_class": ([message.data_class], pb.DataClass.values()),
        "tier_preference": ([message.tier_preference], pb.TierPreference.values()),
        "objective": ([message.objective], pb.Objective.values()),
        "formats": (list(message.formats), variant_pb.Format.values()),
        "precisions": (list(message.precisions), variant_pb.Precision.values()),
        "spread_by": ([message.spread_by], pb.SpreadBy.values()),
    }
    for field, (given, numbers) in known.items():
        if unknown := sorted(set(given) - set(numbers)):
            raise InvalidArgument(
                f"demand.{field} {unknown} is unknown; use one of {sorted(numbers)}", field=f"demand.{field}"
            )


def variants(version: model_pb.Version) -> tuple[VariantView, ...]:
    """The variants of a version as the decision sees them."""
    return tuple(_variant(item) for item in version.variants)


def _variant(message: variant_pb.Variant) -> VariantView:
    accuracies = [item.accuracy for item in message.measurements if item.rows]
    latencies = [item for item in message.measurements if item.latency_p99_us]
    return VariantView(
        variant=message.name.rsplit("/", 1)[1],
        format=_format(message.format),
        precision=_precision(message.precision),
        size_bytes=message.size_bytes,
        digest=message.digest,
        accuracy=accuracies[-1] if accuracies else None,
        p99_ms=latencies[-1].latency_p99_us / 1000 if latencies else None,
        p50_ms=(latencies[-1].latency_p50_us or latencies[-1].latency_p99_us) / 1000 if latencies else None,
        converted=bool(message.source_variant),
        runtime=message.runtime,
        sealing=policy_of(message.sealing),
        blocked=message.blocked,
    )


def _format(number: variant_pb.Format.ValueType) -> str:
    """Name of a format; one that a newer registry knows must not stop this scheduler."""
    known = number in variant_pb.Format.values()
    return variant_pb.Format.Name(number).removeprefix("FORMAT_") if known else f"UNKNOWN_{number}"


def _precision(number: variant_pb.Precision.ValueType) -> str:
    """Name of a precision, known or not."""
    known = number in variant_pb.Precision.values()
    return variant_pb.Precision.Name(number).removeprefix("PRECISION_") if known else f"UNKNOWN_{number}"


def decision(plain: Decision, epoch: int, now: float) -> pb.Decision:
    """A decision."""
    message = _common(plain)
    message.MergeFrom(_own(plain, epoch, now))
    return message


class Serializer:
    """Decisions as bytes; what decisions about equals have in common is made once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Decision, bytes]] = {}

    def __call__(self, plain: Decision, now: float) -> bytes:
        """A decision that was made at a time, in seconds since 1970; messages one behind the other are read as one."""
        known = self._known.get(id(plain.filters))
        if known is None or known[0].filters is not plain.filters or known[0].rejected is not plain.rejected:
            if len(self._known) >= _KEPT_COMMON:
                del self._known[next(iter(self._known))]
            known = self._known[id(plain.filters)] = plain, _common(plain).SerializeToString()
        return known[1] + _own(plain, 0, now).SerializeToString()


def _common(plain: Decision) -> pb.Decision:
    """What decisions about equals have in common."""
    return pb.Decision(
        rejections=[_rejection(item) for item in plain.rejected],
        binding_constraint=plain.binding_constraint,
        filters=[_count(item) for item in plain.filters],
        changes=[_change(item) for item in plain.changes],
        passed=plain.passed,
        snapshot=_snapshot(plain.seen),
    )


def _own(plain: Decision, epoch: int, now: float) -> pb.Decision:
    return pb.Decision(
        decide_time=time_of(now),
        epoch=epoch,
        node=_node(plain.node),
        variant=plain.variant,
        reasons=plain.reasons or ((plain.unavailable_reason,) if plain.unavailable_reason else ()),
        candidates=[_candidate(item) for item in plain.candidates],
        neighbours=[_neighbour(item) for item in plain.neighbours],
        variant_digest=plain.variant_digest,
    )


def global_plan(plain: GlobalPlan, begun: Sequence[bool]) -> placement_pb.OptimizeResponse:
    """What there is to gain by moves, and which of them were begun."""
    return placement_pb.OptimizeResponse(
        moves=[
            placement_pb.OptimizeResponse.Move(
                deployment=move.deployment,
                source=_node(move.source),
                target=_node(move.target),
                variant=move.variant,
                saves=move.saves,
                applied=applied,
            )
            for move, applied in zip(plain.moves, begun, strict=True)
        ],
        cost=plain.cost,
        planned_cost=plain.planned,
        bound=plain.bound,
        gap=plain.gap,
        copies=plain.copies,
    )


def _node(name: str) -> str:
    return f"nodes/{name}" if name else ""


def _rejection(item: Rejected, first: str = "") -> pb.Rejection:
    """A rejection; of the failures that of the filter `first`, if given, is told first."""
    failures = sorted(item.failures, key=lambda failure: failure[0] != first)
    detail = "; ".join(why for _, why in failures)
    return pb.Rejection(node=_node(item.node), variant=item.variant, filter=failures[0][0], detail=detail)


def _candidate(item: Scored) -> pb.Candidate:
    return pb.Candidate(
        node=_node(item.node),
        variant=item.variant,
        score=item.score,
        terms=item.terms,
        latency_ms=item.latency_ms,
        price=item.price,
    )


def _count(item: FilterCount) -> pb.FilterCount:
    nearest = _rejection(item.nearest, item.name)
    return pb.FilterCount(filter=item.name, rejected=item.rejected, alone=item.alone, nearest=nearest)


def _neighbour(item: Neighbour) -> pb.Neighbour:
    return pb.Neighbour(
        candidate=_candidate(item.candidate), latency_ms=item.latency_ms, price=item.price, text=item.text
    )


def _change(item: Change) -> pb.Change:
    return pb.Change(node=_node(item.node), variant=item.variant, filters=item.filters, text=item.text)


def _snapshot(seen: Seen) -> pb.NodeSnapshot:
    return pb.NodeSnapshot(
        version=seen.version, digest=seen.digest, nodes=seen.nodes, looked_at=seen.looked_at, seed=seen.seed
    )
