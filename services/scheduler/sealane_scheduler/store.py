"""What the scheduler keeps. Constraints stand in the methods' docstrings."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sealane.errors import AlreadyExists
from sealane.records.tables import Actor, Change
from sealane_scheduler.task_store import Tasks


def deployment_name(project: str, deployment: str) -> str:
    """Resource name of a deployment, or of a chain."""
    return f"projects/{project}/deployments/{deployment}"


@dataclass(frozen=True, slots=True)
class DeploymentRow:
    """A deployment. `demand` and `version` are opaque to the store: serialized messages.

    `served_name` is set where a compatible protocol made it, which `origin` then names; `labels` are those of its
    version under that name, with commas between them.
    """

    project: str
    deployment: str
    model_version: str
    demand: bytes
    version: bytes
    create_time: float
    update_time: float
    etag: str
    served_name: str = ""
    origin: str = ""
    labels: str = ""
    alias: str = ""
    """Resource name of the alias that named its version; empty where a number did."""

    @property
    def name(self) -> str:
        """Resource name."""
        return deployment_name(self.project, self.deployment)


class DeployedRow(NamedTuple):
    """What a deployment is of; there are many."""

    project: str
    deployment: str
    model_version: str
    alias: str

    @property
    def name(self) -> str:
        """Resource name."""
        return deployment_name(self.project, self.deployment)


@dataclass(frozen=True, slots=True)
class EnsembleRow:
    """A chain of deployments. `ensemble` is opaque to the store: a serialized message."""

    project: str
    deployment: str
    ensemble: bytes
    create_time: float
    etag: str

    @property
    def name(self) -> str:
        """Resource name."""
        return deployment_name(self.project, self.deployment)

    @property
    def epoch(self) -> int:
        """Tells it apart from an earlier one of the same name."""
        return int(self.create_time * 1e6)


@dataclass(frozen=True, slots=True)
class PlacementRow:
    """One copy of a deployment, bound with an epoch."""

    project: str
    deployment: str
    epoch: int
    node: str
    variant: str


#: Decisions of a deployment that are kept: each may hold the whole fleet that it was made from.
KEPT_DECISIONS = 50


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """A decision about a deployment; `content` is serialized."""

    project: str
    deployment: str
    time: float
    content: bytes


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job. `spec`, `results` and `execution` are serialized; `kind` is the name of its spec in the contract.

    Of a kind with one task, `attempt` is that task's fencing token: it grows by one with every bind and is never used
    again, and `rounds` are the attempts that ended with a result or were taken back. Of a kind with many, tasks have
    rows of their own (:class:`sealane_scheduler.task_store.TaskRow`), and are counted here; `begin_time` is the first
    attempt's.
    """

    project: str
    job: str
    state: str
    spec: bytes
    create_time: float
    update_time: float
    etag: str
    attempt: int = 0
    node: str = ""
    lease_until: float = 0.0
    progress: float = 0.0
    message: str = ""
    error: str = ""
    results: bytes = b""
    kind: str = "optimise"
    rounds: int = 0
    execution: bytes = b""
    attempts_allowed: int = 0
    begin_time: float = 0.0
    tasks_total: int = 0
    tasks_running: int = 0
    tasks_succeeded: int = 0
    tasks_failed: int = 0

    @property
    def name(self) -> str:
        """Resource name."""
        return f"projects/{self.project}/jobs/{self.job}"

    @property
    def key(self) -> tuple[str, str]:
        """Project and id."""
        return self.project, self.job

    @property
    def task(self) -> str:
        """Name of the task of a job that has one."""
        return f"{self.name}/tasks/0"


@dataclass(frozen=True, slots=True)
class HoldRow:
    """What an operator lets a node take; a node without one takes whatever fits.

    Args:
        node: its id.
        admission: ``CORDONED`` or ``DRAINING``.
        deadline: when a drain ends anyway, seconds since 1970; 0 for never.
        since: when it was cordoned or drained, the same.
    """

    node: str
    admission: str
    deadline: float
    since: float


