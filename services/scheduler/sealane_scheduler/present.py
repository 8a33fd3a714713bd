"""Plain values of the scheduler as proto messages, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sealane.auth.v1 import enrollment_service_pb2 as enrollment_pb
from sealane.errors import InvalidArgument
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.registry.v1 import variant_service_pb2 as variant_pb
from sealane.rpc.times import time_of
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane.scheduler.v1 import fleet_service_pb2 as fleet_pb
from sealane.scheduler.v1 import job_service_pb2 as job_pb
from sealane.scheduler.v1 import node_service_pb2 as node_pb
from sealane.security import suites
from sealane.security.sealing_messages import policy_of
from sealane.security.statements import Statement
from sealane_scheduler.cluster import Deployed
from sealane_scheduler.filters import Demand, VariantView
from sealane_scheduler.fleet import READY, Facts, Fleet, NodeState, RuntimeFacts
from sealane_scheduler.placement import Decision
from sealane_scheduler.store import DeploymentRow, EnsembleRow, JobRow
from sealane_scheduler.tasks import estimated_end

_TIERS = {pb.TIER_PREFERENCE_CLOUD: "cloud", pb.TIER_PREFERENCE_EDGE: "edge"}
_CLASSES = {pb.DATA_CLASS_PUBLIC: "public", pb.DATA_CLASS_RESTRICTED: "restricted"}
_OBJECTIVES = {pb.OBJECTIVE_LATENCY: "latency", pb.OBJECTIVE_COST: "cost", pb.OBJECTIVE_ACCURACY: "accuracy"}


def demand(message: pb.Demand) -> Demand:
    """A demand, checked.

    Raises:
        InvalidArgument: numbers that cannot be, or restricted data without a residency.
    """
    for field in ("min_accuracy", "latency_ms", "memory_bytes", "cpu_milli", "max_price_per_hour", "request_bytes"):
        if not 0 <= getattr(message, field) < math.inf:
            raise InvalidArgument(
                f"demand.{field} must be a number from 0; leave it out for no demand", field=f"demand.{field}"
            )
    _check_enums(message)
    if message.min_accuracy > 1:
        raise InvalidArgument("demand.min_accuracy is a share, 0 to 1", field="demand.min_accuracy")
    if not 0 <= message.replicas <= 64:
        raise InvalidArgument("demand.replicas must be 1 to 64", field="demand.replicas")
    data_class = _CLASSES.get(message.data_class, "internal")
    if data_class == "restricted" and not message.residency:
        raise InvalidArgument(
            "restricted data needs the zones it must stay in; set demand.residency", field="demand.residency"
        )
    return Demand(
        min_accuracy=message.min_accuracy,
        formats=tuple(variant_pb.Format.Name(item).removeprefix("FORMAT_") for item in message.formats),
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
    )


def _check_enums(message: pb.Demand) -> None:
    known: dict[str, tuple[Sequence[int], Sequence[int]]] = {
        "data_class": ([message.data_class], pb.DataClass.values()),
        "tier_preference": ([message.tier_preference], pb.TierPreference.values()),
        "objective": ([message.objective], pb.Objective.values()),
        "formats": (list(message.formats), variant_pb.Format.values()),
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
    latencies = [item.latency_p99_us for item in message.measurements if item.latency_p99_us]
    return VariantView(
        variant=message.name.rsplit("/", 1)[1],
        format=_format(message.format),
        precision=_precision(message.precision),
        size_bytes=message.size_bytes,
        digest=message.digest,
        accuracy=accuracies[-1] if accuracies else None,
        p99_ms=latencies[-1] / 1000 if latencies else None,
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
    return pb.Decision(
        decide_time=time_of(now),
        epoch=epoch,
        node=f"nodes/{plain.node}" if plain.node else "",
        variant=plain.variant,
        reasons=plain.reasons or ((plain.unavailable_reason,) if plain.unavailable_reason else ()),
        rejections=[
            pb.Rejection(
                node=f"nodes/{item.node}",
                variant=item.variant,
                filter=item.failures[0][0],
                detail="; ".join(why for _, why in item.failures),
            )
            for item in plain.rejected
        ],
        candidates=[
            pb.Candidate(node=f"nodes/{item.node}", variant=item.variant, score=item.score, terms=item.terms)
            for item in plain.candidates
        ],
        binding_constraint=plain.binding_constraint,
    )


def labels_of(row: DeploymentRow) -> list[str]:
    """Labels of a deployment's version."""
    return [label for label in row.labels.split(",") if label]


