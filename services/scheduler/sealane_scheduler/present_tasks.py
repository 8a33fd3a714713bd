"""Tasks of jobs as messages."""

from __future__ import annotations

from collections.abc import Iterable

from sealane.rpc.times import time_of
from sealane.scheduler.v1 import job_service_pb2 as pb
from sealane_scheduler.store import JobRow
from sealane_scheduler.task_store import AttemptRow, TaskRow
from sealane_scheduler.tasks import BATCH


def task(job: JobRow, row: TaskRow, attempts: Iterable[AttemptRow] = ()) -> pb.Task:
    """A task, with these attempts."""
    message = pb.Task(
        name=row.name,
        state=pb.Task.State.Value(f"STATE_{row.state}"),
        first_row=row.first_row,
        rows=row.rows,
        variant_id=row.variant,
        attempt=row.attempt,
        failures=row.failures,
        error=row.error,
        attempts=[_attempt(item) for item in attempts],
    )
    if job.kind == BATCH and row.output:
        message.output.MergeFromString(row.output)
    return message


def _attempt(row: AttemptRow) -> pb.Attempt:
    return pb.Attempt(
        attempt=row.attempt,
        node=f"nodes/{row.node}",
        state=pb.Attempt.State.Value(f"STATE_{row.state}"),
        progress=row.progress,
        begin_time=time_of(row.begin_time),
        end_time=time_of(row.end_time) if row.end_time else None,
        error=row.error,
        log=row.log,
    )
