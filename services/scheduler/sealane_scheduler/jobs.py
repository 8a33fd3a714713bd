"""The rules about jobs: at-least-once execution, exactly-once recorded result (SECURITY 3.1)."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from sealane.clock import Clock
from sealane.errors import Aborted, NotFound
from sealane.records.tables import Actor
from sealane_scheduler.store import JobRow, Jobs, Store

PENDING, RUNNING, REGISTERING = "PENDING", "RUNNING", "REGISTERING"
ENDED = ("SUCCEEDED", "FAILED", "CANCELLED", "ABANDONED")
#: Kinds, by the name of their spec in the contract.
OPTIMISE, CHECK = "optimise", "check"
#: Kinds with one task, which this module is about.
SINGLE = frozenset({OPTIMISE, CHECK})
MAX_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a worker says at the end of a task.

    Args:
        error: why it failed; empty where it succeeded.
        retryable: whether another attempt could succeed.
        results: serialized results.
        source_accuracy: measured accuracy of what was optimised; None where it was not measured.
        accuracies: measured accuracy of each new variant, by id.
        max_drop: largest fall of accuracy that is accepted.
        gated: whether the accuracies decide whether it is accepted.
    """

    error: str = ""
    retryable: bool = False
    results: bytes = b""
    source_accuracy: float | None = None
    accuracies: Sequence[tuple[str, float]] = ()
    max_drop: float = 1.0
    gated: bool = True