def deployment(deployed: Deployed, fleet: Fleet) -> pb.Deployment:
    """A deployment as it stands."""
    row = deployed.row
    message = pb.Deployment(
        name=row.name,
        model_version=row.model_version,
        demand=pb.Demand.FromString(row.demand),
        state=pb.Deployment.State.Value(f"STATE_{deployed.state(fleet)}"),
        create_time=time_of(row.create_time),
        update_time=time_of(row.update_time),
        etag=row.etag,
        served_name=row.served_name,
        labels=labels_of(row),
    )
    for copy in deployed.copies:
        node = fleet.get(copy.row.node)
        state = copy.state if node is not None and node.state == READY else "SUSPECT"
        message.placements.append(
            pb.Placement(
                node=f"nodes/{copy.row.node}",
                variant=f"{row.model_version}/variants/{copy.row.variant}",
                epoch=copy.row.epoch,
                state=pb.Placement.State.Value(f"STATE_{state}"),
                message=copy.message,
                warmed_requests=copy.told.warmed_requests,
                warmed_batch_sizes=copy.told.warmed_batch_sizes,
                resident=copy.told.resident,
                memory_bytes=copy.told.memory_bytes,
            )
        )
    message.decision.MergeFromString(deployed.placed if deployed.refusal is None else deployed.refused)
    return message


def chain(row: EnsembleRow, state: str) -> pb.Deployment:
    """A chain as it stands."""
    return pb.Deployment(
        name=row.name,
        ensemble=pb.Ensemble.FromString(row.ensemble),
        state=pb.Deployment.State.Value(f"STATE_{state}"),
        create_time=time_of(row.create_time),
        update_time=time_of(row.create_time),
        etag=row.etag,
    )


def facts(statement: Statement, message: fleet_pb.Register) -> Facts:
    """What a worker said of itself, with what auth vouches for in its sealing statement.

    Raises:
        InvalidArgument: a price that is no number from 0.
    """
    if not 0 <= message.price_per_hour < math.inf:
        raise InvalidArgument("price_per_hour must be a number from 0", field="register.price_per_hour")
    capacity = message.capacity
    return Facts(
        attributes=statement.attributes,
        suite=suites.NAMES[statement.suite],
        runtimes={
            item.name: RuntimeFacts(item.version, tuple(item.formats), tuple(item.devices)) for item in message.runtimes
        },
        cpu_milli=capacity.cpu_milli,
        memory_bytes=capacity.memory_bytes,
        disk_bytes=capacity.disk_bytes,
        device_class=capacity.device_class,
        accelerator=capacity.accelerator,
        speed=capacity.speed,
        price_per_hour=message.price_per_hour,
        labels=dict(message.labels),
        endpoint=message.endpoint,
        tls_name=message.tls_name,
    )


def node(state: NodeState, now: float, monotonic: float) -> node_pb.Node:
    """A node."""
    known = state.facts
    return node_pb.Node(
        name=f"nodes/{state.node}",
        attributes=enrollment_pb.NodeAttributes(**known.attributes),
        capacity=node_pb.Capacity(
            cpu_milli=known.cpu_milli,
            memory_bytes=known.memory_bytes,
            disk_bytes=known.disk_bytes,
            device_class=known.device_class,
            accelerator=known.accelerator,
            speed=known.speed,
        ),
        runtimes=[
            node_pb.Runtime(name=name, version=item.version, formats=item.formats, devices=item.devices)
            for name, item in known.runtimes.items()
        ],
        price_per_hour=known.price_per_hour,
        state=node_pb.Node.State.Value(f"STATE_{state.state}"),
        rtt_ms=state.rtt_ms,
        seen_time=time_of(now - (monotonic - state.seen)),
        labels=known.labels,
        endpoint=known.endpoint,
        tls_name=known.tls_name,
    )


def job(row: JobRow, now: float = 0.0) -> job_pb.Job:
    """A job; with an estimate of its end where the time is told."""
    message = job_pb.Job(
        name=row.name,
        state=job_pb.Job.State.Value(f"STATE_{row.state}"),
        progress=row.progress,
        message=row.message,
        error=row.error,
        attempt=row.attempt,
        node=f"nodes/{row.node}" if row.node else "",
        create_time=time_of(row.create_time),
        update_time=time_of(row.update_time),
        etag=row.etag,
    )
    getattr(message, row.kind).MergeFromString(row.spec)
    if row.tasks_total:
        message.execution.MergeFromString(row.execution)
        message.tasks.CopyFrom(_task_counts(row))
        if now and (end := estimated_end(row, now)):
            message.estimated_end_time.CopyFrom(time_of(end))
    stored = job_pb.Job.FromString(row.results)
    message.results.extend(stored.results)
    message.variants.extend(stored.variants)
    message.checks.extend(stored.checks)
    return message


def _task_counts(row: JobRow) -> job_pb.TaskCounts:
    ended = row.tasks_running + row.tasks_succeeded + row.tasks_failed
    return job_pb.TaskCounts(
        total=row.tasks_total,
        pending=row.tasks_total - ended,
        running=row.tasks_running,
        succeeded=row.tasks_succeeded,
        failed=row.tasks_failed,
    )


def subject(message: job_pb.Job) -> str:
    """Resource name of what a job works on: a variant, or a version."""
    spec = getattr(message, message.WhichOneof("spec") or "check")
    return str(spec.source_variant if isinstance(spec, job_pb.OptimiseSpec) else spec.version)
