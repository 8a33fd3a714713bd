"""What jobs of many tasks may be asked for, and what a node's answer means."""

from __future__ import annotations

import pytest

from sealane.errors import InvalidArgument
from sealane.scheduler.v1 import deployment_service_pb2 as deployment_pb
from sealane.scheduler.v1 import fleet_service_pb2 as fleet_pb
from sealane.scheduler.v1 import job_service_pb2 as pb
from sealane_scheduler.store import JobRow
from sealane_scheduler.task_kinds import outcome
from sealane_scheduler.task_specs import check_execution
from sealane_scheduler.task_store import TaskRow

JOB = JobRow("p", "j", "RUNNING", b"", 0.0, 0.0, "e", kind="batch")
TASK = TaskRow("p", "j", 0, state="RUNNING", rows=3)
RESTRICTED = deployment_pb.DATA_CLASS_RESTRICTED


@pytest.mark.parametrize(
    ("execution", "field"),
    [
        (pb.Execution(priority=101), "priority"),
        (pb.Execution(max_attempts=21), "max_attempts"),
        (pb.Execution(gang=3, max_parallel=2), "gang"),
        (pb.Execution.FromString(b"\x10\x63"), "data_class"),
        (pb.Execution(data_class=RESTRICTED), "residency"),
    ],
)
def test_what_no_job_can_be_run_by_is_refused(execution: pb.Execution, field: str) -> None:
    with pytest.raises(InvalidArgument) as told:
        check_execution(execution)
    assert told.value.field == f"job.execution.{field}"


def test_restricted_data_with_its_zones_is_taken() -> None:
    check_execution(pb.Execution(data_class=RESTRICTED, residency=["site-a"]))


def made(sha256: str, size: int = 10, rows: int = 3) -> str:
    """Why an answer with such a file is a failure; empty where it is none."""
    output = pb.TaskOutput(sha256=sha256, size_bytes=size, rows=rows)
    return outcome(JOB, TASK, fleet_pb.FinishTaskRequest(output=output)).error


def test_a_batch_is_done_with_a_file_of_all_its_rows() -> None:
    assert made("ab" * 32) == ""
    assert made("ab" * 32, rows=2) == "the node made 2 rows of 3"


@pytest.mark.parametrize("sha256", ["", "A" * 64, "ab" * 31 + "/x", "ab" * 32 + "ab", "é" * 64])
def test_a_node_cannot_name_what_the_registry_refuses(sha256: str) -> None:
    assert made(sha256) == "the node named no file that it made"


def test_a_file_has_no_negative_size() -> None:
    assert made("ab" * 32, size=-1) == "the node named no file that it made"
