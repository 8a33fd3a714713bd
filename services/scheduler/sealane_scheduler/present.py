"""Plain values of the scheduler as proto messages, and back."""

from __future__ import annotations

import math
import random

from sealane.auth.v1 import enrollment_service_pb2 as enrollment_pb
from sealane.errors import InvalidArgument
from sealane.rpc.times import time_of
from sealane.scheduler.v1 import deployment_service_pb2 as pb
from sealane.scheduler.v1 import fleet_service_pb2 as fleet_pb
from sealane.scheduler.v1 import job_service_pb2 as job_pb
from sealane.scheduler.v1 import node_service_pb2 as node_pb
from sealane.security import suites
from sealane.security.statements import Statement
from sealane_scheduler.cluster import Deployed
from sealane_scheduler.fleet import READY, Facts, Fleet, NodeState, RuntimeFacts
from sealane_scheduler.present_placement import Serializer, decision, demand, demand_of, global_plan, variants
from sealane_scheduler.store import DeploymentRow, EnsembleRow, JobRow
from sealane_scheduler.tasks import estimated_end

__all__ = [
    "Serializer",
    "chain",
    "decision",
    "demand",
    "demand_of",
    "deployment",
    "facts",
    "global_plan",
    "job",
    "labels_of",
    "node",
    "row",
    "subject",
    "variants",
]


def labels_of(row: DeploymentRow) -> list[str]:
    """Labels of a deployment's version."""
    return [label for label in row.labels.split(",") if label]


def alias_of(name: str) -> str:
    """Resource name of the alias in a version's name; empty where a number stands there."""
    model, _, last = name.rpartition("/versions/")
    return "" if last.isdigit() else f"{model}/aliases/{last}"


def row(name: tuple[str, str], asked: str, version: tuple[str, bytes], demand_: pb.Demand, now: float) -> DeploymentRow:
    """A new deployment.

    Args:
        name: project and id.
        asked: the version, as its creator named it.
        version: its name with its number, and its content.
        demand_: what it needs and wants.
        now: seconds since 1970.
    """
    return DeploymentRow(
        project=name[0],
        deployment=name[1],
        model_version=version[0],
        demand=demand_.SerializeToString(),
        version=version[1],
        create_time=now,
        update_time=now,
        etag=f"{random.getrandbits(64):016x}",  # no secret, and there are many
        alias=alias_of(asked),
    )


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
    message.decision.MergeFromString(deployed.decision)
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


def facts(statement: Statement, message: fleet_pb.Register, *, relayed: bool = False) -> Facts:
    """What a worker said of itself, with what auth vouches for in its sealing statement.

    Args:
        statement: of auth.
        message: of the worker.
        relayed: it came over a relay, which must not point callers at another TLS name than the node's own.

    Raises:
        InvalidArgument: a price that is no number from 0.
    """
    for field in ("price_per_hour", "egress_per_gib", "watts"):
        if not 0 <= getattr(message, field) < math.inf:
            raise InvalidArgument(f"{field} must be a number from 0", field=f"register.{field}")
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
        egress_per_gib=message.egress_per_gib,
        watts=message.watts,
        labels=dict(message.labels),
        endpoint=message.endpoint,
        tls_name=f"{statement.node}.node.sealane" if relayed else message.tls_name,
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
        rtt_ms=state.link.rtt_ms,
        seen_time=time_of(now - (monotonic - state.seen)),
        labels=known.labels,
        endpoint=known.endpoint,
        tls_name=known.tls_name,
        link=node_pb.Link(
            jitter_ms=state.link.jitter_ms,
            down_bytes_per_second=state.link.down,
            up_bytes_per_second=state.link.up,
        ),
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
