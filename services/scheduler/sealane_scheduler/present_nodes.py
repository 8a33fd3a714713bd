"""Nodes as messages, with what they hold."""

from __future__ import annotations

from collections.abc import Callable

from sealane.rpc.times import time_of
from sealane.scheduler.v1 import node_service_pb2 as pb
from sealane_scheduler import present
from sealane_scheduler.cluster import Copy, Deployed
from sealane_scheduler.drains import Standing
from sealane_scheduler.holds import DRAINING


def node(standing: Standing, now: float, monotonic: float) -> pb.Node:
    """A node, with numbers of what it holds."""
    message = present.node(standing.state, now, monotonic)
    message.admission = pb.Node.Admission.Value(f"ADMISSION_{standing.admission}")
    message.held_copies, message.held_tasks = len(standing.copies), standing.tasks
    message.message = standing.message
    if standing.deadline:
        message.drain_deadline_time.CopyFrom(time_of(standing.deadline))
    return message


def copies(standing: Standing, visible: Callable[[Deployed], bool]) -> list[pb.HeldCopy]:
    """What a node has; of deployments that the caller may not see, without their names."""
    draining = standing.admission == DRAINING
    return [
        pb.HeldCopy(
            deployment=item.row.name if visible(item) else "",
            epoch=copy.row.epoch,
            binding_constraint=copy.stuck.constraint if draining and copy.stuck else "",
            message=_waits_for(item, copy) if draining else "",
        )
        for item, copy in standing.copies
    ]


def _waits_for(item: Deployed, copy: Copy) -> str:
    if copy.stuck is not None:
        return copy.stuck.reason
    newer = [other for other in item.copies if other.row.epoch > copy.row.epoch]
    return f"a copy is prepared on {newer[-1].row.node}" if newer else "a place is looked for"
