"""The store on SQLite and PostgreSQL."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from sealane.records import tables
from sealane.records.tables import Actor, Change, by_project, values_of
from sealane_scheduler import leadership_sql, task_sql
from sealane_scheduler.store import (
    KEPT_DECISIONS,
    DecisionRow,
    DeployedRow,
    DeploymentRow,
    EnsembleRow,
    HoldRow,
    JobRow,
    PlacementRow,
    name_taken,
)

metadata = sa.MetaData()


def _key(name: str, kind: type[sa.types.TypeEngine[Any]] = sa.String) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=True)


def _value(name: str, kind: type[sa.types.TypeEngine[Any]] = sa.String) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False)


deployments = sa.Table(
    "deployments",
    metadata,
    _key("project"),
    _key("deployment"),
    _value("model_version"),
    _value("demand", sa.LargeBinary),
    _value("version", sa.LargeBinary),
    _value("create_time", sa.Float),
    _value("update_time", sa.Float),
    _value("etag"),
    _value("served_name"),
    _value("origin"),
    _value("labels"),
    _value("alias"),
    sa.Index("deployments_by_served_name", "project", "served_name"),
)
ensembles = sa.Table(
    "ensembles",
    metadata,
    _key("project"),
    _key("deployment"),
    _value("ensemble", sa.LargeBinary),
    _value("create_time", sa.Float),
    _value("etag"),
)
#: Outlives the deployment: an epoch is never used twice, even where the name is.
epochs = sa.Table("epochs", metadata, _key("project"), _key("deployment"), _value("epoch", sa.BigInteger))
placements = sa.Table(
    "placements",
    metadata,
    _key("project"),
    _key("deployment"),
    _key("epoch", sa.BigInteger),
    _value("node"),
    _value("variant"),
)
decisions = sa.Table(
    "decisions",
    metadata,
    _key("id", sa.Integer),
    _value("project"),
    _value("deployment"),
    _value("time", sa.Float),
    _value("content", sa.LargeBinary),
    sa.Index("decisions_by_deployment", "project", "deployment", "id"),
)
jobs = sa.Table(
    "jobs",
    metadata,
    _key("project"),
    _key("job"),
    _value("state"),
    _value("spec", sa.LargeBinary),
    _value("create_time", sa.Float),
    _value("update_time", sa.Float),
    _value("etag"),
    _value("attempt", sa.BigInteger),
    _value("node"),
    _value("lease_until", sa.Float),
    _value("progress", sa.Float),
    _value("message", sa.Text),
    _value("error", sa.Text),
    _value("results", sa.LargeBinary),
    _value("kind"),
    _value("rounds", sa.BigInteger),
    _value("execution", sa.LargeBinary),
    _value("attempts_allowed", sa.BigInteger),
    _value("begin_time", sa.Float),
    *(_value(name, sa.BigInteger) for name in ("tasks_total", "tasks_running", "tasks_succeeded", "tasks_failed")),
)

holds = sa.Table(
    "holds", metadata, _key("node"), _value("admission"), _value("deadline", sa.Float), _value("since", sa.Float)
)


def _of(table: sa.Table, project: object, deployment: object) -> sa.ColumnElement[bool]:
    return (table.c.project == project) & (table.c.deployment == deployment)


def _among(table: sa.Table, column: str = "deployment") -> sa.ColumnElement[bool]:
    """Of the deployments of a project that `names` has; see :func:`tables.by_project`."""
    return (table.c.project == sa.bindparam("of")) & table.c[column].in_(sa.bindparam("names", expanding=True))


def _named(table: sa.Table, column: str = "deployment") -> sa.Select[Any]:
    return sa.select(table.c.project, table.c[column]).where(_among(table, column))


def _too_old() -> sa.Delete:
    age = sa.func.row_number().over(
        partition_by=(decisions.c.project, decisions.c.deployment), order_by=decisions.c.id.desc()
    )
    aged = sa.select(decisions.c.id, age.label("age")).where(_among(decisions)).subquery()
    return decisions.delete().where(decisions.c.id.in_(sa.select(aged.c.id).where(aged.c.age > KEPT_DECISIONS)))


# Made once, because making them takes longer than running them, and placements are many.
_TAKEN = sa.union_all(_named(deployments), _named(deployments, "served_name"), _named(ensembles))
_ADD_DEPLOYMENTS, _ADD_EPOCHS, _ADD_PLACEMENTS, _ADD_DECISIONS = (
    table.insert() for table in (deployments, epochs, placements, decisions)
)
_LEFT_PLACEMENTS, _OLD_DECISIONS = placements.delete().where(_among(placements)), _too_old()
_EPOCHS = sa.select(epochs).where(_among(epochs))
_GROW = epochs.update().where(_of(epochs, sa.bindparam("of"), sa.bindparam("name"))).values(epoch=sa.bindparam("to"))
_JOB = sa.select(jobs).where((jobs.c.project == sa.bindparam("of")) & (jobs.c.job == sa.bindparam("name")))
_ADVANCE = (
    jobs.update()
    .where((jobs.c.project == sa.bindparam("of")) & (jobs.c.job == sa.bindparam("name")))
    .where((jobs.c.attempt == sa.bindparam("held")) & (jobs.c.node == sa.bindparam("by")))
    .where(jobs.c.state.in_(sa.bindparam("states", expanding=True)))
    .values({column.name: sa.bindparam(f"to_{column.name}") for column in jobs.c})
)
#: Tables of every noun.
METADATA = (metadata, task_sql.metadata, leadership_sql.metadata)


class SqlStore(task_sql.TaskSql):
    """Implements :class:`sealane_scheduler.store.Store` on one connection."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def add_deployments(self, rows: Sequence[DeploymentRow]) -> None:
        """Add deployments whose names nothing has."""
        if not rows:
            return
        for names in by_project((row.project, row.deployment) for row in rows):
            self._connection.execute(_LEFT_PLACEMENTS, names)
        self._connection.execute(_ADD_DEPLOYMENTS, [values_of(row) for row in rows])

    def put_deployment(self, row: DeploymentRow) -> None:
        """Replace an existing one."""
        key = _of(deployments, row.project, row.deployment)
        self._connection.execute(deployments.update().where(key).values(values_of(row)))

    def drop_deployment(self, project: str, deployment: str) -> None:
        """Remove with its placements; decisions stay."""
        for table in (placements, deployments):
            self._connection.execute(table.delete().where(_of(table, project, deployment)))

    def deployments(self) -> list[DeploymentRow]:
        """All deployments of all projects."""
        query = sa.select(deployments).order_by(deployments.c.project, deployments.c.deployment)
        return [DeploymentRow(**row._mapping) for row in self._connection.execute(query)]

    def deployed(self) -> list[DeployedRow]:
        """What all deployments of all projects are of."""
        query = sa.select(*(deployments.c[name] for name in DeployedRow._fields))
        return [DeployedRow(*row) for row in self._connection.execute(query)]

    def add_ensemble(self, row: EnsembleRow) -> None:
        """Add; a name that a chain or a deployment has raises AlreadyExists."""
        if self.taken([(row.project, row.deployment)]):
            raise name_taken(row.deployment)
        self._connection.execute(ensembles.insert().values(values_of(row)))

    def drop_ensemble(self, project: str, deployment: str) -> None:
        """Remove."""
        self._connection.execute(ensembles.delete().where(_of(ensembles, project, deployment)))

    def ensembles(self) -> list[EnsembleRow]:
        """All chains of all projects."""
        query = sa.select(ensembles).order_by(ensembles.c.project, ensembles.c.deployment)
        return [EnsembleRow(**row._mapping) for row in self._connection.execute(query)]

    def taken(self, names: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
        """Which of these projects and ids a deployment, a chain or a served name has."""
        # A name under which a compatible protocol serves versions would hide a deployment of that id.
        wanted = by_project(names)
        return {(row[0], row[1]) for names_ in wanted for row in self._connection.execute(_TAKEN, names_)}

    def bind(self, rows: Sequence[PlacementRow]) -> list[int]:
        """Add placements, each under its deployment's next epoch; returns these."""
        if not rows:
            return []
        keys = dict.fromkeys((row.project, row.deployment) for row in rows)
        found = [row for names in by_project(keys) for row in self._connection.execute(_EPOCHS, names)]
        before = {(row.project, row.deployment): int(row.epoch) for row in found}
        now, bound = dict.fromkeys(keys, 0) | before, []
        for row in rows:
            now[row.project, row.deployment] += 1
            bound.append(now[row.project, row.deployment])
        grown = [{"of": project, "name": name, "to": now[project, name]} for project, name in before]
        if grown:
            self._connection.execute(_GROW, grown)
        first = [
            {"project": project, "deployment": name, "epoch": now[project, name]}
            for project, name in keys
            if (project, name) not in before
        ]
        if first:
            self._connection.execute(_ADD_EPOCHS, first)
        placed = [values_of(row) | {"epoch": epoch} for row, epoch in zip(rows, bound, strict=True)]
        self._connection.execute(_ADD_PLACEMENTS, placed)
        return bound

    def release(self, row: PlacementRow) -> None:
        """Remove a placement."""
        key = _of(placements, row.project, row.deployment) & (placements.c.epoch == row.epoch)
        self._connection.execute(placements.delete().where(key))

    def placements(self) -> list[PlacementRow]:
        """All placements."""
        query = sa.select(placements).order_by(placements.c.epoch)
        return [PlacementRow(**row._mapping) for row in self._connection.execute(query)]

    def add_decisions(self, rows: Sequence[DecisionRow], *, first: bool = False) -> None:
        """Add; of each deployment the newest KEPT_DECISIONS stay, unless these are the `first` of new ones."""
        if not rows:
            return
        self._connection.execute(_ADD_DECISIONS, [values_of(row) for row in rows])
        if not first:
            for names in by_project((row.project, row.deployment) for row in rows):
                self._connection.execute(_OLD_DECISIONS, names)

    def decisions(self, project: str, deployment: str) -> list[DecisionRow]:
        """Decisions about a deployment, newest first."""
        query = sa.select(decisions).where(_of(decisions, project, deployment))
        rows = self._connection.execute(query.order_by(decisions.c.id.desc()))
        return [DecisionRow(row.project, row.deployment, row.time, row.content) for row in rows]

    def put_hold(self, row: HoldRow) -> None:
        """Add, or replace that of the same node."""
        self.drop_hold(row.node)
        self._connection.execute(holds.insert().values(values_of(row)))

    def drop_hold(self, node: str) -> None:
        """Remove."""
        self._connection.execute(holds.delete().where(holds.c.node == node))

    def holds(self) -> list[HoldRow]:
        """All, by node."""
        return [HoldRow(**row._mapping) for row in self._connection.execute(sa.select(holds).order_by(holds.c.node))]

    def add_job(self, row: JobRow) -> None:
        """Add."""
        self._connection.execute(jobs.insert().values(values_of(row)))

    def jobs(self, project: str, after: str, limit: int, only: str = "") -> list[JobRow]:
        """Jobs of a project by name, strictly after `after`; just the one named `only`, if given."""
        if only:
            rows = self._connection.execute(_JOB, {"of": project, "name": only})
        else:
            wanted = (jobs.c.project == project) & (jobs.c.job > after)
            rows = self._connection.execute(sa.select(jobs).where(wanted).order_by(jobs.c.job).limit(limit))
        return [JobRow(**row._mapping) for row in rows]

    def jobs_of(self, kinds: Collection[str], states: tuple[str, ...]) -> list[JobRow]:
        """Jobs of all projects of these kinds in these states, oldest first."""
        wanted = jobs.c.state.in_(states) & jobs.c.kind.in_(sorted(kinds))
        query = sa.select(jobs).where(wanted).order_by(jobs.c.create_time, jobs.c.job)
        return [JobRow(**row._mapping) for row in self._connection.execute(query)]

    def jobs_since(self, ended: tuple[str, ...], since: float) -> list[JobRow]:
        """Jobs of all projects that are not in one of the states `ended`, or changed at `since` or later, by age."""
        wanted = jobs.c.state.not_in(ended) | (jobs.c.update_time >= since)
        query = sa.select(jobs).where(wanted).order_by(jobs.c.create_time, jobs.c.job)
        return [JobRow(**row._mapping) for row in self._connection.execute(query)]

    def claim(self, row: JobRow, node: str, lease_until: float, now: float) -> int:
        """PENDING to RUNNING on `node`; returns the new attempt, 0 where it was not PENDING any more."""
        key = (jobs.c.project == row.project) & (jobs.c.job == row.job) & (jobs.c.state == "PENDING")
        claimed = (
            jobs.update()
            .where(key)
            .values(
                state="RUNNING",
                attempt=jobs.c.attempt + 1,
                node=node,
                lease_until=lease_until,
                update_time=now,
                etag=secrets.token_hex(8),
            )
            .returning(jobs.c.attempt)
        )
        return int(self._connection.execute(claimed).scalar_one_or_none() or 0)

    def advance(self, row: JobRow, states: tuple[str, ...]) -> bool:
        """Write the row if the stored one has the same attempt and one of `states`; whether it was."""
        values = {f"to_{name}": value for name, value in values_of(row).items()} | {"to_etag": secrets.token_hex(8)}
        held = {"of": row.project, "name": row.job, "held": row.attempt, "by": row.node, "states": list(states)}
        return self._connection.execute(_ADVANCE, values | held).rowcount == 1

    def record(self, actor: Actor, action: str, resource: str, now: float, **details: str) -> None:
        """Audit and announce one change, in its transaction."""
        tables.record(self._connection, actor=actor, action=action, resource=resource, now=now, **details)

    def record_all(self, changes: Sequence[Change], now: float) -> None:
        """The same for several changes."""
        tables.record_all(self._connection, changes, now)
