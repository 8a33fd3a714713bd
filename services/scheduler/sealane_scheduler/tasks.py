"""The rules of jobs with many tasks: tried at least once, recorded exactly once (SECURITY 3.1).

An attempt's number is a fencing token. Whatever a node says of a task is written by a statement that itself demands
that this attempt, of this node, is under way: a paused process that wakes after its lease changes nothing.
"""

from __future__ import annotations

import secrets
import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from sealane.clock import Clock
from sealane.errors import Aborted, FailedPrecondition
from sealane.records.tables import Actor
from sealane_scheduler.jobs import ENDED, PENDING, REGISTERING, RUNNING
from sealane_scheduler.store import JobRow, Store
from sealane_scheduler.task_store import AttemptRow, TaskRow, Tasks

PAUSED = "PAUSED"
#: Kinds, by the name of their spec in the contract.
BATCH, EVALUATE, BENCHMARK = "batch", "evaluate", "benchmark"
KINDS = frozenset({BATCH, EVALUATE, BENCHMARK})
#: Kinds whose results the registry keeps.
MEASURING = frozenset({EVALUATE, BENCHMARK})
MAX_TASKS = 10_000
MAX_ATTEMPTS = 3
MAX_LOG = 16 << 10
#: A task that failed waits so long before its next attempt, twice as long after each failure.
FIRST_WAIT, LAST_WAIT = 0.5, 30.0
#: A task is slow where it took so many times the median of those that are done, and at least so many seconds.
SLOW_TIMES, SLOW_SECONDS, SLOW_KNOWN = 2.0, 2.0, 3
_DURATIONS = 50


@dataclass(frozen=True, slots=True)
class Execution:
    """How the tasks of a job are run; see ``sealane.scheduler.v1.Execution``."""

    priority: int = 0
    data_class: str = "internal"
    residency: tuple[str, ...] = ()
    max_parallel: int = 0
    gang: int = 0
    max_attempts: int = 0
    speculative: bool = False


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """What a node says at the end of an attempt.

    Args:
        error: why it failed; empty where it succeeded.
        retryable: whether another attempt could succeed.
        output: serialized; what it made or measured.
        log: what it said since its last renewal.
    """

    error: str = ""
    retryable: bool = False
    output: bytes = b""
    log: str = ""


#: Puts the outputs of a job's tasks together into its results.
Gather = Callable[[JobRow, Sequence[bytes]], bytes]
#: What a node says of a task of a job, once both are known.
Told = Callable[[JobRow, TaskRow], TaskOutcome]


