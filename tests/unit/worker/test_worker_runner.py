"""Tasks run under a lease: renewed while they run, finished with their attempt, dropped when fenced."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from google.protobuf import empty_pb2
from worker_parts import Local, SilentFleet

from sealane.errors import FailedPrecondition, Unavailable
from sealane.scheduler.v1 import fleet_service_pb2 as pb
from sealane.scheduler.v1 import fleet_service_pb2_grpc, job_service_pb2
from sealane_worker.optimise import MeasuredVariant
from sealane_worker.optimise_task import _check_accuracy
from sealane_worker.runner import Progress, Results, Runner, by_kind

TASK = "projects/p/jobs/j/tasks/t"


class FakeScheduler(SilentFleet):
    """Keeps renewals and finishes; can fence."""

    def __init__(self) -> None:
        self.renewals: list[pb.RenewTaskRequest] = []
        self.finished: list[pb.FinishTaskRequest] = []
        self.fenced = False
        self.away = False

    def RenewTask(self, request: pb.RenewTaskRequest, context: grpc.ServicerContext) -> pb.RenewTaskResponse:
        """Extend by the lease, unless fenced or out of reach."""
        self._check(context)
        self.renewals.append(request)
        answer = pb.RenewTaskResponse()
        answer.lease.FromMilliseconds(300)
        return answer

    def FinishTask(self, request: pb.FinishTaskRequest, context: grpc.ServicerContext) -> empty_pb2.Empty:
        """Keep."""
        self._check(context)
        self.finished.append(request)
        return empty_pb2.Empty()

    def _check(self, context: grpc.ServicerContext) -> None:
        if self.fenced:
            context.abort(grpc.StatusCode.ABORTED, "not yours")
        if self.away:
            context.abort(grpc.StatusCode.UNAVAILABLE, "away")


def _task(attempt: int = 1) -> pb.TaskAssignment:
    task = pb.TaskAssignment(task=TASK, attempt=attempt)
    task.lease.FromMilliseconds(300)
    return task


@pytest.fixture
def scheduler() -> FakeScheduler:
    """See :class:`FakeScheduler`."""
    return FakeScheduler()


def _runner(local: Local, scheduler: FakeScheduler, work: Callable[[pb.TaskAssignment, Progress], Results]) -> Runner:
    address = local.serve(fleet_service_pb2_grpc.add_FleetServiceServicer_to_server, scheduler)
    channel = local.dial(address)
    return Runner(lambda: channel, work)


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "did not come true within 5 s"
        time.sleep(0.005)


def test_renews_tells_progress_and_finishes_with_its_attempt(local: Local, scheduler: FakeScheduler) -> None:
    def work(task: pb.TaskAssignment, progress: Progress) -> Results:
        progress.tell(0.5, "half")
        time.sleep(0.4)  # longer than the lease: only renewals keep the task
        return [job_service_pb2.VariantResult(variant_id="v")]

    runner = _runner(local, scheduler, work)
    runner.apply([_task(4)])
    runner.apply([_task(4)])  # the state comes again and again: the task is not begun anew
    _until(lambda: bool(scheduler.finished))
    assert [item.attempt for item in scheduler.finished] == [4]
    assert scheduler.finished[0].results[0].variant_id == "v"
    assert (scheduler.renewals[0].progress, scheduler.renewals[0].message) == (0.5, "half")
    assert len(scheduler.renewals) >= 3
    runner.stop()


def test_each_kind_of_task_has_its_own_work_and_result(local: Local, scheduler: FakeScheduler) -> None:
    works = {
        "optimise": lambda task, progress: [job_service_pb2.VariantResult(variant_id="made")],
        "check": lambda task, progress: [job_service_pb2.VariantCheck(variant_id="checked")],
    }
    runner = _runner(local, scheduler, by_kind(works))
    optimise, check, unknown = _task(1), _task(2), _task(3)
    optimise.optimise.SetInParent()
    check.check.SetInParent()
    runner.apply([optimise, check, unknown])
    _until(lambda: len(scheduler.finished) == 3)
    ended = {item.attempt: item for item in scheduler.finished}
    assert [item.variant_id for item in ended[1].results] == ["made"] and not ended[1].checks
    assert [item.variant_id for item in ended[2].checks] == ["checked"] and not ended[2].results
    assert "does not know this kind" in ended[3].error and not ended[3].retryable
    runner.stop()


@pytest.mark.parametrize(
    ("error", "retryable"), [(FailedPrecondition("bad model"), False), (Unavailable("no registry"), True)]
)
def test_a_failure_says_whether_another_try_could_help(
    local: Local, scheduler: FakeScheduler, error: Exception, retryable: bool
) -> None:
    def work(task: pb.TaskAssignment, progress: Progress) -> Results:
        raise error

    runner = _runner(local, scheduler, work)
    runner.apply([_task()])
    _until(lambda: bool(scheduler.finished))
    assert (scheduler.finished[0].error, scheduler.finished[0].retryable) == (str(error), retryable)


@pytest.mark.parametrize("how", ["fenced", "away", "withdrawn"])
def test_a_task_that_is_no_longer_ours_stops_without_a_word(local: Local, scheduler: FakeScheduler, how: str) -> None:
    stopped = threading.Event()

    def work(task: pb.TaskAssignment, progress: Progress) -> Results:
        progress.cancelled.wait(5)
        stopped.set()
        progress.check()
        return []

    runner = _runner(local, scheduler, work)
    runner.apply([_task()])
    if how == "withdrawn":
        runner.apply([])
    else:
        setattr(scheduler, how, True)
    assert stopped.wait(3)
    time.sleep(0.1)
    scheduler.fenced = scheduler.away = False
    time.sleep(0.1)
    assert not scheduler.finished


def _variant(name: str, accuracy: float) -> MeasuredVariant:
    return MeasuredVariant(name, "litert", str(Path("x")), 1, accuracy, 1.0, 1.0, 1.0)


def test_an_inaccurate_variant_fails_the_job_with_figures() -> None:
    variants = (_variant("savedmodel", 0.98), _variant("litert-float", 0.98), _variant("litert-int8", 0.95))
    _check_accuracy(variants, 0.03)
    with pytest.raises(FailedPrecondition, match=r"litert-int8 has accuracy 0.9500, 0.0300 below"):
        _check_accuracy(variants, 0.02)
