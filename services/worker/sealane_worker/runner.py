"""Runs the tasks that the scheduler assigns, each under its lease and its fencing token (the attempt).

A task whose lease may be over is stopped by the worker itself, at two thirds of the lease after the last renewal
that is known to have been sent in time: the scheduler may have given it to somebody else by then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import grpc

from sealane.errors import (
    Aborted,
    DataLoss,
    DeadlineExceeded,
    Internal,
    ResourceExhausted,
    SealaneError,
    Unavailable,
    Unimplemented,
)
from sealane.scheduler.v1 import fleet_service_pb2 as pb
from sealane.scheduler.v1 import job_service_pb2
from sealane.scheduler.v1.fleet_service_pb2_grpc import FleetServiceStub

log = logging.getLogger("sealane.worker.runner")

#: A scheduler that is away for longer has given the task to somebody else.
FINISH_SECONDS = 600.0
RETRY_SECONDS, LAST_RETRY_SECONDS = 0.5, 5.0
TELL_SECONDS = 0.2
#: Lines of an attempt's log that wait to be sent, and characters of one.
MAX_LINES, MAX_LINE = 200, 500
RETRYABLE = (Unavailable, DataLoss, DeadlineExceeded, ResourceExhausted, Internal)

#: The channel to the scheduler's mesh port for the next call; it is shared and stays open.
Channel = Callable[[], grpc.Channel]
Results = list[job_service_pb2.VariantResult | job_service_pb2.VariantCheck | job_service_pb2.TaskOutput]


class Cancelled(Exception):
    """The task is to stop, without a word: it is no longer this worker's."""


@dataclass(slots=True)
class Progress:
    """How far a task is, and whether it is to stop. One thread writes, another reads."""

    fraction: float = 0.0
    message: str = ""
    changed: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    _lines: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_LINES))

    def tell(self, fraction: float, message: str) -> None:
        """Say how far the task is.

        Raises:
            Cancelled: stop instead.
        """
        self.check()
        self.fraction, self.message = fraction, message
        self.changed.set()

    def say(self, line: str) -> None:
        """A line for the log of the attempt."""
        self._lines.append(line[:MAX_LINE])

    def said(self) -> str:
        """What was said since it was last asked."""
        lines = []
        while self._lines:
            lines.append(self._lines.popleft() + "\n")
        return "".join(lines)

    def check(self) -> None:
        """Raise Cancelled where the task is to stop."""
        if self.cancelled.is_set():
            raise Cancelled


#: Does one kind of task and returns what FinishTask is to carry; raises Cancelled when stopped, SealaneError when
#: it fails.
Work = Callable[[pb.TaskAssignment, Progress], Results]


def by_kind(works: Mapping[str, Work]) -> Work:
    """Work that does each task by its kind, the name of its spec in the contract."""

    def work(task: pb.TaskAssignment, progress: Progress) -> Results:
        kind = task.WhichOneof("spec") or ""
        if kind not in works:
            raise Unimplemented("this worker does not know this kind of task; bring it up to the scheduler's version")
        return works[kind](task, progress)

    return work


class Runner:
    """The tasks of this worker."""

    def __init__(self, channel: Channel, work: Work) -> None:
        self._channel = channel
        self._work = work
        self._tasks: dict[tuple[str, int], TaskRun] = {}
        self._lock = threading.Lock()

    def apply(self, assignments: Iterable[pb.TaskAssignment]) -> None:
        """Run exactly these; others are stopped. A finished one is not run again."""
        wanted = {(item.task, item.attempt): item for item in assignments}
        with self._lock:
            for key in self._tasks.keys() - wanted.keys():
                self._tasks.pop(key).cancel()
            for key in wanted.keys() - self._tasks.keys():
                self._tasks[key] = run = TaskRun(wanted[key], self._channel, self._work)
                run.start()

    def stop(self) -> None:
        """Stop all; the scheduler gives them to somebody else when their leases are over."""
        with self._lock:
            running = list(self._tasks.values())
            self._tasks.clear()
        for run in running:
            run.cancel()
        for run in running:
            run.join(5.0)