class TaskRules:
    """What may happen to tasks. Every method runs inside one transaction."""

    def __init__(self, clock: Clock, lease_seconds: float, gather: Gather) -> None:
        self._clock = clock
        self.lease_seconds = lease_seconds
        self._gather = gather

    def now(self) -> float:
        """Seconds since 1970."""
        return self._clock.now()

    def create(self, store: Store, actor: Actor, wanted: JobRow, tasks: Iterable[TaskRow]) -> JobRow:
        """A new job with its tasks, which wait for nodes.

        Args:
            store: of this transaction.
            actor: who asks.
            wanted: `kind`, `spec`, `execution` and `attempts_allowed` are taken.
            tasks: `first_row`, `rows`, `variant` and `input` are taken.
        """
        now = self._clock.now()
        job = f"j-{int(now * 1000):013x}-{secrets.token_hex(4)}"
        rows = [
            replace(item, project=actor.project, job=job, task=number, update_time=now)
            for number, item in enumerate(tasks)
        ]
        row = replace(
            wanted,
            project=actor.project,
            job=job,
            state=PENDING,
            create_time=now,
            update_time=now,
            etag=secrets.token_hex(8),
            message="waits for a node",
            tasks_total=len(rows),
        )
        store.add_job(row)
        store.add_tasks(rows)
        store.record(actor, "CreateJob", row.name, now, tasks=str(len(rows)))
        return row

    def pause(self, store: Store, actor: Actor, row: JobRow) -> JobRow:
        """Give out no more tasks; attempts under way go on.

        Raises:
            FailedPrecondition: a job of one task (NOT_PAUSABLE).
        """
        if row.kind not in KINDS:
            raise FailedPrecondition(
                f"a job that is to {row.kind} has one task and cannot be paused; cancel it", reason="NOT_PAUSABLE"
            )
        return self._turn(store, actor, row, "PauseJob", (PENDING, RUNNING), PAUSED)

    def resume(self, store: Store, actor: Actor, row: JobRow) -> JobRow:
        """Go on with a paused job; another one is returned as it is."""
        begun = _again(store, row).begin_time
        return self._turn(store, actor, row, "ResumeJob", (PAUSED,), RUNNING if begun else PENDING)

    def cancel(self, store: Store, actor: Actor, row: JobRow) -> JobRow:
        """Cancel a job and all that is under way of it; one that has ended is returned as it is."""
        turned = self._turn(store, actor, row, "CancelJob", (PENDING, RUNNING, PAUSED), "CANCELLED")
        if turned.state == "CANCELLED" != row.state:
            self._stop_all(store, turned)
            store.advance(replace(turned, message="cancelled by a caller", tasks_running=0), ("CANCELLED",))
        return _again(store, row)

    def give_out(self, store: Store, job: JobRow, given: Iterable[tuple[TaskRow, str]]) -> list[AttemptRow]:
        """Begin attempts, each on a node; those whose task is in another state by now are left out."""
        now = self._clock.now()
        if _again(store, job).state not in (PENDING, RUNNING):
            return []
        begun = []
        for task, node in given:
            lease = now + self.lease_seconds
            if attempt := store.give_out(task, node, lease, now):
                row = AttemptRow(task.project, task.job, task.task, attempt, node, lease_until=lease, begin_time=now)
                begun.append(row)
        if begun:
            stored = _again(store, job)
            moved = replace(stored, state=RUNNING, begin_time=stored.begin_time or now, update_time=now)
            store.advance(_counted(store, replace(moved, message=_told(moved))), (PENDING, RUNNING))
        return begun

    def renew(self, store: Tasks, held: AttemptRow, progress: float, log: str) -> None:
        """Extend the lease of an attempt.

        Raises:
            Aborted: the task is no longer this attempt's (FENCED).
        """
        stored = _mine(store, held)
        until = self._clock.now() + self.lease_seconds
        if stored is None or not store.renew(stored, until, progress, _tail(stored.log + log)):
            raise _fenced()

    def finish(self, store: Store, held: AttemptRow, told: Told) -> JobRow | None:
        """End an attempt; the job as it is then, None where just that was told before, and the answer was lost.

        Raises:
            Aborted: the task is no longer this attempt's (FENCED); nothing was changed.
        """
        stored, now = _mine(store, held), self._clock.now()
        task = None if stored is None else store.task(held.project, held.job, held.task)
        if stored is None or task is None:
            raise _fenced()
        job = _again(store, task)
        outcome = told(job, task)
        if stored.state == "SUCCEEDED" and not outcome.error:
            return None
        if outcome.error:
            after = self._failed(store, job, task, stored, (outcome.error, outcome.retryable))
        else:
            after = replace(task, state="SUCCEEDED", error="", output=outcome.output, update_time=now)
        if not store.finish(stored, after):
            raise _fenced()
        state = "FAILED" if outcome.error else "SUCCEEDED"
        ended = replace(stored, state=state, end_time=now, error=outcome.error, progress=0.0 if outcome.error else 1.0)
        store.end(replace(ended, log=_tail(stored.log + outcome.log)))
        if after.state == "SUCCEEDED":
            store.stop(task.project, task.job, now, task.task)  # a copy that was slower
        actor = Actor(f"spiffe://sealane/node/{held.node}", held.project)
        store.record(actor, "FinishTask", task.name, now, attempt=str(held.attempt), state=state)
        return self.settle(store, job)

    def expire(self, store: Store) -> list[AttemptRow]:
        """Take back tasks whose lease is over; the attempts that are lost by that."""
        now, lost = self._clock.now(), []
        for attempt in store.running():
            if attempt.lease_until >= now:
                continue
            task = store.task(attempt.project, attempt.job, attempt.task)
            assert task is not None
            job = _again(store, task)
            error = f"node {attempt.node} stopped renewing its lease"
            if store.finish(attempt, self._failed(store, job, task, attempt, (error, True))):
                store.end(replace(attempt, state="LOST", end_time=now, error=error))
                lost.append(attempt)
                self.settle(store, job)
        return lost

    def take_back(self, store: Store, nodes: Collection[str]) -> None:
        """Tasks of these nodes wait for others; that an attempt was cut short is no failure of the task."""
        now = self._clock.now()
        for attempt in [item for item in store.running() if item.node in nodes]:
            task = store.task(attempt.project, attempt.job, attempt.task)
            assert task is not None
            others = [item for item in store.attempts(*attempt.key[:3]) if item.state == RUNNING]
            state = RUNNING if len(others) > 1 else PENDING
            if store.finish(attempt, replace(task, state=state, not_before=now, update_time=now)):
                error = f"taken back from {attempt.node}, which is drained"
                store.end(replace(attempt, state="STOPPED", end_time=now, error=error))
                self.settle(store, _again(store, task))

    def extend_all(self, store: Tasks) -> list[AttemptRow]:
        """Give every attempt under way a whole lease: the scheduler was away, not the nodes. Returns them."""
        until = self._clock.now() + self.lease_seconds
        under_way = store.running()
        for attempt in under_way:
            store.renew(attempt, until, attempt.progress, attempt.log)
        return under_way

    def settle(self, store: Store, job: JobRow) -> JobRow:
        """Count the tasks of a job, and end it where they have ended."""
        now = self._clock.now()
        row = _counted(store, replace(_again(store, job), update_time=now))
        if row.tasks_failed:
            self._stop_all(store, row)
            failed = next(item for item in _all(store, row) if item.state == "FAILED")
            error = f"task {failed.task} failed {failed.failures} times, last: {failed.error}"
            row = replace(row, state="FAILED", error=error, message="ended without a result", tasks_running=0)
        elif row.tasks_succeeded == row.tasks_total:
            results = self._gather(row, store.outputs(row.project, row.job))
            state = REGISTERING if row.kind in MEASURING else "SUCCEEDED"
            message = "tells the registry" if row.kind in MEASURING else "done"
            row = replace(row, state=state, results=results, progress=1.0, message=message)
        else:
            row = replace(row, message=_told(row))
        store.advance(row, (PENDING, RUNNING, PAUSED))
        return _again(store, job)

    def hopeless(self, store: Store, job: JobRow, error: str) -> None:
        """A job can never go on: what it is about is no more."""
        row = replace(_again(store, job), state="FAILED", error=error, message="ended without a result")
        if store.advance(replace(row, tasks_running=0, update_time=self._clock.now()), (PENDING, RUNNING, PAUSED)):
            self._stop_all(store, row)

    def waits(self, store: Store, job: JobRow, why: str) -> None:
        """A job says what it lacks; the next of its tasks that ends has it say how far it is again."""
        row = replace(_again(store, job), message=why, update_time=self._clock.now())
        store.advance(row, (PENDING, RUNNING))

    def slow(self, store: Tasks, job: JobRow, running: Sequence[AttemptRow]) -> list[AttemptRow]:
        """Attempts under way at a job that take far longer than those that are done, and are alone at their task."""
        known = store.durations(job.project, job.job, _DURATIONS)
        if len(known) < SLOW_KNOWN:
            return []
        bound = max(SLOW_TIMES * statistics.median(known), SLOW_SECONDS)
        now, at = self._clock.now(), [item.task for item in running]
        return [item for item in running if at.count(item.task) == 1 and now - item.begin_time > bound]

    def _failed(self, store: Store, job: JobRow, task: TaskRow, attempt: AttemptRow, why: tuple[str, bool]) -> TaskRow:
        """The task after one of its attempts failed."""
        now, (error, retryable) = self._clock.now(), why
        failures = task.failures + 1
        failed = replace(task, failures=failures, error=error, update_time=now)
        if not retryable:
            return replace(failed, state="FAILED")
        others = [item for item in store.attempts(task.project, task.job, task.task) if item.state == "RUNNING"]
        if any(item.attempt != attempt.attempt for item in others):
            return failed  # another node is at it, and may succeed however often others failed
        if failures >= max_attempts(job):
            return replace(failed, state="FAILED")
        return replace(failed, state="PENDING", not_before=now + min(FIRST_WAIT * 2 ** (failures - 1), LAST_WAIT))

    def _turn(self, store: Store, actor: Actor, row: JobRow, action: str, states: tuple[str, ...], to: str) -> JobRow:
        stored, now = _again(store, row), self._clock.now()
        if stored.state in states:
            turned = replace(stored, state=to, message=to.lower(), update_time=now)
            if store.advance(turned, states):
                store.record(actor, action, row.name, now)
        return _again(store, row)

    def _stop_all(self, store: Tasks, row: JobRow) -> None:
        now = self._clock.now()
        store.stop(row.project, row.job, now)
        store.drop_rest(row.project, row.job, now)