class JobRules:
    """What may happen to a job. Every method runs inside one transaction."""

    def __init__(self, clock: Clock, lease_seconds: float) -> None:
        self._clock = clock
        self.lease_seconds = lease_seconds

    def now(self) -> float:
        """Seconds since 1970."""
        return self._clock.now()

    def create(self, store: Store, actor: Actor, spec: bytes, kind: str = OPTIMISE) -> JobRow:
        """A new job, waiting for a node."""
        now = self._clock.now()
        job = f"j-{int(now * 1000):013x}-{secrets.token_hex(4)}"
        row = JobRow(
            actor.project, job, PENDING, spec, now, now, secrets.token_hex(8), message="waits for a node", kind=kind
        )
        store.add_job(row)
        store.record(actor, "CreateJob", row.name, now)
        return row

    def get(self, store: Jobs, project: str, job: str) -> JobRow:
        """A job.

        Raises:
            NotFound: there is none of that name.
        """
        rows = store.jobs(project, "", 1, only=job)
        if not rows:
            raise NotFound(f"job {job} does not exist; list them with 'sealane jobs list'")
        return rows[0]

    def cancel(self, store: Store, actor: Actor, job: str) -> JobRow:
        """Cancel a job that waits or runs; one whose node is done is returned as it is."""
        row = self.get(store, actor.project, job)
        if row.state not in (PENDING, RUNNING):
            return row
        now = self._clock.now()
        ended = replace(row, state="CANCELLED", message="cancelled by a caller", update_time=now)
        if store.advance(ended, (PENDING, RUNNING)):
            store.record(actor, "CancelJob", row.name, now)
        return self.get(store, actor.project, job)

    def claim(self, store: Store, row: JobRow, node: str) -> JobRow | None:
        """Bind a waiting job to a node; None where it does not wait any more."""
        now = self._clock.now()
        attempt = store.claim(row, node, now + self.lease_seconds, now)
        return self.get(store, row.project, row.job) if attempt else None

    def renew(self, store: Jobs, row: JobRow, progress: float, message: str) -> None:
        """Extend the lease of a running attempt.

        Args:
            store: of this transaction.
            row: names the job, and carries the caller's node and attempt.
            progress: share done.
            message: what it is doing.

        Raises:
            Aborted: the task is no longer this attempt's.
        """
        stored = self._held(store, row)
        now = self._clock.now()
        renewed = replace(
            stored, lease_until=now + self.lease_seconds, progress=progress, message=message, update_time=now
        )
        if not store.advance(renewed, (RUNNING,)):
            raise _fenced()

    def finish(self, store: Store, row: JobRow, outcome: Outcome) -> JobRow:
        """End a running attempt. The guard on the attempt stands in the same statement as the write.

        Raises:
            Aborted: the task is no longer this attempt's; nothing was changed.
        """
        stored, now = self._held(store, row), self._clock.now()
        if outcome.error:
            ended = self._failed(stored, outcome.error, outcome.retryable, now)
        elif outcome.gated and (refusal := refused(outcome)):
            ended = replace(stored, state="FAILED", error=refusal, message="refused by its gate", update_time=now)
        else:
            ended = replace(stored, state=REGISTERING, message="tells the registry", update_time=now)
            ended = replace(ended, progress=1.0, rounds=stored.rounds + 1)
        if not store.advance(replace(ended, results=outcome.results), (RUNNING,)):
            raise _fenced()
        actor = Actor(f"spiffe://sealane/node/{row.node}", row.project)
        store.record(actor, "FinishTask", row.task, now, attempt=str(row.attempt), state=ended.state)
        return ended

    def expire(self, store: Jobs) -> int:
        """Take back tasks whose lease is over; how many."""
        now, count = self._clock.now(), 0
        for row in store.jobs_of(SINGLE, (RUNNING,)):
            if row.lease_until < now:
                taken = self._failed(row, f"node {row.node} stopped renewing its lease", True, now)
                count += int(store.advance(taken, (RUNNING,)))
        return count

    def take_back(self, store: Jobs, nodes: Collection[str]) -> None:
        """Tasks of these nodes wait for others; that an attempt was cut short is no failure."""
        for row in store.jobs_of(SINGLE, (RUNNING,)):
            if row.node in nodes:
                waiting = replace(row, state=PENDING, rounds=row.rounds + 1, message=f"taken back from {row.node}")
                store.advance(replace(waiting, update_time=self._clock.now()), (RUNNING,))

    def extend_all(self, store: Jobs) -> None:
        """Give every running task a whole lease: the scheduler was away, not the workers."""
        for row in store.jobs_of(SINGLE, (RUNNING,)):
            store.advance(replace(row, lease_until=self._clock.now() + self.lease_seconds), (RUNNING,))

    def registered(self, store: Store, row: JobRow, results: bytes) -> None:
        """What it made or found stands in the registry: the job has succeeded."""
        now = self._clock.now()
        ended = replace(row, state="SUCCEEDED", message="done", results=results, update_time=now)
        store.advance(ended, (REGISTERING,))

    def found(self, store: Store, row: JobRow, results: bytes) -> None:
        """A waiting job has results without a node: the registry is told of them."""
        told = replace(row, state=REGISTERING, message="tells the registry", results=results)
        store.advance(replace(told, update_time=self._clock.now()), (PENDING,))

    def go_on(self, store: Store, row: JobRow, progress: float) -> None:
        """The registry knows what is there so far; what is left waits for a node. No failed attempt."""
        waiting = replace(row, state=PENDING, progress=progress, message="waits for a node that can load the rest")
        store.advance(replace(waiting, update_time=self._clock.now()), (REGISTERING,))

    def hopeless(self, store: Store, row: JobRow, error: str) -> None:
        """A waiting job can never begin."""
        ended = replace(row, state="FAILED", error=error, message="ended without a result")
        store.advance(replace(ended, update_time=self._clock.now()), (PENDING,))

    def not_registered(self, store: Store, row: JobRow, error: str) -> None:
        """The registry refused the variants for good."""
        now = self._clock.now()
        store.advance(replace(row, state="FAILED", error=error, update_time=now), (REGISTERING,))

    def _held(self, store: Jobs, row: JobRow) -> JobRow:
        rows = store.jobs(row.project, "", 1, only=row.job)
        if not rows or (rows[0].attempt, rows[0].node, rows[0].state) != (row.attempt, row.node, RUNNING):
            raise _fenced()
        return rows[0]

    def _failed(self, row: JobRow, error: str, retryable: bool, now: float) -> JobRow:
        if retryable and row.attempt - row.rounds < MAX_ATTEMPTS:
            return replace(row, state=PENDING, message=f"tries again: {error}", error="", update_time=now)
        state = "ABANDONED" if retryable else "FAILED"
        return replace(row, state=state, error=error, message="ended without a result", update_time=now)


def refused(outcome: Outcome) -> str:
    """Why the accuracy gate refuses an outcome; empty where it passes."""
    source = outcome.source_accuracy
    if source is None or not outcome.accuracies:
        return "the task did not bring both its source's measurement and a new variant; try again"
    if not all(0 <= accuracy <= 1 for accuracy in (source, *(item for _, item in outcome.accuracies))):
        return "the task measured accuracies that are no shares from 0 to 1; try again"
    for variant, accuracy in outcome.accuracies:
        drop = source - accuracy
        if drop > outcome.max_drop + 1e-9:
            return (
                f"accuracy of {variant} fell by {drop:.4f} (from {source:.4f} to {accuracy:.4f}), "
                f"at most {outcome.max_drop:g} is accepted; give more calibration rows or accept a larger drop"
            )
    return ""


def _fenced() -> Aborted:
    return Aborted("the task is no longer yours; stop working on it", reason="FENCED")