class Holds(Protocol):
    """What operators let nodes take, inside one transaction."""

    def put_hold(self, row: HoldRow) -> None:
        """Add, or replace that of the same node."""
        ...

    def drop_hold(self, node: str) -> None:
        """Remove."""
        ...

    def holds(self) -> list[HoldRow]:
        """All, by node."""
        ...


class Deployments(Protocol):
    """Deployments, placements, decisions, inside one transaction."""

    def add_deployments(self, rows: Sequence[DeploymentRow]) -> None:
        """Add deployments whose names nothing has."""
        ...

    def taken(self, names: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
        """Which of these projects and ids a deployment, a chain or a served name has."""
        ...

    def put_deployment(self, row: DeploymentRow) -> None:
        """Replace an existing one."""
        ...

    def drop_deployment(self, project: str, deployment: str) -> None:
        """Remove with its placements; decisions stay."""
        ...

    def deployments(self) -> list[DeploymentRow]:
        """All deployments of all projects."""
        ...

    def deployed(self) -> list[DeployedRow]:
        """What all deployments of all projects are of."""
        ...

    def bind(self, rows: Sequence[PlacementRow]) -> list[int]:
        """Add placements, each under its deployment's next epoch; returns these. ``row.epoch`` is ignored."""
        ...

    def release(self, row: PlacementRow) -> None:
        """Remove a placement."""
        ...

    def placements(self) -> list[PlacementRow]:
        """All placements."""
        ...

    def add_decisions(self, rows: Sequence[DecisionRow], *, first: bool = False) -> None:
        """Add; of each deployment the newest KEPT_DECISIONS stay, unless these are the `first` of new ones."""
        ...

    def decisions(self, project: str, deployment: str) -> list[DecisionRow]:
        """Decisions about a deployment, newest first."""
        ...


def name_taken(deployment: str) -> AlreadyExists:
    """Why nothing is created under an id."""
    return AlreadyExists(f"deployment {deployment} exists; delete it first, or choose another id")


class Ensembles(Protocol):
    """Chains, inside one transaction."""

    def add_ensemble(self, row: EnsembleRow) -> None:
        """Add; a name that a chain or a deployment has raises AlreadyExists."""
        ...

    def drop_ensemble(self, project: str, deployment: str) -> None:
        """Remove."""
        ...

    def ensembles(self) -> list[EnsembleRow]:
        """All chains of all projects."""
        ...


class Jobs(Protocol):
    """Jobs and their tasks, inside one transaction."""

    def add_job(self, row: JobRow) -> None:
        """Add."""
        ...

    def jobs(self, project: str, after: str, limit: int, only: str = "") -> list[JobRow]:
        """Jobs of a project by name, strictly after `after`; just the one named `only`, if given."""
        ...

    def jobs_of(self, kinds: Collection[str], states: tuple[str, ...]) -> list[JobRow]:
        """Jobs of all projects of these kinds in these states, oldest first."""
        ...

    def jobs_since(self, ended: tuple[str, ...], since: float) -> list[JobRow]:
        """Jobs of all projects that are not in one of the states `ended`, or changed at `since` or later, by age."""
        ...

    def claim(self, row: JobRow, node: str, lease_until: float, now: float) -> int:
        """PENDING to RUNNING on `node`; returns the new attempt, 0 where it was not PENDING any more."""
        ...

    def advance(self, row: JobRow, states: tuple[str, ...]) -> bool:
        """Write the row if the stored one has its attempt, its node and one of `states`; whether it was."""
        ...


class Store(Deployments, Ensembles, Jobs, Tasks, Holds, Protocol):
    """All of it."""

    def record(self, actor: Actor, action: str, resource: str, now: float, **details: str) -> None:
        """Audit and announce one change, in its transaction."""
        ...

    def record_all(self, changes: Sequence[Change], now: float) -> None:
        """The same for several changes."""
        ...
