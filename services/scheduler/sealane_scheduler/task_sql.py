"""Tasks and attempts on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from sealane.records.tables import values_of
from sealane_scheduler.task_store import AttemptRow, TaskRow

metadata = sa.MetaData()


def _key(name: str, kind: type[sa.types.TypeEngine[Any]] = sa.String) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=True)


def _value(name: str, kind: type[sa.types.TypeEngine[Any]] = sa.String) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False)


tasks = sa.Table(
    "tasks",
    metadata,
    _key("project"),
    _key("job"),
    _key("task", sa.BigInteger),
    _value("state"),
    _value("first_row", sa.BigInteger),
    _value("rows", sa.BigInteger),
    _value("variant"),
    _value("input", sa.LargeBinary),
    _value("attempt", sa.BigInteger),
    _value("failures", sa.BigInteger),
    _value("not_before", sa.Float),
    _value("error", sa.Text),
    _value("output", sa.LargeBinary),
    _value("update_time", sa.Float),
    sa.Index("tasks_by_state", "project", "job", "state", "task"),
)
attempts = sa.Table(
    "attempts",
    metadata,
    _key("project"),
    _key("job"),
    _key("task", sa.BigInteger),
    _key("attempt", sa.BigInteger),
    _value("node"),
    _value("state"),
    _value("lease_until", sa.Float),
    _value("begin_time", sa.Float),
    _value("end_time", sa.Float),
    _value("progress", sa.Float),
    _value("error", sa.Text),
    _value("log", sa.Text),
    sa.Index("attempts_by_state", "state"),
)


def _of(table: sa.Table, project: str, job: str, task: int | None = None) -> sa.ColumnElement[bool]:
    found = (table.c.project == project) & (table.c.job == job)
    return found if task is None else found & (table.c.task == task)


def _open() -> sa.ColumnElement[bool]:
    return tasks.c.state.in_(("PENDING", "RUNNING"))


def _bound(table: sa.Table, *names: str) -> sa.ColumnElement[bool]:
    """Rows whose columns are as the parameters ``of_<column>`` say."""
    return sa.and_(*(table.c[name] == sa.bindparam(f"of_{name}") for name in names))


# Made once, because making them takes longer than running them, and a job has many tasks.
_TASK_KEY, _ATTEMPT_KEY = ("project", "job", "task"), ("project", "job", "task", "attempt", "node")
_HELD = _bound(attempts, *_ATTEMPT_KEY) & (attempts.c.state == "RUNNING")
_TASK = sa.select(tasks).where(_bound(tasks, *_TASK_KEY))
_COUNTS = sa.select(tasks.c.state, sa.func.count()).where(_bound(tasks, "project", "job")).group_by(tasks.c.state)
_WAITING = (
    sa.select(tasks)
    .where(_bound(tasks, "project", "job") & (tasks.c.state == "PENDING") & (tasks.c.not_before <= sa.bindparam("now")))
    .order_by(tasks.c.task)
    .limit(sa.bindparam("most"))
)
_RUNNING = sa.select(attempts).where(attempts.c.state == "RUNNING")
_ATTEMPTS = sa.select(attempts).where(_bound(attempts, *_TASK_KEY)).order_by(attempts.c.attempt)
_GIVE_OUT = (
    tasks.update()
    .where(_bound(tasks, *_TASK_KEY, "state") & _open())
    .values(state="RUNNING", attempt=tasks.c.attempt + 1, update_time=sa.bindparam("now"))
    .returning(tasks.c.attempt)
)
_RENEW = (
    attempts.update()
    .where(_HELD)
    .values({name: sa.bindparam(f"to_{name}") for name in ("lease_until", "progress", "log")})
)
_FINISHED = ("state", "failures", "not_before", "error", "output", "update_time")
_FINISH = (
    tasks.update()
    .where(_bound(tasks, *_TASK_KEY) & (tasks.c.state == "RUNNING"))
    .where(sa.exists(sa.select(attempts.c.attempt).where(_HELD)))
    .values({name: sa.bindparam(f"to_{name}") for name in _FINISHED})
)
_END = attempts.update().where(_HELD).values({column.name: sa.bindparam(f"to_{column.name}") for column in attempts.c})


def _named(prefix: str, row: object, names: Iterable[str]) -> dict[str, Any]:
    return {f"{prefix}_{name}": getattr(row, name) for name in names}


class TaskSql:
    """Implements :class:`sealane_scheduler.task_store.Tasks` on one connection."""

    _connection: sa.Connection

    def add_tasks(self, rows: Iterable[TaskRow]) -> None:
        """See :class:`Tasks`."""
        values = [values_of(row) for row in rows]
        if values:
            self._connection.execute(tasks.insert(), values)

    def tasks(self, project: str, job: str, after: int, limit: int) -> list[TaskRow]:
        """See :class:`Tasks`."""
        query = sa.select(tasks).where(_of(tasks, project, job) & (tasks.c.task > after))
        return self._tasks(query.order_by(tasks.c.task).limit(limit))

    def task(self, project: str, job: str, task: int) -> TaskRow | None:
        """See :class:`Tasks`."""
        key = {"of_project": project, "of_job": job, "of_task": task}
        return next(iter(self._tasks(_TASK, key)), None)

    def task_counts(self, project: str, job: str) -> Mapping[str, int]:
        """See :class:`Tasks`."""
        found = self._connection.execute(_COUNTS, {"of_project": project, "of_job": job})
        return {str(state): int(count) for state, count in found}

    def waiting(self, project: str, job: str, now: float, limit: int) -> list[TaskRow]:
        """See :class:`Tasks`."""
        return self._tasks(_WAITING, {"of_project": project, "of_job": job, "now": now, "most": limit})

    def running(self) -> list[AttemptRow]:
        """See :class:`Tasks`."""
        return self._attempts(_RUNNING)

    def attempts(self, project: str, job: str, task: int) -> list[AttemptRow]:
        """See :class:`Tasks`."""
        return self._attempts(_ATTEMPTS, {"of_project": project, "of_job": job, "of_task": task})

    def durations(self, project: str, job: str, limit: int) -> list[float]:
        """See :class:`Tasks`."""
        done = _of(attempts, project, job) & (attempts.c.state == "SUCCEEDED")
        query = sa.select(attempts.c.end_time - attempts.c.begin_time).where(done)
        return [
            float(took) for (took,) in self._connection.execute(query.order_by(attempts.c.end_time.desc()).limit(limit))
        ]

    def outputs(self, project: str, job: str) -> list[bytes]:
        """See :class:`Tasks`."""
        query = sa.select(tasks.c.output).where(_of(tasks, project, job) & (tasks.c.state == "SUCCEEDED"))
        return [bytes(output) for (output,) in self._connection.execute(query.order_by(tasks.c.task))]

    def give_out(self, row: TaskRow, node: str, lease_until: float, now: float) -> int:
        """See :class:`Tasks`."""
        key = _named("of", row, (*_TASK_KEY, "state")) | {"now": now}
        attempt = int(self._connection.execute(_GIVE_OUT, key).scalar_one_or_none() or 0)
        if attempt:
            begun = AttemptRow(row.project, row.job, row.task, attempt, node, lease_until=lease_until, begin_time=now)
            self._connection.execute(attempts.insert().values(values_of(begun)))
        return attempt

    def renew(self, row: AttemptRow, lease_until: float, progress: float, log: str) -> bool:
        """See :class:`Tasks`."""
        told = {"to_lease_until": lease_until, "to_progress": progress, "to_log": log}
        return self._connection.execute(_RENEW, _named("of", row, _ATTEMPT_KEY) | told).rowcount == 1

    def finish(self, attempt: AttemptRow, task: TaskRow) -> bool:
        """See :class:`Tasks`."""
        values = _named("of", attempt, _ATTEMPT_KEY) | _named("to", task, _FINISHED)
        return self._connection.execute(_FINISH, values).rowcount == 1

    def end(self, row: AttemptRow) -> None:
        """See :class:`Tasks`."""
        values = {f"to_{name}": value for name, value in values_of(row).items()}
        self._connection.execute(_END, _named("of", row, _ATTEMPT_KEY) | values)

    def stop(self, project: str, job: str, now: float, task: int | None = None) -> int:
        """See :class:`Tasks`."""
        under_way = _of(attempts, project, job, task) & (attempts.c.state == "RUNNING")
        stopped = attempts.update().where(under_way).values(state="STOPPED", end_time=now)
        return int(self._connection.execute(stopped).rowcount)

    def drop_rest(self, project: str, job: str, now: float) -> None:
        """See :class:`Tasks`."""
        rest = _of(tasks, project, job) & _open()
        self._connection.execute(tasks.update().where(rest).values(state="CANCELLED", update_time=now))

    def _tasks(self, query: sa.Select[Any], values: Mapping[str, object] | None = None) -> list[TaskRow]:
        return [TaskRow(**row._mapping) for row in self._connection.execute(query, values or {})]

    def _attempts(self, query: sa.Select[Any], values: Mapping[str, object] | None = None) -> list[AttemptRow]:
        return [AttemptRow(**row._mapping) for row in self._connection.execute(query, values or {})]
