"""What the scheduler keeps of jobs with many tasks. Constraints stand in the methods' docstrings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A part of a job. `input` and `output` are serialized.

    `attempt` is the last one's number; numbers grow by one and are never used again. `first_row` and `rows` say which
    rows of the dataset it is about, `variant` is the id of a variant.
    """

    project: str
    job: str
    task: int
    state: str = "PENDING"
    first_row: int = 0
    rows: int = 0
    variant: str = ""
    input: bytes = b""
    attempt: int = 0
    failures: int = 0
    not_before: float = 0.0
    error: str = ""
    output: bytes = b""
    update_time: float = 0.0

    @property
    def name(self) -> str:
        """Resource name."""
        return f"projects/{self.project}/jobs/{self.job}/tasks/{self.task}"


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One node's try at a task. `end_time` is 0 while it runs."""

    project: str
    job: str
    task: int
    attempt: int
    node: str
    state: str = "RUNNING"
    lease_until: float = 0.0
    begin_time: float = 0.0
    end_time: float = 0.0
    progress: float = 0.0
    error: str = ""
    log: str = ""

    @property
    def key(self) -> tuple[str, str, int, int]:
        """Tells it from all others."""
        return self.project, self.job, self.task, self.attempt

    @property
    def task_name(self) -> str:
        """Resource name of its task."""
        return f"projects/{self.project}/jobs/{self.job}/tasks/{self.task}"


class Tasks(Protocol):
    """Tasks and their attempts, inside one transaction."""

    def add_tasks(self, rows: Iterable[TaskRow]) -> None:
        """Add."""
        ...

    def tasks(self, project: str, job: str, after: int, limit: int) -> list[TaskRow]:
        """Tasks of a job by number, strictly after `after`."""
        ...

    def task(self, project: str, job: str, task: int) -> TaskRow | None:
        """One task."""
        ...

    def task_counts(self, project: str, job: str) -> Mapping[str, int]:
        """State -> number of a job's tasks in it."""
        ...

    def waiting(self, project: str, job: str, now: float, limit: int) -> list[TaskRow]:
        """Pending tasks of a job that may begin at `now`, by number."""
        ...

    def running(self) -> list[AttemptRow]:
        """All attempts under way."""
        ...

    def attempts(self, project: str, job: str, task: int) -> list[AttemptRow]:
        """Attempts at a task, the oldest first."""
        ...

    def durations(self, project: str, job: str, limit: int) -> list[float]:
        """Seconds that the last successful attempts at a job's tasks took."""
        ...

    def outputs(self, project: str, job: str) -> list[bytes]:
        """What the tasks of a job made, by number."""
        ...

    def give_out(self, row: TaskRow, node: str, lease_until: float, now: float) -> int:
        """Begin an attempt at a task in the state that `row` has; returns its number, 0 where it is in another."""
        ...

    def renew(self, row: AttemptRow, lease_until: float, progress: float, log: str) -> bool:
        """Extend the lease of an attempt under way, of this node; whether it was."""
        ...

    def finish(self, attempt: AttemptRow, task: TaskRow) -> bool:
        """Write the task if it is RUNNING and the attempt, of this node, is under way; whether it was.

        All of that is decided in the statement that writes.
        """
        ...

    def end(self, row: AttemptRow) -> None:
        """Write the end of an attempt."""
        ...

    def stop(self, project: str, job: str, now: float, task: int | None = None) -> int:
        """Stop all attempts under way at a job, or at one of its tasks; how many."""
        ...

    def drop_rest(self, project: str, job: str, now: float) -> None:
        """Tasks of a job that have not ended are cancelled."""
        ...