def max_attempts(job: JobRow) -> int:
    """Failures after which a task of the job is given up."""
    return job.attempts_allowed or MAX_ATTEMPTS


def _again(store: Store, of: JobRow | TaskRow) -> JobRow:
    """A job as it is stored now, or that of a task."""
    return store.jobs(of.project, "", 1, only=of.job)[0]


def _all(store: Tasks, row: JobRow) -> list[TaskRow]:
    return store.tasks(row.project, row.job, -1, MAX_TASKS)


def _counted(store: Tasks, row: JobRow) -> JobRow:
    counts = store.task_counts(row.project, row.job)
    done = counts.get("SUCCEEDED", 0)
    return replace(
        row,
        tasks_running=counts.get("RUNNING", 0),
        tasks_succeeded=done,
        tasks_failed=counts.get("FAILED", 0),
        progress=done / row.tasks_total if row.tasks_total else 1.0,
    )


def _told(row: JobRow) -> str:
    return f"{row.tasks_succeeded} of {row.tasks_total} tasks are done"


def _mine(store: Tasks, held: AttemptRow) -> AttemptRow | None:
    """The attempt that a node says it holds, as it is stored."""
    attempts = store.attempts(held.project, held.job, held.task)
    return next((item for item in attempts if (item.attempt, item.node) == (held.attempt, held.node)), None)


def _tail(log: str) -> str:
    return log[-MAX_LOG:]


def _fenced() -> Aborted:
    return Aborted("the task is no longer yours; stop working on it", reason="FENCED")


def estimated_end(row: JobRow, now: float) -> float:
    """When a job will have ended if it goes on as it does, seconds since 1970; 0 where nobody knows, or it rests."""
    if row.state in (*ENDED, PAUSED) or not row.begin_time or not row.tasks_succeeded:
        return 0.0
    return now + (now - row.begin_time) / row.tasks_succeeded * (row.tasks_total - row.tasks_succeeded)