class TaskRun:
    """One attempt of one task: a thread that works and one that keeps the lease."""

    def __init__(self, task: pb.TaskAssignment, channel: Channel, work: Work) -> None:
        self._task = task
        self._channel = channel
        self._work = work
        self._progress = Progress()
        self._done = threading.Event()
        self._working = threading.Event()  # until the result is there
        self._working.set()
        # The lease runs from the moment the scheduler bound it, which is before this one.
        self._renewed = time.monotonic()
        self._lease = task.lease.ToNanoseconds() / 1e9
        self._threads = [
            threading.Thread(target=target, name=f"task-{name}", daemon=True)
            for name, target in (("work", self._run), ("lease", self._keep_lease))
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def cancel(self) -> None:
        """Stop without a word."""
        self._progress.cancelled.set()
        self._progress.changed.set()

    def join(self, seconds: float) -> None:
        """Wait for the end."""
        for thread in self._threads:
            thread.join(seconds)

    def _run(self) -> None:
        """Supervise the work: whatever it raises becomes the task's result."""
        request = pb.FinishTaskRequest(task=self._task.task, attempt=self._task.attempt)
        try:
            for item in self._work(self._task, self._progress):
                if isinstance(item, job_service_pb2.VariantCheck):
                    request.checks.append(item)
                elif isinstance(item, job_service_pb2.TaskOutput):
                    request.output.CopyFrom(item)
                else:
                    request.results.append(item)
        except Cancelled:
            self._done.set()
            self._progress.changed.set()
            return
        except SealaneError as error:
            request.error, request.retryable = error.message, isinstance(error, RETRYABLE)
        except Exception:  # supervisor: whatever the work raises is the result of the task
            log.exception("task failed", extra={"task": self._task.task})
            request.error, request.retryable = "the task failed on the worker; its log has the details", True
        request.log = self._progress.said()
        self._finish(request)
        self._done.set()
        self._progress.changed.set()

    def _finish(self, request: pb.FinishTaskRequest) -> None:
        """Tell the result, for as long as it may still count: whether it does is the scheduler's to say."""
        self._working.clear()
        until, wait = time.monotonic() + FINISH_SECONDS, RETRY_SECONDS
        while not self._progress.cancelled.is_set() and time.monotonic() < until:
            try:
                FleetServiceStub(self._channel()).FinishTask(request, timeout=10.0)
            except RETRYABLE as error:
                log.warning("task not finished", extra={"task": request.task, "reason": error.reason})
                self._progress.cancelled.wait(wait)
                wait = min(wait * 2, LAST_RETRY_SECONDS)
            except SealaneError as error:  # fenced, or gone: it counts no more
                log.info("result not taken", extra={"task": request.task, "reason": error.reason})
                return
            else:
                return

    def _keep_lease(self) -> None:
        """Renew at a third of the lease, and soon where there is progress to tell."""
        while not self._done.is_set():
            self._progress.changed.wait(self._lease / 3)
            self._done.wait(min(TELL_SECONDS, self._lease / 10))  # progress comes in steps: one renewal tells several
            self._progress.changed.clear()
            if self._done.is_set() or self._progress.cancelled.is_set():
                return
            if self._working.is_set() and (not self._renew() or time.monotonic() - self._renewed > self._lease * 2 / 3):
                log.warning("lease lost, stopping", extra={"task": self._task.task})
                self.cancel()
                return

    def _renew(self) -> bool:
        """Renew once; false where the task is no longer this worker's."""
        sent = time.monotonic()  # before sending: the scheduler's clock starts later than ours
        request = pb.RenewTaskRequest(
            task=self._task.task,
            attempt=self._task.attempt,
            progress=self._progress.fraction,
            message=self._progress.message,
            log=self._progress.said(),
        )
        try:
            answer = FleetServiceStub(self._channel()).RenewTask(request, timeout=max(self._lease / 4, 0.1))
        except Aborted:
            return False
        except SealaneError as error:
            log.info("lease not renewed, trying again", extra={"task": request.task, "reason": error.reason})
            return True
        self._renewed = sent
        self._lease = answer.lease.ToNanoseconds() / 1e9 or self._lease
        return True
